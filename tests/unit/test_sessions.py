"""Flask's sessions outside a request: Flask's own and those of a store, as they should be, hostile, and failing."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import jwt
import pytest
from flask import Flask, session
from flask.sessions import SecureCookieSessionInterface, SessionInterface

from gateway.identity import IdentityBridge
from gateway.model import Backend
from gateway.settings import IdentitySettings, Settings
from tests.support.asgi import http_scope
from tests.support.browser import KEY, OWN, SETTINGS, Browser, FileSessions, StoredSession, legacy_app, token_of

# --- what Flask would have sent ----------------------------------------------------------------------------------


VARIANTS: list[dict[str, Any]] = [
    {},
    {"SESSION_COOKIE_NAME": "mv_session", "SESSION_COOKIE_SAMESITE": "Lax", "SESSION_COOKIE_SECURE": True},
    {"SESSION_COOKIE_PATH": "/app", "SESSION_COOKIE_DOMAIN": "example.org", "SESSION_COOKIE_HTTPONLY": False},
    {"SESSION_COOKIE_PARTITIONED": True, "SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": "None"},
    {"SESSION_REFRESH_EACH_REQUEST": False},
]


@pytest.mark.parametrize("config", VARIANTS)
async def test_the_session_slides_on_the_port_exactly_as_on_flask(config: dict[str, Any]) -> None:
    app = legacy_app(**config)
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    assert [app.config["SESSION_COOKIE_NAME"]] == list(browser.jar)
    while True:  # until both fall into one second: signature and Expires are made of whole ones
        started = int(time.time())
        await browser.get(Backend.LEGACY, "/me")
        expected = [h for h in browser.answered if h[0] in ("set-cookie", "vary")]
        await browser.get(Backend.FASTAPI, "/me")
        actual = [h for h in browser.answered if h[0] in ("set-cookie", "vary")]
        if int(time.time()) == started:
            break
    assert expected == actual
    assert config.get("SESSION_REFRESH_EACH_REQUEST", True) is bool(browser.lines())


@pytest.mark.parametrize("config", VARIANTS)
async def test_a_sign_out_on_the_port_deletes_the_cookie_with_flasks_attributes(config: dict[str, Any]) -> None:
    app = legacy_app(**config)
    browser = Browser(app)
    name = app.config["SESSION_COOKIE_NAME"]
    await browser.get(Backend.LEGACY, "/login/7")
    cookie = browser.jar[name]
    await browser.get(Backend.LEGACY, "/logout")
    expected = browser.lines(name)
    browser.jar = {name: cookie}
    await browser.get(Backend.FASTAPI, "/logout")
    assert (expected, 1) == (browser.lines(name), len(expected))


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("sub", 7),
        ("sub", 0),
        ("sub", "alice"),
        ("sub", "007"),
        ("sub", "9" * 30),
        ("sub", "٣"),
        ("sub:str", "7"),
        ("sub:int", 7),
        ("sub:uuid", UUID("12345678-1234-5678-1234-567812345678")),
    ],
)
async def test_a_value_of_the_session_comes_back_as_it_was(spec: str, value: object) -> None:
    app = Flask("legacy")
    app.secret_key = KEY

    @app.get("/me")
    def me() -> str:
        return repr(session.get("uid"))

    settings = Settings(identity=IdentitySettings(claims={"uid": spec}))
    bridge = IdentityBridge(app, settings, OWN)
    with app.test_client() as client:
        with client.session_transaction() as stored:
            stored["uid"] = value
        cookie = f"session={client.get_cookie('session').value}"
    scope = http_scope("GET", "/me", [("cookie", cookie)])
    minted = dict((await bridge.present(scope, await bridge.identify(scope), Backend.FASTAPI))["headers"])
    assert str(value) == jwt.decode(minted[b"authorization"].split()[1], KEY, ["HS256"])["sub"]

    scope = http_scope("GET", "/me", [("authorization", minted[b"authorization"].decode())])
    forged = dict((await bridge.present(scope, await bridge.identify(scope), Backend.LEGACY))["headers"])
    answer = app.test_client(use_cookies=False).get("/me", headers={"Cookie": forged[b"cookie"].decode()})
    assert repr(value) == answer.text


async def test_a_stock_session_expires_when_flask_says_so_cached_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(int(time.time()))
    for module in ("itsdangerous.timed", "gateway.sessions", "gateway.cache"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: now, monotonic=lambda: now))
    app = legacy_app()
    app.config["PERMANENT_SESSION_LIFETIME"] = 10
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    assert (7, "7") == await browser.users()
    now += 9.9
    assert (7, "7") == await browser.users()
    while (await browser.get(Backend.LEGACY, "/me"))["user"]:
        now += 0.1
    assert (None, None) == await browser.users()


class SaltedSessions(SecureCookieSessionInterface):
    salt = "our own"


async def test_a_subclass_of_flasks_own_sessions_works_as_it_is() -> None:
    app = legacy_app()
    app.session_interface = SaltedSessions()
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    assert (7, "7") == await browser.users()


# --- attacks -----------------------------------------------------------------------------------------------------


def sessions_of_attackers() -> Iterator[tuple[str, Callable[[], str]]]:
    def signed(key: str, interface: type[SessionInterface] = SecureCookieSessionInterface) -> str:
        app = legacy_app()
        app.secret_key = key
        app.session_interface = interface()
        line = app.test_client(use_cookies=False).get("/login/7").headers["Set-Cookie"]
        return line.partition("=")[2].partition(";")[0]

    good = signed(KEY)
    payload, when, signature = good.split(".")
    yield "tampered", lambda: f"{payload[:-3]}abc.{when}.{signature}"
    yield "another time", lambda: f"{payload}.{when[:-1]}_.{signature}"
    yield "truncated", lambda: good[:-3]
    yield "without signature", lambda: f"{payload}.{when}."
    yield "signed with secret", lambda: signed("secret")
    yield "signed with another salt", lambda: signed(KEY, SaltedSessions)
    yield "a token", lambda: token_of(7)
    yield "60 KB", lambda: "x" * 60_000
    yield "empty", lambda: ""
    yield "quoted", lambda: f'"{good}\\"'
    yield "not utf-8", lambda: "\xff\xfe"
    yield "dots", lambda: ".." * 100
    yield "zip bomb unsigned", lambda: ".eJwBAAD__w." + when + "." + signature


SESSION_ATTACKS = dict(sessions_of_attackers())


@pytest.mark.parametrize("attack", SESSION_ATTACKS)
async def test_a_bad_session_proves_nothing(attack: str) -> None:
    scope = http_scope("GET", "/me", [("cookie", f"session={SESSION_ATTACKS[attack]()}")])
    bridge = IdentityBridge(legacy_app(), SETTINGS, OWN)
    who = await bridge.identify(scope)
    assert scope is await bridge.present(scope, who, Backend.FASTAPI)
    assert who.subject.startswith("anon:")
    headers = [(b"content-type", b"text/plain")]
    assert headers is await bridge.reconcile(who, Backend.FASTAPI, 200, headers)


# --- stores ------------------------------------------------------------------------------------------------------


async def test_a_session_that_ended_meanwhile_is_not_written_back(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = FileSessions(tmp_path)
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.FASTAPI, "/me")
    next(tmp_path.iterdir()).unlink()
    headers = [(b"content-type", b"text/plain")]
    assert headers is await browser.bridge.reconcile(browser.who, Backend.FASTAPI, 200, headers)
    assert [] == list(tmp_path.iterdir())


async def test_requests_with_one_token_share_one_forged_session(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = FileSessions(tmp_path)
    browser = Browser(app)
    bearer = ("authorization", f"Bearer {token_of(7)}")
    scopes = [http_scope("GET", "/me", [bearer]) for _ in range(20)]

    async def present(scope: dict[str, Any]) -> Any:
        return await browser.bridge.present(scope, await browser.bridge.identify(scope), Backend.LEGACY)

    cookies = {dict(scope["headers"])[b"cookie"] for scope in await asyncio.gather(*map(present, scopes))}
    assert (1, 1) == (len(cookies), len(list(tmp_path.iterdir())))
    next(tmp_path.iterdir()).unlink()
    assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]


class HeldSessions(FileSessions):
    """Opens nothing before it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.go = threading.Event()

    def open_session(self, app: Flask, request: Any) -> StoredSession:
        self.threads.add(threading.get_ident())
        self.go.wait(30)
        return super().open_session(app, request)


async def test_looking_into_a_store_never_blocks_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sessions.STORE_TIMEOUT_S", 60.0)
    app = legacy_app()
    app.session_interface = store = HeldSessions(tmp_path)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    looking = asyncio.ensure_future(bridge.identify(http_scope("GET", "/", [("cookie", "session=abc")])))
    while not store.threads:
        await asyncio.sleep(0.005)
    assert not looking.done()
    store.go.set()
    assert (await looking).subject.startswith("anon:")


async def test_a_request_without_credentials_never_asks_the_store(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = store = FileSessions(tmp_path)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/", [("cookie", "theme=dark")])
    who = await bridge.identify(scope)
    headers = [(b"content-type", b"text/plain")]
    for side in Backend:
        assert scope is await bridge.present(scope, who, side)
        assert headers is await bridge.reconcile(who, side, 200, headers)
    assert set() == store.threads


async def test_a_legacy_route_asks_the_store_only_when_somebody_needs_to_know(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = store = FileSessions(tmp_path)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/", [("cookie", "session=abc")])
    who = bridge.look(scope)
    assert scope is await bridge.present(scope, who, Backend.LEGACY)
    assert set() == store.threads


# --- stores that fail --------------------------------------------------------------------------------------------


class BrokenSessions(FileSessions):
    down = True

    def open_session(self, app: Flask, request: Any) -> StoredSession:
        if self.down:
            raise ConnectionError("the store is down")
        return super().open_session(app, request)


async def test_a_store_that_is_down_leaves_everybody_anonymous_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = legacy_app()
    app.session_interface = BrokenSessions(tmp_path)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    for headers in [[("cookie", "session=abc")], [("authorization", f"Bearer {token_of(7)}")]] * 3:
        scope = http_scope("GET", "/me", headers)
        who = await bridge.identify(scope)
        for side in Backend:
            assert scope is await bridge.present(scope, who, side)
        await bridge.reconcile(who, Backend.FASTAPI, 200, [(b"set-cookie", b"access_token=" + token_of(7).encode())])
    said = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    kinds = [message.partition("(")[2].partition(")")[0] for message in said]
    assert ["begin: ConnectionError", "forge: ConnectionError", "read: ConnectionError"] == sorted(kinds)


@pytest.mark.parametrize("user", [None, 8], ids=["sign-out", "sign-in as another"])
async def test_a_store_that_is_down_does_not_keep_the_old_session_alive(user: int | None, tmp_path: Path) -> None:
    token = token_of(user) if user else ""
    app = legacy_app(SESSION_COOKIE_PATH="/app")
    app.session_interface = store = BrokenSessions(tmp_path)
    store.down = False
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.FASTAPI, "/me")
    store.down = True
    headers = [(b"set-cookie", f"access_token={token}; Path=/".encode())]
    out = await browser.bridge.reconcile(browser.who, Backend.FASTAPI, 200, headers)
    line = b"session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly; Path=/app"
    assert [(b"vary", b"Cookie"), (b"set-cookie", line)] == out[1:]


async def test_a_store_that_fails_during_a_request_leaks_nothing_and_signs_nobody_out(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = store = BrokenSessions(tmp_path)
    store.down = False
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/me", [("cookie", f"access_token={token_of(7)}")])
    who = await bridge.identify(scope)
    presented = await bridge.present(scope, who, Backend.LEGACY)
    store.down = True
    headers = [(b"set-cookie", dict(presented["headers"])[b"cookie"].partition(b";")[0]), (b"x", b"y")]
    assert [(b"x", b"y")] == await bridge.reconcile(who, Backend.LEGACY, 200, headers)


class StubbornSessions(FileSessions):
    """Opens nothing, or saves nothing."""

    def __init__(self, opens: StoredSession | None) -> None:
        self.opens = opens

    def open_session(self, app: Flask, request: Any) -> Any:
        return self.opens

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        pass


@pytest.mark.parametrize("opens", [None, StoredSession()])
async def test_sessions_that_cannot_be_made_are_not_forged(opens: StoredSession | None) -> None:
    app = legacy_app()
    app.session_interface = StubbornSessions(opens)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/me", [("authorization", f"Bearer {token_of(7)}")])
    assert scope is await bridge.present(scope, await bridge.identify(scope), Backend.LEGACY)


async def test_a_store_that_hangs_costs_a_bounded_wait_and_then_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sessions.STORE_TIMEOUT_S", 60.0)
    app = legacy_app()
    app.session_interface = store = HeldSessions(tmp_path)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/me", [("cookie", "session=abc")])
    first = [asyncio.ensure_future(bridge.identify(scope)) for _ in range(8)]
    while len(store.threads) < 8:
        await asyncio.sleep(0.005)

    monkeypatch.setattr("gateway.sessions.STORE_TIMEOUT_S", 0.2)
    started = time.perf_counter()
    everybody = await asyncio.gather(*(bridge.identify(scope) for _ in range(400)))
    assert time.perf_counter() - started < 20  # one after the other they would wait for 50 s
    monkeypatch.setattr("gateway.sessions.STORE_TIMEOUT_S", 60.0)
    assert await asyncio.wait_for(bridge.identify(scope), 10)
    assert not any(who.done() for who in first)
    store.go.set()
    assert all(who.subject.startswith("anon:") for who in [*everybody, *await asyncio.gather(*first)])
    assert (8, False) == (len(store.threads), threading.get_ident() in store.threads)
