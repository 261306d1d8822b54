"""How both applications ask the internet. The port does it with coroutines and Flask with threads: to the same effect.

Every server here is real; only names of hosts are resolved by the tests.
"""

import asyncio
import base64
import gzip
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask

from fastapi_app.http import ApiError
from fastapi_app.settings import DEFAULTS
from fastapi_app.upstreams import ask as port_ask
from fastapi_app.upstreams import breaker as port_breaker
from fastapi_app.upstreams import errors as port_errors
from fastapi_app.upstreams import failures as port_failures
from fastapi_app.upstreams import guard as port_guard
from fastapi_app.upstreams import limiter as port_limiter
from fastapi_app.upstreams.client import Rate, UpstreamClient
from legacy_flask import create_app as create_legacy
from legacy_flask.db import StartupError
from legacy_flask.http import ApiError as LegacyApiError
from legacy_flask.upstreams import breaker as legacy_breaker
from legacy_flask.upstreams import client as legacy_client
from legacy_flask.upstreams import errors as legacy_errors
from legacy_flask.upstreams import failures as legacy_failures
from legacy_flask.upstreams import guard as legacy_guard
from legacy_flask.upstreams import limiter as legacy_limiter
from tests.support.internet import Handler, Host, Say, Script, host
from tests.support.processes import free_port, wait_until
from tests.support.redis_server import cable, redis_server

TEXTS = DEFAULTS | {f"{service}_per_second": "0" for service in ("youtube", "imvdb", "spotify", "lastfm", "wikipedia")}


class Port:
    """The port's client. Outcomes are what a caller sees: (status, body), or the name of what was raised."""

    failures, breaker, guard, errors = port_failures, port_breaker, port_guard, port_errors

    def __init__(self, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = UpstreamClient(**{"backoff_s": 0.0, "allowed_networks": "127.0.0.0/8", **options})

    def request(self, method: str, url: str, **options: Any) -> Any:
        try:
            response = self.runner.run(self.client.request(method, url, **_rate(options)))
        except port_failures.Unavailable as error:
            return type(error).__name__
        return response.status_code, response.content

    def at_once(self, calls: int, url: str, ended: list[Any]) -> None:
        async def one() -> None:
            try:
                ended.append((await self.client.request("GET", url, repeat=False)).status_code)
            except port_failures.Unavailable as error:
                ended.append(type(error).__name__)

        async def everything() -> None:
            await asyncio.gather(*(one() for _ in range(calls)))

        self.runner.run(everything())

    def ask(self, service: str, url: str, path: str = "/search", **options: Any) -> Any:
        chosen = getattr(port_errors, service.upper())
        texts = TEXTS | {f"{service}_url": url} | options.pop("texts", {})
        try:
            return self.runner.run(port_ask.ask(self.client, chosen, texts, path, **options))
        except ApiError as error:
            return error.status, error.message, {k.lower(): v for k, v in (error.headers or {}).items()}

    def fetch(self, url: str, max_bytes: int = 1000) -> Any:
        try:
            return self.runner.run(port_ask.fetch(self.client, url, max_bytes))
        except port_ask.Unreachable as error:
            return str(error)

    def post(self, url: str, content: bytes, headers: dict[str, str]) -> Any:
        try:
            status, milliseconds = self.runner.run(port_ask.post(self.client, url, content, headers, 30))
        except port_ask.Unreachable as error:
            return str(error)
        return status, milliseconds >= 0

    def state(self, url: str) -> str:
        return self.client.breaker(url).state

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


class Legacy:
    """Flask's client, with the same outcomes."""

    failures, breaker, guard, errors = legacy_failures, legacy_breaker, legacy_guard, legacy_errors

    def __init__(self, **options: Any) -> None:
        self.app = Flask("legacy")
        self.client = legacy_client.Upstream(**{"backoff_s": 0.0, "allowed_networks": "127.0.0.0/8", **options})
        self.app.extensions["upstream"] = self.client

    def request(self, method: str, url: str, **options: Any) -> Any:
        if "form" in options:
            options["content"] = options.pop("form")
        try:
            answer = self.client.request(method, url, **options)
        except legacy_failures.Unavailable as error:
            return type(error).__name__
        return answer.status, answer.body

    def at_once(self, calls: int, url: str, ended: list[Any]) -> None:
        def one(_: int) -> None:
            outcome = self.request("GET", url, repeat=False)
            ended.append(outcome if isinstance(outcome, str) else outcome[0])

        with ThreadPoolExecutor(calls) as threads:
            list(threads.map(one, range(calls)))

    def ask(self, service: str, url: str, path: str = "/search", **options: Any) -> Any:
        chosen = getattr(legacy_errors, service.upper())
        texts = TEXTS | {f"{service}_url": url} | options.pop("texts", {})
        with self.app.app_context():
            try:
                return legacy_client.ask(chosen, texts, path, **options)
            except LegacyApiError as error:
                return error.status, error.message, {k.lower(): v for k, v in error.headers.items()}

    def fetch(self, url: str, max_bytes: int = 1000) -> Any:
        with self.app.app_context():
            try:
                return legacy_client.fetch(url, max_bytes)
            except legacy_client.Unreachable as error:
                return str(error)

    def post(self, url: str, content: bytes, headers: dict[str, str]) -> Any:
        with self.app.app_context():
            try:
                status, milliseconds = legacy_client.post(url, content, headers, 30)
            except legacy_client.Unreachable as error:
                return str(error)
        return status, milliseconds >= 0

    def state(self, url: str) -> str:
        return self.client.breaker(url).state

    def close(self) -> None:
        self.client.close()


def _rate(options: dict[str, Any]) -> dict[str, Any]:
    per_second = options.pop("per_second", None)
    return {**options, "rate": Rate(per_second)} if per_second else options


Side = Port | Legacy
Make = Callable[..., Side]


@pytest.fixture(params=[Port, Legacy], ids=["port", "legacy"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """A client with options; closed after the test."""
    with ExitStack() as made:

        def one(**options: Any) -> Side:
            side: Side = request.param(**options)
            made.callback(side.close)
            return side

        yield one


@pytest.fixture
def side(make: Make) -> Side:
    return make()


@pytest.fixture
def there() -> Iterator[Host]:
    with host() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    with host() as running:
        yield running


Names = dict[str, Iterator[str]]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Which name has which address: each time the next one, all of `a+b` at once. Nobody asks a name server."""
    genuine, known = socket.getaddrinfo, Names()

    def getaddrinfo(name: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        name = name.decode() if isinstance(name, bytes) else name
        if name in known:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, int(port)))
                for address in next(known[name]).split("+")
            ]
        if name.lower().rstrip(".") == "localhost":
            name = "localhost"
        elif not re.fullmatch(r"[0-9a-fA-Fx.:%]+", name):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return genuine(name, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


# --- repetitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [Say(503), Say(500), Say(504), Say(429), Say(body=None)], ids=str)
def test_a_read_that_failed_is_repeated_twice(side: Side, there: Host, trouble: Say) -> None:
    there.first = [trouble, trouble]

    assert side.request("GET", there.url) == (200, b"{}")
    assert len(there.calls) == 3


def test_the_third_failure_is_the_answer(side: Side, there: Host) -> None:
    there.usual = Say(503, b"down")

    assert side.request("GET", there.url) == (503, b"down")
    assert len(there.calls) == 3


def test_a_connection_that_always_breaks_is_unavailable(side: Side, there: Host) -> None:
    there.usual = Say(body=None)

    assert side.request("GET", there.url) == "Unavailable"
    assert len(there.calls) >= 3  # aiohttp itself repeats on a connection that had been kept


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 418, 422])
def test_4xx_is_an_answer_and_not_repeated(side: Side, there: Host, status: int) -> None:
    there.usual = Say(status)

    assert side.request("GET", there.url) == (status, b"{}")
    assert len(there.calls) == 1


@pytest.mark.parametrize("trouble", [Say(503), Say(429)], ids=str)
def test_a_write_is_never_repeated(side: Side, there: Host, trouble: Say) -> None:
    there.first = [trouble]

    assert side.request("POST", there.url, content=b"x") == (trouble.status, b"{}")
    assert [call.body for call in there.calls] == [b"x"]


def test_a_write_whose_connection_breaks_is_not_repeated_either(side: Side, there: Host) -> None:
    there.first = [Say(body=None)]

    assert side.request("POST", there.url, content=b"x") == "Unavailable"
    assert len(there.calls) == 1


def test_a_write_is_repeated_when_the_caller_says_that_it_may_be(side: Side, there: Host) -> None:
    there.first = [Say(503)]

    assert side.request("POST", there.url, form={"grant_type": "ö&="}, repeat=True) == (200, b"{}")
    assert [parse_qs(call.body.decode()) for call in there.calls] == [{"grant_type": ["ö&="]}] * 2
    assert there.calls[0].headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_retry_after_is_waited_for(side: Side, there: Host) -> None:
    there.first = [Say(429, headers={"Retry-After": "1"})]
    began = time.monotonic()

    assert side.request("GET", there.url) == (200, b"{}")
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", ["604800", "3", "Thu, 31 Dec 2099 23:59:59 GMT", "9" * 400], ids=range(4))
def test_retry_after_a_week_is_left_to_the_caller(side: Side, there: Host, status: int, wait: str) -> None:
    there.first = [Say(status, headers={"Retry-After": wait})]

    assert side.request("GET", there.url) == (status, b"{}")
    assert len(there.calls) == 1


@pytest.mark.parametrize("wait", ["0", "soon", "", "-1", "1.5", "٣", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 9"])
def test_retry_after_that_says_nothing_is_an_ordinary_failure(side: Side, there: Host, wait: str) -> None:
    there.first = [Say(429, headers={"Retry-After": wait.encode().decode("latin-1")})]

    assert side.request("GET", there.url) == (200, b"{}")
    assert len(there.calls) == 2


# --- breaker -----------------------------------------------------------------------------------------------------


def test_what_is_missing_never_opens_the_breaker(side: Side, there: Host) -> None:
    there.usual = Say(404)

    for _ in range(20):
        assert side.request("GET", there.url) == (404, b"{}")
    assert side.state(there.url) == "closed"


@pytest.mark.parametrize("trouble", [Say(500), Say(429), Say(body=None)], ids=str)
def test_five_failures_in_a_row_open_the_breaker_of_that_origin_only(
    side: Side, there: Host, elsewhere: Host, trouble: Say
) -> None:
    there.usual = trouble
    for _ in range(5):
        side.request("GET", f"{there.url}/a", repeat=False)
    asked = len(there.calls)

    assert side.request("GET", f"{there.url}/another") == "CircuitOpen"
    assert len(there.calls) == asked
    assert side.state(there.url) == "open"
    assert side.request("GET", elsewhere.url) == (200, b"{}")


def test_an_answer_in_between_is_forgiven(side: Side, there: Host) -> None:
    there.first = [*[Say(500)] * 4, Say(404), *[Say(500)] * 4, Say()]

    for _ in range(10):
        side.request("GET", there.url, repeat=False)
    assert side.state(there.url) == "closed"


def test_repetitions_end_when_the_breaker_opens(side: Side, there: Host) -> None:
    there.usual = Say(500)
    for _ in range(4):
        side.request("GET", there.url, repeat=False)

    assert side.request("GET", there.url) == "CircuitOpen"
    assert len(there.calls) == 5


def test_half_open_lets_one_of_many_through(make: Make, there: Host) -> None:
    """No stampede onto a server that has just come back."""
    side = make(rest_s=0.0)
    there.usual = Say(500)
    side.at_once(5, there.url, [])
    assert side.state(there.url) == "half_open"
    asked = len(there.calls)

    def wait(handler: Handler) -> None:
        there.gate.wait(30)
        handler.say(Say())

    ended: list[Any] = []

    def open_gate() -> None:
        with suppress(AssertionError):  # the outcomes will tell
            wait_until(lambda: len(ended) == 19, "all but the probe")
        there.gate.set()

    there.usual = wait
    watcher = threading.Thread(target=open_gate)
    watcher.start()
    side.at_once(20, there.url, ended)
    watcher.join()

    assert ended == ["CircuitOpen"] * 19 + [200]
    assert len(there.calls) == asked + 1


def test_three_good_answers_close_it_and_one_bad_opens_it_again(make: Make, there: Host) -> None:
    side = make(rest_s=0.0)
    there.first = [Say(500)] * 5 + [Say(), Say(), Say(500)]
    for _ in range(8):
        side.request("GET", there.url, repeat=False)
    assert side.state(there.url) == "half_open"

    for _ in range(3):
        assert side.request("GET", there.url) == (200, b"{}")
    assert side.state(there.url) == "closed"


def test_what_is_refused_or_too_large_opens_no_breaker(side: Side, there: Host) -> None:
    there.usual = Say(body=b"x" * 2000)
    for _ in range(6):
        assert side.request("GET", there.url, max_bytes=1000) == "TooLarge"
    assert side.state(there.url) == "closed"


def test_forgetting_closes_all_breakers(side: Side, there: Host) -> None:
    there.first = [Say(500)] * 5
    for _ in range(5):
        side.request("GET", there.url, repeat=False)
    assert side.request("GET", there.url) == "CircuitOpen"

    side.client.forget()

    assert side.request("GET", there.url) == (200, b"{}")


@pytest.mark.parametrize("module", [port_breaker, legacy_breaker], ids=["port", "legacy"])
class TestBreaker:
    def test_rests_for_a_minute(self, module: Any) -> None:
        now = [0.0]
        breaker = module.Breaker(clock=lambda: now[0])
        for _ in range(5):
            breaker.leave(breaker.enter(), False)

        now[0] = 59.9
        assert breaker.state == "open"
        with pytest.raises(Exception, match="left alone"):
            breaker.enter()
        now[0] = 60.0
        assert breaker.state == "half_open"
        breaker.leave(breaker.enter(), False)
        assert breaker.state == "open"
        now[0] = 119.9
        assert breaker.state == "open"
        now[0] = 120.0
        assert breaker.state == "half_open"

    def test_a_cancelled_probe_says_nothing_and_blocks_nobody(self, module: Any) -> None:
        breaker = module.Breaker(failures=1, rest_s=0)
        breaker.leave(breaker.enter(), False)

        probe = breaker.enter()
        with pytest.raises(Exception, match="left alone"):
            breaker.enter()
        breaker.leave(probe, None)

        assert breaker.state == "half_open"
        breaker.leave(breaker.enter(), True)

    def test_calls_from_before_it_opened_have_nothing_to_say(self, module: Any) -> None:
        now = [0.0]
        breaker = module.Breaker(failures=2, successes=1, clock=lambda: now[0])
        late_good, late_bad, late_cancelled = breaker.enter(), breaker.enter(), breaker.enter()
        breaker.leave(breaker.enter(), False)
        breaker.leave(breaker.enter(), False)
        now[0] = 60.0

        probe = breaker.enter()
        breaker.leave(late_good, True)
        breaker.leave(late_bad, False)
        breaker.leave(late_cancelled, None)

        assert breaker.state == "half_open"
        with pytest.raises(Exception, match="left alone"):
            breaker.enter()  # the probe is still out
        breaker.leave(probe, True)
        assert breaker.state == "closed"


# --- sizes and times ---------------------------------------------------------------------------------------------


def endless(handler: Handler) -> None:
    handler.begin(200, {})
    while True:
        handler.wfile.write(b"x" * 65_536)


def endless_chunks(handler: Handler) -> None:
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


BOMB = Say(body=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("script", [endless, endless_chunks, BOMB, Say(body=bytes(1_000_001))], ids=range(4))
def test_a_body_is_read_up_to_the_limit(side: Side, there: Host, script: Script | Say) -> None:
    there.usual = script

    assert side.request("GET", there.url, max_bytes=1_000_000) == "TooLarge"
    assert len(there.calls) == 1


def test_a_bomb_is_not_even_unpacked(side: Side, there: Host) -> None:
    side.request("GET", there.url)  # whatever a first call needs
    there.usual = BOMB
    tracemalloc.start()
    try:
        assert side.request("GET", there.url, max_bytes=100_000) == "TooLarge"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 2_000_000  # 16 KB of it would be 16 MB


def test_a_body_of_exactly_the_limit_is_fine(side: Side, there: Host) -> None:
    there.first = [
        Say(body=bytes(100)),
        Say(body=gzip.compress(bytes(100)), headers={"Content-Encoding": "gzip"}),
        Say(body=b"", headers={"Content-Encoding": "gzip"}),
    ]

    assert side.request("GET", there.url, max_bytes=100) == (200, bytes(100))
    assert side.request("GET", there.url, max_bytes=100) == (200, bytes(100))
    assert side.request("GET", there.url, max_bytes=100) == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [
        Say(body=gzip.compress(b"x" * 1000)[:-10], headers={"Content-Encoding": "gzip"}),
        Say(body=gzip.compress(b"x" * 1000)[:5], headers={"Content-Encoding": "gzip"}),
        Say(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
        Say(body=gzip.compress(gzip.compress(b"x")), headers={"Content-Encoding": "gzip, gzip"}),
        Say(body=b"x", headers={"Content-Encoding": "br"}),
        Say(body=b"short", headers={"Content-Length": "10", "Connection": "close"}),
    ],
    ids=["cut off", "cut off early", "not gzip", "twice", "not asked for", "shorter than announced"],
)
def test_a_body_that_cannot_be_read_is_none(side: Side, there: Host, answer: Say) -> None:
    def script(handler: Handler) -> None:
        handler.say(answer)
        handler.close_connection = True

    there.usual = script

    assert side.request("GET", there.url) == "Unavailable"


def drip(handler: Handler) -> None:
    handler.begin(200, {"Content-Length": "1000000"})
    while not handler.server.gate.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def silence(handler: Handler) -> None:
    handler.server.gate.wait(30)


@pytest.mark.parametrize("script", [drip, silence])
def test_a_slow_answer_ends_in_time(side: Side, there: Host, script: Script) -> None:
    there.usual = script

    assert side.request("GET", there.url, timeout_s=0.3, repeat=False) == "Timeout"


def not_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


def headers_without_end(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        handler.wfile.write(b"X-%d: %s\r\n" % (number, b"y" * 1000))


@pytest.mark.parametrize("script", [not_http, headers_without_end])
def test_what_is_no_http_is_no_answer(side: Side, there: Host, script: Script) -> None:
    there.usual = script

    assert side.request("GET", there.url) == "Unavailable"


def test_a_closed_port_and_an_unknown_name_are_told_apart(side: Side, there: Host) -> None:
    assert side.request("GET", f"http://127.0.0.1:{free_port()}/") == "Refused"
    assert side.request("GET", "http://name.invalid/") == "NoName"


def test_connections_are_kept(side: Side, there: Host) -> None:
    for _ in range(20):
        side.request("GET", there.url)

    assert there.connections == 1


def test_cookies_are_not_kept(side: Side, there: Host, names: Names) -> None:
    names["shop.example.com"] = cycle(["127.0.0.1"])  # jars ignore hosts without a name
    url = f"http://shop.example.com:{there.server_port}/"
    there.usual = Say(headers={"Set-Cookie": "visitor=1; Path=/"})

    side.request("GET", url)
    side.request("GET", url)

    assert there.calls[1].headers["Cookie"] is None


def test_the_environment_sends_nobody_through_a_proxy(
    side: Side, there: Host, elsewhere: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would connect for us, where no guard is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, elsewhere.url)

    assert side.request("GET", there.url) == (200, b"{}")
    assert elsewhere.calls == []


# --- where calls may go ------------------------------------------------------------------------------------------

LOOPBACK = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://2130706433:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/",
    "http://127\u30020\u30020\u30021:{port}/",
    "http://user:word@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http:// 127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1:{port}/\r\nX-Injected: 1",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "ftp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "data:text/plain,x",
    "http+unix://%2Ftmp%2Fsocket/",
    "http://",
    "http:///",
    "http://:{port}/",
    "",
    "http://[",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:x/",
    "http://xn--/",
    "http://" + "a" * 64 + ".com/",
    "http://a..b/",
    "http://\ud800/",
    "http://127.0.0.1/" + "x" * 9000,
]


@pytest.mark.parametrize("spelling", LOOPBACK, ids=lambda spelling: ascii(spelling)[:40])
def test_this_machine_is_not_asked_however_it_is_spelled(make: Make, there: Host, spelling: str) -> None:
    side = make(allowed_networks="")

    outcome = side.request("GET", spelling.replace("{port}", str(there.server_port)))

    assert outcome in ("AddressRefused", "NoName", "Unavailable")  # the last two for what is no name at all
    assert there.connections == 0


@pytest.mark.parametrize(
    "spelling", ["127.1:{port}", "2130706433:{port}", "0x7f.1:{port}", "user@127.0.0.1:{port}", ":@127.0.0.1:{port}"]
)
def test_what_is_refused_even_where_private_addresses_are_allowed(side: Side, there: Host, spelling: str) -> None:
    assert side.request("GET", f"http://{spelling}/".replace("{port}", str(there.server_port))) == "AddressRefused"
    assert there.connections == 0


PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 127.0.0.1 127.255.0.1 169.254.169.254 172.16.0.1 172.31.9.9
192.0.0.1 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 ::
::1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::10.0.0.1 64:ff9b::a00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1
2002:a00:1:: 2002:7f00:1::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
""".split()  # noqa: SIM905 - as a list it would fill a page


@pytest.mark.parametrize("module", [port_guard, legacy_guard], ids=["port", "legacy"])
@pytest.mark.parametrize(
    "address",
    PRIVATE,
)
def test_addresses_that_are_not_public(module: Any, address: str) -> None:
    assert not module.Guard().allows(address)


@pytest.mark.parametrize("module", [port_guard, legacy_guard], ids=["port", "legacy"])
@pytest.mark.parametrize("address", ["8.8.8.8", "142.250.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(module: Any, address: str) -> None:
    assert module.Guard().allows(address)


@pytest.mark.parametrize("module", [port_guard, legacy_guard], ids=["port", "legacy"])
def test_private_networks_that_are_listed(module: Any) -> None:
    guard = module.Guard(" 10.1.0.0/16,, 127.0.0.1 ,fd00::/8, 192.168.1.5/24")

    allowed = ["10.1.2.3", "127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.1.0.1", "fd00::1", "192.168.1.77", "8.8.8.8"]
    assert all(map(guard.allows, allowed))
    assert not any(map(guard.allows, ["10.2.0.1", "127.0.0.2", "::1", "fe80::1", "192.168.2.1", "64:ff9b::a02:1"]))
    for nonsense in ("localhost", "10.0.0.0/33", "10.0.0", "*"):
        with pytest.raises(ValueError):
            module.Guard(nonsense)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_a_name_that_resolves_to_a_private_address(make: Make, there: Host, names: Names, address: str) -> None:
    names["images.example.com"] = cycle([address])

    assert make(allowed_networks="").request("GET", f"http://images.example.com:{there.server_port}/") == (
        "AddressRefused"
    )
    assert there.connections == 0


def test_a_name_that_resolves_differently_the_second_time(make: Make, names: Names) -> None:
    """The address that was checked is the one that is asked: between the two nobody resolves again."""
    with host("127.0.0.2") as public, host("127.0.0.3") as private:
        private.server_address = public.server_address
        names["rebound.example.com"] = cycle(["127.0.0.2", "127.0.0.3"])
        url = f"http://rebound.example.com:{public.server_port}/"

        for _ in range(4):
            side = make(allowed_networks="127.0.0.2")
            assert side.request("GET", url) in ((200, b"{}"), "AddressRefused")

    assert 1 <= len(public.calls) <= 4
    assert public.calls[0].headers["Host"] == f"rebound.example.com:{public.server_port}"


def test_of_several_addresses_only_those_that_are_allowed_are_tried(make: Make, names: Names) -> None:
    with host("127.0.0.2") as public:
        names["both.example.com"] = cycle(["10.0.0.1+127.0.0.2"])

        outcome = make(allowed_networks="127.0.0.2").request("GET", f"http://both.example.com:{public.server_port}/")

    assert outcome == (200, b"{}")


# --- redirects ---------------------------------------------------------------------------------------------------

REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_read_follows_redirects(side: Side, there: Host, elsewhere: Host, status: int) -> None:
    there.first = [Say(status, headers={"Location": "/b?c=%2F"}), Say(status, headers={"Location": elsewhere.url})]
    elsewhere.usual = Say(body=b"here")

    assert side.request("GET", f"{there.url}/a") == (200, b"here")
    assert [call.path for call in there.calls + elsewhere.calls] == ["/a", "/b?c=%2F", "/"]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_write_does_not(side: Side, there: Host, elsewhere: Host, status: int) -> None:
    there.usual = Say(status, headers={"Location": elsewhere.url})

    assert side.request("POST", there.url, content=b"x", repeat=True) == (status, b"{}")
    assert elsewhere.calls == []


def test_keys_do_not_follow_a_redirect_to_another_origin(side: Side, there: Host, elsewhere: Host) -> None:
    there.first = [Say(302, headers={"Location": "/same"}), Say(302, headers={"Location": f"{elsewhere.url}/other"})]
    secrets = {"IMVDB-APP-KEY": "secret", "Cookie": "a=secret", "X-Webhook-Signature": "secret"}

    side.request("GET", there.url, headers=secrets, auth=("id", "secret"), params={"key": "secret"})

    basic = "Basic " + base64.b64encode(b"id:secret").decode()
    for call in there.calls:
        assert all(call.headers[name] == value for name, value in secrets.items())
        assert call.headers["Authorization"] == basic
    (call,) = elsewhere.calls
    assert not any("secret" in value or value == basic for value in call.headers.values())
    assert call.path == "/other"


def test_a_redirect_to_a_private_address_is_refused(make: Make, elsewhere: Host) -> None:
    with host("127.0.0.2") as public:
        side = make(allowed_networks="127.0.0.2")
        for target in (elsewhere.url, "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://["):
            public.first = [Say(302, headers={"Location": target})]

            assert side.request("GET", public.url) == "AddressRefused"

    assert elsewhere.connections == 0


def test_redirects_in_circles_end(side: Side, there: Host) -> None:
    there.usual = Say(302, headers={"Location": "/"})

    assert side.request("GET", there.url) == "Unavailable"
    assert len(there.calls) == 6


def test_the_body_of_a_redirect_is_bounded_too(side: Side, there: Host) -> None:
    def script(handler: Handler) -> None:
        handler.begin(302, {"Location": "/"})
        while True:
            handler.wfile.write(b"x" * 65_536)

    there.usual = script

    assert side.request("GET", there.url) == "TooLarge"


# --- asking a service --------------------------------------------------------------------------------------------


def google(reason: str) -> bytes:
    return json.dumps({"error": {"code": 403, "errors": [{"reason": reason}]}}).encode()


NOT_AVAILABLE = (502, "YouTube is not available", {})
NONSENSE = (502, "YouTube gave an answer that makes no sense", {})
REFUSED = "YouTube refused the key"
USED_UP = (429, "The quota of YouTube is used up", {})
KEYS = b'{"error": {"errors": [{"reason": "badRequest"}], "details": [{"reason": "API_KEY_INVALID"}]}}'


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Say(body=b'{"items": [1, "\\ud83d\\ude00"]}'), {"items": [1, "😀"]}),
        (Say(201, b'{"a": 1}'), {"a": 1}),
        (Say(body='{"a": "ö"}'.encode("utf-16")), {"a": "ö"}),
        (Say(401), (400, REFUSED, {})),
        (Say(403), (400, REFUSED, {})),
        (Say(403, google("quotaExceeded")), USED_UP),
        (Say(403, google("dailyLimitExceeded")), USED_UP),
        (Say(403, google("forbidden")), (400, REFUSED, {})),
        (Say(403, b'{"error": {"errors": "quotaExceeded"}}'), (400, REFUSED, {})),
        (Say(403, b"[" * 100_000), (400, REFUSED, {})),
        (Say(400, KEYS), (400, REFUSED, {})),
        (Say(400, google("badRequest")), NOT_AVAILABLE),
        (Say(404), (404, "Video not found on YouTube", {})),
        (Say(429), (429, "YouTube asks to wait", {"retry-after": "1"})),
        (Say(429, headers={"Retry-After": "30"}), (429, "YouTube asks to wait", {"retry-after": "30"})),
        (Say(429, headers={"Retry-After": "604800"}), (429, "YouTube asks to wait", {"retry-after": "3600"})),
        (Say(500), NOT_AVAILABLE),
        (Say(503, b"<h1>maintenance</h1>"), NOT_AVAILABLE),
        (Say(body=None), NOT_AVAILABLE),
        (Say(304), NOT_AVAILABLE),
        (Say(302, headers={"Location": "http://10.0.0.1/"}), NOT_AVAILABLE),
        (Say(body=b"<h1>hello</h1>"), NONSENSE),
        (Say(body=b""), NONSENSE),
        (Say(body=b"[]"), NONSENSE),
        (Say(body=b"null"), NONSENSE),
        (Say(body=b'{"a": NaN}'), NONSENSE),
        (Say(body=b'{"a": -Infinity}'), NONSENSE),
        (Say(body=b'{"a": "\\ud800"}'), NONSENSE),
        (Say(body=b'{"\\udfff": 1}'), NONSENSE),
        (Say(body=b'{"a": "\xff"}'), NONSENSE),
        (Say(body=b'{"a": ' + b"[" * 100_000), NONSENSE),
        (Say(body=b'{"a": ' + b"9" * 10_000 + b"}"), NONSENSE),
        (Say(body=b"{" + b" " * 2_000_000 + b"}"), NONSENSE),
    ],
    ids=lambda value: ascii(value)[:60] if isinstance(value, Say) else "",
)
def test_what_a_service_answers_and_what_it_means(side: Side, there: Host, answer: Say, outcome: Any) -> None:
    there.usual = answer

    assert side.ask("youtube", there.url, what="Video") == outcome


def test_a_404_without_a_name_is_a_service_that_is_not_there(side: Side, there: Host) -> None:
    there.usual = Say(404)

    assert side.ask("imvdb", there.url) == (502, "IMVDb is not available", {})


@pytest.mark.parametrize(
    ("base", "path", "asked"),
    [
        ("/v3", "/search", "/v3/search"),
        ("/v3/", "search", "/v3/search"),
        ("/2.0/", "", "/2.0/"),
        ("/w/api.php", "", "/w/api.php"),
        ("/w/api.php?a=1", "", "/w/api.php?a=1"),
    ],
)
def test_the_address_is_that_of_the_settings(side: Side, there: Host, base: str, path: str, asked: str) -> None:
    side.ask("wikipedia", f" {there.url}{base} ", path, params={"q": "Björk & co/+ 100%", "n": "ü"})

    (call,) = there.calls
    assert call.path.startswith(asked)
    assert parse_qs(urlsplit(call.path).query)["q"] == ["Björk & co/+ 100%"]
    assert call.headers["User-Agent"].startswith("MusicVideos/")


def test_both_sides_ask_byte_for_byte_the_same(there: Host) -> None:
    for maker in (Port, Legacy):
        side = maker()
        side.ask("imvdb", there.url, params={"q": "a b+ö/&,:~'()*", "e": ""}, headers={"IMVDB-APP-KEY": "k"})
        side.ask("spotify", there.url, "", form={"grant_type": "client_credentials"}, auth=("ï", "d:x"))
        side.close()

    read, token, read_again, token_again = there.calls
    names = [
        "Accept",
        "Accept-Encoding",
        "User-Agent",
        "IMVDB-APP-KEY",
        "Authorization",
        "Content-Type",
        "Content-Length",
    ]
    for ours, theirs in ((read, read_again), (token, token_again)):
        assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
        assert [ours.headers[name] for name in names] == [theirs.headers[name] for name in names]


def test_a_whole_address_must_be_one_of_the_service(side: Side, there: Host, elsewhere: Host) -> None:
    """A list whose next page is on another host would get our token."""
    token = {"Authorization": "Bearer secret"}

    assert side.ask("spotify", f"{there.url}/v1", f"{there.url}/v1/next?offset=100", headers=token) == {}
    assert side.ask("spotify", there.url, f"{elsewhere.url}/next", headers=token)[:2] == (
        502,
        "Spotify gave an answer that makes no sense",
    )
    assert elsewhere.calls == []
    texts = {"spotify_token_url": f"{elsewhere.url}/token"}
    assert side.ask("spotify", there.url, f"{elsewhere.url}/token", texts=texts, form={"a": "b"}) == {}


@pytest.mark.parametrize("key", ["ключ", "a\r\nX-Injected: 1", "a\0b", "\ud800"], ids=ascii)
def test_a_key_that_no_header_can_carry_is_a_wrong_one(side: Side, there: Host, key: str) -> None:
    assert side.ask("imvdb", there.url, headers={"IMVDB-APP-KEY": key})[:2] == (400, "IMVDb refused the key")
    assert there.calls == []


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://a/", "http://user@host/", "http://10.0.0.1/", "http://[", "\0"])
def test_an_address_in_the_settings_that_cannot_be_asked(side: Side, url: str) -> None:
    assert side.ask("lastfm", url) == (502, "Last.fm is not available", {})


def test_a_service_is_not_asked_more_often_than_the_settings_say(side: Side, there: Host) -> None:
    texts = {"lastfm_per_second": "0.01"}
    assert side.ask("lastfm", there.url, texts=texts) == {}

    assert side.ask("lastfm", there.url, texts=texts) == (502, "Last.fm is not available", {})
    assert len(there.calls) == 1


@pytest.mark.parametrize("rate", ["1e-320", "1e308", "fast", "-1", "nan"])
def test_strange_rates_are_rates(side: Side, there: Host, rate: str) -> None:
    assert side.ask("lastfm", there.url, texts={"lastfm_per_second": rate}) == {}


# --- addresses that users give -----------------------------------------------------------------------------------


def test_fetching(side: Side, there: Host) -> None:
    there.first = [Say(body=b"picture"), Say(404), Say(204, b""), Say(body=b"x" * 1001)]

    assert side.fetch(f"{there.url}/a.jpg") == b"picture"
    assert side.fetch(f"{there.url}/b.jpg") == "It answered 404"
    assert side.fetch(f"{there.url}/b.jpg") == "It answered 204"
    assert side.fetch(f"{there.url}/b.jpg") == "Its answer is too large"
    assert side.fetch("http://10.0.0.1/b.jpg") == "Its address is not allowed"
    assert side.fetch("http://name.invalid/") == "Its name cannot be found"


def test_posting(side: Side, there: Host) -> None:
    there.first = [Say(204, b""), Say(500), Say(302, headers={"Location": "/other"}), endless, Say(body=None)]

    headers = {"Content-Type": "application/json", "X-Webhook-Signature": "sha256=0"}
    statuses = [side.post(f"{there.url}/hook", b'{"a":1}', headers) for _ in range(5)]

    assert statuses == [(204, True), (500, True), (302, True), (200, True), "It cannot be reached"]
    assert [call.path for call in there.calls] == ["/hook"] * 5
    assert {call.body for call in there.calls} == {b'{"a":1}'}
    assert {call.headers["X-Webhook-Signature"] for call in there.calls} == {"sha256=0"}


def test_no_secret_is_logged(side: Side, there: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    there.first = [Say(503), Say(body=None)]

    side.request("GET", there.url, params={"key": "secret"}, headers={"X-Key": "secret"}, auth=("a", "secret"))
    side.request("GET", "http://10.0.0.1/secret", params={"key": "secret"})

    assert there.url in caplog.text
    assert "secret" not in caplog.text


# --- calls per second --------------------------------------------------------------------------------------------


class PortLimiter:
    def __init__(self, url: str = "", longest_wait_s: float = 0.0) -> None:
        self.runner = asyncio.Runner()
        self.limiter = port_limiter.Limiter(url, longest_wait_s=longest_wait_s)

    def passes(self, origin: str, per_second: float) -> bool:
        try:
            self.runner.run(self.limiter.wait(origin, Rate(per_second)))
        except port_failures.TooBusy:
            return False
        return True

    def close(self) -> None:
        self.runner.run(self.limiter.aclose())
        self.runner.close()


class LegacyLimiter:
    def __init__(self, url: str = "", longest_wait_s: float = 0.0) -> None:
        self.limiter = legacy_limiter.Limiter(url, longest_wait_s=longest_wait_s)

    def passes(self, origin: str, per_second: float) -> bool:
        try:
            self.limiter.wait(origin, per_second)
        except legacy_failures.TooBusy:
            return False
        return True

    def close(self) -> None:
        self.limiter.close()


AnyLimiter = PortLimiter | LegacyLimiter


@pytest.fixture(params=[PortLimiter, LegacyLimiter], ids=["port", "legacy"])
def limiter(request: pytest.FixtureRequest) -> Iterator[Callable[..., AnyLimiter]]:
    with ExitStack() as made:

        def one(*arguments: Any) -> AnyLimiter:
            it: AnyLimiter = request.param(*arguments)
            made.callback(it.close)
            return it

        yield one


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that answers is believed, on a machine that is busy, too."""
    for module in (port_limiter, legacy_limiter):
        monkeypatch.setattr(module, "ANSWER_S", 20)


PATIENT = pytest.mark.usefixtures("_patient")


def test_both_sides_count_with_the_same_script() -> None:
    assert port_limiter.SCRIPT == legacy_limiter.SCRIPT


@PATIENT
@pytest.mark.parametrize("shared", [False, True], ids=["memory", "redis"])
def test_a_bucket_holds_a_second_and_one_call_at_least(
    limiter: Callable[..., AnyLimiter], tmp_path: Path, shared: bool
) -> None:
    with ExitStack() as rest:
        url = rest.enter_context(redis_server(tmp_path)).url if shared else ""
        it = limiter(url)

        assert [it.passes("slow", 0.01) for _ in range(3)] == [True, False, False]
        assert [it.passes("other", 0.01) for _ in range(2)] == [True, False]
        began = time.monotonic()
        passed = sum(it.passes("quick", 50) for _ in range(200))
        assert 50 <= passed <= 51 + 50 * (time.monotonic() - began)


def test_who_must_wait_waits_in_turn(limiter: Callable[..., AnyLimiter]) -> None:
    it = limiter("", 10.0)
    began = time.monotonic()

    assert all(it.passes("a", 20) for _ in range(24))
    assert time.monotonic() - began >= 4 / 20


@PATIENT
def test_all_processes_of_both_sides_share_one_bucket(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis, ExitStack() as rest:
        all_of_them = [made(redis.url) for made in (PortLimiter, PortLimiter, LegacyLimiter, LegacyLimiter)]
        for it in all_of_them:
            rest.callback(it.close)

        assert [it.passes("https://api.example.com", 0.01) for it in all_of_them] == [True, False, False, False]
        with redis.client() as client:
            assert client.keys() == ["music:limiter:https://api.example.com"]
            assert 0 < client.pttl("music:limiter:https://api.example.com") <= 101_000


@PATIENT
def test_a_time_that_cannot_be_is_not_believed(limiter: Callable[..., AnyLimiter], tmp_path: Path) -> None:
    """Redis' clock was set back."""
    with redis_server(tmp_path) as redis, redis.client() as client:
        it = limiter(redis.url)
        client.set("music:limiter:a", round((time.time() + 86_400) * 1e6))

        assert it.passes("a", 1)


@PATIENT
def test_without_redis_memory_counts_and_redis_counts_again_when_it_is_back(
    limiter: Callable[..., AnyLimiter], tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis:
        it = limiter(redis.url)
        assert it.passes("a", 0.01)
        assert not it.passes("a", 0.01)

        redis.stop()
        assert it.passes("a", 0.01)  # memory had not seen the first one
        assert not it.passes("a", 0.01)

        redis.start()
        with redis.client() as client:
            wait_until(lambda: it.passes("probe", 1000) and client.exists("music:limiter:probe"), "Redis to be asked")
        assert it.passes("a", 0.01)
        assert not it.passes("a", 0.01)


def test_a_redis_that_swallows_everything_costs_one_call_a_moment(
    limiter: Callable[..., AnyLimiter], tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis, cable(redis.port) as line:
        it = limiter(line.url)
        assert it.passes("a", 1000)

        line.cut = True
        assert it.passes("a", 1000)
        began = time.monotonic()
        assert all(it.passes("a", 1000) for _ in range(400))
        with_redis_s = 400 * port_limiter.ANSWER_S
        assert time.monotonic() - began < with_redis_s / 5

        line.cut = False
        with redis.client() as client:
            client.flushall()
            wait_until(lambda: it.passes("b", 1000) and client.exists("music:limiter:b"), "Redis to be asked")


def test_something_else_that_listens_there_is_no_redis(limiter: Callable[..., AnyLimiter], there: Host) -> None:
    it = limiter(f"redis://127.0.0.1:{there.server_port}/0")

    assert [it.passes("a", 0.01) for _ in range(2)] == [True, False]


def test_a_call_whose_turn_is_too_far_away_is_not_made(side: Side, there: Host) -> None:
    assert side.request("GET", there.url, per_second=0.01) == (200, b"{}")
    assert side.request("GET", there.url, per_second=0.01) == "TooBusy"
    assert len(there.calls) == 1
    assert side.state(there.url) == "closed"


def test_what_an_open_breaker_holds_back_takes_no_turn(make: Make, there: Host, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis, redis.client() as client:
        side = make(redis_url=redis.url)
        there.usual = Say(500)
        for _ in range(5):
            side.request("GET", there.url, repeat=False)

        assert side.request("GET", there.url, per_second=1) == "CircuitOpen"
        assert client.keys() == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [("ALLOWED_NETWORKS", "10.0.0.0/99", "REDIS_URL: .*10.0.0.0/99"), ("REDIS_URL", "http://redis", "Redis URL must")],
)
def test_flask_says_before_the_start_what_is_set_wrong(tmp_path: Path, name: str, value: str, sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        create_legacy({"DATA_PATH": tmp_path, "LIBRARY_PATH": tmp_path, name: value})
