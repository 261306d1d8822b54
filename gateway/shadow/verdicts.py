"""What did the shadows show? Outcomes, causes and noise of one host, in the ledger's file."""

import json
import logging
import re
import sqlite3
import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from gateway.compare import ABSENT
from gateway.model import Backend, Difference, Observation, Outcome, Verdict
from gateway.store import BUSY_S, Store

from .redact import redact, redact_target

FLUSH_S = 0.2
MAX_GROUPS = 100  # causes of one route; what else differs is the cause OTHER
MAX_PLACES = 20  # in the signature of a cause, and in a sample
MAX_SAMPLES = 3
OTHER = "something else: there are too many causes to tell them apart"

log = logging.getLogger(__name__)

_MAX_PENDING = 10_000  # verdicts that wait for a thread that waits for the disk
_SPREAD = frozenset(10**n for n in range(1, 10))  # of these occurrences a sample is kept, too
_ITEM = re.compile(r"\[[0-9]+\]")
_JSON = (str, int, float, bool, type(None), list, dict)
_TYPES: Mapping[type, str] = {
    bool: "boolean",
    dict: "object",
    float: "float",
    int: "integer",
    list: "list",
    str: "string",
    type(None): "null",
}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (key TEXT, outcome TEXT, count INTEGER, PRIMARY KEY (key, outcome)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS status_pairs (
  key TEXT, control TEXT, candidate TEXT, count INTEGER, PRIMARY KEY (key, control, candidate)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS causes (
  key TEXT, id TEXT, method TEXT, candidate TEXT, places TEXT, count INTEGER, first_at REAL, last_at REAL, samples TEXT,
  PRIMARY KEY (key, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS noise (key TEXT PRIMARY KEY, learned TEXT) WITHOUT ROWID;
"""
_ADD_OUTCOMES = "INSERT INTO outcomes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_ADD_PAIRS = "INSERT INTO status_pairs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_CAUSE = "SELECT count, first_at, last_at, samples FROM causes WHERE key = ? AND id = ?"
_CAUSES = "SELECT COUNT(*) FROM causes WHERE key = ?"


class Asked(Protocol):
    """The request that was replayed; an `Exchange` is one."""

    @property
    def id(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def scope(self) -> Mapping[str, Any]: ...  # method, path, query_string


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that showed a cause; all redacted."""

    id: str  # of the request
    at: float  # epoch seconds
    target: str  # path and query
    control: int  # status
    candidate: int  # status
    differences: tuple[Difference, ...]  # the values as JSON has them; Absent is {"absent": true}


@dataclass(frozen=True, slots=True)
class Group:
    """One cause: places that always differ together."""

    id: str  # hash of its places
    key: str
    method: str
    candidate: Backend  # who was the candidate then
    places: tuple[str, ...]  # "$.items[*].title: value", "status: 200 -> 500"
    count: int
    first_at: float
    last_at: float
    samples: tuple[Sample, ...]


class Verdicts:
    """Reads and, between `start` and `close`, writes its tables in `<state>/ledger.sqlite3`.

    One thread writes, a fifth of a second after it was told, for rollouts wait. What cannot be written is kept for the
    next time, and counted in `dropped`; what is too much is dropped.
    """

    def __init__(self, state: Path) -> None:
        self.dropped = 0  # writes that failed, and what had no room
        self._file = Store(state, _SCHEMA)
        self._outcomes: deque[tuple[str, Outcome]] = deque(maxlen=_MAX_PENDING)
        self._added: deque[_Added] = deque(maxlen=_MAX_PENDING)
        self._learned: dict[str, Mapping[str, Any]] = {}
        self._sums: Tally[tuple[str, str]] = Tally()
        self._statuses: Tally[tuple[str, str, str]] = Tally()
        self._causes: list[_Added] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="gateway-verdicts", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(2 * BUSY_S)

    def count(self, key: str, outcome: Outcome) -> None:
        """Note what became of a request that was to be replayed; not for what `add` is told, which counts itself."""
        self._outcomes.append((key, outcome))

    def add(  # all there is to know about one comparison
        self,
        asked: Asked,
        key: str,
        candidate: Backend,
        verdict: Verdict,
        control: Observation,
        candidate_answer: Observation,
    ) -> None:
        """Note a verdict, matched or not: its outcome, the pair of statuses and, redacted, its differences."""
        if len(self._added) == _MAX_PENDING:
            self.dropped += 1
        self._added.append(_Added(asked, key, candidate, verdict.differences, control.status, candidate_answer.status))

    def learn(self, key: str, noise: Mapping[str, Any]) -> None:
        """Keep what the noise book knows about `key` now (`NoiseBook.dump`)."""
        self._learned[key] = noise

    def tallies(self) -> dict[str, Mapping[Outcome, int]]:
        """All outcomes, by key. Sums that only ever grow."""
        tallies: dict[str, dict[Outcome, int]] = {}
        for key, outcome, count in self._file.read("SELECT key, outcome, count FROM outcomes"):
            tallies.setdefault(key, {})[Outcome(outcome)] = count
        return dict(tallies)

    def pairs(self) -> dict[str, Mapping[tuple[str, str], int]]:
        """Status classes (`2xx` ... `5xx`, `none`) of control and candidate, by key."""
        pairs: dict[str, dict[tuple[str, str], int]] = {}
        for key, control, candidate, count in self._file.read("SELECT * FROM status_pairs"):
            pairs.setdefault(key, {})[control, candidate] = count
        return dict(pairs)

    def groups(self, key: str = "") -> list[Group]:
        """The causes of one key or of all, the most frequent first."""
        rows = self._file.read("SELECT * FROM causes WHERE ? IN ('', key) ORDER BY count DESC, first_at, id", (key,))
        return [_group(*row) for row in rows]

    def noise(self, key: str = "") -> dict[str, Mapping[str, Any]]:
        """What was learned, by key: for `NoiseBook.load` and for people."""
        rows = self._file.read("SELECT key, learned FROM noise WHERE ? IN ('', key)", (key,))
        return {name: json.loads(learned) for name, learned in rows}

    def forget(self, key: str) -> None:
        """Delete the causes and the noise of `key`, for a new start after a fix. Raises nothing; sums stay."""
        try:
            with self._file.writing() as connection:
                connection.execute("DELETE FROM causes WHERE key = ?", (key,))
                connection.execute("DELETE FROM noise WHERE key = ?", (key,))
        except Exception as error:  # noqa: BLE001  # disk full, read-only, locked
            log.warning("verdicts: %s is not forgotten: %s", key, error)
            self.dropped += 1
        finally:
            if not self._thread.is_alive():
                self._file.close()

    # --- the thread

    def _write(self) -> None:
        while not self._closed.wait(FLUSH_S):
            self._flush()
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        """Write what has come; after a failure the sums are kept for the next time."""
        self._take()
        learned, self._learned = self._learned, {}
        if not (self._sums or self._causes or learned):
            return
        try:
            with self._file.writing() as connection:
                connection.executemany(_ADD_OUTCOMES, [(*names, count) for names, count in self._sums.items()])
                connection.executemany(_ADD_PAIRS, [(*names, count) for names, count in self._statuses.items()])
                for added in self._causes:
                    _put_cause(connection, added)
                connection.executemany(
                    "INSERT OR REPLACE INTO noise VALUES (?, ?)",
                    [(key, json.dumps(values)) for key, values in learned.items()],
                )
            self._sums, self._statuses, self._causes = Tally(), Tally(), []
        except Exception as error:  # noqa: BLE001  # disk full, read-only, locked, corrupt, or what nobody thought of
            log.log(logging.DEBUG if self.dropped else logging.WARNING, "verdicts: %s: %s", self._file.path, error)
            self.dropped += 1
            self._learned = learned | self._learned

    def _take(self) -> None:
        """Add up what has come since the last time."""
        while self._outcomes:
            key, outcome = self._outcomes.popleft()
            self._sums[key, outcome.value] += 1
        while self._added:
            added = self._added.popleft()
            outcome = Outcome.MISMATCHED if added.differences else Outcome.MATCHED
            self._sums[added.key, outcome.value] += 1
            self._statuses[added.key, _class(added.control), _class(added.status)] += 1
            if added.differences and len(self._causes) < _MAX_PENDING:
                self._causes.append(added)


@dataclass(frozen=True, slots=True)
class _Added:
    """One verdict on its way to the disk."""

    asked: Asked
    key: str
    candidate: Backend
    differences: tuple[Difference, ...]
    control: int  # status
    status: int  # of the candidate


def _put_cause(connection: sqlite3.Connection, added: _Added) -> None:
    """Count a verdict under its cause, and keep it as a sample if that has few."""
    method = str(added.asked.scope.get("method", ""))
    places = signature(added.differences)
    cause = _cause_id(method, added.candidate, places)
    row = connection.execute(_CAUSE, (added.key, cause)).fetchone()
    if row is None and connection.execute(_CAUSES, (added.key,)).fetchone()[0] >= MAX_GROUPS:
        places, cause = (OTHER,), _cause_id("", added.candidate, (OTHER,))
        row = connection.execute(_CAUSE, (added.key, cause)).fetchone()
    count, first_at, last_at, texts = row or (0, added.asked.at, added.asked.at, "[]")
    samples = json.loads(texts)
    if len(samples) < MAX_SAMPLES or count + 1 in _SPREAD:  # the first, and then one of each magnitude
        samples = [*samples[:1], *samples[len(samples) - MAX_SAMPLES + 2 :]] if len(samples) >= MAX_SAMPLES else samples
        samples.append(_sample(added))
    values = (count + 1, min(first_at, added.asked.at), max(last_at, added.asked.at), json.dumps(samples))
    connection.execute(
        "INSERT OR REPLACE INTO causes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (added.key, cause, method, added.candidate.value, json.dumps(places), *values),
    )


def signature(differences: Iterable[Difference]) -> tuple[str, ...]:
    """What makes two mismatches one cause: the places that differ and how, whatever stands there.

    `$.items[*].title: value`, `$.price: str -> float`, `header.etag: missing`, `status: 200 -> 500`.
    """
    kinds = {f"{_ITEM.sub('[*]', found.where)}: {_kind(found)}" for found in differences}
    shown = sorted(kinds)
    return (*shown[:MAX_PLACES], f"and {len(shown) - MAX_PLACES} more") if len(shown) > MAX_PLACES else tuple(shown)


def _kind(found: Difference) -> str:
    ours, theirs = found.control, found.candidate
    if found.where == "status":
        return f"{ours} -> {theirs}"
    if theirs is ABSENT:
        return "missing"
    if ours is ABSENT:
        return "added"
    if type(ours) is not type(theirs):
        return f"{_TYPES.get(type(ours), 'value')} -> {_TYPES.get(type(theirs), 'value')}"
    return "value"


def _cause_id(method: str, candidate: Backend, places: Sequence[str]) -> str:
    return sha256("\n".join((method, candidate.value, *places)).encode(errors="replace")).hexdigest()[:12]


def _sample(added: _Added) -> dict[str, Any]:
    scope = added.asked.scope
    target = redact_target(str(scope.get("path", "")), scope.get("query_string", b""))
    kept = [redact(found) for found in added.differences[:MAX_PLACES]]
    return {
        "id": added.asked.id,
        "at": added.asked.at,
        "target": target,
        "control": added.control,
        "candidate": added.status,
        "differences": [[found.where, _plain(found.control), _plain(found.candidate)] for found in kept],
    }


def _plain(value: object) -> object:
    return {"absent": True} if value is ABSENT else value if isinstance(value, _JSON) else str(value)


def _group(  # noqa: PLR0913, PLR0917  # the columns of a row
    key: str,
    cause: str,
    method: str,
    candidate: str,
    places: str,
    count: int,
    first_at: float,
    last_at: float,
    texts: str,
) -> Group:
    samples = tuple(
        Sample(**{**sample, "differences": tuple(Difference(*found) for found in sample["differences"])})
        for sample in json.loads(texts)
    )
    return Group(cause, key, method, Backend(candidate), tuple(json.loads(places)), count, first_at, last_at, samples)


def _class(status: int) -> str:
    return f"{status // 100}xx" if 100 <= status < 600 else "none"
