"""Is the port of a route obviously broken, here and now? Each worker asks about its own answers, and acts at once.

It acts only towards legacy: first in this worker, by a hold, then for all of them, by the flag file. What takes more
than a glance is the leader's: `ramp`.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from gateway.errors import FlagConflict, GatewayError
from gateway.flags import FlagStore
from gateway.model import Backend, Flag

from .judge import Tripwire
from .states import RollBack

BY = "breaker"
ATTEMPTS = 5  # to edit a flag file that others edit, too
PAUSE_S = 0.05

log = logging.getLogger(__name__)

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Breaker:
    """For the event loop of one worker. `memory_budget_bytes`: by which a port under a rollout may make it grow."""

    def __init__(self, flags: FlagStore, memory_budget_bytes: int) -> None:
        self._flags, self._budget_bytes = flags, memory_budget_bytes
        self._watches: dict[str, _Watch] = {}
        self._memory = _Memory()

    def note(self, flag: Flag, backend: Backend, *, failed: bool) -> None:
        """Note an answer of a route of which the port serves a share. Takes about a microsecond."""
        watch = self._watches.get(flag.key)
        if watch is None or watch.weight_bp != flag.weight_bp:
            watch = self._watches[flag.key] = _Watch(flag.weight_bp)
        if flag.rollout:
            grown_bytes = self._memory.grown_bytes()  # by whatever was answered last: a leak shows on average
            if backend is Backend.FASTAPI:
                watch.grown_bytes += grown_bytes
        if backend is Backend.LEGACY:
            watch.tripwire.legacy(failed)
            return
        watch.answers += 1
        watch.errors += failed
        if watch.tripwire.port(failed):
            self._trip(flag, watch, f"{watch.errors} of {watch.answers} answers of the port failed in one worker")
        elif watch.grown_bytes > self._budget_bytes:
            grown = f"{watch.grown_bytes / 1e6:.0f} MB"
            self._trip(flag, watch, f"the memory of one worker grew by {grown} in {watch.answers} answers of the port")

    def _trip(self, flag: Flag, watch: "_Watch", why: str) -> None:
        if flag.key in self._flags.current.held:
            return  # requests that were under way
        evidence = {
            "answers": watch.answers,
            "errors": watch.errors,
            "grown_bytes": watch.grown_bytes,
            "weight_bp": flag.weight_bp,
            "pid": os.getpid(),
        }
        del self._watches[flag.key]
        self._flags.hold(flag.key, why, evidence)
        edit = threading.Thread(target=self._roll_back, args=(flag.key, why, evidence), name="gateway-breaker")
        edit.start()

    def _roll_back(self, key: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Take the route back for all workers. Where that cannot be, the hold of this one remains."""
        for attempt in range(ATTEMPTS):
            if not self._flags.current[key].weight_bp:
                return  # somebody was faster
            try:
                self._flags.edit(RollBack(key, 0), by=BY, why=why, evidence=evidence)
            except FlagConflict as error:
                log.warning("breaker: %s: %s", key, error)
                time.sleep(PAUSE_S * (attempt + 1))
            except GatewayError as error:
                log.error("breaker: %s is held on legacy in this worker only: %s", key, error)  # noqa: TRY400
                return
            else:
                return


class _Watch:
    """What is known of one route since its weight was set."""

    __slots__ = ("answers", "errors", "grown_bytes", "tripwire", "weight_bp")

    def __init__(self, weight_bp: int) -> None:
        self.weight_bp = weight_bp
        self.tripwire = Tripwire()
        self.answers = self.errors = self.grown_bytes = 0


class _Memory:
    """What this process has in use, told as differences."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._bytes = self._resident()

    def grown_bytes(self) -> int:
        """Since the last time it was asked; negative when memory was given back."""
        before, self._bytes = self._bytes, self._resident()
        return self._bytes - before

    def _resident(self) -> int:
        return int(os.pread(self._statm, 64, 0).split()[1]) * _PAGE_BYTES
