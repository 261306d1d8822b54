"""What do a hundred people with slow connections who watch a video cost, and does anybody else notice?

Each takes 100 KB a second of a large file. Flask alone has a thread for each of them, since they would lock everybody
out of fewer.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.orm import Session

from .harness import LOAD_CORE, ROOT, Plan, save, spread, table
from .library import FLASK, LEGACY, PORT, Running, idle, probing, running, videos
from .pages import PYTHON

CLIENTS, FIRST, RATE = 100, 10, 100_000  # bytes a second, each
SIZE = 500_000_000
THREADS = CLIENTS + 8
API_TARGET = 2.0
SETTLE_S = 2  # until the buffers of the system are full
KEYS = ("mb", "threads", "idle_p95_ms", "p95_ms")


def main(plan: Plan) -> None:
    results: dict[str, list[dict[str, float]]] = {FLASK: [], LEGACY: [], PORT: []}
    for number in range(min(plan.rounds, 3)):
        for name in results if number % 2 else reversed(results):
            results[name].append(watch(name, plan.seconds))
    rows = []
    for name, measured in results.items():
        columns = [
            spread([one[key] for one in measured], digits) for key, digits in zip(KEYS, (2, 0, 1, 1), strict=True)
        ]
        rows.append([name, *columns, spread([one["p95_ms"] / one["idle_p95_ms"] for one in measured], 1)])
    header = ["", "MB each", "threads more", "p95 idle, ms", "p95 meanwhile, ms", "ratio"]
    title = (
        f"{CLIENTS} slow streams; asked of the port: no thread for a client, p95 {API_TARGET:.0f} times idle at most"
    )
    table(title, header, rows)
    save("streams", plan, results)


def watch(name: str, seconds: float) -> dict[str, float]:
    with TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        with running(name, home, partial(_one_large_video, home), threads=THREADS) as application:
            with watchers(application, FIRST):
                time.sleep(1)  # pools have their threads, and these their memory
            before = idle(application, seconds)
            mb, threads = application.memory_mb(), application.threads()
            with watchers(application, CLIENTS):
                time.sleep(SETTLE_S)
                with probing(application) as meanwhile:
                    time.sleep(seconds)
                used_mb, used_threads = application.memory_mb() - mb, application.threads() - threads
            if meanwhile.failures:
                sys.exit(f"{name}: {meanwhile.failures} requests failed")
    return dict(zip(KEYS, (used_mb / CLIENTS, used_threads, before.p95_ms, meanwhile.p95_ms), strict=True))


def _one_large_video(home: Path, db: Session) -> None:
    path = home / "library" / "large.mp4"
    with path.open("wb") as file:
        file.truncate(SIZE)
    db.add_all(videos(1, status="DOWNLOADED", file_path="large.mp4"))


@contextmanager
def watchers(application: Running, count: int) -> Iterator[None]:
    """All of them have their first bytes when the block begins."""
    command = ["taskset", "-c", LOAD_CORE, *PYTHON, "benchmarks.streams"]
    command += [str(application.port), application.cookie, str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                sys.exit("the watchers could not begin")
            yield
        finally:
            process.terminate()


# --- as a process of its own


async def take(port: int, cookie: str, count: int) -> None:
    """So many streams, for ever."""
    streams = await asyncio.gather(*(_open(port, cookie) for _ in range(count)))
    print("all watch", flush=True)
    await asyncio.gather(*(_read_slowly(reader) for reader, _ in streams))


async def _open(port: int, cookie: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RATE)  # what waits for them waits in the server
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection, limit=65_536)
    head = f"GET /api/videos/1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n"
    writer.write(head.encode())
    status = await reader.readline()
    if b" 200 " not in status:
        sys.exit(f"a stream was answered with {status!r}")
    await reader.readexactly(1000)
    return reader, writer


async def _read_slowly(reader: asyncio.StreamReader) -> None:
    while await reader.read(RATE // 4):
        await asyncio.sleep(0.25)


if __name__ == "__main__":
    asyncio.run(take(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
