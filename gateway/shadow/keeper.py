"""Keeps the process that replays: starts it, looks at its pulse, buries it, and knows what it died of."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from gateway.model import Outcome
from gateway.settings import Settings

from .client import Counts
from .notes import Doing, look, waited_s
from .strikes import LIMIT, Strikes

# Exit codes: as told; to start afresh, because what it runs has grown or hangs; another one has not ended yet.
STOPPED, RECYCLED, LOCKED = 0, 75, 76

LOAD_S = 120.0  # for both applications to load, on the smallest share of a busy CPU
STOP_S = 2.0  # to write down its verdicts
IDLE_S = 10.0  # without any flag that shadows, before it is stopped
WELL_S = 60.0  # it has lived so long: the pauses start from the shortest again
PAUSES_S = (0.25, 30.0)  # between two attempts to start it: the first, and at most

_COMMAND = [sys.executable, "-m", "gateway.shadow.replay"]

log = logging.getLogger(__name__)


class Keeper:
    """For one thread, which calls `tick` a few times a second."""

    def __init__(self, settings: Settings, state: Path, verdicts: Counts) -> None:
        self._limit_s, self._state, self._verdicts = settings.shadow_timeout_s, state, verdicts
        self._strikes = Strikes(state)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._wanted_at = self._not_before = 0.0
        self._pause_s = 0.0
        self._pulse = (0.0, 0.0)  # the last heartbeat, and how long the process had waited for a CPU by then

    def tick(self, wanted: bool) -> None:
        """Start the process, let it live, or end it."""
        now = time.monotonic()
        if wanted:
            self._wanted_at = now
        if self._process is None:
            if wanted and now >= self._not_before:
                self._start(now)
        elif (code := self._process.poll()) is not None:
            self._bury(code, look(self._state), Outcome.CRASHED)
        elif now - self._wanted_at > IDLE_S:
            self.close()
        else:
            self._feel_pulse(self._process, now)

    def close(self) -> None:
        """End the process in good order, and at once if it does not follow."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            _kill(process)

    def _start(self, now: float) -> None:
        self._process = _spawn()
        self._started_at, self._pulse = now, (now, 0.0)

    def _feel_pulse(self, process: subprocess.Popen[bytes], now: float) -> None:
        doing = look(self._state)
        loading = doing.pid != process.pid or not doing.beat
        beat, waited = self._pulse
        if not loading and doing.beat != beat:
            self._pulse = doing.beat, waited_s(process.pid)
        elif now - beat > (LOAD_S if loading else self._limit_s):
            starved_s = 0.0 if loading else waited_s(process.pid) - waited
            if now - beat - starved_s > self._limit_s:  # it had its share of the CPU, and has not used it
                _kill(process)
                self._bury(process.returncode, doing, Outcome.TIMED_OUT)

    def _bury(self, code: int, doing: Doing, outcome: Outcome) -> None:
        """Count what died with it, and decide when there will be another one."""
        process, self._process, now = self._process, None, time.monotonic()
        if process is not None and process.stdin:
            process.stdin.close()
        shortest, longest = PAUSES_S
        well = now - self._started_at > WELL_S
        self._pause_s = shortest if well else min(2 * self._pause_s or shortest, longest)
        self._not_before = now + self._pause_s
        if code in (STOPPED, RECYCLED, LOCKED):
            return
        ran = doing.keys if process is not None and doing.pid == process.pid else ()
        how = "hung" if outcome is Outcome.TIMED_OUT else f"ended with {code}"
        whom = f" while it ran {', '.join(sorted(set(ran)))}" if ran else ""
        log.error("shadow: the process that replays %s%s; again in %g s", how, whom, self._pause_s)
        for key in ran:
            self._verdicts.count(key, outcome)
        self._strike(set(ran))

    def _strike(self, keys: Collection[str]) -> None:
        try:
            left_out = self._strikes.add(keys) if keys else []
        except OSError as error:
            log.warning("shadow: %s", error)
            return
        for key in left_out:
            log.error("shadow: %s is left out for a while: it took the process that replays along %d times", key, LIMIT)


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator wants to know of shadowing on this host."""

    pid: int  # of the process that replays; 0: there is none
    loading: bool
    silent_s: float  # since its last heartbeat
    running: tuple[str, ...]  # keys
    suspended: dict[str, float]  # key -> until when it is left out (epoch seconds)


def status(state: Path) -> Status:
    """How shadowing stands on this host, from any process."""
    doing, suspended = look(state), Strikes(state).suspended()
    if not _is_alive(doing.pid):
        return Status(0, False, 0.0, (), suspended)
    silent_s = max(0.0, time.monotonic() - doing.beat) if doing.beat else 0.0
    return Status(doing.pid, not doing.beat, silent_s, doing.keys, suspended)


def _spawn() -> subprocess.Popen[bytes]:
    """Start the process from a thread that lives as long: the kernel ends a child with the thread that made it."""
    born: Future[subprocess.Popen[bytes]] = Future()

    def parent() -> None:
        env = {
            **os.environ,
            "GATEWAY_SHADOW": "1",  # for applications: start no scheduler here
            "MALLOC_ARENA_MAX": "2",  # each arena would take 64 MB of its address space
        }
        try:
            process = subprocess.Popen([*_COMMAND, str(os.getpid())], stdin=subprocess.PIPE, env=env, process_group=0)
        except BaseException as error:  # noqa: BLE001  # belongs to whoever waits
            born.set_exception(error)
        else:
            born.set_result(process)
            process.wait()

    Thread(target=parent, name="gateway-shadow", daemon=True).start()
    return born.result()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that has not been waited for, and whatever it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
