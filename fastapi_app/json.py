"""JSON text, byte for byte as Flask writes it: sorted keys, ASCII escapes, no spaces, a final newline."""

import codecs
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import orjson

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME
_ESCAPE = "fastapi_app.json_escape"
_TINY = 1e-4  # below it orjson and Python write a float differently


class OddFloat(float):
    """A float that orjson would write in its own way: tiny, or not finite."""


def exact_float(value: float | str) -> float:
    """`value`, marked where needed so that `encode` writes it as Python does."""
    number = float(value)
    return number if _TINY <= abs(number) < float("inf") or number == 0 else OddFloat(number)


def decode(text: str | bytes) -> Any:
    """JSON as Flask reads it: `NaN` is a number, whole numbers have any size, bytes may be UTF-8, 16 or 32.

    Raises ValueError or RecursionError for anything else.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    return _DECODER.decode(text)


_DECODER = json.JSONDecoder(parse_float=exact_float, parse_constant=exact_float)


def encode(value: Any) -> bytes:
    """The JSON text of `value`, equal to Flask's `jsonify`.

    A float that was computed here and may be tiny or infinite goes through `exact_float` first; those that were read
    by `decode` have done so. Raises TypeError for what JSON cannot say.
    """
    try:
        body = orjson.dumps(value, _plain, _OPTIONS)
    except TypeError:  # an odd float, a key that is no string, a whole number above 64 bits, a lone surrogate
        text = json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"))
        return text.encode() + b"\n"
    if not body.isascii():
        body = body.decode().encode("ascii", _ESCAPE)
    return body.replace(b"\x7f", b"\\u007f")


def http_date(moment: date) -> str:
    """`Tue, 02 Jan 2024 03:04:05 GMT`; a naive time is UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return format_datetime(moment, usegmt=True)


def _plain(value: object) -> str:
    if isinstance(value, date):
        return http_date(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _escape_run(error: UnicodeError) -> tuple[str, int]:
    """What the ASCII codec puts in place of a run of other characters: their UTF-16 units as `\\uXXXX`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be").hex("-", 2)
    return "\\u" + units.replace("-", "\\u"), error.end


codecs.register_error(_ESCAPE, _escape_run)
