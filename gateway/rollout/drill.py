"""Does rollback work, and how long does it take? Try it on a route that is well, and put everything back.

A drill sets a weight to 0 in the way in which a breaker does, waits until every live worker runs that, and sets the
weight back. Both edits are in the audit trail, the second one with the times. While it lasts, a few tenths of a second,
legacy answers everybody.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from gateway.errors import GatewayError
from gateway.flagfile import SetWeight
from gateway.flags import FlagStore
from gateway.ledger import Worker

from .ramp import RampLoop
from .states import Ramp, Ramps

TIMEOUT_S = 10.0  # for all workers to take up a weight
RETRY_S = 60.0  # after a scheduled drill that was refused or failed
BY = "drill"

log = logging.getLogger(__name__)

_POLL_S = 0.005


class Drill(SetWeight):
    """A weight that is changed to see that it can be."""

    action: ClassVar[str] = "drill"


@dataclass(frozen=True, slots=True)
class Drilled:
    """How a drill went."""

    key: str
    weight_bp: int  # before and after it
    workers: int
    edited_s: float  # from the beginning of the edit to its end
    rolled_back_s: float  # from the beginning of the edit until every worker ran it
    restored_s: float  # likewise, of the way back


def drill(
    key: str,
    flags: FlagStore,
    workers: Callable[[], Sequence[Worker]],
    state: Path,
    *,
    by: str = BY,
    why: str = "",
) -> Drilled:
    """Prove that `key` can be rolled back. Takes as long as all workers need twice; not for an event loop.

    Raises GatewayError, with nothing changed, where a drill proves nothing or would disturb: weight 0, the override is
    on, a worker does not run the file as it is, a ramp is about to move. When a worker does not follow within TIMEOUT_S
    the weight is put back, and the error names the laggards.
    """
    flags.look()
    weight_bp = flags.current[key].weight_bp
    if refusal := _refusal(key, flags, workers()):
        raise GatewayError(f"{key}: no drill: {refusal}")
    with _ramp_told(key, flags, state, weight_bp):
        began = time.monotonic()
        event = flags.edit(Drill(key, 0), by=by, why=why or "a drill begins", if_version=flags.current.version)
        edited_s = time.monotonic() - began
        laggards = _wait(event.version, flags, workers)
        done = Drilled(key, weight_bp, len(workers()), edited_s, time.monotonic() - began, 0.0)
        began = time.monotonic()
        said = f"{len(laggards)} worker(s) did not follow" if laggards else f"done in {done.rolled_back_s:.3f} s"
        evidence = {"edited_s": edited_s, "rolled_back_s": done.rolled_back_s, "workers": done.workers}
        restored = flags.edit(
            Drill(key, weight_bp), by=by, why=f"the drill ends: {said}", undone=event, evidence=evidence
        )
        laggards = laggards or _wait(restored.version, flags, workers)
    if laggards:
        raise GatewayError(f"{key}: not rolled back within {TIMEOUT_S:g} s by {_names(laggards)}; the weight is back")
    return Drilled(**{**asdict(done), "restored_s": time.monotonic() - began})


class Drills:
    """Runs the drills that plans ask for, one at a time, in a thread of their own. `tick` is a job of the Leader."""

    def __init__(self, loop: RampLoop, flags: FlagStore, workers: Callable[[], Sequence[Worker]], state: Path) -> None:
        self._loop, self._flags, self._workers, self._state = loop, flags, workers, state
        self._thread: threading.Thread | None = None
        self._not_before = 0.0

    def tick(self) -> None:
        """Begin a drill if one is due."""
        if (self._thread and self._thread.is_alive()) or time.monotonic() < self._not_before:
            return
        plans = self._flags.current.rollouts
        for ramp in self._loop.ramps.values():
            plan = plans.get(ramp.plan)
            if plan and plan.drill_s and ramp.weight_bp and ramp.since_drill_s >= plan.drill_s:
                self._not_before = time.monotonic() + RETRY_S
                self._thread = threading.Thread(target=self._run, args=(sorted(ramp.members),), name="gateway-drill")
                self._thread.daemon = True
                self._thread.start()
                return

    def _run(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                done = drill(key, self._flags, self._workers, self._state, why="scheduled by the plan")
            except (GatewayError, OSError) as error:
                log.warning("drill: %s", error)
                return
            log.info("drill: %s: rolled back in %.3f s", key, done.rolled_back_s)
        self._not_before = 0.0


def _refusal(key: str, flags: FlagStore, workers: Sequence[Worker]) -> str:
    """Why not now; empty: nothing is in the way."""
    current = flags.current
    if not current[key].weight_bp:
        return "the weight is 0 already"
    if current.override is not None:
        return f"the override is {current.override.value}"
    if flags.rejected:
        return f"the flag file is not in force: {flags.rejected}"
    if key in current.held:
        return "the route is held on legacy"
    if not workers:
        return "no worker is running"
    if laggards := [worker for worker in workers if worker.version != current.version or worker.rejected]:
        return f"other flags are in force in {_names(laggards)}"
    return ""


@contextmanager
def _ramp_told(key: str, flags: FlagStore, state: Path, weight_bp: int) -> Iterator[None]:
    """Keep the ramp of a route, if it has one, from taking the drill for somebody's wish.

    It is told first and, should this process die, puts the weight back itself.
    """
    ramps = Ramps(state)
    if not flags.current[key].rollout or not ramps.find(key):
        yield
        return

    def begin(ramp: Ramp) -> None:
        if refusal := _about_to_move(ramp):
            raise GatewayError(f"{key}: no drill: {refusal}")
        ramp.drill_bp, ramp.drilling_s = weight_bp, 0.0

    def end(ramp: Ramp) -> None:
        ramp.drill_bp, ramp.since_drill_s, ramp.frozen = None, 0.0, ""

    try:
        with _store_errors(key):
            ramps.change(key, begin)
        try:
            yield
        finally:
            with _store_errors(key):
                ramps.change(key, end)
    finally:
        ramps.close()


@contextmanager
def _store_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise GatewayError(f"{key}: the ramp cannot be told of the drill: {error}") from None


def _about_to_move(ramp: Ramp) -> str:
    if ramp.drill_bp is not None:
        return "another drill is under way"
    if ramp.move is not None:
        return f"the ramp is about to move to {ramp.move.weight_bp / 100:g} %"
    return "the ramp has just moved" if ramp.settling_s is not None else ""


def _wait(version: str, flags: FlagStore, workers: Callable[[], Sequence[Worker]]) -> list[Worker]:
    """The live workers that run neither this version nor a later one when the time is over; none as soon as all do."""
    accepted, deadline = {version}, time.monotonic() + TIMEOUT_S
    while laggards := [worker for worker in workers() if worker.version not in accepted]:
        if time.monotonic() > deadline:
            return laggards
        time.sleep(_POLL_S)
        flags.look()
        accepted.add(flags.current.version)
    return []


def _names(workers: Sequence[Worker]) -> str:
    return ", ".join(f"worker {worker.pid} on {worker.host}" for worker in workers)
