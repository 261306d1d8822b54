"""What next? One pure function from a plan and what is known to the next move of a ramp.

Rolls back only on proof, advances only when enough was seen to have noticed harm, holds otherwise. A port that is as
good as legacy is rolled back with at most the chance of the sum of the ALPHAs in a whole ramp: docs/statistics.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf, log

from gateway.latency import LATENCY_BOUNDS_S, LATENCY_BUCKETS
from gateway.model import FULL_BP, Rollout

from .sequential import (
    NONE,
    QUANTILES,
    Arm,
    Count,
    Evidence,
    LogE,
    log_e_above,
    log_e_share,
    needed,
    predicted,
    upper_bound,
)

ALPHA_ERRORS = 0.006
ALPHA_LATENCY = 0.002
ALPHA_MISMATCHES = 0.002
ALPHA_SHARE = 1e-4  # holds, never rolls back, and so is no part of the 1 %
CORROBORATION = 10.0  # evidence of the same time that must stand beside evidence against legacy's past
BEYOND = 5.0  # evidence that proven harm is also more than what is tolerated

MISMATCHES_HARM = 10  # times the tolerated share: what must have been noticeable before the ramp goes on
LATENCY_HARM = 2.0  # times the tolerated ratio: likewise
LOCKOUT_MAX_S = 86_400.0
WATCH_S = 86_400.0  # at the last step the tests begin anew this often, each time with the share of one step


class Action(Enum):
    HOLD = "hold"
    ADVANCE = "advance"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known about one route, or cohort, at its present weight."""

    evidence: Evidence
    weight_bp: int
    in_step_s: float  # since the weight was set
    shadowing: bool = False  # comparisons are being made, so they are waited for
    compared: Count = NONE  # shadow comparisons in this step, and mismatches among them
    subjects: int = 0  # different subjects seen in this step, each once however often it asks; 0: not counted
    subjects_on_port: int = 0
    rollbacks: int = 0  # so far
    since_rollback_s: float = inf
    judgements: int = 1  # made of the same ramp: of a cohort and each of its routes; they share the budget
    legacy_failing: bool = False  # legacy, wherever else it is asked, fails too: its past is no measure now


@dataclass(frozen=True, slots=True)
class Step:
    """The next move. `weight_bp` is the weight to set; on HOLD the one that is set."""

    action: Action
    weight_bp: int
    why: str  # one sentence for a person
    missing: tuple[str, ...] = ()  # evidence that is missing before the next step
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)


def begin(plan: Rollout, remembered: Arm | None = None) -> Evidence:
    """The evidence of the first step of a ramp; `remembered` is what legacy answered lately, before it."""
    return Evidence(max(plan.max_errors_bp, 1) / FULL_BP, plan.max_p95_ratio, remembered or Arm())


def lockout_s(rollbacks: int, plan: Rollout) -> float:
    """How long a ramp rests after so many rollbacks: doubles each time, up to a day."""
    return min(LOCKOUT_MAX_S, plan.every_s * 2.0 ** min(rollbacks - 1, 64)) if rollbacks else 0.0


def judge(plan: Rollout, health: Health) -> Step:
    """The next move of a ramp. May be asked after every answer."""
    evidence = summary(plan, health)
    here = health.weight_bp
    if why := proof(plan, health):
        return Step(Action.ROLL_BACK, 0, why, (), evidence) if here else Step(Action.HOLD, 0, why, (why,), evidence)
    following = next((step for step in plan.steps_bp if step > here), None)
    if following is None:
        return Step(Action.HOLD, here, f"the plan ends at {_percent(here)}; the watch goes on", (), evidence)
    if missing := tuple(_missing(plan, health)):
        return Step(Action.HOLD, here, f"stays at {_percent(here)}: {missing[0]}", missing, evidence)
    why = f"goes on to {_percent(following)}: {_count('the port', health.evidence.port.failed)}, no proof of harm"
    return Step(Action.ADVANCE, following, why, (), evidence)


# --- proof of harm


def proof(plan: Rollout, health: Health) -> str:
    """Why the port must go back, in one sentence; empty: nothing is proven."""
    return next(_proofs(plan, health), "")


def _proofs(plan: Rollout, health: Health) -> Iterator[str]:
    """Sentences that each justify a rollback."""
    seen, parts = health.evidence, _parts(plan, health)
    alpha = ALPHA_ERRORS / parts
    legacy, port = seen.errors.legacy, seen.errors.port
    usual = legacy if legacy.total else seen.remembered.failed
    beyond = seen.errors.log_e_beyond(usual.share + plan.max_errors_bp / FULL_BP) >= log(BEYOND)
    if beyond and _proven(seen.of_errors(alpha / 4), health, alpha):
        total, bad = seen.errors.recent
        lately = f", {bad} of its last {total}" if total < port.total else ""
        yield f"errors: {_count('the port', port)}{lately}, {_count('legacy', usual)}"
    alpha = ALPHA_LATENCY / parts
    if _proven(seen.of_slowness(alpha / 4), health, alpha):
        yield (
            f"latency: the port is more than {seen.ratio:g} times as slow as legacy: "
            f"p95 {_ms(seen.port)} against {_ms(seen.legacy if seen.legacy.answers else seen.remembered)}"
        )
    limit = plan.max_mismatches_bp / FULL_BP
    if _log_e_mismatches(plan, health) >= log(parts / ALPHA_MISMATCHES):
        total, bad = health.compared
        yield f"mismatches: {bad} of {total} shadow comparisons ({bad / total:.2%}), {limit:.2%} are tolerated"


def _parts(plan: Rollout, health: Health) -> int:
    """Of the budget: each step has one for each judgement."""
    return len(plan.steps_bp) * health.judgements


def _proven(log_e: LogE, health: Health, alpha: float) -> bool:
    """Half of alpha for each kind, and half of the second half for having misjudged the past.

    The past alone is enough only where no answer of legacy is to be had.
    """
    if log_e.now >= log(2 / alpha):
        return True
    alone = health.weight_bp == FULL_BP and not health.evidence.errors.legacy.total
    supported = not health.legacy_failing if alone else log_e.now >= log(CORROBORATION)
    return supported and log_e.past >= log(4 / alpha)


def _log_e_mismatches(plan: Rollout, health: Health) -> float:
    limit = plan.max_mismatches_bp / FULL_BP
    return log_e_above(health.compared, limit, limit or 1 / FULL_BP)


# --- what is missing


def _missing(plan: Rollout, health: Health) -> Iterator[str]:
    """Sentences that each justify to hold."""
    if (rest_s := lockout_s(health.rollbacks, plan) - health.since_rollback_s) > 0:
        yield f"locked for another {ceil(rest_s)} s after {health.rollbacks} rollback(s)"
    if health.shadowing:
        yield from _missing_comparisons(plan, health)
    if not health.weight_bp:
        return
    if (rest_s := plan.every_s - health.in_step_s) > 0:
        yield f"{ceil(rest_s)} s of {plan.every_s:g} s at this weight"
    yield from _missing_answers(plan, health)
    weight = health.weight_bp / FULL_BP
    if weight < 1 and log_e_share(health.subjects_on_port, health.subjects, weight) >= log(1 / ALPHA_SHARE):
        share = health.subjects_on_port / health.subjects
        yield f"an explanation why {share:.2%} of {health.subjects} subjects are on the port instead of {weight:.2%}"


def _missing_comparisons(plan: Rollout, health: Health) -> Iterator[str]:
    total, bad = health.compared
    limit = plan.max_mismatches_bp / FULL_BP
    harm = min(max(MISMATCHES_HARM * limit, 0.01), (1 + limit) / 2)
    wanted = needed(limit, harm, inf, log(_parts(plan, health) / ALPHA_MISMATCHES)) if limit < 1 else 0
    if (short := max(plan.min_requests, ceil(wanted)) - total) > 0:
        yield f"{short} more shadow comparisons, to notice {harm:.2%} mismatches"
    elif bad / total > limit:
        yield f"fewer mismatches: {bad} of {total} ({bad / total:.2%}), {limit:.2%} are tolerated"


def _missing_answers(plan: Rollout, health: Health) -> Iterator[str]:
    seen = health.evidence
    legacy, port = seen.errors.legacy, seen.errors.port
    usual = legacy if legacy.total else seen.remembered.failed
    tolerated = plan.max_errors_bp / FULL_BP
    wanted = max(plan.min_requests, _needed_for_errors(plan, health))
    yield from _short(wanted, port.total, f"{tolerated:.2%} more errors")
    if port.total >= wanted and port.share - usual.share > tolerated:
        yield f"fewer errors: {_count('the port', port)}, {_count('legacy', usual)}"
    yield from _short(_needed_for_latency(plan, health), port.total, f"{LATENCY_HARM * seen.ratio:g} times the latency")


def _short(wanted: float, answers: int, harm: str) -> Iterator[str]:
    if wanted == inf:
        yield f"answers of legacy, to notice {harm}"
    elif wanted > answers:
        yield f"{ceil(wanted) - answers} more answers of the port, to notice {harm}"


def _needed_for_errors(plan: Rollout, health: Health) -> float:
    seen, alpha = health.evidence, ALPHA_ERRORS / _parts(plan, health)
    known = seen.remembered.failed
    base = predicted(known.plus(seen.legacy.failed))
    return _needed(health, base, base + seen.harm * (1 - base), upper_bound(known, alpha / 4), alpha)


def _needed_for_latency(plan: Rollout, health: Health) -> float:
    """By the quantile of legacy that would show it first."""
    seen, alpha = health.evidence, ALPHA_LATENCY / _parts(plan, health)
    if seen.limits_s and seen.limits_s[-1] <= LATENCY_BOUNDS_S[0]:
        return 0.0  # legacy is faster than we can measure
    known = seen.remembered.plus(seen.legacy)
    wanted = [inf]
    for limit_s in seen.limits_s:
        base = predicted(known.slower(limit_s))
        rate = known.slower(limit_s / LATENCY_HARM).share
        limit = upper_bound(seen.remembered.slower(limit_s), alpha / 4 / LATENCY_BUCKETS)
        wanted.append(_needed(health, base, rate, limit, alpha / len(QUANTILES)))
    return min(wanted)


def _needed(health: Health, base: float, rate: float, limit: float, alpha: float) -> float:
    """Answers of the port until one of the two kinds of proof would most probably notice `rate`."""
    legacy, port = health.evidence.legacy.answers, health.evidence.port.answers
    weight = health.weight_bp / FULL_BP
    per_port = legacy / port if legacy and port else (1 - weight) / weight
    now = needed(base, rate, per_port, log(2 / alpha))
    past = needed(limit, rate, inf, log(4 / alpha))
    support = needed(base, rate, per_port, log(CORROBORATION)) if per_port else 0.0
    return min(now, max(past, support))


# --- words


def summary(plan: Rollout, health: Health) -> dict[str, float | int | str]:
    """The numbers behind a decision."""
    seen, parts = health.evidence, _parts(plan, health)
    legacy, port = seen.errors.legacy, seen.errors.port
    errors, slowness = seen.of_errors(ALPHA_ERRORS / parts / 4), seen.of_slowness(ALPHA_LATENCY / parts / 4)
    return {
        "weight_bp": health.weight_bp,
        "in_step_s": round(health.in_step_s, 1),
        "port_answers": port.total,
        "port_errors": port.bad,
        "legacy_answers": legacy.total,
        "legacy_errors": legacy.bad,
        "remembered_answers": seen.remembered.answers,
        "remembered_errors": seen.remembered.errors,
        "log_e_errors": round(errors.now, 2),
        "log_e_errors_past": round(errors.past, 2),
        "log_e_latency": round(slowness.now, 2),
        "log_e_latency_past": round(slowness.past, 2),
        "log_e_mismatches": round(_log_e_mismatches(plan, health), 2),
        "compared": health.compared.total,
        "mismatched": health.compared.bad,
        "port_p95_s": round(seen.port.quantile_s(0.95), 5),
        "legacy_p95_s": round(seen.legacy.quantile_s(0.95), 5),
        "subjects": health.subjects,
        "subjects_on_port": health.subjects_on_port,
        "rollbacks": health.rollbacks,
    }


def _percent(weight_bp: int) -> str:
    return f"{weight_bp / 100:g} %"


def _count(who: str, count: Count) -> str:
    return f"{who} fails {count.bad} of {count.total} ({count.share:.2%})"


def _ms(arm: Arm) -> str:
    return f"{arm.quantile_s(0.95) * 1000:.3g} ms"


# --- in a worker, without waiting for anybody


class Tripwire:
    """Obvious breakage of one route, seen within 20 answers of the port by the worker that gives them.

    Trips when the first 5 answers failed, or 8 of the last 20, while legacy hardly fails: at most one of its last 20
    answers here, and less than 5 % on average over its last few hundred.
    """

    __slots__ = ("_answers", "_legacy", "_legacy_rate", "_port")

    def __init__(self) -> None:
        self._answers = 0
        self._port = self._legacy = 0  # one bit per answer: failed
        self._legacy_rate = 0.0

    def legacy(self, failed: bool) -> None:
        """Note an answer of legacy."""
        self._legacy = ((self._legacy << 1) | failed) & _LAST_20
        self._legacy_rate += (failed - self._legacy_rate) / 256

    def port(self, failed: bool) -> bool:
        """Note an answer of the port; whether that was the last straw."""
        self._answers += 1
        self._port = ((self._port << 1) | failed) & _LAST_20
        if not failed:
            return False
        failures = self._port.bit_count()
        if failures < 8 and not failures == self._answers == 5:
            return False
        return self._legacy.bit_count() <= 1 and self._legacy_rate < 0.05


_LAST_20 = (1 << 20) - 1
