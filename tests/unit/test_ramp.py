"""A ramp from its first step to its last, back, and past people, faults and clocks. Time is wound by hand."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.flags import FlagStore
from gateway.latency import latency_bucket
from gateway.ledger import Counter, Ledger, Split, Trial, Worker
from gateway.model import FULL_BP, Backend, Outcome
from gateway.rollout.judge import Action
from gateway.rollout.ramp import DRILL_S, SAVE_S, SETTLE_S, RampLoop, Tallies, Trials
from gateway.rollout.states import Ramp, Ramps, RollBack, pause, resume, status

PLAN = "careful: {steps: [5, 50, 100], every: 10s, min_requests: 100, max_errors: 1%, max_p95_ratio: 2}"
FLAGS = f"version: 1\noverride: none\nrollouts:\n  {PLAN}\nroutes:\n  a: {{weight: 0, rollout: careful}}\n"
COHORT = f"""version: 1
rollouts:
  {PLAN}
routes:
  a: {{weight: 0, cohort: pair, rollout: careful}}
  b: {{weight: 0, cohort: pair, rollout: careful}}
"""


@dataclass
class Traffic:
    """What the workers of the host have answered: the sums that a Ledger would read."""

    sums: dict[tuple[str, Backend], Trial] = field(default_factory=dict)
    outcomes: dict[str, dict[Outcome, int]] = field(default_factory=dict)
    split: dict[str, Split] = field(default_factory=dict)
    running: list[Worker] = field(default_factory=list)

    def trials(self) -> Trials:
        return self.sums

    def counters(self) -> Sequence[Counter]:
        return []

    def splits(self) -> dict[str, Split]:
        return self.split

    def workers(self) -> Sequence[Worker]:
        return self.running

    def tallies(self) -> Tallies:
        return self.outcomes

    def answer(self, key: str, side: Backend, count: int, errors: int = 0, duration_s: float = 0.01) -> None:
        before, bucket = self.sums.get((key, side), Trial()), latency_bucket(duration_s)
        latencies = {**before.latencies, bucket: before.latencies.get(bucket, 0) + count}
        self.sums[key, side] = Trial(before.count + count, before.errors + errors, latencies)


class World:
    """One host with a flag file, traffic, and a leader that can die."""

    def __init__(self, directory: Path, text: str = FLAGS) -> None:
        self.directory, self.path, self.state = directory, directory / "flags.yaml", directory / "state"
        self.path.write_text(text)
        self.now, self.traffic, self.ported, self.leads = 1000.0, Traffic(), True, True
        self.flags = FlagStore(self.path, {"a", "b"}, self.state)
        self.begin()

    def begin(self) -> None:
        """A worker that leads from now on."""
        self.ramps = Ramps(self.state)
        self.loop = RampLoop(
            self.flags,
            self.traffic,
            self.traffic.tallies,
            self.ramps,
            ported=lambda _: self.ported,
            lease=self,
            clock=lambda: self.now,
        )

    token = 1

    def held(self) -> bool:
        return self.leads

    def run(self, seconds: float, *, rate: int = 1000, failing: float = 0.0, slower: float = 1.0) -> None:
        """Let time go by with `rate` requests per second and route, spread as the weight says."""
        for _ in range(round(seconds * 4)):
            for key in ("a", "b"):
                on_port = round(rate / 4 * self.flags.current[key].weight_bp / FULL_BP)
                if on_port or self.flags.current[key].weight_bp:
                    on_port = max(on_port, 1)
                if on_port:
                    self.traffic.answer(key, Backend.FASTAPI, on_port, ceil(on_port * failing), 0.01 * slower)
                if on_port < rate / 4:
                    self.traffic.answer(key, Backend.LEGACY, rate // 4 - on_port)
            self.now += 0.25
            self.loop.tick()

    def run_until(self, weight: float, limit_s: float = 2000.0, **traffic: float) -> float:
        """Seconds until the file says this weight."""
        began = self.now
        while self.weight() != weight:
            assert self.now - began < limit_s, self.seen()
            self.run(0.25, **traffic)  # type: ignore[arg-type]
        return self.now - began

    def weight(self, key: str = "a") -> float:
        return self.flags.current[key].weight_bp / 100

    def seen(self, key: str = "a") -> Ramp:
        return next(ramp for ramp in self.loop.ramps.values() if key in ramp.members)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_good_port_goes_up_all_steps_and_each_takes_its_time(world: World) -> None:
    world.run_until(5)
    assert 10 <= world.run_until(50)
    assert 10 <= world.run_until(100)
    actions = [(event.action, event.by, event.before, event.after) for event in world.flags.audit()]
    assert [("advance", "rollout", *step) for step in [(0, 5), (5, 50), (50, 100)]] == actions
    assert all(event.evidence["port_answers"] > 100 for event in world.flags.audit()[1:])


def test_without_traffic_nothing_advances_and_the_missing_evidence_is_named(world: World) -> None:
    world.run_until(5, rate=0)
    world.run(60, rate=0)
    assert 5 == world.weight()
    step = world.seen().step
    assert step is not None
    assert Action.HOLD is step.action
    assert any("answers" in missing for missing in step.missing)


def test_a_port_that_fails_goes_to_0_rests_twice_as_long_each_time_and_begins_again(world: World) -> None:
    rests = []
    for _ in range(3):
        world.run_until(5)
        world.run_until(0, 60, rate=100, failing=0.5)
        rests.append(world.run_until(5))
    assert [10, 20, 40] == [pytest.approx(rest_s, abs=6) for rest_s in rests]
    (back, *_) = [event for event in world.flags.audit() if event.action == "rollback"]
    assert ("rollout", 5, 0) == (back.by, back.before, back.after)
    assert "errors" in back.why


def test_a_slow_port_goes_back(world: World) -> None:
    world.run_until(50)
    world.run_until(0, 60, rate=100, slower=4)
    assert "latency" in world.flags.audit()[-1].why


def test_a_port_that_answers_differently_goes_back(world: World) -> None:
    world.path.write_text(FLAGS.replace("weight: 0", "weight: 0, shadow: 100"))
    world.flags.look()
    world.traffic.outcomes["a"] = {Outcome.MATCHED: 1000}
    world.run(20)
    assert 0 == world.weight(), "what was compared before is no evidence"

    world.traffic.outcomes["a"] = {Outcome.MATCHED: 6000, Outcome.TIMED_OUT: 10}
    world.run_until(5)
    world.run(3)
    world.traffic.outcomes["a"] = {Outcome.MATCHED: 6100, Outcome.MISMATCHED: 30}
    world.run_until(0, 10)
    assert "30 of 130 shadow comparisons" in world.flags.audit()[-1].why


def test_after_the_last_step_the_watch_goes_on(world: World) -> None:
    world.run_until(100)
    world.run(30)
    world.run_until(0, 60, rate=100, failing=0.3)
    assert 1 == world.seen().rollbacks


def test_a_port_that_was_mended_begins_again_although_the_shadow_has_seen_worse(world: World) -> None:
    world.path.write_text(FLAGS.replace("weight: 0", "weight: 0, shadow: 100"))
    world.flags.look()
    world.run(1)
    world.traffic.outcomes["a"] = {Outcome.MATCHED: 100, Outcome.MISMATCHED: 100}
    world.run(30)
    assert 0 == world.weight()
    for matched in range(200, 10_000, 50):
        world.traffic.outcomes["a"] = {Outcome.MATCHED: matched, Outcome.MISMATCHED: 100}
        world.run(0.25, rate=100)
    assert 5 == world.weight()


def test_subjects_that_are_missing_on_one_side_hold_the_ramp(world: World) -> None:
    world.run_until(5)
    world.traffic.split["a"] = Split(500, ((1 << 9000) - 1) << 500)
    world.run(30)
    step = world.seen().step
    assert (5, step is not None) == (world.weight(), True)
    assert "an explanation why 0.00% of 9000 subjects are on the port instead of 5.00%" in (
        step.missing if step else ()
    )

    world.traffic.split["a"] = Split(500, (1 << 9000) - 1)
    world.run_until(50)


# --- people


def test_a_weight_that_a_person_raises_is_where_the_ramp_goes_on(world: World) -> None:
    world.run_until(5)
    world.flags.set_weight("a", 20, by="ann")
    world.run(8, rate=100)
    assert 20 == world.weight()
    assert world.run_until(50, rate=100) > 2


def test_a_weight_that_a_person_lowers_pauses_until_somebody_raises_it(world: World) -> None:
    world.run_until(50)
    world.flags.set_weight("a", 5, by="ann")
    world.run(60)
    assert (5, "ann set a from 50 % to 5 %") == (world.weight(), world.seen().paused)

    world.flags.set_weight("a", 6, by="ann")
    world.run_until(50)


def test_a_paused_ramp_goes_on_when_it_is_resumed_and_still_rolls_back(world: World) -> None:
    world.run_until(5)
    world.run(SAVE_S)
    pause(world.state, "a", by="ann", why="lunch")
    world.run(60)
    assert (5, "paused by ann: lunch") == (world.weight(), world.seen().paused)
    resume(world.state, "a")
    world.run_until(50)

    pause(world.state, "a", by="ann")
    world.run(1)
    world.run_until(0, 60, rate=100, failing=0.5)


def test_pausing_what_was_never_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="no rollout is under way"):
        pause(tmp_path, "a", by="ann")


def test_an_edit_that_nobody_has_seen_yet_is_not_overwritten(world: World) -> None:
    world.run_until(5)
    world.run(9)
    FlagStore(world.path, None, world.state).set_weight("a", 1, by="ann")
    world.run(60)
    assert 100 == FlagStore(world.path, None, world.state).current["a"].weight_bp
    world.flags.look()
    world.run(60)
    assert (1, "ann set a from 5 % to 1 %") == (world.weight(), world.seen().paused)


def test_what_a_breaker_has_set_to_0_counts_as_a_rollback(world: World) -> None:
    world.run_until(5)
    world.run(SAVE_S)
    Ramps(world.state).change("a", lambda ramp: ramp.roll_back("breaker", "errors", {"failed": 5}))
    world.run(1)
    event = world.flags.audit()[-1]
    assert (0, "breaker", {"failed": 5}) == (world.weight(), event.by, event.evidence)
    assert (1, "") == (world.seen().rollbacks, world.seen().paused)
    world.run_until(5)


def test_a_route_whose_weight_was_set_to_0_is_not_begun_by_who_remembers_nothing(world: World) -> None:
    world.run_until(5)
    world.flags.set_weight("a", 0, by="ann")
    world.ramps.close()
    (world.state / "ledger.sqlite3").unlink()
    world.begin()
    world.run(100)
    assert (0, "ann set a to 0 %") == (world.weight(), world.seen().paused)


# --- what freezes it


@pytest.mark.parametrize("obstacle", ["override", "rejected", "held", "unported", "lease"])
def test_nothing_advances_while_something_stands_in_the_way(world: World, obstacle: str) -> None:
    world.run_until(5)
    if obstacle == "override":
        world.flags.set_override("legacy", by="ann")
    elif obstacle == "rejected":
        world.path.rename(world.path.with_suffix(".bak"))
        world.flags.look()
    elif obstacle == "held":
        world.flags.hold("a", "errors", {})
    else:
        world.ported = obstacle != "unported"
        world.leads = obstacle != "lease"
    world.run(40)
    assert bool(world.seen().frozen) == (obstacle != "lease")

    if obstacle == "override":
        world.flags.set_override("none", by="ann")
    elif obstacle == "rejected":
        world.path.with_suffix(".bak").rename(world.path)
        world.flags.look()
    world.ported = world.leads = True
    assert 5 == world.weight()
    if obstacle != "held":
        assert 8 < world.run_until(50)


def test_nothing_is_learnt_before_all_workers_run_the_new_weight(world: World) -> None:
    now = time.time()
    world.traffic.running = [Worker(1, "host", "an old one", "", now, now)]
    world.run_until(5)
    world.run(SETTLE_S - 0.25, failing=1.0)
    assert 0 == world.seen().evidence.port.answers
    assert 5 == world.weight()
    world.run_until(50)


# --- faults


def test_a_new_leader_goes_on_where_the_old_one_stood(world: World) -> None:
    world.run_until(5)
    for _ in range(5):
        world.run(SAVE_S + 0.25)
        world.begin()
    assert world.run_until(50) < 10
    assert world.seen().evidence.remembered.answers > 5000


def test_answers_are_counted_once_however_often_leaders_change(world: World) -> None:
    world.run_until(5)
    world.run(SETTLE_S)
    before = world.traffic.sums["a", Backend.FASTAPI].count - world.seen().evidence.port.answers
    for _ in range(10):
        world.run(0.5)
        world.begin()
    world.run(1)
    assert world.traffic.sums["a", Backend.FASTAPI].count - before == world.seen().evidence.port.answers


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_a_clock_that_is_set_moves_nothing(world: World, monkeypatch: pytest.MonkeyPatch, jump_s: int) -> None:
    world.run_until(5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    world.run(9)
    world.begin()
    assert 5 == world.weight()
    world.run_until(50, 30)


def test_a_leader_that_slept_for_an_hour_has_not_waited_for_an_hour(world: World) -> None:
    world.run_until(5)
    world.run(3)
    world.now += 3600
    world.run(3)
    assert 5 == world.weight()


def test_where_nothing_can_be_remembered_a_rollback_still_happens_and_an_advance_does_not(world: World) -> None:
    world.run_until(5)
    world.ramps.close()
    for path in world.state.glob("ledger*"):
        path.unlink()
    (world.state / "ledger.sqlite3").mkdir()
    world.run(60)
    assert 5 == world.weight()
    world.run_until(0, 60, rate=100, failing=0.5)


def test_a_ledger_that_is_begun_anew_costs_no_lock_out(world: World) -> None:
    world.run_until(5)
    world.run_until(0, 60, rate=100, failing=0.5)
    world.ramps.close()
    (world.state / "ledger.sqlite3").unlink()
    world.traffic.sums.clear()
    world.run(3)
    assert 1 == world.seen().rollbacks
    found = status(world.state, "a")
    assert found is not None
    assert 1 == found.rollbacks


def test_a_flag_file_that_cannot_be_changed_is_tried_again(world: World) -> None:
    world.run_until(5)
    shutil.copy(world.path, world.directory / "good.yaml")
    world.path.write_text("version: 2\n")
    world.run(3, failing=0.5)
    assert "version" in world.seen().frozen
    shutil.move(world.directory / "good.yaml", world.path)
    world.run_until(0, 5)


def test_a_drill_that_is_abandoned_is_ended(world: World) -> None:
    world.run_until(5)
    world.run(SAVE_S)
    Ramps(world.state).change("a", lambda ramp: setattr(ramp, "drill_bp", 500))
    world.flags.set_weight("a", 0, by="drill")
    world.run(DRILL_S - 1)
    assert 0 == world.weight()
    world.run_until(5, 5)
    assert "abandoned" in world.flags.audit()[-1].why


def test_what_is_kept_is_what_was_known(world: World) -> None:
    world.run_until(50)
    world.run(SAVE_S + 1)
    found = status(world.state, "a")
    assert found is not None
    mine = world.seen()
    assert (mine.weight_bp, mine.members["a"].weight_bp) == (found.weight_bp, found.members["a"].weight_bp)
    assert found.step is not None
    assert mine.step is not None
    assert mine.step.evidence.keys() == found.step.evidence.keys()


# --- cohorts


def test_routes_of_one_cohort_move_together_up_and_down(tmp_path: Path) -> None:
    world = World(tmp_path, COHORT)
    world.run_until(50)
    assert 50 == world.weight("b")
    while world.weight() == 50:
        world.run(0.5)
        world.traffic.answer("b", Backend.FASTAPI, 10, 5)
    assert [0, 0] == [world.weight("a"), world.weight("b")]
    assert {"rollback"} == {event.action for event in world.flags.audit()[-2:]}


def test_a_member_that_a_person_lowers_pauses_the_cohort(tmp_path: Path) -> None:
    world = World(tmp_path, COHORT)
    world.run_until(50)
    world.flags.set_weight("b", 5, by="ann")
    world.run(60)
    assert [50, 5] == [world.weight("a"), world.weight("b")]


def test_a_route_that_joins_a_cohort_catches_up_before_the_others_go_on(tmp_path: Path) -> None:
    world = World(tmp_path, COHORT.replace("  b: {weight: 0, cohort: pair, rollout: careful}\n", ""))
    world.run_until(50)
    weights = COHORT.replace("a: {weight: 0", "a: {weight: 50")
    world.path.write_text(weights)
    world.flags.look()
    world.run(5)
    assert [50, 5] == [world.weight("a"), world.weight("b")]


# --- whatever happens

ACTS = st.lists(
    st.sampled_from(["good", "bad", "idle", "lower", "raise", "pause", "resume", "restart", "sleep", "breaker"]),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTS)
def test_whatever_happens_the_robot_never_raises_what_is_paused_or_locked(tmp_path: Path, acts: list[str]) -> None:
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    world = World(tmp_path)
    world.run(2)
    for act in acts:
        before, paused, rested = world.weight(), world.seen().paused, world.seen()
        locked = rested.rollbacks and (rested.since_rollback_s or 0) < 5
        do(world, act)
        events = [event for event in world.flags.audit() if event.action == "advance"]
        if act in ("good", "bad", "idle") and (paused or locked):
            assert world.weight() <= before
        assert all(event.after in (5, 50, 100) for event in events)
    world.ramps.close()


def do(world: World, act: str) -> None:
    weight = world.weight()
    match act:
        case "good" | "bad" | "idle":
            world.run(4, failing=0.5 if act == "bad" else 0.0, rate=0 if act == "idle" else 100)
        case "lower" if weight:
            world.flags.set_weight("a", weight / 2 if weight > 1 else 0, by="ann")
        case "raise" if weight < 50:
            world.flags.set_weight("a", weight + 1, by="ann")
        case "pause" | "resume" if status(world.state, "a"):
            pause(world.state, "a", by="ann") if act == "pause" else resume(world.state, "a")
        case "restart":
            world.begin()
        case "sleep":
            world.now += 1000
        case "breaker" if weight:
            world.flags.hold("a", "errors", {})
            world.flags.edit(RollBack("a", 0), by="breaker")
    world.run(0.5, rate=0)


# --- what it costs


def test_three_hundred_ramps_cost_little(tmp_path: Path) -> None:
    keys = [f"r{number}" for number in range(300)]
    routes = "".join(f"  {key}: {{weight: 5, rollout: careful}}\n" for key in keys)
    (tmp_path / "flags.yaml").write_text(f"version: 1\nrollouts:\n  {PLAN}\nroutes:\n{routes}")
    ledger = Ledger(tmp_path / "state")
    ledger.start()
    for key in keys:
        for side in Backend:
            for number in range(30):
                ledger.count(key, side, 200, 0.002 * 1.1**number, trial=True)
    ledger.close()
    clock = [0.0]
    flags = FlagStore(tmp_path / "flags.yaml", None, tmp_path / "state")
    ramps = Ramps(tmp_path / "state")
    loop = RampLoop(flags, ledger, dict, ramps, clock=lambda: clock[0])
    took_s = []
    for _ in range(60):
        clock[0] += 0.25
        began = time.thread_time()
        loop.tick()
        took_s.append(time.thread_time() - began)
    ramps.close()
    assert sum(took_s) / 60 < 0.05
