"""Tokens: which prove something, which do not, and what a minted one says."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from gateway.model import Backend
from tests.support.asgi import http_scope
from tests.support.browser import IDENTITY, KEY, OWN, Browser, legacy_app, token_of


@pytest.fixture(scope="module")
def stock() -> Browser:
    return Browser(legacy_app())


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


async def test_a_token_expires_cached_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(int(time.time()))
    for module in ("gateway.tokens", "gateway.cache"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: now, monotonic=lambda: now))
    browser = Browser(legacy_app())
    for life_s in (20, 100):  # as long as it is believed without looking, and longer
        expires = int(now) + life_s
        bearer = ("authorization", f"Bearer {token_of(7, exp=expires)}")
        assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]
        now = expires - 0.1
        assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]
        now = expires
        assert (await browser.get(Backend.LEGACY, "/me", bearer))["user"] is None


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
    assert (40, True) == (claims["exp"] - claims["iat"], abs(claims["iat"] - time.time()) < 30)
    await browser.get(Backend.FASTAPI, "/me")
    assert token == dict(browser.presented["headers"])[b"authorization"].split()[1]


async def test_a_foreign_key_id_is_refused_when_one_is_configured() -> None:
    browser = Browser(legacy_app(), replace(IDENTITY, kid="k1"))
    for kid, user in (("k1", 7), ("k2", None)):
        claims = jwt.decode(token_of(7), options={"verify_signature": False})
        token = jwt.encode(claims, KEY, "HS256", {"kid": kid})
        assert user == (await browser.get(Backend.LEGACY, "/me", ("authorization", f"Bearer {token}")))["user"]


async def test_a_token_of_an_earlier_key_is_believed_and_the_present_one_signs() -> None:
    app = legacy_app(SECRET_KEY_FALLBACKS=["x2" + KEY, KEY])
    app.secret_key = "x1" + KEY
    browser = Browser(app)
    for key in (KEY, "x1" + KEY, "x2" + KEY):
        bearer = ("authorization", f"Bearer {token_of(7, key=key.encode())}")
        assert 7 == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]
    bearer = ("authorization", f"Bearer {token_of(7, key=('x3' + KEY).encode())}")
    assert (await browser.get(Backend.LEGACY, "/me", bearer))["user"] is None
    await browser.get(Backend.LEGACY, "/login/7")
    await browser.get(Backend.FASTAPI, "/me")
    token = dict(browser.presented["headers"])[b"authorization"].split()[1]
    assert "7" == jwt.decode(token, "x1" + KEY, ["HS256"], audience="music-api")["sub"]


async def test_a_key_of_the_tokens_own_has_no_earlier_ones() -> None:
    browser = Browser(legacy_app(SECRET_KEY_FALLBACKS=["x2" + KEY]), replace(IDENTITY, key="x1" + KEY))
    for key, user in (("x1" + KEY, 7), ("x2" + KEY, None), (KEY, None)):
        bearer = ("authorization", f"Bearer {token_of(7, key=key.encode())}")
        assert user == (await browser.get(Backend.LEGACY, "/me", bearer))["user"]
