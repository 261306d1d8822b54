"""What do five hundred people cost who watch three downloads live, and does anybody else notice?

Their browsers compress, as browsers do. Each download tells twice a second how far it is, as it may.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.orm import Session
from websockets.asyncio.client import ClientConnection, connect

from fastapi_app.progress import Channel, Document
from fastapi_app.system import open_redis
from legacy_flask.models import Download, utcnow

from .harness import LOAD_CORE, ROOT, Plan, save, spread, table
from .library import PORT, Running, idle, probing, running, videos
from .pages import PYTHON

CLIENTS, FIRST, DOWNLOADS, EVERY_S = 500, 10, 3, 0.5
MEMORY_TARGET, API_TARGET = 100, 2.0
SETTLE_S = 2
KEYS = ("mb", "idle_p95_ms", "p95_ms", "updates_per_s")


def main(plan: Plan) -> None:
    measured = [watch(plan.seconds) for _ in range(min(plan.rounds, 3))]
    columns = [spread([one[key] for one in measured], digits) for key, digits in zip(KEYS, (1, 1, 1, 0), strict=True)]
    ratio = spread([one["p95_ms"] / one["idle_p95_ms"] for one in measured], 1)
    title = f"{CLIENTS} sockets; asked: {MEMORY_TARGET} MB more at most, p95 {API_TARGET:.0f} times idle at most"
    table(title, ["MB more", "p95 idle, ms", "p95 meanwhile, ms", "updates/s", "ratio"], [[*columns, ratio]])
    save("sockets", plan, measured)


def watch(seconds: float) -> dict[str, float]:
    with TemporaryDirectory() as directory, running(PORT, Path(directory) / "home", _moving) as application:
        with listeners(application, FIRST):
            time.sleep(1)  # what the first of them costs is not theirs
        before = idle(application, seconds)
        mb = application.memory_mb()
        with listeners(application, CLIENTS) as process:
            time.sleep(SETTLE_S)
            with probing(application) as meanwhile:
                time.sleep(seconds)
            used_mb = application.memory_mb() - mb
            process.terminate()
            told, listened_s = map(float, process.communicate()[0].split())
        if meanwhile.failures:
            sys.exit(f"{meanwhile.failures} requests failed")
    return dict(zip(KEYS, (used_mb, before.p95_ms, meanwhile.p95_ms, told / listened_s), strict=True))


def _moving(db: Session) -> None:
    rows = videos(DOWNLOADS)
    db.add_all(rows)
    db.flush()
    signed = utcnow() + timedelta(hours=1)  # nobody takes them for forgotten
    for row in rows:
        db.add(Download(video_id=row.id, active_video_id=row.id, status="downloading", updated_at=signed))


@contextmanager
def listeners(application: Running, count: int) -> Iterator["subprocess.Popen[str]"]:
    """All of them have their snapshot when the block begins. They say how much they were told when they are ended."""
    command = ["taskset", "-c", LOAD_CORE, *PYTHON, "benchmarks.sockets"]
    command += [str(application.port), application.cookie, str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                sys.exit("the listeners could not begin")
            yield process
        finally:
            process.terminate()


# --- as a process of its own


async def listen(port: int, cookie: str, count: int) -> None:
    """So many sockets, until the process is ended."""
    sockets = [await _open(port, cookie) for _ in range(count)]
    told, began = 0, time.monotonic()

    async def read(socket: ClientConnection) -> None:
        nonlocal told
        async for message in socket:
            told += '"update"' in str(message)

    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    tasks = [asyncio.create_task(read(socket)) for socket in sockets]
    tasks.append(asyncio.create_task(_publish()))
    print("all listen", flush=True)
    await over.wait()
    with suppress(BrokenPipeError):  # when nobody wants to know
        print(told, time.monotonic() - began, flush=True)
    os._exit(0)


async def _open(port: int, cookie: str) -> ClientConnection:
    headers = {"Cookie": cookie, "Origin": f"http://127.0.0.1:{port}"}
    socket = await connect(f"ws://127.0.0.1:{port}/ws/jobs", additional_headers=headers, proxy=None)
    await socket.send('{"subscribe": "all"}')
    if len(json.loads(await socket.recv())["snapshot"]) != DOWNLOADS:
        sys.exit("the snapshot is not whole")
    return socket


async def _publish() -> None:
    channel, done = Channel(open_redis(os.environ["REDIS_URL"])), 0
    while True:
        done += 500_000
        for number in range(1, DOWNLOADS + 1):
            document: Document = {
                "id": f"download:{number}",
                "type": "download",
                "target": f"video:{number}",
                "status": "downloading",
                "percent": done // 1_000_000 % 100,
                "message": f"Title {number - 1}",
                "eta": 40,
                "speed": 1_000_000,
                "bytes_done": done,
                "bytes_total": 100_000_000,
                "updated_at": (utcnow() + timedelta(hours=2)).isoformat(),
            }
            await channel.publish(document)
        await asyncio.sleep(EVERY_S)


if __name__ == "__main__":
    asyncio.run(listen(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
