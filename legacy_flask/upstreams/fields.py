"""Fields of what a service answered, which may lie: a value of the wrong type is no value."""

import re

from .errors import Service, nonsense

DURATION = re.compile(r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?", re.ASCII)
SURROGATE = re.compile("[\ud800-\udfff]")
ADDRESS = re.compile(r"https?://\S+")


def dig(value, *path: str):
    """What is at the end of a path through objects; None when it breaks off."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def records(service: Service, value) -> list[dict]:
    """The objects of a list. Raises ApiError 502 when it is no list."""
    if not isinstance(value, list):
        raise nonsense(service)
    return [item for item in value if isinstance(item, dict)]


def text(value, limit: int) -> str | None:
    """A text that a database takes, without white space at its ends, cut to `limit`; None for an empty one."""
    if not isinstance(value, str) or SURROGATE.search(value):
        return None
    return value.strip()[:limit].strip() or None


def identifier(value, limit: int) -> str | None:
    """An id as text, also one that came as a number; None when it is too long to be one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return str(value)
    found = text(value, limit + 1)
    return found if found and len(found) <= limit else None


def whole(value, high: int = 2**31 - 1) -> int | None:
    """A number from 0 to `high`, also one that came as digits."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= 20:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high else None


def address(value, limit: int = 1000) -> str | None:
    """An address on the web."""
    found = text(value, limit + 1)
    return found if found and len(found) <= limit and ADDRESS.fullmatch(found) else None


def year(value) -> int | None:
    """The year of a number, or of a text that begins with one: `2009-10-25T06:57:33Z`."""
    found = whole(value[:4] if isinstance(value, str) else value, 9999)
    return found if found and found >= 1000 else None


def seconds(value) -> int | None:
    """A duration of ISO 8601: `PT1H4M13S`. The odd `P0D` of a live stream is none."""
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return whole(86_400 * days + 3600 * hours + 60 * minutes + rest) or None
