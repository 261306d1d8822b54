"""When must a worker stop asking a port at once, without waiting for anybody? One thread per worker watches its routes.

Only towards legacy. What is obvious trips for every ported route that serves somebody (`Tripwire`); what is provable
trips where legacy answers at the same time (`Contrast`); a worker that grows too much trips for the route that makes it
grow, if it is under rollout. The route is then held here at once, and set to 0 in the flag file for all. What legacy
does badly, too, never trips.
"""

import logging
import math
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import FlagConflict, GatewayError
from gateway.flags import FlagStore
from gateway.model import FULL_BP, Backend, FlagSet

from .judge import Tripwire
from .memory import Memory, resident_bytes
from .sequential import NONE, Contrast, Count
from .states import Ramps, RollBack

SLOT_S = 0.05  # after which answers are taken together; the thread looks sooner when one has failed
WINDOW_S = 30.0  # after which what is provable is proven anew
LOG_E = math.log(1e6)  # evidence that trips: there are many windows, workers and routes
RETRY_S, RETRIES = 0.1, 50  # of an edit that others are in the way of
BY = "breaker"

log = logging.getLogger(__name__)

_MAX_PENDING = 100_000
_HARM = 0.01


@dataclass(slots=True)
class _Watched:
    """What one route did since its weight was set."""

    weight_bp: int
    rollout: bool
    wire: Tripwire = field(default_factory=Tripwire)
    contrast: Contrast = field(default_factory=lambda: Contrast(_HARM))
    until: float = 0.0  # when the contrast begins anew
    legacy: Count = NONE  # in this slot
    port: Count = NONE
    held: bool = False


class Breaker:
    """`note` every answer of a route that the port serves; the rest happens by itself between `start` and `close`."""

    def __init__(self, flags: FlagStore, state: Path, memory_budget_bytes: int) -> None:
        self._flags, self._state = flags, state
        self._notes: deque[tuple[str, Backend, bool, bool]] = deque(maxlen=_MAX_PENDING)
        self._routes: dict[str, _Watched] = {}
        self._memory = Memory(memory_budget_bytes, resident_bytes())
        self._asked: dict[str, int] = {}  # answers of ports since the last look at the memory
        self._seen: FlagSet | None = None
        self.failures = 0  # of the watch itself
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="gateway-breaker", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2)

    def note(self, key: str, backend: Backend, failed: bool, trial: bool = True) -> None:
        """Note an answer. Takes a fraction of a microsecond; a failure is looked at within milliseconds.

        `trial`: the weight of the route chose who answers. Other answers, as of legacy that stands in for the port,
        only tell whether legacy fails, too.
        """
        self._notes.append((key, backend, failed, trial))
        if failed and backend is Backend.FASTAPI:
            self._wake.set()

    def watches(self, key: str) -> bool:
        """Whether notes about `key` can matter: the port serves somebody."""
        return key in self._routes

    # --- the thread

    def _run(self) -> None:
        slot_at = 0.0
        while not self._closed:
            self._wake.wait(SLOT_S)
            self._wake.clear()
            now = time.monotonic()
            try:
                self._look()
                if now >= slot_at:  # by the clock alone: no outcome may choose where a block of the test ends
                    slot_at = now + SLOT_S
                    self._close_slot(now)
                    self._measure()
            except Exception:
                self.failures += 1
                log.log(logging.DEBUG if self.failures > 1 else logging.ERROR, "breaker: a look failed", exc_info=True)

    def _look(self) -> None:
        if (flags := self._flags.current) is not self._seen:
            self._follow(flags)
        self._take_notes()

    def _follow(self, flags: FlagSet) -> None:
        """Begin anew with every route whose weight has changed."""
        self._seen = flags
        served = {key: flag for key, flag in flags.flags.items() if flag.weight_bp}
        for key in self._routes.keys() - served.keys():
            del self._routes[key]
            self._memory.forget(key)
        for key, flag in served.items():
            route = self._routes.get(key)
            now = (flag.weight_bp, bool(flag.rollout))
            if route and (route.weight_bp, route.rollout) == now and route.held <= (key in flags.held):
                continue
            self._routes[key] = _Watched(*now)
            self._memory.forget(key)
            if flag.rollout:
                self._memory.watch(key)

    def _take_notes(self) -> None:
        while self._notes:
            key, backend, failed, trial = self._notes.popleft()
            route = self._routes.get(key)
            if route is None or route.held:
                continue
            if backend is Backend.LEGACY:
                route.wire.legacy(failed)
                route.legacy = route.legacy.plus(Count(trial, trial and failed))
            elif trial:
                route.port = route.port.plus(Count(1, failed))
                self._asked[key] = self._asked.get(key, 0) + 1
                if route.wire.port(failed):
                    self._trip(key, "the port fails obviously, and legacy does not", {})

    def _close_slot(self, now: float) -> None:
        for key, route in self._routes.items():
            if route.held or not (route.legacy.total or route.port.total):
                continue
            if now >= route.until:
                route.until, route.contrast = now + WINDOW_S, Contrast(_HARM, route.contrast.legacy)
            route.contrast.add(route.legacy, route.port)
            route.legacy = route.port = NONE
            if 0 < route.weight_bp < FULL_BP and route.contrast.log_e >= LOG_E:
                port, legacy = route.contrast.port, route.contrast.legacy
                why = f"the port fails {port.bad} of {port.total}, legacy {legacy.bad} of {legacy.total}"
                self._trip(key, why, {"log_e": round(route.contrast.log_e, 2)})

    def _measure(self) -> None:
        self._memory.slot(self._asked)
        self._asked = {}
        if found := self._memory.culprit():
            key, numbers = found
            self._memory.forget(key)
            grown, share = numbers["grown_bytes"] >> 20, numbers["share_bytes"] >> 20
            self._trip(key, f"a worker has grown by {grown} MiB, by {share} MiB with the answers of this port", numbers)

    # --- tripping

    def _trip(self, key: str, why: str, numbers: Mapping[str, Any]) -> None:
        """Hold the route here, now; then tell everybody, each way in a thread of its own: none waits for the other."""
        route = self._routes[key]
        if route.held:
            return
        route.held = True
        port, legacy = route.port.plus(route.contrast.port), route.legacy.plus(route.contrast.legacy)
        evidence = {
            "worker": os.getpid(),
            "weight_bp": route.weight_bp,
            "port_answers": port.total,
            "port_errors": port.bad,
            "legacy_answers": legacy.total,
            "legacy_errors": legacy.bad,
            **numbers,
        }
        self._flags.hold(key, why, evidence)
        for tell in (self._tell_file, self._tell_leader) if route.rollout else (self._tell_file,):
            threading.Thread(target=tell, args=(key, why, evidence), name="gateway-tell", daemon=True).start()

    def _tell_file(self, key: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Set the weight to 0 for all workers. Where that is impossible the hold stays, here."""
        for _ in range(RETRIES):
            try:
                self._flags.edit(RollBack(key, 0), by=BY, why=why, evidence=evidence)
            except FlagConflict:
                time.sleep(RETRY_S)
            except (GatewayError, OSError) as error:
                log.error("breaker: %s stays held in this worker alone: %s", key, error)  # noqa: TRY400  # no traceback
                return
            else:
                return

    def _tell_leader(self, key: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Start the lock-out of its ramp; the leader also sets the weight to 0, should this process die before."""
        ramps = Ramps(self._state)
        try:
            ramps.change(key, lambda ramp: ramp.roll_back(BY, why, evidence))
        except (GatewayError, sqlite3.Error, OSError) as error:
            log.warning("breaker: %s: the lock-out is left to the leader: %s", key, error)
        finally:
            ramps.close()
