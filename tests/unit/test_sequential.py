"""Evidence may be looked at at any time. Small cases are counted out, outcome by outcome, not simulated."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import comb, exp, inf, log, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.latency import LATENCY_BOUNDS_S, LATENCY_BUCKETS, latency_bucket
from gateway.rollout import sequential
from gateway.rollout.sequential import (
    QUANTILES,
    Arm,
    Contrast,
    Count,
    Evidence,
    log_e_above,
    log_e_share,
    needed,
    upper_bound,
)

RATES = (0.0, 0.001, 0.05, 0.3, 0.5, 0.9, 1.0)
BLOCKS = [
    [(1, 1), (1, 1), (1, 1), (1, 1)],
    [(4, 1), (5, 1), (3, 1)],
    [(1, 3), (1, 4), (1, 2)],
    [(3, 2), (1, 5), (6, 1)],
]
Sizes = Sequence[tuple[int, int]]


def binomial(count: Count, rate: float) -> float:
    return float(comb(*count) * rate**count.bad * (1 - rate) ** (count.total - count.bad))


def outcomes(sizes: Sizes) -> Iterator[list[tuple[Count, Count]]]:
    """All that both sides may answer, block by block."""
    each = [[(Count(a, x), Count(b, y)) for x in range(a + 1) for y in range(b + 1)] for a, b in sizes]
    return map(list, product(*each))


def expected(sizes: Sizes, rates: Sequence[tuple[float, float]], stop_at: float = inf, guess: int = 0) -> float:
    """Mean evidence of somebody who looks after every block and stops when there is enough of it."""
    mean = 0.0
    for blocks in outcomes(sizes):
        contrast = Contrast(0.01, Count(100, guess))
        chances = [binomial(a, p) * binomial(b, q) for (a, b), (p, q) in zip(blocks, rates, strict=True)]
        for legacy, port in blocks:
            if contrast.log_e < log(stop_at) if stop_at < inf else True:
                contrast.add(legacy, port)
        mean += prod(chances) * exp(contrast.log_e)
    return mean


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("sizes", BLOCKS)
def test_evidence_against_an_equal_port_does_not_grow_on_average(sizes: Sizes, rate: float) -> None:
    assert expected(sizes, [(rate, rate)] * len(sizes)) <= 1 + 1e-9


@pytest.mark.parametrize(("legacy", "port"), [(0.3, 0.1), (0.9, 0.2), (0.02, 0.01), (1.0, 0.0)])
@pytest.mark.parametrize("sizes", BLOCKS)
def test_evidence_against_a_better_port_does_not_grow_on_average(sizes: Sizes, legacy: float, port: float) -> None:
    assert expected(sizes, [(legacy, port)] * len(sizes)) <= 1 + 1e-9


@pytest.mark.parametrize("sizes", BLOCKS)
def test_evidence_does_not_grow_while_both_sides_change_together(sizes: Sizes) -> None:
    rates = [(0.001, 0.001), (0.6, 0.6), (0.1, 0.1), (0.9, 0.9)][: len(sizes)]
    assert expected(sizes, rates) <= 1 + 1e-9


@pytest.mark.parametrize("stop_at", [1.1, 1.5, 3.0])
@pytest.mark.parametrize("sizes", BLOCKS)
def test_stopping_when_it_looks_bad_gains_nothing(sizes: Sizes, stop_at: float) -> None:
    assert expected(sizes, [(0.2, 0.2)] * len(sizes), stop_at) <= 1 + 1e-9


@pytest.mark.parametrize("guess", [0, 1, 50, 100])
def test_a_wrong_guess_about_legacy_makes_no_evidence(guess: int) -> None:
    assert expected(BLOCKS[3], [(0.2, 0.2)] * 3, guess=guess) <= 1 + 1e-9


def test_a_renewed_bet_makes_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "EPOCH", 2)
    assert expected(BLOCKS[0], [(0.3, 0.3)] * 4) <= 1 + 1e-9
    assert expected(BLOCKS[2], [(0.3, 0.3)] * 3) <= 1 + 1e-9


def test_evidence_against_a_worse_port_grows() -> None:
    assert expected(BLOCKS[0], [(0.01, 0.5)] * 4) > 2


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)).filter(lambda t: t[1] <= t[0]), max_size=30
    )
)
def test_only_a_bad_answer_of_the_port_is_evidence(ticks: list[tuple[int, int, int]]) -> None:
    contrast = Contrast(0.01)
    for total, bad, port in ticks:
        before = contrast.log_e
        contrast.add(Count(total, bad), Count(port))
        assert contrast.log_e <= before + 1e-9


def test_a_block_waits_for_both_sides() -> None:
    parts, whole = Contrast(0.01), Contrast(0.01)
    parts.add(Count(7, 1), Count())
    assert 0.0 == pytest.approx(parts.log_e)
    parts.add(Count(2, 0), Count(3, 2))
    whole.add(Count(9, 1), Count(3, 2))
    assert whole.log_e == parts.log_e
    assert (Count(9, 1), Count(3, 2)) == (parts.legacy, parts.port)


def test_a_port_that_was_good_for_long_is_caught_soon_after_it_turns_bad() -> None:
    contrast = Contrast(0.01, Count(20_000, 20))
    for _ in range(20_000):
        contrast.add(Count(3), Count(1))
    for number in range(1, 300):
        contrast.add(Count(3), Count(1, number % 10 == 0))
        if contrast.log_e > log(2000):
            break
    assert 200 > number


# --- one side against a limit


@pytest.mark.parametrize("limit", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 7, 20])
def test_rates_within_the_limit_make_no_evidence_on_average(total: int, limit: float) -> None:
    for rate in (0, limit / 10, limit / 2, limit):
        counts = [Count(total, bad) for bad in range(total + 1)]
        assert sum(binomial(c, rate) * exp(log_e_above(c, limit, 0.01)) for c in counts) <= 1 + 1e-9


def test_any_rate_is_within_a_limit_of_one() -> None:
    assert log_e_above(Count(100, 100), 1.0, 0.01) == 0


def test_where_nothing_is_tolerated_one_is_proof() -> None:
    assert log_e_above(Count(100, 1), 0.0, 0.0001) > 10


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7, 0.999])
def test_the_upper_bound_is_ever_too_low_with_no_more_than_the_chance_asked_for(rate: float) -> None:
    alpha, going = 0.2, {0: 1.0}  # chance of each number of bad answers, while the bound was never too low
    for total in range(1, 120):
        after: dict[int, float] = {}
        for bad, chance in going.items():
            after[bad] = after.get(bad, 0) + chance * (1 - rate)
            after[bad + 1] = after.get(bad + 1, 0) + chance * rate
        going = {bad: chance for bad, chance in after.items() if upper_bound(Count(total, bad), alpha) >= rate}
    assert 1 - sum(going.values()) <= alpha


def test_the_upper_bound_comes_down_to_what_is_seen() -> None:
    bounds = [upper_bound(Count(total, total // 100), 0.01) for total in (0, 100, 1000, 10_000, 1_000_000)]
    assert 1.0 == pytest.approx(bounds[0])
    assert sorted(bounds, reverse=True) == bounds
    assert 0.01 == pytest.approx(bounds[-1], rel=0.1)


@pytest.mark.parametrize("weight", [0.01, 0.25, 0.5, 0.9])
def test_a_split_as_set_makes_no_evidence_on_average(weight: float) -> None:
    mean = sum(binomial(Count(30, n), weight) * exp(log_e_share(n, 30, weight)) for n in range(31))
    assert 1 == pytest.approx(mean)


def test_a_split_that_is_off_is_noticed_both_ways() -> None:
    assert log_e_share(3000, 10_000, 0.25) > log(10_000)
    assert log_e_share(2000, 10_000, 0.25) > log(10_000)
    assert log_e_share(2500, 10_000, 0.25) < 0


def test_at_100_percent_nobody_is_elsewhere() -> None:
    assert [0.0, inf] == [log_e_share(on_port, 50, 1.0) for on_port in (50, 49)]


# --- power


def test_smaller_harm_needs_more_answers() -> None:
    wanted = [needed(0.01, rate, 99, log(1000)) for rate in (0.5, 0.1, 0.05, 0.02, 0.011)]
    assert sorted(wanted) == wanted


def test_the_more_is_known_about_legacy_the_fewer_answers_of_the_port_are_needed() -> None:
    wanted = [needed(0.001, 0.05, legacy_per_port, log(1000)) for legacy_per_port in (inf, 99, 3, 1, 0.1)]
    assert sorted(wanted) == wanted


@pytest.mark.parametrize(("rate", "legacy_per_port"), [(0.05, 0.0), (0.001, 9.0), (0.0001, inf)])
def test_without_legacy_or_without_harm_no_number_is_enough(rate: float, legacy_per_port: float) -> None:
    assert inf == needed(0.001, rate, legacy_per_port, log(1000))


# --- latency


@given(st.floats(0, 200))
def test_a_duration_is_counted_below_the_first_longer_bound(duration_s: float) -> None:
    number = latency_bucket(duration_s)
    nearest = min(LATENCY_BOUNDS_S, key=lambda bound: abs(bound - duration_s))
    if abs(nearest - duration_s) > 1e-12 * nearest:
        assert bisect_right(LATENCY_BOUNDS_S, duration_s) == number


def test_bounds_are_less_than_a_tenth_apart_from_a_tenth_of_a_millisecond_to_100_seconds() -> None:
    assert all(after / before < 1.1 for before, after in pairwise(LATENCY_BOUNDS_S))
    assert LATENCY_BOUNDS_S[0] == 0.0001
    assert LATENCY_BOUNDS_S[-1] > 100
    assert [0, LATENCY_BUCKETS - 1] == [latency_bucket(0.0), latency_bucket(1e9)]


def arm(*durations_s: float, errors: int = 0) -> Arm:
    latencies = [0] * LATENCY_BUCKETS
    for duration_s in durations_s:
        latencies[latency_bucket(duration_s)] += 1
    return Arm(len(durations_s), errors, tuple(latencies))


@given(st.lists(st.floats(0, 150), min_size=1), st.floats(0.0001, 150))
def test_only_what_surely_took_longer_counts_as_slower(durations_s: list[float], than_s: float) -> None:
    surely = arm(*durations_s).slower(than_s).bad
    assert surely <= sum(duration_s >= than_s * (1 - 1e-9) for duration_s in durations_s)
    assert surely >= sum(duration_s > than_s * 1.1 for duration_s in durations_s if duration_s < LATENCY_BOUNDS_S[-1])


def test_a_quantile_is_the_upper_end_of_its_bucket() -> None:
    quantile_s = arm(*[0.01] * 94, *[0.5] * 6).quantile_s(0.95)
    assert 0.5 < quantile_s < 0.5 * 1.1
    assert Arm().quantile_s(0.95) == 0


def spread(factor: float = 1.0) -> Arm:
    return arm(*(factor * 0.01 * 1.02**n for n in range(100)))


@pytest.mark.parametrize(("factor", "noticed"), [(1.0, False), (1.4, False), (1.5, False), (2.5, True), (4.0, True)])
def test_slowness_counts_only_beyond_the_tolerated_ratio(factor: float, noticed: bool) -> None:
    evidence = Evidence(0.01, 1.5, spread())
    for _ in range(5):
        evidence.add(spread(), spread(factor))
    assert noticed == (evidence.of_slowness(0.001).now > log(1000))


def test_slowness_after_100_percent_is_seen_against_the_past() -> None:
    evidence = Evidence(0.01, 1.5, arm(*[0.01] * 900, *[0.02] * 100))
    for _ in range(100):
        evidence.add(Arm(), arm(0.04))
    assert evidence.of_slowness(0.0001).now == pytest.approx(0)
    assert evidence.of_slowness(0.0001).past > log(10_000)


def test_limits_are_chosen_by_earlier_answers_only() -> None:
    evidence = Evidence(0.01, 1.5)
    evidence.add(spread(), spread(9))
    assert () == evidence.limits_s
    evidence.add(spread(50), spread(50))
    assert tuple(spread().quantile_s(share) for share in QUANTILES) == evidence.limits_s


# --- one step of a ramp


def filled() -> Evidence:
    evidence = Evidence(0.01, 1.5, spread())
    evidence.add(spread(), spread(2))
    evidence.add(arm(0.1, errors=1), Arm())
    return evidence


def test_evidence_survives_json_and_goes_on_as_if_nothing_had_happened() -> None:
    evidence = filled()
    restored = Evidence.restored(json.loads(json.dumps(evidence.state())))
    for one in (evidence, restored):
        one.add(arm(0.1, 0.2), arm(0.3, 0.9, errors=1))
    assert json.dumps(evidence.state()) == json.dumps(restored.state())
    assert evidence.of_errors(0.01) == restored.of_errors(0.01)
    assert evidence.of_slowness(0.01) == restored.of_slowness(0.01)


def test_the_next_step_begins_anew_and_remembers_legacy() -> None:
    following = filled().next_step()
    assert Arm() == following.port
    assert (201, 1) == (following.remembered.answers, following.remembered.errors)
    assert (0.0, 0.0) == pytest.approx(following.of_errors(0.01))


def test_the_past_is_no_measure_when_legacy_itself_is_worse_than_it_was() -> None:
    alone, both = (Evidence(0.01, 1.5, Arm(20_000, 20)) for _ in range(2))
    alone.add(Arm(1000, 1), Arm(100, 20))
    both.add(Arm(1000, 200), Arm(100, 20))
    assert alone.of_errors(0.001).past > log(1000)
    assert both.of_errors(0.001).past == 0


def test_sums_and_differences_of_arms_are_exact() -> None:
    assert spread() == spread().plus(filled().legacy).minus(filled().legacy)
