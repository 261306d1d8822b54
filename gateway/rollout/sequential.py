"""Is the port worse than legacy? Tests whose answer may be looked at after every request.

Each test is an e-process: evidence that starts at 1 and, while the port is no worse, never grows beyond 1 / alpha with
more than probability alpha, however often and whenever somebody looks (Ville's inequality). All of them are kept as
natural logarithms. The formulas, their sources and what they assume: docs/statistics.md.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import exp, inf, lgamma, log, log1p, pi, sqrt
from typing import Any, NamedTuple

from gateway.latency import LATENCY_BOUNDS_S, LATENCY_BUCKETS

POWER_Z = 0.84  # standard normal quantile of the chance (80 %) to notice the smallest harm that matters
QUANTILES = (0.5, 0.8, 0.95)  # of legacy's latency, where the port is compared
SLOW_HARM = 0.1  # the smallest additional share of slow answers that the tests bet on
EPOCH = 1000  # answers of the port, after which half of the stake is bet anew
OUTDATED = 2.0  # evidence that legacy is worse than it was, from which on its past is no measure
MIN_LATENCIES = 100  # answers of legacy before its quantiles are taken

_ALTERNATIVES = 4  # excesses a test bets on, each with the same stake
_LARGEST = 0.5
_LEAST = 1e-4  # no rate is predicted to be smaller: the first bad answer of legacy would ruin every bet


class Count(NamedTuple):
    """Answers of one side, and how many of them were bad."""

    total: int = 0
    bad: int = 0

    @property
    def share(self) -> float:
        return self.bad / self.total if self.total else 0.0

    def plus(self, other: "Count") -> "Count":
        if not self.total:
            return other
        return Count(self.total + other.total, self.bad + other.bad)

    def minus(self, earlier: "Count") -> "Count":
        """What was added since `earlier`."""
        return Count(self.total - earlier.total, self.bad - earlier.bad)


NONE = Count()


@dataclass(frozen=True, slots=True)
class Arm:
    """What one side answered: how often, how often badly (a status of 500 or more, or nothing), and how fast."""

    answers: int = 0
    errors: int = 0
    latencies: tuple[int, ...] = (0,) * LATENCY_BUCKETS  # answers per bucket, see `latency_bucket`

    def plus(self, other: "Arm") -> "Arm":
        latencies = tuple(map(int.__add__, self.latencies, other.latencies))
        return Arm(self.answers + other.answers, self.errors + other.errors, latencies)

    def minus(self, earlier: "Arm") -> "Arm":
        """What was added since `earlier`."""
        latencies = tuple(map(int.__sub__, self.latencies, earlier.latencies))
        return Arm(self.answers - earlier.answers, self.errors - earlier.errors, latencies)

    @property
    def failed(self) -> Count:
        return Count(self.answers, self.errors)

    def quantile_s(self, share: float) -> float:
        """The upper end of the bucket that holds this quantile; 0 without answers."""
        return LATENCY_BOUNDS_S[min(self._bucket(share), LATENCY_BUCKETS - 2)] if self.answers else 0.0

    def slower(self, than_s: float) -> Count:
        """Answers that surely took longer: those in buckets that lie wholly above."""
        return Count(self.answers, sum(self.latencies[bisect_left(LATENCY_BOUNDS_S, than_s) + 1 :]))

    def _bucket(self, share: float) -> int:
        sums = list(accumulate(self.latencies))
        return bisect_left(sums, share * sums[-1])


# --- one side against a fixed limit


def log_e_above(count: Count, limit: float, harm: float) -> float:
    """Evidence that bad answers are more frequent than `limit`; bets on excesses from `harm` upwards."""
    total, bad = count
    if limit >= 1:
        return 0.0
    limit = max(limit, 1e-12)
    bets = [(excess, limit + excess * (1 - limit)) for excess in _excesses(harm)]
    return _log_mean([bad * log(rate / limit) + (total - bad) * log1p(-excess) for excess, rate in bets])


@lru_cache(1024)
def upper_bound(count: Count, alpha: float) -> float:
    """The greatest rate of bad answers that the counts do not refute.

    A confidence sequence: wrong at any time at all with at most probability `alpha`.
    """
    total, bad = count
    if bad == total:
        return 1.0
    mixture = lgamma(bad + 0.5) + lgamma(total - bad + 0.5) - lgamma(total + 1) - log(pi)
    low, high = count.share, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        likelihood = (bad * log(rate) if bad else 0.0) + (total - bad) * log1p(-rate)
        low, high = (low, rate) if mixture - likelihood >= -log(alpha) else (rate, high)
    return high


def log_e_share(on_port: int, total: int, weight: float) -> float:
    """Evidence that the share of subjects on the port is not `weight`: Beta-binomial against binomial."""
    if not 0 < weight < 1:
        return inf if on_port != round(weight * total) else 0.0
    on_legacy, a, b = total - on_port, 100 * weight, 100 * (1 - weight)
    marginal = _log_beta(a + on_port, b + on_legacy) - _log_beta(a, b)
    return marginal - on_port * log(weight) - on_legacy * log1p(-weight)


# --- two sides at the same time


class Contrast:
    """Evidence that bad answers are more frequent on the port than on legacy at the same time.

    Answers are taken in blocks that hold at least one of each side; a block ends by a rule that looks at no outcome.
    Half of the stake is bet once and for all. The other half is bet anew every `EPOCH` answers, in ever smaller parts,
    so that a port that was good for a million answers is still caught soon after it turns bad.
    """

    def __init__(self, harm: float, guess: Count = NONE) -> None:
        """Bets on excesses from `harm` upwards; `guess` (earlier answers of legacy) only makes the bets better."""
        self._harm, self._guess = harm, guess
        self._legacy = self._port = NONE  # in closed blocks
        self._open_legacy = self._open_port = NONE
        self._logs = [0.0] * _ALTERNATIVES
        self._fresh = [0.0] * _ALTERNATIVES  # since the last renewal
        self._epoch, self._epoch_port = 1, NONE  # its number, and the answers of the port before it

    def add(self, legacy: Count, port: Count) -> None:
        """Take what was answered since the last call."""
        legacy, port = self._open_legacy.plus(legacy), self._open_port.plus(port)
        if legacy.total and port.total:
            self._close(legacy, port)
            legacy = port = NONE
        self._open_legacy, self._open_port = legacy, port
        if self.recent.total >= EPOCH:
            self._epoch, self._epoch_port = self._epoch + 1, self.port
            self._fresh = [0.0] * _ALTERNATIVES

    @property
    def log_e(self) -> float:
        return self._both(_log_mean(self._logs), _log_mean(self._fresh))

    def log_e_past(self, remembered: Count, alpha: float) -> float:
        """Evidence that bad answers are more frequent on the port than they were on legacy.

        With at most probability `alpha` legacy's rate is underestimated. Nothing is said as soon as legacy, too, seems
        to be worse than it was: then something has happened to both.
        """
        limit = upper_bound(remembered, alpha)
        both = log_e_above(self.legacy, limit, self._harm) >= log(OUTDATED)
        return 0.0 if both else self.log_e_beyond(limit)

    def log_e_beyond(self, limit: float) -> float:
        """Evidence that bad answers are more frequent on the port than `limit`."""
        return self._both(log_e_above(self.port, limit, self._harm), log_e_above(self.recent, limit, self._harm))

    def _both(self, whole: float, fresh: float) -> float:
        """The mean of both bets. Epochs get 1/2, 1/6, 1/12 ... of the second one; what is left is not at stake yet."""
        part, rest = 1 / (self._epoch * (self._epoch + 1)), 1 / (self._epoch + 1)
        return _log_mean((whole, _log_mean((fresh + log(2 * part), log(2 * rest)))))

    @property
    def legacy(self) -> Count:
        """All its answers, with those of the open block."""
        return self._legacy.plus(self._open_legacy)

    @property
    def port(self) -> Count:
        """All its answers, with those of the open block."""
        return self._port.plus(self._open_port)

    @property
    def recent(self) -> Count:
        """Answers of the port since the last renewal."""
        return self.port.minus(self._epoch_port)

    def _close(self, legacy: Count, port: Count) -> None:
        """Multiply by the chance of what was seen if the port is worse, divided by the chance if it is the same."""
        base = predicted(self._guess.plus(self._legacy))
        (n, bad), (n_port, bad_port) = legacy, port
        good_port, all_good, all_bad = n_port - bad_port, n - bad + n_port - bad_port, bad + bad_port
        usual = (n - bad) * log1p(-base) + bad * log(base)
        for number, excess in enumerate(_excesses(self._harm)):
            rate = base + excess * (1 - base)
            pooled = base + (rate - base) * n_port / (n + n_port)
            grown = usual + good_port * log1p(-rate) - all_good * log1p(-pooled)
            if all_bad:
                grown += bad_port * log(rate) - all_bad * log(pooled)
            self._logs[number] += grown
            self._fresh[number] += grown
        self._legacy, self._port = self._legacy.plus(legacy), self._port.plus(port)

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "harm": self._harm,
            "guess": self._guess,
            "closed": [self._legacy, self._port],
            "open": [self._open_legacy, self._open_port],
            "logs": [self._logs, self._fresh],
            "epoch": [self._epoch, self._epoch_port],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Contrast":
        """From what `state` returned."""
        contrast = cls(state["harm"], Count(*state["guess"]))
        contrast._legacy, contrast._port = (Count(*counts) for counts in state["closed"])
        contrast._open_legacy, contrast._open_port = (Count(*counts) for counts in state["open"])
        contrast._logs, contrast._fresh = map(list, state["logs"])
        contrast._epoch, contrast._epoch_port = state["epoch"][0], Count(*state["epoch"][1])
        return contrast


def predicted(count: Count) -> float:
    """The rate to expect after these answers."""
    return max(_LEAST, (count.bad + 0.5) / (count.total + 1)) if count.total else 0.01


# --- was there enough data?


def needed(base: float, rate: float, legacy_per_port: float, log_e: float) -> float:
    """Answers of the port after which a test would most probably have noticed `rate` instead of `base`.

    `legacy_per_port`: answers of legacy for each of the port; infinite when legacy's rate is known. `log_e`: how much
    evidence the test wants. Normal approximation of the random walk that the evidence is.
    """
    if rate <= base or legacy_per_port <= 0:
        return inf
    base, rate = max(base, 1e-9), min(rate, 1 - 1e-9)
    known = legacy_per_port == inf
    pooled = base if known else (legacy_per_port * base + rate) / (legacy_per_port + 1)
    growth, variance = _walk(rate, pooled)
    if not known:
        more, wider = _walk(base, pooled)
        growth, variance = growth + legacy_per_port * more, variance + legacy_per_port * wider
    wanted = log_e + log(_ALTERNATIVES)
    return float(((POWER_Z * sqrt(variance) + sqrt(POWER_Z**2 * variance + 4 * growth * wanted)) / (2 * growth)) ** 2)


def _walk(rate: float, pooled: float) -> tuple[float, float]:
    """Mean and variance of the logarithm of one factor."""
    bad, good = log(rate / pooled), log((1 - rate) / (1 - pooled))
    return rate * bad + (1 - rate) * good, rate * (1 - rate) * (bad - good) ** 2


# --- everything known about one step


class LogE(NamedTuple):
    """Evidence against the port, as logarithms: beside legacy at the same time, and beside legacy's past."""

    now: float
    past: float


@dataclass
class Evidence:
    """The tests of one step of a ramp. Each step begins anew; legacy's answers from before are remembered."""

    harm: float  # the smallest additional share of errors that matters
    ratio: float  # the tolerated ratio of latencies
    remembered: Arm = field(default_factory=Arm)  # of legacy, before this step
    legacy: Arm = field(default_factory=Arm)  # in this step
    port: Arm = field(default_factory=Arm)
    errors: Contrast = field(init=False)
    limits_s: tuple[float, ...] = ()  # legacy's latencies at QUANTILES, once enough is known
    slow: tuple[Contrast, ...] = ()  # one test for each

    def __post_init__(self) -> None:
        self.errors = Contrast(self.harm, self.remembered.failed)

    def add(self, legacy: Arm, port: Arm) -> None:
        """Take what both sides answered since the last call."""
        self._choose_limits()
        self.errors.add(legacy.failed, port.failed)
        for limit_s, contrast in zip(self.limits_s, self.slow, strict=True):
            contrast.add(legacy.slower(limit_s), port.slower(limit_s * self.ratio))
        self.legacy, self.port = self.legacy.plus(legacy), self.port.plus(port)

    def _choose_limits(self) -> None:
        """From earlier answers only: what is still to come must not choose where it is compared."""
        earlier = self.remembered.plus(self.legacy)
        if not self.slow and earlier.answers >= MIN_LATENCIES:
            self.limits_s = tuple(earlier.quantile_s(share) for share in QUANTILES)
            self.slow = tuple(Contrast(SLOW_HARM, earlier.slower(limit_s)) for limit_s in self.limits_s)

    def of_errors(self, alpha: float) -> "LogE":
        """That the port fails more often. `alpha`: the chance that legacy's past is misjudged."""
        past = self.errors.log_e_past(self.remembered.failed, alpha)
        return LogE(self.errors.log_e, past)

    def of_slowness(self, alpha: float) -> "LogE":
        """That the port is slower than tolerated: the mean over the quantiles."""
        if not self.slow:
            return LogE(0.0, 0.0)
        alpha /= LATENCY_BUCKETS  # the limit was chosen among so many by the same answers
        tests = zip(self.limits_s, self.slow, strict=True)
        past = [contrast.log_e_past(self.remembered.slower(limit_s), alpha) for limit_s, contrast in tests]
        return LogE(_log_mean([contrast.log_e for contrast in self.slow]), _log_mean(past))

    def next_step(self) -> "Evidence":
        """Tests that begin anew and remember what legacy has answered so far."""
        return Evidence(self.harm, self.ratio, self.remembered.plus(self.legacy))

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "harm": self.harm,
            "ratio": self.ratio,
            "remembered": _packed(self.remembered),
            "legacy": _packed(self.legacy),
            "port": _packed(self.port),
            "errors": self.errors.state(),
            "limits_s": self.limits_s,
            "slow": [contrast.state() for contrast in self.slow],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Evidence":
        """From what `state` returned."""
        remembered, legacy, port = (_unpacked(state[name]) for name in ("remembered", "legacy", "port"))
        evidence = cls(state["harm"], state["ratio"], remembered, legacy, port)
        evidence.errors = Contrast.restored(state["errors"])
        evidence.limits_s = tuple(state["limits_s"])
        evidence.slow = tuple(map(Contrast.restored, state["slow"]))
        return evidence


def _packed(arm: Arm) -> dict[str, Any]:
    """Most buckets are empty."""
    latencies = [[number, count] for number, count in enumerate(arm.latencies) if count]
    return {"answers": arm.answers, "errors": arm.errors, "latencies": latencies}


def _unpacked(state: Mapping[str, Any]) -> Arm:
    latencies = [0] * LATENCY_BUCKETS
    for number, count in state["latencies"]:
        latencies[number] = count
    return Arm(state["answers"], state["errors"], tuple(latencies))


@lru_cache
def _excesses(harm: float) -> tuple[float, ...]:
    """From the smallest to the largest, in equal ratios."""
    harm = min(harm, _LARGEST)
    step = (_LARGEST / harm) ** (1 / (_ALTERNATIVES - 1))
    return tuple(harm * step**n for n in range(_ALTERNATIVES))


def _log_mean(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + log(sum(exp(value - most) for value in logs) / len(logs))


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
