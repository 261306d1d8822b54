"""The `Cookie` and `Set-Cookie` headers, read and written as Werkzeug does."""

import re
from datetime import UTC, datetime

from fastapi import Request

from .json import http_date

_PAIR = re.compile(
    r"""[ \t]* ([^ \t=";]+) (?: [ \t]*=[ \t]* ( "(?:[^\\"]|\\.)*" | [^ \t";]* ) )? [ \t]* (?:;|\Z)""",
    re.ASCII | re.VERBOSE,
)
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2}|.)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_cookie(request: Request, name: str) -> str:
    """The first cookie of that name; empty when there is none."""
    return parse_cookies("; ".join(request.headers.getlist("cookie"))).get(name, "")


def parse_cookies(header: str) -> dict[str, str]:
    """The cookies of a header in latin-1; of a repeated one the first counts."""
    header = header.encode("latin-1").decode(errors="replace")
    first: dict[str, str] = {}
    position = 0
    while header:
        match = _PAIR.match(header, position)
        if match is None:  # no cookie up to the next semicolon
            position = header.find(";", position) + 1
            if position == 0:
                break
            continue
        position = match.end()
        first.setdefault(match[1], _unquote(match[2] or ""))
    return first


def _unquote(value: str) -> str:
    if len(value) < 2 or not value.startswith('"'):
        return value
    return _ESCAPED.sub(_unescape, value[1:-1].encode()).decode(errors="replace")


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    return escaped if len(escaped) == 1 else bytes([int(escaped, 8)])


def set_cookie(
    name: str, value: str, *, expires: datetime | None = None, max_age: int | None = None, secure: bool, http_only: bool
) -> str:
    """A `Set-Cookie` header. `value` needs no quoting: letters, digits and `._-` only. `max_age` is in seconds."""
    parts = [f"{name}={value}"]
    if expires is not None:
        parts.append(f"Expires={http_date(expires)}")
    if max_age is not None:
        parts.append(f"Max-Age={max_age}")
    if secure:
        parts.append("Secure")
    if http_only:
        parts.append("HttpOnly")
    return "; ".join([*parts, "Path=/", "SameSite=Lax"])


def drop_cookie(name: str, *, secure: bool, http_only: bool) -> str:
    """The `Set-Cookie` header that makes a browser forget the cookie."""
    return set_cookie(name, "", expires=_EPOCH, max_age=0, secure=secure, http_only=http_only)
