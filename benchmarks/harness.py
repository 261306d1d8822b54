"""Servers on one core, load on another, contestants in turn, ratios per round."""

import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"
SERVER_CORE, LOAD_CORE = "0", "1"


@dataclass(frozen=True)
class Plan:
    """How long and how often. The first round warms up and is thrown away."""

    rounds: int = 7
    seconds: int = 4
    keep: bool = True  # the results, in results/

    @classmethod
    def quick(cls) -> "Plan":
        return cls(rounds=1, seconds=1, keep=False)

    def but(self, **changes: Any) -> "Plan":
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class Contestant:
    """A server to be measured; `{port}` in its command is where it listens."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Cell:
    """One kind of load. `target` is the least ratio we ask of our own contestant."""

    name: str
    path: str
    connections: int
    method: str = "GET"
    body_bytes: int = 0
    cookie: str = ""
    target: float | None = None


@dataclass(frozen=True)
class Measured:
    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


# --- servers


@contextmanager
def serving(contestants: Sequence[Contestant], core: str = SERVER_CORE) -> Iterator[dict[str, int]]:
    """All contestants at once, on one core; yields their ports. They only work when they are asked."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield {c.name: stack.enter_context(_server(c, logs / f"{n}.log", core)) for n, c in enumerate(contestants)}


@contextmanager
def _server(contestant: Contestant, log: Path, core: str) -> Iterator[int]:
    """Runs beside its log, where no pyproject.toml configures it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["taskset", "-c", core, *(part.format(port=port) for part in contestant.command)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(contestant.env or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(port, process, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until it answers, whatever it answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", "/")
                connection.getresponse()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"a server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        else:
            return


# --- load


def measure(port: int, cell: Cell, seconds: int) -> Measured:
    """One burst of wrk from the load core."""
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: ./dev bench installs it")
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--timeout", "30s"]
    command += ["-s", str(HERE / "load.lua"), f"http://127.0.0.1:{port}{cell.path}"]
    env = {
        **os.environ,
        "BENCH_METHOD": cell.method,
        "BENCH_BODY_BYTES": str(cell.body_bytes),
        "BENCH_COOKIE": cell.cookie,
    }
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"wrk failed: {done.stderr.strip()}")
    requests, took_us, p50_us, p99_us, errors = done.stdout.partition("RESULT ")[2].split()
    rps = int(requests) / (int(took_us) / 1e6)
    return Measured(round(rps, 1), float(p50_us) / 1000, float(p99_us) / 1000, int(errors))


def compete(plan: Plan, ports: Mapping[str, int], cell: Cell) -> dict[str, list[Measured]]:
    """Every contestant once per round, in an order that turns round; the first round is not kept."""
    kept: dict[str, list[Measured]] = {name: [] for name in ports}
    for number in range(plan.rounds + 1):
        order = list(ports) if number % 2 else list(reversed(ports))
        for name in order:
            measured = measure(ports[name], cell, plan.seconds)
            if number:
                kept[name].append(measured)
    return kept


# --- reports


def ratios(rounds: Mapping[str, Sequence[Measured]], name: str, base: str) -> list[float]:
    return [mine.rps / theirs.rps for mine, theirs in zip(rounds[name], rounds[base], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median [least-most]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def save(name: str, plan: Plan, results: object) -> None:
    """Write `results/NAME.json` with what is needed to judge it: machine, versions, plan."""
    if not plan.keep:
        return
    packages = ("flask", "werkzeug", "fastapi", "starlette", "uvicorn", "uvloop", "a2wsgi", "gunicorn")
    document = {
        "benchmark": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds},
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, default=vars) + "\n")
    print(f"\n{path.relative_to(ROOT)}", flush=True)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
