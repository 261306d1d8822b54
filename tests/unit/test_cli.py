"""The command line: what it prints, what it exits with, what it changes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway import ledger as ledger_module
from gateway import server
from gateway.cli import _OPTIONS, main
from gateway.decide import bucket
from gateway.flags import FlagStore
from gateway.journal import Journal
from gateway.keys import own_secret
from gateway.ledger import Ledger
from gateway.model import Backend, Difference, Observation, Reason, Verdict
from gateway.passes import check
from gateway.routes import RouteTable
from gateway.settings import Settings
from gateway.shadow.tape import Exchange
from gateway.shadow.verdicts import Verdicts
from gateway.views import publish_routes
from tests.support.apps import make_legacy, make_port

FLAGS = """\
version: 1
override: none
routes:
  items.list_items: {weight: 25, cohort: items} # a quarter
  items.item: {weight: 50, cohort: items, pins: ["user:pinned"]}
  items.remove_item: 10
  health: fastapi
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def data(self) -> object:
        return json.loads(self.out)


Gateway = Callable[..., Done]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_LEGACY", "tests.support.apps:make_legacy")
    monkeypatch.setenv("GATEWAY_FASTAPI", "tests.support.apps:make_port")
    monkeypatch.setenv("GATEWAY_FLAGS", "flags.yaml")
    (tmp_path / "flags.yaml").write_text(FLAGS)
    return tmp_path


@pytest.fixture
def gateway(here: Path, capsys: pytest.CaptureFixture[str]) -> Gateway:
    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        code = stopped.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def refused(done: Done, *words: str) -> None:
    assert (2, "") == (done.code, done.out)
    assert done.err.startswith("gateway: ")
    assert 1 == done.err.count("\n")
    assert [] == [word for word in words if word not in done.err]


# --- looking ------------------------------------------------------------------------------------------------------


def test_routes_for_programs(gateway: Gateway) -> None:
    routes = {route["key"]: route for route in gateway("routes", "--json").data}
    assert {"items.list_items", "items.item", "items.remove_item", "search", "health"} == set(routes)
    item = routes["items.item"]
    assert ["/api/items/<int:item_id>"] == item["rules"]
    assert ["GET", "HEAD", "OPTIONS", "PUT"] == item["methods"]
    assert (["GET"], 50, "split") == (item["ported"], item["weight"], item["side"])
    assert ("fastapi", 100) == (routes["health"]["side"], routes["health"]["weight"])
    assert ("legacy", 10, []) == tuple(routes["items.remove_item"][name] for name in ("side", "weight", "ported"))
    assert ("legacy", 0, ["GET"]) == tuple(routes["search"][name] for name in ("side", "weight", "ported"))


def test_routes_for_people_are_one_line_each(gateway: Gateway) -> None:
    head, *lines = gateway("routes").out.splitlines()
    assert ["key", "rule", "methods", "side", "weight", "ported"] == head.split()
    assert 5 == len(lines)
    assert "health /health GET HEAD OPTIONS fastapi 100 % GET" == " ".join(lines[0].split())


def test_check_tells_how_each_pair_was_found_and_what_is_odd(gateway: Gateway) -> None:
    report = gateway("check", "--json").data
    pairs = {pair["key"]: pair for pair in report["pairs"]}
    assert ("name", ["/api/items/{item_id}"]) == (pairs["items.item"]["how"], pairs["items.item"]["fastapi"])
    assert ("path", "") == (pairs["search"]["how"], pairs["items.remove_item"]["how"])
    assert ["before_request tests.support.apps.make_legacy.<locals>.note_the_client"] == pairs["search"]["hooks"]
    assert ["/api/suggestions", "/openapi.json"] == report["new"]
    assert [
        "items.remove_item: its flag has no effect, nothing of it is ported",
        "cohort items: its routes have different weights: 25 % (items.list_items), 50 % (items.item)",
    ] == report["warnings"]

    done = gateway("check")
    assert 0 == done.code
    for words in (
        "items.item        name      /api/items/{item_id}  GET     HEAD OPTIONS PUT",
        "5 routes, 4 with a twin in FastAPI",
        "only in FastAPI: /api/suggestions, /openapi.json",
        "does not run where FastAPI answers: before_request tests.support.apps.make_legacy.<locals>.note_the_client",
        "override none; 2 legacy, 2 split, 1 fastapi",
        "warning: cohort items",
    ):
        assert words in done.out


def test_what_an_application_prints_is_no_output_of_ours(gateway: Gateway, here: Path) -> None:
    (here / "talkative.py").write_text("print('hello')\nfrom tests.support.apps import make_legacy\n")
    done = gateway("routes", "--json", "--legacy", "talkative:make_legacy")
    assert 5 == len(done.data)
    assert "hello\n" == done.err


def test_why_explains_a_decision(gateway: Gateway) -> None:
    def why(key: str, *arguments: str) -> tuple[str, str]:
        answer = gateway("why", key, "--json", *arguments).data
        return answer["backend"], answer["reason"]

    place = bucket("items", "user:7")
    assert ("fastapi" if place < 5000 else "legacy", "split") == why("items.item", "--subject", "user:7")
    assert ("fastapi", "pinned") == why("items.item", "--subject", "user:pinned")
    assert ("legacy", "unported") == why("items.item", "--subject", "user:7", "--method", "put")
    assert ("fastapi", "static") == why("health")

    answer = gateway("why", "items.item", "--subject", "user:7")
    assert f"split: bucket {place / 100:g} % against a weight of 50 %" in answer.out
    assert "GET items.item for user:7 is for " in answer.out


def test_without_a_port_or_flags_everything_is_legacy(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_FASTAPI")
    monkeypatch.delenv("GATEWAY_FLAGS")
    assert {("legacy", 0)} == {(route["side"], route["weight"]) for route in gateway("routes", "--json").data}
    assert "flags without a file: override none; 5 legacy, 0 split, 0 fastapi" in gateway("check").out
    refused(gateway("override", "legacy"), "--flags")


def test_why_takes_a_path_for_what_is_ported_in_part(gateway: Gateway, here: Path) -> None:
    answer = gateway("why", "/api/items/7", "--subject", "user:pinned", "--json").data
    assert ("items.item", "fastapi", "pinned") == tuple(answer[name] for name in ("key", "backend", "reason"))
    refused(gateway("why", "/api/nothing"), "/api/nothing", "legacy")
    refused(gateway("why", "/api/suggestions"), "only FastAPI has it")

    (here / "halves.py").write_text(HALVES)
    halves = ("--legacy", "halves:legacy", "--fastapi", "halves:port", "--flags", "halves.yaml")
    (here / "halves.yaml").write_text("version: 1\nroutes:\n  item: fastapi\n")
    refused(gateway("why", "item", *halves), "GET is ported for some of /new /old only; give a path instead")
    backends = [gateway("why", path, *halves, "--json").data["backend"] for path in ("/new", "/old")]
    assert ["fastapi", "legacy"] == backends
    assert [] == [warning for warning in gateway("check", *halves, "--json").data["warnings"] if "no effect" in warning]


HALVES = """\
from fastapi import FastAPI
from flask import Flask

legacy = Flask("halves")
legacy.add_url_rule("/new", "item", lambda: "")
legacy.add_url_rule("/old", "item", legacy.view_functions["item"])
port = FastAPI()
port.add_api_route("/new", lambda: "", name="item")
"""


def test_why_of_a_past_request(gateway: Gateway, here: Path) -> None:
    version = FlagStore(here / "flags.yaml", None, here / ".gateway").current.version
    journal = Journal(here / ".gateway", 1_000_000)
    journal.start()
    journal.note("req-1", "health", "GET", "user:7", version, Backend.FASTAPI, Reason.STATIC, None, 200, False, False)
    journal.close()
    done = gateway("why", "req-1", "--legacy", "nowhere:app")
    assert "GET health for user:7 at " in done.out
    assert "fastapi answered 200" in done.out
    assert "req-1" == gateway("why", "req-1", "--json").data["id"]
    refused(gateway("why", "req-2"), "req-2: no such route")


def test_why_at_another_time(gateway: Gateway) -> None:
    gateway("set", "health", "0")
    gateway("set", "health", "100", "--why", "ready")
    then = gateway("log", "--json").data[0]["at"]
    answer = gateway("why", "health", "--at", then, "--json").data
    assert ("legacy", 0) == (answer["backend"], answer["weight"])
    assert "fastapi" == gateway("why", "health", "--json").data["backend"]
    refused(gateway("why", "health", "--at", "yesterday"), "yesterday")


# --- changing -----------------------------------------------------------------------------------------------------


def test_set_changes_one_number_and_leaves_a_trace(gateway: Gateway, here: Path) -> None:
    done = gateway("set", "items.list_items", "12.5", "--why", "slower today")
    assert (0, "") == (done.code, done.err)
    assert done.out.startswith("items.list_items: from 25 to 12.5 %, version ")
    assert FLAGS.replace("weight: 25", "weight: 12.5") == (here / "flags.yaml").read_text()

    (event,) = gateway("log", "--json").data
    assert ("items.list_items", 25, 12.5, "slower today") == tuple(event[n] for n in ("key", "before", "after", "why"))
    assert "@" in event["by"]


def test_a_route_of_which_nothing_is_ported_says_what_to_write(gateway: Gateway, here: Path) -> None:
    refused(gateway("set", "items.remove_item", "20"), '@app.delete("/api/items/{item_id}", name="items.remove_item")')
    refused(gateway("shadow", "items.remove_item", "20"), "nothing of it is ported")
    assert FLAGS == (here / "flags.yaml").read_text()
    assert 0 == gateway("set", "items.remove_item", "5").code


def test_beyond_its_evidence_a_weight_rises_only_with_force_and_a_reason(gateway: Gateway, here: Path) -> None:
    (here / "flags.yaml").write_text(RAMPS)
    blocked = gateway("set", "health", "50")
    assert (3, "") == (blocked.code, blocked.out)
    assert (
        "gateway: health: blocked by its evidence: the ramp has not begun, and the plan careful begins with 1 %\n"
        == blocked.err
    )
    refused(gateway("set", "health", "50", "--force"), "force needs a reason: say why")
    assert RAMPS == (here / "flags.yaml").read_text()

    assert 0 == gateway("set", "health", "50", "--force", "--why", "the fair begins").code
    (event,) = gateway("log", "--json").data
    assert ["the ramp has not begun, and the plan careful begins with 1 %"] == event["evidence"]["missing"]
    assert "the fair begins" == event["why"]
    assert 0 == gateway("set", "health", "1").code


RAMPS = """\
version: 1
rollouts:
  careful: {steps: [1, 5, 100], every: 10m}
routes:
  health: {weight: 0, rollout: careful}
"""


def test_a_ramp_from_its_start(gateway: Gateway, here: Path) -> None:
    assert "no route has a rollout" in gateway("rollouts").out
    (here / "flags.yaml").write_text(RAMPS)
    assert "no route has a rollout" in gateway("rollouts", "search").out
    (view,) = gateway("rollouts", "--json").data
    assert ("health", "careful", "not begun") == tuple(view[name] for name in ("name", "plan", "state"))
    assert "not begun" in gateway("rollouts", "health").out

    assert 0 == gateway("ramp", "search", "start", "--plan", "careful").code
    assert f"{RAMPS}  search:\n    rollout: careful\n" == (here / "flags.yaml").read_text()
    refused(gateway("ramp", "search", "start", "--plan", "carefl"), "did you mean 'careful'?")
    refused(gateway("ramp", "health", "pause"), "no rollout is under way")
    refused(gateway("ramp", "health", "stop"), "start, pause, resume", "'stop'")


def test_a_shadow_is_set_and_undone(gateway: Gateway, here: Path) -> None:
    done = gateway("shadow", "items.list_items", "10", "--why", "a look")
    assert (0, True) == (done.code, done.out.startswith("items.list_items shadow: from 0 to 10 %, version "))
    assert "{shadow: 10, weight: 25, cohort: items}" in (here / "flags.yaml").read_text()
    refused(gateway("shadow", "items.list_items", "-1"), "0 to 100", "'-1'")
    assert 0 == gateway("undo", "1").code
    assert "nothing has been replayed" in gateway("verdicts").out


def shadowed(state: Path, matched: int, mismatched: int) -> None:
    """What so many replays of `items.item` leave behind."""
    verdicts = Verdicts(state)
    verdicts.start()
    exchange = Exchange(
        id="req-1", key="items.item", candidate=Backend.FASTAPI, at=1_767_225_600.0, version="", subject="",
        scope={"method": "GET", "path": "/api/items/7", "query_string": b"token=secret"}, body=b"",
        control=Observation(Backend.LEGACY, 200),
    )  # fmt: skip
    for differences in [()] * matched + [(Difference("$.price", "1.10", 1.1),)] * mismatched:
        answer = Observation(Backend.FASTAPI, 200)
        verdicts.add(exchange, exchange.key, exchange.candidate, Verdict(differences), exchange.control, answer)
    clean, noise = {"value": [3, 0, 0, 0, 0]}, {"value": [0, 2, 5, 0, 0]}
    verdicts.learn("items.item", {"samples": 10, "unordered": [], "places": {"$.price": clean, "$.seen_at": noise}})
    verdicts.close()


def test_ten_thousand_mismatches_read_as_their_causes(gateway: Gateway, here: Path) -> None:
    shadowed(here / ".gateway", 7, 3)
    shown = gateway("verdicts").out
    assert shown.startswith("items.item: 7 matched, 3 mismatched\n")
    assert "3 x $.price: " in shown
    assert "since 2026-01-01 00:00:00" in shown
    assert "request req-1: 200 and 200" in shown
    assert "secret" not in shown
    assert "noise, left out: $.seen_at\n" in shown
    (view,) = gateway("verdicts", "items.item", "--json").data
    assert ({"matched": 7, "mismatched": 3}, [3]) == (view["outcomes"], [group["count"] for group in view["groups"]])


def test_a_route_whose_shadows_differ_gets_no_more_weight_until_they_are_forgotten(
    gateway: Gateway, here: Path
) -> None:
    shadowed(here / ".gateway", 7, 3)
    blocked = gateway("set", "items.item", "60")
    assert (3, True) == (blocked.code, "3 of 10 shadow comparisons differ, 0.1 % are tolerated" in blocked.err)
    assert 0 == gateway("set", "items.item", "40").code
    assert "items.item: " in gateway("verdicts", "items.item", "--forget", "--why", "fixed").out
    assert ("forget", "fixed") == tuple(gateway("log", "--json").data[-1][name] for name in ("action", "why"))
    assert 0 == gateway("set", "items.item", "60").code


def test_a_pass_for_a_tester(gateway: Gateway, here: Path) -> None:
    done = gateway("token", "--for", "ann", "--key", "health", "--key", "search", "--expires", "2h", "--why", "review")
    assert (0, 1) == (done.code, done.out.count("\n"))
    assert done.err.startswith("for ann, fastapi for health, search, until ")
    made = check(own_secret(Settings(state=str(here / ".gateway"))), done.out.strip(), time.time())
    assert made is not None
    assert (Backend.FASTAPI, {"health", "search"}, "ann") == (made.side, made.keys, made.who)
    (event,) = gateway("log", "--json").data
    assert ("pass", "review", made.id) == (event["action"], event["why"], event["evidence"]["id"])
    assert done.out.strip() not in (here / ".gateway/audit.jsonl").read_text()

    refused(gateway("token", "--for", "ann", "--key", "helth"), "did you mean 'health'?")
    refused(gateway("token", "--for", "ann", "--expires", "31d"), "30 days")
    refused(gateway("token", "--for", "ann", "--expires", "soon"), "30m, 8h or 7d", "'soon'")
    refused(gateway("token", "--for", "ann", "--side", "flask"), "legacy or fastapi", "'flask'")


def test_the_trail_is_verified_against_itself_and_against_a_head_that_was_kept(gateway: Gateway, here: Path) -> None:
    assert "as it was written; head of nothing" in gateway("log", "--verify").out
    gateway("set", "health", "5")
    head = gateway("log", "--verify", "--json").data["head"]
    gateway("set", "health", "6")
    assert "as it was written; head 2:" in gateway("log", "--verify", "--head", head).out

    trail = here / ".gateway/audit.jsonl"
    trail.write_bytes(trail.read_bytes().replace(b'"after":5', b'"after":4'))
    done = gateway("log", "--verify")
    assert (1, True) == (done.code, done.err.startswith("gateway: line 1: "))
    assert gateway("log", "--verify", "--json").data["problems"]


def test_override_and_undo(gateway: Gateway, here: Path) -> None:
    assert "override: from none to legacy, " in gateway("override", "legacy").out
    assert {"legacy"} == {route["side"] for route in gateway("routes", "--json").data}
    assert "override: from legacy to none, " in gateway("undo", "1").out
    assert FLAGS == (here / "flags.yaml").read_text()


def test_the_panic_switch_works_without_the_applications(gateway: Gateway) -> None:
    assert 0 == gateway("override", "legacy", "--legacy", "does.not:exist").code


def test_log_shows_the_newest_of_one_key(gateway: Gateway) -> None:
    for percent in ("1", "2", "3"):
        gateway("set", "health", percent)
    gateway("override", "fastapi", "--why", "\x1b[31m[red]x[/]")

    assert [2, 3] == [event["id"] for event in gateway("log", "health", "--limit", "2", "--json").data]
    refused(gateway("log", "helth"), "helth", "'health'")
    shown = gateway("log")
    assert r"\x1b[31m[red]x[/]" in shown.out
    assert "\x1b" not in shown.out
    assert 5 == len(shown.out.splitlines())


def test_setting_what_is_already_set_says_so(gateway: Gateway) -> None:
    assert gateway("set", "health", "100").out.startswith("health: is 100 % already, version ")


def test_json_says_what_was_done(gateway: Gateway) -> None:
    answer = gateway("set", "health", "5", "--json", "--wait").data
    assert (100, 5, 0, {}) == tuple(answer[name] for name in ("before", "after", "workers", "laggards"))


WRONG = {
    "an unknown key": (["set", "items.itm", "5"], ["items.itm", "did you mean 'items.item'?"]),
    "too much": (["set", "health", "101"], ["health", "0 to 100", "'101'"]),
    "too little": (["set", "health", "-1"], ["health", "0 to 100", "'-1'"]),
    "no number": (["set", "health", "much"], ["health", "0 to 100", "'much'"]),
    "an old version": (["set", "health", "5", "--if-version", "0123456789ab"], ["0123456789ab"]),
    "a wrong side": (["override", "flask"], ["none, legacy or fastapi", "'flask'"]),
    "an event that never was": (["undo", "seven"], ["no event 'seven'"]),
    "why of an unknown key": (["why", "helth"], ["helth", "'health'"]),
    "why of a method it has not": (["why", "health", "--method", "PATCH"], ["PATCH", "GET"]),
    "verdicts of an unknown key": (["verdicts", "helth"], ["helth", "'health'"]),
    "forgetting an unknown key": (["verdicts", "helth", "--forget"], ["helth", "'health'"]),
    "forgetting everything": (["verdicts", "--forget"], ["which route"]),
    "rollouts of an unknown key": (["rollouts", "helth"], ["helth", "'health'"]),
    "a ramp of an unknown key": (["ramp", "helth", "pause"], ["helth", "'health'"]),
    "a drill of an unknown key": (["drill", "helth"], ["helth", "'health'"]),
    "a drill without anybody to follow": (["drill", "health"], ["health", "no worker is running"]),
    "a shadow of an unknown key": (["shadow", "helth", "5"], ["helth", "'health'"]),
    "no application": (["routes", "--legacy", "nowhere:app"], ["legacy", "nowhere"]),
    "a control character": (["set", "he\x1b[31malth", "5"], [r"he\x1b[31malth"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_changes_nothing(
    gateway: Gateway, here: Path, arguments: list[str], words: list[str]
) -> None:
    refused(gateway(*arguments), *words)
    assert FLAGS == (here / "flags.yaml").read_text()
    assert ["flags.yaml"] == [path.name for path in here.iterdir()]


@pytest.mark.parametrize(
    "command", [["check"], ["routes"], ["set", "health", "5"], ["override", "none"], ["why", "health"]]
)
def test_a_wrong_flag_file_is_named_with_its_line(gateway: Gateway, here: Path, command: list[str]) -> None:
    (here / "flags.yaml").write_text(FLAGS.replace("fastapi", "fastapy"))
    refused(gateway(*command), "flags.yaml:7: health: expected legacy, fastapi", "not fastapy")


@pytest.mark.parametrize(
    "arguments", [["sret"], ["set", "health"], ["set", "health", "5", "--wiat"], ["routes", "--x"]]
)
def test_wrong_usage_exits_with_2(gateway: Gateway, arguments: list[str]) -> None:
    done = gateway(*arguments)
    assert 2 == done.code
    assert "Traceback" not in done.err


# --- waiting ------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A worker that says what the test makes it say."""
    monkeypatch.setattr(ledger_module, "STALE_S", 60.0)  # it is not gone when the machine is busy with others
    ledger = Ledger(here / ".gateway")
    ledger.start()
    ledger.seen("an old one")
    while not ledger.workers():
        time.sleep(0.005)
    yield ledger
    ledger.close()


def test_waiting_ends_when_every_worker_runs_the_new_version(
    gateway: Gateway, worker: Ledger, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = here / ".gateway/audit.jsonl"

    def follow(_wait_s: float) -> None:
        worker.seen(json.loads(audit.read_text())["version"])

    # Its own clock: other threads sleep, too.
    monkeypatch.setattr("gateway.cli.time", SimpleNamespace(sleep=follow, monotonic=time.monotonic))
    done = gateway("set", "health", "5", "--wait", "--timeout", "60")
    assert (0, "") == (done.code, done.err)
    assert "1 of 1 live workers run it after " in done.out


def test_routes_that_a_running_worker_has_published_need_no_import_of_the_applications(
    gateway: Gateway, worker: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_LEGACY", "nowhere:app")
    refused(gateway("set", "items.item", "30"), "nowhere")
    publish_routes(Path(".gateway"), RouteTable(make_legacy(), make_port()).routes)
    assert 0 == gateway("set", "items.item", "30").code
    refused(gateway("set", "items.itm", "30"), "did you mean 'items.item'?")
    refused(gateway("set", "items.remove_item", "30"), "nothing of it is ported")
    worker.close()
    refused(gateway("set", "items.item", "40"), "nowhere")  # what no live worker serves may have changed


def test_waiting_names_the_laggards(gateway: Gateway, worker: Ledger) -> None:
    done = gateway("set", "health", "5", "--wait", "--timeout", "0.1")
    assert (1, f"gateway: worker {os.getpid()} still runs version an old one\n") == (done.code, done.err)

    worker.seen("an old one", "flags.yaml:1: wrong")
    while not worker.workers()[0].rejected:
        time.sleep(0.005)
    done = gateway("override", "legacy", "--wait", "--timeout", "0.1", "--json")
    assert 1 == done.code
    assert {str(os.getpid()): "rejects the flag file: flags.yaml:1: wrong"} == done.data["laggards"]


def test_waiting_for_nobody_says_so(gateway: Gateway) -> None:
    done = (
        gateway("undo", "1", "--wait")
        if gateway("set", "health", "5").code
        else gateway("set", "health", "6", "--wait")
    )
    assert (0, "no live worker in .gateway to wait for") == (done.code, done.out.splitlines()[1])


def test_workers_and_what_is_wrong(gateway: Gateway, worker: Ledger) -> None:
    gateway("override", "legacy")
    shown = gateway("workers")
    assert str(os.getpid()) in shown.out
    assert "degraded: the panic switch is thrown: legacy" in shown.out
    assert "degraded: 1 of 1 workers run another version of the flags" in shown.out
    data = gateway("workers", "--json").data
    assert ("an old one", "degraded") == (data["workers"][0]["version"], data["health"]["status"])


def test_workers_are_shown_also_while_the_file_is_wrong(gateway: Gateway, worker: Ledger) -> None:
    version = gateway("override", "legacy", "--json").data["version"]
    worker.seen(version, "flags.yaml:1: wrong")
    while not worker.workers()[0].rejected:
        time.sleep(0.005)
    Path("flags.yaml").write_text("version: 1\nroutes: {")

    shown = gateway("workers")

    assert 0 == shown.code
    assert (str(os.getpid()), version) == tuple(shown.out.splitlines()[1].split()[0:3:2])
    assert "degraded: the flags on disk are not in force everywhere: flags.yaml:2" in shown.out
    assert "degraded: the panic switch is thrown: legacy" in shown.out
    assert "another version" not in shown.out
    refused(gateway("override", "none"), "flags.yaml:2")
    assert "version: 1\nroutes: {" == Path("flags.yaml").read_text()


def test_a_file_that_was_never_right_is_said_beside_the_workers(gateway: Gateway) -> None:
    Path("flags.yaml").write_text("version: 1\nroutes: {")
    shown = gateway("workers")
    assert (0, "no live worker") == (shown.code, shown.out.splitlines()[0])
    assert "flags.yaml:2" in shown.out


def test_no_worker_is_no_error(gateway: Gateway) -> None:
    assert "no live worker\n" == gateway("workers").out


# --- serving ------------------------------------------------------------------------------------------------------


def test_every_option_of_serve_is_a_setting_and_exits_with_its_code(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings: got.append(settings) or 7)
    options = "--legacy a:b --port 1 --workers 3 --served-by --queue-wait-s 0.5 --stream-request a --stream-request b"
    assert 7 == gateway("serve", *options.split()).code
    (settings,) = got
    assert ("a:b", 1, 3, True, 0.5, ("a", "b")) == (
        settings.legacy,
        settings.port,
        settings.workers,
        settings.served_by,
        settings.queue_wait_s,
        settings.stream_request,
    )
    assert "tests.support.apps:make_port" == settings.fastapi
    assert set(Settings.__dataclass_fields__) - set(_OPTIONS) == {"secret_key", "token", "identity"}


def test_version(gateway: Gateway) -> None:
    assert {"python", "strangler-gateway", "flask", "fastapi", "uvicorn"} == set(gateway("version", "--json").data)
    assert "flask 3." in gateway("version").out


def test_help_is_quick_because_it_loads_no_framework() -> None:
    code = "import sys, gateway.cli; print([m for m in ('fastapi', 'flask', 'uvicorn', 'ruamel') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout
