"""The port's HTTP client: what only coroutines can do wrong. What both sides have in common is in test_upstreams.py."""

import asyncio
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import h2.config
import h2.connection
import h2.events
import pytest

import fastapi_app
from fastapi_app.config import StartupError
from fastapi_app.containment import Containment
from fastapi_app.upstreams import limiter as limiter_module
from fastapi_app.upstreams.ask import fetch, post
from fastapi_app.upstreams.client import CircuitOpen, Rate, TooBusy, Unavailable, UpstreamClient
from fastapi_app.upstreams.limiter import ASK_AGAIN_S, Limiter
from tests.support.asgi import ask
from tests.support.internet import Handler, Host, Say, host
from tests.support.redis_server import redis_server

LOCAL = {"allowed_networks": "127.0.0.0/8", "backoff_s": 0.0}


@pytest.fixture
def there() -> Iterator[Host]:
    with host() as running:
        yield running


async def reached(there: Host, calls: int = 1) -> None:
    """Until so many calls have arrived."""
    async with asyncio.timeout(15):
        while len(there.calls) < calls:
            await asyncio.sleep(0.01)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def half_a_body(handler: Handler) -> None:
    handler.begin(200, {"Content-Length": "1000"})
    handler.wfile.write(b"x" * 500)
    handler.wfile.flush()
    handler.server.gate.wait(30)


def nothing(handler: Handler) -> None:
    handler.server.gate.wait(30)


# --- one client --------------------------------------------------------------------------------------------------


async def test_nothing_is_opened_before_the_first_call(there: Host) -> None:
    client = UpstreamClient(**LOCAL)
    assert client.statistics() == {"connections": 100, "in_flight": 0, "origins": {}}

    await client.aclose()  # of a client that was never used


async def test_closing_leaves_nothing_open(there: Host, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # what earlier tests have left open is not ours
    caplog.clear()
    client = UpstreamClient(**LOCAL)
    for _ in range(3):
        await client.request("GET", there.url)
    there.usual = nothing
    unfinished = asyncio.create_task(client.request("GET", there.url))
    await reached(there, 4)

    await client.aclose()

    with pytest.raises(Unavailable):
        await unfinished
    assert len(there.calls) == 4  # it was not repeated on new connections, which nobody would close
    del client, unfinished
    gc.collect()  # what was left open would warn, and warnings are errors
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_client_that_was_closed_opens_again_in_another_loop(there: Host) -> None:
    client = UpstreamClient(**LOCAL, connections=1)

    async def use() -> list[int]:
        try:
            answers = await asyncio.gather(*(client.request("GET", there.url) for _ in range(5)))
        finally:
            await client.aclose()
        return [answer.status_code for answer in answers]

    assert [asyncio.run(use()) for _ in range(2)] == [[200] * 5] * 2
    assert there.connections == 2


async def test_so_many_calls_at_once_and_no_more(there: Host) -> None:
    client = UpstreamClient(**LOCAL, connections=5)

    def wait(handler: Handler) -> None:
        there.gate.wait(30)
        handler.say(Say())

    there.usual = wait
    calls = [asyncio.create_task(client.request("GET", there.url)) for _ in range(30)]
    await reached(there, 5)
    assert client.statistics()["in_flight"] == 5
    there.gate.set()

    assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200] * 30
    assert there.busiest == 5
    await client.aclose()


async def test_who_waits_too_long_for_a_turn_is_told_so(there: Host) -> None:
    client = UpstreamClient(**LOCAL, connections=1, timeout_s=0.2)
    there.usual = nothing
    slow = asyncio.create_task(client.request("GET", there.url, timeout_s=30, repeat=False))
    await reached(there)

    with pytest.raises(TooBusy):
        await client.request("GET", there.url)

    assert client.breaker(there.url).state == "closed"
    await cancelled(slow)
    await client.aclose()


@pytest.mark.parametrize("script", [nothing, half_a_body], ids=["before the answer", "amid its body"])
async def test_a_caller_who_leaves_takes_nothing_along(there: Host, script: Any) -> None:
    """Neither its turn, nor its place in the pool, nor the breaker's opinion."""
    client = UpstreamClient(**LOCAL, connections=1)
    there.usual = script
    for number in range(10):
        task = asyncio.create_task(client.request("GET", there.url))
        await reached(there, number + 1)
        await cancelled(task)
    there.usual = Say()

    assert (await client.request("GET", there.url)).status_code == 200
    report = client.statistics()["origins"][there.url]
    assert (report["calls"], report["failures"], report["in_flight"]) == (11, 0, 0)
    assert report["breaker"] == "closed"
    await client.aclose()


async def test_a_probe_whose_caller_leaves_lets_the_next_one_through(there: Host) -> None:
    client = UpstreamClient(**LOCAL, rest_s=0.0)
    there.first = [Say(500)] * 5
    for _ in range(5):
        await client.request("GET", there.url, repeat=False)
    there.usual = nothing
    probe = asyncio.create_task(client.request("GET", there.url))
    await reached(there, 6)
    with pytest.raises(CircuitOpen):
        await client.request("GET", there.url)

    await cancelled(probe)

    there.usual = Say()
    assert (await client.request("GET", there.url)).status_code == 200
    await client.aclose()


async def test_statistics_tell_what_happened(there: Host) -> None:
    client = UpstreamClient(**LOCAL)
    there.first = [Say(503), Say(404)]
    await client.request("GET", f"{there.url}/a?key=secret")
    await client.request("GET", f"{there.url}/b")

    (name, report), *others = client.statistics()["origins"].items()

    assert (name, others) == (there.url, [])
    assert (report["calls"], report["failures"], report["retries"], report["in_flight"]) == (3, 1, 1, 0)
    assert 0 < report["mean_ms"] <= report["slowest_ms"]
    await client.aclose()


async def test_of_a_thousand_origins_the_one_used_longest_ago_is_forgotten() -> None:
    client = UpstreamClient()
    for number in range(1500):
        client.breaker(f"https://host{number}.example.com/hook")
        client.breaker("https://often.example.com/")

    names = list(client.statistics()["origins"])
    assert len(names) == 1000
    assert {"https://often.example.com", "https://host1499.example.com"} <= set(names)
    assert "https://host0.example.com" not in names


async def test_redis_that_dies_amid_calls_stops_none_of_them(there: Host, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        client = UpstreamClient(**LOCAL, redis_url=redis.url)

        async def calls(number: int) -> list[int]:
            asked = [client.request("GET", there.url, rate=Rate(10_000)) for _ in range(number)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

        assert await calls(50) == [200] * 50
        dying = asyncio.create_task(calls(200))
        await reached(there, 60)
        await asyncio.to_thread(redis.stop)
        assert await dying == [200] * 200
        assert await calls(50) == [200] * 50
    await client.aclose()


async def test_one_call_asks_whether_redis_is_back_and_the_others_do_not_wait_for_it(
    there: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter_module, "ANSWER_S", 20)
    limiter = Limiter(f"redis://127.0.0.1:{there.server_port}/0")  # which is none, but counts who comes
    await limiter.wait("a", Rate(1000))
    assert there.connections == 1

    await asyncio.sleep(ASK_AGAIN_S)
    await asyncio.gather(*(limiter.wait("a", Rate(1000)) for _ in range(20)))

    assert there.connections == 2
    await limiter.aclose()


# --- contained requests ------------------------------------------------------------------------------------------


class Shadow:
    """The gateway's half, as far as it is needed here."""

    def attach(self, _: Any) -> None:
        """No database here."""

    def detach(self) -> None:
        """No database here."""

    def refuse(self, kind: str, what: str) -> NoReturn:
        raise PermissionError(kind, what)


async def test_a_contained_request_asks_nobody(there: Host) -> None:
    client, refused = UpstreamClient(**LOCAL), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for call in (
            client.request("GET", f"{there.url}/a?key=secret"),
            client.request("POST", there.url, content=b"x"),
            fetch(client, there.url),
            post(client, there.url, b"x", {}),
        ):
            try:
                await call
            except PermissionError as error:
                refused.append(error.args)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await ask(Containment(app), "GET", "/", extensions={"gateway.shadow": Shadow()})

    assert refused[0] == ("http", f"GET {there.url}/a")
    assert [kind for kind, _ in refused] == ["http"] * 4
    assert there.connections == 0
    await client.aclose()


# --- HTTP/2 ------------------------------------------------------------------------------------------------------


class Http2Server:
    """Speaks HTTP/2 without TLS: 200 and a body to everything; ends a connection after so many streams."""

    def __init__(self, streams: int = 1000) -> None:
        self.url, self.streams, self.connections = "", streams, 0
        self.paths: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        served = 0
        while data := await reader.read(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived) and event.stream_id:
                    self.paths.append(dict(event.headers or [])[":path"])
                    connection.send_headers(event.stream_id, [(":status", "200"), ("x-by", "h2")])
                    connection.send_data(event.stream_id, b"body", end_stream=True)
                    served += 1
            if served >= self.streams:
                connection.close_connection()
            writer.write(connection.data_to_send())
            await writer.drain()
        writer.close()


@pytest.fixture
async def http2() -> Any:
    speaker = Http2Server()
    server = await asyncio.start_server(speaker, "127.0.0.1", 0)
    speaker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield speaker
    server.close()


async def test_origins_that_need_it_are_spoken_to_in_http2(http2: Any, there: Host) -> None:
    client = UpstreamClient(**LOCAL, http2=[http2.url])

    answers = await asyncio.gather(*(client.request("GET", f"{http2.url}/{number}") for number in range(20)))

    assert {(answer.status_code, answer.content, answer.headers["x-by"]) for answer in answers} == {
        (200, b"body", "h2")
    }
    assert sorted(http2.paths) == sorted(f"/{number}" for number in range(20))
    assert http2.connections == 1
    assert (await client.request("GET", there.url)).status_code == 200  # all others in HTTP/1.1
    await client.aclose()


async def test_http2_that_ends_its_connection_gets_another(http2: Any) -> None:
    http2.streams = 3
    client = UpstreamClient(**LOCAL, http2=[http2.url])

    for _ in range(10):
        assert (await client.request("GET", http2.url)).content == b"body"

    assert http2.connections >= 4
    await client.aclose()


async def test_http2_passes_the_guard(http2: Any) -> None:
    client = UpstreamClient(allowed_networks="127.0.0.2", http2=[http2.url])

    with pytest.raises(Unavailable, match="not allowed"):
        await client.request("GET", http2.url)

    assert http2.connections == 0
    await client.aclose()


# --- in the application ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ALLOWED_NETWORKS", "10.0.0.0/99", "ALLOWED_NETWORKS or REDIS_URL: .*10.0.0.0/99"),
        ("REDIS_URL", "http://redis", "ALLOWED_NETWORKS or REDIS_URL: Redis URL must"),
        ("UPSTREAM_TIMEOUT_S", "soon", "must be seconds"),
        ("UPSTREAM_CONNECTIONS", "0", "UPSTREAM_CONNECTIONS must be a whole number above 0"),
        ("UPSTREAM_CONNECTIONS", "-1", "UPSTREAM_CONNECTIONS must be a whole number above 0"),
    ],
)
def test_a_setting_that_is_wrong_is_said_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    monkeypatch.setenv("LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv(name, value)

    with pytest.raises(StartupError, match=sentence):
        fastapi_app.create_app()
