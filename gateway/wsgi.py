"""WSGI inside ASGI: the application cannot tell, and its clients cannot tell, that this is not gunicorn's gthread.

A request is received on the loop, run in a thread and sent on the loop. An ordinary response crosses from the thread
to the loop once, whole; one that takes its time is passed on chunk by chunk through a spool.

What the wire needs is the protocol's: the Date, how a body of unknown length ends, deadlines for slow clients.
"""

import asyncio
import io
import logging
import os
import re
from collections.abc import Callable, Iterable
from contextvars import copy_context
from math import ceil, inf
from typing import Any, BinaryIO, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import is_hop_by_hop

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.exceptions import RequestEntityTooLarge

from .environ import Environs, FileWrapper
from .pool import Pool, Stats
from .settings import Settings
from .spool import MIB, BodyTruncated, Spool, Store, Upload

CACHED_NAMES = 1024  # applications may make up header names, too
JOIN_BYTES = 65_536  # chunks that wait already are sent together as far as this
AHEAD_BYTES = 2 * MIB  # of one streamed response in memory; what a slow reader leaves goes to disk
SLOW_READER_S = 0.25  # with so much unread for so long, a reader is slow
CLOSE_S = 2.0  # for generators to notice that they have been abandoned

log = logging.getLogger(__name__)


class _Statuses(dict[str, int]):
    """Status codes of status lines."""

    _line = re.compile(r"[1-5][0-9]{2}(?: [ \t\x21-\x7e\x80-\xff]*)?")

    def __missing__(self, line: str) -> int:
        if not self._line.fullmatch(line):
            raise ValueError(f"{line!r} is not a status line")
        code = int(line[:3])
        if len(self) < CACHED_NAMES:
            self[line] = code
        return code


class _Names(dict[str, bytes]):
    """Names in ASGI of response headers; empty for those that concern one hop only and are not the application's."""

    _token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

    def __missing__(self, name: str) -> bytes:
        if not self._token.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        lower = name.lower()
        key = b"" if is_hop_by_hop(lower) else lower.encode()
        if len(self) < CACHED_NAMES:
            self[name] = key
        return key


_statuses, _names = _Statuses(), _Names()
_value = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
_BODILESS = frozenset([*range(100, 200), 204, 304])


class Head:
    """Status and headers of the response to a method, checked. Raises ValueError for what must not go on the wire.

    `body_bytes` is how long the body may be; None when only its end will tell.
    """

    __slots__ = ("body_bytes", "headers", "status")

    def __init__(self, status: str, headers: Iterable[tuple[str, str]], method: str) -> None:
        self.status = _statuses[status]
        self.headers: list[tuple[bytes, bytes]] = []
        self.body_bytes: int | None = None
        for name, value in headers:
            if not value.isprintable() and not _value.fullmatch(value):
                raise ValueError(f"the value of header {name!r} has characters that do not belong there")
            key = _names[name]
            field = value.encode("latin-1").strip()
            if key and (key != b"content-length" or self._set_length(field)):
                self.headers.append((key, field))
        if method == "HEAD" or self.status in _BODILESS:
            self.body_bytes = 0

    def _set_length(self, field: bytes) -> bool:
        """Whether the header is to be sent."""
        known, self.body_bytes = self.body_bytes, int(field) if field.isdigit() else -1
        if self.body_bytes < 0 or (known is not None and known != self.body_bytes):
            raise ValueError(f"{field!r} is not the length of the body")
        return known is None and self.status >= 200 and self.status != 204


def _page(reason: str) -> bytes:
    """What gunicorn says when the application cannot."""
    return f"""\
<html>
  <head>
    <title>{reason}</title>
  </head>
  <body>
    <h1><p>{reason}</p></h1>
    \n  </body>
</html>
""".encode()


_FAILED = _page("Internal Server Error")
_TOO_LARGE = _page("Request Entity Too Large")
_BUSY = b"Service Unavailable\n"


def _check_size(count: int, most_bytes: int) -> None:
    if 0 < most_bytes < count:
        raise RequestEntityTooLarge


class ClientGone(ConnectionError):
    """Raised at a chunk that nobody waits for any more. Only code that calls `write` gets to see it."""


class Exchange:
    """One request and its response: `run` in a thread, `respond` on the loop.

    The thread hands over a whole body, or a spool that it goes on filling, then wakes the future; `_done` is the last
    that it says. From its side the loop says `_gone`, and that there is room again.
    """

    queued_at = inf
    _upload: Upload | None = None
    _watcher: asyncio.Task[None] | None = None
    _woken: asyncio.Future[None] | None = None
    _head: Head | None = None
    _left: int | None = None  # bytes that may still be sent; None: any number
    _body: bytes | None = None
    _spool: Spool | None = None
    _error: BaseException | None = None
    _begun = False  # the client may have seen the status already
    _done = False
    _gone = False

    def __init__(self, backend: "WsgiBackend", environ: WSGIEnvironment, receive: Receive) -> None:
        self._backend, self._environ, self._receive = backend, environ, receive
        self._method: str = environ["REQUEST_METHOD"]  # middleware is free to change the one in the environ
        self._context = copy_context()
        self._mailbox = backend.pool.mailbox()
        self._future: asyncio.Future[None] = self._mailbox.loop.create_future()  # where the loop waits for the thread

    # --- In the thread

    def run(self) -> None:
        self._context.run(self._run)

    def _run(self) -> None:
        chunks: Any = None
        try:
            chunks = self._backend.app(self._environ, self.start_response)
            self._pass_on(chunks)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: a request fails, not the worker
            self._fail(error)
        try:
            if hasattr(chunks, "close"):
                chunks.close()
        except BaseException:
            log.exception("Error closing the response to %s %s", self._method, self._environ.get("RAW_URI"))
        if self._upload is not None:
            self._upload.release()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Note the head; it is not sent before the first byte of the body. Raises ValueError when it is no head."""
        if exc_info is not None:
            try:
                if self._begun:
                    self._error = exc_info[1]
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._head is not None:
            raise AssertionError("start_response was called before")
        self._head = Head(status, headers, self._method)
        return self._emit

    def _pass_on(self, chunks: Any) -> None:
        kind = type(chunks)
        if kind is list or kind is tuple:
            self._emit(b"".join(chunks), whole=True)
        elif kind is not FileWrapper or not self._pass_on_file(chunks):
            for chunk in chunks:
                if not self._emit(chunk):
                    break
        if not self._done:
            self._finish()

    def _emit(self, chunk: bytes, *, whole: bool = False) -> bool:
        """Hand a chunk to the loop. False when the client has got all that it may get."""
        if not isinstance(chunk, bytes):
            raise TypeError(f"the body has {type(chunk).__name__} in it, not bytes")
        if self._gone:  # an empty chunk is a chance to notice, too
            raise ClientGone
        if not chunk:
            return True
        if self._done:
            return False
        if not self._begun:
            self._begin()
        elif self._error is not None:
            raise self._error
        left = self._left
        if left is None and whole:
            left = len(chunk)
        if left is not None:
            if len(chunk) >= left:
                self._end(chunk[:left])
                return len(chunk) == left
            self._left = left - len(chunk)
        self._put(chunk)
        self._wake()
        return True

    def _begin(self) -> None:
        if self._head is None:
            raise AssertionError("the application did not call start_response")
        self._left = self._head.body_bytes

    def _finish(self) -> None:
        """The application has no more to say."""
        if not self._begun:
            self._begin()
        elif self._error is not None:
            raise self._error
        if self._left:
            raise RuntimeError(f"the body ends {self._left} bytes before its content-length")
        self._end(b"")

    def _end(self, last: bytes) -> None:
        if self._spool is None:
            self._body = last
            self._begun = True
        elif last:
            self._put(last)
        self._done = True
        self._wake()

    def _wake(self) -> None:
        future = self._future
        if future is not self._woken:
            self._woken = future
            self._mailbox.wake(future)

    def _fail(self, error: BaseException) -> None:
        if self._begun and not (self._done or self._gone):
            self._error = error
        elif not isinstance(error, ClientGone):
            log.error("Error handling request %s %s", self._method, self._environ.get("RAW_URI"), exc_info=error)
        if not self._begun:
            self._say("500 Internal Server Error", "text/html", _FAILED)
        self._done = True
        self._wake()

    def _say(self, status: str, kind: str, body: bytes, *more: tuple[str, str]) -> None:
        """The gateway's own words, where the application has none."""
        self._head = Head(status, [("content-type", kind), ("content-length", str(len(body))), *more], self._method)
        self._body = body[: self._head.body_bytes]
        self._begun = True

    def _put(self, chunk: bytes) -> None:
        """Into the spool. Waits while the client is too far behind."""
        spool = self._spool or self._open_spool()
        while not spool.keep(chunk):
            if not spool.spilled and spool.wait_until_empty(SLOW_READER_S):
                pass
            elif self._spill(spool, chunk):
                break
            else:
                spool.wait_until_empty()
            if self._gone:
                raise ClientGone

    def _open_spool(self) -> Spool:
        settings = self._backend.settings
        ahead = settings.window_bytes + min(AHEAD_BYTES, settings.spool_response_bytes)
        spool = self._spool = Spool(self._backend.store, settings.window_bytes, ahead)
        self._begun = True
        return spool

    def _spill(self, spool: Spool, chunk: bytes) -> bool:
        if spool.file_bytes >= self._backend.settings.spool_response_bytes:
            return False
        try:
            spool.write(chunk)
        except OSError as error:
            log.warning("A slow reader holds a thread, for its response cannot be spooled: %s", error)
            return False
        return True

    def _pass_on_file(self, wrapper: FileWrapper) -> bool:
        """A plain file is read by the loop as fast as the client takes it: no thread waits for slow downloads."""
        place = wrapper.on_disk()
        if place is None or self._begun:
            return False
        fd, start, end = place
        self._begin()
        left = self._left
        if left is not None:
            end = min(end, start + left)
        if end - start <= self._backend.settings.window_bytes:
            self._emit(os.pread(fd, max(0, end - start), start))
            return True
        try:
            fd = os.dup(fd)
        except OSError:
            return False
        self._left = None if left is None else left - (end - start)
        spool = self._open_spool()
        spool.adopt(fd, start, end)
        return True

    # --- On the loop

    async def receive_body(self, *, streamed: bool) -> bool:
        """Set `wsgi.input`. False when there is no reason left to run the application."""
        environ, most_bytes = self._environ, self._backend.settings.max_body_bytes
        length = environ.get("CONTENT_LENGTH", "0")
        if length == "0" and "HTTP_TRANSFER_ENCODING" not in environ:
            environ["wsgi.input"] = io.BytesIO()  # without asking: HTTP/1 has no other way to announce a body
            return True
        try:
            if length.isdecimal():
                _check_size(int(length), most_bytes)
            environ["wsgi.input"] = await self._receive_body(most_bytes, streamed=streamed)
        except RequestEntityTooLarge:
            self._answer("413 Request Entity Too Large", "text/html", _TOO_LARGE)
        except BodyTruncated:
            self.abandon()
        return not self._future.done()

    async def _receive_body(self, most_bytes: int, *, streamed: bool) -> BinaryIO:
        message: Message = {} if streamed else await self._receive()
        if message.get("type") == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            _check_size(len(body), most_bytes)
            return io.BytesIO(body)
        window_bytes = self._backend.settings.window_bytes
        upload = Upload(
            self._receive, self._backend.store, self._mailbox.wake, max_bytes=most_bytes, window_bytes=window_bytes
        )
        file = upload.stream() if streamed else await upload.receive_all(message)
        self._upload = upload
        return file

    async def respond(self, send: Send) -> None:
        """Wait for the thread and send what it hands over. Raises what the application raised in mid-response."""
        if self._upload is not None and not (self._upload.complete or self._done):
            self.watch()
        try:
            await self._future
            head, body = self._head, self._body
            if head is None or not self._begun:
                return
            await send({"type": "http.response.start", "status": head.status, "headers": head.headers})
            if body is not None:
                await send({"type": "http.response.body", "body": body})
            elif self._spool is not None:
                await self._stream(send, self._spool)
        finally:
            if not self._done:
                self.abandon()
            if self._watcher is not None:
                self._watcher.cancel()
                self._watcher = None  # it keeps its frame, which holds this: without a circle files are closed at once

    async def _stream(self, send: Send, spool: Spool) -> None:
        if not self._done or spool.size > JOIN_BYTES:
            self.watch()
        last = False
        while not last and await self._can_go_on(spool):
            chunk = await self._backend.store.read(spool, JOIN_BYTES)
            last = self._done and self._error is None and not spool.size
            await send({"type": "http.response.body", "body": chunk, "more_body": not last})
        if self._error is not None:
            error, self._error = self._error, None
            raise error if isinstance(error, Exception) else RuntimeError(repr(error)) from error

    async def _can_go_on(self, spool: Spool) -> bool:
        """Wait for bytes, or for the proper end of the body."""
        while not (spool.size or self._gone):
            future = self._future = self._mailbox.loop.create_future()  # before looking: what comes later wakes it
            if self._done:
                return bool(spool.size) or self._error is None
            if not spool.size:
                await future
        return not self._gone

    def watch(self) -> None:
        """Notice when the client leaves. Ordinary responses do without."""
        if self._watcher is None:
            self._watcher = self._mailbox.loop.create_task(self._watch())

    async def _watch(self) -> None:
        if self._upload is None or await self._upload.pump():
            while not (await self._receive())["type"].endswith(".disconnect"):
                pass
        self.abandon()

    def abandon(self) -> None:
        """Nobody waits for the response any more. The application learns it at its next chunk, or never starts."""
        self._gone = True
        if self._spool is not None:
            self._spool.abandon()
        if self._upload is not None:
            self._upload.abort()
        if self._backend.pool.withdraw(self):
            self._release_body()
        if not self._future.done():
            self._future.set_result(None)

    def refuse(self) -> None:
        """There is no thread for it."""
        self._release_body()
        wait_s = max(1, ceil(self._backend.settings.queue_wait_s))
        self._answer("503 Service Unavailable", "text/plain", _BUSY, ("retry-after", str(wait_s)))

    def _answer(self, status: str, kind: str, body: bytes, *more: tuple[str, str]) -> None:
        self._say(status, kind, body, *more)
        self._done = True
        self._future.set_result(None)

    def _release_body(self) -> None:
        if self._upload is not None:
            self._upload.release()


class WsgiBackend:
    """An ASGI application that runs a WSGI application in threads."""

    def __init__(self, app: WSGIApplication, settings: Settings, *, multiprocess: bool) -> None:
        self.app, self.settings = app, settings
        self.pool = Pool(settings.threads, settings.queue, settings.queue_wait_s)
        self.store = Store(settings.spool_memory_bytes)
        self._environs = Environs(multiprocess=multiprocess)
        self._streamed = frozenset(settings.stream_request)
        self._exchanges: set[Exchange] = set()
        self._draining = False

    @property
    def stats(self) -> Stats:
        return self.pool.stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises what the application raised after it had begun to answer: the server must abort."""
        if scope["type"] == "websocket":
            await self._answer_websocket(scope, receive, send)
            return
        environ = self._environs.build(scope)
        exchange = Exchange(self, environ, receive)
        self._exchanges.add(exchange)
        try:
            streamed = scope.get("gateway.key") in self._streamed
            if self._draining or (await exchange.receive_body(streamed=streamed) and not self.pool.submit(exchange)):
                exchange.refuse()
            await exchange.respond(send)
        finally:
            self._exchanges.discard(exchange)

    async def _answer_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With what the application says to the request as plain HTTP, for it knows no websockets."""
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1000})
            return

        async def respond(message: Message) -> None:
            await send({**message, "type": "websocket." + message["type"]})

        await receive()  # websocket.connect
        scheme = {"wss": "https"}.get(scope["scheme"], "http")
        await self({**scope, "type": "http", "method": "GET", "scheme": scheme}, receive, respond)

    async def drain(self, timeout_s: float) -> None:
        """Refuse what comes, let finish what runs; after `timeout_s` abandon what still runs."""
        self._draining = True
        if await self._settle(timeout_s):
            return
        for exchange in tuple(self._exchanges):
            if self.pool.withdraw(exchange):
                exchange.refuse()
            else:
                exchange.abandon()
        await self._settle(CLOSE_S)

    async def _settle(self, timeout_s: float) -> bool:
        """Wait until nothing runs any more. False when that takes too long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self._exchanges or self.pool.unfinished:
            if loop.time() >= end:
                return False
            await asyncio.sleep(0.02)
        return True


def a2wsgi_backend(app: WSGIApplication, settings: Settings, *, multiprocess: bool) -> ASGIApp:
    """The same application behind the ecosystem's own bridge, with the faults that `tests/unit/test_wsgi.py` lists."""
    from a2wsgi import WSGIMiddleware

    def truthful(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.multiprocess"] = multiprocess
        return app(environ, start_response)

    return cast(ASGIApp, WSGIMiddleware(cast(Any, truthful), workers=settings.threads))
