"""HTTP/1 as gunicorn's gthread worker speaks it: the limits, deadlines and framings that no ASGI application can reach.

uvicorn's httptools protocol parses and starts tasks; `GatewayProtocol` judges requests, `Cycle` frames answers.
Where a request is ambiguous it is refused or read as gunicorn reads it: `tests/e2e/test_protocol.py` holds the table.
"""

import asyncio
import fcntl
import re
import socket
import struct
import termios
from contextvars import Context
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from typing_extensions import override
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from .settings import Settings

LOOK_S = 0.25  # between two looks at the deadlines of all connections
LINGER_S = 5.0  # for a client that still sends when it already has its answer
RETIRE_S = 0.5  # kept-alive connections stay open so long on shutdown, for a request that is on its way
GONE_S = 0.4  # without one byte written to a stream, after which a client that closed its side counts as gone
GOODBYE_S = 3.0  # for the client of a websocket that has ended to take what is left
WEBSOCKET_LINE = 8000  # bytes in one header of a handshake; the websockets library says nothing above 8192

# What the client is sending.
IDLE, HEAD, BODY, DEAF = "nothing", "a head", "a body", "no matter what"

# Fields whose repetition is ambiguous. llhttp refuses a second Content-Length itself.
_SINGLE = (b"host", b"content-length", b"content-type", b"authorization", b"transfer-encoding", b"expect")
_FRAMING = (b"content-length", b"transfer-encoding")
_NO_TRAILER = (b"host", b"content-length", b"transfer-encoding", b"trailer", b"authorization", b"te")
_UNDERSCORE = ord("_")  # as a number: `b"_" in name` costs as much as the rest of a header
_METHOD = re.compile(rb"[A-Z][A-Z-]{2,19} ")


class Config(uvicorn.Config):
    """uvicorn's configuration, with ours beside it."""

    def __init__(self, settings: Settings, app: Any, **options: Any) -> None:
        super().__init__(app, http=GatewayProtocol, ws=SocketProtocol, **options)
        self.settings = settings
        self.watched = False  # whether this process looks at its connections already


class Refused(Exception):
    """A request that is answered here: status and one line for a person."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    disconnected = False
    more_body = True
    news = False  # for receive(): bytes, their end, or the end of everything
    bell: asyncio.Event | None = None  # for receive() to wait for news; most requests are complete before they start
    awaits_body = False  # the application stands in receive()
    response_started = False
    response_complete = False
    chunked_encoding = None
    without_body = False  # an answer that has none, whatever the application sends
    until_close = False  # the end of the connection is the end of the answer
    expected_content_length = 0
    wrote = False  # since the client closed its side

    def __init__(self, protocol: "GatewayProtocol", scope: HTTPScope, *, keep_alive: bool, expects: bool) -> None:
        # Instead of uvicorn's, which takes and sets three times as much for every request.
        self.protocol = protocol
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects
        self.body = bytearray()

    def disconnect(self) -> None:
        """Tell the application that its client is gone."""
        self.disconnected = True
        self.ring()

    def ring(self) -> None:
        self.news = True
        if self.bell is not None:
            self.bell.set()

    @override
    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # the drain is over
            self.protocol.reset()
        except BaseException:  # sys.exit() in a view must not stop the server
            self.protocol.logger.exception("Exception in ASGI application")
            await self._fail()
        else:
            if not self.response_complete and not self.disconnected:
                self.protocol.logger.error("ASGI callable returned without completing response.")
                await self._fail()

    async def _fail(self) -> None:
        if not self.response_started:
            await self.send_500_response()
        elif self.response_complete:  # the failure came after the answer
            return
        elif self.until_close:
            self.protocol.reset()
        else:
            self.transport.close()

    @override
    async def receive(self) -> ASGIReceiveEvent:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            if not self.news:
                await self._wait_for_news()
            self.news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def _wait_for_news(self) -> None:
        self.bell = self.bell or asyncio.Event()
        self.bell.clear()
        self.awaits_body = True
        try:
            await self.bell.wait()
        finally:
            self.awaits_body = False

    @override
    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.wrote = True
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self.transport.write(self._head(message["status"], message.get("headers", ())))
            self.response_started = True
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}.")

    def _head(self, status: int, headers: Any) -> bytes:
        """The head of the answer; decides how its body is framed."""
        old = self.scope["http_version"] == "1.0"
        lines = [b"HTTP/1.0" + STATUS_LINE[status][8:] if old else STATUS_LINE[status]]
        dated = False
        headers = [(name.lower(), value) for name, value in headers]
        names = [name for name, _ in headers]
        if HEADER_RE.search(b"".join(names)) or HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            raise RuntimeError(f"Invalid header, one of {names}.")  # values may be secret
        for name, value in headers:
            if name == b"content-length":
                if status < 200 or status == 204 or self.chunked_encoding is not None:
                    continue
                self._expect_length(value)
            elif name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue
            elif name == b"date":
                dated = True
            lines += (name, b": ", value, b"\r\n")
        if not dated:
            for name, value in self.protocol.server_state.default_headers:
                lines += (name, b": ", value, b"\r\n")
        lines.append(self._framing(status, old=old))
        return b"".join(lines)

    def _expect_length(self, value: bytes) -> None:
        if not value.isdigit():
            raise RuntimeError(f"Invalid Content-Length {value!r}.")
        self.chunked_encoding = False
        self.expected_content_length = int(value)

    def _framing(self, status: int, *, old: bool) -> bytes:
        """Choose how the body ends; the last lines of the head."""
        if self.scope["method"] == "HEAD" or status < 200 or status in (204, 304):
            self.without_body = True
            self.expected_content_length = 0
        elif self.chunked_encoding is None:
            self.chunked_encoding = not old
            self.until_close = old
        if self.until_close or (self.waiting_for_100_continue and self.more_body):
            self.keep_alive = False  # a client that waited for 100 may or may not send its body now
        lines = b"transfer-encoding: chunked\r\n" if self.chunked_encoding and not self.without_body else b""
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        elif old:
            lines += b"connection: keep-alive\r\n"
        return lines + b"\r\n"

    def _send_body(self, body: bytes, more: bool) -> None:
        if self.without_body:
            pass
        elif self.chunked_encoding:
            self._send_chunk(body, more)
        elif body:
            if not self.until_close:
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
            self.transport.write(body)
        if not more:
            if self.expected_content_length:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.ring()
            self.protocol.on_response_complete()

    def _send_chunk(self, body: bytes, more: bool) -> None:
        end = b"\r\n" if more else b"\r\n0\r\n\r\n"
        if body:
            self.transport.writelines((b"%x\r\n" % len(body), body, end))
        elif not more:
            self.transport.write(b"0\r\n\r\n")


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    config: Config
    cycle: Cycle  # the request that is being read, or was read last

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.settings = config.settings
        self.active: Cycle | None = None  # the request that is being answered; later ones wait in `pipeline`
        self.reading = IDLE
        self.unparsed = 0  # bytes since the last that meant something: heads, trailers and chunk sizes are limited
        self.since = 0.0  # when the deadlines began to run; 0.0: nobody has looked yet
        self.unsent = 0  # bytes that the client had not taken at the last look
        self.half_closed = False
        self.retiring = False
        self.upgrading: str | None = None  # between a head that llhttp takes for an upgrade and what is made of it

    # --- what uvicorn, asyncio and llhttp call ---

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.config.watched:
            self.config.watched = True
            self.loop.call_later(LOOK_S, _look, self.loop, self.connections, LOOK_S)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if self.active is not None:
            self.active.disconnect()
        self.pipeline.clear()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    @override
    def eof_received(self) -> bool:  # type: ignore[override]
        """The client will send no more, yet may wait for its answer: True keeps the connection open."""
        self.half_closed = True
        if self.reading is BODY and not self.cycle.response_complete:
            self._refuse(400, "the body ends early")
        elif self.active is not None:
            self.active.wrote = False
            self.cycle.keep_alive = False
            self.reading = DEAF
        return self.active is not None

    @override
    def data_received(self, data: bytes) -> None:
        if self.reading is DEAF:
            return
        self.unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as pause:
            self._upgrade(data[pause.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(*_verdict(error, data if self.unparsed == len(data) else b""))
        else:
            if self.unparsed > self.settings.max_header_bytes and self.reading is not IDLE:
                self._refuse(431, "the head is too large")

    @override
    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.reading = HEAD
        self.since = 0.0

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self.reading is not HEAD:  # a trailer: gunicorn hides it from the application, too
            if name in _NO_TRAILER:
                raise Refused(400, f"{name.decode()} in a trailer")
        # X_User and X-User are one variable to WSGI: a proxy that cleans one of them must not be fooled by the other.
        elif _UNDERSCORE not in name:
            self.headers.append((name, value.rstrip(b" \t")))

    @override
    def on_headers_complete(self) -> None:
        if self.upgrading is not None:  # the head made up by _upgrade: what it stands for has been judged
            self.upgrading = None
            self.reading = BODY
            return
        version, method = self.parser.get_http_version(), self.parser.get_method().decode()
        fields = dict(self.headers)
        self._check(version, method, fields)
        raw_path, query = _split(self.url, method)
        path = raw_path.decode("ascii")
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "method": method,
            "scheme": cast("str", self.scheme),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
            "gateway.unsent": self.undelivered,  # type: ignore[typeddict-unknown-key]
        }
        if self.parser.should_upgrade():
            self.upgrading = "websocket" if self._is_websocket(version, method, fields) else "ignored"
            if self.upgrading == "websocket":
                if max(len(line) for line in (self.url, *fields.values())) > WEBSOCKET_LINE:
                    raise Refused(431, "a line is too long for a websocket")
                return
        self.cycle = Cycle(
            self,
            self.scope,
            keep_alive=self.parser.should_keep_alive() and not self.retiring,
            expects=b"expect" in fields and version == "1.1",
        )
        self.reading = BODY
        self.since = 0.0
        self.unparsed = 0
        self._answer(self.cycle, self.app)

    @override
    def on_body(self, body: bytes) -> None:
        self.unparsed = 0
        self.since = 0.0
        cycle = self.cycle
        if cycle.response_complete or cycle.disconnected:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.ring()

    @override
    def on_message_complete(self) -> None:
        if self.upgrading is not None:
            return
        self.reading = IDLE
        self.since = 0.0
        self.cycle.more_body = False
        self.cycle.ring()

    @override
    def on_response_complete(self) -> None:
        cycle, self.active = self.active, None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.since = 0.0
        if cycle is None or not cycle.keep_alive:
            self._leave()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start(*cast("tuple[Cycle, ASGI3Application]", self.pipeline.pop()))

    @override
    def shutdown(self) -> None:
        """Answer what has been asked, then close."""
        self.retiring = True
        self.since = 0.0
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # --- judging ---

    def _check(self, version: str, method: str, fields: dict[bytes, bytes]) -> None:
        """Raise Refused for a head that gunicorn refuses, or whose meaning another server might see differently."""
        self._check_size()
        if version not in ("1.1", "1.0"):
            raise Refused(505, "only HTTP/1.0 and HTTP/1.1")
        if method == "CONNECT":
            raise Refused(501, "not a proxy")
        if len(fields) != len(self.headers):
            names = [name for name, _ in self.headers]
            if repeated := next((name for name in _SINGLE if names.count(name) > 1), None):
                raise Refused(400, f"repeated {repeated.decode()}")
        if b"transfer-encoding" in fields:
            if version == "1.0":
                raise Refused(400, "transfer-encoding in HTTP/1.0")
            if fields[b"transfer-encoding"].lower() != b"chunked":
                raise Refused(501, "the only transfer-encoding is chunked")
        if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
            raise Refused(417, "the only expectation is 100-continue")

    def _check_size(self) -> None:
        if len(self.headers) > self.settings.max_headers:
            raise Refused(431, f"more than {self.settings.max_headers} headers")
        limit = self.settings.max_header_bytes
        if self.unparsed > limit:  # an upper bound: the chunk may hold more than this head
            if len(self.url) > limit:
                raise Refused(414, "the target is too long")
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit:
                raise Refused(431, "the head is too large")

    def _is_websocket(self, version: str, method: str, fields: dict[bytes, bytes]) -> bool:
        """Whether to hand the connection over. Other wishes to upgrade are ordinary requests, as under gunicorn."""
        return (
            fields.get(b"upgrade", b"").lower() == b"websocket"
            and b"sec-websocket-key" in fields
            and (version, method) == ("1.1", "GET")
            and not any(name in fields for name in _FRAMING)
            and self.active is None
        )

    def _upgrade(self, rest: bytes) -> None:
        """llhttp stops after the head of an upgrade. Go on as a websocket, or as if no upgrade had been asked for."""
        if self.upgrading == "websocket":
            Context().run(self.handle_websocket_upgrade)
            return
        framing = [b"%b: %b\r\n" % field for field in self.scope["headers"] if field[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing))
        self.parser.feed_data(b"\r\n")
        self.data_received(rest)

    # --- answering ---

    def _answer(self, cycle: Cycle, app: ASGI3Application) -> None:
        """Start the task of a request, or let it wait for those before it."""
        if self.active is None:
            self._start(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def _start(self, cycle: Cycle, app: ASGI3Application) -> None:
        self.active = cycle
        self._start_asgi_task(cycle, app)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what the client sends with an error, after the requests before it, and hear no more."""
        self.logger.info("%s: %d %s", self.client[0] if self.client else "-", status, reason)
        broken = self.cycle if self.reading is BODY else None
        self.reading = DEAF
        self.since = 0.0
        if broken is not None:
            if broken.response_complete:
                self._leave()
                return
            if broken is not self.active:
                self.pipeline.popleft()
            elif broken.response_started:
                broken.disconnect()
                self.reset()
                return
            else:
                broken.disconnect()
                self.active = None
        scope = cast("HTTPScope", {"type": "http", "method": "GET", "http_version": "1.1"})
        self.cycle = Cycle(self, scope, keep_alive=False, expects=False)
        self._answer(self.cycle, _refusal(status, reason))

    def reset(self) -> None:
        """Break the connection. An orderly end would make the half of an answer look whole."""
        if not self.transport.is_closing():
            at_once = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self.transport.abort()

    def _leave(self) -> None:
        """Close; a client that still sends gets the time to read its answer, which a reset would destroy."""
        self.pipeline.clear()
        if (
            self.half_closed
            or (self.reading is IDLE and not self.flow.read_paused)
            or not self.transport.can_write_eof()
        ):
            self.transport.close()
            return
        self.reading = DEAF
        self.flow.resume_reading()
        self.transport.write_eof()

    # --- deadlines ---

    def look(self, now: float) -> None:
        """Let a deadline begin or end. Stamped here, so that requests between two looks cost nothing."""
        if self.half_closed and self._is_gone():
            self.transport.abort()
            return
        unsent = self._unsent()
        limit = self.settings.send_timeout_s if unsent else self._patience()
        if limit is None:
            self.since = 0.0
        elif not self.since or unsent != self.unsent:
            self.since = now
        elif now - self.since >= limit:
            self._expire()
        self.unsent = unsent

    def undelivered(self) -> int:
        """Bytes of answers that the client has not taken yet; -1 when it is gone."""
        if self not in self.connections:
            return -1
        size = self.transport.get_write_buffer_size()
        return size if self.transport.is_closing() else size + self._queued()

    def _unsent(self) -> int:
        """Bytes on their way to a slow reader. The kernel's part shows progress long before the transport's does."""
        size = self.transport.get_write_buffer_size()
        return size + self._queued() if size else 0

    def _queued(self) -> int:
        """The kernel's part."""
        queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(queued, "little")

    def _patience(self) -> float | None:
        """How many seconds the present state may last."""
        if self.half_closed and self.active is not None:
            silent = self.active.response_started and not self.active.wrote
            return GONE_S if silent else None
        if self.reading is DEAF:
            return None if self.active is not None else LINGER_S
        if self.flow.read_paused:
            return None
        if self.reading is HEAD:
            return self.settings.head_timeout_s
        if self.reading is BODY:
            if self.cycle.response_complete:
                return LINGER_S
            return self.settings.body_timeout_s if self.cycle.awaits_body else None
        if self.active is not None:
            return None
        return RETIRE_S if self.retiring else self.settings.keep_alive_s

    def _is_gone(self) -> bool:
        """Whoever closed one side may have closed both. That shows after a write, and nobody else looks."""
        return bool(self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _expire(self) -> None:
        if self.unsent or self.reading is DEAF:
            self.transport.abort()
        elif self.reading is IDLE:
            self.transport.close()
        else:
            self._refuse(408, f"too slow with {self.reading}")


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websockets, which take a handshake that was answered in plain HTTP for one that was forgotten, and wait
    for ever until a client that reads nothing has taken the rest."""

    @override
    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(GOODBYE_S, self.transport.abort)

    @override
    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(GOODBYE_S, self.transport.abort)

    @override
    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True


def _refusal(status: int, reason: str) -> ASGI3Application:
    """The ASGI application behind a request that never reaches the real one."""
    body = f"{HTTPStatus(status).phrase}: {reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def _look(loop: asyncio.AbstractEventLoop, connections: set[Any], now: float) -> None:
    """`now` goes on with the looks: nobody is slow while this process stands still, and reads and writes nothing."""
    loop.call_later(LOOK_S, _look, loop, connections, now + LOOK_S)
    for connection in tuple(connections):
        if isinstance(connection, GatewayProtocol):
            connection.look(now)


def _verdict(error: httptools.HttpParserError, start: bytes) -> tuple[int, str]:
    """Status and reason for a request that begins with `start`, if that is known."""
    if isinstance(error.__context__, Refused):
        return error.__context__.status, error.__context__.reason
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(start):
        return 501, "unknown method"
    return 400, "not HTTP/1.1"


def _split(target: bytes, method: str) -> tuple[bytes, bytes]:
    """Path and query of a request target. Raises Refused for `*` unless the method is OPTIONS."""
    if target[:1] == b"/":
        path, _, query = target.partition(b"#")[0].partition(b"?")
        return path, query
    if target == b"*":
        if method != "OPTIONS":
            raise Refused(400, "* is for OPTIONS")
        return target, b""
    url = httptools.parse_url(target)
    return url.path or b"/", url.query or b""
