"""What does a click on "download" cost, and what do a hundred downloads at once do to everybody else?

* `click`: a video without an address, which a search that takes 2 s must find first. Seconds until the answer.
* `at once`: 100 files of 5 MB, each sent in about 10 s, with a limit of 100: Flask downloads in its threads, the port
  in 4 workers. Seconds until all are in the library, memory of each, and an ordinary request meanwhile.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy.orm import Session

from .harness import LOAD_CORE, Contestant, Plan, save, serving, spread, table
from .library import FLASK, PORT, ffmpeg, idle, probing, running, settings, videos, wait, workers
from .library import Running as Application
from .pages import PYTHON
from .upstream import stub

CLICKS, SEARCH_S = 5, 2.0
CLICK_TARGET, CLICK_TARGET_MS = 50, 50
DOWNLOADS, SIZE, RATE = 100, 5_000_000, 500_000  # bytes, bytes a second for each
WORKER = workers(4, "--queues", "downloads,default")
API_TARGET = 2.0
CHUNK = 50_000
LOOK_AFTER_S = 10.0  # at the memory: all have begun that can at once


def main(plan: Plan) -> None:
    few = not plan.keep
    clicks = {name: click(name, 2 if few else CLICKS * min(plan.rounds, 3)) for name in (FLASK, PORT)}
    flask_ms = statistics.median(clicks[FLASK])
    rows = [
        [name, spread(took_ms, 1), f"{flask_ms / statistics.median(took_ms):.0f}"] for name, took_ms in clicks.items()
    ]
    title = f"Click to answer, search of {SEARCH_S:.0f} s; asked: {CLICK_TARGET} times, {CLICK_TARGET_MS} ms at most"
    table(title, ["", "ms", "times faster"], rows)
    count, rounds = (10, 1) if few else (DOWNLOADS, min(plan.rounds, 3))
    at_once: dict[str, list[dict[str, float]]] = {FLASK: [], PORT: []}
    for number in range(rounds):
        for name in at_once if number % 2 else reversed(at_once):
            at_once[name].append(download(name, count))
    rows = []
    for name, measured in at_once.items():
        columns = [[one[key] for one in measured] for key in ("seconds", "mb_each", "idle_p95_ms", "p95_ms")]
        ratios = [one["p95_ms"] / one["idle_p95_ms"] for one in measured]
        rows.append([name, *(spread(column, 1) for column in columns), spread(ratios, 1)])
    title = f"{count} downloads at once; asked of the port: as soon as Flask, p95 {API_TARGET:.0f} times idle at most"
    table(title, ["", "seconds", "MB each", "p95 idle, ms", "p95 meanwhile, ms", "ratio"], rows)
    save("downloads", plan, {"click_ms": clicks, "at_once": at_once})


# --- click


def click(name: str, times: int) -> list[float]:
    """Milliseconds of each of these clicks, one after the other."""
    with (
        TemporaryDirectory() as directory,
        stub(("youtube",), SEARCH_S) as url,
        running(name, Path(directory) / "home", partial(_without_address, times, url)) as application,
    ):
        return [_timed_ms(application, f"/api/videos/{number}/download") for number in range(1, times + 1)]


def _without_address(count: int, url: str, db: Session) -> None:
    words = {"youtube_url": f"{url}/youtube", "youtube_api_key": "demo-key", "youtube_per_second": "0"}
    db.add_all(settings(words | {"max_concurrent_downloads": "0"}))  # the click alone
    db.add_all(videos(count))


def _timed_ms(application: Application, path: str) -> float:
    began = time.perf_counter()
    status, answer = application.post(path)
    took_ms = (time.perf_counter() - began) * 1000
    if status != 200:
        sys.exit(f"POST {path}: {status} {answer}")
    return took_ms


# --- at once


def download(name: str, count: int) -> dict[str, float]:
    with TemporaryDirectory() as directory, slow_files(Path(directory)) as url:
        home = Path(directory) / "home"
        with running(name, home, partial(_with_address, count, url), worker=WORKER) as application:
            before_ms, before_mb = idle(application).p95_ms, application.memory_mb()
            with probing(application) as meanwhile:
                began = time.perf_counter()
                status, answer = application.post("/api/videos/bulk/download", {"video_ids": list(range(1, count + 1))})
                if status != 200:
                    sys.exit(f"bulk download: {status} {answer}")
                time.sleep(LOOK_AFTER_S)
                mb = application.memory_mb()  # once: to look takes as much of the processor as a download

                def done() -> bool:
                    time.sleep(0.5)
                    return not application.scalar("SELECT count(*) FROM downloads WHERE finished_at IS NULL")

                wait(done, "downloads")
                took = time.perf_counter() - began
            failed = application.scalar("SELECT count(*) FROM downloads WHERE status <> 'completed'")
            if failed or meanwhile.failures:
                sys.exit(f"{name}: {failed} downloads and {meanwhile.failures} requests failed")
            return {
                "seconds": took,
                "mb_each": (mb - before_mb) / count,
                "idle_p95_ms": before_ms,
                "p95_ms": meanwhile.p95_ms,
            }


def _with_address(count: int, url: str, db: Session) -> None:
    db.add_all(settings({"max_concurrent_downloads": str(count)}))
    db.add_all(videos(count, url=url + "/{number}.mp4"))


@contextmanager
def slow_files(folder: Path) -> Iterator[str]:
    """On the other core: every path is the same video of SIZE bytes, at RATE bytes a second."""
    path = folder / "video.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=duration=2:size=320x180:rate=10", "-pix_fmt", "yuv420p", path)
    padding = SIZE - path.stat().st_size - 8
    with path.open("ab") as file:  # a box that players skip
        file.write((padding + 8).to_bytes(4) + b"free" + bytes(padding))
    command = [*PYTHON, "benchmarks.downloads", "serve", "{port}", str(path)]
    with serving([Contestant("files", command)], LOAD_CORE) as ports:
        yield f"http://127.0.0.1:{ports['files']}"


class SlowFiles:
    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = self._content if scope["path"].endswith(".mp4") else b"{}"
        headers = [(b"content-type", b"video/mp4"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            content = b""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, len(content), CHUNK):
            await asyncio.sleep(began + start / RATE - loop.time())
            await send({"type": "http.response.body", "body": content[start : start + CHUNK], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(SlowFiles(Path(sys.argv[3])), port=int(sys.argv[2]), log_level="warning", lifespan="off")
