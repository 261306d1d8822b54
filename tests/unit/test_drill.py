"""Rollback is tried out, timed, and leaves everything as it was; or refused."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway import ledger as ledger_module
from gateway.errors import GatewayError
from gateway.flagfile import parse_flags
from gateway.flags import FlagStore
from gateway.ledger import Ledger
from gateway.model import FlagSet
from gateway.rollout import drill as drill_module
from gateway.rollout import ramp as ramp_module
from gateway.rollout.drill import Drills, drill
from gateway.rollout.ramp import RampLoop
from gateway.rollout.states import Ramps, status
from tests.support.processes import wait_until

FLAGS = """version: 1
override: none
rollouts:
  careful: {steps: [5, 50, 100], every: 1h, drill: 7d}
routes:
  a: {weight: 50, rollout: careful}
  b: 25 # a quarter
  c: legacy
"""


class Host:
    """A worker: flags, and a ledger that says which of them are in force."""

    def __init__(self, directory: Path) -> None:
        (directory / "flags.yaml").write_text(FLAGS)
        self.state = directory / "state"
        self.flags = FlagStore(directory / "flags.yaml", None, self.state)
        self.ledger, self.follows = Ledger(self.state), True
        self.now = 1000.0
        self.ramps = Ramps(self.state)
        self.loop = RampLoop(self.flags, self.ledger, dict, self.ramps, clock=lambda: self.now)
        self.flags.subscribe(self.follow)

    def follow(self, flags: FlagSet) -> None:
        if self.follows:
            self.ledger.seen(flags.version)

    def start(self) -> None:
        self.ledger.start()
        self.ledger.seen(self.flags.current.version)
        wait_until(self.ledger.workers, "the worker")

    def drill(self, key: str) -> drill_module.Drilled:
        return drill(key, self.flags, self.ledger.workers, self.state, by="ann", why="Tuesday")

    def tick(self, seconds: float = 0.25) -> None:
        for _ in range(max(1, int(seconds))):
            self.now += min(seconds, 1)
            self.loop.tick()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(ledger_module, "STALE_S", 60.0)  # the worker is not gone when the machine is busy with others
    host = Host(tmp_path)
    yield host
    host.ramps.close()
    host.ledger.close()


def test_a_drill_goes_to_0_and_back_and_leaves_its_times_in_the_trail(host: Host) -> None:
    host.start()
    began = time.monotonic()
    done = host.drill("b")
    assert ("b", 2500, 1) == (done.key, done.weight_bp, done.workers)
    assert 0 < done.edited_s <= done.rolled_back_s
    assert 0 < done.restored_s < time.monotonic() - began - done.rolled_back_s
    assert FLAGS == (host.state.parent / "flags.yaml").read_text()

    there, back = host.flags.audit()
    assert [("drill", "ann", "Tuesday", 25, 0)] == [(there.action, there.by, there.why, there.before, there.after)]
    assert ("drill", 0, 25, done.rolled_back_s) == (
        back.action,
        back.before,
        back.after,
        back.evidence["rolled_back_s"],
    )


def test_the_ramp_of_a_route_goes_on_after_a_drill_as_if_nothing_had_been(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ramp_module, "DRILL_S", 3600.0)  # time flies here, and the drill may be held up
    host.start()
    host.tick(5)
    before = host.loop.ramps["a"].in_step_s
    ticking = threading.Event()

    def tick() -> None:
        while not ticking.is_set():
            host.tick()
            ticking.wait(0.01)
        host.ramps.close()

    host.ramps.close()
    leader = threading.Thread(target=tick)
    leader.start()
    try:
        host.drill("a")
    finally:
        ticking.set()
        leader.join()
    host.tick()
    ramp = host.loop.ramps["a"]
    assert ("", None, 5000, 0) == (ramp.paused, ramp.drill_bp, ramp.weight_bp, ramp.rollbacks)
    assert ramp.in_step_s >= before - 1
    assert 5000 == host.flags.current["a"].weight_bp


def override(host: Host) -> None:
    host.flags.set_override("legacy", by="ann")


def wrong_file(host: Host) -> None:
    (host.state.parent / "flags.yaml").write_text("version: 2\n")


def hold(host: Host) -> None:
    host.flags.hold("a", "errors", {})
    wait_until(host.flags.audit, "the record of the hold")


def no_worker(host: Host) -> None:
    host.ledger.close()


def laggard(host: Host) -> None:
    host.ledger.seen("an old one")
    wait_until(lambda: [worker.version for worker in host.ledger.workers()] == ["an old one"], "the worker")


def drilling(host: Host) -> None:
    host.tick(5)
    Ramps(host.state).change("a", lambda ramp: setattr(ramp, "drill_bp", 5000))


REFUSALS: dict[Callable[[Host], None], str] = {
    override: "the override is legacy",
    wrong_file: "not in force",
    hold: "held on legacy",
    no_worker: "no worker is running",
    laggard: "other flags are in force in worker",
    drilling: "another drill is under way",
}


@pytest.mark.parametrize("obstacle", REFUSALS, ids=lambda obstacle: obstacle.__name__)
def test_a_drill_that_would_prove_nothing_or_disturb_is_refused(host: Host, obstacle: Callable[[Host], None]) -> None:
    host.start()
    obstacle(host)
    if obstacle is override:
        wait_until(lambda: host.ledger.workers()[0].version == host.flags.current.version, "the worker")
    before = (host.state.parent / "flags.yaml").read_text()
    with pytest.raises(GatewayError, match=REFUSALS[obstacle]):
        host.drill("a")
    assert before == (host.state.parent / "flags.yaml").read_text()


def test_a_route_at_0_has_nothing_to_prove(host: Host) -> None:
    host.start()
    with pytest.raises(GatewayError, match="the weight is 0 already"):
        host.drill("c")


def test_a_worker_that_does_not_follow_is_named_and_the_weight_put_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drill_module, "TIMEOUT_S", 0.2)
    host.start()
    host.follows = False
    with pytest.raises(GatewayError, match=r"not rolled back within 0\.2 s by worker \d+ on"):
        host.drill("b")
    assert 2500 == host.flags.current["b"].weight_bp
    assert "1 worker(s) did not follow" in host.flags.audit()[-1].why


def test_what_somebody_sets_during_a_drill_stands(host: Host) -> None:
    host.start()
    host.follows = False
    other = FlagStore(host.state.parent / "flags.yaml", None, host.state)

    def interfere() -> None:
        wait_until(lambda: host.flags.current["b"].weight_bp == 0, "the drill")
        host.ledger.seen(other.set_weight("b", 1, by="ben").version)

    person = threading.Thread(target=interfere)
    person.start()
    with pytest.raises(GatewayError, match="b is 1 by now"):
        host.drill("b")
    person.join()
    assert 100 == host.flags.current["b"].weight_bp


def test_a_plan_has_its_routes_drilled_now_and_then(host: Host) -> None:
    assert 7 * 86_400 == parse_flags(FLAGS, None).rollouts["careful"].drill_s
    host.start()
    host.tick(5)
    drills = Drills(host.loop, host.flags, host.ledger.workers, host.state)
    drills.tick()
    assert [] == host.flags.audit()

    host.loop.ramps["a"].since_drill_s = 7 * 86_400
    drills.tick()
    wait_until(lambda: len(host.flags.audit()) == 2, "a drill")
    wait_until(lambda: "gateway-drill" not in [thread.name for thread in threading.enumerate()], "its end")
    found = status(host.state, "a")
    assert found is not None
    assert (0.0, None) == (found.since_drill_s, found.drill_bp)
