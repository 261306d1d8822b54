"""How much of the time that services on the internet take is spent waiting side by side?

* `calls`: 500 at once to a service that takes 50 ms, by the port's client, by requests in 500 threads, and by httpx as
  it comes.
* `discover all`: new videos for 100 artists from services that take 200 ms, by the real applications, limiters off.
"""

import asyncio
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from legacy_flask import create_app
from legacy_flask.db import transaction
from legacy_flask.models import Artist, Setting, name_key, sort_name

from .harness import LOAD_CORE, SERVER_CORE, Contestant, Plan, save, serving, spread, table
from .pages import PYTHON, sign_in

CALLS, AT_ONCE, LATENCY_S = 2000, 500, 0.05
ARTISTS, DISCOVERY_LATENCY_S = 100, 0.2
PORT, NULL, REQUESTS, HTTPX = "port", "port again", "requests, 500 threads", "httpx"
FLASK, GATEWAY = "Flask", "port behind the gateway"
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
    seconds: dict[str, list[float]] = {FLASK: [], GATEWAY: []}
    with TemporaryDirectory() as directory, stub() as url:
        for number in range(min(plan.rounds, 3)):
            for name, taken in seconds.items():
                home = Path(directory) / f"{name} {number}"
                home.mkdir()
                taken.append(discover(name, home, url))
    return seconds


@contextmanager
def stub() -> Iterator[str]:
    """The stub upstream, taking its time."""
    with serving([Contestant("stub", [*PYTHON, "tests.upstream", "--port", "{port}"])], LOAD_CORE) as ports:
        connection = HTTPConnection("127.0.0.1", ports["stub"], timeout=30)
        dials = {service: {"latency_s": DISCOVERY_LATENCY_S} for service in ("youtube", "imvdb")}
        connection.request("PUT", "/_dials", json.dumps(dials), {"Content-Type": "application/json"})
        if connection.getresponse().status >= 300:
            sys.exit("the stub upstream refused its dials")
        connection.close()
        yield f"http://127.0.0.1:{ports['stub']}"


def discover(name: str, home: Path, url: str) -> float:
    """One run from an empty library of 100 artists."""
    database = home / "app.sqlite3"
    env = {
        "DATABASE_URL": f"sqlite:///{database}",
        "SECRET_KEY": secrets.token_hex(32),
        "DATA_PATH": str(home / "data"),
        "LIBRARY_PATH": str(home / "library"),
        "ALLOWED_NETWORKS": "127.0.0.1/32",
        "BCRYPT_ROUNDS": "4",
    }
    with patch.dict(os.environ, env):
        fill(url)
        with serving([contestant(name, home)]) as ports:
            port = ports[name]
            cookie = sign_in(port)
            began = time.perf_counter()
            job_id = post(port, "/api/discovery/all", cookie)["job_id"]
            while (status := job(database, job_id)) in ("queued", "running"):
                time.sleep(0.02)
            took = time.perf_counter() - began
    if status != "completed":
        sys.exit(f"discovery ended as {status}")
    return took


def contestant(name: str, home: Path) -> Contestant:
    if name == FLASK:
        gunicorn = [*PYTHON, "gunicorn", "-k", "gthread", "--threads", "8", "--bind", "127.0.0.1:{port}"]
        return Contestant(name, [*gunicorn, "--log-level", "warning", "legacy_flask:create_app()"])
    flags = home / "flags.yaml"
    flags.write_text("version: 1\noverride: fastapi\n")
    gateway = [*PYTHON, "gateway", "serve", "--legacy", "legacy_flask:create_app", "--port", "{port}"]
    gateway += ["--fastapi", "fastapi_app:create_app", "--flags", str(flags), "--state", str(home / "state")]
    return Contestant(name, [*gateway, "--log-level", "warning"])


def fill(url: str) -> None:
    """100 artists without videos, users, and the stub for an internet."""
    from sqlalchemy import insert

    from legacy_flask.models import User
    from legacy_flask.seed import demo_users

    app = create_app()
    services = {"youtube": "/youtube", "imvdb": "/imvdb"}
    values = {f"{service}_url": url + path for service, path in services.items()}
    values |= {f"{service}_per_second": "0" for service in services}
    values |= {f"{service}_api_key": "demo-key" for service in services}
    with app.app_context(), transaction() as db:
        db.execute(insert(User), demo_users(4))
        db.add_all(Setting(key=key, value=value) for key, value in values.items())
        for number in range(ARTISTS):
            name = f"Artist {number}"
            db.add(Artist(name=name, name_key=name_key(name), sort_name=sort_name(name), monitored=True))
    app.extensions["engine"].dispose()


def post(port: int, path: str, cookie: str) -> dict[str, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, headers={"Cookie": cookie, "Origin": f"http://127.0.0.1:{port}"})
    answer = connection.getresponse()
    body: dict[str, Any] = json.loads(answer.read())
    connection.close()
    if answer.status != 202:
        sys.exit(f"POST {path}: {answer.status} {body}")
    return body


def job(database: Path, job_id: str) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT status FROM jobs WHERE id = ?", (job_id,)).fetchone()[0])


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
