"""Cookies: those that applications set, and `gw_id`, our own."""

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from starlette.requests import cookie_parser
from starlette.types import Scope
from werkzeug.http import parse_date

Header = tuple[bytes, bytes]

YEAR_S = 31_536_000


@dataclass(frozen=True, slots=True)
class SetCookie:
    """One Set-Cookie line of an answer."""

    header: Header
    name: str
    raw: str  # as a browser sends it back
    value: str  # without quotes
    deleted: bool


def set_cookies(headers: Iterable[Header]) -> list[SetCookie]:
    return [_parse(header) for header in headers if header[0].lower() == b"set-cookie"]


def _parse(header: Header) -> SetCookie:
    pair, *attributes = header[1].decode("latin-1").split(";")
    name, _, raw = (part.strip() for part in pair.partition("="))
    value = read_cookie(header[1].partition(b";")[0], name)
    life = {key.strip().lower(): text.strip() for key, _, text in (item.partition("=") for item in attributes)}
    age, expires = life.get("max-age"), parse_date(life.get("expires"))
    if age is not None and re.fullmatch(r"-?[0-9]+", age):
        over = age.startswith("-") or not age.strip("0")
    else:
        over = expires is not None and expires <= datetime.now(UTC)
    return SetCookie(header, name, raw, value, over or not value)


def read_cookie(cookie: bytes, name: str) -> str:
    """One cookie of a Cookie header, as Starlette reads it."""
    return cookie_parser(cookie.decode("latin-1")).get(name, "")


def replace_cookie(cookie: bytes, name: str, value: str) -> bytes:
    """The Cookie header with one cookie replaced. It comes first: Flask believes the first of a name."""
    others = [part for part in cookie.split(b";") if part.partition(b"=")[0].strip() != name.encode("latin-1")]
    return b"; ".join([f"{name}={value}".encode("latin-1"), *(part.strip() for part in others if part.strip())])


def is_secure(scope: Scope) -> bool:
    return scope.get("scheme") in ("https", "wss")


class AnonymousCookie:
    """`gw_id`: a random number that nobody else can choose, so that nobody can pick his bucket."""

    _PATTERN = re.compile(rb"(?:\A|;)[ \t]*gw_id=([0-9a-f]{32})\.([0-9a-f]{32})[ \t]*(?=;|\Z)")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def read(self, cookie: bytes) -> str:
        """The number in a Cookie header; empty when none there is ours."""
        for match in islice(self._PATTERN.finditer(cookie), 4):
            number, signature = match.groups()
            if hmac.compare_digest(signature, self._sign(number)):
                return number.decode()
        return ""

    def make(self, *, secure: bool) -> tuple[str, Header]:
        """A new number, and the line that sets it."""
        number = secrets.token_hex(16).encode()
        attributes = b"; HttpOnly; Max-Age=%d; Path=/; SameSite=Lax" % YEAR_S + (b"; Secure" if secure else b"")
        return number.decode(), (b"set-cookie", b"gw_id=" + number + b"." + self._sign(number) + attributes)

    def _sign(self, number: bytes) -> bytes:
        return hmac.digest(self._secret, b"gw_id=" + number, "sha256").hex()[:32].encode()
