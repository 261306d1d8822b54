"""A host on the internet that answers exactly as a test says, badly if need be, and knows who asked."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from unittest.mock import patch

from typing_extensions import override


class Asked(NamedTuple):
    """A call that has arrived. `headers` are found in any case."""

    method: str
    path: str
    headers: Any
    body: bytes


class Say(NamedTuple):
    """An answer; `body` None says that the connection is cut without one."""

    status: int = 200
    body: bytes | None = b"{}"
    headers: Mapping[str, str] = {}


Script = Callable[["Handler"], None]  # writes what it likes


class Host(ThreadingHTTPServer):
    """Says `usual`, after everything in `first` has been said."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.usual: Say | Script = Say()
        self.first: list[Say | Script] = []
        self.calls: list[Asked] = []
        self.connections = self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()  # for scripts that wait

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def next(self) -> Say | Script:
        with self.lock:
            return self.first.pop(0) if self.first else self.usual

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are none of our business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Host

    @override
    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        host, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with host.lock:
            host.calls.append(Asked(self.command, self.path, self.headers, body))
            host.busy += 1
            host.busiest = max(host.busiest, host.busy)
        try:
            answer = host.next()
            if isinstance(answer, Say):
                self.say(answer)
            else:
                self.close_connection = True
                answer(self)
        finally:
            with host.lock:
                host.busy -= 1

    do_POST = do_HEAD = do_PUT = do_GET

    def say(self, answer: Say) -> None:
        if answer.body is None:
            self.close_connection = True
            return
        self.begin(answer.status, {"Content-Length": str(len(answer.body)), **answer.headers})
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def host(address: str = "127.0.0.1") -> Iterator[Host]:
    server = Host(address)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="host")
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def unknown(name: str) -> Iterator[None]:
    """The name is nobody's, and no name server is asked, which may take its time."""
    genuine = socket.getaddrinfo

    def getaddrinfo(asked: Any, *arguments: Any, **options: Any) -> Any:
        if asked in (name, name.encode()):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return genuine(asked, *arguments, **options)

    with patch.object(socket, "getaddrinfo", getaddrinfo):
        yield
