"""What kind of value is it? Two values of a noisy place have the same shape: they differ, but look alike."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import orjson

from gateway.compare import ABSENT, Place

_ISO = re.compile(
    r"\d{4}-\d\d-\d\d"
    r"(?:(?P<between>[T ])\d\d:\d\d(?P<seconds>:\d\d)?(?:[.,](?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:?\d\d)?)?"
)
_HTTP_DATE = re.compile(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
_KINDS = (
    ("uuid", re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)),
    ("digits", re.compile(r"\d+")),
    ("decimal", re.compile(r"-?\d+\.\d+")),
    ("hex", re.compile(r"(?=.*\d)[0-9a-f]{8,}", re.IGNORECASE)),
    ("mail", re.compile(r"[^\s@]+@[^\s@]+")),
    ("url", re.compile(r"[a-z][a-z0-9+.-]*://\S*", re.IGNORECASE)),
    ("token", re.compile(r"(?=.*[0-9A-Z])[\w.~+/=-]{16,}")),
)
_ESCAPED = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]+);|%[0-9A-F]{2}|\\[nut\"/\\]", re.IGNORECASE)
_EPOCH_S = (1_000_000_000, 3_000_000_000)  # years 2001 to 2065


def shape(place: Place, value: object) -> str:
    """Type and format. Of a status and an error all of it: those are never only noise."""
    if place in (("status",), ("error",)):
        return str(value)
    if value is ABSENT or value is None:
        return "absent" if value is ABSENT else "null"
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bytes):
        return f"bytes {value[:4]!r} {len(value).bit_length()}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _of_number(value)
    return type(value).__name__


def identity(value: object) -> object:
    """Equal for equal values only: 1, 1.0 and True are three."""
    if isinstance(value, dict | list):
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str)
        except orjson.JSONEncodeError:
            return repr(value)
    return type(value).__name__, value


def moment(value: object) -> float | None:
    """Seconds since the epoch, if the value is a point in time; without a zone it counts as UTC."""
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, str):
        return _of_written(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        for scale in (1, 1000, 1_000_000):
            if _EPOCH_S[0] <= value / scale <= _EPOCH_S[1]:
                return value / scale
    return None


def _of_number(value: float) -> str:
    sign = "-" if value < 0 else ""
    if isinstance(value, int):
        return f"{sign}int" if abs(value) < 10**8 else f"{sign}int of {len(str(abs(value)))} digits"
    fraction = repr(value).partition(".")[2]
    return f"{sign}float with {min(len(fraction), 7)} decimals"


def _of_text(text: str) -> str:
    if not text:
        return "empty"
    if iso := _ISO.fullmatch(text):
        zone = iso["zone"] if iso["zone"] in (None, "Z") else "+" + ":" * (":" in iso["zone"])
        return f"time {iso['between']} {bool(iso['seconds'])} {len(iso['fraction'] or '')} {zone}"
    if _HTTP_DATE.fullmatch(text):
        return "http date"
    for name, pattern in _KINDS:
        if pattern.fullmatch(text):
            return f"{name} {_size(name, text)} {_case(text)}"
    marks = (text.isascii(), text != text.strip(), _ESCAPED.search(text) is not None)
    return f"text {len(text).bit_length()} {_case(text)} {marks}"


def _size(kind: str, text: str) -> int:
    """Of what has a fixed length its length, and of a decimal number its decimals."""
    if kind == "decimal":
        return len(text.partition(".")[2])
    return len(text) if kind in ("hex", "token") or (kind == "digits" and len(text) >= 9) else 0


def _case(text: str) -> str:
    return "upper" if text.isupper() else "lower" if text.islower() else ""


def _of_written(text: str) -> float | None:
    try:
        if _ISO.fullmatch(text) and len(text) > 10:
            return _seconds(datetime.fromisoformat(text))
        if _HTTP_DATE.fullmatch(text):
            return _seconds(parsedate_to_datetime(text))
    except (ValueError, OverflowError):
        pass
    return None


def _seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
