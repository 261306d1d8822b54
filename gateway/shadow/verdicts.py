"""What did the shadows show? Outcomes, causes and noise of one host, in the ledger's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..model import Backend, Difference, Observation, Outcome, Verdict


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
    """Reads and, between `start` and `close`, writes its tables in `<state>/ledger.sqlite3`."""

    def __init__(self, state: Path) -> None:
        self.dropped = 0  # writes that failed, and what had no room

    def start(self) -> None:
        """Begin to write."""

    def close(self) -> None:
        """Write what is left."""

    def count(self, key: str, outcome: Outcome) -> None:
        """Note what became of a request that was to be replayed; not for what `add` is told, which counts itself."""

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

    def learn(self, key: str, noise: Mapping[str, Any]) -> None:
        """Keep what the noise book knows about `key` now (`NoiseBook.dump`)."""

    def tallies(self) -> dict[str, Mapping[Outcome, int]]:
        """All outcomes, by key. Sums that only ever grow."""
        return {}

    def pairs(self) -> dict[str, Mapping[tuple[str, str], int]]:
        """Status classes (`2xx` ... `5xx`, `none`) of control and candidate, by key."""
        return {}

    def groups(self, key: str = "") -> list[Group]:
        """The causes of one key or of all, the most frequent first."""
        return []

    def noise(self, key: str = "") -> dict[str, Mapping[str, Any]]:
        """What was learned, by key: for `NoiseBook.load` and for people."""
        return {}

    def forget(self, key: str) -> None:
        """Delete the causes and the noise of `key`, for a new start after a fix. Raises nothing; sums stay."""
