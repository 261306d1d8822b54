"""Several clients that ask until told to stop, and remember every answer."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from .serving import Server


@dataclass(frozen=True)
class Asked:
    """One request: when (monotonic seconds), what came back, or why nothing did."""

    began: float
    ended: float
    status: int
    answer: dict[str, object]
    error: str = ""


@dataclass
class Load:
    requests: list[Asked] = field(default_factory=list)

    @property
    def failures(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.error or asked.status != 200]


@contextmanager
def load(server: Server, path: str, *, clients: int = 4, keep_alive: bool = True) -> Iterator[Load]:
    """Ask for `path` with `clients` threads while the block runs; without `keep_alive` each request connects anew."""
    result, stop = Load(), threading.Event()

    def ask(client: httpx.Client) -> None:
        began = time.monotonic()
        try:
            response = client.get(path)
            status, answer, error = response.status_code, response.json(), ""
        except (httpx.HTTPError, ValueError) as failure:
            status, answer, error = 0, {}, repr(failure)
        result.requests.append(Asked(began, time.monotonic(), status, answer, error))

    def run() -> None:
        limits = httpx.Limits(max_keepalive_connections=None if keep_alive else 0)
        with server.client(limits=limits) as client:
            while not stop.is_set():
                ask(client)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()
