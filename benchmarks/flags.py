"""How long a change of a flag takes until every one of four workers runs it."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.audit import Audit
from gateway.flagfile import Change, SetOverride, SetWeight
from gateway.flags import FlagStore
from gateway.ledger import Ledger
from gateway.model import FULL_BP

from .harness import ROOT, Contestant, Plan, save, serving, table

WORKERS = 4
EDIT, SWITCH, BREAK, COMMAND = (
    "edit until all workers run it",
    "panic switch until all workers run it",
    "a port breaks: from the deciding request until all workers ask legacy",
    "the whole `gateway set --wait`",
)
TARGET_MS = {EDIT: 500.0, SWITCH: 250.0, BREAK: 1000.0, COMMAND: 500.0}
KEY, BREAKABLE = "resource1.get", "breakable"
LOOK_S = 0.001  # between looks at the acknowledgements


def main(plan: Plan) -> None:
    changes = 30 * plan.rounds
    with TemporaryDirectory() as directory:
        settings = {
            "GATEWAY_LEGACY": "benchmarks.apps:make_flask",
            "GATEWAY_FASTAPI": "benchmarks.apps:make_fastapi",
            "GATEWAY_FLAGS": f"{directory}/flags.yaml",
            "GATEWAY_STATE": f"{directory}/state",
            "GATEWAY_WORKERS": str(WORKERS),
            "GATEWAY_LOG_LEVEL": "warning",
        }
        Path(settings["GATEWAY_FLAGS"]).write_text(f"version: 1\nroutes:\n  {KEY}: 0\n  {BREAKABLE}: 0\n")
        command = [sys.executable, "-m", "gateway", "serve", "--port", "{port}"]
        with serving([Contestant("gateway", command, settings)]) as ports:
            ledger = Ledger(Path(settings["GATEWAY_STATE"]))
            while len(ledger.workers()) < WORKERS:
                time.sleep(0.1)
            results = {
                EDIT: [change(ledger, settings, SetWeight(KEY, 100 * (number % 99 + 1))) for number in range(changes)],
                SWITCH: [
                    change(ledger, settings, SetOverride(("legacy", "none")[number % 2])) for number in range(changes)
                ],
                BREAK: [breakage(ports["gateway"], ledger, settings) for _ in range(3 * plan.rounds)],
                COMMAND: [command_ms(settings, number) for number in range(5 * plan.rounds)],
            }
    rows = [
        [name, str(len(ms)), *map(milliseconds, summary(ms)), f"{TARGET_MS[name]:.0f}"] for name, ms in results.items()
    ]
    table(f"One flag, {WORKERS} workers, ms", ["", "changes", "p50", "p99", "most", "target of p99, at most"], rows)
    save("flags", plan, results)


def change(ledger: Ledger, settings: Mapping[str, str], change: Change) -> float:
    """Milliseconds from the beginning of an edit until the last worker has acknowledged it."""
    store = FlagStore(Path(settings["GATEWAY_FLAGS"]), None, Path(settings["GATEWAY_STATE"]))
    began = time.perf_counter()
    version = store.edit(change, by="benchmark").version
    while {worker.version for worker in ledger.workers()} != {version}:
        time.sleep(LOOK_S)
    return (time.perf_counter() - began) * 1000


def breakage(port: int, ledger: Ledger, settings: Mapping[str, str]) -> float:
    """Milliseconds from the request that made a worker hold a broken route until all workers ask legacy."""
    change(ledger, settings, SetWeight(BREAKABLE, FULL_BP))
    audit = Audit(Path(settings["GATEWAY_STATE"]))
    known = len(audit.events())
    while not (held := [event for event in audit.events()[known:] if event.action == "hold"]):
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/breakable")
            connection.getresponse()
    began = datetime.fromisoformat(held[0].at).timestamp()
    while not (after := [event for event in audit.events()[known:] if event.action == "rollback"]):
        time.sleep(LOOK_S)
    while {worker.version for worker in ledger.workers()} != {after[0].version}:
        time.sleep(LOOK_S)
    return (time.time() - began) * 1000


def command_ms(settings: Mapping[str, str], number: int) -> float:
    """The same as an operator sees it: with the start of Python and the import of both applications."""
    command = [sys.executable, "-m", "gateway", "set", KEY, str(number % 50), "--wait"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    began = time.perf_counter()
    subprocess.run(command, cwd=settings["GATEWAY_STATE"], env=env, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def summary(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))], ordered[-1]


def milliseconds(value: float) -> str:
    return f"{value:.0f}"
