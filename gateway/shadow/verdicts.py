"""What did the shadows show? Outcomes, causes and noise of one host, in the ledger's file.

A cause is a set of places that always differ together, the same way. Each mismatch refines them: where it shows only
some places of a cause, these become one of their own. So thousands of mismatches read as a handful of causes, however
they overlap; a mismatch that shows two causes counts for both.

As in the ledger nothing here blocks or raises; what cannot be written is kept, counted in `dropped` and tried again.
"""

import json
import logging
import sqlite3
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from gateway.compare import ABSENT, general
from gateway.model import Backend, Difference, Observation, Outcome, Verdict
from gateway.store import BUSY_S, Store

from .redact import redact, redact_target, redact_text

MAX_GROUPS = 50  # causes of one key, method and candidate; further places are counted together
OTHER = "other places"
SAMPLES = 3  # of a cause: the first request, and then ever later ones
MAX_DIFFERENCES = 20  # of one sample

log = logging.getLogger(__name__)

_MAX_PLACE = 200  # characters
_TYPES = {
    type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "object",
}  # fmt: skip
_TICK_S = 0.1  # between writes: rollouts wait for these numbers
_RETRY_S = 1.0  # after a failure
_MAX_PENDING = 10_000  # mismatches that wait for a thread that waits for the disk; the oldest go first

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (key TEXT, outcome TEXT, count INTEGER, PRIMARY KEY (key, outcome)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pairs (
  key TEXT, control TEXT, candidate TEXT, count INTEGER, PRIMARY KEY (key, control, candidate)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS causes (
  key TEXT, method TEXT, candidate TEXT, places TEXT, count INTEGER, first_at REAL, last_at REAL, samples TEXT,
  PRIMARY KEY (key, method, candidate, places)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS noise (key TEXT PRIMARY KEY, learned TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (key TEXT, outcome TEXT, count INTEGER, PRIMARY KEY (key, outcome)) WITHOUT ROWID;
"""
_ADD_OUTCOMES = "INSERT INTO outcomes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_ADD_PAIRS = "INSERT INTO pairs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_FORGET = "INSERT OR REPLACE INTO forgotten SELECT key, outcome, count FROM outcomes WHERE key = ?"
_FRESH = """
SELECT key, outcome, outcomes.count - coalesce(forgotten.count, 0)
FROM outcomes LEFT JOIN forgotten USING (key, outcome)
"""
_CAUSES = "SELECT key, method, candidate, places, count, first_at, last_at, samples FROM causes"


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
    at: float  # seconds since the epoch
    target: str  # path and query
    control: int  # status
    candidate: int  # status
    differences: tuple[Difference, ...]  # of the cause; values are JSON in a string, or `absent`


@dataclass(frozen=True, slots=True)
class Group:
    """One cause: places that always differ together."""

    id: str  # hash of what it is about
    key: str
    method: str
    candidate: Backend  # who was the candidate then
    places: tuple[str, ...]  # "$.items[*].title: value", "$.price: str -> float", "status: 200 -> 500"
    count: int  # mismatches that showed it; one may show several
    first_at: float
    last_at: float
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class _Mismatch:
    where: tuple[str, str, str]  # key, method, candidate
    at: float
    sample: Mapping[str, Any]  # all of a Sample but its differences
    differences: Mapping[str, Sequence[str]]  # by cause: place, control, candidate


@dataclass(slots=True)
class _Cause:
    """As it is stored. Samples are as those of mismatches, with differences of this cause only."""

    places: frozenset[str]
    count: int
    first_at: float
    last_at: float
    samples: list[dict[str, Any]]


@dataclass(slots=True)
class _Sums:
    outcomes: Tally[tuple[str, str]] = field(default_factory=Tally)
    pairs: Tally[tuple[str, str, str]] = field(default_factory=Tally)
    learned: dict[str, str] = field(default_factory=dict)
    mismatches: list[_Mismatch] = field(default_factory=list)


class Verdicts:
    """Reads and, between `start` and `close`, writes its tables in `<state>/ledger.sqlite3`."""

    def __init__(self, state: Path) -> None:
        self.dropped = 0  # writes that failed, and mismatches that had no room
        self._outcomes: deque[tuple[str, str]] = deque(maxlen=_MAX_PENDING)
        self._pairs: deque[tuple[str, str, str]] = deque(maxlen=_MAX_PENDING)
        self._mismatches: deque[_Mismatch] = deque(maxlen=_MAX_PENDING)
        self._learned: dict[str, str] = {}
        self._sums = _Sums()  # the thread's own
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="gateway-verdicts", daemon=True)
        self._file = Store(state, _SCHEMA)

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
        self._outcomes.append((key, outcome.value))

    def add(
        self,
        asked: Asked,
        key: str,
        candidate: Backend,
        verdict: Verdict,
        control: Observation,
        candidate_answer: Observation,
    ) -> None:
        """Note a verdict, matched or not: its outcome, the pair of statuses and, redacted, its differences."""
        self._pairs.append((key, _status_class(control), _status_class(candidate_answer)))
        self.count(key, Outcome.MATCHED if verdict.matched else Outcome.MISMATCHED)
        if verdict.matched:
            return
        method, path, query = (asked.scope.get(name, "") for name in ("method", "path", "query_string"))
        target = redact_target(path, query or b"")
        sample = {"id": asked.id, "at": asked.at, "target": target}
        sample |= {"control": control.status, "candidate": candidate_answer.status}
        differences = {_cause(difference): _redacted(difference) for difference in reversed(verdict.differences)}
        self._mismatches.append(_Mismatch((key, method, candidate.value), asked.at, sample, differences))

    def learn(self, key: str, noise: Mapping[str, Any]) -> None:
        """Keep what the noise book knows about `key` now (`NoiseBook.dump`)."""
        self._learned[key] = json.dumps(noise)

    def tallies(self, *, fresh: bool = False) -> dict[str, Mapping[Outcome, int]]:
        """All outcomes, by key. Sums that only ever grow; the `fresh` ones are those since the key was forgotten."""
        tallies: dict[str, dict[Outcome, int]] = {}
        for key, outcome, count in self._file.read(_FRESH if fresh else "SELECT key, outcome, count FROM outcomes"):
            tallies.setdefault(key, {})[Outcome(outcome)] = count
        return dict(tallies)

    def pairs(self) -> dict[str, Mapping[tuple[str, str], int]]:
        """How often which classes of status met, by key: (`2xx`, `5xx`) or (`2xx`, `none`), the control's first."""
        pairs: dict[str, dict[tuple[str, str], int]] = {}
        for key, control, candidate, count in self._file.read("SELECT key, control, candidate, count FROM pairs"):
            pairs.setdefault(key, {})[control, candidate] = count
        return dict(pairs)

    def groups(self, key: str = "") -> list[Group]:
        """The causes of one key or of all, the most frequent first."""
        rows = self._file.read(f"{_CAUSES} WHERE key = ? OR ? = ''", (key, key))
        return sorted(map(_group, rows), key=lambda group: (-group.count, group.key, group.places))

    def noise(self, key: str = "") -> dict[str, Mapping[str, Any]]:
        """What was learned, by key: for `NoiseBook.load` and for people."""
        rows = self._file.read("SELECT key, learned FROM noise WHERE key = ? OR ? = ''", (key, key))
        return {name: json.loads(learned) for name, learned in rows}

    def forget(self, key: str) -> None:
        """Delete the causes and the noise of `key`, for a new start after a fix. Sums stay. Raises OSError.

        A process that replays keeps the noise that it has learned until it ends.
        """
        try:
            with self._file.writing() as connection:
                connection.execute(_FORGET, (key,))
                connection.execute("DELETE FROM causes WHERE key = ?", (key,))
                connection.execute("DELETE FROM noise WHERE key = ?", (key,))
        except sqlite3.Error as error:
            raise OSError(f"{self._file.path}: {error}") from error
        self._file.close()

    def _write(self) -> None:
        """Body of the thread."""
        closing, due = False, 0.0
        while not closing:
            closing = self._closed.wait(_TICK_S)
            self._add_up()
            if (closing or time.monotonic() >= due) and not self._flush():
                due = time.monotonic() + _RETRY_S
        self._file.close()

    def _add_up(self) -> None:
        sums = self._sums
        while self._outcomes:
            sums.outcomes[self._outcomes.popleft()] += 1
        while self._pairs:
            sums.pairs[self._pairs.popleft()] += 1
        while self._learned:
            key, learned = self._learned.popitem()
            sums.learned[key] = learned
        while self._mismatches:
            sums.mismatches.append(self._mismatches.popleft())
        self.dropped += max(0, len(sums.mismatches) - _MAX_PENDING)
        del sums.mismatches[:-_MAX_PENDING]

    def _flush(self) -> bool:
        """Whether all is on disk; after a failure it is kept for the next time."""
        sums = self._sums
        if sums == _Sums():
            return True
        try:
            with self._file.writing() as connection:
                connection.executemany(_ADD_OUTCOMES, [(*of, count) for of, count in sums.outcomes.items()])
                connection.executemany(_ADD_PAIRS, [(*of, count) for of, count in sums.pairs.items()])
                connection.executemany("INSERT OR REPLACE INTO noise VALUES (?, ?)", list(sums.learned.items()))
                _group_all(connection, sums.mismatches)
        except Exception as error:  # noqa: BLE001  # disk full, read-only, locked, corrupt, or what nobody thought of
            log.log(logging.DEBUG if self.dropped else logging.WARNING, "verdicts: %s: %s", self._file.path, error)
            self.dropped += 1
            return False
        self._sums = _Sums()
        return True


# --- mismatches become causes -------------------------------------------------------------------------------------


def _cause(difference: Difference) -> str:
    """What is normal about a difference: where it is, without numbers and ids, and of which kind."""
    where, control, candidate = difference.where, difference.control, difference.candidate
    return f"{redact_text(general(where)[:_MAX_PLACE])}: {_kind(where, control, candidate)}"


def _kind(where: str, control: object, candidate: object) -> str:
    if where == "status":
        return f"{control} -> {candidate}"
    if candidate is ABSENT or control is ABSENT:
        return "missing" if candidate is ABSENT else "extra"
    if type(control) is type(candidate):
        return "value"
    return f"{_type(control)} -> {_type(candidate)}"


def _type(value: object) -> str:
    return _TYPES.get(type(value), type(value).__name__)


def _redacted(difference: Difference) -> tuple[str, str, str]:
    stored = redact(difference)
    return stored.where, str(stored.control), str(stored.candidate)


def _group_all(connection: sqlite3.Connection, mismatches: Sequence[_Mismatch]) -> None:
    of_route: dict[tuple[str, str, str], list[_Mismatch]] = {}
    for mismatch in mismatches:
        of_route.setdefault(mismatch.where, []).append(mismatch)
    for where, found in of_route.items():
        rows = connection.execute(f"{_CAUSES} WHERE key = ? AND method = ? AND candidate = ?", where).fetchall()
        causes = [
            _Cause(frozenset(json.loads(places)), count, first_at, last_at, json.loads(samples))
            for _, _, _, places, count, first_at, last_at, samples in rows
        ]
        for mismatch in found:
            causes = _refine(causes, mismatch)
        connection.execute("DELETE FROM causes WHERE key = ? AND method = ? AND candidate = ?", where)
        connection.executemany(
            "INSERT INTO causes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (*where, json.dumps(sorted(c.places)), c.count, c.first_at, c.last_at, json.dumps(c.samples))
                for c in causes
            ],
        )


def _refine(causes: Sequence[_Cause], mismatch: _Mismatch) -> list[_Cause]:
    """The causes after one more mismatch: each is shown by it as a whole or not at all, and so is a new one."""
    shown = frozenset(mismatch.differences)
    refined: list[_Cause] = []
    for cause in causes:
        whole = cause.places <= shown or len(causes) >= MAX_GROUPS
        parts = [cause] if whole else _split(cause, shown)
        refined += [part for part in parts if part.places]
    new = shown.difference(*(cause.places for cause in refined))
    if new and len(refined) >= MAX_GROUPS:
        shown = shown - new | {OTHER}
        new = frozenset({OTHER}).difference(*(cause.places for cause in refined))
    if new:
        refined.append(_Cause(new, 0, mismatch.at, mismatch.at, []))
    for cause in refined:
        if cause.places & shown:
            _note(cause, mismatch)
    return refined


def _split(cause: _Cause, shown: frozenset[str]) -> list[_Cause]:
    """What the mismatch shows of the cause, and the rest of it."""
    parts = (cause.places & shown, cause.places - shown)
    return [replace(cause, places=places, samples=[_only(s, places) for s in cause.samples]) for places in parts]


def _note(cause: _Cause, mismatch: _Mismatch) -> None:
    """One more; the first is kept as a sample, the others are replaced ever more rarely."""
    cause.count += 1
    cause.first_at, cause.last_at = min(cause.first_at, mismatch.at), max(cause.last_at, mismatch.at)
    sample = _only({**mismatch.sample, "differences": mismatch.differences}, cause.places)
    if len(cause.samples) < SAMPLES:
        cause.samples.append(sample)
    elif cause.count.bit_count() == 1:
        del cause.samples[1]
        cause.samples.append(sample)


def _only(sample: Mapping[str, Any], places: frozenset[str]) -> dict[str, Any]:
    """The sample with the differences of one cause."""
    if places == {OTHER}:
        return {**sample, "differences": dict(list(sample["differences"].items())[:MAX_DIFFERENCES])}
    found = {place: sample["differences"][place] for place in sorted(places) if place in sample["differences"]}
    return {**sample, "differences": dict(list(found.items())[:MAX_DIFFERENCES])}


def _group(row: tuple[Any, ...]) -> Group:
    key, method, candidate, places, count, first_at, last_at, samples = row
    about = sha256(json.dumps([key, method, candidate, places]).encode()).hexdigest()[:12]
    texts = tuple(json.loads(places))
    shown = tuple(_sample(sample) for sample in json.loads(samples))
    return Group(about, key, method, Backend(candidate), texts, count, first_at, last_at, shown)


def _sample(stored: dict[str, Any]) -> Sample:
    differences = tuple(Difference(*difference) for difference in stored.pop("differences").values())
    return Sample(**stored, differences=differences)


def _status_class(answer: Observation) -> str:
    return f"{answer.status // 100}xx" if answer.status and not answer.error else "none"
