"""The reference application on a library of its own: Flask alone, or the port behind the gateway with its workers."""

import json
import os
import secrets
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import insert
from sqlalchemy.orm import Session

from legacy_flask import create_app
from legacy_flask.db import transaction
from legacy_flask.models import Artist, Setting, User, Video, name_key, sort_name
from legacy_flask.seed import demo_users
from tests.support.processes import child
from tests.support.redis_server import RedisServer

from .harness import ROOT, SERVER_CORE, Contestant, serving
from .pages import PYTHON, sign_in

FLASK, LEGACY, PORT = "Flask", "Flask behind the gateway", "port behind the gateway"
PROBE = "/api/artists/?per_page=20"  # an ordinary request, to see how the API fares meanwhile
PROBES_PER_S = 20

Fill = Callable[[Session], None]


@dataclass(frozen=True)
class Running:
    """An application that answers, and everything that belongs to it: processes have `mark` in their environment."""

    port: int
    cookie: str
    database: Path
    mark: str

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"}
            content = None if body is None else json.dumps(body)
            if content:
                headers["Content-Type"] = "application/json"
            connection.request("POST", path, content, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def scalar(self, query: str, *values: Any) -> Any:
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return connection.execute(query, values).fetchone()[0]

    def memory_mb(self) -> float:
        """Of all processes; what they share is counted once."""
        return sum(_pss_kb(process) for process in self._processes()) / 1024

    def threads(self) -> int:
        return sum(_number(process / "status", "Threads:") for process in self._processes())

    def _processes(self) -> list[Path]:
        """Those with the mark, and all that descend from them: what downloads has an environment of its own."""
        mark = f"BENCH_MARK={self.mark}".encode()
        parents = {
            process: Path(f"/proc/{_number(process / 'status', 'PPid:')}") for process in Path("/proc").glob("[0-9]*")
        }
        ours = {process for process in parents if mark in _read(process / "environ")}
        while more := {process for process, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return list(ours)


@contextmanager
def running(name: str, home: Path, fill: Fill, *, worker: Sequence[str] = (), threads: int = 8) -> Iterator[Running]:
    """Flask has `threads`; the port has `worker` beside it, and a Redis. `fill` adds rows to an empty library."""
    home.mkdir(parents=True)
    database, mark = home / "app.sqlite3", secrets.token_hex(8)
    env = {
        "DATABASE_URL": f"sqlite:///{database}",
        "SECRET_KEY": secrets.token_hex(32),
        "DATA_PATH": str(home / "data"),
        "LIBRARY_PATH": str(home / "library"),
        "ALLOWED_NETWORKS": "127.0.0.1/32",
        "BCRYPT_ROUNDS": "4",
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": "",
    }
    with ExitStack() as stack:
        if name == PORT:
            redis = stack.enter_context(closing_redis(home))
            env["REDIS_URL"] = redis.url
        stack.enter_context(patch.dict(os.environ, env))
        _fill(fill)
        if name == PORT and worker:
            marked = {**os.environ, "BENCH_MARK": mark}
            stack.enter_context(child(list(worker), home / "worker.log", cwd=home, env=marked))
        server = contestant(name, home, threads)
        server = replace(server, env={**(server.env or {}), "BENCH_MARK": mark})
        ports = stack.enter_context(serving([server]))
        yield Running(ports[name], sign_in(ports[name]), database, mark)


@contextmanager
def closing_redis(home: Path) -> Iterator[RedisServer]:
    server = RedisServer(home)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def workers(count: int, *options: str) -> list[str]:
    return ["taskset", "-c", SERVER_CORE, *PYTHON, "fastapi_app.worker", "--workers", str(count), *options]


def contestant(name: str, home: Path, threads: int = 8) -> Contestant:
    if name == FLASK:
        gunicorn = [*PYTHON, "gunicorn", "-k", "gthread", "--threads", str(threads), "--bind", "127.0.0.1:{port}"]
        return Contestant(name, [*gunicorn, "--log-level", "warning", "legacy_flask:create_app()"])
    flags = home / "flags.yaml"
    flags.write_text(f"version: 1\noverride: {'legacy' if name == LEGACY else 'fastapi'}\n")
    gateway = [*PYTHON, "gateway", "serve", "--legacy", "legacy_flask:create_app", "--port", "{port}"]
    gateway += ["--fastapi", "fastapi_app:create_app", "--flags", str(flags), "--state", str(home / "state")]
    return Contestant(name, [*gateway, "--log-level", "warning"], {"GATEWAY_THREADS": str(threads)})


def _fill(fill: Fill) -> None:
    app = create_app()
    with app.app_context(), transaction() as db:
        db.execute(insert(User), demo_users(4))
        fill(db)
    app.extensions["engine"].dispose()


def settings(values: Mapping[str, str]) -> list[Setting]:
    return [Setting(key=key, value=value) for key, value in values.items()]


def artist(name: str, **values: Any) -> Artist:
    return Artist(name=name, name_key=name_key(name), sort_name=sort_name(name), monitored=True, **values)


def videos(count: int, **values: Any) -> list[Video]:
    """Of one artist. `{number}` in a text is the video's."""
    owner = artist("Somebody")
    rows = []
    for number in range(count):
        own = {name: value.format(number=number) if isinstance(value, str) else value for name, value in values.items()}
        rows.append(Video(artist=owner, title=f"Title {number}", **own))
    return rows


# --- meanwhile


@dataclass
class Meanwhile:
    """How an ordinary request fared while something else went on; milliseconds."""

    took_ms: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def p95_ms(self) -> float:
        return statistics.quantiles(self.took_ms, n=20)[-1] if len(self.took_ms) > 1 else float("inf")


@contextmanager
def probing(where: Running) -> Iterator[Meanwhile]:
    """Ask PROBE again and again, one at a time, until the block ends."""
    seen, over = Meanwhile(), threading.Event()
    thread = threading.Thread(target=_probe, args=(where, seen, over))
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _probe(where: Running, seen: Meanwhile, over: threading.Event) -> None:
    while not over.wait(1 / PROBES_PER_S):
        began = time.perf_counter()
        try:
            with closing(HTTPConnection("127.0.0.1", where.port, timeout=30)) as connection:
                connection.request("GET", PROBE, headers={"Cookie": where.cookie})
                answer = connection.getresponse()
                answer.read()
                seen.failures += answer.status != 200
        except OSError:
            seen.failures += 1
        seen.took_ms.append((time.perf_counter() - began) * 1000)


def idle(where: Running, seconds: float = 3) -> Meanwhile:
    with probing(where) as seen:
        time.sleep(seconds)
    return seen


def wait(done: Callable[[], bool], what: str, timeout_s: float = 300) -> float:
    """Seconds until it is done."""
    began = time.perf_counter()
    while not done():
        if time.perf_counter() - began > timeout_s:
            sys.exit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)
    return time.perf_counter() - began


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


# --- what the system says about processes


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended


def _pss_kb(process: Path) -> int:
    return _number(process / "smaps_rollup", "Pss:")


def _number(path: Path, name: str) -> int:
    for line in _read(path).decode(errors="replace").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
