"""Bytes to a server and back, and the two small applications that say what arrived."""

import json
import logging
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any
from urllib.parse import unquote_to_bytes

import flask

from gateway.server import Server, _config
from gateway.settings import Settings


@dataclass(frozen=True)
class Answer:
    version: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: str) -> str | None:
        return next(iter(self.get_all(name)), None)

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One client connection. EOFError when the server closes where an answer was due."""

    def __init__(self, port: int, data: bytes = b"", *, timeout_s: float = 30.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.buffer = b""
        self.send(data)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def end(self) -> None:
        """Say that nothing more will be sent; keep listening."""
        self.sock.shutdown(socket.SHUT_WR)

    def get(self, path: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> Answer:
        """A whole request and its answer on this connection."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + body)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        version, status, headers = self._head()
        answer = Answer(version, status, headers, b"")
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif answer.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        elif (length := answer.get("content-length")) is not None:
            body = self.take(int(length))
        else:
            body = self.rest()
        return Answer(version, status, headers, body)

    def _head(self) -> tuple[str, int, list[tuple[str, str]]]:
        line, *fields = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        pairs = [field.partition(": ") for field in fields]
        return version, int(status), [(name, value) for name, _, value in pairs]

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.until(b"\r\n"), 16):
            yield self.take(size)
            assert self.take(2) == b"\r\n"
        assert self.take(2) == b"\r\n"

    def until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            self._more()
        found, _, self.buffer = self.buffer.partition(end)
        return found

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(self.buffer)
        self.buffer += data

    def readable(self, timeout_s: float) -> bool:
        return bool(select.select([self.sock], [], [], timeout_s)[0])

    def rest(self) -> bytes:
        """Everything until the server closes."""
        while data := self.sock.recv(65536):
            self.buffer += data
        rest, self.buffer = self.buffer, b""
        return rest

    def closed(self) -> bool:
        """Wait for the end; whether nothing more came before it."""
        try:
            return self.rest() == b""
        except ConnectionResetError:
            return True


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """What arrived, in the words of CGI."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    fields: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode().upper().replace("-", "_"), value.decode("latin-1")
        fields[key] = f"{fields[key]},{text}" if key in fields else text
    said = {
        "method": scope["method"],
        "path": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "protocol": f"HTTP/{scope['http_version']}",
        "headers": fields,
        "body": body.decode("latin-1"),
    }
    text = json.dumps(said).encode()
    await reply(send, text, (b"content-length", b"%d" % len(text)))


async def reply(send: Any, body: bytes = b"", *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


def flask_echo() -> flask.Flask:
    """The same as `echo`, for gunicorn."""
    app = flask.Flask(__name__)

    @app.before_request
    def say() -> dict[str, Any]:
        environ = flask.request.environ
        body = flask.request.get_data()
        fields = {key[5:]: value for key, value in environ.items() if key.startswith("HTTP_")}
        fields |= {key: environ[key] for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if key in environ}
        return {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "protocol": environ["SERVER_PROTOCOL"],
            "headers": fields,
            "body": body.decode("latin-1"),
        }

    return app


@contextmanager
def listening(app: Any, *, loop: str = "uvloop", **settings: Any) -> Iterator[int]:
    """A real server around an ASGI application, in a thread; the port."""
    with _logs_as_before(), socket.create_server(("127.0.0.1", 0)) as listener:
        config = _config(Settings(**settings), lambda: app)
        config.loop = loop
        server = Server(config)
        port = listener.getsockname()[1]
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _logs_as_before() -> Iterator[None]:
    """What a server is told to log holds for its process, and for the tests that come after it there."""
    loggers = [logging.getLogger(name) for name in ("gateway", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
