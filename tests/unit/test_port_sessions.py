"""The session cookie: Flask and the port read what the other wrote, and say the same about it."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from unittest.mock import patch

import pytest
from flask import Flask
from flask import session as flask_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.http import dump_cookie
from werkzeug.http import parse_cookie as werkzeug_parse_cookie
from werkzeug.wrappers import Response

from fastapi_app.cookies import drop_cookie, parse_cookies, set_cookie
from fastapi_app.sessions import COOKIE, Session, SessionCookie

SECRET = "s" * 32
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
TOKENS = st.text("abcXYZ019-_", min_size=1, max_size=200)


def flask_app(secure: bool = False) -> Flask:
    app = Flask("oracle")
    app.config.update(
        SECRET_KEY=SECRET,
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=secure,
        PERMANENT_SESSION_LIFETIME=timedelta(hours=24),
    )

    @app.get("/untouched")
    def untouched() -> str:
        return ""

    @app.get("/read")
    def read() -> str:
        return str(flask_session.get("user_id"))

    @app.get("/write")
    def write() -> str:
        flask_session.permanent = True
        flask_session["user_id"], flask_session["session_token"] = 7, "token"
        return ""

    @app.get("/clear")
    def clear() -> str:
        flask_session.clear()
        return ""

    return app


def flask_cookie(values: dict[str, Any]) -> str:
    app = flask_app()
    response = Response()
    kind = app.session_interface.session_class  # type: ignore[attr-defined]
    app.session_interface.save_session(app, kind(values | {"_permanent": True}), response)  # type: ignore[arg-type]
    return werkzeug_parse_cookie(response.headers["Set-Cookie"])[COOKIE]


def flask_reads(value: str) -> dict[str, Any]:
    app = flask_app()
    asking = app.request_class({"HTTP_COOKIE": f"{COOKIE}={value}", "REQUEST_METHOD": "GET"})
    return dict(app.session_interface.open_session(app, asking) or {})


def value_of(headers: list[tuple[bytes, bytes]]) -> str:
    return next(v for n, v in headers if n == b"set-cookie").decode().partition("=")[2].partition(";")[0]


@PATIENT
@given(st.integers(1), TOKENS)
def test_flask_reads_what_the_port_writes(user_id: int, token: str) -> None:
    started = Session({})
    started.start(user_id, token)
    value = value_of(SessionCookie(SECRET, secure=False).headers(started))
    assert {"_permanent": True, "user_id": user_id, "session_token": token} == flask_reads(value)


@PATIENT
@given(st.integers(1), TOKENS)
def test_the_port_reads_what_flask_writes(user_id: int, token: str) -> None:
    read = SessionCookie(SECRET, secure=False).read(flask_cookie({"user_id": user_id, "session_token": token}))
    assert (user_id, token) == (read.get("user_id"), read.get("session_token"))


def test_values_that_only_flask_knows_survive_a_refresh() -> None:
    values = {"at": datetime(2024, 1, 2, tzinfo=UTC), "pair": (1, b"x"), "long": "x" * 500, "user_id": 1}
    cookie = SessionCookie(SECRET, secure=False)
    refreshed = value_of(cookie.headers(cookie.read(flask_cookie(values))))
    assert values | {"_permanent": True} == flask_reads(refreshed)


FORGED = flask_cookie({"user_id": 1})


@pytest.mark.parametrize(
    "value",
    ["", "x", FORGED[:-1], FORGED.replace(".", "!"), "." + FORGED, f"{FORGED.split('.')[0]}.x.y", "é", "a" * 10_000],
    ids=["empty", "a letter", "cut short", "other dots", "as if compressed", "other signature", "no ASCII", "long"],
)
def test_a_damaged_cookie_is_an_empty_session(value: str) -> None:
    assert {} == SessionCookie(SECRET, secure=False).read(value).values


def test_another_key_opens_nothing() -> None:
    assert {} == SessionCookie("t" * 32, secure=False).read(FORGED).values


def test_a_cookie_lives_24_hours() -> None:
    cookie, made = SessionCookie(SECRET, secure=False), flask_cookie({"user_id": 1})
    for hours, expected in ((23.5, {"user_id": 1, "_permanent": True}), (24.5, {})):
        later = datetime.now(UTC).timestamp() + hours * 3600
        with patch("itsdangerous.timed.time.time", return_value=later):
            assert expected == cookie.read(made).values


def port_headers(path: str, sent: str, secure: bool) -> list[tuple[str, str]]:
    cookie = SessionCookie(SECRET, secure=secure)
    read = cookie.read(sent)
    if path == "/read":
        read.get("user_id")
    elif path == "/write":
        read.start(7, "token")
    elif path == "/clear":
        read.clear()
    return [(n.decode().title(), v.decode()) for n, v in cookie.headers(read)]


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("sent", ["", "forged", FORGED], ids=["nothing", "forged", "ours"])
@pytest.mark.parametrize("path", ["/untouched", "/read", "/write", "/clear"])
def test_the_answer_says_what_flask_says(path: str, sent: str, secure: bool) -> None:
    with (
        patch("itsdangerous.timed.time.time", return_value=1_700_000_000),
        patch("itsdangerous.timed.TimestampSigner.get_timestamp", return_value=1_700_000_000),
    ):
        value = flask_cookie({"user_id": 1, "session_token": "t"}) if sent == FORGED else sent
        client = flask_app(secure).test_client(use_cookies=False)
        answer = client.get(path, headers={"Cookie": f"{COOKIE}={value}"} if value else {})
        expected = sorted(h for h in answer.headers.to_wsgi_list() if h[0] in ("Set-Cookie", "Vary"))
        found = sorted(port_headers(path, value, secure))
    assert without_time(expected) == without_time(found)


def without_time(headers: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Flask takes the time of `Expires` from another clock."""
    return [(n, [" Expires" if p.startswith(" Expires=") else p for p in v.split(";")]) for n, v in headers]


def test_the_browser_is_told_to_keep_it_for_24_hours() -> None:
    cookie = SessionCookie(SECRET, secure=False)
    header = next(v for n, v in cookie.headers(cookie.read(FORGED)) if n == b"set-cookie").decode()
    told = parsedate_to_datetime(header.partition("Expires=")[2].partition(";")[0])
    assert 24 * 3600 == pytest.approx((told - datetime.now(UTC)).total_seconds(), abs=30)


def test_a_cookie_that_was_read_before_still_ends() -> None:
    cookie = SessionCookie(SECRET, secure=False)
    assert cookie.read(FORGED).values
    with patch("time.time", return_value=datetime.now(UTC).timestamp() + 25 * 3600):
        assert {} == cookie.read(FORGED).values


def test_what_one_request_does_to_its_session_no_other_sees() -> None:
    cookie = SessionCookie(SECRET, secure=False)
    cookie.read(FORGED).values["user_id"] = 2
    assert 1 == cookie.read(FORGED).get("user_id")


def test_the_cookie_changes_with_the_second_and_with_its_content() -> None:
    cookie = SessionCookie(SECRET, secure=False)
    written = set()
    for second in (1_700_000_000, 1_700_000_001):
        for user_id in (1, 2):
            session = Session({})
            session.start(user_id, "t")
            with patch("time.time", return_value=second):
                written.add(value_of(cookie.headers(session)))
    assert 4 == len(written)


# Keys that change

OLD, NEW = "o" * 32, "n" * 32


def test_a_cookie_of_an_earlier_key_is_read_and_written_with_the_new_one() -> None:
    session = Session({})
    session.start(7, "token")
    old = value_of(SessionCookie(OLD, secure=False).headers(session))
    changed = SessionCookie(NEW, (SECRET, OLD), secure=False)
    fresh = value_of(changed.headers(changed.read(old)))
    assert 7 == changed.read(old).get("user_id")
    assert (7, None) == tuple(SessionCookie(key, secure=False).read(fresh).get("user_id") for key in (NEW, OLD))


# Cookies


@PATIENT
@given(st.lists(st.sampled_from([*'ab=;" \\,é\t', '"a\\"b"', "\\101", "a=1; ", '="x;y"', "; "])).map("".join))
def test_cookies_are_read_as_werkzeug_reads_them(header: str) -> None:
    wire = header.encode().decode("latin-1")
    assert werkzeug_parse_cookie(wire).to_dict() == parse_cookies(wire)


def test_of_a_repeated_cookie_the_first_counts() -> None:
    assert {"a": "1"} == parse_cookies("a=1; a=2")


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("http_only", [False, True])
def test_cookies_are_written_as_werkzeug_writes_them(secure: bool, http_only: bool) -> None:
    expires = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    flags: dict[str, Any] = {"secure": secure, "httponly": http_only, "samesite": "Lax"}
    written = set_cookie("n", "v.-_1", expires=expires, secure=secure, http_only=http_only)
    assert dump_cookie("n", "v.-_1", expires=expires, **flags) == written
    dropped = Response()
    dropped.delete_cookie("n", **flags)
    assert dropped.headers["Set-Cookie"] == drop_cookie("n", secure=secure, http_only=http_only)
