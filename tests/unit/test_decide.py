"""Who answers: the rules, one sentence each."""

import json
from itertools import product
from pathlib import Path

import pytest

from gateway.decide import bucket, decide
from gateway.model import FULL_BP, Backend, Caller, Flag, FlagSet, Reason, Route

KEY = "videos.list_videos"
ROUTE = Route(KEY, ("/videos",), frozenset({"GET", "POST"}), frozenset({"GET", "POST"}))
LEGACY_ONLY = Route(KEY, ("/videos",), frozenset({"GET"}))
SUBJECTS = [f"user:{n}" for n in range(20_000)]
VECTORS = json.loads((Path(__file__).parent / "bucket_vectors.json").read_text())


def flags(**fields) -> FlagSet:
    override = fields.pop("override", None)
    held = frozenset({KEY} if fields.pop("held", False) else ())
    return FlagSet("v", override, {KEY: Flag(KEY, **fields)}, held=held)


def answer(flag_set: FlagSet, caller: Caller = Caller("user:7"), route: Route = ROUTE, method: str = "GET"):  # noqa: B008
    decision = decide(flag_set, route, method, caller)
    return decision.backend, decision.reason


def test_a_route_that_no_flag_mentions_is_legacy() -> None:
    assert (Backend.LEGACY, Reason.STATIC) == answer(FlagSet())


def test_an_unported_method_stays_legacy_whatever_the_flags_say() -> None:
    everything = flags(weight_bp=FULL_BP, override=Backend.FASTAPI, pins=frozenset({"user:7"}))
    assert (Backend.LEGACY, Reason.UNPORTED) == answer(everything, route=LEGACY_ONLY)
    assert (Backend.LEGACY, Reason.UNPORTED) == answer(everything, method="PUT")


@pytest.mark.parametrize("side", Backend)
def test_the_panic_switch_beats_every_flag(side: Backend) -> None:
    loud = {"held": True, "weight_bp": 5000, "pins": frozenset({"user:7"})}
    assert (side, Reason.OVERRIDE) == answer(flags(override=side, **loud), Caller("user:7", side.other))


def test_a_held_route_is_legacy_even_for_pinned_and_asking_callers() -> None:
    held = flags(held=True, weight_bp=FULL_BP, pins=frozenset({"user:7"}))
    assert (Backend.LEGACY, Reason.HELD) == answer(held, Caller("user:7", Backend.FASTAPI))


def test_a_trusted_caller_gets_the_side_that_was_asked_for() -> None:
    pinned = flags(weight_bp=FULL_BP, pins=frozenset({"user:7"}))
    assert (Backend.LEGACY, Reason.ASKED) == answer(pinned, Caller("user:7", Backend.LEGACY))


def test_a_pinned_subject_is_on_fastapi_at_weight_zero() -> None:
    pinned = flags(pins=frozenset({"user:7"}))
    assert (Backend.FASTAPI, Reason.PINNED) == answer(pinned)
    assert (Backend.LEGACY, Reason.STATIC) == answer(pinned, Caller("user:8"))


def test_nobody_is_never_pinned_by_an_empty_subject() -> None:
    assert (Backend.LEGACY, Reason.STATIC) == answer(flags(pins=frozenset({"user:7"})), Caller())


@pytest.mark.parametrize(("weight", "side"), [(0, Backend.LEGACY), (FULL_BP, Backend.FASTAPI)])
def test_nothing_and_everything_need_no_bucket(weight: int, side: Backend) -> None:
    assert (side, Reason.STATIC) == answer(flags(weight_bp=weight))


def test_a_split_serves_the_buckets_below_the_weight() -> None:
    for subject, weight in product(SUBJECTS[:500], (1, 100, 2500, 9999)):
        place = bucket(KEY, subject)
        decision = decide(flags(weight_bp=weight), ROUTE, "GET", Caller(subject))
        assert Reason.SPLIT is decision.reason
        assert place == decision.bucket_bp
        assert (place < weight) == (decision.backend is Backend.FASTAPI)


@pytest.mark.parametrize("weight", [1, 100, 1000, 2500, 5000, 9900])
def test_the_share_served_is_the_weight(weight: int) -> None:
    served = sum(bucket(KEY, subject) < weight for subject in SUBJECTS)
    deviation = (weight * (FULL_BP - weight) / len(SUBJECTS)) ** 0.5  # of a binomial share, in basis points
    assert abs(served * FULL_BP / len(SUBJECTS) - weight) < 4 * deviation + 1


def test_raising_a_weight_never_moves_a_subject_back() -> None:
    served: set[str] = set()
    for weight in range(0, FULL_BP + 1, 500):
        now = {s for s in SUBJECTS[:2000] if answer(flags(weight_bp=weight), Caller(s))[0] is Backend.FASTAPI}
        assert served <= now
        served = now


@pytest.mark.parametrize("other", ["videos.list_videoz", "videos.get_video", "artists.list_artists"])
def test_two_routes_choose_their_subjects_independently(other: str) -> None:
    mine = {s for s in SUBJECTS if bucket(KEY, s) < 2000}
    both = sum(bucket(other, s) < 2000 for s in mine)
    assert abs(both / len(mine) - 0.2) < 0.03


def test_routes_of_one_cohort_move_the_same_subjects() -> None:
    one, two = Flag("a", weight_bp=3000, cohort="downloads"), Flag("b", weight_bp=3000, cohort="downloads")
    flag_set = FlagSet("v", None, {"a": one, "b": two})
    routes = [Route(key, (f"/{key}",), frozenset({"GET"}), frozenset({"GET"})) for key in "ab"]
    for subject in SUBJECTS[:500]:
        sides = {decide(flag_set, route, "GET", Caller(subject)).backend for route in routes}
        assert 1 == len(sides)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['salt']}-{v['subject']}")
def test_buckets_are_the_published_vectors(vector: dict) -> None:
    assert vector["bucket_bp"] == bucket(vector["salt"], vector["subject"])


def test_the_dice_decide_the_shadow_of_safe_methods_only() -> None:
    watched = flags(shadow_bp=1000)
    assert decide(watched, ROUTE, "GET", dice_bp=999).shadow
    assert not decide(watched, ROUTE, "GET", dice_bp=1000).shadow
    assert not decide(watched, ROUTE, "POST", dice_bp=0).shadow
    assert not decide(watched, LEGACY_ONLY, "GET", dice_bp=0).shadow


def test_a_write_is_shadowed_only_where_its_route_says_so_and_only_while_legacy_answers_it() -> None:
    contained = flags(shadow_bp=1000, shadow_writes=True)
    assert decide(contained, ROUTE, "POST", dice_bp=999).shadow
    assert not decide(contained, ROUTE, "POST", dice_bp=1000).shadow
    assert not decide(flags(shadow_bp=1000, shadow_writes=True, weight_bp=10_000), ROUTE, "POST", dice_bp=0).shadow
