"""Several clients that ask until told to stop, and remember every answer."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from .serving import Server


@dataclass(frozen=True)
class Asked:
    """One request: when (monotonic seconds), what came back, or why nothing did."""

    began: float
    ended: float
    status: int
    answer: dict[str, object]
    error: str = ""
    by: str = ""  # who answered, where the server says so


@dataclass
class Load:
    requests: list[Asked] = field(default_factory=list)

    @property
    def failures(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.error or asked.status != 200]


@contextmanager
def load(
    server: Server,
    path: str,
    *,
    clients: int = 4,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
) -> Iterator[Load]:
    """Ask for `path` with `clients` threads, each on a connection of its own, while the block runs."""
    result, stop = Load(), threading.Event()

    def ask(connection: http.client.HTTPConnection) -> None:
        began = time.monotonic()
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            status, received, error = response.status, response.read(), ""
            by = response.getheader("x-served-by", "")
            answer = json.loads(received) if "json" in response.getheader("content-type", "") else {}
        except (OSError, http.client.HTTPException, ValueError) as failure:
            status, answer, error, by = 0, {}, repr(failure), ""
            connection.close()  # the next request connects anew
        result.requests.append(Asked(began, time.monotonic(), status, answer, error, by))

    def run() -> None:
        with closing(server.connection()) as connection:
            while not stop.is_set():
                ask(connection)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()
