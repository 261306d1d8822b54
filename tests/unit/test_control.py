"""The control API in process: who gets in, what it shows, what it changes, and what it says when it does not."""

import asyncio
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import control as module
from gateway import disk
from gateway.audit import Audit, read_audit
from gateway.control import PATHS, Control
from gateway.errors import ConfigError
from gateway.flags import FlagStore
from gateway.journal import Journal
from gateway.ledger import Ledger
from gateway.model import Backend, Reason
from gateway.routes import RouteTable
from gateway.settings import Settings
from tests.support.apps import make_legacy, make_port
from tests.support.asgi import Answer, ask, http_scope

TOKEN = "a token of a good length"
FLAGS = """\
version: 1
override: none
rollouts:
  careful: {steps: [1, 5, 100], every: 10m}
routes:
  items.list_items: {weight: 25, shadow: 10} # a quarter
  search: {weight: 1, rollout: careful}
  health: fastapi
"""


@dataclass(frozen=True)
class Api:
    """The API of a half ported shop."""

    app: Control
    flags: FlagStore
    here: Path

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request with the token; `if_match="*"` becomes a header."""
        lines = {"authorization": f"Bearer {TOKEN}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        answer = await ask(self.app, method, f"/_gateway/{path}", lines.items(), data)
        assert answer.complete
        return answer

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert 200 == answer.status, answer.body
        return json.loads(answer.body)

    async def put(self, path: str, body: object, if_match: str = "*") -> tuple[int, Any]:
        answer = await self.ask("PUT", path, body, if_match=if_match)
        return answer.status, json.loads(answer.body)

    @property
    def text(self) -> str:
        return (self.here / "flags.yaml").read_text()


@pytest.fixture
def api(tmp_path: Path) -> Api:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    settings = Settings(flags=str(tmp_path / "flags.yaml"), state=str(tmp_path / "state"), token=TOKEN)
    table = RouteTable(make_legacy(), make_port())
    flags = FlagStore(Path(settings.flags), table.keys, settings.state_dir)
    return Api(Control(settings, flags, table.routes), flags, tmp_path)


# --- who gets in --------------------------------------------------------------------------------------------------

WRONG_CREDENTIALS: list[list[tuple[str, str]]] = [
    [],
    [("authorization", "")],
    [("authorization", "Bearer")],
    [("authorization", "Bearer ")],
    [("authorization", f"Bearer {TOKEN}x")],
    [("authorization", f"Bearer {TOKEN[:-1]}")],
    [("authorization", f"Basic {TOKEN}")],
    [("authorization", TOKEN)],
    [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
    [("authorization", "Bearer \xe4\xf6\xfc")],
    [("cookie", f"token={TOKEN}; authorization=Bearer {TOKEN}")],
    [("x-authorization", f"Bearer {TOKEN}")],
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "ODD"])
@pytest.mark.parametrize("headers", WRONG_CREDENTIALS)
async def test_without_the_token_nothing_is_answered_whatever_the_method(
    api: Api, method: str, headers: list[tuple[str, str]]
) -> None:
    for path in ("flags", "override", "nothing", "", "metrics", "health"):
        answer = await ask(api.app, method, f"/_gateway/{path}", headers, b'{"override": "legacy"}')
        assert (401, 'Bearer realm="gateway"') == (answer.status, answer.get("www-authenticate"))
    assert FLAGS == api.text


OURS = ["/_gateway/", "/_gateway/flags", "/_gateway/%66lags", "/_gateway/../x", "/_gateway//"]
NOT_OURS = [
    "/",
    "/_gateway",
    "//_gateway/flags",
    "/x/../_gateway/flags",
    "/./_gateway/flags",
    "/%5fgateway/flags",
    "/%5Fgateway/flags",
    "/_gateway%2fflags",
    "/_gateway;x/flags",
    "/_Gateway/flags",
    "/_GATEWAY/flags",
    "/_gateway\\flags",
    "http://testserver/_gateway/flags",
    "*",
    "",
]


@pytest.mark.parametrize("path", [*OURS, *NOT_OURS])
def test_only_the_very_bytes_of_the_prefix_lead_here(api: Api, path: str) -> None:
    headers = [("x-original-url", "/_gateway/flags"), ("x_original_url", "/_gateway/flags")]
    scope = {**http_scope("GET", "/_gateway/flags", headers), "raw_path": path.encode()}
    assert (path in OURS) == api.app.owns(scope)
    assert not api.app.owns({**scope, "type": "websocket"})


def test_without_a_configured_token_the_prefix_is_a_path_like_any_other(api: Api) -> None:
    assert not Control(Settings(), api.flags, {}).owns(http_scope("GET", "/_gateway/flags"))


def test_a_token_that_can_be_guessed_is_refused_at_start(api: Api) -> None:
    with pytest.raises(ConfigError, match="token: expected at least 16 characters, not 15"):
        Control(Settings(token="x" * 15), api.flags, {})


# --- what there is to see -----------------------------------------------------------------------------------------


async def test_routes_and_flags(api: Api) -> None:
    routes = {route["key"]: route for route in await api.get("routes")}
    assert {"items.list_items", "items.item", "items.remove_item", "search", "health"} == set(routes)
    assert (25, 10, "split", ["GET"]) == tuple(
        routes["items.list_items"][name] for name in ("weight", "shadow", "side", "ported")
    )
    answer = await api.ask("GET", "flags")
    flags = json.loads(answer.body)
    assert f'"{flags["version"]}"' == answer.get("etag")
    assert ("none", "", [1, 5, 100]) == (flags["override"], flags["rejected"], flags["rollouts"]["careful"]["steps"])
    assert (100, "careful") == (flags["routes"]["health"]["weight"], flags["routes"]["search"]["rollout"])
    one = await api.get("flags/items.list_items")
    assert {**routes["items.list_items"], "version": flags["version"]} == one


async def test_everything_can_be_looked_at_before_anything_has_happened(api: Api) -> None:
    for path in PATHS:
        if "GET" in PATHS[path] and "request" not in path:
            answer = await api.ask("GET", path.removeprefix("/_gateway/").replace("{key:path}", "search"))
            assert 200 == answer.status, (path, answer.body)


async def test_every_answer_is_for_programs_only_and_not_kept(api: Api) -> None:
    for path in ("flags", "metrics", "nothing", "flags/nothing"):
        answer = await api.ask("GET", path)
        assert ("no-store", "nosniff") == (answer.get("cache-control"), answer.get("x-content-type-options"))
        assert "default-src 'none'; frame-ancestors 'none'" == answer.get("content-security-policy")
        assert None is answer.get("set-cookie")
        assert None is answer.get("access-control-allow-origin")


async def test_head_has_no_other_head_than_get(api: Api) -> None:
    get, head = await api.ask("GET", "routes"), await api.ask("HEAD", "routes")
    assert (get.status, get.headers) == (head.status, head.headers)


async def test_metrics_are_read_at_most_once_a_second(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    # Its own clock: the loops of this process, those of other threads too, go by the one of all.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    ledger = Ledger(api.here / "state")
    ledger.start()
    first = await api.ask("GET", "metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == first.get("content-type")
    ledger.count("health", Backend.FASTAPI, 200, 0.1)
    ledger.close()
    assert first.body == (await api.ask("GET", "metrics")).body
    now += 1.1
    later = (await api.ask("GET", "metrics")).body.decode()
    assert 'gateway_requests_total{key="health",backend="fastapi",status="200"} 1\n' in later


async def test_health_names_what_is_wrong(api: Api) -> None:
    health = await api.get("health")
    assert ("ok", []) == (health["status"], health["problems"])
    api.flags.set_override("legacy", by="me")
    health = await api.get("health")
    assert ("degraded", ["the panic switch is thrown: legacy"]) == (health["status"], health["problems"])

    (api.here / "flags.yaml").write_text("version: 2\n")
    api.flags.look()
    assert "flags.yaml:1: version: expected 1, not 2" in (await api.get("health"))["problems"][0]


async def test_the_audit_trail_and_whether_it_is_whole(api: Api) -> None:
    for percent in (30, 40, 50):
        assert 200 == (await api.put("flags/items.list_items", {"weight": percent}))[0]
    await api.put("override", {"override": "legacy"})
    assert [1, 2, 3, 4] == [event["id"] for event in (await api.get("audit"))["events"]]
    assert [2, 3] == [event["id"] for event in (await api.get("audit?key=items.list_items&limit=2"))["events"]]
    whole = await api.get("audit?verify=true")
    assert ([], Audit(api.here / "state").head()) == (whole["problems"], whole["head"])

    trail = api.here / "state" / "audit.jsonl"
    trail.write_bytes(trail.read_bytes().replace(b"40", b"41", 1))
    assert (await api.get("audit?verify=true"))["problems"]


async def test_why_of_a_request(api: Api) -> None:
    journal = Journal(api.here / "state", 1_000_000)
    journal.start()
    version = api.flags.current.version
    journal.note("req/1", "health", "GET", "", version, Backend.FASTAPI, Reason.STATIC, None, 200, False, False)
    journal.close()
    why = await api.get("why/req/1")
    assert ("health", "fastapi", "static", 200) == tuple(why[name] for name in ("key", "backend", "reason", "status"))
    assert "GET health for nobody in particular" in why["sentences"][0]

    answer = await api.ask("GET", "why/no-such-request")
    assert (404, True) == (answer.status, "no request 'no-such-request'" in json.loads(answer.body)["error"])


# --- what can be changed ------------------------------------------------------------------------------------------


async def test_a_flag_is_changed_under_the_version_that_was_seen(api: Api) -> None:
    seen = (await api.get("flags"))["version"]
    body = {"weight": 12.5, "shadow": 100, "why": "half of it"}
    answer = await api.ask("PUT", "flags/items.list_items", body, if_match=f'"{seen}"', x_gateway_user='al"ice\x01')
    assert FLAGS.replace("weight: 25, shadow: 10", "weight: 12.5, shadow: 100") == api.text
    done = json.loads(answer.body)
    assert (200, f'"{api.flags.current.version}"') == (answer.status, answer.get("etag"))
    assert api.flags.current.version == done["version"]
    assert [("weight", 25, 12.5), ("shadow", 10, 100)] == [
        (e["action"], e["before"], e["after"]) for e in done["events"]
    ]
    for event in read_audit(api.here / "state" / "audit.jsonl"):
        assert ("api:127.0.0.1 who claims to be 'al\"ice\\\\x01'", "half of it") == (event.by, event.why)

    status, refused = await api.put("flags/items.list_items", {"weight": 5}, if_match=f'"{seen}"')
    assert (409, done["version"]) == (status, refused["version"])
    assert seen in refused["error"]


async def test_the_panic_switch_needs_no_version_but_minds_one(api: Api) -> None:
    seen = (await api.get("flags"))["version"]
    assert 200 == (await api.ask("PUT", "override", {"override": "legacy", "why": "smoke"})).status
    assert Backend.LEGACY is api.flags.current.override
    assert 409 == (await api.ask("PUT", "override", {"override": "none"}, if_match=f'"{seen}"')).status


async def test_undo(api: Api) -> None:
    await api.put("flags/items.list_items", {"weight": 12})
    answer = await api.ask("POST", "undo/1", {"why": "too slow"})
    assert (200, FLAGS) == (answer.status, api.text)
    (event,) = json.loads(answer.body)["events"]
    assert (12, 25, "too slow") == (event["before"], event["after"], event["why"])
    refused = await api.ask("POST", "undo/1")
    assert 409 == refused.status
    assert 200 == (await api.ask("POST", "undo/1", {"force": True})).status


async def test_a_route_of_which_nothing_is_ported_says_what_to_write(api: Api) -> None:
    status, refused = await api.put("flags/items.remove_item", {"weight": 1})
    line = '@app.delete("/api/items/{item_id}", name="items.remove_item")'
    assert (422, [line], "items.remove_item") == (status, refused["missing"], refused["key"])
    assert line in refused["error"]
    assert 422 == (await api.put("flags/items.remove_item", {"shadow": 1}))[0]
    assert FLAGS == api.text
    assert 200 == (await api.put("flags/items.remove_item", {"weight": 0, "shadow": 0}))[0]


async def test_a_weight_beyond_its_evidence_is_blocked_unless_somebody_insists_and_says_why(api: Api) -> None:
    status, refused = await api.put("flags/search", {"weight": 50})
    assert (422, FLAGS) == (status, api.text)
    assert refused["missing"]
    assert all(sentence in refused["error"] for sentence in refused["missing"])

    status, unexplained = await api.put("flags/search", {"weight": 50, "force": True})
    assert (400, FLAGS) == (status, api.text)
    assert "say why" in unexplained["error"]

    status, done = await api.put("flags/search", {"weight": 50, "force": True, "why": "the fair begins"})
    assert (200, 5000) == (status, api.flags.current["search"].weight_bp)
    (event,) = done["events"]
    assert ("the fair begins", {"missing": refused["missing"]}) == (event["why"], event["evidence"])
    assert 200 == (await api.put("flags/search", {"weight": 1}))[0]


async def test_what_was_lowered_on_evidence_is_not_put_back_without_insisting(api: Api) -> None:
    await api.put("flags/search", {"weight": 50, "force": True, "why": "the fair begins"})
    await api.put("flags/search", {"weight": 1, "why": "the fair is over"})
    assert 422 == (await api.ask("POST", "undo/2")).status
    assert 400 == (await api.ask("POST", "undo/2", {"force": True})).status
    assert 200 == (await api.ask("POST", "undo/2", {"force": True, "why": "it is not"})).status
    assert 5000 == api.flags.current["search"].weight_bp


async def test_changes_that_wait_for_a_lock_keep_nobody_from_looking(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOCK_WAIT_S", 60.0)
    directory = os.open(api.here, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    changes = asyncio.gather(*(api.put("flags/health", {"weight": 5}) for _ in range(6)))
    await asyncio.sleep(0)
    assert 100 == (await api.get("flags/health"))["weight"]
    assert not changes.done()
    os.close(directory)
    assert {200} == {status for status, _ in await changes}


WRONG = {
    "no such path": ("GET", "flag", None, 404, {}),
    "no such method": ("DELETE", "flags", None, 405, {}),
    "an unknown key": ("PUT", "flags/items.itm", {"weight": 5}, 404, {"key": "items.itm", "nearest": "items.item"}),
    "a key like a path": ("PUT", "flags/../override", {"weight": 5}, 404, {"key": "../override"}),
    "a key like a template": ("PUT", "flags/{{7*7}}", {"weight": 5}, 404, {"key": "{{7*7}}"}),
    "a key like a prototype": ("PUT", "flags/__proto__", {"weight": 5}, 404, {"key": "__proto__"}),
    "verdicts of an unknown key": ("GET", "verdicts/helth", None, 404, {"nearest": "health"}),
    "forgetting an unknown key": ("DELETE", "verdicts/helth", None, 404, {"nearest": "health"}),
    "a rollout of an unknown key": ("POST", "rollouts/helth", {"action": "pause"}, 404, {"nearest": "health"}),
    "a rollout that is none": ("POST", "rollouts/health", {"action": "pause"}, 400, {}),
    "an unknown plan": ("POST", "rollouts/health", {"action": "start", "plan": "carefl"}, 400, {"key": "health"}),
    "an unknown action": ("POST", "rollouts/health", {"action": "stop"}, 400, {"key": "action"}),
    "an unknown member": ("PUT", "flags/health", {"wieght": 5}, 400, {"key": "wieght", "nearest": "weight"}),
    "a member of python": ("PUT", "flags/health", {"__class__": 5}, 400, {"key": "__class__"}),
    "nothing to do": ("PUT", "flags/health", {"why": "x"}, 400, {"key": "health"}),
    "too much": ("PUT", "flags/health", {"weight": 100.01}, 400, {"key": "health"}),
    "too little": ("PUT", "flags/health", {"weight": -1}, 400, {"key": "health"}),
    "too fine": ("PUT", "flags/health", {"weight": 1.001}, 400, {"key": "health"}),
    "a good weight with a bad shadow": ("PUT", "flags/health", {"weight": 5, "shadow": 101}, 400, {"key": "health"}),
    "digits in quotes": ("PUT", "flags/health", {"weight": "5"}, 400, {"key": "weight"}),
    "true": ("PUT", "flags/health", {"weight": True}, 400, {"key": "weight"}),
    "null": ("PUT", "flags/health", {"weight": None}, 400, {"key": "weight"}),
    "not a number": ("PUT", "flags/health", b'{"weight": NaN}', 400, {}),
    "infinity": ("PUT", "flags/health", b'{"weight": 1e999}', 400, {}),
    "a number of 5 000 digits": ("PUT", "flags/health", b'{"weight": %s}' % (b"1" * 5000), 400, {}),
    "twice": ("PUT", "flags/health", b'{"weight": 5, "weight": 6}', 400, {}),
    "a list": ("PUT", "flags/health", b"[5]", 400, {}),
    "no JSON": ("PUT", "flags/health", b"weight=5", 400, {}),
    "no UTF-8": ("PUT", "flags/health", b'{"why": "\xff"}', 400, {}),
    "a deep hole": ("PUT", "flags/health", b"[" * 60_000, 400, {}),
    "a large body": ("PUT", "flags/health", b" " * 65_537, 413, {}),
    "a wrong side": ("PUT", "override", {"override": "flask"}, 400, {"key": "override"}),
    "no side": ("PUT", "override", {}, 400, {"key": "override"}),
    "an event that never was": ("POST", "undo/7", {}, 400, {}),
    "a wrong limit": ("GET", "audit?limit=-1", None, 400, {"key": "limit"}),
    "an unknown parameter": ("GET", "audit?limt=1", None, 400, {"key": "limt", "nearest": "limit"}),
}


@pytest.mark.parametrize(("method", "path", "body", "status", "details"), WRONG.values(), ids=WRONG)
async def test_wrong_input_is_one_sentence_and_changes_nothing(
    api: Api, method: str, path: str, body: object, status: int, details: dict[str, str]
) -> None:
    answer = await api.ask(method, path, body, if_match="*")
    said = json.loads(answer.body)
    assert (status, FLAGS) == (answer.status, api.text), said
    assert details == {name: said.get(name) for name in details}
    assert 0 < len(said["error"]) < 300
    assert "\n" not in said["error"]
    assert [] == read_audit(api.here / "state" / "audit.jsonl")


@pytest.mark.parametrize(("if_match", "status"), [(None, 428), ("", 400), ('""', 400), ('"0123456789ab"', 409)])
async def test_a_flag_without_the_right_version_is_not_changed(api: Api, if_match: str | None, status: int) -> None:
    headers = {} if if_match is None else {"if_match": if_match}
    answer = await api.ask("PUT", "flags/health", {"weight": 5}, **headers)
    assert (status, FLAGS) == (answer.status, api.text)


async def test_a_file_that_cannot_be_written_is_a_conflict_with_its_owner(tmp_path: Path) -> None:
    table = RouteTable(make_legacy(), make_port())
    settings = Settings(state=str(tmp_path), token=TOKEN)
    api = Api(
        Control(settings, FlagStore(None, None, tmp_path), table.routes), FlagStore(None, None, tmp_path), tmp_path
    )
    status, refused = await api.put("flags/health", {"weight": 5})
    assert (409, True) == (status, "no flag file is configured" in refused["error"])


async def test_a_failure_of_ours_shows_no_trace(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api.app._views, "routes", lambda: 1 / 0)
    answer = await api.ask("GET", "routes")
    assert (500, {"error": "the gateway failed; its log says why"}) == (answer.status, json.loads(answer.body))
    assert "ZeroDivisionError" in caplog.text


async def test_methods_that_a_path_has_are_named(api: Api) -> None:
    answer = await api.ask("PATCH", "flags/health")
    assert (405, {"GET", "HEAD", "PUT"}) == (answer.status, set((answer.get("allow") or "").split(", ")))
