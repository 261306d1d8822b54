"""Passes of testers: what makes one valid, and what does not."""

import base64
import timeit
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import passes
from gateway.cookies import AnonymousCookie
from gateway.errors import ConfigError
from gateway.model import Backend
from gateway.passes import MAX_LIFETIME_S, Pass, check, find, mint, without

SECRET = b"7d1c" * 4 + b"90fe" * 4
NOW = 1_800_000_000.0
HOUR_S = 3600


def made(**changes: Any) -> tuple[str, Pass]:
    wanted: dict[str, Any] = {"side": Backend.FASTAPI, "keys": ["a", "b"], "who": "ann", "expires_in_s": HOUR_S}
    return mint(SECRET, now=NOW, **(wanted | changes))


def signed(key: bytes, algorithm: str = "HS256", **changes: Any) -> str:
    """A pass as somebody else would make it. A change to None leaves the claim out."""
    claims = {"aud": "gateway-pass", "iat": int(NOW), "exp": int(NOW) + 60, "jti": "1"}
    claims |= {"side": "fastapi", "keys": ["*"], "who": "eve"} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm)


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


# --- valid ones


def test_a_pass_says_side_routes_owner_and_end() -> None:
    text, said = made()
    assert said == check(SECRET, text, NOW)
    assert Pass(said.id, Backend.FASTAPI, frozenset({"a", "b"}), "ann", int(NOW) + HOUR_S) == said


def test_a_pass_covers_the_routes_that_it_names_and_no_others() -> None:
    _, said = made()
    assert [True, True, False, False] == [said.covers(key) for key in ("a", "b", "ab", "")]


def test_a_pass_for_all_routes_covers_each() -> None:
    _, said = made(keys=["*"])
    assert said.covers("whatever")


def test_no_two_passes_have_one_number() -> None:
    assert 100 == len({made()[1].id for _ in range(100)})


def test_a_pass_ends_to_the_second() -> None:
    text, _ = made(expires_in_s=10)
    assert check(SECRET, text, NOW + 9.9)
    assert check(SECRET, text, NOW + 10) is None


def test_a_clock_that_is_put_back_by_an_hour_ends_no_pass() -> None:
    text, said = made(expires_in_s=MAX_LIFETIME_S)
    assert said == check(SECRET, text, NOW - HOUR_S)


def test_a_clock_that_is_put_forward_by_an_hour_ends_those_of_less_than_an_hour() -> None:
    assert check(SECRET, made(expires_in_s=HOUR_S - 1)[0], NOW + HOUR_S) is None
    assert check(SECRET, made(expires_in_s=HOUR_S + 1)[0], NOW + HOUR_S)


# --- none


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_pass_with_any_bit_flipped_is_none(data: st.DataObject) -> None:
    text, _ = made()
    place, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    flipped = text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
    assert check(SECRET, flipped, NOW) is None


def test_of_all_spellings_of_the_last_character_one_is_ours() -> None:
    text, _ = made()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert [text] == [text[:-1] + last for last in alphabet if check(SECRET, text[:-1] + last, NOW)]


@given(st.one_of(st.text(max_size=300), st.from_regex(r"[\w-]{0,80}\.[\w-]{0,80}\.[\w-]{0,80}", fullmatch=True)))
@settings(max_examples=500, deadline=None)
def test_whatever_text_comes_is_none_and_never_an_error(text: str) -> None:
    assert check(SECRET, text, NOW) is None


@given(
    st.dictionaries(
        st.sampled_from(["aud", "iat", "exp", "jti", "side", "keys", "who"]),
        st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2),
        min_size=1,
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_signed_with_our_key_gives_a_pass_or_none_and_never_an_error(claims: dict[str, Any]) -> None:
    said = check(SECRET, signed(passes._signing_key(SECRET), **claims), NOW)
    assert said is None or (said.expires_at > NOW and all(isinstance(key, str) for key in said.keys))


@pytest.mark.parametrize("cut", [1, 2, 20, 100])
def test_a_pass_that_is_cut_off_or_longer_is_none(cut: int) -> None:
    text, _ = made()
    assert check(SECRET, text[:-cut], NOW) is None
    assert check(SECRET, text[cut:], NOW) is None
    assert check(SECRET, text + "A" * cut, NOW) is None


def test_a_pass_of_another_secret_is_none() -> None:
    text, _ = mint(SECRET[::-1], side=Backend.LEGACY, keys=["*"], who="eve", expires_in_s=60, now=NOW)
    assert check(SECRET, text, NOW) is None


def test_the_secret_itself_signs_no_passes() -> None:
    assert check(SECRET, signed(SECRET), NOW) is None
    assert check(SECRET, signed(passes._signing_key(SECRET)), NOW)


def test_an_anonymous_cookie_is_no_pass_and_a_pass_no_anonymous_cookie() -> None:
    number, (_, line) = AnonymousCookie(SECRET).make(secure=False)
    value = line.partition(b"=")[2].partition(b";")[0].decode()
    text, _ = made()
    assert number in value
    assert check(SECRET, value, NOW) is None
    assert "" == AnonymousCookie(SECRET).read(b"gw_id=" + text.encode())


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_with_the_right_key_is_none(algorithm: str) -> None:
    assert check(SECRET, signed(passes._signing_key(SECRET) * 2, algorithm), NOW) is None


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS256 "])
def test_an_unsigned_pass_is_none(algorithm: str) -> None:
    head = base64.urlsafe_b64encode(b'{"alg":"%s","typ":"JWT"}' % algorithm.encode()).rstrip(b"=").decode()
    _, body, signature = made()[0].split(".")
    assert check(SECRET, f"{head}.{body}.", NOW) is None
    assert check(SECRET, f"{head}.{body}.{signature}", NOW) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "music-videos-api"},
        {"aud": None},
        {"exp": None},
        {"iat": None},
        {"exp": int(NOW) + MAX_LIFETIME_S + 1},
        {"exp": float("inf")},
        {"exp": "9999999999"},
        {"side": "nginx"},
        {"side": None},
        {"keys": None},
        {"keys": "*"},
        {"keys": [1]},
        {"who": None},
        {"who": 7},
        {"jti": None},
    ],
    ids=str,
)
def test_a_signed_pass_with_a_wrong_or_missing_claim_is_none(claims: dict[str, Any]) -> None:
    assert check(SECRET, signed(passes._signing_key(SECRET), **claims), NOW) is None


def test_a_pass_of_sixty_kilobytes_is_refused_within_a_millisecond() -> None:
    monster = made()[0] + "A" * 60_000
    assert check(SECRET, monster, NOW) is None
    assert min(timeit.repeat(lambda: check(SECRET, monster, NOW), number=1, repeat=20)) < 0.001


# --- minting


@pytest.mark.parametrize("lifetime_s", [0, -1, MAX_LIFETIME_S + 1])
def test_a_pass_lasts_a_second_to_thirty_days(lifetime_s: int) -> None:
    with pytest.raises(ConfigError, match="30 days"):
        made(expires_in_s=lifetime_s)


@pytest.mark.parametrize("wrong", [{"keys": []}, {"who": ""}])
def test_a_pass_is_for_somebody_and_some_route(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="for somebody"):
        made(**wrong)


def test_a_pass_that_no_header_could_hold_is_not_made() -> None:
    with pytest.raises(ConfigError, match="fewer routes"):
        made(keys=[f"blueprint.function_{number}" for number in range(300)])


# --- in a request


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-gateway-pass", b"T")],
        [(b"cookie", b"gw_pass=T")],
        [(b"cookie", b"a=1; gw_pass=T; b=2")],
        [(b"cookie", b"a=1"), (b"cookie", b"gw_pass = T")],
        [(b"cookie", b"gw_pass=cookie"), (b"x-gateway-pass", b"T")],
        [(b"cookie", b"gw_pass=T; gw_pass=second")],
    ],
    ids=str,
)
def test_a_pass_is_found_in_header_or_cookie(headers: list[tuple[bytes, bytes]]) -> None:
    assert "T" == find(scope((b"host", b"h"), *headers))


@pytest.mark.parametrize("cookie", [b"", b"a=1", b"gw_pass", b"xgw_pass=T", b"a=gw_pass=T", b"gw_pass2=T"])
def test_what_only_looks_like_a_pass_is_not_found(cookie: bytes) -> None:
    assert "" == find(scope((b"cookie", cookie), (b"x_gateway_pass", b"T"), (b"x-gateway-pass2", b"T")))


def test_applications_see_the_request_without_its_pass() -> None:
    original = scope((b"host", b"h"), (b"x-gateway-pass", b"T"), (b"cookie", b"a=1; gw_pass=T; b=2"), (b"x", b""))
    shown = without(original)
    assert [(b"host", b"h"), (b"cookie", b"a=1; b=2"), (b"x", b"")] == shown["headers"]
    assert 4 == len(original["headers"])


def test_a_cookie_header_that_was_all_pass_is_gone() -> None:
    assert [] == without(scope((b"cookie", b"gw_pass=T")))["headers"]


def test_cookies_around_a_pass_are_left_to_the_byte() -> None:
    odd = b' a="x; y" ;b;;=c'
    assert [(b"cookie", odd)] == without(scope((b"cookie", odd)))["headers"]


def test_a_request_without_a_pass_is_looked_at_for_about_a_microsecond() -> None:
    usual = scope(*((b"accept-%d" % n, b"*/*") for n in range(10)), (b"cookie", b"mv_session=" + b"x" * 300))
    assert min(timeit.repeat(lambda: find(usual), number=1000, repeat=20)) / 1000 < 5e-6
