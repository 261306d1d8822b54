"""The worker's end of shadowing: what is handed over, when, and what is shed."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from gateway.model import Backend, Observation, Outcome
from gateway.protocol import Config
from gateway.settings import Settings
from gateway.shadow.client import NAME, Shadow, address
from gateway.shadow.frames import read
from gateway.shadow.strikes import LIMIT, Strikes
from gateway.shadow.tape import Exchange, Tape
from tests.support.asgi import http_scope

SETTINGS = Settings(shadow_queue=8, shadow_timeout_s=2.0)


class Tally:
    """Stands at the end where outcomes are counted."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()

    def count(self, key: str, outcome: Outcome) -> None:
        self.counts[key, outcome] += 1


def exchange(number: int = 0, *, key: str = "songs.list", body: bytes = b"{}") -> Exchange:
    scope = {**http_scope("GET", f"/songs/{number}")}
    kept = {name: scope[name] for name in ("http_version", "method", "scheme", "path", "raw_path", "query_string")}
    kept |= {"root_path": "", "headers": [], "client": None, "server": None}
    control = Observation(Backend.LEGACY, 200, (), body)
    return Exchange(str(number), key, Backend.FASTAPI, time.time(), "v1", "", kept, b"", control)


@asynccontextmanager
async def handing_over(state: Path, settings: Settings = SETTINGS) -> AsyncIterator[tuple[Shadow, Tally]]:
    tally = Tally()
    shadow = Shadow(settings, state, tally)
    shadow.start()
    try:
        yield shadow, tally
    finally:
        await shadow.stop()


@asynccontextmanager
async def receiving(state: Path) -> AsyncIterator[list[Exchange]]:
    """Stands at the other end of the socket."""
    received: list[Exchange] = []
    workers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        workers.append(writer)
        with closing(writer):
            try:
                while True:
                    received.append(await read(reader, SETTINGS.shadow_body_bytes))
            except asyncio.IncompleteReadError:
                pass

    state.mkdir(parents=True, exist_ok=True)
    (state / NAME).unlink(missing_ok=True)
    with address(state) as path:
        server = await asyncio.start_unix_server(serve, path)
    try:
        yield received
    finally:
        server.close()
        for worker in workers:
            worker.close()
        await asyncio.sleep(0.01)  # for their tasks to end


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        await asyncio.sleep(0.005)


async def test_exchanges_arrive_in_order(tmp_path: Path) -> None:
    async with receiving(tmp_path) as received, handing_over(tmp_path) as (shadow, tally):
        for number in range(5):
            shadow.submit(exchange(number))
        await until(lambda: len(received) == 5, "five exchanges")

        assert ["0", "1", "2", "3", "4"] == [one.id for one in received]
        assert not tally.counts


async def test_without_anybody_to_replay_everything_is_shed(tmp_path: Path) -> None:
    async with handing_over(tmp_path) as (shadow, tally):
        for number in range(3):
            shadow.submit(exchange(number))

        await until(lambda: tally.counts["songs.list", Outcome.SHED] == 3, "three that were shed")


async def test_it_finds_a_process_that_was_started_anew(tmp_path: Path) -> None:
    async with handing_over(tmp_path) as (shadow, _):
        for _ in range(2):
            async with receiving(tmp_path) as received:

                def ask(received: list[Exchange] = received) -> bool:
                    shadow.submit(exchange())
                    return bool(received)

                await until(ask, "the exchange to arrive")


def test_it_gets_over_a_process_that_dies_with_its_hands_full(tmp_path: Path) -> None:
    """On the loop of the gateway: uvloop, which has its own way to say that a connection was reset."""

    async def dies_while_it_is_told() -> None:
        broken: list[asyncio.StreamWriter] = []

        async def take_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            broken.append(writer)

        async with handing_over(tmp_path) as (shadow, _):
            with address(tmp_path) as path:
                server = await asyncio.start_unix_server(take_nothing, path)
            while not broken:
                shadow.submit(exchange(body=b"x" * 100_000))
                await asyncio.sleep(0.01)
            broken[0].transport.abort()
            server.close()
            (tmp_path / NAME).unlink()
            async with receiving(tmp_path) as received:
                async with asyncio.timeout(5):
                    while not received:
                        shadow.submit(exchange())
                        await asyncio.sleep(0.01)

    uvloop.run(dies_while_it_is_told())


async def test_the_queue_is_bounded_and_never_blocks(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:  # accepts, and reads nothing
        deaf.bind(str(tmp_path / NAME))
        deaf.listen()
        async with handing_over(tmp_path) as (shadow, tally):
            began = time.monotonic()
            for number in range(100):
                shadow.submit(exchange(number, body=b"x" * 1_000_000))
                await asyncio.sleep(0)

            assert time.monotonic() - began < 1
            assert 90 <= tally.counts["songs.list", Outcome.SHED] <= 92
        assert 98 <= tally.counts["songs.list", Outcome.SHED] <= 100


async def test_a_full_queue_makes_recording_not_worth_while(tmp_path: Path) -> None:
    async with handing_over(tmp_path) as (shadow, tally):
        assert shadow.wants("songs.list")
        for number in range(SETTINGS.shadow_queue):
            shadow.submit(exchange(number), lambda: 1)

        assert not shadow.wants("songs.list")
        assert 1 == tally.counts["songs.list", Outcome.SHED]


async def test_a_route_that_was_struck_out_is_not_recorded(tmp_path: Path) -> None:
    Strikes(tmp_path).add(["bad.one"], LIMIT)
    async with handing_over(tmp_path) as (shadow, tally):
        assert not shadow.wants("bad.one")
        assert shadow.wants("songs.list")
        assert 1 == tally.counts["bad.one", Outcome.SHED]


async def test_a_client_that_is_gone_is_not_shadowed(tmp_path: Path) -> None:
    async with receiving(tmp_path) as received, handing_over(tmp_path) as (shadow, tally):
        left = [1, -1]
        shadow.submit(exchange(1), lambda: -1)
        shadow.submit(exchange(2), lambda: left.pop(0) if len(left) > 1 else -1)
        shadow.submit(exchange(3))
        await until(lambda: received, "the third")

        assert ["3"] == [one.id for one in received]
        assert not tally.counts


async def test_what_waits_for_a_slow_reader_grows_stale_and_is_shed(tmp_path: Path) -> None:
    async with receiving(tmp_path) as received, handing_over(tmp_path) as (shadow, tally):
        shadow.submit(exchange(1), lambda: 1)
        shadow.submit(exchange(2))
        await until(lambda: received, "the second, which the first does not hold up")
        assert ["2"] == [one.id for one in received]

        await until(lambda: tally.counts["songs.list", Outcome.SHED] == 1, "the first to be shed")


async def test_an_exchange_that_cannot_be_written_down_is_our_own_fault(tmp_path: Path) -> None:
    async with receiving(tmp_path) as received, handing_over(tmp_path) as (shadow, tally):
        shadow.submit(exchange(1, key="\ud800"))
        shadow.submit(exchange(2))
        await until(lambda: received, "the second")

        assert {("\ud800", Outcome.BROKEN): 1} == tally.counts


async def test_a_state_directory_may_lie_deep(tmp_path: Path) -> None:
    state = tmp_path / ("deep" * 30)
    async with receiving(state) as received, handing_over(state) as (shadow, _):
        shadow.submit(exchange())
        await until(lambda: received, "the exchange")


@pytest.mark.parametrize("size", [1_000_000, 16_000_000])  # one of them fits into the kernel's buffers
async def test_an_exchange_is_handed_over_after_the_last_byte_of_its_client(tmp_path: Path, size: int) -> None:
    """Through the gateway's own HTTP, to a client that takes its time."""
    settings = Settings(shadow_timeout_s=20.0)
    body = b"x" * size
    async with receiving(tmp_path) as received, handing_over(tmp_path, settings) as (shadow, _):

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tape = Tape(scope, receive, limit_bytes=settings.shadow_body_bytes, limit_s=10)
            tape.begin(Backend.LEGACY, 200, [])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
            tape.add(b"", more=False)
            done = tape.exchange("r1", "songs.list", version="v1")
            assert done is not None
            shadow.submit(done, scope["gateway.unsent"])

        async with serving(app, settings) as port:
            before, after = await asyncio.to_thread(read_slowly, port, size, received)

    assert [] == before
    assert ["r1"] == after


def read_slowly(port: int, total: int, received: list[Exchange]) -> tuple[list[str], list[str]]:
    """What has been handed over when half of the answer has been read, and a while after the rest."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        size = 0
        while size < total // 2:
            size += len(client.recv(65_536))
        time.sleep(0.3)  # time in which nothing may happen
        before = [one.id for one in received]
        while size < total:
            size += len(client.recv(65_536))
        deadline = time.monotonic() + 10
        while not received and time.monotonic() < deadline:
            time.sleep(0.01)
        return before, [one.id for one in received]


@asynccontextmanager
async def serving(app: Any, settings: Settings) -> AsyncIterator[int]:
    """A server with the gateway's protocol on a free port, in a thread of its own loop."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = Config(settings, app, lifespan="off", log_level="error", interface="asgi3")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task
