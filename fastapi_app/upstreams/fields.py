"""Fields of what a service answered, which may lie: a value of the wrong type is no value."""

import re
from collections.abc import Mapping
from typing import Any

from .errors import Service, nonsense

_DURATION = re.compile(r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ADDRESS = re.compile(r"https?://\S+")


def dig(value: Any, *path: str) -> Any:
    """What is at the end of a path through objects; None when it breaks off."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def records(service: Service, value: Any) -> list[dict[str, Any]]:
    """The objects of a list. Raises ApiError 502 when it is no list."""
    if not isinstance(value, list):
        raise nonsense(service)
    return [item for item in value if isinstance(item, dict)]


def text(value: Any, limit: int) -> str | None:
    """A text that a database takes, without white space at its ends, cut to `limit`; None for an empty one."""
    if not isinstance(value, str) or _SURROGATE.search(value):
        return None
    return value.strip()[:limit].strip() or None


def identifier(value: Any, limit: int) -> str | None:
    """An id as text, also one that came as a number; None when it is too long to be one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return str(value)
    found = text(value, limit + 1)
    return found if found and len(found) <= limit else None


def whole(value: Any, high: int = 2**31 - 1) -> int | None:
    """A number from 0 to `high`, also one that came as digits."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= 20:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high else None


def address(value: Any, limit: int = 1000) -> str | None:
    """An address on the web."""
    found = text(value, limit + 1)
    return found if found and len(found) <= limit and _ADDRESS.fullmatch(found) else None


def year(value: Any) -> int | None:
    """The year of a number, or of a text that begins with one: `2009-10-25T06:57:33Z`."""
    found = whole(value[:4] if isinstance(value, str) else value, 9999)
    return found if found and found >= 1000 else None


def seconds(value: Any) -> int | None:
    """A duration of ISO 8601: `PT1H4M13S`. The odd `P0D` of a live stream is none."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return whole(86_400 * days + 3600 * hours + 60 * minutes + rest) or None
