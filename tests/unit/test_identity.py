"""The identity bridge between real Flask applications and a real FastAPI port that verifies bearers."""

import asyncio
import base64
import json
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from flask import Flask, jsonify, session
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin

from gateway.errors import ConfigError
from gateway.identity import Identity, IdentityBridge, own_secret
from gateway.model import Backend
from gateway.settings import IdentitySettings, Settings
from tests.support.asgi import Header, ask, http_scope

KEY = "6f1c7e0b9a5d4e2f8c3b7a1d0e9f5c4b2a8d6e3f"
OWN = b"\x13" * 7 + b"the gateway's own key, 32 bytes"
IDENTITY = IdentitySettings(
    claims={"user_id": "sub", "session_token": "sid"},
    issuer="music",
    audience="music-api",
    token_cookie="access_token",
)
SETTINGS = Settings(identity=IDENTITY)


# --- a legacy application with either kind of session, a port, and a browser in front of both -------------------


class StoredSession(dict[str, Any], SessionMixin):
    sid = ""


class FileSessions(SessionInterface):
    """Sessions as one file each, on a slow disk; only the number travels in the cookie."""

    def __init__(self, directory: Path, delay_s: float = 0.002) -> None:
        self.directory, self.delay_s = directory, delay_s
        self.threads: set[int] = set()

    def _path(self, sid: str) -> Path:
        return self.directory / re.sub("[^0-9a-f]", "_", sid)

    def open_session(self, app: Flask, request: Any) -> StoredSession:
        assert app.config["STORE"] == "files"
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s)
        stored = StoredSession()
        sid = request.cookies.get(self.get_cookie_name(app), "")
        if sid and self._path(sid).exists():
            stored.update(json.loads(self._path(sid).read_text()))
            stored.sid = sid
        return stored

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        time.sleep(self.delay_s)
        name, path = self.get_cookie_name(app), self.get_cookie_path(app)
        if not session:
            if session.sid:
                self._path(session.sid).unlink(missing_ok=True)
                response.delete_cookie(name, path=path)
            return
        session.sid = session.sid or secrets.token_hex(16)
        self._path(session.sid).write_text(json.dumps(session))
        expires = self.get_expiration_time(app, session)
        response.set_cookie(name, session.sid, expires=expires, path=path, httponly=True)
        response.vary.add("Cookie")


class SaltedSessions(SecureCookieSessionInterface):
    salt = "our own"


def legacy_app(**config: Any) -> Flask:
    app = Flask("legacy")
    app.secret_key = KEY
    app.config.update(PERMANENT_SESSION_LIFETIME=3600, STORE="files", **config)

    @app.get("/login/<int:user>")
    def login(user: int) -> str:
        session.clear()
        session.permanent = True
        session["user_id"], session["session_token"] = user, f"token-{user}"
        return "in"

    @app.get("/logout")
    def logout() -> str:
        session.clear()
        return "out"

    @app.get("/forget")
    def forget() -> str:
        session.pop("user_id", None)
        session["flash"] = "bye"
        return "out"

    @app.get("/cart")
    def cart() -> str:
        session["cart"] = [1, 2]
        return "in the cart"

    @app.get("/me")
    def me() -> Any:
        return jsonify(user=session.get("user_id"), kind=type(session.get("user_id")).__name__, keys=sorted(session))

    return app


def port_app() -> FastAPI:
    app = FastAPI()

    @app.get("/me")
    async def me(request: Request) -> Any:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get("access_token", "")
        try:
            claims = jwt.decode(token, KEY, ["HS256"], issuer="music", audience="music-api")
        except jwt.PyJWTError:
            return JSONResponse({"user": None}, 401)
        return {"user": claims["sub"], "sid": claims["sid"]}

    @app.get("/login/{user}")
    async def login(user: int, response: Response) -> str:
        response.set_cookie("access_token", token_of(user), httponly=True)
        return "in"

    @app.get("/logout")
    async def logout(response: Response) -> str:
        response.delete_cookie("access_token")
        return "out"

    return app


def token_of(user: int | str, key: str | bytes = KEY, typ: str | None = "at+jwt", **claims: Any) -> str:
    now = int(time.time())
    payload = {"sub": str(user), "sid": f"token-{user}", "iss": "music", "aud": "music-api", "exp": now + 900}
    payload = {name: value for name, value in (payload | claims).items() if value is not None}
    return jwt.encode(payload, key, "HS256", {"typ": typ})


PORT = port_app()


class Browser:
    """Keeps cookies and goes through the bridge, to the side it is told to."""

    def __init__(self, legacy: Flask, identity: IdentitySettings = IDENTITY, scheme: str = "http") -> None:
        self.legacy, self.scheme = legacy, scheme
        self.bridge = IdentityBridge(legacy, Settings(identity=identity), OWN)
        self.jar: dict[str, str] = {}
        self.answered: list[Header] = []
        self.presented: dict[str, Any] = {}
        self.who: Identity | None = None

    async def get(self, side: Backend, path: str, *headers: Header, method: str = "GET") -> Any:
        cookie = [("cookie", "; ".join(f"{k}={v}" for k, v in self.jar.items()))] if self.jar else []
        scope = http_scope(method, path, [*cookie, *headers], scheme=self.scheme)
        self.who = who = await self.bridge.identify(scope)
        self.presented = presented = dict(await self.bridge.present(scope, who, side))
        sent = [(name.decode(), value.decode("latin-1")) for name, value in presented["headers"]]
        if side is Backend.LEGACY:
            client = self.legacy.test_client(use_cookies=False)
            got = await asyncio.to_thread(client.open, path, method=method, headers=sent)
            status, answered, body = got.status_code, list(got.headers), got.get_data()
        else:
            answer = await ask(PORT, method, path, sent[1:])
            status, answered, body = answer.status, answer.headers, answer.body
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in answered]
        out = await self.bridge.reconcile(who, side, status, raw)
        self.answered = [(name.decode(), value.decode("latin-1")) for name, value in out]
        for line in self.lines():
            self._keep(line)
        try:
            return json.loads(body)
        except ValueError:
            return body.decode()

    def _keep(self, line: str) -> None:
        name, _, value = line.partition(";")[0].partition("=")
        if "Max-Age=0" in line:
            self.jar.pop(name, None)
        else:
            self.jar[name] = value

    def lines(self, name: str = "") -> list[str]:
        return [value for key, value in self.answered if key == "set-cookie" and value.startswith(name)]

    async def users(self) -> tuple[Any, Any]:
        """Who the two sides think it is."""
        on_legacy = (await self.get(Backend.LEGACY, "/me"))["user"]
        return on_legacy, (await self.get(Backend.FASTAPI, "/me"))["user"]


@pytest.fixture(params=["signed cookie", "server side"])
def legacy(request: pytest.FixtureRequest, tmp_path: Path) -> Flask:
    app = legacy_app()
    if request.param == "server side":
        app.session_interface = FileSessions(tmp_path)
    return app


@pytest.fixture
def browser(legacy: Flask) -> Browser:
    return Browser(legacy)


# --- one sign-in, both sides ------------------------------------------------------------------------------------


async def test_a_sign_in_on_legacy_is_one_on_the_port(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    assert ["session"] == list(browser.jar)
    assert {"user": "7", "sid": "token-7"} == await browser.get(Backend.FASTAPI, "/me")
    assert "user:7" == browser.who.subject


async def test_a_sign_in_on_the_port_is_one_on_legacy(browser: Browser) -> None:
    await browser.get(Backend.FASTAPI, "/login/7")
    assert {"access_token", "session"} == set(browser.jar)
    assert (7, "7") == await browser.users()
    del browser.jar["access_token"]
    assert (7, "7") == await browser.users()


async def test_a_sign_out_on_legacy_is_one_on_the_port(browser: Browser) -> None:
    await browser.get(Backend.FASTAPI, "/login/7")
    await browser.get(Backend.LEGACY, "/logout")
    assert {} == browser.jar
    assert (None, None) == await browser.users()


async def test_a_sign_out_on_the_port_is_one_on_legacy(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    stolen = dict(browser.jar)
    await browser.get(Backend.FASTAPI, "/logout")
    assert {} == browser.jar
    assert (None, None) == await browser.users()
    if isinstance(browser.legacy.session_interface, FileSessions):
        browser.jar = stolen
        assert (None, None) == await browser.users()


async def test_a_sign_out_that_keeps_the_session_for_a_farewell_counts_too(browser: Browser) -> None:
    await browser.get(Backend.FASTAPI, "/login/7")
    await browser.get(Backend.LEGACY, "/forget")
    assert ["session"] == list(browser.jar)
    assert (None, None) == await browser.users()


async def test_signing_in_as_somebody_else_on_legacy_drops_the_token_of_the_first(browser: Browser) -> None:
    await browser.get(Backend.FASTAPI, "/login/7")
    await browser.get(Backend.LEGACY, "/login/8")
    assert ["session"] == list(browser.jar)
    assert (8, "8") == await browser.users()


async def test_signing_in_as_somebody_else_on_the_port_replaces_the_session_of_the_first(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    before = browser.jar["session"]
    await browser.get(Backend.FASTAPI, "/login/8")
    assert before != browser.jar["session"]
    assert (8, "8") == await browser.users()


async def test_a_renewed_token_of_the_same_session_keeps_what_the_session_holds(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.LEGACY, "/cart")
    await browser.get(Backend.FASTAPI, "/login/7")
    assert "cart" in (await browser.get(Backend.LEGACY, "/me"))["keys"]


async def test_a_failed_answer_signs_nobody_in(browser: Browser) -> None:
    scope = http_scope()
    who = await browser.bridge.identify(scope)
    headers = [(b"set-cookie", b"access_token=" + token_of(7).encode())]
    assert headers is await browser.bridge.reconcile(who, Backend.FASTAPI, 401, headers)


async def test_a_token_cookie_with_a_scheme_in_it_is_understood(browser: Browser) -> None:
    who = await browser.bridge.identify(http_scope())
    line = f'access_token="Bearer {token_of(7)}"; HttpOnly; Path=/'.encode()
    answered = await browser.bridge.reconcile(who, Backend.FASTAPI, 200, [(b"set-cookie", line)])
    assert 2 == len([value for name, value in answered if name == b"set-cookie"])


# --- nothing forged or minted gets out --------------------------------------------------------------------------


async def test_a_bearer_is_accepted_by_legacy_and_the_forged_session_stays_inside(browser: Browser) -> None:
    bearer = ("authorization", f"Bearer {token_of(7)}")
    assert {"user": 7, "kind": "int", "keys": ["_permanent", "session_token", "user_id"]} == await browser.get(
        Backend.LEGACY, "/me", bearer
    )
    for path in ("/cart", "/me", "/login/7", "/forget", "/logout"):
        await browser.get(Backend.LEGACY, path, bearer)
        assert bearer[1].encode() in dict(browser.presented["headers"])[b"authorization"]
        forged = dict(browser.presented["headers"])[b"cookie"].partition(b"=")[2].decode()
        assert ([], False) == (browser.lines(), forged in repr(browser.answered))
    assert {} == browser.jar


async def test_a_fresh_sign_in_under_a_forged_session_is_the_clients_own(browser: Browser) -> None:
    bearer = ("authorization", f"Bearer {token_of(7)}")
    await browser.get(Backend.LEGACY, "/login/8", bearer)
    assert ["session"] == list(browser.jar)
    assert (8, "8") == await browser.users()
    del browser.jar["session"]
    assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]


async def test_a_minted_bearer_never_appears_in_an_answer(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    for path in ("/me", "/logout"):
        await browser.get(Backend.FASTAPI, path)
        minted = dict(browser.presented["headers"])[b"authorization"].decode().split()[1]
        assert minted not in repr(browser.answered)


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


async def test_the_clients_own_session_cookies_do_not_survive_beside_a_forged_one(browser: Browser) -> None:
    evil = 'theme=dark; session=evil; x="; session=worse; y="; session = spaced;session'
    cookies = [("cookie", evil), ("authorization", f"Bearer {token_of(7)}"), ("cookie", "session=third")]
    assert 7 == (await browser.get(Backend.LEGACY, "/me", *cookies))["user"]
    sent = [value for name, value in browser.presented["headers"] if name == b"cookie"]
    assert (1, 0) == (len(sent), len(re.findall(rb"evil|worse|spaced|third", sent[0])))
    assert b"theme=dark" in sent[0]


async def test_a_copy_is_presented_and_the_original_scope_is_left_alone(browser: Browser) -> None:
    scope = http_scope("GET", "/me", [("authorization", f"Bearer {token_of(7)}")])
    before = repr(scope)
    who = await browser.bridge.identify(scope)
    assert scope is await browser.bridge.present(scope, who, Backend.FASTAPI)
    assert scope is not await browser.bridge.present(scope, who, Backend.LEGACY)
    assert before == repr(scope)


# --- attacks ----------------------------------------------------------------------------------------------------


def unsigned(header: dict[str, Any], claims: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    good = {"sub": "7", "sid": "token-7", "iss": "music", "aud": "music-api", "exp": int(time.time()) + 900}
    parts = (json.dumps(header).encode(), json.dumps(claims or good).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def tampered() -> str:
    header, _, signature = token_of(7).split(".")
    return f"{header}.{token_of(1).split('.')[1]}.{signature}"


def long_key(secret: str) -> bytes:
    return secret.encode().ljust(32, b"\0")


ATTACKS: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "no token at all": lambda: "hello",
    "dots": lambda: "...",
    "alg none": lambda: unsigned({"alg": "none", "typ": "at+jwt"}),
    "alg None": lambda: unsigned({"alg": "None"}),
    "alg empty": lambda: unsigned({"alg": ""}),
    "alg null": lambda: unsigned({"alg": None}),
    "alg missing": lambda: unsigned({"typ": "JWT"}),
    "alg a list": lambda: unsigned({"alg": ["HS256"]}),
    "HS512 with the right key": lambda: jwt.encode({"sub": "7"}, KEY * 2, "HS512"),
    "empty secret": lambda: token_of(7, key=long_key("")),
    "common secret": lambda: token_of(7, key=long_key("secret")),
    "the gateway's own key": lambda: token_of(7, key=OWN),
    "tampered": tampered,
    "signature cut off": lambda: token_of(7).rpartition(".")[0] + ".",
    "truncated": lambda: token_of(7)[:-5],
    "crit": lambda: jwt.encode({"sub": "7"}, KEY, "HS256", {"crit": ["exp"]}),
    "kid a number": lambda: unsigned({"alg": "HS256", "kid": 1}),
    "kid a path": lambda: unsigned({"alg": "HS256", "kid": "../../dev/null"}),
    "key of one's own": lambda: unsigned({"alg": "HS256", "jwk": {"kty": "oct", "k": "AA"}, "jku": "http://evil"}),
    "header a list": lambda: unsigned([]),  # type: ignore[arg-type]
    "deep header": lambda: base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.AA",
    "60 KB": lambda: token_of(7, padding="x" * 60_000),
    "expired": lambda: token_of(7, exp=int(time.time()) - 1),
    "expiry missing": lambda: token_of(7, exp=None),
    "expiry a word": lambda: token_of(7, exp="tomorrow"),
    "expiry a text": lambda: token_of(7, exp=str(int(time.time()) + 60)),
    "not yet valid": lambda: token_of(7, nbf=int(time.time()) + 600),
    "issued tomorrow": lambda: token_of(7, iat=int(time.time()) + 86400),
    "wrong issuer": lambda: token_of(7, iss="evil"),
    "issuer missing": lambda: token_of(7, iss=None),
    "wrong audience": lambda: token_of(7, aud="other-api"),
    "audience missing": lambda: token_of(7, aud=None),
    "subject missing": lambda: token_of(7, sub=None),
    "subject a number": lambda: token_of(7, sub=7),
    "subject empty": lambda: token_of(7, sub=""),
    "claim missing": lambda: token_of(7, sid=None),
    "claim an object": lambda: token_of(7, sid={"a": 1}),
    "claim a bool": lambda: token_of(7, sid=True),
    "refresh by type": lambda: token_of(7, typ="rt+jwt"),
    "identity token": lambda: token_of(7, typ="id+jwt"),
    "refresh by claim": lambda: token_of(7, type="refresh"),
    "refresh by another claim": lambda: token_of(7, token_type="refresh"),
    "password reset": lambda: token_of(7, purpose="password-reset"),
    "not ASCII": lambda: "é.ü.ß",
    "two tokens": lambda: f"{token_of(7)}, Bearer {token_of(7)}",
}


@pytest.fixture(scope="module")
def stock() -> Browser:
    return Browser(legacy_app())


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_bad_token_proves_nothing(attack: str, stock: Browser) -> None:
    token = ATTACKS[attack]()
    for header in (("authorization", f"Bearer {token}"), ("cookie", f"access_token={token}")):
        scope = http_scope("GET", "/me", [header])
        who = await stock.bridge.identify(scope)
        assert scope is await stock.bridge.present(scope, who, Backend.LEGACY)
        assert scope is await stock.bridge.present(scope, who, Backend.FASTAPI)
        assert not who.subject.startswith("user:")
        answered = [(b"set-cookie", f"access_token={token}; Path=/".encode())]
        out = await stock.bridge.reconcile(await stock.bridge.identify(http_scope()), Backend.FASTAPI, 200, answered)
        assert not any(b"session=e" in value for _, value in out)


@pytest.mark.parametrize(
    ("typ", "claims"), [("JWT", {}), ("at+jwt", {"type": "access"}), (None, {}), ("application/AT+JWT", {})]
)
async def test_access_tokens_of_all_habits_are_accepted(
    typ: str | None, claims: dict[str, Any], stock: Browser
) -> None:
    bearer = ("authorization", f"bearer {token_of(7, typ=typ, **claims)}")
    assert 7 == (await stock.get(Backend.LEGACY, "/me", bearer))["user"]


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
async def test_a_bad_session_proves_nothing(attack: str, stock: Browser) -> None:
    scope = http_scope("GET", "/me", [("cookie", f"session={SESSION_ATTACKS[attack]()}")])
    who = await stock.bridge.identify(scope)
    assert scope is await stock.bridge.present(scope, who, Backend.FASTAPI)
    assert who.subject.startswith("anon:")
    headers = [(b"content-type", b"text/plain")]
    assert headers is await stock.bridge.reconcile(who, Backend.FASTAPI, 200, headers)


async def test_a_stock_session_expires_when_flask_says_so_cached_or_not() -> None:
    app = legacy_app()
    app.config["PERMANENT_SESSION_LIFETIME"] = 1
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    assert (7, "7") == await browser.users()
    while (await browser.get(Backend.LEGACY, "/me"))["user"]:
        await asyncio.sleep(0.02)
    assert (None, None) == await browser.users()


async def test_a_token_expires_cached_or_not() -> None:
    browser = Browser(legacy_app())
    while time.time() % 1 > 0.5:
        await asyncio.sleep(0.02)
    expires = int(time.time()) + 1
    bearer = ("authorization", f"Bearer {token_of(7, exp=expires)}")
    assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]
    while time.time() < expires:
        await asyncio.sleep(0.02)
    assert (await browser.get(Backend.LEGACY, "/me", bearer))["user"] is None


async def test_a_session_without_all_mapped_values_mints_nothing(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.LEGACY, "/forget")
    assert (None, None) == await browser.users()
    assert b"authorization" not in dict(browser.presented["headers"])


async def test_the_session_of_one_and_the_bearer_of_another_is_nobody(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    for header in (("authorization", f"Bearer {token_of(8)}"), ("cookie", f"access_token={token_of(8)}")):
        cookie = f"session={browser.jar['session']}"
        for side in Backend:
            scope = http_scope("GET", "/me", [("cookie", cookie), header])
            who = await browser.bridge.identify(scope)
            assert scope is await browser.bridge.present(scope, who, side)
            assert who.subject.startswith("anon:")


async def test_a_bearer_of_one_and_a_token_cookie_of_another_forge_nothing(browser: Browser) -> None:
    headers = [("authorization", f"Bearer {token_of(8)}"), ("cookie", f"access_token={token_of(7)}")]
    scope = http_scope("GET", "/me", headers)
    assert scope is await browser.bridge.present(scope, await browser.bridge.identify(scope), Backend.LEGACY)


async def test_a_junk_bearer_is_not_made_good_by_a_token_cookie(browser: Browser) -> None:
    headers = [("authorization", "Bearer junk"), ("cookie", f"access_token={token_of(7)}")]
    assert (await browser.get(Backend.LEGACY, "/me", *headers))["user"] is None
    headers[0] = ("authorization", "Basic dTpw")
    assert 7 == (await browser.get(Backend.LEGACY, "/me", *headers))["user"]


async def test_the_clients_own_authorization_is_left_alone(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    for value in ("Basic dTpw", "Bearer junk", "", f"Bearer {token_of(7)}"):
        await browser.get(Backend.FASTAPI, "/me", ("authorization", value))
        sent = [v for name, v in browser.presented["headers"] if name == b"authorization"]
        assert [value.encode()] == sent


async def test_a_repeated_authorization_header_is_no_credential(browser: Browser) -> None:
    bearer = ("authorization", f"Bearer {token_of(7)}")
    assert (await browser.get(Backend.LEGACY, "/me", bearer, bearer))["user"] is None


FOREIGN: list[tuple[str, list[Header], bool]] = [
    ("GET", [("sec-fetch-site", "cross-site")], True),
    ("POST", [], True),
    ("POST", [("sec-fetch-site", "same-origin"), ("origin", "http://proxied")], True),
    ("POST", [("sec-fetch-site", "same-site"), ("origin", "http://spa.testserver")], True),
    ("POST", [("sec-fetch-site", "cross-site")], False),
    ("POST", [("origin", "http://testserver:3000")], True),
    ("DELETE", [("origin", "https://evil.example")], False),
    ("POST", [("origin", "null")], False),
    ("POST", [("origin", "http://[")], False),
]


@pytest.mark.parametrize(("method", "headers", "translated"), FOREIGN)
async def test_another_site_cannot_turn_a_cookie_into_a_bearer(
    method: str, headers: list[Header], translated: bool, browser: Browser
) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    cookies = {Backend.FASTAPI: f"session={browser.jar['session']}", Backend.LEGACY: f"access_token={token_of(7)}"}
    for side, cookie in cookies.items():
        scope = http_scope(method, "/me", [("cookie", cookie), *headers])
        presented = await browser.bridge.present(scope, await browser.bridge.identify(scope), side)
        assert translated is (presented is not scope)


async def test_another_site_cannot_open_a_websocket_with_a_minted_bearer(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    for origin, translated in (("http://testserver", True), ("https://evil.example", False)):
        headers = [("cookie", f"session={browser.jar['session']}"), ("origin", origin)]
        scope = http_scope("GET", "/ws", headers, type="websocket", scheme="ws")
        del scope["method"]
        presented = await browser.bridge.present(scope, await browser.bridge.identify(scope), Backend.FASTAPI)
        assert translated is (presented is not scope)


# --- what Flask would have sent ---------------------------------------------------------------------------------


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


async def test_a_session_cookie_that_the_port_sets_itself_is_left_alone(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    headers = [(b"Set-Cookie", b"session=own; Path=/"), (b"set-cookie", b"access_token=" + token_of(8).encode())]
    await browser.get(Backend.FASTAPI, "/me")
    assert headers is await browser.bridge.reconcile(browser.who, Backend.FASTAPI, 200, headers)


async def test_vary_is_merged_with_what_the_port_says(browser: Browser) -> None:
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.FASTAPI, "/me")
    for vary in (b"Origin, Accept-Encoding", b"origin, cookie"):
        out = await browser.bridge.reconcile(browser.who, Backend.FASTAPI, 200, [(b"vary", vary)])
        words = [value.lower().split(b", ") for name, value in out if name == b"vary"]
        assert [sorted({*vary.lower().split(b", "), b"cookie"})] == [sorted(line) for line in words]


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


async def test_a_token_cookie_is_deleted_securely_where_it_is_secure(legacy: Flask) -> None:
    browser = Browser(legacy, scheme="https")
    await browser.get(Backend.FASTAPI, "/login/7")
    await browser.get(Backend.LEGACY, "/logout")
    expected = "Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; HttpOnly; Path=/; SameSite=Lax"
    assert [f"access_token=; {expected}"] == browser.lines("access_token")


async def test_other_cookies_of_an_answer_are_never_touched(browser: Browser) -> None:
    scope = http_scope("GET", "/me", [("authorization", f"Bearer {token_of(7)}")])
    who = await browser.bridge.identify(scope)
    await browser.bridge.present(scope, who, Backend.LEGACY)
    headers = [(b"set-cookie", b"theme=dark"), (b"set-cookie", b"sessions=x"), (b"vary", b"Cookie")]
    assert headers is await browser.bridge.reconcile(who, Backend.LEGACY, 200, headers)


# --- types of values --------------------------------------------------------------------------------------------


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


async def test_a_minted_bearer_says_what_is_configured_and_nothing_more() -> None:
    identity = replace(IDENTITY, kid="k1", lifetime_s=40, key="x1" + KEY)
    app = legacy_app()
    browser = Browser(app, identity)
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.FASTAPI, "/me")
    token = dict(browser.presented["headers"])[b"authorization"].split()[1]
    decoded = jwt.decode_complete(token, "x1" + KEY, ["HS256"], audience="music-api", issuer="music")
    claims = decoded["payload"]
    assert {"alg": "HS256", "typ": "at+jwt", "kid": "k1"} == decoded["header"]
    assert {"sub", "sid", "iss", "aud", "iat", "exp", "jti"} == set(claims)
    assert (40, True) == (claims["exp"] - claims["iat"], abs(claims["iat"] - time.time()) < 3)
    await browser.get(Backend.FASTAPI, "/me")
    assert token == dict(browser.presented["headers"])[b"authorization"].split()[1]


async def test_a_foreign_key_id_is_refused_when_one_is_configured() -> None:
    browser = Browser(legacy_app(), replace(IDENTITY, kid="k1"))
    for kid, user in (("k1", 7), ("k2", None)):
        claims = jwt.decode(token_of(7), options={"verify_signature": False})
        token = jwt.encode(claims, KEY, "HS256", {"kid": kid})
        assert user == (await browser.get(Backend.LEGACY, "/me", ("authorization", f"Bearer {token}")))["user"]


# --- stores that fail -------------------------------------------------------------------------------------------


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
    kinds = [record.getMessage().partition("(")[2].partition(")")[0] for record in caplog.records]
    assert ["begin: ConnectionError", "forge: ConnectionError", "read: ConnectionError"] == sorted(kinds)


@pytest.mark.parametrize("token", ["", token_of(8)], ids=["sign-out", "sign-in as another"])
async def test_a_store_that_is_down_does_not_keep_the_old_session_alive(token: str, tmp_path: Path) -> None:
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
    monkeypatch.setattr("gateway.sessions.STORE_TIMEOUT_S", 0.2)
    app = legacy_app()
    app.session_interface = store = FileSessions(tmp_path, delay_s=2.0)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    scope = http_scope("GET", "/me", [("cookie", "session=abc")])
    started = time.perf_counter()
    everybody = await asyncio.gather(*(bridge.identify(scope) for _ in range(400)))
    assert time.perf_counter() - started < 1.5
    assert await asyncio.wait_for(bridge.identify(scope), 0.1)
    assert all(who.subject.startswith("anon:") for who in everybody)
    assert (8, False) == (len(store.threads), threading.get_ident() in store.threads)


async def test_looking_into_a_store_never_blocks_the_loop(tmp_path: Path) -> None:
    app = legacy_app()
    app.session_interface = FileSessions(tmp_path, delay_s=0.2)
    bridge = IdentityBridge(app, SETTINGS, OWN)
    looking = asyncio.ensure_future(bridge.identify(http_scope("GET", "/", [("cookie", "session=abc")])))
    turns = 0
    while not looking.done():
        turns += 1
        await asyncio.sleep(0.005)
    assert turns > 10


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


async def test_a_subclass_of_flasks_own_sessions_works_as_it_is() -> None:
    app = legacy_app()
    app.session_interface = SaltedSessions()
    browser = Browser(app)
    await browser.get(Backend.LEGACY, "/login/7")
    assert (7, "7") == await browser.users()


# --- stickiness -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[IdentitySettings(), IDENTITY], ids=["off", "on"])
def bridge(request: pytest.FixtureRequest) -> IdentityBridge:
    return IdentityBridge(legacy_app(), Settings(identity=request.param), OWN)


async def subject(bridge: IdentityBridge, *headers: Header, **extra: Any) -> str:
    return (await bridge.identify(http_scope("GET", "/", headers, **extra))).subject


async def test_an_api_key_is_a_subject_without_being_shown(bridge: IdentityBridge) -> None:
    one = await subject(bridge, ("x-api-key", "k-123"))
    assert re.fullmatch("key:[0-9a-f]{16}", one)
    assert one == await subject(bridge, ("X-API-Key", "k-123"), ("authorization", "Bearer other"))
    assert one != await subject(bridge, ("x-api-key", "k-124"))
    assert "anon" == (await subject(bridge, ("x-api-key", "")))[:4]


async def test_a_token_nobody_can_verify_is_sticky_as_a_key(bridge: IdentityBridge) -> None:
    one = await subject(bridge, ("authorization", "Bearer opaque"))
    assert re.fullmatch("key:[0-9a-f]{16}", one)
    assert one == await subject(bridge, ("authorization", "Bearer opaque"))


async def test_a_signed_in_user_is_the_subject_before_any_key() -> None:
    bridge = IdentityBridge(legacy_app(), SETTINGS, OWN)
    bearer = ("authorization", f"Bearer {token_of(7)}")
    assert "user:7" == await subject(bridge, bearer, ("x-api-key", "k-123"))


async def test_the_anonymous_cookie_is_set_once_and_stays_the_same(bridge: IdentityBridge) -> None:
    assert bridge.look(http_scope()).fresh_cookie is None
    who = await bridge.identify(http_scope())
    first = who.subject
    name, line = who.fresh_cookie
    assert b"set-cookie" == name
    pattern = rb"gw_id=[0-9a-f]{32}\.[0-9a-f]{32}; HttpOnly; Max-Age=31536000; Path=/; SameSite=Lax"
    assert re.fullmatch(pattern, line)
    cookie = ("cookie", "theme=dark; " + line.partition(b";")[0].decode() + " ;x=y")
    again = await bridge.identify(http_scope("GET", "/", [cookie]))
    assert (first, None) == (again.subject, again.fresh_cookie)
    assert first != await subject(bridge)


async def test_the_anonymous_cookie_is_secure_behind_tls(bridge: IdentityBridge) -> None:
    who = await bridge.identify(http_scope(scheme="https"))
    assert who.subject
    assert who.fresh_cookie[1].endswith(b"; Secure")


async def test_nobody_can_choose_his_own_anonymous_id(bridge: IdentityBridge) -> None:
    who = await bridge.identify(http_scope())
    subject_ = who.subject
    value = who.fresh_cookie[1].partition(b";")[0].decode().partition("=")[2]
    name, signature = value.split(".")
    other = ("0" if name[0] != "0" else "1") + name[1:]
    for forged in (f"{other}.{signature}", f"{name}.{'0' * 32}", name, f"{value}0", value.upper(), f".{signature}"):
        who = await bridge.identify(http_scope("GET", "/", [("cookie", f"gw_id={forged}")]))
        assert who.subject not in (subject_, f"anon:{other}")
        assert who.fresh_cookie
    stranger = IdentityBridge(None, Settings(), b"another secret of thirty-two byte")
    assert subject_ != await subject(stranger, ("cookie", f"gw_id={value}"))
    assert subject_ == await subject(bridge, ("cookie", f"gw_id=junk; gw_id={other}.{signature}; gw_id={value}"))


async def test_without_claims_nothing_is_translated() -> None:
    bridge = IdentityBridge(None, Settings(), OWN)
    scope = http_scope("GET", "/", [("authorization", f"Bearer {token_of(7)}"), ("cookie", "session=x")])
    who = await bridge.identify(scope)
    headers = [(b"set-cookie", b"session=; Max-Age=0")]
    for side in Backend:
        assert scope is await bridge.present(scope, who, side)
        assert headers is await bridge.reconcile(who, side, 200, headers)
    assert (False, "key:") == (bridge.active, who.subject[:4])


# --- what refuses to start --------------------------------------------------------------------------------------

WEAK = [
    "",
    "dev",
    "secret",
    "short but random 8f3k2",
    "k" * 64,
    "ab" * 32,
    "battery-staple-9" * 3,
    "your-secret-key-change-in-production",
    "super-secret-key-that-nobody-will-ever-find-out",
    "django-insecure-8f3k2j4h5k6j7h8g9f0d1s2a3q4w5e6r",
    "a-string-secret-at-least-256-bits-long",
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    b"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
]


@pytest.mark.parametrize("key", WEAK)
def test_a_key_that_others_can_guess_refuses_to_start_and_is_not_printed(key: str | bytes) -> None:
    app = legacy_app()
    app.secret_key = key
    with pytest.raises(ConfigError) as refused:
        IdentityBridge(app, SETTINGS, OWN)
    assert "SECRET_KEY" in str(refused.value)
    assert len(key) < 8 or str(key) not in str(refused.value)
    IdentityBridge(app, Settings(), OWN)


def test_a_guessable_key_is_refused_wherever_it_signs() -> None:
    app = legacy_app(SECRET_KEY_FALLBACKS=["dev"])
    with pytest.raises(ConfigError, match="SECRET_KEY_FALLBACKS is shorter"):
        IdentityBridge(app, SETTINGS, OWN)
    with pytest.raises(ConfigError, match="GATEWAY_IDENTITY_KEY is shorter"):
        IdentityBridge(legacy_app(), Settings(identity=replace(IDENTITY, key="dev")), OWN)
    pem = f"-----BEGIN PUBLIC KEY-----\n{secrets.token_hex(32)}\n-----END PUBLIC KEY-----\n"
    with pytest.raises(ConfigError, match="cannot be used for HS256"):
        IdentityBridge(legacy_app(), Settings(identity=replace(IDENTITY, key=pem)), OWN)


@pytest.mark.parametrize("make", [secrets.token_hex, secrets.token_urlsafe, secrets.token_bytes, lambda n: KEY])
def test_a_random_key_starts(make: Callable[[int], Any]) -> None:
    app = Flask("legacy")
    for _ in range(100):
        app.secret_key = make(32)
        assert IdentityBridge(app, SETTINGS, OWN).active


def test_server_side_sessions_may_go_without_a_secret_key(tmp_path: Path) -> None:
    app = legacy_app()
    app.secret_key = None
    with pytest.raises(ConfigError, match="no SECRET_KEY"):
        IdentityBridge(app, Settings(identity=replace(IDENTITY, key=KEY)), OWN)
    app.session_interface = FileSessions(tmp_path)
    with pytest.raises(ConfigError, match="no SECRET_KEY"):
        IdentityBridge(app, SETTINGS, OWN)
    IdentityBridge(app, Settings(identity=replace(IDENTITY, key=KEY)), OWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims": {"user_id": "uid"}}, "one session key must be sub"),
        ({"claims": {"user_id": "sub", "id": "sub:str"}}, "no two may be the same"),
        ({"claims": {"user_id": "sub", "end": "exp"}}, "exp is written by the gateway itself"),
        ({"claims": {"user_id": "sub:float"}}, "user_id: expected a claim, or claim:int"),
        ({"claims": {"user_id": ""}}, "user_id: expected a claim"),
        ({"lifetime_s": 0}, "lifetime_s: expected at least 1"),
        ({"token_cookie": "session"}, "session is the cookie of Flask's own session"),
    ],
)
def test_a_wrong_mapping_refuses_to_start(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IdentityBridge(legacy_app(), Settings(identity=replace(IDENTITY, **changes)), OWN)


def test_claims_need_a_flask_application() -> None:
    with pytest.raises(ConfigError, match="a Flask object"):
        IdentityBridge(None, SETTINGS, OWN)


# --- the gateway's own secret -----------------------------------------------------------------------------------


def test_the_own_secret_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    settings = Settings(state=str(state))
    first = own_secret(settings)
    assert (64, first) == (len(first), own_secret(settings))
    assert ["secret_key"] == [path.name for path in state.iterdir()]
    assert 0o600 == stat.S_IMODE((state / "secret_key").stat().st_mode)


def test_workers_that_start_together_agree_on_the_secret(tmp_path: Path) -> None:
    for attempt in range(20):
        settings = Settings(state=str(tmp_path / str(attempt)))
        with ThreadPoolExecutor(8) as workers:
            found = set(workers.map(own_secret, [settings] * 8))
        assert 1 == len(found)


def test_a_configured_secret_is_used_and_leaves_no_file(tmp_path: Path) -> None:
    settings = Settings(state=str(tmp_path / "state"), secret_key=KEY)
    assert KEY.encode() == own_secret(settings)
    assert [] == list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="GATEWAY_SECRET_KEY is shorter"):
        own_secret(Settings(secret_key="dev"))


def test_where_no_secret_can_be_kept_one_is_made_for_this_run_and_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("no directory")
    settings = Settings(state=str(tmp_path / "state"))
    assert (64, 64) == (len(own_secret(settings)), len(own_secret(settings)))
    assert own_secret(settings) != own_secret(settings)
    assert {"WARNING"} == {record.levelname for record in caplog.records}
    assert "set GATEWAY_SECRET_KEY" in caplog.text


def test_a_damaged_secret_says_what_to_do(tmp_path: Path) -> None:
    for damaged in (b"half", b"\xff" * 64, b""):
        (tmp_path / "secret_key").write_bytes(damaged)
        with pytest.raises(ConfigError, match="delete it"):
            own_secret(Settings(state=str(tmp_path)))
