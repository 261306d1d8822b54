"""The command line: what it prints, what it exits with, what it changes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import server
from gateway.cli import _OPTIONS, main
from gateway.decide import bucket
from gateway.flags import FlagStore
from gateway.ledger import Ledger
from gateway.settings import Settings

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
    assert "items.item GET for user:7: " in answer.out


def test_without_a_port_or_flags_everything_is_legacy(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_FASTAPI")
    monkeypatch.delenv("GATEWAY_FLAGS")
    assert {("legacy", 0)} == {(route["side"], route["weight"]) for route in gateway("routes", "--json").data}
    assert "flags without a file: override none; 5 legacy, 0 split, 0 fastapi" in gateway("check").out
    refused(gateway("set", "health", "5"), "--flags")


# --- changing -----------------------------------------------------------------------------------------------------


def test_set_changes_one_number_and_leaves_a_trace(gateway: Gateway, here: Path) -> None:
    done = gateway("set", "items.list_items", "12.5", "--why", "slower today")
    assert (0, "") == (done.code, done.err)
    assert done.out.startswith("items.list_items: from 25 to 12.5 %, version ")
    assert FLAGS.replace("weight: 25", "weight: 12.5") == (here / "flags.yaml").read_text()

    (event,) = gateway("log", "--json").data
    assert ("items.list_items", 25, 12.5, "slower today") == tuple(event[n] for n in ("key", "before", "after", "why"))
    assert "@" in event["by"]


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
def worker(here: Path) -> Iterator[Ledger]:
    """A worker that says what the test makes it say."""
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
    monkeypatch.setattr(time, "sleep", lambda _: worker.seen(json.loads(audit.read_text())["version"]))
    audit = here / ".gateway/audit.jsonl"
    done = gateway("set", "health", "5", "--wait")
    assert (0, "") == (done.code, done.err)
    assert "1 of 1 live workers run it after " in done.out


def test_a_key_that_a_running_worker_has_checked_is_set_without_importing_the_applications(
    gateway: Gateway, worker: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_LEGACY", "nowhere:app")
    version = FlagStore(Path("flags.yaml"), None, Path(".gateway")).current.version
    worker.seen(version)
    while worker.workers()[0].version != version:
        time.sleep(0.005)
    refused(gateway("set", "items.nothing", "30"), "nowhere")
    assert 0 == gateway("set", "items.item", "30").code
    refused(gateway("set", "items.item", "40"), "nowhere")  # the worker does not run that version yet


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
    assert set(Settings.__dataclass_fields__) - set(_OPTIONS) == {"secret_key", "identity"}


def test_version(gateway: Gateway) -> None:
    assert {"python", "strangler-gateway", "flask", "fastapi", "uvicorn"} == set(gateway("version", "--json").data)
    assert "flask 3." in gateway("version").out


def test_help_is_quick_because_it_loads_no_framework() -> None:
    code = "import sys, gateway.cli; print([m for m in ('fastapi', 'flask', 'uvicorn', 'ruamel') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout
