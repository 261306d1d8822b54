"""The bridge: what a WSGI application sees, what its client sees, and who waits for whom."""

import asyncio
import contextvars
import io
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask, Response, jsonify, request, send_file, stream_with_context
from gunicorn.config import Config as GunicornConfig
from gunicorn.http import wsgi as gunicorn_wsgi
from gunicorn.http.parser import RequestParser

from gateway import wsgi
from gateway.settings import Settings
from gateway.spool import BodyTruncated
from gateway.wsgi import WsgiBackend, a2wsgi_backend
from tests.support.asgi import http_scope

KIB, MIB = 1024, 1024 * 1024
END = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}
OK = "200 OK"
TEXT = [("Content-Type", "text/plain")]

# What the ecosystem's bridge gets wrong, by the name of the test that shows it.
A2WSGI_FAULTS = {
    "test_bytes_of_the_path_survive[latin-1]": "decodes the path as UTF-8",
    "test_a_prefix_ends_at_a_slash[/apiary]": "splits it at /api",
    "test_a_query_string_may_hold_any_byte": "decodes it as ASCII",
    "test_the_target_can_be_read_as_it_was_sent": "has neither RAW_URI nor REQUEST_URI",
    "test_cookies_are_joined_as_cookies": "joins them with a comma",
    "test_headers_with_an_underscore_are_dropped": "passes them on",
    "test_values_are_stripped_of_blanks": "keeps them",
    "test_the_server_describes_itself_truthfully": "logs to stdout, has no file wrapper, does not terminate the input",
    "test_the_body_reads_like_a_file[read(None)]": "TypeError",
    "test_the_body_reads_like_a_file[readline(n)]": "takes an empty buffer for the end",
    "test_the_body_reads_like_a_file[readlines]": "adds a newline",
    "test_the_body_reads_like_a_file[readlines(hint)]": "counts lines instead of bytes",
    "test_an_upload_cut_short_does_not_reach_the_application": "takes it for complete",
    "test_exc_info_replaces_the_head_before_the_first_byte": "has sent it already",
    "test_exc_info_after_the_first_byte_ends_the_response": "goes on sending",
    "test_a_failure_before_the_first_byte_is_a_500": "leaves it to the server",
    "test_a_failure_at_the_first_chunk_is_a_500": "has sent the head already",
    "test_a_second_start_response_is_an_error": "ignores it",
    "test_what_cannot_be_sent_is_a_500": "sends it",
    "test_a_status_needs_no_phrase[200]": "ValueError",
    "test_headers_of_one_hop_stay_here": "passes them on",
    "test_non_breaking_spaces_are_no_blanks": "strips them",
    "test_a_body_that_must_not_be_is_not_sent": "sends it",
    "test_a_body_is_cut_at_its_content_length": "sends it all",
    "test_a_body_that_ends_early_is_an_error": "completes the response",
    "test_exit_in_a_view_fails_one_request": "stops the server's task with it",
}


class Client:
    """The server's side of one request: what it delivers, and what it is sent."""

    def __init__(self, *messages: dict[str, Any], uploads: bool = False) -> None:
        self.uploads = uploads or bool(messages)
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.deliver(*messages or (() if uploads else (END,)))
        self.asked = 0
        self.sent: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()

    def deliver(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.inbox.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(dict(message))

    def leave(self) -> None:
        self.deliver(GONE)

    async def ask(self, bridge: Any, headers: Iterable[tuple[str, str]] = (), **extra: Any) -> None:
        """One request. An upload is chunked unless `headers` say otherwise."""
        headers = list(headers)
        if self.uploads and "content-length" not in dict(headers):
            headers.append(("transfer-encoding", "chunked"))
        scope = http_scope(extra.pop("method", "GET"), extra.pop("target", "/"), headers, **extra)
        await bridge(scope, self.receive, self.send)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.sent[0]["headers"]]

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:] if message.get("body")]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


Build = Callable[..., Any]


def native(app: Any, **fields: Any) -> WsgiBackend:
    return WsgiBackend(app, Settings(**{"threads": 4, **fields}), multiprocess=False)


def rival(app: Any, **fields: Any) -> Any:
    return a2wsgi_backend(app, Settings(**{"threads": 4, **fields}), multiprocess=False)


@pytest.fixture(params=[native, rival], ids=["native", "a2wsgi"])
def build(request: pytest.FixtureRequest) -> Build:
    """Makes a bridge. The rival's known faults are expected to fail, by name."""
    if request.param is rival:
        name, case = request.node.originalname, request.node.callspec.id.replace("a2wsgi-", "")
        if fault := A2WSGI_FAULTS.get(name) or A2WSGI_FAULTS.get(f"{name}[{case}]"):
            request.applymarker(pytest.mark.xfail(reason=fault, strict=True))
    return request.param


def body(*chunks: bytes) -> list[dict[str, Any]]:
    return [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [END]


async def ask(bridge: Any, *messages: dict[str, Any], **extra: Any) -> Client:
    """One request to the end."""
    client = Client(*messages)
    await client.ask(bridge, **extra)
    return client


def start(bridge: Any, client: Client, **extra: Any) -> asyncio.Task[None]:
    """One request in the background."""
    return asyncio.create_task(client.ask(bridge, **extra))


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.005)


def idle(bridge: Any) -> bool:
    return bridge.stats.threads > 0 and not bridge.stats.busy + bridge.stats.waiting


def answering(chunks: Any, status: str = OK, headers: Any = TEXT) -> Callable[..., Any]:
    """A WSGI application with one answer; `chunks` may be a function that makes them."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, headers)
        return chunks() if callable(chunks) else chunks

    return app


async def environ_of(build: Build, *messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """What the application sees of a request."""
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        start_response(OK, TEXT)
        return [b""]

    await ask(build(app), *messages, **extra)
    return seen


# --- the environ


@pytest.mark.parametrize(
    ("raw", "path"),
    [(b"/caf%E9/%FF", "/caf\xe9/\xff"), (b"/%C3%A9", "/\xc3\xa9"), (b"/a%zz", "/a%zz"), (b"/a%2Fb", "/a/b")],
    ids=["latin-1", "utf-8", "broken", "slash"],
)
async def test_bytes_of_the_path_survive(build: Build, raw: bytes, path: str) -> None:
    environ = await environ_of(build, raw_path=raw, path=unquote(raw.decode()))
    assert path == environ["PATH_INFO"]


async def test_a_server_without_raw_paths_gets_by() -> None:
    environ = await environ_of(native, path="/é b", raw_path=None)
    assert ("/\xc3\xa9 b", "/%C3%A9%20b") == (environ["PATH_INFO"], environ["RAW_URI"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api", ("/api", "")),
        ("/api/", ("/api", "/")),
        ("/api/x", ("/api", "/x")),
        ("/apiary", ("", "/apiary")),
    ],
    ids=["/api", "/api/", "/api/x", "/apiary"],
)
async def test_a_prefix_ends_at_a_slash(build: Build, path: str, expected: tuple[str, str]) -> None:
    environ = await environ_of(build, target=path, root_path="/api")
    assert expected == (environ["SCRIPT_NAME"], environ["PATH_INFO"])


async def test_a_query_string_may_hold_any_byte(build: Build) -> None:
    environ = await environ_of(build, query_string=b"q=\xe9&r=%E9")
    assert "q=\xe9&r=%E9" == environ["QUERY_STRING"]


async def test_the_target_can_be_read_as_it_was_sent(build: Build) -> None:
    environ = await environ_of(build, target="/a%2Fb?c=%2F")
    assert "/a%2Fb?c=%2F" == environ["RAW_URI"] == environ["REQUEST_URI"]


async def test_cookies_are_joined_as_cookies(build: Build) -> None:
    environ = await environ_of(build, headers=[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")])
    assert "a=1; b=2" == environ["HTTP_COOKIE"]


async def test_other_repeated_headers_are_joined_as_lists(build: Build) -> None:
    environ = await environ_of(build, headers=[("accept", "a/b"), ("accept", "c/d"), ("accept", "e/f")])
    assert "a/b,c/d,e/f" == environ["HTTP_ACCEPT"]


async def test_headers_with_an_underscore_are_dropped(build: Build) -> None:
    headers = [("x-real-ip", "1.1.1.1"), ("x_real_ip", "6.6.6.6"), ("x_forwarded_user", "admin")]
    environ = await environ_of(build, headers=headers)
    assert "1.1.1.1" == environ["HTTP_X_REAL_IP"]
    assert not {"HTTP_X_FORWARDED_USER", ""} & environ.keys()


async def test_values_are_stripped_of_blanks(build: Build) -> None:
    environ = await environ_of(build, headers=[("x-signature", " \ta b\t ")])
    assert "a b" == environ["HTTP_X_SIGNATURE"]


async def test_headers_may_hold_any_byte(build: Build) -> None:
    assert "\xe9\xff" == (await environ_of(build, headers=[("x-name", "\xe9\xff")]))["HTTP_X_NAME"]


async def test_body_headers_have_no_prefix(build: Build) -> None:
    environ = await environ_of(build, *body(b"abc"), headers=[("content-type", "a/b"), ("content-length", "3")])
    assert ("a/b", "3") == (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"])
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & environ.keys()


async def test_an_upgrade_is_visible(build: Build) -> None:
    environ = await environ_of(build, headers=[("connection", "Upgrade"), ("upgrade", "websocket")])
    assert ("Upgrade", "websocket") == (environ["HTTP_CONNECTION"], environ["HTTP_UPGRADE"])


async def test_the_server_describes_itself_truthfully(build: Build) -> None:
    environ = await environ_of(build)
    names = ["multithread", "multiprocess", "run_once", "input_terminated", "version"]
    assert [True, False, False, True, (1, 0)] == [environ[f"wsgi.{name}"] for name in names]
    assert sys.stderr is environ["wsgi.errors"]
    assert [b"ab", b"c"] == list(environ["wsgi.file_wrapper"](io.BytesIO(b"abc"), 2))


def test_several_processes_are_no_secret() -> None:
    backend = WsgiBackend(answering([b""]), Settings(), multiprocess=True)
    assert backend._environs.build(http_scope())["wsgi.multiprocess"] is True


async def test_the_match_of_the_gateway_is_handed_on() -> None:
    match = object()
    assert match is (await environ_of(native, **{"gateway.match": match}))["gateway.match"]
    assert "gateway.match" not in await environ_of(native)


async def test_behind_a_unix_socket_the_host_header_names_the_server() -> None:
    environ = await environ_of(native, headers=[("host", "example.org:81")], server=("/run/x.sock", None), client=None)
    assert ("example.org", "81", "") == (environ["SERVER_NAME"], environ["SERVER_PORT"], environ["REMOTE_ADDR"])
    environ = await environ_of(native, headers=[("host", "a")], server=None, scheme="https")
    assert ("a", "443") == (environ["SERVER_NAME"], environ["SERVER_PORT"])


async def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    backend = native(answering([b""]))
    for n in range(3000):
        backend._environs.build(http_scope(headers=[(f"x-{n}", "v")]))
    backend._environs.build(http_scope(headers=[("x-" + "y" * 5000, "v")]))
    assert len(backend._environs._keys) <= 1024


REQUESTS = {
    "plain": b"GET /a/b?c=d HTTP/1.1\r\nHost: example.org:8000\r\nUser-Agent: u\r\nAccept: */*\r\n\r\n",
    "encoded": b"GET /caf%E9/%2F%20?q=%FF&r=a+b HTTP/1.1\r\nHost: h\r\n\r\n",
    "upload": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\nabc",
    "chunked": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "repeated": b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-B: 2\r\nX-A: 3 \t\r\nX_C: 4\r\n\r\n",
    "old": b"GET /x HTTP/1.0\r\n\r\n",
    "upgrade": b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_environ_is_gunicorns(name: str) -> None:
    config = GunicornConfig()
    config.set("header_map", "drop")
    parsed = next(RequestParser(config, iter([REQUESTS[name]]), ("1.2.3.4", 5)))
    _, theirs = gunicorn_wsgi.create(parsed, None, ("1.2.3.4", 5), ("127.0.0.1", 8000), config)
    theirs["wsgi.multithread"] = True  # as the gthread worker does

    head, _, _ = REQUESTS[name].partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    method, target, version = line.decode().split(" ")
    pairs = [field.decode().split(": ", 1) for field in fields]
    plain = http_scope(method, target, http_version=version[5:], client=("1.2.3.4", 5), server=("127.0.0.1", 8000))
    plain["headers"] = [(key.lower().encode(), value.encode()) for key, value in pairs]
    ours = native(answering([b""]))._environs.build(plain)

    differs = {"wsgi.errors", "wsgi.file_wrapper", "wsgi.input", "SERVER_SOFTWARE"}
    absent = {"gunicorn.socket", "wsgi.early_hints"}
    assert {**theirs, "REQUEST_URI": theirs["RAW_URI"]}.keys() - absent - {"wsgi.input"} == ours.keys()
    assert {k: v for k, v in theirs.items() if k not in differs | absent} == {
        k: v for k, v in ours.items() if k not in differs | {"REQUEST_URI"}
    }


# --- the request body

DATA = b"first\nsecond\n\nlast line without an end"
PIECES = [b"fir", b"st\nsecond", b"\n", b"\nlast line without", b" an end"]
READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: file.read(),
    "read(-1)": lambda file: file.read(-1),
    "read(None)": lambda file: file.read(None),
    "read(n)": lambda file: [file.read(4) for _ in range(12)],
    "readline": lambda file: [file.readline() for _ in range(6)],
    "readline(n)": lambda file: [file.readline(4) for _ in range(14)],
    "readlines": lambda file: file.readlines(),
    "readlines(hint)": lambda file: [file.readlines(7), file.readlines(1), file.readlines()],
    "iteration": list,
    "read(0)": lambda file: [file.read(0), file.readline(0), file.read()],
}


@pytest.mark.parametrize("how", READS)
async def test_the_body_reads_like_a_file(build: Build, how: str) -> None:
    seen = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(READS[how](environ["wsgi.input"]))
        start_response(OK, TEXT)
        return [b"ok"]

    await ask(build(app), *body(*PIECES))
    assert [READS[how](io.BytesIO(DATA))] == seen


def reading(seen: list[Any]) -> Callable[..., Any]:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            seen.append(environ["wsgi.input"].read())
        except OSError as error:
            seen.append(error)
        start_response(OK, TEXT)
        return [b"ok"]

    return app


async def test_a_request_without_a_body_is_not_asked_for_one() -> None:
    for headers in ([], [("content-length", "0")]):
        seen: list[Any] = []
        client = await ask(native(reading(seen)), headers=headers)
        assert ([b""], b"ok", 0) == (seen, client.body, client.asked)


async def test_a_slow_upload_holds_no_thread() -> None:
    seen: list[Any] = []
    bridge, client = native(reading(seen), threads=1), Client(uploads=True)
    task = start(bridge, client)
    for piece in PIECES:
        client.deliver(*body(piece)[:1])
        await until(client.inbox.empty)
        assert (0, 0) == (bridge.stats.busy, bridge.stats.waiting)
    assert b"ok" == (await ask(native(answering([b"ok"])))).body
    client.deliver(END)
    await task
    assert [DATA] == seen


async def test_flask_gets_chunked_bodies() -> None:
    app = Flask("legacy")
    app.post("/json", endpoint="json")(lambda: jsonify(request.get_json()["a"]))
    app.post("/form", endpoint="form")(lambda: request.form["a"])
    bridge = native(app)
    kind = ("content-type", "application/json")
    assert b"5\n" == (await ask(bridge, *body(b'{"a":', b"5}"), method="POST", target="/json", headers=[kind])).body
    kind = ("content-type", "application/x-www-form-urlencoded")
    assert b"5" == (await ask(bridge, *body(b"a", b"=5"), method="POST", target="/form", headers=[kind])).body


async def test_an_upload_cut_short_does_not_reach_the_application(build: Build) -> None:
    seen: list[Any] = []
    client = await ask(build(reading(seen)), *body(b"half")[:1], GONE, headers=[("content-length", "8")])
    assert ([], []) == (seen, client.sent)


async def test_a_body_that_nobody_reads_harms_nobody(build: Build) -> None:
    bridge = build(answering([b"ok"]))
    for _ in range(8):
        assert b"ok" == (await ask(bridge, *body(b"x" * 70_000, b"y"))).body


@pytest.mark.parametrize("headers", [[("content-length", "11")], [("content-length", "2")], []])
async def test_a_body_above_the_limit_is_refused_before_a_thread_is_taken(headers: list[Any]) -> None:
    seen: list[Any] = []
    bridge = native(reading(seen), max_body_bytes=10)
    client = await ask(bridge, *body(b"x" * 6, b"x" * 5), headers=headers)
    assert (413, [], 0) == (client.status, seen, bridge.stats.threads)
    client = await ask(bridge, {**END, "body": b"x" * 11}, headers=headers)
    assert (413, [], 0) == (client.status, seen, bridge.stats.threads)
    client = await ask(bridge, *body(b"x" * 6, b"x" * 4))
    assert (200, [b"x" * 10]) == (client.status, seen)


async def test_a_body_that_announces_too_much_is_not_invited() -> None:
    client = await ask(native(answering([b""]), max_body_bytes=10), END, headers=[("content-length", "11")])
    assert (413, 0) == (client.status, client.asked)


async def test_uploads_of_any_size_take_little_memory() -> None:
    chunk = os.urandom(64 * KIB)
    counted = []

    def app(environ: Any, start_response: Any) -> Any:
        counted.append(sum(iter(lambda: len(environ["wsgi.input"].read(MIB)), 0)))
        start_response(OK, TEXT)
        return [b"ok"]

    bridge, client = native(app), Client(*body(*[chunk] * 1600))
    tracemalloc.start()
    await client.ask(bridge)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [1600 * 64 * KIB] == counted
    assert peak < 24 * MIB
    assert bridge.store.free_bytes == bridge.settings.spool_memory_bytes


async def test_uploads_share_the_memory_of_the_worker() -> None:
    seen: list[Any] = []
    bridge = native(reading(seen), spool_memory_bytes=MIB)
    clients = [Client(*body(*[bytes([n]) * 64 * KIB] * 16)) for n in range(4)]
    await asyncio.gather(*(client.ask(bridge) for client in clients))
    assert sorted(bytes([n]) * MIB for n in range(4)) == sorted(seen)
    assert bridge.store.free_bytes == MIB


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files can have 1.5 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1536 * KIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("disk", ["no_disk", "small_disk"])
async def test_a_full_disk_leaves_uploads_working(disk: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(disk)
    seen: list[Any] = []
    chunks = [bytes([n]) * 64 * KIB for n in range(100)]
    client = await ask(native(reading(seen), spool_memory_bytes=0), *body(*chunks))
    assert ([b"".join(chunks)], 200) == (seen, client.status)


async def test_an_upload_is_read_while_it_arrives_where_that_is_configured() -> None:
    seen: list[bytes] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.extend(iter(environ["wsgi.input"].readline, b""))
        start_response(OK, TEXT)
        return [b"ok"]

    bridge, client = native(app, stream_request=("videos.upload",)), Client(uploads=True)
    task = start(bridge, client, **{"gateway.key": "videos.upload"})
    client.deliver(*body(b"a\nb")[:1])
    await until(lambda: seen == [b"a\n"])
    client.deliver(*body(b"c\n")[:1])
    await until(lambda: seen == [b"a\n", b"bc\n"])
    client.deliver({**END, "body": b"d"})
    await task
    assert ([b"a\n", b"bc\n", b"d"], b"ok") == (seen, client.body)


async def test_a_streamed_upload_waits_for_a_slow_reader() -> None:
    go_on, seen = threading.Event(), []

    def app(environ: Any, start_response: Any) -> Any:
        go_on.wait()
        seen.append(len(environ["wsgi.input"].read()))
        start_response(OK, TEXT)
        return [b"ok"]

    bridge = native(app, stream_request=("k",), window_bytes=100_000)
    client = Client(*body(*[b"x" * 10_000] * 50))
    task = start(bridge, client, **{"gateway.key": "k"})
    await until(lambda: client.asked >= 10)
    await asyncio.sleep(0.02)
    assert client.asked <= 11
    go_on.set()
    await task
    assert [500_000] == seen


async def test_a_streamed_upload_cut_short_raises() -> None:
    seen: list[Any] = []
    bridge, client = native(reading(seen), stream_request=("k",)), Client(*body(b"half")[:1])
    task = start(bridge, client, headers=[("content-length", "8")], **{"gateway.key": "k"})
    await until(lambda: bridge.stats.busy)
    client.leave()
    await task
    await until(lambda: seen)
    assert [BodyTruncated] == [type(error) for error in seen]
    assert isinstance(seen[0], OSError)


async def test_a_streamed_upload_above_the_limit_is_flasks_413() -> None:
    app = Flask("legacy")
    app.post("/")(lambda: str(len(request.get_data())))
    bridge = native(app, stream_request=("k",), max_body_bytes=100)
    client = await ask(bridge, *body(b"x" * 60, b"x" * 60), method="POST", **{"gateway.key": "k"})
    assert 413 == client.status


async def test_the_body_is_gone_with_its_request() -> None:
    kept = []

    def app(environ: Any, start_response: Any) -> Any:
        kept.append(environ["wsgi.input"])
        start_response(OK, TEXT)
        return [b"ok"]

    bridge = native(app)
    await ask(bridge, *body(*[b"x" * MIB] * 2))
    await until(lambda: idle(bridge))
    with pytest.raises(ValueError, match="closed"):
        kept[0].read()


# --- the response


async def test_an_ordinary_response_is_two_messages(build: Build) -> None:
    client = await ask(build(answering([b"hello"], headers=[*TEXT, ("Content-Length", "5")])))
    assert (200, [("content-type", "text/plain"), ("content-length", "5")]) == (client.status, client.headers)
    assert (b"hello", True) == (client.body, client.complete)


@pytest.mark.parametrize(
    "chunks",
    [[b"a", b"", b"b"], (b"ab",), lambda: iter([b"a", b"b"]), lambda: (c for c in [b"", b"ab", b""])],
    ids=["list", "tuple", "iterator", "generator"],
)
@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]])
async def test_any_iterable_is_a_body(build: Build, chunks: Any, length: Any) -> None:
    client = await ask(build(answering(chunks, headers=TEXT + length)))
    assert (b"ab", True) == (client.body, client.complete)


async def test_a_list_crosses_over_as_a_whole() -> None:
    assert [b"abc"] == (await ask(native(answering([b"a", b"b", b"", b"c"])))).chunks


async def test_no_length_is_made_up() -> None:
    """gunicorn does not either: HTTP/1.1 clients get chunks, older ones the end of the connection."""
    assert TEXT == [(k.title(), v) for k, v in (await ask(native(answering([b"abc"])))).headers]


@pytest.mark.parametrize("status", ["200", "200 ", "404 Weird \xe9"], ids=["200", "blank", "weird"])
async def test_a_status_needs_no_phrase(build: Build, status: str) -> None:
    client = await ask(build(answering([b"x"], status)))
    assert (int(status[:3]), b"x") == (client.status, client.body)


async def test_write_sends_before_the_iterable_does(build: Build) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response(OK, TEXT)
        write(b"a")
        write(b"")
        write(b"b")
        return [b"c", b"d"]

    client = await ask(build(app))
    assert (b"abcd", True) == (client.body, client.complete)


async def test_the_head_waits_for_the_first_byte() -> None:
    go_on = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b""
        go_on.wait()
        yield b"x"

    client = Client()
    task = start(native(answering(chunks)), client)
    await asyncio.sleep(0.05)
    assert [] == client.sent
    go_on.set()
    await task
    assert b"x" == client.body


async def test_start_response_may_come_with_the_first_chunk(build: Build) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("201 Created", TEXT)
        yield b"x"

    client = await ask(build(app))
    assert (201, b"x") == (client.status, client.body)


def failing(after: int) -> Callable[..., Any]:
    """Answers with an error page when it fails, as PEP 3333 has it."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, [("X-First", "1"), ("Content-Length", "100")])
        for _ in range(after):
            yield b"a"
        try:
            raise KeyError("k")
        except KeyError:
            start_response("500 Failed", [("X-Second", "2")], sys.exc_info())
        yield b"must not be mixed"

    return app


async def test_exc_info_replaces_the_head_before_the_first_byte(build: Build) -> None:
    client = await ask(build(failing(0)))
    assert (500, [("x-second", "2")], b"must not be mixed") == (client.status, client.headers, client.body)


async def test_exc_info_after_the_first_byte_ends_the_response(build: Build) -> None:
    client = Client()
    with pytest.raises(KeyError):
        await client.ask(build(failing(2)))
    assert (200, b"aa", False) == (client.status, client.body, client.complete)


@pytest.mark.parametrize("more", [[], [b"b"]])
async def test_exc_info_after_the_first_byte_cannot_be_ignored(more: list[bytes]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        yield b"a"
        with suppress(KeyError):
            try:
                raise KeyError("k")
            except KeyError:
                start_response("500 Failed", TEXT, sys.exc_info())
        yield from more

    client = Client()
    with pytest.raises(KeyError):
        await client.ask(native(app))
    assert (b"a", False) == (client.body, client.complete)


def raising(error: BaseException) -> Callable[..., Any]:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        raise error

    return app


def raising_at_the_first_chunk(environ: Any, start_response: Any) -> Any:
    start_response(OK, TEXT)
    raise LookupError("here")
    yield b""


GUNICORNS_500 = (
    b"<html>\n  <head>\n    <title>Internal Server Error</title>\n  </head>\n  <body>\n"
    b"    <h1><p>Internal Server Error</p></h1>\n    \n  </body>\n</html>\n"
)


async def test_a_failure_before_the_first_byte_is_a_500(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    client = await ask(build(raising(LookupError("here"))), target="/a?b")
    assert (500, GUNICORNS_500, True) == (client.status, client.body, client.complete)
    assert [("content-type", "text/html"), ("content-length", str(len(GUNICORNS_500)))] == client.headers
    assert "Error handling request GET /a?b" in caplog.text
    assert "LookupError: here" in caplog.text


async def test_a_failure_at_the_first_chunk_is_a_500(build: Build) -> None:
    client = await ask(build(raising_at_the_first_chunk))
    assert (500, GUNICORNS_500) == (client.status, client.body)


async def test_a_failure_in_mid_stream_ends_the_response_after_what_was_made(build: Build) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        raise LookupError("here")

    client = Client()
    with pytest.raises(LookupError):
        await client.ask(build(answering(chunks)))
    assert (b"ab", False) == (client.body, client.complete)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_exit_in_a_view_fails_one_request(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    bridge = native(raising(error), threads=1)
    for _ in range(3):
        assert 500 == (await ask(bridge)).status
    await until(lambda: idle(bridge))
    assert 1 == bridge.stats.threads
    assert type(error).__name__ in caplog.text


async def test_exit_in_mid_stream_does_not_stop_the_loop() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await Client().ask(native(answering(chunks)))


async def test_a_second_start_response_is_an_error(build: Build) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        start_response(OK, TEXT)
        return [b"x"]

    assert 500 == (await ask(build(app))).status


async def test_no_start_response_is_an_error() -> None:
    assert 500 == (await ask(native(lambda environ, start_response: [b"x"]))).status
    assert 500 == (await ask(native(lambda environ, start_response: []))).status


@pytest.mark.parametrize(
    ("status", "headers", "chunks"),
    [
        ("0 x", TEXT, [b""]),
        ("abc", TEXT, [b""]),
        ("", TEXT, [b""]),
        ("999 x", TEXT, [b""]),
        ("200 a\r\nX: y", TEXT, [b""]),
        (200, TEXT, [b""]),
        (OK, [("X", "a\r\nSet-Cookie: b")], [b""]),
        (OK, [("X", "a\nb")], [b""]),
        (OK, [("X", "a\0")], [b""]),
        (OK, [("X", "\u20ac")], [b""]),
        (OK, [("X", 5)], [b""]),
        (OK, [("X", None)], [b""]),
        (OK, [("X\r\nY", "a")], [b""]),
        (OK, [("X Y", "a")], [b""]),
        (OK, [("", "a")], [b""]),
        (OK, [(b"X", "a")], [b""]),
        (OK, [("Content-Length", "-1")], [b""]),
        (OK, [("Content-Length", "\xb2")], [b""]),
        (OK, [("Content-Length", "5"), ("Content-Length", "6")], [b"12345"]),
        (OK, TEXT, ["text"]),
        (OK, TEXT, lambda: iter(["text"])),
        (OK, TEXT, lambda: iter([bytearray(b"x")])),
        (OK, TEXT, lambda: None),
        (OK, TEXT, lambda: 5),
    ],
)
async def test_what_cannot_be_sent_is_a_500(status: Any, headers: Any, chunks: Any) -> None:
    client = await ask(native(answering(chunks, status, headers)))
    assert (500, GUNICORNS_500) == (client.status, client.body)


async def test_a_header_that_fails_can_be_replaced() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        with pytest.raises(ValueError, match="'X'"):
            start_response(OK, [("X", "secret\n")])
        start_response(OK, TEXT)
        return [b"x"]

    assert 200 == (await ask(native(app))).status


async def test_headers_of_one_hop_stay_here(build: Build) -> None:
    hops = ["Connection", "Keep-Alive", "Proxy-Authenticate", "TE", "Trailers", "Transfer-Encoding", "Upgrade"]
    client = await ask(build(answering([b"x"], headers=[(name, "x") for name in hops] + TEXT)))
    assert [("content-type", "text/plain")] == client.headers


async def test_headers_keep_their_order_and_repetitions(build: Build) -> None:
    headers = [("Set-Cookie", "a=1"), ("Vary", "x"), ("SET-COOKIE", "b=\xe9"), ("Date", "now"), ("Server", "me")]
    client = await ask(build(answering([b"x"], headers=headers)))
    assert [(name.lower(), value) for name, value in headers] == client.headers


async def test_non_breaking_spaces_are_no_blanks(build: Build) -> None:
    client = await ask(build(answering([b"x"], headers=[("X", " \t a\xc3\xa0\t ")])))
    assert [("x", "a\xc3\xa0")] == client.headers


@pytest.mark.parametrize(
    ("method", "status", "length_stays"),
    [("HEAD", OK, True), ("GET", "304 Not Modified", True), ("GET", "204 No Content", False), ("GET", "101 x", False)],
)
@pytest.mark.parametrize("chunks", [[b"hello"], lambda: iter([b"he", b"llo"])], ids=["list", "iterator"])
async def test_a_body_that_must_not_be_is_not_sent(
    build: Build, method: str, status: str, length_stays: bool, chunks: Any
) -> None:
    client = await ask(build(answering(chunks, status, [("Content-Length", "5")])), method=method)
    assert ([("content-length", "5")] if length_stays else []) == client.headers
    assert (b"", True) == (client.body, client.complete)


async def test_head_looks_at_the_request_as_it_came() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["REQUEST_METHOD"] = "GET"
        start_response(OK, [("Content-Length", "5")])
        return [b"hello"]

    assert b"" == (await ask(native(app), method="HEAD")).body


@pytest.mark.parametrize(
    "chunks",
    [
        [b"hello, ", b"world"],
        lambda: iter([b"hello, ", b"world"]),
        lambda: iter([b"hel", b"lo, "]),
        lambda: iter([b"hello", b"", b", world"]),
    ],
)
async def test_a_body_is_cut_at_its_content_length(build: Build, chunks: Any) -> None:
    client = await ask(build(answering(chunks, headers=[("Content-Length", "5")])))
    assert (b"hello", True) == (client.body, client.complete)


async def test_a_body_that_ends_early_is_an_error(build: Build) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"hel"

    client = Client()
    with pytest.raises(RuntimeError, match="2 bytes before its content-length"):
        await client.ask(build(answering(chunks, headers=[("Content-Length", "5")])))
    assert (b"hel", False) == (client.body, client.complete)


async def test_a_body_that_never_begins_is_a_500() -> None:
    assert 500 == (await ask(native(answering([], headers=[("Content-Length", "5")])))).status


class Chunks:
    """An iterable that takes notes."""

    def __init__(self, chunks: Any, error: Exception | None = None) -> None:
        self.chunks, self.error, self.closed_in = chunks, error, []

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks

    def close(self) -> None:
        self.closed_in.append((threading.get_ident(), WHO.get(None)))
        if self.error:
            raise self.error


WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who")


@pytest.mark.parametrize("chunks", [[b"a"], [], [b"a", b"b"], ["text"], [b"a", "text"]])
async def test_close_is_called_once_in_the_thread_and_context_of_the_call(build: Build, chunks: Any) -> None:
    response, called_in = Chunks(chunks), []

    def app(environ: Any, start_response: Any) -> Any:
        WHO.set("the request")
        called_in.append((threading.get_ident(), "the request"))
        start_response(OK, TEXT)
        return response

    with suppress(Exception):
        await Client().ask(build(app))
    await until(lambda: response.closed_in)
    assert called_in == response.closed_in


async def test_a_failing_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    bridge = native(answering(Chunks([b"a"], LookupError("closing"))), threads=1)
    for _ in range(2):
        client = await ask(bridge)
        assert (b"a", True) == (client.body, client.complete)
    assert "LookupError: closing" in caplog.text


async def test_what_a_generator_does_after_its_last_chunk_is_done(build: Build) -> None:
    done = []

    def chunks() -> Iterator[bytes]:
        yield b"hello"
        done.append(True)

    await ask(build(answering(chunks, headers=[("Content-Length", "5")])))
    await until(lambda: done)


async def test_an_error_after_the_last_byte_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"hello"
        raise LookupError("afterwards")

    client = await ask(native(answering(chunks, headers=[("Content-Length", "5")])))
    assert (b"hello", True) == (client.body, client.complete)
    await until(lambda: "LookupError: afterwards" in caplog.text)


async def test_every_request_has_its_own_context(build: Build) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        before = WHO.get("nobody")
        WHO.set(environ["PATH_INFO"])
        start_response(OK, TEXT)
        return [before.encode()]

    bridge = build(app, threads=1)
    WHO.set("the server")
    assert [b"the server"] * 3 == [(await ask(bridge, target=f"/{n}")).body for n in range(3)]
    assert "the server" == WHO.get()


async def test_flask_streams_with_its_context() -> None:
    app = Flask("legacy")

    @app.get("/<name>")
    def view(name: str) -> Response:
        return Response(stream_with_context(request.view_args[key] for key in ("name", "name")))

    assert b"aa" == (await ask(native(app), target="/a")).body


# --- files


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.bin"
    path.write_bytes(os.urandom(3 * MIB))
    return path


def sending(path: Path, headers: Any = TEXT, skip: int = 0, **options: Any) -> Callable[..., Any]:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, headers)
        file = path.open("rb", **options)
        file.seek(skip)
        return environ["wsgi.file_wrapper"](file, 8192)

    return app


@pytest.mark.parametrize("options", [{}, {"buffering": 0}])
@pytest.mark.parametrize("skip", [0, 5, 3 * MIB - 5, 3 * MIB])
async def test_a_file_is_sent_from_where_it_stands(film: Path, skip: int, options: Any) -> None:
    client = await ask(native(sending(film, skip=skip, **options)))
    assert (film.read_bytes()[skip:], True) == (client.body, client.complete)


@pytest.mark.parametrize("length", [0, 10, 2 * MIB, 3 * MIB])
async def test_a_file_is_sent_as_far_as_its_content_length(film: Path, length: int) -> None:
    client = await ask(native(sending(film, [("Content-Length", str(length))])))
    assert (film.read_bytes()[:length], True) == (client.body, client.complete)


@pytest.mark.parametrize("skip", [0, 3 * MIB - 5])
async def test_a_file_that_is_too_short_is_an_error(film: Path, skip: int) -> None:
    client = Client()
    with pytest.raises(RuntimeError, match="before its content-length"):
        await client.ask(native(sending(film, [("Content-Length", str(4 * MIB))], skip)))
    assert (film.read_bytes()[skip:], False) == (client.body, client.complete)


async def test_a_file_that_shrinks_meanwhile_is_an_error(film: Path) -> None:
    bridge, client = native(sending(film)), Client()
    client.reads.clear()
    task = start(bridge, client)
    await until(lambda: idle(bridge))
    os.truncate(film, MIB)
    client.reads.set()
    with pytest.raises(OSError, match="shorter"):
        await task
    assert not client.complete


def flask_sending(path: Path) -> Flask:
    app = Flask("legacy")
    app.get("/")(lambda: send_file(path, conditional=True))
    return app


@pytest.mark.parametrize("app", [sending, flask_sending])
async def test_a_slow_download_holds_no_thread(film: Path, app: Any) -> None:
    bridge = native(app(film), threads=1)
    clients = [Client() for _ in range(6)]
    for client in clients:
        client.reads.clear()
    tasks = [start(bridge, client) for client in clients]
    await until(lambda: idle(bridge))
    for client in clients:
        client.reads.set()
    await asyncio.gather(*tasks)
    assert [film.read_bytes()] * 6 == [client.body for client in clients]


async def test_a_file_is_sent_when_no_descriptor_is_left(film: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def app(environ: Any, start_response: Any) -> Any:
        response = sending(film)(environ, start_response)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        return response

    try:
        client = await ask(native(app))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert film.read_bytes() == client.body


def open_files(path: Path) -> int:
    """How often this process has that file, or those below that folder, open. Others come and go meanwhile."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            count += entry.readlink().is_relative_to(path)
    return count


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_file_of_a_response_is_closed(film: Path, method: str) -> None:
    opened = []

    def app(environ: Any, start_response: Any) -> Any:
        response = sending(film)(environ, start_response)
        opened.append(open_files(film))
        return response

    bridge = native(app)
    for _ in range(3):
        await ask(bridge, method=method)
        await until(lambda: not open_files(film))
    assert [1, 1, 1] == opened


async def test_what_is_no_plain_file_is_read() -> None:
    data = os.urandom(100_000)

    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        return environ["wsgi.file_wrapper"](io.BytesIO(data))

    assert data == (await ask(native(app))).body
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    pipe = os.fdopen(reader, "rb")
    assert b"through a pipe" == (await ask(native(lambda e, s: (s(OK, TEXT), e["wsgi.file_wrapper"](pipe))[1]))).body
    await until(lambda: pipe.closed)


async def test_flask_sends_files(build: Build, film: Path) -> None:
    bridge = build(flask_sending(film))
    client = await ask(bridge)
    assert film.read_bytes() == client.body
    client = await ask(bridge, headers=[("range", "bytes=1000000-1999999")])
    assert (206, film.read_bytes()[1_000_000:2_000_000]) == (client.status, client.body)


# --- streams


async def test_a_chunk_is_sent_before_the_next_one_is_made(build: Build) -> None:
    go_on = threading.Semaphore(0)

    def chunks() -> Iterator[bytes]:
        for n in range(4):
            yield b"data: %d\n\n" % n
            go_on.acquire()

    client = Client()
    task = start(build(answering(chunks)), client)
    for n in range(4):
        await until(lambda n=n: len(client.chunks) == n + 1)
        go_on.release()
    await task
    assert [b"data: %d\n\n" % n for n in range(4)] == client.chunks


async def test_an_ordinary_response_does_without_watching_the_client() -> None:
    client = await ask(native(answering(lambda: iter([b"hello"]), headers=[("Content-Length", "5")])))
    assert (b"hello", 0) == (client.body, client.asked)


class Producer:
    """An application whose chunks are numbered, so that nothing can be lost or exchanged; counts what it made."""

    def __init__(self, count: int, size: int = 10_000) -> None:
        self.count, self.size, self.made, self.ended = count, size, 0, threading.Event()

    def chunk(self, n: int) -> bytes:
        return n.to_bytes(4, "big") * (self.size // 4)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        return self.chunks()

    def chunks(self) -> Iterator[bytes]:
        try:
            for n in range(self.count):
                self.made = n + 1
                yield self.chunk(n)
        finally:
            self.ended.set()

    @property
    def whole(self) -> bytes:
        return b"".join(map(self.chunk, range(self.count)))


async def test_a_slow_reader_of_a_moderate_response_holds_no_thread() -> None:
    app = Producer(600)
    bridge, client = native(app, threads=1), Client()
    client.reads.clear()
    task = start(bridge, client)
    await until(lambda: app.ended.is_set() and idle(bridge))
    assert bridge.settings.spool_memory_bytes - bridge.store.free_bytes <= 3 * MIB
    client.reads.set()
    await task
    assert (app.whole, True) == (client.body, client.complete)
    assert bridge.store.free_bytes == bridge.settings.spool_memory_bytes


async def test_a_slow_reader_of_an_endless_response_stops_the_application() -> None:
    app = Producer(10_000)
    bridge, client = native(app, threads=1, spool_response_bytes=2 * MIB), Client()
    client.reads.clear()
    task = start(bridge, client)
    await until(lambda: app.made * app.size > bridge.settings.spool_response_bytes)
    await asyncio.sleep(0.3)
    ahead = app.made * app.size
    assert ahead < bridge.settings.spool_response_bytes + 3 * MIB
    client.reads.set()
    await until(lambda: app.made > ahead // app.size)
    client.leave()
    await task
    await until(app.ended.is_set)
    assert app.whole.startswith(client.body)


async def test_an_interrupted_reader_gets_everything() -> None:
    app = Producer(1200)
    bridge, client = native(app, threads=1, spool_response_bytes=2 * MIB), Client()
    task = start(bridge, client)
    while not task.done():
        client.reads.clear()
        await asyncio.wait([task], timeout=0.3)
        client.reads.set()
        await asyncio.wait([task], timeout=0.01)
    assert (app.whole, True) == (client.body, client.complete)


@pytest.mark.parametrize("disk", ["no_disk", "small_disk"])
async def test_a_full_disk_leaves_responses_working(disk: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(disk)
    app = Producer(800)
    client = Client()
    client.reads.clear()
    task = start(native(app), client)
    await until(lambda: app.made > 200)
    await asyncio.sleep(0.4)
    client.reads.set()
    await task
    assert (app.whole, True) == (client.body, client.complete)


async def test_slow_readers_share_the_memory_of_the_worker() -> None:
    apps = [Producer(100) for _ in range(8)]
    bridge = native(lambda e, s: apps[int(e["PATH_INFO"][1:])](e, s), threads=8, spool_memory_bytes=MIB)
    clients = [Client() for _ in apps]
    for client in clients:
        client.reads.clear()
    tasks = [start(bridge, client, target=f"/{n}") for n, client in enumerate(clients)]
    await until(lambda: idle(bridge))
    assert bridge.store.free_bytes >= 0
    for client in clients:
        client.reads.set()
    await asyncio.gather(*tasks)
    assert [app.whole for app in apps] == [client.body for client in clients]
    assert bridge.store.free_bytes == MIB


def endless(closed: list[int], interval_s: float = 0.02) -> Callable[..., Any]:
    """Notes how many chunks it had made when it was closed."""

    def chunks() -> Iterator[bytes]:
        made = 0
        try:
            while True:
                made += 1
                yield b"data: x\n\n"
                time.sleep(interval_s)
        finally:
            closed.append(made)

    return answering(chunks)


async def test_an_abandoned_stream_is_closed_within_a_second() -> None:
    """Of the application's own time, in which it makes fifty chunks: the machine may stand still for longer."""
    closed: list[int] = []
    bridge, client = native(endless(closed)), Client()
    task = start(bridge, client)
    await until(lambda: len(client.chunks) > 2)
    client.leave()
    seen = client.body.count(b"x")
    await task
    await until(lambda: closed)
    assert closed[0] - seen < 50
    assert not client.complete
    await until(lambda: idle(bridge))


async def test_a_silent_stream_is_closed_as_soon_as_it_speaks() -> None:
    go_on, closed = threading.Event(), []

    def chunks() -> Iterator[bytes]:
        try:
            yield b"a"
            go_on.wait()
            yield b"b"
            raise AssertionError("nobody wants more")
        finally:
            closed.append(True)

    bridge, client = native(answering(chunks), threads=1), Client()
    task = start(bridge, client)
    await until(lambda: client.chunks)
    client.leave()
    await task
    assert 1 == bridge.stats.busy
    go_on.set()
    await until(lambda: closed and idle(bridge))


async def test_many_abandoned_streams_leave_the_pool_usable() -> None:
    closed: list[int] = []
    bridge = native(endless(closed), threads=4)
    for _ in range(12):
        clients = [Client() for _ in range(4)]
        tasks = [start(bridge, client) for client in clients]
        await until(lambda clients=clients: all(client.chunks for client in clients))
        for client in clients:
            client.leave()
        await asyncio.gather(*tasks)
    await until(lambda: len(closed) == 48)
    await until(lambda: idle(bridge))
    assert 4 == bridge.stats.threads


async def test_write_tells_that_the_client_is_gone() -> None:
    told = []

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response(OK, TEXT)
        try:
            while True:
                write(b"x")
                time.sleep(0.01)
        except OSError as error:
            told.append(error)
            raise

    bridge, client = native(app), Client()
    task = start(bridge, client)
    await until(lambda: client.chunks)
    client.leave()
    await task
    await until(lambda: told and idle(bridge))


async def test_a_server_that_gives_up_on_a_request_stops_the_application() -> None:
    closed: list[int] = []
    bridge, client = native(endless(closed)), Client()
    task = start(bridge, client)
    await until(lambda: client.chunks)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: closed and idle(bridge))


async def test_a_server_that_cannot_send_stops_the_application() -> None:
    closed: list[int] = []

    async def send(message: Any) -> None:
        raise OSError("the connection is lost")

    bridge = native(endless(closed))
    with pytest.raises(OSError, match="lost"):
        await bridge(http_scope(), Client().receive, send)
    await until(lambda: closed and idle(bridge))


async def test_a_client_that_waits_for_a_reader_of_its_upload_is_noticed_when_it_leaves() -> None:
    closed: list[int] = []
    bridge, client = native(endless(closed), stream_request=("k",)), Client(*body(b"x")[:1])
    task = start(bridge, client, **{"gateway.key": "k"})
    await until(lambda: client.chunks)
    client.leave()
    await task
    await until(lambda: closed)


# --- the pool


class Gate:
    """An application that waits to be let go on; knows how many are inside."""

    def __init__(self) -> None:
        self.open, self.threads, self.inside = threading.Event(), set(), 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.threads.add(threading.current_thread())
        self.inside += 1
        self.open.wait(100)
        start_response(OK, TEXT)
        return [environ["PATH_INFO"].encode()]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def test_threads_start_when_they_are_needed(gate: Gate) -> None:
    bridge = native(gate, threads=3)
    assert 0 == bridge.stats.threads
    tasks = []
    for count in (1, 2, 3, 3, 3):
        tasks.append(start(bridge, Client()))
        await until(lambda count=count: bridge.stats.threads == count)
    await until(lambda: gate.inside == 3 and bridge.stats.waiting == 2)
    assert 3 == bridge.stats.busy
    gate.open.set()
    await asyncio.gather(*tasks)
    assert 3 == len(gate.threads)
    assert all(thread.daemon and thread.name.startswith("gateway-legacy-") for thread in gate.threads)


async def test_one_thread_is_enough_for_one_client() -> None:
    bridge = native(answering([b"x"]))
    for _ in range(50):
        await ask(bridge)
        await until(lambda: idle(bridge))
    assert 1 == bridge.stats.threads


async def test_a_full_queue_is_a_503(gate: Gate) -> None:
    bridge = native(gate, threads=1, queue=2, queue_wait_s=70)
    tasks = [start(bridge, Client()) for _ in range(3)]
    await until(lambda: bridge.stats.waiting == 2)
    client = await ask(bridge, *body(b"x"), target="/late")
    assert (503, b"Service Unavailable\n", "70") == (client.status, client.body, dict(client.headers)["retry-after"])
    assert 1 == bridge.stats.refused
    gate.open.set()
    await asyncio.gather(*tasks)
    assert 200 == (await ask(bridge)).status


async def test_a_queue_of_none_still_lets_every_thread_work(gate: Gate) -> None:
    bridge = native(gate, threads=2, queue=0)
    tasks = [start(bridge, Client()) for _ in range(2)]
    await until(lambda: gate.inside == 2)
    assert 503 == (await ask(bridge)).status
    gate.open.set()
    await asyncio.gather(*tasks)


async def test_a_long_wait_is_a_503_and_the_request_never_runs(gate: Gate) -> None:
    bridge = native(gate, threads=1, queue_wait_s=0.1)
    first, late = Client(), Client(*body(b"x" * MIB, b"y" * MIB))
    task = start(bridge, first)
    await until(lambda: gate.inside)
    begun = time.monotonic()
    await late.ask(bridge)
    assert (503, "1") == (late.status, dict(late.headers)["retry-after"])
    assert 0.1 <= time.monotonic() - begun < 30
    assert (0, 1, 1) == (bridge.stats.waiting, bridge.stats.busy, bridge.stats.refused)
    assert bridge.store.free_bytes == bridge.settings.spool_memory_bytes
    gate.open.set()
    await task
    await until(lambda: idle(bridge))  # who found the thread busy would wait 0.1 s at most, too
    assert 200 == (await ask(bridge)).status
    assert 2 == gate.inside


async def test_a_client_that_leaves_the_queue_never_runs(gate: Gate) -> None:
    bridge = native(gate, threads=1, queue_wait_s=60)
    task, waiting = start(bridge, Client()), Client()
    await until(lambda: gate.inside)
    waiting.leave()
    await waiting.ask(bridge)
    assert ([], 0, 0) == (waiting.sent, bridge.stats.waiting, bridge.stats.refused)
    gate.open.set()
    await task
    assert 200 == (await ask(bridge)).status
    assert 2 == gate.inside


async def test_a_request_cancelled_in_the_queue_never_runs(gate: Gate) -> None:
    bridge = native(gate, threads=1)
    first, second = start(bridge, Client()), start(bridge, Client())
    await until(lambda: bridge.stats.waiting == 1)
    second.cancel()
    await asyncio.wait([second])
    assert 0 == bridge.stats.waiting
    gate.open.set()
    await first
    assert 1 == gate.inside


async def test_head_gets_no_body_with_its_503(gate: Gate) -> None:
    bridge = native(gate, threads=1, queue=0)
    task = start(bridge, Client())
    await until(lambda: gate.inside)
    client = await ask(bridge, method="HEAD")
    assert (503, b"", True) == (client.status, client.body, client.complete)
    gate.open.set()
    await task


async def test_many_requests_at_once_get_their_own_answers(build: Build) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(OK, TEXT)
        return iter([environ["PATH_INFO"].encode(), environ["wsgi.input"].read()])

    bridge = build(app, threads=3)
    clients = [Client(*body(b"#%d" % n)) for n in range(100)]
    await asyncio.gather(*(client.ask(bridge, target=f"/{n}") for n, client in enumerate(clients)))
    assert [b"/%d#%d" % (n, n) for n in range(100)] == [client.body for client in clients]


def test_a_bridge_may_outlive_its_loop() -> None:
    bridge = native(answering(lambda: iter([b"a", b"b"])), threads=1)
    for _ in range(3):
        assert b"ab" == asyncio.run(ask(bridge)).body


def test_threads_do_not_keep_the_process_alive() -> None:
    program = """
import asyncio, threading
from gateway.settings import Settings
from gateway.wsgi import WsgiBackend
from tests.support.asgi import http_scope

inside = threading.Event()
def app(environ, start_response):
    inside.set()
    threading.Event().wait()

async def main():
    bridge = WsgiBackend(app, Settings(), multiprocess=False)
    task = asyncio.create_task(bridge(http_scope(), None, None))
    await asyncio.to_thread(inside.wait)

asyncio.run(main())
"""
    assert 0 == subprocess.run([sys.executable, "-c", program], timeout=100, check=False).returncode


# --- the end


async def test_a_drain_lets_finish_what_runs(gate: Gate) -> None:
    bridge = native(gate, threads=1)
    running, waiting, late = Client(), Client(), Client()
    tasks = [start(bridge, running), start(bridge, waiting)]
    await until(lambda: gate.inside)
    drain = asyncio.create_task(bridge.drain(60))
    await asyncio.sleep(0.03)
    await late.ask(bridge)
    assert 503 == late.status
    assert not drain.done()
    gate.open.set()
    await asyncio.gather(drain, *tasks)
    assert [200, 200] == [running.status, waiting.status]


async def test_a_drain_waits_for_slow_readers() -> None:
    app, client = Producer(100), Client()
    bridge = native(app)
    client.reads.clear()
    task = start(bridge, client)
    await until(app.ended.is_set)
    drain = asyncio.create_task(bridge.drain(60))
    await asyncio.sleep(0.05)
    assert not drain.done()
    client.reads.set()
    await asyncio.gather(drain, task)
    assert client.complete


async def test_a_drain_ends_streams_and_closes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi, "CLOSE_S", 60)
    closed: list[int] = []
    bridge, client = native(endless(closed)), Client()
    task = start(bridge, client)
    await until(lambda: client.chunks)
    await bridge.drain(0.1)
    assert 1 == len(closed)
    assert 0 == bridge.stats.busy
    await task
    assert not client.complete


async def test_a_drain_does_not_wait_for_ever(gate: Gate) -> None:
    bridge = native(gate, threads=1)
    running, waiting = Client(), Client()
    tasks = [start(bridge, running), start(bridge, waiting)]
    await until(lambda: gate.inside)
    begun = time.monotonic()
    await bridge.drain(0.1)
    assert time.monotonic() - begun < 30
    await asyncio.gather(*tasks)
    assert ([], 503) == (running.sent, waiting.status)


async def test_an_idle_bridge_drains_at_once() -> None:
    bridge = native(answering([b"x"]))
    await ask(bridge)
    await asyncio.wait_for(bridge.drain(60), 30)


# --- websockets


class Socket(Client):
    def __init__(self) -> None:
        super().__init__({"type": "websocket.connect"})

    async def knock(self, bridge: Any, target: str, extensions: Any) -> None:
        headers = [("connection", "Upgrade"), ("upgrade", "websocket")]
        scope = http_scope("GET", target, headers, type="websocket", scheme="ws", extensions=extensions)
        del scope["method"]
        await bridge(scope, self.receive, self.send)


@pytest.mark.parametrize(("target", "status"), [("/known", 400), ("/unknown", 404)])
async def test_a_websocket_gets_what_flask_says_to_an_upgrade(target: str, status: int) -> None:
    app = Flask("legacy")
    app.get("/known")(lambda: "hello")
    socket = Socket()
    await socket.knock(native(app), target, {"websocket.http.response": {}})
    assert ["websocket.http.response.start", "websocket.http.response.body"] == [m["type"] for m in socket.sent]
    assert status == socket.status
    assert b"<!doctype html>" in socket.body


async def test_a_websocket_that_cannot_be_answered_is_closed(build: Build) -> None:
    for extensions in ({}, None):
        socket = Socket()
        await socket.knock(build(answering([b"x"])), "/", extensions)
        assert [{"type": "websocket.close", "code": 1000}] == socket.sent
