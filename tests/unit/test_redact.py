"""What is stored of a difference tells where and how answers differ, and nothing that anybody could sign in with."""

import base64
import json
import string
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.compare import ABSENT
from gateway.model import Difference
from gateway.shadow.redact import EXCERPT, is_secret_name, redact, redact_target, redact_text


def shown(where: str, value: object) -> str:
    return str(redact(Difference(where, value, ABSENT)).control)


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"), (ABSENT, "absent"), ("", '""'), ("1.10", '"1.10"'), (1.1, "1.1"), (1, "1"), (True, "true"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        ("2026-10-21T07:28:00.123456+00:00", '"2026-10-21T07:28:00.123456+00:00"'),
        ("Some longer title of a video (2024), part 2", '"Some longer title of a video (2024), part 2"'),
        ("/library/artists/video-thumbnail-2024-01.jpg", '"/library/artists/video-thumbnail-2024-01.jpg"'),
        (1700000000123, "1700000000123"),
    ],
)  # fmt: skip
def test_ordinary_values_are_kept_as_json(value: object, expected: str) -> None:
    assert expected == shown("$.a", value)


def test_long_and_deep_values_are_cut() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    for value in ("word " * 1000, list(range(1000)), {f"k{n}": n for n in range(1000)}, deep):
        assert EXCERPT >= len(shown("$.a", value))
    assert EXCERPT >= len(redact(Difference("$." + "a" * 1000, 1, 2)).where)
    assert EXCERPT >= len(redact_target("/x" * 5000, b"a=1&" * 5000))


def test_bodies_are_shown_around_the_first_difference_with_length_and_hash() -> None:
    start = b"<p>" + b"many words " * 1000
    stored = redact(Difference("body", start + b"old</p>", start + b"new"))
    assert str(stored.control).startswith("byte 11003 of 11010, sha256 ")
    assert str(stored.control).endswith("many words old</p>")
    assert str(stored.candidate).endswith("many words new")
    assert EXCERPT >= len(str(stored.control))


def test_bytes_that_are_no_text_are_not_shown() -> None:
    stored = redact(Difference("body", b"\x89PNG\0\0" + bytes(range(256)), b"\x89PNG\0\0"))
    assert "not text" in str(stored.control)


def test_a_body_that_differs_only_in_a_secret_says_so() -> None:
    page = '<p>x</p><input type="hidden" name="csrf_token" value="{}">'
    stored = redact(Difference("body", page.format("one").encode(), page.format("two").encode()))
    assert "the same except for what is secret" in str(stored.control)


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "password", "Password", "new_password", "password_hash", "passwd", "pwd", "pass", "userPass", "token",
        "accessToken", "refresh-token", "csrf",
        "csrfmiddlewaretoken", "X-XSRF-TOKEN", "secret", "clientSecret", "api_key",
        "apiKey", "X-API-Key", "Authorization", "cookie", "Set-Cookie", "session", "sessionId", "mv_session", "sid",
        "credit_card",
        "cardNumber", "cvv", "pin", "otp", "email", "e-mail", "userEmail", "mail", "private_key", "jwt", "signature",
    ],
)  # fmt: skip
def test_these_names_are_secret(name: str) -> None:
    assert is_secret_name(name)
    assert "<7 characters>" == shown(f"$.user.{name}", "hunter2")
    assert "hunter2" not in shown("$.user", {name: "hunter2"})
    assert "hunter2" not in redact_target("/", urlencode({name: "hunter2"}).encode())
    assert "hunter2" not in redact_text(json.dumps({name: "hunter2", "a": 1}))
    assert "hunter2" not in redact_text(f"a=1&{name}=hunter2")


@pytest.mark.parametrize(
    "name", ["author", "artist", "title", "passage", "side", "position", "design", "spinner", "compass", "inside", "id"]
)
def test_these_names_are_not(name: str) -> None:
    assert not is_secret_name(name)
    assert '"x"' == shown(f"$.{name}", "x")


def test_the_kind_of_a_secret_is_kept() -> None:
    stored = redact(Difference("$.token", None, 12345))
    assert ("null", "<int>") == (stored.control, stored.candidate)


def test_the_value_of_any_cookie_is_secret_and_its_attributes_are_not() -> None:
    assert "<3 characters>" == shown("cookie.theme.value", "red")
    assert '"/admin"' == shown("cookie.mv_session.path", "/admin")


def test_columns_are_secret_by_their_own_name() -> None:
    assert "<7 characters>" == shown("rows.users[insert].password_hash", "hunter2")
    assert "7" == shown("rows.user_sessions[insert].user_id", 7)
    assert "hunter2" not in shown("rows.user_sessions[insert]", {"id": 1, "session_token": "hunter2"})


@pytest.mark.parametrize(
    "page",
    [
        '<input name="password" value="hunter2">',
        "<input value='hunter2' type=password>",
        '<meta name="csrf-token" content="hunter2">',
        '<script>var config = {"apiKey": "hunter2"}</script>',
        "password: hunter2",
        'say \\"password\\": \\"hunter2\\"',
        "Authorization: Basic hunter2",
    ],
)
def test_secrets_in_pages_and_texts_are_left_out(page: str) -> None:
    stored = redact(Difference("body", f"<p>x</p>{page} old".encode(), f"<p>x</p>{page} new".encode()))
    for text in (redact_text(page), str(stored.control), str(stored.candidate)):
        assert "hunter2" not in text
    assert str(stored.control).endswith("old")


# --- any secret anywhere ------------------------------------------------------------------------------------------

word = st.text(string.ascii_letters + string.digits, min_size=4, max_size=12)
random_bytes = st.binary(min_size=18, max_size=40).filter(lambda raw: len(set(raw)) > 14)
tokens = random_bytes.map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="))
signed = st.builds(jwt.encode, st.dictionaries(word, word), st.just("k" * 32))
mails = st.builds("{}.{}@{}.example".format, word, word, word)


def card(digits: str) -> str:
    return next(digits + last for last in string.digits if _luhn(digits + last))


def _luhn(digits: str) -> bool:
    doubled = [int(d) * (2 if n % 2 else 1) for n, d in enumerate(reversed(digits))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


cards = st.text(string.digits, min_size=15, max_size=15).map(card)
recognisable = tokens | signed | mails | cards | random_bytes.map(bytes.hex)
named = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=6, max_size=30).map(
    "!§{}§!".format
)
names = st.sampled_from(["password", "access_token", "apiKey", "Cookie", "csrf_token", "email", "session_id"])
places = st.sampled_from(["$.a", "$.items[3].note", "header.location", "rows.users[update].note", "error"])


def stored_text(difference: Difference) -> str:
    stored = redact(difference)
    return f"{stored.where} {stored.control} {stored.candidate}"


@settings(deadline=None)
@given(places, recognisable, word)
def test_what_looks_like_a_secret_survives_nowhere(where: str, secret: str, before: str) -> None:
    values: list[Any] = [
        secret,
        f"{before} {secret}, and more",
        f"https://example.org/x?{before}={quote(secret)}#top",
        [before, {before: secret}],
        {secret: before},
    ]
    for value in values:
        assert secret not in stored_text(Difference(where, value, before))
        assert secret not in stored_text(Difference(where, ABSENT, value))
    for body in (f"<p>{before} {secret}</p>", json.dumps({before: secret}), f"{before}={secret}&x"):
        assert secret not in stored_text(Difference("body", body.encode(), b"<p>" + body[3:].encode()))
    assert secret not in redact_target(f"/reset/{secret}", urlencode({before: secret}).encode())
    assert secret not in stored_text(Difference(f'$["{secret}"].a', 1, 2))


@settings(deadline=None)
@given(names, named)
def test_what_bears_the_name_of_a_secret_survives_nowhere(name: str, secret: str) -> None:
    assert secret not in stored_text(Difference(f"$.{name}", secret, None))
    for value in ({name: secret}, [{"deep": {name: secret}}], {name: [secret]}, {name: {"a": secret}}):
        assert secret not in stored_text(Difference("$.a", value, ABSENT))
    for ascii_only in (True, False):
        written = json.dumps({"a": 1, name: secret}, ensure_ascii=ascii_only)
        body = written.encode()
        text = stored_text(Difference("body", body, body[:-1]))
        assert secret not in text
        assert json.dumps(secret, ensure_ascii=ascii_only) not in text
    assert secret not in redact_target("/", urlencode({name: secret}).encode())
    assert quote(secret) not in redact_text(f"a=1&{name}={quote(secret)}")


@settings(deadline=None)
@given(st.text())
def test_any_text_can_be_redacted_and_twice_is_once(text: str) -> None:
    once = redact_text(text)
    assert once == redact_text(once)
