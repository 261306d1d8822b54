"""The control API of a real `gateway serve` with two workers: what it does, and what attackers get."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import free_port, wait_until
from tests.support.serving import Server, audit, flag_file, gateway, ordered, serving
from tests.support.wire import Answer, Wire

SHOP = {"legacy": "tests.support.apps:make_legacy", "fastapi": "tests.support.apps:make_port"}
TOKEN = "0123456789abcdef-and-more"
BEARER = {"authorization": f"Bearer {TOKEN}"}
ROUTES = ("items.list_items: 0", "items.item: 25", "search: fastapi", "health: 0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("control"), *ROUTES, **SHOP, token=TOKEN) as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[httpx.Client]:
    server.put(*ROUTES)
    with server.client(headers=BEARER) as client:
        yield client


def on_every_worker(server: Server, path: str) -> list[Any]:
    """What each of several connections, and so both workers sooner or later, get for `path`."""
    return [server.get(path, BEARER) for _ in range(12)]


# --- what it does -------------------------------------------------------------------------------------------------


def test_every_worker_shows_the_same(server: Server, api: httpx.Client) -> None:
    for path in ("routes", "flags", "rollouts", "verdicts"):
        first, *others = on_every_worker(server, f"/_gateway/{path}")
        assert all(first == other for other in others)
    told = wait_until(lambda: len(found := api.get("/_gateway/workers").json()) == 2 and found, "both to be heard of")
    assert set(server.workers()) == {worker["pid"] for worker in told}
    health = api.get("/_gateway/health").json()
    assert ("ok", [], 2) == (health["status"], health["problems"], health["workers"])


def test_metrics_are_right_over_all_workers_whichever_answers(server: Server) -> None:
    with server.client(headers=BEARER) as client:
        before = sample(client, 'gateway_requests_total{key="search",backend="fastapi",status="200"}')
    for _ in range(40):
        assert {"by": "fastapi", "query": "x"} == server.get("/api/search/x")

    def seen() -> set[float]:
        numbers = set()
        for _ in range(8):
            with server.client(headers=BEARER) as client:
                numbers.add(sample(client, 'gateway_requests_total{key="search",backend="fastapi",status="200"}'))
        return numbers

    wait_until(lambda: seen() == {before + 40}, "all workers to tell the same 40 requests")


def sample(client: httpx.Client, name: str) -> float:
    lines = client.get("/_gateway/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_a_change_under_a_version_reaches_every_worker_and_the_trail(server: Server, api: httpx.Client) -> None:
    seen = api.get("/_gateway/flags")
    assert f'"{seen.json()["version"]}"' == seen.headers["etag"]
    headers = {"if-match": seen.headers["etag"], "x-gateway-user": "ann"}
    done = api.put("/_gateway/flags/health", json={"weight": 100, "why": "ready"}, headers=headers)
    assert 200 == done.status_code, done.text
    version = done.json()["version"]
    wait_until(lambda: [*server.workers().values()] == 2 * [version], "all workers to follow")
    assert {"fastapi"} == {server.get("/health")["by"] for _ in range(12)}
    event = audit(server)[-1]
    assert ("health", 0, 100, "ready") == tuple(event[name] for name in ("key", "before", "after", "why"))
    assert "api:127.0.0.1 who claims to be 'ann'" == event["by"]

    stale = api.put("/_gateway/flags/health", json={"weight": 50}, headers=headers)
    assert (409, version) == (stale.status_code, stale.json()["version"])
    undone = api.post(f"/_gateway/undo/{event['id']}", json={"why": "not yet"})
    assert (100, 0) == tuple(undone.json()["events"][0][name] for name in ("before", "after"))


def test_writers_who_race_lose_no_update(server: Server, api: httpx.Client) -> None:
    first = len(ordered(server))

    def raise_by_one() -> int:
        """Add one percent, as often as it takes to be the one whose version is current."""
        with server.client(headers=BEARER) as client:
            while True:
                flag = client.get("/_gateway/flags/items.list_items")
                weight, headers = flag.json()["weight"] + 1, {"if-match": flag.headers["etag"]}
                done = client.put("/_gateway/flags/items.list_items", json={"weight": weight}, headers=headers)
                if done.status_code == 200:
                    return weight
                assert 409 == done.status_code, done.text

    with ThreadPoolExecutor(4) as pool:
        weights = list(pool.map(lambda _: raise_by_one(), range(40)))
    assert list(range(1, 41)) == sorted(weights)
    assert list(range(1, 41)) == [event["after"] for event in ordered(server)[first:]]
    assert [] == api.get("/_gateway/audit?verify=true&limit=1").json()["problems"]


def test_the_panic_switch_is_thrown_everywhere_at_once(server: Server, api: httpx.Client) -> None:
    version = api.put("/_gateway/override", json={"override": "legacy"}).json()["version"]
    wait_until(lambda: [*server.workers().values()] == 2 * [version], "all workers to follow", 10)
    assert {"legacy"} == {server.get("/api/search/x")["by"] for _ in range(12)}
    assert ["the panic switch is thrown: legacy"] == api.get("/_gateway/health").json()["problems"]


def test_why_explains_a_request_that_any_worker_answered(server: Server, api: httpx.Client) -> None:
    with server.client(headers={"x-request-id": "from-the-proxy-1"}) as client:
        client.get("/api/search/x").raise_for_status()
    why = wait_until(
        lambda: (found := api.get("/_gateway/why/from-the-proxy-1")).status_code == 200 and found.json(), "the journal"
    )
    assert ("search", "fastapi", "static", 200) == tuple(why[name] for name in ("key", "backend", "reason", "status"))
    assert 404 == api.get("/_gateway/why/another-one").status_code
    assert "search" in server.cli("why", "from-the-proxy-1").stdout


def test_a_broken_flag_file_is_an_alarm_on_every_worker(server: Server, api: httpx.Client) -> None:
    server.flags.write_text("version: 1\nroutes: {")
    try:
        wait_until(
            lambda: all(h["status"] == "degraded" for h in on_every_worker(server, "/_gateway/health")), "the alarm"
        )
        wait_until(lambda: sample(api, "gateway_flags_rejected") == 2, "the metric")
        refused = api.put("/_gateway/flags/health", json={"weight": 1}, headers={"if-match": "*"})
        assert (400, True) == (refused.status_code, "flags.yaml:2" in refused.json()["error"])
    finally:
        server.put(*ROUTES)


def test_commands_beside_a_running_server_need_no_application(server: Server, api: httpx.Client) -> None:
    env = {**server.env, "GATEWAY_LEGACY": "nowhere:app", "GATEWAY_FASTAPI": "nowhere:app"}
    done = gateway("set", "health", "12", "--wait", env=env)
    assert (0, "") == (done.returncode, done.stderr)
    assert "2 of 2 live workers run it" in done.stdout
    assert 12 == api.get("/_gateway/flags/health").json()["weight"]
    unknown = gateway("set", "helth", "12", env=env)
    assert (2, "gateway: helth: no such route; did you mean 'health'?\n") == (unknown.returncode, unknown.stderr)


def test_a_drill_takes_every_worker_to_legacy_and_back(server: Server, api: httpx.Client) -> None:
    began = time.monotonic()
    done = server.cli("drill", "search", "--why", "monthly", "--json")
    took_s = time.monotonic() - began
    assert 0 == done.returncode, done.stderr
    times = json.loads(done.stdout)
    assert 2 == times["workers"]
    assert 0 < times["rolled_back_s"] < took_s
    assert 100 == api.get("/_gateway/flags/search").json()["weight"]
    assert [(100, 0), (0, 100)] == [(event["before"], event["after"]) for event in audit(server)[-2:]]
    assert {"drill"} == {event["action"] for event in audit(server)[-2:]}


# --- attacks ------------------------------------------------------------------------------------------------------

TRICKS = [
    "//_gateway/flags",
    "/x/../_gateway/flags",
    "/./_gateway/flags",
    "/%5fgateway/flags",
    "/%5Fgateway/flags",
    "/_gateway%2Fflags",
    "/%2F_gateway/flags",
    "/_gateway;a=b/flags",
    "/_GATEWAY/flags",
    "/_gateway",
    "/_gateway%00/flags",
    "/_gateway\\flags",
    "/?/_gateway/flags",
    "/#/_gateway/flags",
    "/%c0%af_gateway/flags",
]


@pytest.mark.parametrize("path", TRICKS)
def test_another_spelling_of_the_prefix_is_a_path_of_legacy(server: Server, path: str) -> None:
    """Even with the token: whoever guards the prefix in front must be able to trust its bytes."""
    assert_legacy(ask(server, "GET", path, f"Authorization: Bearer {TOKEN}"))


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL", "X_Original_URL", "X-Forwarded-Prefix"])
def test_no_header_leads_to_the_api(server: Server, header: str) -> None:
    answer = ask(server, "GET", "/nothing", f"{header}: /_gateway/flags", f"Authorization: Bearer {TOKEN}")
    assert_legacy(answer)
    answer = ask(server, "PUT", "/_gateway/override", "X-HTTP-Method-Override: GET", f"{header}: /health")
    assert 401 == answer.status


def test_an_upgrade_to_a_websocket_does_not_lead_to_the_api(server: Server) -> None:
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    upgrade += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"Authorization: Bearer {TOKEN}"]
    answer = ask(server, "GET", "/_gateway/flags", *upgrade)
    assert 400 <= answer.status < 500
    assert b"version" not in answer.body


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["flags", "flags/health", "metrics", "nothing", "../flags"])
def test_without_the_token_every_method_of_every_path_is_refused_alike(server: Server, method: str, path: str) -> None:
    wrong = ["", "Authorization: Bearer", f"Authorization: Bearer {TOKEN}x", f"Authorization: Basic {TOKEN}"]
    answers = [ask(server, method, f"/_gateway/{path}", *([line] if line else [])) for line in wrong]
    answers.append(ask(server, method, f"/_gateway/{path}", f"Cookie: token={TOKEN}", "Origin: http://evil.test"))
    assert [(401, 'Bearer realm="gateway"')] * 5 == [(a.status, a.get("www-authenticate")) for a in answers]
    assert {None} == {a.get("access-control-allow-origin") for a in answers}


def test_the_absolute_form_asks_for_the_token_too(server: Server) -> None:
    assert 401 == ask(server, "GET", f"http://127.0.0.1:{server.port}/_gateway/flags").status


def test_a_body_without_an_end_is_cut_off(server: Server) -> None:
    head = f"PUT /_gateway/flags/health HTTP/1.1\r\nHost: t\r\nIf-Match: *\r\nAuthorization: Bearer {TOKEN}\r\n"
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with Wire(server.port, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 3 * chunk) as wire:
        assert 413 == wire.answer().status


def test_a_client_that_leaves_in_the_middle_changes_nothing(server: Server, api: httpx.Client) -> None:
    before = server.flags.read_text()
    head = f"PUT /_gateway/flags/health HTTP/1.1\r\nHost: t\r\nIf-Match: *\r\nAuthorization: Bearer {TOKEN}\r\n"
    with Wire(server.port, f'{head}Content-Length: 100\r\n\r\n{{"weight": 77'.encode()):
        pass
    assert 200 == api.get("/_gateway/health").status_code
    assert before == server.flags.read_text()
    assert "Traceback" not in server.log.read_text()


def test_nothing_that_is_said_in_a_change_breaks_the_file_or_the_trail(server: Server, api: httpx.Client) -> None:
    nasty = "\n- {evil: !!python/object/apply:os.system [id]}\r\n\x1b[31m{{7*7}}<script>\u2028\ud83d"
    body = json.dumps({"weight": 5, "why": nasty})  # ASCII, so that the half of a pair gets through
    before = server.flags.read_text()
    for key in ("health\n  evil: fastapi", "../../etc/passwd", "!!python/none", "health: 5 #", "${jndi:x}"):
        url = httpx.URL(server.url).copy_with(raw_path=f"/_gateway/flags/{quote(key)}".encode())
        assert 404 == api.put(url, content=body, headers={"if-match": "*"}).status_code
    assert before == server.flags.read_text()
    done = api.put("/_gateway/flags/health", content=body, headers={"if-match": "*"})
    assert 200 == done.status_code
    assert "evil" not in server.flags.read_text()
    assert audit(server)[-1]["why"].isprintable()
    assert [] == api.get("/_gateway/audit?verify=true").json()["problems"]


def test_without_a_token_legacy_answers_under_the_prefix(tmp_path: Path) -> None:
    with serving(tmp_path, *ROUTES, **SHOP, workers=1) as server:
        for headers in ([], [f"Authorization: Bearer {TOKEN}"], ["Authorization: Bearer "]):
            assert_legacy(ask(server, "GET", "/_gateway/flags", *headers))
            assert_legacy(ask(server, "GET", "/_gateway/metrics", *headers))


def test_a_token_that_can_be_guessed_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(flag_file(*ROUTES))
    settings = {**SHOP, "flags": "flags.yaml", "token": "fifteen letters", "port": str(free_port())}
    done = gateway("serve", env={f"GATEWAY_{k.upper()}": v for k, v in settings.items()}, cwd=tmp_path)
    assert (2, "gateway: token: expected at least 16 characters, not 15") == (
        done.returncode,
        done.stderr.splitlines()[-1],
    )


def ask(server: Server, method: str, target: str, *headers: str) -> Answer:
    with Wire(server.port) as wire:
        return wire.get(target, *headers, method=method)


def assert_legacy(answer: Answer) -> None:
    """Flask's own 404, or the redirect or 400 that it has for such a path."""
    assert answer.status in (400, 404, 308), answer
    assert b'"error"' not in answer.body
    assert b'"routes"' not in answer.body
    assert None is answer.get("www-authenticate")


def quote(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())
