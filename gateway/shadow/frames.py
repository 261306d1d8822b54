"""An exchange as bytes on the socket between a worker and the process that replays: lengths, a JSON head, two bodies.

No pickle: the head is data, whoever wrote it.
"""

import asyncio
import struct
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import orjson

from gateway.model import Backend, Observation, RowChange

from .tape import Exchange

MAX_HEAD_BYTES = 4_194_304

_LENGTHS = struct.Struct("<III")


class FrameError(ValueError):
    """Bytes that are no exchange."""


def pack(exchange: Exchange) -> tuple[bytes, ...]:
    """The frame, in parts. Raises orjson.JSONEncodeError for what JSON cannot say."""
    scope, control = exchange.scope, exchange.control
    texts = {name: value.decode("latin-1") if type(value) is bytes else value for name, value in scope.items()}
    texts["headers"] = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    head = orjson.dumps(
        (
            exchange.id,
            exchange.key,
            exchange.candidate.value,
            exchange.at,
            exchange.version,
            exchange.subject,
            texts,
            (control.backend.value, control.status, control.headers, control.duration_s, control.error),
            exchange.ignore,
            exchange.rows and [(row.table, row.key, _plain(row.before), _plain(row.after)) for row in exchange.rows],
        ),
        _tagged,
        orjson.OPT_PASSTHROUGH_DATETIME,
    )
    lengths = _LENGTHS.pack(len(head), len(exchange.body), len(control.body))
    return lengths, head, exchange.body, control.body


async def read(reader: asyncio.StreamReader, limit_bytes: int) -> Exchange:
    """The next exchange. Raises FrameError, and asyncio.IncompleteReadError at the end of the connection."""
    head, body, answer = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if head > MAX_HEAD_BYTES or max(body, answer) > limit_bytes:
        raise FrameError(f"{head}, {body} and {answer} bytes are too many")
    return unpack(await reader.readexactly(head), await reader.readexactly(body), await reader.readexactly(answer))


def unpack(head: bytes, body: bytes, answer: bytes) -> Exchange:
    """The exchange that was packed. Raises FrameError."""
    try:
        request_id, key, candidate, at, version, subject, scope, control, ignore, rows = orjson.loads(head)
        for name in ("raw_path", "query_string"):
            scope[name] = scope[name].encode("latin-1")
        scope["headers"] = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in scope["headers"]]
        for name in ("client", "server"):
            scope[name] = scope[name] and tuple(scope[name])
        backend, status, headers, duration_s, error = control
        pairs = tuple((name, value) for name, value in headers)
        return Exchange(
            request_id,
            key,
            Backend(candidate),
            at,
            version,
            subject,
            scope,
            body,
            Observation(Backend(backend), status, pairs, answer, duration_s, error),
            tuple(ignore),
            None if rows is None else tuple(_row(*row) for row in rows),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FrameError(f"no exchange: {type(error).__name__}") from error


# --- rows ---------------------------------------------------------------------------------------------------------

_READ: dict[str, Any] = {
    "bytes": bytes.fromhex,
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(seconds=float(text)),
}


def _plain(row: Mapping[str, object] | None) -> dict[str, object] | None:
    return None if row is None else {str(name): value for name, value in row.items()}  # SQLAlchemy's names are no str


def _tagged(value: object) -> dict[str, str]:
    """What a database knows and JSON does not."""
    kind = type(value).__name__
    if isinstance(value, bytes):
        return {"\0": kind, "=": value.hex()}
    if isinstance(value, datetime | date | time):
        return {"\0": kind, "=": value.isoformat()}
    if isinstance(value, timedelta):
        return {"\0": kind, "=": str(value.total_seconds())}
    if kind in _READ:
        return {"\0": kind, "=": str(value)}
    raise TypeError(kind)


def _value(value: Any) -> object:
    if isinstance(value, dict) and "\0" in value:
        return _READ[value["\0"]](value["="])
    return value


def _row(table: str, key: list[Any], before: dict[str, Any] | None, after: dict[str, Any] | None) -> RowChange:
    old, new = (row and {name: _value(value) for name, value in row.items()} for row in (before, after))
    return RowChange(table, tuple(_value(value) for value in key), old, new)
