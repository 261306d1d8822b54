"""Do ramps go back when they must and only then? Simulated requests through the real tests and the real judge."""

import os
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from math import exp, lgamma, log, log1p
from random import Random
from statistics import NormalDist
from typing import Any

from gateway.latency import LATENCY_BOUNDS_S, LATENCY_BUCKETS
from gateway.model import FULL_BP, Rollout
from gateway.rollout.judge import CORROBORATION, Action, Health, Tripwire, begin, judge, proof
from gateway.rollout.sequential import Arm, Contrast, Count, Evidence

from .harness import Plan, save, table

PLAN = Rollout("careful", (100, 500, 2500, 5000, 10_000), every_s=600)
ANSWERS = 300  # of the port in each step of an A/A ramp, whatever the judge would want
WATCHED = 500  # and in the last
REMEMBERED = 20_000  # answers of legacy before the ramp
COMPARED = 2000  # shadow comparisons in each step
LATENCY = NormalDist(log(0.04), 0.6)  # of the logarithm of seconds: median 40 ms, p95 107 ms
GIVE_UP = 2000  # answers of the port
GOOD = 5500  # answers of the port before it turns worse
CHUNKS = 10  # tasks per question

Outcome = int | None  # answers of the port until the proof; None: no proof


@dataclass(frozen=True)
class World:
    """What is true."""

    legacy: float = 0.001  # share of errors
    port: float = 0.001
    mismatches: float = 0.0  # share of shadow comparisons
    slowdown: float | None = None  # of the port; None: latencies are not simulated
    remembered: int = REMEMBERED
    outage: float = 0.0  # share of errors on both sides, at 50 %
    subjects: int = 0  # sticky ones, of whom 5 % have ten times the errors; 0: nobody is like anybody


# --- chance


def binomial(rng: Random, total: int, share: float) -> int:
    if not total or not share:
        return 0
    return total if share >= 1 else bisect_left(_cumulated(total, share), rng.random())


@lru_cache(100_000)
def _cumulated(total: int, share: float) -> list[float]:
    sums, reached = [], 0.0
    for bad in range(total + 1):
        chosen = lgamma(total + 1) - lgamma(bad + 1) - lgamma(total - bad + 1)
        reached += exp(chosen + bad * log(share) + (total - bad) * log1p(-share))
        sums.append(reached)
        if reached > 1 - 1e-12:
            break
    sums[-1] = 1.0
    return sums


def block(rng: Random, weight: float) -> tuple[int, int]:
    """Requests, one by one, until both sides have one: how many went to legacy and to the port."""
    if weight == 1:
        return 0, 1
    if rng.random() < weight:
        return 1, 1 + int(log(1 - rng.random()) / log(weight))
    return 1 + int(log(1 - rng.random()) / log(1 - weight)), 1


def nested(rng: Random, total: int, shares: Sequence[float]) -> Iterator[Count]:
    """How many of the same answers are slower than each of rising limits."""
    left, before = total, 1.0
    for share in shares:
        left, before = binomial(rng, left, share / before), share
        yield Count(total, left)


@lru_cache(10_000)
def histogram(answers: int) -> tuple[int, ...]:
    reached = [0, *(round(answers * LATENCY.cdf(log(bound_s))) for bound_s in LATENCY_BOUNDS_S), answers]
    return tuple(after - before for before, after in pairwise(reached))


# --- one step, peeked at every request


@dataclass
class Walk:
    """One step of a ramp; evidence can only rise with a bad answer of the port, so it is looked at there."""

    rng: Random
    world: World
    evidence: Evidence
    weight_bp: int
    shares: tuple[tuple[float, ...], tuple[float, ...]] = field(init=False)  # slow ones of legacy and the port

    def __post_init__(self) -> None:
        self.shares = (), ()
        if self.world.slowdown:
            self.evidence.add(Arm(), Arm())  # chooses the limits
            self.shares = slow_shares(self.evidence.limits_s, self.world.slowdown)

    def run(self, answers: int) -> Outcome:
        """Answers of the port until the proof."""
        errors = self.evidence.errors
        while (seen := errors.port.total) < answers:
            world = self.world
            if world.outage and self.weight_bp == 5000 and seen > answers / 2:
                world = replace(world, legacy=world.outage, port=world.outage)
            if self._block(world) and self._suspicious() and proof(PLAN, Health(self.evidence, self.weight_bp, 0.0)):
                return errors.port.total
        return self._mismatches()

    def _block(self, world: World) -> bool:
        """Whether the port gave a bad answer."""
        rng, (on_legacy, on_port) = self.rng, block(self.rng, self.weight_bp / FULL_BP)
        bad = binomial(rng, on_port, world.port)
        self.evidence.errors.add(Count(on_legacy, binomial(rng, on_legacy, world.legacy)), Count(on_port, bad))
        if world.slowdown:
            sides = zip((on_legacy, on_port), self.shares, strict=True)
            counts = zip(*(nested(rng, total, shares) for total, shares in sides), strict=True)
            for contrast, (legacy, port) in zip(self.evidence.slow, counts, strict=True):
                contrast.add(legacy, port)
                bad += port.bad
        return bad > 0

    def _suspicious(self) -> bool:
        """What every proof needs, sooner computed than a proof."""
        tests: Sequence[Contrast] = (self.evidence.errors, *self.evidence.slow)
        return self.weight_bp == FULL_BP or any(test.log_e >= log(CORROBORATION) for test in tests)

    def _mismatches(self) -> Outcome:
        """The comparisons of the step, looked at after every mismatch."""
        total = bad = 0
        while self.world.mismatches:
            total += 1 + int(log(1 - self.rng.random()) / log1p(-self.world.mismatches))
            bad += 1
            if total > COMPARED:
                break
            fresh = begin(PLAN)
            if proof(PLAN, Health(fresh, self.weight_bp, 0.0, compared=Count(total, bad))):
                return total
        return None


@lru_cache
def slow_shares(limits_s: tuple[float, ...], slowdown: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    wide = [next(bound for bound in LATENCY_BOUNDS_S if bound >= limit * PLAN.max_p95_ratio) for limit in limits_s]
    legacy = tuple(1 - LATENCY.cdf(log(limit_s)) for limit_s in limits_s)
    return legacy, tuple(1 - LATENCY.cdf(log(limit_s / slowdown)) for limit_s in wide)


def memory(rng: Random, world: World) -> Arm:
    latencies = histogram(world.remembered) if world.slowdown else (0,) * LATENCY_BUCKETS
    return Arm(world.remembered, binomial(rng, world.remembered, world.legacy), latencies)


# --- questions


def ramp(world: World, rng: Random) -> Outcome:
    """A whole ramp that is only ever interrupted by a rollback; the number of the step where that was."""
    evidence = begin(PLAN, memory(rng, world))
    people = [(rng.random(), rng.random() < 0.05) for _ in range(world.subjects)]
    for number, weight_bp in enumerate(PLAN.steps_bp):
        here = sticky(world, people, weight_bp / FULL_BP) if people else world
        if here and Walk(rng, here, evidence, weight_bp).run(WATCHED if weight_bp == FULL_BP else ANSWERS) is not None:
            return number
        legacy, port = evidence.errors.legacy, evidence.errors.port
        latencies = histogram(legacy.total) if world.slowdown else (0,) * LATENCY_BUCKETS
        evidence.legacy, evidence.port = Arm(*legacy, latencies), Arm(*port)
        evidence = evidence.next_step()
    return None


def sticky(world: World, people: Sequence[tuple[float, bool]], weight: float) -> World | None:
    """Both sides fail as often as those who are there do; nobody may be there."""
    usual = world.legacy / 1.45  # 95 % of them; 5 % have ten times that
    sides = [[heavy for place, heavy in people if (place < weight) == on_port] for on_port in (False, True)]
    if weight < 1 and not all(sides):
        return None
    legacy, port = (usual * (1 + 9 * statistics.fmean(side)) if side else 0.0 for side in sides)
    return replace(world, legacy=legacy, port=port)


def harm(world: World, weight_bp: int, rng: Random) -> Outcome:
    """A step with a port that is worse from its first answer on."""
    return Walk(rng, world, begin(PLAN, memory(rng, world)), weight_bp).run(GIVE_UP)


def late_harm(world: World, weight_bp: int, rng: Random) -> Outcome:
    """A port that turns worse in the middle of a step; answers after that."""
    walk = Walk(rng, replace(world, port=world.legacy), begin(PLAN, memory(rng, world)), weight_bp)
    if walk.run(GOOD) is not None:
        return 0
    walk.world = world
    seen = walk.run(GOOD + GIVE_UP)
    return seen and seen - GOOD


def patience(world: World, weight_bp: int, rng: Random) -> Outcome:
    """Answers of the port until the judge lets a healthy one go on; asked every 20."""
    evidence = begin(PLAN, memory(rng, replace(world, slowdown=1)))
    while evidence.port.answers < 20 * GIVE_UP:
        legacy, port = (sum(sizes) for sizes in zip(*(block(rng, weight_bp / FULL_BP) for _ in range(20)), strict=True))
        evidence.add(*(Arm(n, binomial(rng, n, world.legacy), histogram(n)) for n in (legacy, port)))
        step = judge(PLAN, Health(evidence, weight_bp, PLAN.every_s))
        if step.action is not Action.HOLD:
            return evidence.port.answers if step.action is Action.ADVANCE else None
    return None


def tripped(world: World, weight: float, answers: int, rng: Random) -> Outcome:
    """Answers of the port until a worker's tripwire."""
    wire = Tripwire()
    for _ in range(300):
        wire.legacy(rng.random() < world.legacy)
    for number in range(1, answers + 1):
        while rng.random() >= weight:
            wire.legacy(rng.random() < (world.outage or world.legacy))
        if wire.port(rng.random() < (world.outage or world.port)):
            return number
    return None


# --- answers


def repeat(question: Callable[[Random], Outcome], times: int, seed: int) -> list[Outcome]:
    rng = Random(seed)
    return [question(rng) for _ in range(times)]


class Lab:
    """All cores, the same seeds each time."""

    def __init__(self, pool: ProcessPoolExecutor, share: float) -> None:
        self._pool, self._share = pool, share

    def ask(self, question: Callable[[Random], Outcome], times: int) -> list[Outcome]:
        times = max(CHUNKS, round(times * self._share))
        chunks = self._pool.map(partial(repeat, question, times // CHUNKS), range(CHUNKS))
        return [outcome for chunk in chunks for outcome in chunk]


def rate(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many had an outcome, with the upper end of a 95 % interval (Wilson)."""
    n, hits = len(outcomes), sum(outcome is not None for outcome in outcomes)
    p, z = hits / n, 1.645
    upper = (p + z * z / 2 / n + z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5) / (1 + z * z / n)
    return {"runs": n, "hits": hits, "share": p, "upper": round(upper, 5)}


def wait(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Median and 90 % quantile of the answers it took."""
    ordered = sorted(GIVE_UP * 1000 if outcome is None else outcome for outcome in outcomes)
    quantiles = {name: ordered[int(share * len(ordered))] for name, share in (("p50", 0.5), ("p90", 0.9))}
    return {**rate(outcomes), **{name: n if n < GIVE_UP * 1000 else None for name, n in quantiles.items()}}


BAD = World(port=0.05, mismatches=0.0)
HEALTHY = {
    "no errors": World(0, 0, 0.001),
    "0.1 %, with latencies": World(0.001, 0.001, 0.001, slowdown=1.0),
    "2 %": World(0.02, 0.02, 0.001),
    "20 %": World(0.2, 0.2, 0.001),
}
HARDER = {
    "both fail 20 % at 50 %": World(outage=0.2),
    **{f"2 %, {subjects} sticky subjects": World(0.02, 0.02, subjects=subjects) for subjects in (100, 1000, 10_000)},
    "0.1 %, port 0.6 %; 1 % more is tolerated": World(0.001, 0.006),
    "0.1 %, port 1.1 %; 1 % more is tolerated": World(0.001, 0.011),
    "port 1.3 times as slow; 1.5 is tolerated": World(slowdown=1.3),
}
WEIGHTS_BP = (100, 500, 2500, 5000, 10_000)


def false_alarms(lab: Lab, worlds: Mapping[str, World], times: int) -> dict[str, Any]:
    results = {name: rate(lab.ask(partial(ramp, world), times)) for name, world in worlds.items()}
    rows = [
        [name, str(r["runs"]), str(r["hits"]), f"{r['share']:.2%}", f"{r['upper']:.2%}"] for name, r in results.items()
    ]
    table("Ramps that should not roll back", ["errors", "ramps", "rolled back", "share", "95 % below"], rows)
    return results


def waits(title: str, questions: Mapping[str, Callable[[Random], Outcome]], lab: Lab, times: int) -> dict[str, Any]:
    results = {name: wait(lab.ask(question, times)) for name, question in questions.items()}
    rows = [[name, str(r["runs"]), f"{r['share']:.1%}", str(r["p50"]), str(r["p90"])] for name, r in results.items()]
    table(title, ["", "runs", "seen", "median", "p90"], rows)
    return results


def percent(weight_bp: int) -> str:
    return f"{weight_bp / 100:g} %"


def harms() -> dict[str, Callable[[Random], Outcome]]:
    return {
        f"{percent(weight_bp)} on the port, {remembered} remembered": partial(
            harm, replace(BAD, remembered=remembered), weight_bp
        )
        for remembered in (REMEMBERED, 5000, 0)
        for weight_bp in WEIGHTS_BP
        if remembered or weight_bp < FULL_BP
    }


def late_harms() -> dict[str, Callable[[Random], Outcome]]:
    return {f"{percent(weight_bp)} on the port": partial(late_harm, BAD, weight_bp) for weight_bp in WEIGHTS_BP}


def slowdowns() -> dict[str, Callable[[Random], Outcome]]:
    return {
        f"{slowdown:g} times as slow, {percent(weight_bp)} on the port": partial(
            harm, World(slowdown=slowdown), weight_bp
        )
        for slowdown in (1.3, 2.0, 3.0)
        for weight_bp in (100, 2500, 5000, 10_000)
    }


def patiences() -> dict[str, Callable[[Random], Outcome]]:
    return {
        f"{errors:.1%} errors, {percent(weight_bp)}": partial(patience, World(errors, errors), weight_bp)
        for errors in (0.0, 0.001, 0.02)
        for weight_bp in WEIGHTS_BP[:-1]
    }


def breakages() -> dict[str, Callable[[Random], Outcome]]:
    return {
        f"port fails {share:.0%}, {percent(int(weight * FULL_BP))}": partial(tripped, World(port=share), weight, 20)
        for share in (1.0, 0.8, 0.5)
        for weight in (0.01, 0.5)
    }


def quiet() -> dict[str, Callable[[Random], Outcome]]:
    usual = {f"both fail {share:.1%}": World(share, share) for share in (0.001, 0.02, 0.05, 0.1, 0.2)}
    usual["legacy 0.1 %, port 5 %"] = World(port=0.05)
    usual["from now on both fail 50 %"] = World(outage=0.5)
    return {name: partial(tripped, world, 0.5, 2000) for name, world in usual.items()}


def main(plan: Plan) -> None:
    share = 1.0 if plan.keep else 0.01
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        lab = Lab(pool, share)
        results = {
            "harm": waits("Errors 0.1 % -> 5 %: answers of the port until the rollback", harms(), lab, 1000),
            "late harm": waits(f"The same after {GOOD} good answers", late_harms(), lab, 200),
            "tripwire": waits("Tripwire: answers of the port, of 20", breakages(), lab, 10_000),
            "tripwire, false": waits("Tripwire: alarms within 2000 answers of the port", quiet(), lab, 1000),
            "advance": waits("Healthy: answers of the port until the next step", patiences(), lab, 20),
            "slow": waits("Slowness, 1.5 times is tolerated", slowdowns(), lab, 200),
            "harder": false_alarms(lab, HARDER, 1000),
            "healthy": false_alarms(lab, HEALTHY, 10_000),
        }
    save("rollouts", plan, results)
