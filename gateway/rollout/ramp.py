"""When does a route get more of the traffic, and when does it go back? The leader's loop over all rollouts.

The loop acts only by editing the flag file, like anybody else. It rolls back to 0, not to the step before: that one
was judged by the port that has now been found wanting. After a lock-out that doubles with every rollback it begins
again at the first step. What people write stands: a weight that somebody raises is where the ramp goes on, with new
evidence; one that somebody lowers pauses it, until somebody raises it or resumes the ramp. The watch never pauses.

Intervals are sums of what a monotonic clock says between two turns of a leader, so that neither a clock that is set
nor a time without a leader moves anything.
"""

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from gateway.audit import Event, utc_now
from gateway.errors import GatewayError
from gateway.flagfile import percent
from gateway.flags import FlagStore
from gateway.latency import LATENCY_BUCKETS
from gateway.ledger import Counter, Split, Trial, Worker, is_error
from gateway.model import FULL_BP, Backend, FlagSet, Outcome, Rollout

from .judge import WATCH_S, Action, Health, Step, begin, judge, lockout_s
from .leader import Lease
from .sequential import NONE, Arm, Count, Evidence
from .states import Member, Move, Overtaken, Ramp, Ramps, RollBack

MAX_GAP_S = 1.0  # a longer time between two turns counts as this
SETTLE_S = 2.0  # for the workers to take up a new weight, before anything is learnt from their answers
JUDGE_S = 1.0  # between judgements while answers come in and none of them is bad
IDLE_S = 30.0  # between judgements while nothing comes in and no wait ends
PER_TURN = 75  # ramps that learn in one turn; when there are more they take it in turns, whatever was answered
SAVE_S = 2.0  # between writes of what was learnt; moves are written at once
SAVE_ALL_S = 10.0  # between writes of everything: so much waiting the death of a leader may cost
RETRY_S = 1.0  # after a rollback that the flag file did not take
DRILL_S = 60.0  # after which a drill counts as abandoned, and its weight is put back
BY = "rollout"

log = logging.getLogger(__name__)

Trials = Mapping[tuple[str, Backend], Trial]
Tallies = Mapping[str, Mapping[Outcome, int]]

_NOTHING = Trial()
_IDLE = Arm()
_FAILING_S = 30.0  # of legacy's answers, wherever it is asked
_FAILING_ANSWERS, _FAILING_SHARE = 5, 0.2


class Sums(Protocol):
    """What the workers of this host, or of all hosts, have answered: a Ledger."""

    def trials(self) -> Trials: ...
    def counters(self) -> Sequence[Counter]: ...
    def splits(self) -> Mapping[str, Split]: ...
    def workers(self) -> Sequence[Worker]: ...


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one turn of the loop looks at."""

    flags: FlagSet
    trials: Trials
    tallies: Tallies
    elapsed_s: float


class RampLoop:
    """Moves every route that has a rollout. `tick` is a job of the Leader; one thread."""

    def __init__(  # noqa: PLR0913  # the one place where all parts meet
        self,
        flags: FlagStore,
        sums: Sums,
        tallies: Callable[[], Tallies],
        ramps: Ramps,
        *,
        ported: Callable[[str], bool] = lambda _: True,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tallies`: outcomes of shadow comparisons by key; `ported`: whether FastAPI answers a key at all."""
        self._flags, self._sums, self._tallies, self._file = flags, sums, tallies, ramps
        self._ported, self._lease, self._clock = ported, lease, clock
        self.ramps: dict[str, Ramp] = {}
        self._revision = -1
        self._ticked_at = self._saved_at = self._saved_all_at = clock()
        self._turns = 0
        self._learnt: set[str] = set()  # ramps that have changed since the last write
        self._last: dict[str, tuple[float, bool]] = {}  # when, and whether the ramp had to wait then
        self._retry_at: dict[str, float] = {}
        self._groups: tuple[FlagSet | None, dict[str, list[str]]] = None, {}
        self._legacy = _LegacyWatch(sums, clock)
        self._splits: Mapping[str, Split] = {}
        self._looked_at = -inf

    def tick(self) -> None:
        """One turn: learn what was answered, judge, move."""
        now = self._clock()
        elapsed_s, self._ticked_at = min(now - self._ticked_at, MAX_GAP_S), now
        if self._lease and not self._lease.held():
            return
        self._catch_up()
        flags = self._flags.current
        groups = self._grouped(flags)
        if not groups and not self.ramps:
            return
        turn, trouble = _Turn(flags, self._sums.trials(), self._tallies(), elapsed_s), None
        self._turns += 1
        shifts = -(-len(groups) // PER_TURN)
        for number, (name, keys) in enumerate(groups.items(), self._turns):
            try:
                ramp = self._ramp(name, keys, turn)
                if self._is_ready(ramp, turn) and number % shifts == 0:
                    self._study(ramp, turn)
            except Exception as error:  # noqa: BLE001  # one route must not stop the others
                trouble = trouble or error
        self._save(gone=[name for name in self.ramps if name not in groups])
        if trouble:
            raise trouble

    # --- what there is to move

    def _grouped(self, flags: FlagSet) -> dict[str, list[str]]:
        if flags is not self._groups[0]:
            groups: dict[str, list[str]] = {}
            for flag in flags.flags.values():
                if flag.rollout:
                    name = f"{flag.cohort}/{flag.rollout}" if flag.cohort else flag.key
                    groups.setdefault(name, []).append(flag.key)
            self._groups = flags, groups
        return self._groups[1]

    def _ramp(self, name: str, keys: list[str], turn: _Turn) -> Ramp:
        """What is known about a ramp, in agreement with the flag file about its members and its plan."""
        plan = turn.flags.rollouts[turn.flags[keys[0]].rollout]
        ramp = self.ramps.get(name)
        if ramp is None:
            weight_bp = min(turn.flags[key].weight_bp for key in keys)
            ramp = self.ramps[name] = Ramp(name, plan.name, weight_bp, begin(plan), at=utc_now())
            ramp.paused = "" if weight_bp else self._switched_off(keys)
            self._learnt.add(name)
            self._saved_at = -inf  # whoever wants to pause it, or to roll it back, has to find it
        if ramp.members.keys() != set(keys):
            known = ramp.members
            ramp.members = {key: known.get(key) or Member(turn.flags[key].weight_bp) for key in keys}
            _begin_step(ramp)
        if (ramp.plan, ramp.evidence.harm, ramp.evidence.ratio) != (plan.name, *_terms(plan)):
            ramp.plan, ramp.evidence = plan.name, begin(plan, ramp.evidence.remembered)
            _begin_step(ramp)
        return ramp

    def _switched_off(self, keys: Iterable[str]) -> str:
        """Why a route at 0 is not begun although nothing is remembered about it: it was set to 0 on purpose."""
        last = _last_events(self._flags.audit())
        off = next((last[key] for key in keys if key in last and not last[key].after), None)
        return f"{off.by} set {off.key} to 0 %" if off else ""

    # --- one ramp

    def _is_ready(self, ramp: Ramp, turn: _Turn) -> bool:
        """Let time go by and do what was decided; whether there is something to learn now."""
        if ramp.since_rollback_s is not None:
            ramp.since_rollback_s += turn.elapsed_s
        if ramp.drill_bp is not None and not self._abandoned(ramp, turn):
            ramp.frozen = "a drill is under way"
            return False
        if ramp.move is None:
            self._accept_edits(ramp, turn.flags)
        if ramp.move is not None:
            self._carry_out(ramp)
            return False
        if (obstacle := self._obstacle(ramp, turn.flags)) != ramp.frozen:
            ramp.frozen = obstacle
            self._learnt.add(ramp.name)
        if ramp.frozen or not self._settled(ramp, turn):
            return False
        ramp.in_step_s += turn.elapsed_s
        ramp.since_drill_s += turn.elapsed_s
        return True

    def _study(self, ramp: Ramp, turn: _Turn) -> None:
        answered, bad = _learn(ramp, turn)
        if answered:
            self._learnt.add(ramp.name)
        if self._is_due(ramp, turn.flags.rollouts[ramp.plan], answered, bad):
            self._decide(ramp, turn)

    def _abandoned(self, ramp: Ramp, turn: _Turn) -> bool:
        """Whether whoever began a drill has died in it. Then the weight is put back from here."""
        ramp.drilling_s += turn.elapsed_s
        if ramp.drilling_s < DRILL_S or ramp.drill_bp is None:
            return False
        why = f"a drill was abandoned {DRILL_S:g} s ago"
        ramp.move, ramp.drill_bp = Move(Action.ADVANCE, ramp.drill_bp, BY, why), None
        return True

    def _accept_edits(self, ramp: Ramp, flags: FlagSet) -> None:
        """Follow whoever else has changed a weight."""
        edited = {
            key: flags[key].weight_bp
            for key, member in ramp.members.items()
            if member.weight_bp != flags[key].weight_bp
        }
        if not edited:
            return
        last = _last_events(self._flags.audit())
        for key, weight_bp in edited.items():
            event = last.get(key)
            if event and (event.action, event.after) == (RollBack.action, 0) == (RollBack.action, weight_bp):
                ramp.roll_back(event.by, event.why, event.evidence)  # a breaker was faster
                return
            if weight_bp < ramp.members[key].weight_bp:
                by = event.by if event and event.after == percent(weight_bp) else "somebody"
                before, after = percent(ramp.members[key].weight_bp), percent(weight_bp)
                ramp.paused = f"{by} set {key} from {before} % to {after} %"
            else:
                ramp.paused = ""
            ramp.members[key].weight_bp = weight_bp
        _begin_step(ramp)
        self._commit(ramp)

    def _obstacle(self, ramp: Ramp, flags: FlagSet) -> str:
        """Why nothing can be learnt or decided now; empty: nothing stands in the way."""
        if flags.override is not None:
            return f"the override is {flags.override.value}"
        if self._flags.rejected:
            return f"the flag file is not in force: {self._flags.rejected}"
        for key in ramp.members:
            if not self._ported(key):
                return f"{key} is not ported"
            if key in flags.held:
                return f"{key} is held on legacy"
        return ""

    def _settled(self, ramp: Ramp, turn: _Turn) -> bool:
        """Whether every worker runs the new weight. What was answered until then says nothing about it."""
        if ramp.settling_s is None:
            return True
        ramp.settling_s += turn.elapsed_s
        version = turn.flags.version
        if ramp.settling_s < SETTLE_S and any(worker.version != version for worker in self._sums.workers()):
            return False
        ramp.settling_s = None
        for key, member in ramp.members.items():
            member.seen = {side: turn.trials[key, side] for side in Backend if (key, side) in turn.trials}
            member.compared, member.compared_before = NONE, _compared(turn.tallies, key)
        return True

    # --- judgement

    def _is_due(self, ramp: Ramp, plan: Rollout, answered: int, bad: int) -> bool:
        """Not at every turn: most of them cannot have changed anything."""
        judged_at, waited = self._last.get(ramp.name, (-inf, False))
        waits = ramp.in_step_s < plan.every_s or (ramp.since_rollback_s or inf) < lockout_s(ramp.rollbacks, plan)
        patience_s = 0.0 if bad else JUDGE_S if answered or waited > waits else IDLE_S
        if self._ticked_at - judged_at < min(patience_s, plan.every_s):
            return False
        self._last[ramp.name] = self._ticked_at, waits
        return True

    def _decide(self, ramp: Ramp, turn: _Turn) -> None:
        plan = turn.flags.rollouts[ramp.plan]
        step = self._judged(ramp, plan, turn.flags)
        if step.action is Action.ADVANCE and ramp.paused:
            step = replace(step, action=Action.HOLD, weight_bp=ramp.weight_bp, why=ramp.paused, missing=(ramp.paused,))
        ramp.step = step
        self._learnt.add(ramp.name)
        if step.action is Action.ROLL_BACK:
            ramp.roll_back(BY, step.why, step.evidence)
            self._commit(ramp)
        elif step.action is Action.ADVANCE:
            ramp.move = Move(step.action, step.weight_bp, BY, step.why, step.evidence)
            if not self._commit(ramp):
                ramp.move = None  # what cannot be written down is not done; only a rollback is
        elif not ramp.weight_bp and step.missing == (step.why,) and ramp.in_step_s >= plan.every_s:
            _begin_step(ramp)  # at 0 proof of harm comes from the shadow: the port may have been mended since
        elif ramp.in_step_s >= WATCH_S and ramp.weight_bp >= plan.steps_bp[-1]:
            ramp.rollbacks = 0  # a day without complaint
            _begin_step(ramp)
        if ramp.move:
            self._carry_out(ramp)

    def _judged(self, ramp: Ramp, plan: Rollout, flags: FlagSet) -> Step:
        """The judge's word on all members together; and none of them may be provably bad."""
        failing = ramp.weight_bp == FULL_BP and self._legacy.is_failing()
        splits = self._splits_of(ramp) if 0 < ramp.weight_bp < FULL_BP else []
        common = Health(
            evidence=ramp.evidence,
            weight_bp=ramp.weight_bp,
            in_step_s=ramp.in_step_s,
            shadowing=any(flags[key].shadow_bp for key in ramp.members),
            compared=_sum(member.compared for member in ramp.members.values()),
            subjects=sum(split.subjects for split in splits),
            subjects_on_port=sum(split.on_port for split in splits),
            rollbacks=ramp.rollbacks,
            since_rollback_s=inf if ramp.since_rollback_s is None else ramp.since_rollback_s,
            judgements=1 if len(ramp.members) == 1 else 1 + len(ramp.members),
            legacy_failing=failing,
        )
        step = judge(plan, common)
        for key, member in ramp.members.items() if len(ramp.members) > 1 else ():
            if member.evidence and step.action is not Action.ROLL_BACK:
                own = judge(plan, replace(common, evidence=member.evidence, compared=member.compared))
                if own.action is Action.ROLL_BACK:
                    step = replace(own, why=f"{key}: {own.why}")
        return step

    def _splits_of(self, ramp: Ramp) -> list[Split]:
        """Who was answered at this weight; routes of a cohort have the same subjects, so the one with most will do."""
        if self._looked_at != self._ticked_at:
            self._splits, self._looked_at = self._sums.splits(), self._ticked_at
        found = [self._splits[key] for key in ramp.members if key in self._splits]
        found = [split for split in found if split.weight_bp == ramp.weight_bp]
        return sorted(found, key=lambda split: split.subjects)[-1:]

    # --- moves

    def _carry_out(self, ramp: Ramp) -> None:
        """Edit the flags of all members that have not moved yet; what fails is tried again, or judged again."""
        move = ramp.move
        if move is None or self._ticked_at < self._retry_at.get(ramp.name, -inf):
            return
        ahead, fence = move.action is Action.ADVANCE, self._lease.token if self._lease else 0
        if ahead and self._lease and not fence:
            return  # the lease has just ended: whoever leads now judges for himself
        try:
            for key, member in ramp.members.items():
                flags = self._flags.current
                if move.is_due(flags[key].weight_bp):
                    version = flags.version if ahead else ""  # a rollback is right whatever else has changed
                    change, evidence = move.change(key), dict(move.evidence)
                    self._flags.edit(
                        change, by=move.by, why=move.why, if_version=version, evidence=evidence, fence=fence
                    )
                member.weight_bp = self._flags.current[key].weight_bp
        except GatewayError as error:
            ramp.frozen, ramp.move = str(error), None if ahead else move
            self._retry_at[ramp.name] = self._ticked_at + RETRY_S
            return
        log.warning("rollout: %s: %s to %s %%: %s", ramp.name, move.action.value, percent(move.weight_bp), move.why)
        ramp.move, ramp.frozen = None, ""
        _begin_step(ramp)
        self._commit(ramp)

    # --- memory

    def _catch_up(self) -> None:
        """Take over what others have written. A file that was begun anew gets what is remembered here."""
        revision = self._file.revision()
        if revision < self._revision:
            self._revision, self._saved_all_at = revision, -inf
        elif revision > self._revision:
            before = self.ramps
            self._revision, self.ramps = self._file.load()
            for name, ramp in self.ramps.items():
                if name in before and before[name].at == ramp.at:
                    _keep_time(ramp, before[name])

    def _save(self, gone: Sequence[str]) -> None:
        """Write now and then what has changed, and more rarely how much time went by."""
        everything = bool(gone) or self._ticked_at - self._saved_all_at >= SAVE_ALL_S
        if not everything and self._ticked_at - self._saved_at < SAVE_S:
            return
        for name in gone:
            del self.ramps[name]
        self._saved_at = self._ticked_at
        names = self.ramps.keys() if everything else self._learnt & self.ramps.keys()
        if everything:
            self._saved_all_at = self._ticked_at
        self._learnt = set()
        if names or gone:
            self._write([self.ramps[name] for name in names], gone)

    def _commit(self, ramp: Ramp) -> bool:
        return self._write([ramp])

    def _write(self, ramps: Iterable[Ramp], gone: Iterable[str] = ()) -> bool:
        try:
            self._revision = self._file.save(ramps, gone, self._revision)
        except Overtaken:
            return False  # read at the next turn
        except (sqlite3.Error, OSError) as error:
            log.warning("rollout: nothing can be remembered: %s", error)
            return False
        return True


class _LegacyWatch:
    """Whether legacy, wherever it is asked, fails lately: a look at its past would then be unfair to the port."""

    def __init__(self, sums: Sums, clock: Callable[[], float]) -> None:
        self._sums, self._clock = sums, clock
        self._seen: deque[tuple[float, Count]] = deque()

    def is_failing(self) -> bool:
        now = self._clock()
        if not self._seen or now - self._seen[-1][0] >= JUDGE_S:
            legacy = [counter for counter in self._sums.counters() if counter.backend is Backend.LEGACY]
            bad = sum(counter.count for counter in legacy if is_error(counter.status))
            self._seen.append((now, Count(sum(counter.count for counter in legacy), bad)))
        while now - self._seen[0][0] > _FAILING_S:
            self._seen.popleft()
        (_, before), (_, latest) = self._seen[0], self._seen[-1]
        lately = Count(latest.total - before.total, latest.bad - before.bad)
        return lately.total >= _FAILING_ANSWERS and lately.share >= _FAILING_SHARE


def _terms(plan: Rollout) -> tuple[float, float]:
    """What the tests of a plan's evidence are made for."""
    fresh = begin(plan)
    return fresh.harm, fresh.ratio


def _keep_time(ramp: Ramp, before: Ramp) -> None:
    """What went by since the last write was not undone by what somebody else has written."""
    ramp.in_step_s = max(ramp.in_step_s, before.in_step_s)
    if ramp.since_rollback_s is not None and ramp.rollbacks == before.rollbacks:
        ramp.since_rollback_s = max(ramp.since_rollback_s, before.since_rollback_s or 0.0)


def _begin_step(ramp: Ramp) -> None:
    """Everything is measured anew from here."""
    ramp.weight_bp = min(member.weight_bp for member in ramp.members.values())
    ramp.at, ramp.in_step_s, ramp.settling_s, ramp.drilling_s = utc_now(), 0.0, 0.0, 0.0
    ramp.evidence = ramp.evidence.next_step()
    several = len(ramp.members) > 1
    for member in ramp.members.values():
        fresh = Evidence(ramp.evidence.harm, ramp.evidence.ratio)
        member.evidence = (member.evidence.next_step() if member.evidence else fresh) if several else None
        member.compared = NONE


def _learn(ramp: Ramp, turn: _Turn) -> tuple[int, int]:
    """Add what was answered since the last turn; how much that was, and how much of it speaks against the port."""
    legacy = port = _IDLE
    known = _sum(member.compared for member in ramp.members.values())
    for key, member in ramp.members.items():
        own_legacy, own_port = (_news(member, side, turn.trials.get((key, side))) for side in Backend)
        if member.evidence and (own_legacy.answers or own_port.answers):
            member.evidence.add(own_legacy, own_port)
        legacy, port = _plus(legacy, own_legacy), _plus(port, own_port)
        total, bad = _compared(turn.tallies, key)
        if total < member.compared_before.total:
            member.compared_before = NONE  # counted anew
        member.compared = Count(total - member.compared_before.total, bad - member.compared_before.bad)
    if legacy.answers or port.answers:
        ramp.evidence.add(legacy, port)
    compared = _sum(member.compared for member in ramp.members.values())
    return legacy.answers + port.answers + compared.total - known.total, port.errors + compared.bad - known.bad


def _news(member: Member, side: Backend, now: Trial | None) -> Arm:
    """What one side of a member has answered since it was looked at last."""
    before = member.seen.get(side, _NOTHING)
    if now is None or now.count == before.count:
        return _IDLE
    if now.count < before.count:
        before = _NOTHING  # the ledger was begun anew
    latencies = [0] * LATENCY_BUCKETS
    for bucket, count in now.latencies.items():
        latencies[bucket] = count - before.latencies.get(bucket, 0)
    member.seen[side] = now
    return Arm(now.count - before.count, now.errors - before.errors, tuple(latencies))


def _plus(one: Arm, other: Arm) -> Arm:
    return one.plus(other) if one.answers and other.answers else one if one.answers else other


def _sum(counts: Iterable[Count]) -> Count:
    total = NONE
    for count in counts:
        total = total.plus(count)
    return total


def _compared(tallies: Tallies, key: str) -> Count:
    outcomes = tallies.get(key, {})
    bad = outcomes.get(Outcome.MISMATCHED, 0)
    return Count(bad + outcomes.get(Outcome.MATCHED, 0), bad)


def _last_events(events: Iterable[Event]) -> dict[str, Event]:
    """The newest change of each route's weight."""
    return {event.key: event for event in events if isinstance(event.after, int | float) and event.action != "shadow"}
