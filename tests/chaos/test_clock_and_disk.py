"""Clocks that are put forward and back, disks that are full, files that others have locked: no client notices."""

import fcntl
import json
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway.audit import Audit
from gateway.journal import FLUSH_S, Entry, Journal
from gateway.why import explain_request
from tests.support.disks import needs_small_disk, with_small_disk
from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.serving import ROOT, Server, environment, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}

# Runs in every process of the server before anything else is imported.
STEPPED_CLOCK = """
import datetime, os, time

true, true_ns = time.time, time.time_ns

def offset_s():
    with open(os.environ["OFFSET_FILE"]) as file:
        return int(file.read())

class stepped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)

time.time = lambda: true() + offset_s()
time.time_ns = lambda: true_ns() + offset_s() * 1_000_000_000
datetime.datetime = stepped
"""


def noted(server: Server, name: str) -> Entry:
    return wait_until(lambda: Journal.find(server.state, name), f"the journal to have {name}")


def throw_the_switch(server: Server, side: str, *options: str) -> None:
    done = server.cli("override", side, *options)
    assert (0, "") == (done.returncode, done.stderr), done.stderr


# --- the clock


def test_a_clock_that_is_stepped_by_an_hour_either_way_is_not_noticed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STEPPED_CLOCK)
    clock = tmp_path / "offset"
    clock.write_text("0")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OFFSET_FILE": str(clock)}
    with serving(tmp_path, "who: 50", **PAIR, env=env) as server, server.client() as visitor:
        side = visitor.get("/who", headers={"x-request-id": "0"}).json()["by"]
        steps = {"1": 3600, "2": 0, "3": -3600, "4": 0}
        with load(server, "/who", clients=2) as asked:
            for name, offset_s in steps.items():
                clock.with_suffix(".new").write_text(str(offset_s))
                clock.with_suffix(".new").replace(clock)

                panic = name in ("2", "4")
                expected = "legacy" if panic else side
                assert expected == visitor.get("/who", headers={"x-request-id": name}).json()["by"]
                assert offset_s == pytest.approx(noted(server, name).at - noted(server, "0").at, abs=600)
                throw_the_switch(server, "none" if panic else "legacy")
                after = side if panic else "legacy"  # --wait sees no worker that has not beaten since the step
                wait_until(lambda after=after: after == visitor.get("/who").json()["by"], "the switch")

        assert [] == asked.failures
        assert [True] * 5 == [explain_request(server.state, name).agrees for name in ("0", *steps)]
        assert ["legacy", "none"] * 2 == [event.after for event in Audit(server.state).events()]
        assert [] == Audit(server.state).verify()


# --- the disk


def test_a_full_disk_is_not_noticed_by_clients(tmp_path: Path) -> None:
    """No process of the server may write another byte to any file."""
    with serving(tmp_path, "who: 100", **PAIR) as server, server.client() as visitor:
        visitor.get("/who", headers={"x-request-id": "before"})
        assert noted(server, "before")
        with load(server, "/who", clients=2) as asked, no_file_may_grow(server):
            throw_the_switch(server, "legacy")
            wait_until(lambda: "legacy" == visitor.get("/who").json()["by"], "the switch")
            throw_the_switch(server, "none")
            visitor.get("/who", headers={"x-request-id": "lost"})
            begun, flushed_at = len(asked.requests), time.monotonic() + 5 * FLUSH_S
            wait_until(
                lambda: len(asked.requests) > begun + 200 and time.monotonic() > flushed_at,
                "requests while nothing can be written",
                60,
            )

        assert [] == asked.failures
        assert {"fastapi", "legacy"} == {request.answer["by"] for request in asked.requests}
        visitor.get("/who", headers={"x-request-id": "after"})
        assert noted(server, "after")
        assert Journal.find(server.state, "lost") is None
        assert [] == Audit(server.state).verify()


@contextmanager
def no_file_may_grow(server: Server) -> Iterator[None]:
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    for process in server.processes():
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        for process in server.processes():
            resource.prlimit(process, resource.RLIMIT_FSIZE, (most, most))


KILL_SWITCH_AT_3_AM = """
import json, sys
from pathlib import Path
from gateway.audit import Audit
from gateway.errors import FlagsReadOnly
from gateway.flags import FlagStore
from gateway.journal import Journal
from gateway.model import Backend, Reason

disk = Path(sys.argv[1])
flags, state = disk / "flags.yaml", disk / "state"
flags.write_text("version: 1\\nroutes:\\n  a: 50\\n")
store = FlagStore(flags, ["a"], state)
store.set_weight("a", 60, by="ann")

def fill():
    with (disk / "log").open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 512): pass
        except OSError:
            pass

def attempt(edit, *words):
    fill()
    try:
        return edit(*words, by="ann").id
    except FlagsReadOnly:
        return "refused"

journal = Journal(state, 1 << 20)
fill()
journal.start()
for number in range(1000):
    journal.note("r", "a", "GET", "", "v", Backend.LEGACY, Reason.STATIC, None, 200, False, False)
journal.close()
switched = [attempt(store.set_override, side) for side in ("legacy", "none", "legacy")]
ids = [attempt(store.set_weight, "a", weight) for weight in range(100)]
in_force = store.current.override
(disk / "log").unlink()
problems = [problem.what for problem in Audit(state).verify()]
after = store.set_weight("a", 99.5, by="ann").id
print(json.dumps({
    "switched": switched, "refused": ids.count("refused"), "in_force": in_force and in_force.value,
    "last": ids[-1], "problems": problems, "dropped": journal.dropped, "after": after,
    "events": [event.id for event in Audit(state).events()],
}))
"""


@needs_small_disk
def test_on_a_full_disk_the_kill_switch_is_thrown_and_recorded_and_nothing_changes_unrecorded(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILL_SWITCH_AT_3_AM)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = with_small_disk(disk, "512k", f"exec {sys.executable} {script} {disk}")
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment({}), timeout=60)
    assert 0 == done.returncode, done.stderr
    found = json.loads(done.stdout)

    assert [2, 3, 4] == found["switched"]
    assert "legacy" == found["in_force"]
    assert "refused" == found["last"]
    assert [] == found["problems"]
    assert 1000 == found["dropped"]
    assert list(range(1, 4 + 100 - found["refused"] + 2)) == found["events"]
    assert found["events"][-1] == found["after"]


# --- locks


def test_a_locked_ledger_and_a_locked_audit_trail_are_not_noticed_by_clients(tmp_path: Path) -> None:
    with serving(tmp_path, "who: 100", **PAIR) as server, server.client() as visitor:
        throw_the_switch(server, "fastapi", "--wait", "--timeout", "60")
        with load(server, "/who", clients=2) as asked, both_locked(server.state):
            done = server.cli("override", "legacy")
            assert 0 == done.returncode, done.stderr
            assert "could not be recorded" in done.stdout
            wait_until(lambda: "legacy" == visitor.get("/who").json()["by"], "the switch")
            refused = server.cli("override", "none")
            assert 2 == refused.returncode
            assert "locked" in refused.stderr

        assert [] == asked.failures
        throw_the_switch(server, "none")
        assert ["fastapi", "legacy", "none"] == [event.after for event in Audit(server.state).events()]
        assert "file" == Audit(server.state).events()[1].by  # who it was stands in the log of that command
        assert [] == Audit(server.state).verify()


@contextmanager
def both_locked(state: Path) -> Iterator[None]:
    with closing(sqlite3.connect(state / "ledger.sqlite3")) as ledger, (state / "audit.jsonl").open("rb") as audit:
        ledger.execute("BEGIN EXCLUSIVE")
        fcntl.flock(audit, fcntl.LOCK_EX)
        yield
        ledger.execute("ROLLBACK")
