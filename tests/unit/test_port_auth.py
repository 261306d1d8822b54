"""Who the port takes a request for: tokens, cookies, both, and whatever else somebody sends."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, text

from fastapi_app.db import Database
from fastapi_app.identity import token_hash
from fastapi_app.jwts import ACCESS, AUDIENCE, ISSUER, REFRESH, Signer, key_id
from fastapi_app.models import user_sessions, users, utcnow
from fastapi_app.passwords import hash_password
from fastapi_app.sessions import LIFETIME
from tests.support.asgi import Answer, Lifespan, ask
from tests.support.databases import create_database
from tests.support.made_once import create_port, sqlite

SECRET, PASSWORD = "s" * 32, "Right-pass-1"
ON_BOTH = pytest.mark.parametrize("app", ["sqlite", "mariadb"], indirect=True)
SAME_SITE = {"origin": "http://testserver"}


class Client:
    """A program or a browser: it keeps cookies when `browser`."""

    def __init__(self, app: FastAPI, *, browser: bool = False) -> None:
        self._app, self._browser = app, browser
        self.cookies: dict[str, str] = {}
        self.headers: dict[str, str] = {}

    async def __call__(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        content = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            sent["content-type"] = "application/json"
        answer = await ask(self._app, method, target, sent.items(), content)
        if self._browser:
            for cookie in answer.get_all("set-cookie"):
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
        return answer

    async def whoami(self, **headers: str) -> str | None:
        """The name under which a protected route answers; None for 401."""
        answer = await self("GET", "/api/users/me", **headers)
        assert answer.status in (200, 401)
        return str(json.loads(answer.body)["username"]) if answer.status == 200 else None


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
async def app(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FastAPI]:
    """On SQLite, or where the test says so."""
    if getattr(request, "param", "sqlite") == "mariadb":
        url = create_database(request.getfixturevalue("mariadb_server"), "port_auth")
    else:
        url = sqlite(tmp_path / "app.sqlite3")
    env = {
        "SECRET_KEY": SECRET,
        "BCRYPT_ROUNDS": "4",
        "DATA_PATH": f"{tmp_path}/data",
        "LIBRARY_PATH": f"{tmp_path}/library",
        "DATABASE_URL": url,
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    app = create_port()
    async with Lifespan(app):
        hashed = await hash_password(PASSWORD, 4)
        rows = [{"username": name, "password_hash": hashed, "role": "user"} for name in ("alice", "bob")]
        async with app.state.database.transaction() as connection:
            await connection.execute(insert(users), rows)
        yield app


async def sql(app: FastAPI, statement: str) -> None:
    async with app.state.database.transaction() as connection:
        await connection.execute(text(statement))


async def tokens(app: FastAPI, name: str = "alice") -> dict[str, Any]:
    answer = await Client(app)("POST", "/auth/token", {"username": name, "password": PASSWORD})
    assert 200 == answer.status
    return dict(json.loads(answer.body))


async def browser(app: FastAPI, name: str = "alice") -> Client:
    client = Client(app, browser=True)
    assert 200 == (await client("POST", "/auth/login", {"username": name, "password": PASSWORD})).status
    return client


async def refresh(app: FastAPI, token: str) -> Answer:
    return await Client(app)("POST", "/auth/token/refresh", {"refresh_token": token})


# Tokens


async def test_a_password_buys_a_token_that_names_its_owner(app: FastAPI) -> None:
    bought = await tokens(app)
    assert ("Bearer", 900, "alice") == (bought["token_type"], bought["expires_in"], bought["user"]["username"])
    assert "alice" == await Client(app).whoami(**bearer(bought["access_token"]))


@ON_BOTH
async def test_a_wrong_password_buys_nothing_and_counts(app: FastAPI) -> None:
    client = Client(app)
    wrong = {"username": "alice", "password": "wrong"}
    statuses = [(await client("POST", "/auth/token", wrong)).status for _ in range(6)]
    assert [401] * 5 + [429] == statuses
    assert 429 == (await client("POST", "/auth/login", {"username": "alice", "password": PASSWORD})).status


async def test_a_session_buys_tokens_of_the_same_sign_in(app: FastAPI) -> None:
    client = await browser(app)
    answer = await client("POST", "/auth/token", **SAME_SITE)
    token = json.loads(answer.body)["access_token"]
    assert "alice" == await Client(app).whoami(**bearer(token))
    assert 200 == (await client("POST", "/auth/logout", **SAME_SITE)).status
    assert await Client(app).whoami(**bearer(token)) is None


async def test_a_session_buys_nothing_for_another_site(app: FastAPI) -> None:
    client = await browser(app)
    for origin in ({}, {"origin": "https://evil.test"}):
        assert 403 == (await client("POST", "/auth/token", **origin)).status


async def test_nobody_buys_nothing(app: FastAPI) -> None:
    assert 401 == (await Client(app)("POST", "/auth/token")).status


async def test_tokens_are_never_kept_by_caches(app: FastAPI) -> None:
    answer = await Client(app)("POST", "/auth/token", {"username": "alice", "password": PASSWORD})
    assert "no-store" == answer.get("cache-control")


async def test_a_refresh_token_is_good_for_one_successor(app: FastAPI) -> None:
    first = (await tokens(app))["refresh_token"]
    answer = await refresh(app, first)
    second = json.loads(answer.body)
    assert (200, 401) == (answer.status, (await refresh(app, first)).status)
    assert "alice" == await Client(app).whoami(**bearer(second["access_token"]))
    assert 200 == (await refresh(app, second["refresh_token"])).status


@ON_BOTH
async def test_of_twenty_refreshes_at_once_one_succeeds_and_its_successor_works(app: FastAPI) -> None:
    token = (await tokens(app))["refresh_token"]
    answers = await asyncio.gather(*(refresh(app, token) for _ in range(20)))
    assert [200] + [401] * 19 == sorted(answer.status for answer in answers)
    successor = next(json.loads(answer.body) for answer in answers if answer.status == 200)
    assert "alice" == await Client(app).whoami(**bearer(successor["access_token"]))
    assert 200 == (await refresh(app, successor["refresh_token"])).status


@ON_BOTH
async def test_of_twenty_refreshes_by_two_workers_one_succeeds(app: FastAPI) -> None:
    token = (await tokens(app))["refresh_token"]
    other = create_port()
    async with Lifespan(other):
        answers = await asyncio.gather(*(refresh((app, other)[n % 2], token) for n in range(20)))
    assert [200] + [401] * 19 == sorted(answer.status for answer in answers)


async def test_a_spent_token_that_returns_later_ends_its_family_and_its_sign_in(app: FastAPI) -> None:
    stolen, other = await tokens(app), await tokens(app)
    successor = json.loads((await refresh(app, stolen["refresh_token"])).body)
    await sql(app, "UPDATE revoked_tokens SET expires_at = datetime(expires_at, '-11 seconds') || '.000000'")
    assert 401 == (await refresh(app, stolen["refresh_token"])).status
    assert 401 == (await refresh(app, successor["refresh_token"])).status
    for token in (stolen, successor):
        assert await Client(app).whoami(**bearer(token["access_token"])) is None
    assert "alice" == await Client(app).whoami(**bearer(other["access_token"]))


@ON_BOTH
async def test_revoking_ends_the_family_and_leaves_the_session(app: FastAPI) -> None:
    client = await browser(app)
    bought = json.loads((await client("POST", "/auth/token", **SAME_SITE)).body)
    answer = await Client(app)("POST", "/auth/token/revoke", {"refresh_token": bought["refresh_token"]})
    assert 200 == answer.status
    assert await Client(app).whoami(**bearer(bought["access_token"])) is None
    assert 401 == (await refresh(app, bought["refresh_token"])).status
    assert "alice" == await client.whoami()


@pytest.mark.parametrize("body", [{"refresh_token": "x"}, {"refresh_token": 5}, None])
async def test_revoking_never_says_whether_there_was_anything(app: FastAPI, body: Any) -> None:
    assert 200 == (await Client(app)("POST", "/auth/token/revoke", body)).status


# Tokens in cookies


async def cookie_client(app: FastAPI) -> tuple[Client, Answer]:
    client = Client(app, browser=True)
    wanted = {"username": "alice", "password": PASSWORD, "cookies": True}
    return client, await client("POST", "/auth/token", wanted)


async def test_tokens_in_cookies_are_hidden_from_scripts(app: FastAPI) -> None:
    client, answer = await cookie_client(app)
    assert not {"access_token", "refresh_token"} & json.loads(answer.body).keys()
    assert {"access_token", "refresh_token"} == client.cookies.keys()
    for cookie in answer.get_all("set-cookie"):
        assert {"HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
    assert "alice" == await client.whoami()


async def test_a_cookie_is_refreshed_for_its_own_site_only(app: FastAPI) -> None:
    client, _ = await cookie_client(app)
    before = dict(client.cookies)
    assert 403 == (await client("POST", "/auth/token/refresh", origin="https://evil.test")).status
    assert 200 == (await client("POST", "/auth/token/refresh", **SAME_SITE)).status
    assert not set(before.values()) & set(client.cookies.values())
    assert "alice" == await client.whoami()


async def test_signing_out_takes_the_cookies_away(app: FastAPI) -> None:
    client, _ = await cookie_client(app)
    kept = dict(client.cookies)
    assert 200 == (await client("POST", "/auth/logout", **SAME_SITE)).status
    assert ["", ""] == [client.cookies[name] for name in ("access_token", "refresh_token")]
    client.cookies = kept
    assert await client.whoami() is None


async def test_an_old_token_cookie_does_not_disturb_a_session(app: FastAPI) -> None:
    client = await browser(app)
    client.cookies["access_token"] = "expired"
    assert "alice" == await client.whoami()


# Several credentials, and hostile ones


async def test_a_session_counts_before_a_bearer_of_another_as_in_flask(app: FastAPI) -> None:
    client, of_bob = await browser(app), (await tokens(app, "bob"))["access_token"]
    assert "alice" == await client.whoami(**bearer(of_bob))


async def test_a_bearer_and_a_session_of_the_same_user_agree(app: FastAPI) -> None:
    client = await browser(app)
    assert "alice" == await client.whoami(**bearer((await tokens(app))["access_token"]))


async def test_a_session_counts_whatever_else_the_client_sends_as_authorization(app: FastAPI) -> None:
    assert "alice" == await (await browser(app)).whoami(**bearer("junk"))


def signed(
    key: str = SECRET, typ: str = ACCESS, algorithm: str = "HS256", header: dict[str, Any] | None = None, **changes: Any
) -> str:
    """Even what the library refuses to sign."""
    now, day = int(time.time()), 86_400  # those below are made long before they are tried
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "1", "sid": "x", "jti": "j", "iat": now, "exp": now + day}
    claims = usual | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    parts = [{"alg": algorithm, "typ": typ} | (header or {}), claims]
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    digest = jwt.get_algorithm_by_name(algorithm).sign(text, key.encode())
    return (text + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


HOSTILE = {
    "none": jwt.encode({"sub": "1", "sid": "x"}, None, "none"),
    "none, signed": signed(header={"alg": "none"}),
    "HS512 with our key": signed(algorithm="HS512"),
    "RS256 in name": signed(header={"alg": "RS256"}),
    "several algorithms": signed(header={"alg": ["HS256"]}),
    "another key": signed(key="t" * 32),
    "an unknown kid": signed(header={"kid": "0" * 16}),
    "the kid of another key": signed(header={"kid": key_id("t" * 32)}),
    "another key and its kid": signed(key="t" * 32, header={"kid": key_id("t" * 32)}),
    "another key and our kid": signed(key="t" * 32, header={"kid": key_id(SECRET)}),
    "a path as kid": signed(key="", header={"kid": "../../../../dev/null"}),
    "SQL as kid": signed(header={"kid": "' UNION SELECT 'key' --"}),
    "a list as kid": signed(header={"kid": ["a"]}),
    "null as kid": signed(header={"kid": None}),
    "a key of its own": signed(key="t" * 32, header={"jwk": {"kty": "oct", "k": "dHR0dA"}, "jku": "http://evil.test/"}),
    "something critical": signed(header={"crit": ["x"], "x": 1}),
    "expired": signed(exp=1),
    "without expiry": signed(exp=None),
    "another issuer": signed(iss="else"),
    "another audience": signed(aud="else"),
    "any token": signed(typ="JWT"),
    "a number as subject": signed(sub=1),
    "no number as subject": signed(sub="one"),
    "another script's digits": signed(sub="\u0661"),
    "a huge subject": signed(sub="9" * 99),
    "an object as sign-in": signed(sid={"a": 1}),
    "without sign-in": signed(sid=None),
    "a list as name": signed(jti=["a"]),
    "not valid yet": signed(nbf=2**40),
    "issued in the future": signed(iat=2**40),
    "not finite": signed(exp=float("inf")),
    "long": "a" * 60_000,
    "three dots": "...",
    "no text": "\xff\xfe",
}


@pytest.mark.parametrize("token", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_token_is_nobody_and_never_an_error(app: FastAPI, token: str) -> None:
    now = utcnow()
    row = {"user_id": 1, "token_hash": token_hash("x"), "expires_at": now + LIFETIME}
    async with app.state.database.transaction() as connection:
        await connection.execute(insert(user_sessions), row)
    assert "alice" == await Client(app).whoami(**bearer(signed()))  # only the token is at fault
    assert await Client(app).whoami(**bearer(token)) is None
    assert 401 == (await refresh(app, token)).status


async def test_a_refresh_token_in_the_cookie_of_access_tokens_is_nobody(app: FastAPI) -> None:
    client = Client(app)
    client.cookies["access_token"] = (await tokens(app))["refresh_token"]
    assert await client.whoami() is None


async def test_a_bearer_of_one_counts_before_the_cookie_of_another(app: FastAPI) -> None:
    """Nobody's browser added the header by itself; the cookie may be a left-over."""
    client = Client(app)
    client.cookies["access_token"] = (await tokens(app, "bob"))["access_token"]
    assert "bob" == await client.whoami()
    assert "alice" == await client.whoami(**bearer((await tokens(app))["access_token"]))
    assert await client.whoami(**bearer("junk")) is None


async def test_neither_kind_of_token_does_the_work_of_the_other(app: FastAPI) -> None:
    bought = await tokens(app)
    assert 401 == (await refresh(app, bought["access_token"])).status
    assert await Client(app).whoami(**bearer(bought["refresh_token"])) is None


async def test_a_token_of_somebody_elses_sign_in_is_worth_nothing(app: FastAPI) -> None:
    bought = jwt.decode((await tokens(app))["access_token"], options={"verify_signature": False})
    forged = Signer(SECRET).mint(ACCESS, 2, bought["sid"], "")
    assert await Client(app).whoami(**bearer(forged)) is None


async def test_a_user_who_is_switched_off_is_out_at_once(app: FastAPI) -> None:
    client, bought = await browser(app), await tokens(app)
    await sql(app, "UPDATE users SET is_active = 0")
    assert await client.whoami() is None
    assert await Client(app).whoami(**bearer(bought["access_token"])) is None
    assert 401 == (await refresh(app, bought["refresh_token"])).status


async def test_a_role_counts_from_the_next_request_on(app: FastAPI) -> None:
    client = await browser(app)
    assert 403 == (await client("GET", "/api/users/")).status
    await sql(app, "UPDATE users SET role = 'admin' WHERE username = 'alice'")
    assert 200 == (await client("GET", "/api/users/")).status


@pytest.mark.parametrize("role", ["", "superadmin", "ADMIN", "Admin ", "readonly,admin"])
async def test_a_role_that_does_not_exist_may_do_nothing(app: FastAPI, role: str) -> None:
    client = await browser(app)
    await sql(app, f"UPDATE users SET role = '{role}'")
    assert [403, 403] == [(await client("GET", path)).status for path in ("/api/users/", "/api/artists/")]
    assert "alice" == await client.whoami()


# Keys that change

OLD, NEW = "o" * 40, "n" * 40


def test_a_token_names_its_key_and_says_nothing_about_it() -> None:
    header = jwt.get_unverified_header(Signer(OLD).mint(ACCESS, 1, "sid", "family"))
    assert {"alg": "HS256", "typ": ACCESS, "kid": key_id(OLD)} == header
    assert 2 == len({key_id(OLD), key_id(NEW)})
    assert OLD[:4] not in key_id(OLD)


@pytest.mark.parametrize("kind", [ACCESS, REFRESH])
def test_an_earlier_key_verifies_and_never_signs(kind: str) -> None:
    old, both, new = Signer(OLD), Signer(NEW, [OLD]), Signer(NEW)
    for signer, known in ((old, [old, both]), (both, [both, new]), (new, [both, new])):
        token = signer.mint(kind, 1, "sid", "family")
        assert [one in known for one in (old, both, new)] == [bool(one.verify(token, kind)) for one in (old, both, new)]


async def test_nobody_is_signed_out_by_a_new_key(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    client, bought = await browser(app), await tokens(app)
    monkeypatch.setenv("SECRET_KEY", NEW)
    monkeypatch.setenv("SECRET_KEY_FALLBACKS", f"{OLD}, {SECRET}")
    changed = create_port()
    async with Lifespan(changed):
        client._app = changed
        assert 201 == (await client(*CHANGE, x_csrf_token=client.cookies["csrf_token"])).status
        assert "alice" == await Client(changed).whoami(**bearer(bought["access_token"]))
        successor = json.loads((await refresh(changed, bought["refresh_token"])).body)
        assert "alice" == await client.whoami()
    monkeypatch.delenv("SECRET_KEY_FALLBACKS")
    later = create_port()
    async with Lifespan(later):
        client._app = later
        assert "alice" == await client.whoami()  # the cookie was signed again with every answer
        assert "alice" == await Client(later).whoami(**bearer(successor["access_token"]))
        assert await Client(later).whoami(**bearer(bought["access_token"])) is None


async def test_workers_without_a_configured_key_share_the_one_that_was_made(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET_KEY")
    first, second = create_port(), create_port()
    token = first.state.signer.mint(ACCESS, 1, "sid", "")
    assert second.state.signer.verify(token, ACCESS)
    for one in (first, second):
        await one.state.database.dispose()


# Without the database, or a part of it


@pytest.mark.parametrize("credential", ["cookie", "bearer", "token cookie", "none"])
async def test_without_the_database_nobody_is_let_in(app: FastAPI, credential: str) -> None:
    """503, and nothing that signs in or out: whoever was signed in still is when it is back."""
    client, bought = await browser(app), await tokens(app)
    jar = {"cookie": client.cookies, "token cookie": {"access_token": bought["access_token"]}}.get(credential, {})
    headers = SAME_SITE | (bearer(bought["access_token"]) if credential == "bearer" else {})
    working, app.state.database = app.state.database, Database("mysql://nobody@127.0.0.1:1/x")
    password = {"username": "alice", "password": PASSWORD}
    asked = {
        ("GET", "/api/users/me"): None,
        ("GET", "/auth/check"): None,
        ("GET", "/auth/session"): None,
        ("POST", "/auth/logout"): None,
        ("POST", "/auth/login"): password,
        ("POST", "/auth/token"): password,
        ("POST", "/auth/token/refresh"): {"refresh_token": bought["refresh_token"]},
        ("POST", "/auth/token/revoke"): {"refresh_token": bought["refresh_token"]},
    }
    public = {"/auth/check"} if credential == "none" else set()
    for (method, path), body in asked.items():
        client.cookies = dict(jar)
        answer = await client(method, path, body, **headers)
        if credential == "none" and path in ("/api/users/me", "/auth/session", "/auth/logout"):
            assert 401 == answer.status
        elif path not in public:
            assert (503, b'{"error":"The database is not available"}\n') == (answer.status, answer.body), path
        assert not any("_token=" in cookie for cookie in answer.get_all("set-cookie"))
    app.state.database = working
    client.cookies = dict(jar)
    assert (credential != "none") == (await client.whoami(**headers) == "alice")


async def test_without_the_list_of_revoked_tokens_no_token_is_believed(app: FastAPI) -> None:
    client, bought = await browser(app), await tokens(app)
    await sql(app, "DROP TABLE revoked_tokens")
    assert 503 == (await Client(app)("GET", "/api/users/me", **bearer(bought["access_token"]))).status
    assert 503 == (await refresh(app, bought["refresh_token"])).status
    assert "alice" == await client.whoami()


# Requests that another site may have caused

CHANGE = ("POST", "/api/artists/", {"name": "New"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": "http://testserver"}, 201),
        ({"referer": "http://testserver/artists"}, 201),
        ({"origin": "http://TESTSERVER:80"}, 201),
        ({"origin": "http://testserver:8080"}, 403),
        ({"origin": "https://evil.test"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://testserver.evil.test"}, 403),
        ({"origin": "http://[", "referer": "http://testserver/"}, 403),
        ({"x_csrf_token": "wrong"}, 403),
    ],
)
async def test_a_cookie_changes_things_for_its_own_site_only(
    app: FastAPI, headers: dict[str, str], status: int
) -> None:
    assert status == (await (await browser(app))(*CHANGE, **headers)).status


async def test_the_double_submitted_token_will_do(app: FastAPI) -> None:
    client = await browser(app)
    assert 201 == (await client(*CHANGE, x_csrf_token=client.cookies["csrf_token"])).status


async def test_a_bearer_alone_needs_no_origin(app: FastAPI) -> None:
    token = (await tokens(app))["access_token"]
    assert 201 == (await Client(app)(*CHANGE, **bearer(token))).status


async def test_a_bearer_beside_a_session_does_not_excuse_the_session(app: FastAPI) -> None:
    client = await browser(app)
    token = (await tokens(app))["access_token"]
    assert 403 == (await client(*CHANGE, **bearer(token))).status
