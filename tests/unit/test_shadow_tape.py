"""What is recorded of a request, and what is not worth it."""

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.model import Backend, Outcome, RowChange
from gateway.shadow.frames import FrameError, pack, read
from gateway.shadow.tape import Exchange, Tape
from tests.support.asgi import http_scope

LIMIT_BYTES = 1000
JSON = [(b"content-type", b"application/json")]


def record(
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    questions: Iterable[dict[str, Any]] = (),
    limit_s: float = 10.0,
) -> Tape:
    left = list(questions)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    scope = http_scope(method, "/songs?page=2", [("cookie", "a=1"), *headers])
    return Tape(scope, receive, limit_bytes=LIMIT_BYTES, limit_s=limit_s)


def exchange_of(tape: Tape, **more: Any) -> Exchange | None:
    return tape.exchange("r1", "songs.list", version="v1", **more)


def whole(tape: Tape) -> Exchange:
    exchange = exchange_of(tape)
    assert exchange is not None
    return exchange


async def test_an_exchange_is_the_request_as_it_came_and_the_answer_as_the_client_got_it() -> None:
    sent = {"type": "http.request", "body": b"{}", "more_body": False}
    tape = record(method="POST", headers=[("content-length", "2")], questions=[sent])

    assert sent == await tape.receive()
    tape.begin(Backend.FASTAPI, 201, JSON)
    tape.add(b"[1,", more=True)
    tape.add(b"2]", more=False)
    exchange = whole(tape)

    assert ("POST", "/songs", b"page=2") == tuple(exchange.scope[n] for n in ("method", "path", "query_string"))
    assert (b"cookie", b"a=1") in exchange.scope["headers"]
    assert b"{}" == exchange.body
    assert (Backend.FASTAPI, Backend.LEGACY) == (exchange.control.backend, exchange.candidate)
    assert (201, (("content-type", "application/json"),), b"[1,2]") == (
        exchange.control.status,
        exchange.control.headers,
        exchange.control.body,
    )
    assert abs(time.time() - exchange.at) < 60


async def test_what_an_application_does_to_the_scope_is_not_replayed() -> None:
    scope = http_scope("GET", "/songs", [("x-one", "1")])
    tape = Tape(scope, asyncio.Queue().get, limit_bytes=LIMIT_BYTES, limit_s=10)

    scope["headers"].append((b"authorization", b"Bearer minted"))
    scope["gateway.key"] = "songs.list"
    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"1", more=False)

    exchange = whole(tape)
    assert b"authorization" not in dict(exchange.scope["headers"])
    assert "gateway.key" not in exchange.scope


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, b"text/event-stream; charset=utf-8"), (200, b"multipart/x-mixed-replace; boundary=a"), (101, b"text/plain")],
)
def test_an_answer_without_an_end_is_a_stream(status: int, kind: bytes) -> None:
    tape = record()

    tape.begin(Backend.LEGACY, status, [(b"Content-Type", kind)])
    tape.add(b"data: 1\n\n", more=False)

    assert exchange_of(tape) is None
    assert Outcome.STREAMED is tape.skip


def test_an_answer_that_goes_on_for_too_long_is_a_stream() -> None:
    tape = record(limit_s=0.0)

    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"1", more=True)

    assert exchange_of(tape) is None
    assert Outcome.STREAMED is tape.skip


def test_a_large_answer_is_forgotten_at_once() -> None:
    tape = record()

    tape.begin(Backend.LEGACY, 200, JSON)
    for _ in range(3):
        tape.add(b"x" * 400, more=True)
    held = tape._body
    tape.add(b"", more=False)

    assert [] == held
    assert exchange_of(tape) is None
    assert Outcome.LARGE is tape.skip


async def test_a_large_request_is_not_replayed() -> None:
    part = {"type": "http.request", "body": b"x" * 600, "more_body": True}
    tape = record(method="POST", headers=[("content-length", "1200")], questions=[part, {**part, "more_body": False}])

    await tape.receive()
    await tape.receive()
    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"1", more=False)

    assert exchange_of(tape) is None
    assert Outcome.LARGE is tape.skip


def test_an_answer_of_exactly_the_limit_is_replayed() -> None:
    tape = record()

    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"x" * LIMIT_BYTES, more=False)

    assert LIMIT_BYTES == len(whole(tape).control.body)


def test_an_answer_that_was_cut_is_neither_replayed_nor_counted() -> None:
    tape = record()

    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"[1,", more=True)

    assert exchange_of(tape) is None
    assert tape.skip is None


async def test_nothing_is_replayed_for_a_client_that_left_before_its_answer() -> None:
    tape = record(questions=[{"type": "http.disconnect"}])

    await tape.receive()
    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"1", more=False)

    assert exchange_of(tape) is None
    assert tape.skip is None


async def test_a_client_that_leaves_after_its_answer_had_one() -> None:
    tape = record(questions=[{"type": "http.disconnect"}])

    tape.begin(Backend.LEGACY, 200, JSON)
    tape.add(b"1", more=False)
    await tape.receive()

    assert 200 == whole(tape).control.status


@pytest.mark.parametrize("header", [("content-length", "7"), ("transfer-encoding", "chunked")])
def test_a_body_that_nobody_read_makes_a_request_inconclusive(header: tuple[str, str]) -> None:
    tape = record(method="POST", headers=[header])

    tape.begin(Backend.LEGACY, 403, JSON)
    tape.add(b"1", more=False)

    assert exchange_of(tape) is None
    assert Outcome.INCONCLUSIVE is tape.skip


# --- on the socket ------------------------------------------------------------------------------------------------


async def through_the_wire(frame: bytes, limit_bytes: int = LIMIT_BYTES) -> Exchange:
    reader = asyncio.StreamReader()
    reader.feed_data(frame)
    reader.feed_eof()
    return await read(reader, limit_bytes)


async def test_an_exchange_crosses_the_socket_unchanged() -> None:
    tape = record(headers=[("x-name", "Jos\xe9")])
    tape.begin(Backend.LEGACY, 200, [(b"set-cookie", b"a=\xe9"), (b"set-cookie", b"b=2")])
    tape.add(bytes(range(256)), more=False)
    row = RowChange(
        "songs",
        (1, "a"),
        None,
        {
            "price": Decimal("1.10"),
            "at": datetime(2026, 1, 2, 3, 4, 5, 6),
            "cover": b"\x00\xff",
            "tags": {"a": [1, None]},
        },
    )
    exchange = exchange_of(tape, subject="user:7", ignore=("$.at",), rows=(row,))
    assert exchange is not None

    assert exchange == await through_the_wire(b"".join(pack(exchange)))


async def test_rows_that_are_unknown_stay_unknown() -> None:
    for rows in (None, ()):
        tape = record()
        tape.begin(Backend.LEGACY, 200, JSON)
        tape.add(b"1", more=False)
        exchange = exchange_of(tape, rows=rows)
        assert exchange is not None
        assert rows == (await through_the_wire(b"".join(pack(exchange)))).rows


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 12,
        b"\x02\0\0\0" + b"\0" * 8 + b"{}",
        b"\x02\0\0\0" + b"\0" * 8 + b"[]",
        b"\x03\0\0\0" + b"\0" * 8 + b"\xff\xff\xff",
        b"\x02\0\0\0" + b"\xe9\x03\0\0" + b"\0" * 4 + b"[]" + b"x" * 1001,
    ],
)
async def test_what_is_no_exchange_is_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        await through_the_wire(frame)
