"""What happened? Counters and live workers of one host, in one SQLite file that every worker writes and anyone reads.

A broken instrument must not touch what it measures: nothing here blocks a request or raises into one. Each process
has one thread that writes; what cannot be written is kept, counted in `dropped` and tried again a second later.
"""

import json
import logging
import os
import socket
import sqlite3
import threading
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from .latency import latency_bucket
from .model import FULL_BP, Backend
from .store import BUSY_S, Store

BEAT_S = 1.0  # between heartbeats, and between flushes of the counters
TRIAL_S = 0.2  # between flushes while there are trials: a rollout waits for them
STALE_S = 3.0  # after its last heartbeat a worker counts as gone
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # upper ends of the latency buckets

log = logging.getLogger(__name__)

_TICK_S = 0.1
_FORGET_S = 60.0  # lines of other hosts that nobody strikes out
_MAX_PENDING = 100_000  # answers that wait for a thread that waits for the disk; the oldest go first

_BUCKETS = [f"b{n}" for n in range(len(BOUNDS_S) + 1)]
_SIDES = {side.value: side for side in Backend}
_SUMS = ["count", "sum_s", *_BUCKETS]
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS workers (
  host TEXT, pid INTEGER, started_at REAL, version TEXT, rejected TEXT, seen_at REAL, dropped TEXT,
  PRIMARY KEY (host, pid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (
  key TEXT, backend TEXT, status INTEGER, {", ".join(_SUMS)}, PRIMARY KEY (key, backend, status)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fallbacks (key TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trials (
  key TEXT, backend TEXT, count INTEGER, errors INTEGER, latencies TEXT, PRIMARY KEY (key, backend)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS splits (key TEXT PRIMARY KEY, weight_bp INTEGER, places BLOB) WITHOUT ROWID;
"""
_ADD_COUNTERS = f"""
INSERT INTO counters VALUES (?, ?, ?, {", ".join("?" * len(_SUMS))})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)}
"""  # noqa: S608  # names of ours
_ADD_FALLBACKS = "INSERT INTO fallbacks VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_TRIAL = "SELECT count, errors, latencies FROM trials WHERE key = ? AND backend = ?"
_PUT_TRIAL = "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?)"
_SPLIT = "SELECT weight_bp, places FROM splits WHERE key = ?"
_PUT_SPLIT = "INSERT OR REPLACE INTO splits VALUES (?, ?, ?)"
_WORKERS = "SELECT pid, host, version, rejected, started_at, seen_at, dropped FROM workers"
_BEAT = "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Worker:
    """One live process and the flags it runs."""

    pid: int
    host: str
    version: str
    rejected: str  # why it does not run what is on disk; empty: it does
    started_at: float  # seconds since the epoch, as is `seen_at`
    seen_at: float
    dropped: Mapping[str, int] = field(default_factory=dict)  # instrument -> what it could not write


@dataclass(frozen=True, slots=True)
class Counter:
    """Requests of one route that one side answered with one status, over all workers and restarts."""

    key: str
    backend: Backend
    status: int
    count: int
    sum_s: float
    buckets: tuple[int, ...]  # requests per bucket of BOUNDS_S; the last one has no upper end


@dataclass(frozen=True, slots=True)
class Trial:
    """What one side did with the requests that the weight of a route gave it, over all workers and restarts.

    Only these may be compared with the other side's: who was pinned, asked for a side, or used a method that is not
    ported did not come by chance.
    """

    count: int = 0
    errors: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)  # bucket of `gateway.latency` -> requests


@dataclass(frozen=True, slots=True)
class Split:
    """Whose requests were answered while a route had its weight: every place on the line counts once, as a subject."""

    weight_bp: int
    places: int = 0  # a bit for each place from 0 to 9 999 that was seen

    @property
    def subjects(self) -> int:
        return self.places.bit_count()

    @property
    def on_port(self) -> int:
        """Those that the weight gives to FastAPI."""
        return (self.places & ((1 << self.weight_bp) - 1)).bit_count()


def is_error(status: int) -> bool:
    """Whether an answer speaks against the side that gave it; 0: it raised before it had one.

    A client that left has no answer, and its request is noted with a status that is none of these (499).
    """
    return status >= 500 or status == 0


class Instrument(Protocol):
    """Something that rather loses a number than holds up a request."""

    @property
    def dropped(self) -> int: ...


class Ledger:
    """Reads and, between `start` and `close`, writes `<state>/ledger.sqlite3`."""

    def __init__(self, state: Path) -> None:
        self.dropped = 0  # writes that failed
        self._answers: deque[tuple[str, Backend, int, float, bool]] = deque(maxlen=_MAX_PENDING)
        self._fallbacks: deque[str] = deque(maxlen=_MAX_PENDING)
        self._sums: dict[tuple[str, str, int], list[float]] = {}  # key, backend, status; the thread's own, as is
        self._fallen: dict[str, int] = {}
        self._tried: dict[tuple[str, str], _Tried] = {}  # key, backend
        self._places: deque[tuple[str, int, int]] = deque(maxlen=_MAX_PENDING)
        self._splits: dict[str, Split] = {}
        self._running: tuple[str, str] | None = None  # flag version, why the file on disk is rejected
        self._instruments: dict[str, Instrument] = {"ledger": self}
        self._started_at = time.time()
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._write, name="gateway-ledger", daemon=True)
        self._file = Store(state, _SCHEMA)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left and take this worker off the list."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2 * BUSY_S)

    def count(self, key: str, backend: Backend, status: int, duration_s: float, trial: bool = False) -> None:
        """Note one answer. Takes a fraction of a microsecond; on disk about a second later.

        `trial`: the weight of the route chose who answers, so that it counts for a comparison of the two; on disk
        about a fifth of a second later.
        """
        self._answers.append((key, backend, status, duration_s, trial))

    def count_place(self, key: str, weight_bp: int, place_bp: int) -> None:
        """Note at which weight a subject was answered, and its place on the line that the weight splits."""
        self._places.append((key, weight_bp, place_bp))

    def count_fallback(self, key: str) -> None:
        """Note that legacy had to stand in for the port."""
        self._fallbacks.append(key)

    def seen(self, version: str, rejected: str = "") -> None:
        """Report which flags this worker runs; on disk within milliseconds, and with every heartbeat from now on."""
        self._running = version, rejected
        self._wake.set()

    def answer_for(self, **instruments: Instrument) -> None:
        """Tell with every heartbeat what these have dropped, too."""
        self._instruments |= instruments

    def workers(self) -> list[Worker]:
        """The live workers: heard of lately and, on this host, still running."""
        now, host = time.time(), socket.gethostname()
        workers = [replace(Worker(*row), dropped=json.loads(dropped)) for *row, dropped in self._file.read(_WORKERS)]
        return [w for w in workers if now - w.seen_at < STALE_S and (w.host != host or _is_alive(w.pid))]

    def counters(self) -> list[Counter]:
        """All sums, by key, backend and status."""
        rows = self._file.read("SELECT * FROM counters")
        return [
            Counter(key, _SIDES[backend], status, count, sum_s, tuple(buckets))
            for key, backend, status, count, sum_s, *buckets in rows
        ]

    def trials(self) -> dict[tuple[str, Backend], Trial]:
        """All sums of what may be compared, by key and backend."""
        return {
            (key, Backend(backend)): Trial(count, errors, _unpack(latencies))
            for key, backend, count, errors, latencies in self._file.read("SELECT * FROM trials")
        }

    def splits(self) -> dict[str, Split]:
        """Whom each route has answered at its newest weight."""
        rows = self._file.read("SELECT * FROM splits")
        return {key: Split(weight_bp, int.from_bytes(places, "little")) for key, weight_bp, places in rows}

    def fallbacks(self) -> dict[str, int]:
        """How often legacy had to stand in, by key."""
        return dict(self._file.read("SELECT key, count FROM fallbacks"))

    def _write(self) -> None:
        """Body of the thread. Adds up often and little, so that it never holds up the requests for long."""
        due = 0.0
        while not self._closed:
            if woken := self._wake.wait(_TICK_S):
                self._wake.clear()  # only then: a signal that came right after the tick must not be lost
            self._add_up()
            now = time.monotonic()
            if woken or now >= due or (self._tried and now >= due - BEAT_S + TRIAL_S):
                due = now + BEAT_S
                self._flush()
        self._add_up()
        self._flush()
        self._file.close()

    def _add_up(self) -> None:
        while self._answers:
            key, backend, status, duration_s, trial = self._answers.popleft()
            name = key, backend._value_, status
            values = self._sums.get(name)
            if values is None:
                values = self._sums[name] = [0] * len(_SUMS)
            values[0] += 1
            values[1] += duration_s
            values[2 + bisect_left(BOUNDS_S, duration_s)] += 1
            if trial:
                tried = self._tried.setdefault((key, backend.value), _Tried())
                tried.errors += is_error(status)
                tried.latencies[latency_bucket(duration_s)] += 1
        while self._places:
            key, weight_bp, place_bp = self._places.popleft()
            self._splits[key] = _union(self._splits.get(key), Split(weight_bp, 1 << place_bp))
        while self._fallbacks:
            key = self._fallbacks.popleft()
            self._fallen[key] = self._fallen.get(key, 0) + 1

    def _flush(self) -> None:
        """Write the sums and this worker's line; after a failure they are kept for the next time."""
        try:
            with self._file.writing() as connection:
                connection.executemany(_ADD_COUNTERS, [(*key, *values) for key, values in self._sums.items()])
                connection.executemany(_ADD_FALLBACKS, list(self._fallen.items()))
                for key, tried in self._tried.items():
                    _add_trial(connection, *key, tried)
                for name, split in self._splits.items():
                    _add_split(connection, name, split)
                self._beat(connection)
            self._sums, self._fallen, self._tried, self._splits = {}, {}, {}, {}
        except Exception as error:  # noqa: BLE001  # disk full, read-only, locked, corrupt, or what nobody thought of
            log.log(logging.DEBUG if self.dropped else logging.WARNING, "ledger: %s: %s", self._file.path, error)
            self.dropped += 1

    def _beat(self, connection: sqlite3.Connection) -> None:
        """Renew this worker's line and strike out the dead."""
        now, host, pid = time.time(), socket.gethostname(), os.getpid()
        others = connection.execute("SELECT pid FROM workers WHERE host = ? AND pid <> ?", (host, pid)).fetchall()
        dead = [(host, other) for (other,) in others if not _is_alive(other)]
        connection.executemany("DELETE FROM workers WHERE host = ? AND pid = ?", dead)
        connection.execute("DELETE FROM workers WHERE seen_at < ?", (now - _FORGET_S,))
        if self._closed:
            connection.execute("DELETE FROM workers WHERE host = ? AND pid = ?", (host, pid))
        elif self._running:
            dropped = json.dumps({name: instrument.dropped for name, instrument in self._instruments.items()})
            connection.execute(_BEAT, (host, pid, self._started_at, *self._running, now, dropped))


@dataclass(slots=True)
class _Tried:
    """What is to be added to one trial."""

    errors: int = 0
    latencies: Tally[int] = field(default_factory=Tally)


def _add_trial(connection: sqlite3.Connection, key: str, backend: str, tried: _Tried) -> None:
    """A histogram is one small text: the leader reads all of them several times a second."""
    row = connection.execute(_TRIAL, (key, backend)).fetchone()
    count, errors, latencies = row or (0, 0, "{}")
    sums = Tally(_unpack(latencies)) + tried.latencies
    values = (count + tried.latencies.total(), errors + tried.errors, json.dumps(sums))
    connection.execute(_PUT_TRIAL, (key, backend, *values))


def _add_split(connection: sqlite3.Connection, key: str, split: Split) -> None:
    row = connection.execute(_SPLIT, (key,)).fetchone()
    known = Split(row[0], int.from_bytes(row[1], "little")) if row else None
    both = _union(known, split)
    if both != known:
        connection.execute(_PUT_SPLIT, (key, both.weight_bp, both.places.to_bytes(FULL_BP // 8, "little")))


def _union(known: Split | None, fresh: Split) -> Split:
    """Another weight splits the line elsewhere: nobody is on it yet."""
    if known is None or known.weight_bp != fresh.weight_bp:
        return fresh
    return Split(fresh.weight_bp, known.places | fresh.places)


@lru_cache(1024)  # most have not changed since they were read last
def _unpack(latencies: str) -> Mapping[int, int]:
    return {int(bucket): count for bucket, count in json.loads(latencies).items()}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
