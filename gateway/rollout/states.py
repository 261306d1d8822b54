"""Where does each ramp stand? Kept in the file of the host, for whoever leads next and for whoever asks.

The leader writes now and then and at every move; breakers, drills and people change single ramps in between. Every
write raises a revision, and the leader writes only onto the revision that it has read: nobody's word is lost.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from gateway.errors import GatewayError
from gateway.flagfile import SetWeight
from gateway.ledger import Trial
from gateway.model import Backend
from gateway.store import Store

from .judge import Action, Step
from .sequential import NONE, Count, Evidence

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ramps (name TEXT PRIMARY KEY, state TEXT) WITHOUT ROWID;
INSERT OR IGNORE INTO ramps VALUES ('', '0');
"""
_REVISION = "SELECT state FROM ramps WHERE name = ''"
_RAISE = "UPDATE ramps SET state = ? WHERE name = ''"
_PUT = "INSERT OR REPLACE INTO ramps VALUES (?, ?)"


class Advance(SetWeight):
    """A weight that a robot raises."""

    action: ClassVar[str] = "advance"


class RollBack(SetWeight):
    """A weight that a robot takes back."""

    action: ClassVar[str] = "rollback"


class Overtaken(Exception):
    """Somebody else has written since the revision that a change was based on."""


@dataclass(frozen=True, slots=True)
class Move:
    """A weight that was decided on and is not yet in the flag file of every member."""

    action: Action
    weight_bp: int
    by: str
    why: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def change(self, key: str) -> SetWeight:
        """What it makes of the flag of one member."""
        return (Advance if self.action is Action.ADVANCE else RollBack)(key, self.weight_bp)

    def is_due(self, weight_bp: int) -> bool:
        """Whether a member at this weight has still to move; an advance lowers nobody."""
        return weight_bp < self.weight_bp if self.action is Action.ADVANCE else weight_bp > self.weight_bp


@dataclass(slots=True)
class Member:
    """One route of a ramp."""

    weight_bp: int  # that the ramp has set or accepted; any other one in the flag file is somebody else's wish
    evidence: Evidence | None = None  # of its own, where several move together
    seen: dict[Backend, Trial] = field(default_factory=dict)  # sums of the ledger that are part of the evidence
    compared: Count = NONE  # shadow comparisons in this step
    compared_before: Count = NONE  # sums of the shadow when the step began


@dataclass(slots=True)
class Ramp:
    """A route with a rollout, or all routes of one cohort with the same rollout: they move together.

    Durations count only while somebody leads, by a clock that nobody sets; `at` is for people.
    """

    name: str
    plan: str
    weight_bp: int
    evidence: Evidence  # of all members together
    members: dict[str, Member] = field(default_factory=dict)
    at: str = ""  # when the weight was set: UTC, ISO 8601
    in_step_s: float = 0.0
    settling_s: float | None = 0.0  # since the weight was set and while workers may still run the old one
    rollbacks: int = 0
    since_rollback_s: float | None = None
    since_drill_s: float = 0.0
    paused: str = ""  # who or what stopped it: it may still roll back, but never advances
    drill_bp: int | None = None  # the weight to which a drill will return
    drilling_s: float = 0.0
    frozen: str = ""  # why nothing is decided at present
    move: Move | None = None
    step: Step | None = None  # what was judged last

    def roll_back(self, by: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Demand weight 0 and start the lock-out; once, however many demand it."""
        if (self.move and not self.move.weight_bp) or not any(member.weight_bp for member in self.members.values()):
            return
        self.move = Move(Action.ROLL_BACK, 0, by, why, evidence)
        self.rollbacks += 1
        self.since_rollback_s = 0.0
        self.drill_bp = None


class Ramps:
    """Reads and writes the ramps in the directory `state`. For one thread, but for `load`, `find` and `revision`."""

    def __init__(self, state: Path) -> None:
        self._file = Store(state, _SCHEMA)

    def revision(self) -> int:
        """Grows with every write; 0 before the first."""
        return int(next(iter(self._file.read(_REVISION)), ("0",))[0])

    def load(self) -> tuple[int, dict[str, Ramp]]:
        """The revision, and every ramp by name."""
        rows = dict(self._file.read("SELECT name, state FROM ramps"))
        revision = int(rows.pop("", "0"))
        return revision, {name: unpack(state) for name, state in rows.items()}

    def find(self, key: str) -> Ramp | None:
        """The ramp that moves `key`."""
        return next((ramp for ramp in self.load()[1].values() if key in ramp.members), None)

    def save(self, ramps: Iterable[Ramp], gone: Iterable[str], revision: int) -> int:
        """Write ramps onto `revision`, and return the new one.

        Raises Overtaken when somebody else has written since, and sqlite3.Error or OSError where nobody can.
        """
        rows = [(ramp.name, pack(ramp)) for ramp in ramps]
        with self._file.writing() as connection:
            if int(connection.execute(_REVISION).fetchone()[0]) != revision:
                raise Overtaken
            connection.executemany(_PUT, rows)
            connection.executemany("DELETE FROM ramps WHERE name = ?", [(name,) for name in gone])
            connection.execute(_RAISE, (str(revision + 1),))
        return revision + 1

    def change(self, key: str, how: Callable[[Ramp], object]) -> Ramp:
        """Let `how` change the ramp that moves `key`. Raises GatewayError if there is none."""
        while True:
            revision, ramps = self.load()
            ramp = next((ramp for ramp in ramps.values() if key in ramp.members), None)
            if ramp is None:
                raise GatewayError(f"{key}: no rollout is under way")
            how(ramp)
            try:
                self.save([ramp], (), revision)
            except Overtaken:
                continue
            return ramp

    def close(self) -> None:
        self._file.close()


def pause(state: Path, key: str, *, by: str, why: str = "") -> Ramp:
    """Let a ramp advance no more. It still rolls back. Raises GatewayError where there is none."""
    return _change(state, key, lambda ramp: _set_paused(ramp, f"paused by {by}" + (f": {why}" if why else "")))


def resume(state: Path, key: str) -> Ramp:
    """Let a ramp go on from the weight that the flag file has. Raises GatewayError where there is none."""
    return _change(state, key, lambda ramp: _set_paused(ramp, ""))


def status(state: Path, key: str) -> Ramp | None:
    """Where the ramp of a route stands, a few seconds ago at most; None: it has no rollout that was ever begun."""
    return Ramps(state).find(key)


def _change(state: Path, key: str, how: Callable[[Ramp], object]) -> Ramp:
    ramps = Ramps(state)
    try:
        return ramps.change(key, how)
    finally:
        ramps.close()


def _set_paused(ramp: Ramp, paused: str) -> None:
    ramp.paused = paused


# --- as text


def pack(ramp: Ramp) -> str:
    """A ramp as JSON."""
    values = {name: getattr(ramp, name) for name in Ramp.__dataclass_fields__}
    values["evidence"] = ramp.evidence.state()
    values["members"] = {key: _pack_member(member) for key, member in ramp.members.items()}
    for name in ("move", "step"):
        if value := values[name]:
            values[name] = {**asdict(value), "action": value.action.value}
    return json.dumps(values)


def unpack(text: str) -> Ramp:
    """The ramp that `pack` wrote."""
    values = json.loads(text)
    values["evidence"] = Evidence.restored(values["evidence"])
    values["members"] = {key: _unpack_member(member) for key, member in values["members"].items()}
    for name, kind in (("move", Move), ("step", Step)):
        if value := values[name]:
            values[name] = replace(kind(**value), action=Action(value["action"]))
    if values["step"]:
        values["step"] = replace(values["step"], missing=tuple(values["step"].missing))
    return Ramp(**values)


def _pack_member(member: Member) -> dict[str, Any]:
    seen = {
        side.value: [trial.count, trial.errors, list(trial.latencies.items())] for side, trial in member.seen.items()
    }
    return {
        "weight_bp": member.weight_bp,
        "evidence": member.evidence.state() if member.evidence else None,
        "seen": seen,
        "compared": member.compared,
        "compared_before": member.compared_before,
    }


def _unpack_member(state: Mapping[str, Any]) -> Member:
    seen = {
        Backend(side): Trial(count, errors, dict(map(tuple, latencies)))
        for side, (count, errors, latencies) in state["seen"].items()
    }
    evidence = Evidence.restored(state["evidence"]) if state["evidence"] else None
    return Member(state["weight_bp"], evidence, seen, Count(*state["compared"]), Count(*state["compared_before"]))
