"""The identity bridge between real Flask applications and a real FastAPI port that verifies bearers."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from gateway.errors import ConfigError
from gateway.identity import IdentityBridge
from gateway.model import Backend
from gateway.settings import IdentitySettings, Settings
from tests.support.asgi import Header, http_scope
from tests.support.browser import IDENTITY, OWN, SETTINGS, Browser, FileSessions, legacy_app, token_of


@pytest.fixture(params=["signed cookie", "server side"])
def legacy(request: pytest.FixtureRequest, tmp_path: Path) -> Flask:
    app = legacy_app()
    if request.param == "server side":
        app.session_interface = FileSessions(tmp_path)
    return app


@pytest.fixture
def browser(legacy: Flask) -> Browser:
    return Browser(legacy)


# --- one sign-in, both sides -------------------------------------------------------------------------------------


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


# --- nothing forged or minted gets out, nothing else is touched --------------------------------------------------


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


@pytest.mark.parametrize(
    ("sent", "seen"), [(None, "http://testserver"), ("https://other.example", "https://other.example")]
)
async def test_a_bearer_passes_the_csrf_check_of_legacy_as_a_page_of_its_own_would(
    browser: Browser, sent: str | None, seen: str
) -> None:
    origin = [("origin", sent)] if sent else []
    scope = http_scope("POST", "/users", [("authorization", f"Bearer {token_of('7')}"), *origin])
    presented = await browser.bridge.present(scope, browser.bridge.look(scope), Backend.LEGACY)
    assert [seen.encode()] == [value for name, value in presented["headers"] if name == b"origin"]


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


# --- credentials that contradict each other, and other sites -----------------------------------------------------


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


# --- who is asked about ------------------------------------------------------------------------------------------


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


# --- configuration -----------------------------------------------------------------------------------------------


async def test_without_claims_nothing_is_translated() -> None:
    bridge = IdentityBridge(None, Settings(), OWN)
    scope = http_scope("GET", "/", [("authorization", f"Bearer {token_of(7)}"), ("cookie", "session=x")])
    who = await bridge.identify(scope)
    headers = [(b"set-cookie", b"session=; Max-Age=0")]
    for side in Backend:
        assert scope is await bridge.present(scope, who, side)
        assert headers is await bridge.reconcile(who, side, 200, headers)
    assert (False, "key:") == (bridge.active, who.subject[:4])


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
