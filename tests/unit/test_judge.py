"""Rolls back only on proof, advances only on enough evidence, holds otherwise."""

import json
from dataclasses import replace
from math import inf

import pytest

from gateway.latency import LATENCY_BUCKETS, latency_bucket
from gateway.model import Rollout
from gateway.rollout.judge import (
    ALPHA_ERRORS,
    ALPHA_LATENCY,
    ALPHA_MISMATCHES,
    LOCKOUT_MAX_S,
    Action,
    Health,
    Step,
    Tripwire,
    begin,
    judge,
    lockout_s,
    proof,
)
from gateway.rollout.sequential import Arm, Count

PLAN = Rollout("careful", (100, 500, 2500, 5000, 10_000), every_s=600)


def arm(answers: int, errors: int = 0, duration_s: float = 0.02) -> Arm:
    """A side whose latencies spread from `duration_s` to four times that."""
    latencies = [0] * LATENCY_BUCKETS
    for number in range(answers):
        latencies[latency_bucket(duration_s * 4 ** (number / answers))] += 1
    return Arm(answers, errors, tuple(latencies))


def health(legacy: Arm, port: Arm, weight_bp: int = 2500, **known: object) -> Health:
    """At a weight for long enough, after 20 000 good answers of legacy."""
    evidence = begin(PLAN, arm(20_000, 20))
    evidence.add(legacy, port)
    return replace(Health(evidence, weight_bp, in_step_s=700.0), **known)  # type: ignore[arg-type]


GOOD = health(arm(9000, 9), arm(3000, 3))


def test_a_healthy_port_gets_the_next_weight_of_the_plan() -> None:
    step = judge(PLAN, GOOD)
    assert (Action.ADVANCE, 5000, ()) == (step.action, step.weight_bp, step.missing)
    assert "goes on to 50 %: the port fails 3 of 3000 (0.10%), no proof of harm" == step.why


@pytest.mark.parametrize(("weight_bp", "following"), [(0, 100), (30, 100), (100, 500), (600, 2500), (5001, 10_000)])
def test_a_weight_between_two_steps_goes_on_to_the_next(weight_bp: int, following: int) -> None:
    assert following == judge(PLAN, health(arm(40_000), arm(20_000), weight_bp)).weight_bp


def test_the_evidence_of_a_decision_is_numbers_for_json() -> None:
    evidence = json.loads(json.dumps(judge(PLAN, GOOD).evidence))
    assert (3000, 3, 9000, 9) == tuple(evidence[f"{s}_{w}"] for s in ("port", "legacy") for w in ("answers", "errors"))


def test_the_chances_of_a_false_rollback_add_up_to_one_percent() -> None:
    assert 0.01 == pytest.approx(ALPHA_ERRORS + ALPHA_LATENCY + ALPHA_MISMATCHES)


# --- holding


def held(step: Step, *words: str) -> bool:
    return step.action is Action.HOLD and all(any(word in line for line in step.missing) for word in words)


@pytest.mark.parametrize("weight_bp", [100, 5000])
def test_without_any_data_it_holds_and_says_what_is_missing(weight_bp: int) -> None:
    step = judge(PLAN, Health(begin(PLAN), weight_bp, 700.0))
    assert held(
        step, "answers of the port, to notice 1.00% more errors", "answers of legacy, to notice 3 times the latency"
    )
    assert weight_bp == step.weight_bp


def test_too_few_answers_to_notice_the_smallest_harm_hold() -> None:
    step = judge(PLAN, health(arm(900), arm(300)))
    assert held(step, "more answers of the port, to notice 1.00% more errors")
    short = int(step.missing[0].split()[0])
    assert judge(PLAN, health(arm(900 + 3 * short), arm(300 + short))).action is Action.ADVANCE


def test_the_plans_own_minimum_holds() -> None:
    assert held(judge(replace(PLAN, min_requests=5000), GOOD), "2000 more answers of the port")


def test_the_time_of_a_step_is_waited_for() -> None:
    assert held(judge(PLAN, replace(GOOD, in_step_s=90.5)), "510 s of 600 s at this weight")


def test_the_more_errors_legacy_has_the_more_answers_are_wanted() -> None:
    assert judge(PLAN, health(arm(9000), arm(3000))).action is Action.ADVANCE
    assert held(judge(PLAN, health(arm(9000, 1800), arm(3000, 600))), "more answers of the port")


def test_more_errors_than_tolerated_hold_even_without_proof() -> None:
    step = judge(replace(PLAN, max_errors_bp=3), health(arm(900_000, 900), arm(300_000, 400)))
    assert held(step, "fewer errors: the port fails 400 of 300000 (0.13%), legacy fails 900 of 900000 (0.10%)")


def test_the_last_step_is_the_end_of_the_plan_and_the_watch_goes_on() -> None:
    step = judge(PLAN, health(Arm(), arm(9000), 10_000))
    assert (Action.HOLD, 10_000, ()) == (step.action, step.weight_bp, step.missing)
    assert "the plan ends at 100 %; the watch goes on" == step.why


def test_shadow_comparisons_are_waited_for_when_they_are_made() -> None:
    assert held(judge(PLAN, replace(GOOD, shadowing=True)), "more shadow comparisons, to notice 1.00% mismatches")
    assert judge(PLAN, replace(GOOD, shadowing=True, compared=Count(5000))).action is Action.ADVANCE


def test_mismatches_above_the_limit_hold_even_without_proof() -> None:
    assert held(
        judge(PLAN, replace(GOOD, shadowing=True, compared=Count(5000, 6))), "fewer mismatches: 6 of 5000 (0.12%)"
    )


def test_a_split_that_is_not_as_set_holds() -> None:
    assert held(judge(PLAN, replace(GOOD, subjects=4000, subjects_on_port=1300)), "32.50% of 4000 subjects")
    assert judge(PLAN, replace(GOOD, subjects=4000, subjects_on_port=1030)).action is Action.ADVANCE


def test_a_legacy_that_is_faster_than_can_be_measured_does_not_hold_the_ramp() -> None:
    evidence = begin(PLAN, arm(20_000, 20, 0.00001))
    evidence.add(arm(9000, 9, 0.00001), arm(3000, 3, 0.00001))
    assert judge(PLAN, Health(evidence, 2500, 700.0)).action is Action.ADVANCE


def test_judgements_that_share_a_budget_want_more_evidence_each() -> None:
    alone, shared = (judge(PLAN, replace(health(arm(30), arm(10)), judgements=n)).missing[0] for n in (1, 20))
    assert int(alone.split()[0]) < int(shared.split()[0])


# --- rolling back


def test_proven_errors_roll_back_to_zero_and_say_why() -> None:
    step = judge(PLAN, health(arm(300), arm(100, 12)))
    assert (Action.ROLL_BACK, 0) == (step.action, step.weight_bp)
    assert "errors: the port fails 12 of 100 (12.00%), legacy fails 0 of 300 (0.00%)" == step.why


def test_proof_needs_no_minimum_of_time_or_requests() -> None:
    assert judge(PLAN, replace(health(arm(60), arm(20, 8)), in_step_s=1.0)).action is Action.ROLL_BACK


def test_errors_that_legacy_has_too_do_not_roll_back() -> None:
    assert judge(PLAN, health(arm(300, 60), arm(100, 20))).action is Action.HOLD


def test_an_outage_of_both_in_the_middle_of_a_step_does_not_roll_back() -> None:
    seen = health(arm(2000, 2), arm(2000, 2), 5000)
    seen.evidence.add(arm(300, 200), arm(300, 200))
    assert "" == proof(PLAN, seen)


def test_a_tolerated_excess_does_not_roll_back_however_sure_it_is() -> None:
    seen = health(arm(300_000, 300), arm(100_000, 900))
    assert seen.evidence.of_errors(1e-9).now > 100
    assert judge(PLAN, seen).action is Action.ADVANCE


def test_a_port_that_turns_bad_after_a_long_good_time_rolls_back() -> None:
    seen = health(arm(9000), arm(3000))
    seen.evidence.add(arm(600), arm(200, 20))
    assert "errors: the port fails 20 of 3200 (0.62%), 20 of its last 200, legacy fails 0 of 9600 (0.00%)" == proof(
        PLAN, seen
    )


def test_proven_slowness_rolls_back() -> None:
    step = judge(PLAN, health(arm(300), arm(100, duration_s=0.06)))
    assert step.action is Action.ROLL_BACK
    assert step.why.startswith("latency: the port is more than 1.5 times as slow as legacy: p95 ")


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.3])
def test_slowness_within_the_tolerated_ratio_does_not_roll_back(factor: float) -> None:
    assert judge(PLAN, health(arm(9000), arm(3000, duration_s=factor * 0.02))).action is Action.ADVANCE


def test_proven_mismatches_roll_back() -> None:
    step = judge(PLAN, replace(GOOD, compared=Count(400, 20)))
    assert step.action is Action.ROLL_BACK
    assert "mismatches: 20 of 400 shadow comparisons (5.00%), 0.10% are tolerated" == step.why


def test_before_the_first_step_there_is_nothing_to_roll_back() -> None:
    step = judge(PLAN, Health(begin(PLAN), 0, 700.0, shadowing=True, compared=Count(400, 20)))
    assert held(step, "mismatches: 20 of 400")
    assert 0 == step.weight_bp


def test_shadow_comparisons_come_before_the_first_client() -> None:
    seen = Health(begin(PLAN), 0, 0.0, shadowing=True)
    assert held(judge(PLAN, seen), "more shadow comparisons")
    assert (Action.ADVANCE, 100) == (judge(PLAN, replace(seen, compared=Count(5000))).action, 100)


def test_after_100_percent_the_port_is_held_against_legacys_past() -> None:
    seen = health(Arm(), arm(200, 20), 10_000)
    assert judge(PLAN, seen).action is Action.ROLL_BACK
    assert judge(PLAN, replace(seen, legacy_failing=True)).action is Action.HOLD
    assert judge(PLAN, health(Arm(), arm(50_000, 50), 10_000)).action is Action.HOLD


def test_legacys_past_alone_proves_nothing_while_legacy_answers() -> None:
    assert "" == proof(PLAN, health(arm(2), arm(200, 20), 9900))


@pytest.mark.parametrize("share_bp", [0, 10_000])
def test_extreme_tolerances_are_understood(share_bp: int) -> None:
    plan = replace(PLAN, max_errors_bp=share_bp, max_mismatches_bp=share_bp)
    evidence = begin(plan, arm(20_000))
    evidence.add(arm(900, 9), arm(300, 300))
    seen = Health(evidence, 2500, 700.0, shadowing=True, compared=Count(300, 300))
    assert (judge(plan, seen).action is Action.ROLL_BACK) == (share_bp == 0)


def test_one_step_plans_are_judged_like_others() -> None:
    plan = replace(PLAN, steps_bp=(10_000,))
    assert (Action.ADVANCE, 10_000) == ((step := judge(plan, Health(begin(plan), 0, 0.0))).action, step.weight_bp)


# --- against flapping


def test_the_lock_out_doubles_up_to_a_day() -> None:
    assert [0, 600, 1200, 2400] == [lockout_s(n, PLAN) for n in range(4)]
    assert LOCKOUT_MAX_S == lockout_s(9, PLAN) == lockout_s(10**9, PLAN)


def test_a_locked_ramp_holds_until_the_lock_out_is_over() -> None:
    seen = Health(begin(PLAN), 0, 0.0, rollbacks=2, since_rollback_s=1000.0)
    assert held(judge(PLAN, seen), "locked for another 200 s after 2 rollback(s)")
    assert judge(PLAN, replace(seen, since_rollback_s=inf)).action is Action.ADVANCE


# --- the tripwire of a worker


def answers(wire: Tripwire, failed: str, legacy: str = "") -> int:
    """The number of the answer of the port that trips it, 0 for none; `x` failed."""
    for letter in legacy:
        wire.legacy(letter == "x")
    return next((number for number, letter in enumerate(failed, 1) if wire.port(letter == "x")), 0)


@pytest.mark.parametrize(
    ("failed", "trips_at"),
    [
        ("xxxxx", 5),
        (".xxxxxxxx", 9),
        ("xxxx." * 4, 9),
        ("x.x.x.x.x.x.x.x.x.x.", 15),
        ("." * 1000 + "x" * 8, 1008),
        ("x..x..x..x..x..x..x.." * 10, 0),
        ("xxxx................" * 10, 0),
        ("." * 100, 0),
    ],
)
def test_obvious_breakage_trips_within_twenty_answers(failed: str, trips_at: int) -> None:
    assert trips_at == answers(Tripwire(), failed, legacy="." * 50)


@pytest.mark.parametrize("legacy", ["." * 500 + "x." * 3, "....x" * 500])
def test_nothing_trips_while_legacy_fails_too(legacy: str) -> None:
    assert 0 == answers(Tripwire(), "x" * 50, legacy)


def test_a_failure_of_legacy_long_ago_does_not_count() -> None:
    assert 5 == answers(Tripwire(), "x" * 5, legacy="x" * 20 + "." * 2000)


def test_without_any_answer_of_legacy_the_port_still_trips() -> None:
    assert 5 == answers(Tripwire(), "x" * 5)
