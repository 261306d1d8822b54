"""What there is to see, read from files alone."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import Blocked, NotPorted, UnknownKey
from gateway.flags import FlagStore
from gateway.ledger import Ledger
from gateway.model import Backend, Flag, FlagSet, Rollout, Route
from gateway.rollout.judge import Action, Step, begin
from gateway.rollout.leader import Leader
from gateway.rollout.states import Member, Move, Ramp, Ramps
from gateway.routes import RouteTable
from gateway.settings import Settings
from gateway.shadow.strikes import Strikes
from gateway.views import Views, dumps, is_led, publish_routes, published_routes, side, to_port
from tests.support.apps import make_legacy, make_port
from tests.support.processes import wait_until

FLAGS = """\
version: 1
rollouts:
  careful: {steps: [1, 5, 25, 100], every: 10m}
routes:
  items.list_items: {weight: 5, rollout: careful}
  search: {weight: 1, rollout: careful}
  health: fastapi
"""
PLAN = Rollout("careful", (100, 500, 2500, 10_000), 600.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    return Settings(flags=str(tmp_path / "flags.yaml"), state=str(tmp_path / "state"))


@pytest.fixture
def views(settings: Settings) -> Views:
    table = RouteTable(make_legacy(), make_port())
    return Views(settings, FlagStore(Path(settings.flags), table.keys, settings.state_dir), table.routes)


# --- routes -------------------------------------------------------------------------------------------------------

PORTED = Route("a", ("/a",), frozenset({"GET", "PUT"}), frozenset({"GET"}), {"GET": "name"})
HALF = Route("a", ("/a", "/b"), frozenset({"GET"}), frozenset(), {"GET": "name"})
BARE = Route("a", ("/a",), frozenset({"GET"}))


@pytest.mark.parametrize(
    ("route", "flags", "expected"),
    [
        (PORTED, FlagSet(), "legacy"),
        (PORTED, FlagSet(flags={"a": Flag("a", 10_000)}), "fastapi"),
        (PORTED, FlagSet(flags={"a": Flag("a", 1)}), "split"),
        (PORTED, FlagSet(flags={"a": Flag("a", pins=frozenset({"user:7"}))}), "split"),
        (PORTED, FlagSet(flags={"a": Flag("a", 10_000)}, held=frozenset({"a"})), "legacy"),
        (PORTED, FlagSet(override=Backend.FASTAPI, held=frozenset({"a"})), "fastapi"),
        (HALF, FlagSet(flags={"a": Flag("a", 10_000)}), "fastapi"),
        (BARE, FlagSet(flags={"a": Flag("a", 10_000)}, override=Backend.FASTAPI), "legacy"),
    ],
)
def test_the_side_of_a_route_is_that_of_whatever_is_ported_of_it(route: Route, flags: FlagSet, expected: str) -> None:
    assert expected == side(route, flags)


def test_what_to_port_is_written_as_fastapi_wants_it() -> None:
    rules = ("/files/<path:name>", "/<any(a,b):kind>/<int(min=1):number>", "/plain/<word>")
    route = Route("box.get", rules, frozenset({"GET", "HEAD", "OPTIONS", "POST"}), frozenset({"GET"}))
    assert to_port(route) == (
        '@app.post("/files/{name:path}", name="box.get")',
        '@app.post("/{kind}/{number}", name="box.get")',
        '@app.post("/plain/{word}", name="box.get")',
    )


def test_an_unknown_route_names_the_nearest(views: Views) -> None:
    with pytest.raises(UnknownKey, match="helth: no such route; did you mean 'health'"):
        views.route("helth")
    with pytest.raises(UnknownKey, match=r"^quite something else: no such route$"):
        views.route("quite something else")


# --- published routes ---------------------------------------------------------------------------------------------


@pytest.fixture
def worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr("gateway.ledger.STALE_S", 60.0)  # its heart may beat late on a busy machine
    ledger = Ledger(settings.state_dir)
    ledger.start()
    ledger.seen("v1")
    wait_until(ledger.workers, "the worker")
    yield ledger
    ledger.close()


def test_published_routes_are_what_they_were(settings: Settings, worker: Ledger) -> None:
    routes = RouteTable(make_legacy(), make_port()).routes
    publish_routes(settings.state_dir, routes)
    assert routes == published_routes(settings.state_dir, worker.workers())


def test_routes_that_no_live_worker_published_are_not_believed(settings: Settings, worker: Ledger) -> None:
    state = settings.state_dir
    assert None is published_routes(state, worker.workers())
    publish_routes(state, {})
    assert {} == published_routes(state, worker.workers())
    assert None is published_routes(state, [])
    restarted = [replace(one, started_at=time.time()) for one in worker.workers()]
    assert None is published_routes(state, restarted)
    for damaged in ("", "{", "[]", '{"at": "x"}', '{"at": 9e99, "routes": [[1]]}'):
        (state / "routes.json").write_text(damaged)
        assert None is published_routes(state, worker.workers())


def test_routes_that_cannot_be_published_stop_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    publish_routes(tmp_path / "file" / "state", {})
    assert "routes.json is not written" in caplog.text


# --- ramps --------------------------------------------------------------------------------------------------------


def ramp(weight_bp: int, **values: object) -> Ramp:
    evidence = begin(PLAN)
    members = {"search": Member(weight_bp, evidence)}
    made = Ramp(name="search", plan="careful", weight_bp=weight_bp, evidence=evidence, members=members)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def saved(settings: Settings, *some: Ramp) -> None:
    ramps = Ramps(settings.state_dir)
    ramps.save(some, (), ramps.revision())
    ramps.close()


HOLD = Step(Action.HOLD, 100, "stays at 1 %: 3 of 200 requests", ("3 of 200 requests",), {"port": 3, "since": math.inf})
STATES: dict[str, Callable[[], Ramp]] = {
    "ramping": lambda: ramp(100, step=HOLD),
    "paused": lambda: ramp(100, step=HOLD, paused="paused by ann"),
    "frozen": lambda: ramp(100, step=HOLD, frozen="Redis is lost"),
    "drilling": lambda: ramp(0, drill_bp=100),
    "moving": lambda: ramp(100, move=Move(Action.ADVANCE, 500, "rollout", "good")),
    "watching": lambda: ramp(10_000),
    "rolled back": lambda: ramp(0, rollbacks=1),
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_ramp_has_a_name(settings: Settings, views: Views, state: str) -> None:
    saved(settings, STATES[state]())
    (view,) = views.rollouts("search")
    assert (state, ["search"], "careful", 4) == tuple(view[name] for name in ("state", "keys", "plan", "steps"))
    assert json.loads(dumps(view))


def test_a_ramp_says_where_it_stands_why_and_what_is_missing(settings: Settings, views: Views) -> None:
    saved(settings, ramp(100, step=HOLD))
    begun, planned = sorted(views.rollouts(), key=lambda view: view["step"], reverse=True)
    assert (1, 1, HOLD.why, ["3 of 200 requests"]) == tuple(begun[n] for n in ("weight", "step", "why", "missing"))
    assert ("items.list_items", "not begun", 5) == tuple(planned[name] for name in ("name", "state", "weight"))


# --- what is in the way -------------------------------------------------------------------------------------------


def test_a_weight_that_falls_or_stays_meets_no_objection(views: Views) -> None:
    assert None is views.objection("search", 100)
    assert None is views.objection("search", 0)
    assert None is views.objection("items.remove_item", 0)


def test_a_route_without_plan_and_shadow_is_the_operators_own_business(views: Views) -> None:
    assert None is views.objection("items.item", 10_000)


def test_nothing_of_a_route_being_ported_is_an_objection(views: Views) -> None:
    objection = views.objection("items.remove_item", 1)
    assert isinstance(objection, NotPorted)
    assert ('@app.delete("/api/items/{item_id}", name="items.remove_item")',) == objection.missing


def test_evidence_that_the_judge_misses_is_an_objection(settings: Settings, views: Views) -> None:
    saved(settings, ramp(100, step=HOLD))
    objection = views.objection("search", 200)
    assert isinstance(objection, Blocked)
    assert ("3 of 200 requests",) == objection.missing


def test_with_enough_evidence_a_person_may_go_as_far_as_the_plan_would_now(settings: Settings, views: Views) -> None:
    saved(settings, ramp(100, step=Step(Action.ADVANCE, 500, "good")))
    assert None is views.objection("search", 500)
    objection = views.objection("search", 501)
    assert isinstance(objection, Blocked)
    assert ("the plan careful goes from 1 % to 5 % first",) == objection.missing


# --- health -------------------------------------------------------------------------------------------------------


def test_whether_anybody_leads(settings: Settings, views: Views) -> None:
    assert not is_led(settings.state_dir)
    leader = Leader(settings.state_dir, [])
    leader.start()
    wait_until(lambda: is_led(settings.state_dir), "the leader")
    assert views.health()["led"]
    leader.close()
    wait_until(lambda: not is_led(settings.state_dir), "its end")


def test_health_tells_of_other_versions_lost_numbers_and_suspended_shadows(
    settings: Settings, views: Views, worker: Ledger
) -> None:
    worker.dropped = 3
    worker.seen("another")
    for _ in range(10):
        Strikes(settings.state_dir).add(["search"])
    wait_until(lambda: worker.workers()[0].dropped["ledger"], "the heartbeat")
    problems = views.health()["problems"]
    assert "1 of 1 workers run another version of the flags" in problems
    assert "ledger: 3 writes failed since the workers began" in problems
    assert [True] == [
        problem.startswith("search is not replayed until ") for problem in problems if "search" in problem
    ]


def test_numbers_that_json_has_not_are_null_and_control_characters_escaped() -> None:
    value = {"a": math.nan, "b": [math.inf], "c": "\x1b\ud83d"}
    assert r'{"a": null, "b": [null], "c": "\u001b\ud83d"}' == dumps(value)
