"""Which worker does what only one may do? The one that holds the lock of this host.

The kernel frees the lock of a process that dies, however it dies, so that there is nothing to elect and nothing to
expire: the next worker that asks has it, a quarter of a second later.
"""

import fcntl
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

TICK_S = 0.25  # between attempts to lead, and between the turns of a leader
NAME = "leader.lock"

log = logging.getLogger(__name__)

Job = Callable[[], object]

_LAST_S = 2.0  # for the turn that runs while the worker stops


class Lease(Protocol):
    """What the leader of this host needs to be the only one among several hosts."""

    def held(self) -> bool: ...

    @property
    def token(self) -> int:
        """Grows with every leader: an edit with an older one is refused."""


class Leader:
    """One thread. While this process leads, it runs every job four times a second, one after the other.

    A job that fails is counted in `failures`, logged once per kind of error, and run again with the others the next
    time. Where the lock cannot be taken because the disk is in trouble, nobody leads and nothing else happens.
    """

    def __init__(self, state: Path, jobs: Sequence[Job]) -> None:
        self.leading = False
        self.failures: Counter[str] = Counter()  # "job: type of error" -> how often
        self._path, self._jobs = state / NAME, jobs
        self._lock: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-leader", daemon=True)

    def start(self) -> None:
        """Begin to contend."""
        self._thread.start()

    def close(self) -> None:
        """Let another worker lead, once the turn that runs is over."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_S)

    def _run(self) -> None:
        while True:
            self._turn()
            if self._stop.wait(TICK_S):
                break
        self._let_go()

    def _turn(self) -> None:
        try:
            self.leading = self._lead()
        except OSError as error:
            self._let_go()
            self._failed("lock", error)
        for job in self._jobs if self.leading else ():
            try:
                job()
            except Exception as error:  # noqa: BLE001  # a job must not take the others along
                self._failed(_name(job), error)

    def _lead(self) -> bool:
        """Whether this process holds the lock, and the lock is still the one that others ask for."""
        if self._lock is not None:
            if _is(self._lock, self._path):
                return True
            self._let_go()  # the file was deleted: whoever made it anew may lead already
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._let_go()
            return False
        return _is(self._lock, self._path)

    def _let_go(self) -> None:
        self.leading = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _failed(self, what: str, error: Exception) -> None:
        kind = f"{what}: {type(error).__name__}"
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            log.error("leader: %s: %s", kind, error, exc_info=None if isinstance(error, OSError) else error)


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _name(job: Job) -> str:
    return getattr(job, "__qualname__", type(job).__name__)
