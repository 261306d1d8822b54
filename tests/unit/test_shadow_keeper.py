"""The process that replays: started, watched, buried, started again, and never in anybody's way."""

import asyncio
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gateway.model import Backend, Observation, Outcome
from gateway.settings import Settings
from gateway.shadow import keeper as keeping
from gateway.shadow.client import NAME, Shadow
from gateway.shadow.keeper import Keeper, status
from gateway.shadow.notes import Notes, look
from gateway.shadow.strikes import LIMIT, Strikes
from tests.support.candidates import MIB
from tests.support.processes import wait_until
from tests.support.serving import ROOT

from .test_shadow_client import Tally, exchange, until
from .test_shadow_replay import APPS


@dataclass
class Host:
    """A keeper that ticks, a worker that hands over, and what both count."""

    keeper: Keeper
    worker: Shadow
    tally: Tally
    state: Path
    wanted: bool = True

    @property
    def pid(self) -> int:
        """Of the process that replays, once it serves."""
        now = status(self.state)
        return 0 if now.loading else now.pid

    def events(self) -> list[str]:
        path = self.state.parent / "events"
        return path.read_text().splitlines() if path.exists() else []

    def ask(self, *keys: str) -> None:
        for key in keys:
            asked = exchange(key=key)
            scope = {**asked.scope, "path": f"/{key}", "raw_path": f"/{key}".encode()}
            control = Observation(Backend.LEGACY, 200, (("content-type", "application/json"),), b'{"value":1}\n')
            self.worker.submit(replace(asked, scope=scope, control=control))

    async def served(self) -> int:
        await until(lambda: self.pid, "a process that replays", 30)
        return self.pid

    async def another(self, pid: int) -> int:
        await until(lambda: self.pid not in (0, pid), "another process that replays", 30)
        return self.pid


@contextmanager
def variables(state: Path, **settings: object) -> Iterator[Settings]:
    """The environment that a worker has, and its child inherits."""
    given = {**APPS, "GATEWAY_STATE": str(state), "GATEWAY_SHADOW_TIMEOUT_S": "1", "PYTHONPATH": str(ROOT)}
    given |= {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        patch.chdir(state.parent)
        yield Settings.load()


@asynccontextmanager
async def hosting(directory: Path, **settings: object) -> AsyncIterator[Host]:
    state = directory / "state"
    state.mkdir()
    with variables(state, **settings) as loaded:
        tally = Tally()
        host = Host(Keeper(loaded, state, tally), Shadow(loaded, state, tally), tally, state)
        host.worker.start()
        ticking = asyncio.create_task(tick(host))
        try:
            yield host
        finally:
            ticking.cancel()
            await host.worker.stop()
            await asyncio.to_thread(host.keeper.close)


async def tick(host: Host) -> None:
    while True:
        host.keeper.tick(host.wanted)
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_it_replays_at_the_lowest_priority_within_limits(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        host.ask("same")
        await until(host.events, "the replay")

        assert [f"{pid} same"] == host.events()
        assert 19 == os.getpriority(os.PRIO_PROCESS, pid)
        assert os.SCHED_IDLE == os.sched_getscheduler(pid)
        assert 0 == resource.prlimit(pid, resource.RLIMIT_CORE)[0]
        assert 1024 * MIB < resource.prlimit(pid, resource.RLIMIT_AS)[0] < 4096 * MIB
        assert 0o600 == stat.S_IMODE((host.state / NAME).stat().st_mode)


async def test_it_stops_with_its_keeper(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        began = time.monotonic()

    assert not alive(pid)
    assert time.monotonic() - began < 1


async def test_it_outlives_the_thread_that_has_started_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with variables(state) as settings:
        keeper = Keeper(settings, state, Tally())
        run_in_thread(lambda: keeper.tick(True))
        try:
            await until(lambda: status(state).pid and not status(state).loading, "a process that replays", 30)
        finally:
            keeper.close()


def run_in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_it_is_not_there_when_nothing_is_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "IDLE_S", 0.2)
    async with hosting(tmp_path) as host:
        pid = await host.served()
        host.wanted = False
        await until(lambda: not alive(pid), "its end")

        host.wanted = True
        await host.another(pid)


async def test_killed_it_is_started_again(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        os.kill(pid, signal.SIGKILL)
        await host.another(pid)
        host.ask("same")
        await until(host.events, "a replay")

        assert not host.tally.counts


@pytest.mark.parametrize("key", ["dies", "task_exits"])
async def test_a_candidate_that_ends_the_process_is_counted(tmp_path: Path, key: str) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        host.ask(key)
        await until(lambda: not alive(pid), "its end")
        await host.another(pid)

        assert {(key, Outcome.CRASHED): 1} == host.tally.counts


async def test_a_candidate_that_holds_up_the_loop_is_killed_and_counted(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        host.ask("sleeps")
        await until(lambda: not alive(pid), "its end")
        await host.another(pid)

        assert {("sleeps", Outcome.TIMED_OUT): 1} == host.tally.counts


async def test_a_candidate_that_has_a_strike_runs_alone_and_after_three_not_at_all(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        Strikes(host.state).add(["dies"])
        for strikes in (2, 3):
            pid = await host.served()
            host.ask("dies", "forever")
            await host.another(pid)
            assert strikes - 1 == host.tally.counts["dies", Outcome.CRASHED]
        await asyncio.sleep(1.1)  # workers look once a second

        assert not host.worker.wants("dies")
        assert host.worker.wants("same")
        assert ["dies"] == list(status(host.state).suspended)
        assert 0 == host.tally.counts["forever", Outcome.CRASHED]


async def test_a_candidate_may_not_have_all_the_memory(tmp_path: Path) -> None:
    async with hosting(tmp_path, shadow_memory_bytes=256 * MIB) as host:
        pid = await host.served()
        host.ask("memory", "same")
        await until(host.events, "the next replay")

        assert pid == host.pid
        assert not host.tally.counts


async def test_an_application_that_grows_starts_afresh(tmp_path: Path) -> None:
    async with hosting(tmp_path, shadow_memory_bytes=512 * MIB) as host:
        pid = await host.served()
        host.ask("leaks", "leaks")
        await host.another(pid)

        assert not host.tally.counts


async def test_an_application_that_cannot_be_loaded_is_tried_again_less_and_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(tmp_path, legacy="tests.support.pair:raising_factory") as host:
        await until(lambda: len(caplog.messages) == 2, "two attempts", 30)

        assert 0 == host.pid
        assert [
            "shadow: the process that replays ended with 2; again in 0.25 s",
            "shadow: the process that replays ended with 2; again in 0.5 s",
        ] == caplog.messages


async def test_there_is_only_one_on_a_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(tmp_path) as host:
        pid = await host.served()
        command = [sys.executable, "-m", "gateway.shadow.replay", str(os.getpid())]
        second = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)

        assert keeping.LOCKED == await asyncio.wait_for(second.wait(), 30)
        assert pid == host.pid
        assert not caplog.messages


def test_strikes_add_up_and_are_seen_by_others(tmp_path: Path) -> None:
    ours, theirs = Strikes(tmp_path), Strikes(tmp_path)

    assert [] == ours.add(["a", "b"])
    assert [] == theirs.add(["a"])
    assert ["a"] == ours.add(["a"])

    fresh = Strikes(tmp_path)
    assert {"a", "b"} == fresh.suspects()
    assert ["a"] == list(fresh.suspended())


def test_every_further_strike_doubles_the_time(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path)
    spans = []
    for _ in range(10):
        strikes.add(["a"], LIMIT if not spans else 1)
        spans.append(round((Strikes(tmp_path).suspended()["a"] - time.time()) / 60))

    assert [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440] == spans


def test_old_strikes_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Strikes(tmp_path).add(["a"], LIMIT)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert ({}, frozenset()) == (Strikes(tmp_path).suspended(), Strikes(tmp_path).suspects())

    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    assert [] == Strikes(tmp_path).add(["a"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": ["x", "y"]}'])
def test_a_damaged_file_suspends_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "shadow.strikes").write_text(text)

    assert {} == Strikes(tmp_path).suspended()
    assert [] == Strikes(tmp_path).add(["a"])
    assert {"a"} == Strikes(tmp_path).suspects()


def test_notes_survive_and_say_what_runs(tmp_path: Path) -> None:
    notes = Notes(tmp_path, 2)
    assert 0 == look(tmp_path).pid
    notes.beat()

    with notes.running("songs.list"), notes.running("ü" * 300):
        doing = look(tmp_path)
        assert os.getpid() == doing.pid
        assert {"songs.list", "ü" * 123} == set(doing.keys)
    assert () == look(tmp_path).keys


_PARENT = """
import sys, time
from pathlib import Path
from gateway.settings import Settings
from gateway.shadow.keeper import Keeper
from gateway.shadow.verdicts import Verdicts

settings = Settings.load()
keeper = Keeper(settings, settings.state_dir, Verdicts(settings.state_dir))
while True:
    keeper.tick(True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_it_dies_with_its_parent(tmp_path: Path, busy: bool) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with variables(state, shadow_timeout_s=60) as settings:
        parent = subprocess.Popen([sys.executable, "-c", _PARENT], cwd=tmp_path, env=dict(os.environ))
        try:
            pid = wait_until(lambda: not status(state).loading and status(state).pid, "a process that replays", 30)
            if busy:
                asyncio.run(ask_until(state, settings, (tmp_path / "events").exists))
        finally:
            parent.kill()
            parent.wait()
        wait_until(lambda: not alive(pid), "the end of the process that replays")


async def ask_until(state: Path, settings: Settings, condition: Callable[[], bool]) -> None:
    worker = Shadow(settings, state, Tally())
    worker.start()
    Host(Keeper(settings, state, Tally()), worker, Tally(), state).ask("sleeps")
    await until(condition, "the candidate to begin")
    await worker.stop()
