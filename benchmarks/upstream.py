"""How much of the time that services on the internet take is spent waiting side by side?

* `calls`: 500 at once to a service that takes 50 ms, by the port's client, by requests in 500 threads, and by httpx as
  it comes.
* `discover all`: new videos for 100 artists from services that take 200 ms, by the real applications, limiters off.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy.orm import Session

from .harness import LOAD_CORE, SERVER_CORE, Contestant, Plan, save, serving, spread, table
from .library import FLASK, artist, running, settings, wait, workers
from .library import PORT as APPLICATION
from .pages import PYTHON

CALLS, AT_ONCE, LATENCY_S = 2000, 500, 0.05
ARTISTS, DISCOVERY_LATENCY_S = 100, 0.2
PORT, NULL, REQUESTS, HTTPX = "port", "port again", "requests, 500 threads", "httpx"
SERVICES = ("youtube", "imvdb")
CALLS_TARGET, DISCOVERY_TARGET = 2.5, 20


def main(plan: Plan) -> None:
    calls = compare_calls(plan)
    rows = [
        [name, spread([CALLS / seconds for seconds in taken], 0), spread(times_faster(calls, name, REQUESTS))]
        for name, taken in calls.items()
    ]
    table(
        f"{AT_ONCE} calls at once, {LATENCY_S * 1000:.0f} ms each; asked of the port: {CALLS_TARGET}",
        ["", "calls/s", f"ratio to {REQUESTS}"],
        rows,
    )
    discovery = compare_discovery(plan)
    rows = [
        [name, spread(seconds, 1), spread(times_faster(discovery, name, FLASK), 1)]
        for name, seconds in discovery.items()
    ]
    table(
        f"{ARTISTS} artists, services that take {DISCOVERY_LATENCY_S * 1000:.0f} ms; asked: {DISCOVERY_TARGET} times",
        ["", "seconds", "times faster"],
        rows,
    )
    save("upstream", plan, {"calls": calls, "discovery": discovery})


def times_faster(seconds: dict[str, list[float]], name: str, base: str) -> list[float]:
    return [theirs / mine for mine, theirs in zip(seconds[name], seconds[base], strict=True)]


# --- calls


def compare_calls(plan: Plan) -> dict[str, list[float]]:
    """Seconds for all calls, by client and round; the first round warms up."""
    seconds: dict[str, list[float]] = {PORT: [], NULL: [], REQUESTS: [], HTTPX: []}
    with slow_service() as url:
        for number in range(plan.rounds + 1):
            for name in list(seconds) if number % 2 else list(reversed(seconds)):
                command = ["taskset", "-c", SERVER_CORE, *PYTHON, "benchmarks.upstream", name, url]
                took = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if number:
                    seconds[name].append(took)
    return seconds


@contextmanager
def slow_service() -> Iterator[str]:
    """On the other core."""
    with serving([Contestant("slow", [*PYTHON, "benchmarks.upstream", "serve", "{port}"])], LOAD_CORE) as ports:
        yield f"http://127.0.0.1:{ports['slow']}/"


async def slow(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await asyncio.sleep(LATENCY_S)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def call_by_requests(url: str) -> float:
    import requests

    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=AT_ONCE))

    def call(_: int) -> None:
        answer = session.get(url, timeout=30)
        if answer.status_code != 200:
            sys.exit(f"answered {answer.status_code}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        began = time.perf_counter()
        list(threads.map(call, range(CALLS)))
        return time.perf_counter() - began


async def call_by_port(url: str) -> float:
    from fastapi_app.upstreams.client import UpstreamClient

    client = UpstreamClient(connections=AT_ONCE, allowed_networks="127.0.0.1/32", timeout_s=30)
    try:
        return await _timed(lambda: client.request("GET", url))
    finally:
        await client.aclose()


async def call_by_httpx(url: str) -> float:
    import httpx

    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        return await _timed(lambda: client.get(url))


async def _timed(call: Callable[[], Awaitable[Any]]) -> float:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            answer = await call()
            if answer.status_code != 200:
                sys.exit(f"answered {answer.status_code}")

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CALLS)))
    return time.perf_counter() - began


# --- discovery


def compare_discovery(plan: Plan) -> dict[str, list[float]]:
    """Seconds from the request to the end of its job, by application and round."""
    seconds: dict[str, list[float]] = {FLASK: [], APPLICATION: []}
    with TemporaryDirectory() as directory, stub(SERVICES, DISCOVERY_LATENCY_S) as url:
        for number in range(min(plan.rounds, 3)):
            for name, taken in seconds.items():
                taken.append(discover(name, Path(directory) / f"{name} {number}", url))
    return seconds


@contextmanager
def stub(services: tuple[str, ...], latency_s: float) -> Iterator[str]:
    """The stub upstream, of which these services take their time."""
    with serving([Contestant("stub", [*PYTHON, "tests.upstream", "--port", "{port}"])], LOAD_CORE) as ports:
        with closing(HTTPConnection("127.0.0.1", ports["stub"], timeout=30)) as connection:
            dials = {service: {"latency_s": latency_s} for service in services}
            connection.request("PUT", "/_dials", json.dumps(dials), {"Content-Type": "application/json"})
            if connection.getresponse().status >= 300:
                sys.exit("the stub upstream refused its dials")
        yield f"http://127.0.0.1:{ports['stub']}"


def discover(name: str, home: Path, url: str) -> float:
    """One run from an empty library of 100 artists."""
    with running(name, home, partial(_fill, url), worker=workers(2)) as application:
        began = time.perf_counter()
        status, answer = application.post("/api/discovery/all")
        if status != 202:
            sys.exit(f"discovery: {status} {answer}")
        state = partial(application.scalar, "SELECT status FROM jobs WHERE id = ?", answer["job_id"])
        wait(lambda: state() not in ("queued", "running"), "discovery")
        took = time.perf_counter() - began
        if state() != "completed":
            sys.exit(f"discovery ended as {state()}")
    return took


def _fill(url: str, db: Session) -> None:
    """100 artists without videos, and the stub for an internet."""
    values = {f"{service}_url": f"{url}/{service}" for service in SERVICES}
    values |= {f"{service}_per_second": "0" for service in SERVICES}
    values |= {f"{service}_api_key": "demo-key" for service in SERVICES}
    db.add_all(settings(values))
    db.add_all(artist(f"Artist {number}") for number in range(ARTISTS))


# --- as a process of its own


def run(name: str, *arguments: str) -> None:
    if name == "serve":
        import uvicorn

        uvicorn.run(slow, port=int(arguments[0]), log_level="warning", lifespan="off")
        return
    if name == REQUESTS:
        print(call_by_requests(*arguments))
        return
    import uvloop

    print(uvloop.run((call_by_httpx if name == HTTPX else call_by_port)(*arguments)))


if __name__ == "__main__":
    run(*sys.argv[1:])
