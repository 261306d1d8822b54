"""When two answers are equal, where they are not, and what an ignore pattern covers."""

import json
import time
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.compare import ABSENT, MAX_DIFFERENCES, check_pattern, compare, compare_rows, differences, spell
from gateway.model import Backend, Difference, Observation, RowChange, Verdict

JSON = "application/json"


def answer(body: object = b"", kind: str = JSON, *headers: tuple[str, str], status: int = 200) -> Observation:
    """An answer with this body, written as compact JSON unless it is bytes already."""
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return Observation(Backend.LEGACY, status, (("Content-Type", kind), *headers), raw)


def places(control: Observation, candidate: Observation, *ignore: str) -> list[str]:
    return [difference.where for difference in compare(control, candidate, ignore).differences]


# --- status, error, headers ---------------------------------------------------------------------------------------


def test_an_answer_equals_itself() -> None:
    one = answer({"a": 1}, JSON, ("Set-Cookie", "sid=1; Path=/"), ("ETag", '"1"'))
    assert Verdict() == compare(one, deepcopy(one))


def test_which_backend_and_how_long_it_took_does_not_matter() -> None:
    assert compare(Observation(Backend.LEGACY, 200), Observation(Backend.FASTAPI, 200, duration_s=3)).matched


def test_status_and_error_are_places() -> None:
    control, candidate = Observation(Backend.LEGACY, 200), Observation(Backend.FASTAPI, 0, error="timeout")
    assert (Difference("status", 200, 0), Difference("error", "", "timeout")) == compare(control, candidate).differences


@pytest.mark.parametrize(
    "name",
    [
        "Content-Type", "Location", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language",
        "Content-Range", "Accept-Ranges", "Allow", "Vary", "WWW-Authenticate", "Retry-After", "ETag", "Last-Modified",
    ],
)  # fmt: skip
def test_a_header_that_clients_act_on_is_compared(name: str) -> None:
    one = Observation(Backend.LEGACY, 200, ((name, "a"),))
    other = Observation(Backend.FASTAPI, 200, ((name.lower(), "b"),))
    where = f"header.{name.lower()}"
    assert (Difference(where, "a", "b"),) == compare(one, other).differences
    assert (Difference(where, "a", ABSENT),) == compare(one, Observation(Backend.FASTAPI, 200)).differences
    assert compare(one, other, [where]).matched
    assert compare(one, other, ["header.*"]).matched


def test_headers_that_clients_do_not_act_on_are_not_compared() -> None:
    one = answer(b"", JSON, ("Date", "now"), ("Server", "a"), ("Content-Length", "0"), ("Connection", "close"))
    assert compare(one, answer(b"", JSON, ("X-Request-Id", "7"))).matched


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([("Vary", "Cookie, Accept")], [("Vary", "accept,  cookie")], True),
        ([("Vary", "Cookie"), ("Vary", "Accept")], [("vary", "Accept, Cookie")], True),
        ([("Vary", "Cookie")], [("Vary", "Cookie, Accept")], False),
        ([("Allow", "GET, HEAD, OPTIONS")], [("Allow", "OPTIONS, GET, HEAD")], True),
        ([("Allow", "GET")], [("Allow", "GET, HEAD")], False),
        ([("Cache-Control", "no-cache")], [("Cache-Control", "no-store")], False),
        ([("WWW-Authenticate", "Basic"), ("WWW-Authenticate", "Bearer")], [("WWW-Authenticate", "Basic")], False),
    ],
)
def test_sets_have_no_order_and_repeated_headers_are_one(one: Any, other: Any, equal: bool) -> None:
    assert equal == compare(answer(b"", JSON, *one), answer(b"", JSON, *other)).matched


# --- cookies ------------------------------------------------------------------------------------------------------

COOKIE = (
    "sid=abc; Domain=Shop.example; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Max-Age=60; Secure; HttpOnly;"
    " SameSite=Lax"
)


def with_cookies(*lines: str) -> Observation:
    return answer(b"", JSON, *(("Set-Cookie", line) for line in lines))


@pytest.mark.parametrize(
    ("change", "where", "control", "candidate"),
    [
        (("sid=abc", "sid=abd"), "value", "abc", "abd"),
        (("Shop.example", "other.example"), "domain", "shop.example", "other.example"),
        (("Path=/", "Path=/a"), "path", "/", "/a"),
        (("Expires=Wed, 21 Oct 2026 07:28:00 GMT; ", ""), "expires", True, ABSENT),
        (("Max-Age=60", "Max-Age=61"), "max-age", "60", "61"),
        (("Secure; ", ""), "secure", True, ABSENT),
        (("HttpOnly; ", ""), "httponly", True, ABSENT),
        (("SameSite=Lax", "SameSite=None"), "samesite", "lax", "none"),
        (("; SameSite=Lax", ""), "samesite", "lax", ABSENT),
    ],
)
def test_a_cookie_is_compared_attribute_by_attribute(
    change: tuple[str, str], where: str, control: object, candidate: object
) -> None:
    verdict = compare(with_cookies(COOKIE), with_cookies(COOKIE.replace(*change)))
    assert (Difference(f"cookie.sid.{where}", control, candidate),) == verdict.differences


@pytest.mark.parametrize(
    "spelling",
    [
        COOKIE.replace("21 Oct", "22 Oct"),
        COOKIE.replace("SameSite=Lax", "samesite=lax"),
        COOKIE.replace("; ", ";"),
        "sid=abc; SameSite=Lax; HttpOnly; Secure; Max-Age=60; Expires=x; Path=/; Domain=shop.example",
    ],
)
def test_a_date_and_the_spelling_of_a_cookie_do_not_matter(spelling: str) -> None:
    assert compare(with_cookies(COOKIE), with_cookies(spelling)).matched


def test_the_order_of_different_cookies_is_free_and_a_missing_one_is_told_without_its_value() -> None:
    assert compare(with_cookies("a=1", "b=2"), with_cookies("b=2", "a=1")).matched
    verdict = compare(with_cookies("a=secret; Path=/x"), with_cookies())
    assert (Difference("cookie.a", "1, path /x", ABSENT),) == verdict.differences
    assert ["cookie.a"] == places(with_cookies("a=1; Path=/", "a=1; Path=/b"), with_cookies("a=1; Path=/"))


def test_cookie_patterns() -> None:
    one, other = with_cookies("sid=1; Path=/", "csrf=1"), with_cookies("sid=2; Path=/a", "csrf=2")
    assert ["cookie.sid.path"] == places(one, other, "cookie.*.value")
    assert ["cookie.csrf.value", "cookie.sid.path"] == places(one, other, "cookie.sid.value")
    assert ["cookie.csrf.value"] == places(one, other, "cookie.sid")
    assert ["cookie.csrf.value"] == places(one, other, "cookie.s*.*")
    assert [] == places(with_cookies("a.b=1"), with_cookies("a.b=2"), "cookie.a.b.value")


# --- JSON bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "candidate"),
    [("1.10", 1.1), (True, 1), (1, 1.0), (0, False), (None, ""), ("1", 1), ([], {}), (None, []), ("", False)],
)
def test_a_change_of_type_is_a_difference(control: object, candidate: object) -> None:
    verdict = compare(answer({"price": control}), answer({"price": candidate}))
    (difference,) = verdict.differences
    assert "$.price" == difference.where
    assert type(difference.control) is not type(difference.candidate) or difference.control != difference.candidate


def test_keys_have_no_order_and_lists_have() -> None:
    assert ["body.bytes"] == places(answer({"a": 1, "b": 2}), answer({"b": 2, "a": 1}))
    assert ["$[order]"] == places(answer([1, 2]), answer([2, 1]))


@pytest.mark.parametrize(
    ("control", "candidate", "expected"),
    [
        ([1, 1, 2], [2, 1, 1], ["$[order]"]),
        ([1, 2, 3], [3, 1], ["$[0]", "$[1]", "$[2]"]),
        ([1, 2], [2, 1.0], ["$[0]", "$[1]"]),
        ([[1], {}], [{}, [1]], ["$[order]"]),
        ([{"id": 1, "t": 1}, {"id": 2, "t": 2}], [{"id": 2, "t": 2}, {"id": 1, "t": 0}], ["$[order]", "$[0].t"]),
        ([{"rank": 1, "id": 8}, {"rank": 2, "id": 9}], [{"rank": 1, "id": 9}, {"rank": 2, "id": 8}],
         ["$[order]", "$[0].rank", "$[1].rank"]),
        ([{"user_id": 1, "a": [1, 2]}, {"user_id": 2}], [{"user_id": 2}, {"user_id": 1, "a": [2, 1]}],
         ["$[order]", "$[0].a[order]"]),
        ([{"id": 1}, {"id": 2}], [{"id": 1}, {"id": 3}], ["$[1].id"]),
    ],
)  # fmt: skip
def test_the_same_members_in_another_order_are_one_difference_and_compared_with_each_other(
    control: object, candidate: object, expected: list[str]
) -> None:
    assert expected == places(answer(control), answer(candidate))


def test_the_order_of_a_list_can_be_ignored_without_its_members() -> None:
    one, other = (
        answer({"l": [{"id": 1, "t": 1}, {"id": 2, "t": 2}]}),
        answer({"l": [{"id": 2, "t": 0}, {"id": 1, "t": 1}]}),
    )
    assert ["$.l[1].t"] == places(one, other, "$.l[order]")
    assert [] == places(one, other, "$.l[*]")


def test_members_of_a_list_without_order_are_matched_even_if_some_are_new_or_gone() -> None:
    one = answer([{"id": n, "t": n} for n in (1, 2, 3, 4)])
    other = answer([{"id": n, "t": n} for n in (3, 1, 2)])
    assert [("$", 3)] == [place for place, _, _ in differences(one, other, [("$",)])]
    gone, new = differences(answer([1, 2]), answer([9, 2]), [("$",)])
    assert (("$", 0), 1, ABSENT) == gone
    assert ("$[new]", ABSENT, 9) == (spell(new[0]), *new[1:])
    assert [new] == [found for found in differences(answer([3, 2]), answer([2, 9, 3]), [("$",)]) if found[1] is ABSENT]


def test_objects_without_lasting_keys_are_compared_in_turn() -> None:
    one, other = answer({"12": {"a": 1}, "13": 2}), answer({"14": {"a": 2}, "15": 2})
    assert [("$", 0, "a")] == [place for place, _, _ in differences(one, other, [("$",)])]
    assert 4 == len(list(differences(one, other)))


@pytest.mark.parametrize(
    "spelling",
    [b'{"a": "\xc3\xa4"}', b'{"a":"\\u00e4"}\n', b'{"a":"\\u00E4"}', b'{"a":0,"a":"\xc3\xa4"}'],
)
def test_equal_json_in_other_bytes_is_a_difference_of_its_own_class(spelling: bytes) -> None:
    verdict = compare(answer(b'{"a":"\\u00e4"}'), answer(spelling))
    assert ["body.bytes"] == [difference.where for difference in verdict.differences]
    assert compare(answer(b'{"a":"\\u00e4"}'), answer(spelling), ["body.bytes"]).matched


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        (b'{"a":1,"at":5}', b'{"a": 1, "at": 6}', ["$.at", "body.bytes"]),
        (b'{"a":1,"at":5}', b'{"a":1,"at":6}\n', ["$.at", "body.bytes"]),
        (b'{"a":"\xc3\xa4","at":5}', b'{"a":"\\u00e4","at":6}', ["$.at", "body.bytes"]),
        (b'{"a":"x","at":5}', b'{"a":"\\u00e4","at":5}', ["$.a"]),
        (b'{"a":[],"at":5}', b'{"a":["x: , y"],"at":5}', ["$.a[0]"]),
    ],
)
def test_another_spelling_is_told_beside_other_differences(one: bytes, other: bytes, where: list[str]) -> None:
    assert where == places(answer(one), answer(other))


def test_members_that_one_side_lacks_are_told_one_by_one() -> None:
    verdict = compare(answer({"a": None, "l": [1, 2, 3]}), answer({"b": 1, "l": [1]}))
    assert (
        Difference("$.a", None, ABSENT),
        Difference("$.l[1]", 2, ABSENT),
        Difference("$.l[2]", 3, ABSENT),
        Difference("$.b", ABSENT, 1),
    ) == verdict.differences


def test_places_spell_unusual_keys_so_that_they_can_be_ignored() -> None:
    spelled = {
        "a.b": '$["a.b"]', "": '$[""]', "*": '$["*"]', "x y": '$["x y"]', "[0]": '$["[0]"]', 'q"': '$["q\\""]',
        "it's": '$["it\'s"]', "ä": "$.ä", "0": "$.0", "a-b": "$.a-b",
    }  # fmt: skip
    one, other = answer(dict.fromkeys(spelled, 1)), answer(dict.fromkeys(spelled, 2))
    found = places(one, other)
    assert list(spelled.values()) == found
    for where in found:
        assert [place for place in found if place != where] == places(one, other, where)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("$.items[*].updated_at", ["$.items[0].id", "$.items[1].by.updated_at", "$.total"]),
        ("$.items[0].updated_at", ["$.items[0].id", "$.items[1].updated_at", "$.items[1].by.updated_at", "$.total"]),
        ("$..updated_at", ["$.items[0].id", "$.total"]),
        ("$.items..updated_at", ["$.items[0].id", "$.total"]),
        ("$..by", ["$.items[0].id", "$.items[0].updated_at", "$.items[1].updated_at", "$.total"]),
        ("$.items", ["$.total"]),
        ("$.items[*]", ["$.total"]),
        ("$..[1]", ["$.items[0].id", "$.items[0].updated_at", "$.total"]),
        ("$.items[*].*_at", ["$.items[0].id", "$.items[1].by.updated_at", "$.total"]),
        ('$["total"]', ["$.items[0].id", "$.items[0].updated_at", "$.items[1].updated_at", "$.items[1].by.updated_at"]),
        ("$", []),
        ("$.*", []),
        ("$..*", []),
    ],
)
def test_an_ignore_pattern_covers_its_place_and_what_lies_below(pattern: str, left: list[str]) -> None:
    one = answer({"items": [{"id": 1, "updated_at": 1}, {"updated_at": 1, "by": {"updated_at": 1}}], "total": 1})
    other = answer({"items": [{"id": 2, "updated_at": 2}, {"updated_at": 2, "by": {"updated_at": 2}}], "total": 2})
    check_pattern(pattern)
    verdict = compare(one, other, [pattern])
    assert left == [difference.where for difference in verdict.differences]
    assert 5 == len(verdict.differences) + len(verdict.ignored)


def test_ignored_differences_are_kept() -> None:
    verdict = compare(answer({"a": 1}), answer({"a": 2}), ("$.a",))
    assert verdict.matched
    assert (Difference("$.a", 1, 2),) == verdict.ignored


def test_differences_are_bounded_and_ignored_ones_do_not_use_up_the_others() -> None:
    rows = range(1000)
    one = answer({"rows": [{"at": 1, "x": 1} for _ in rows], "last": 1})
    other = answer({"rows": [{"at": 2, "x": 1} for _ in rows], "last": 2})
    assert MAX_DIFFERENCES == len(compare(one, other).differences)
    verdict = compare(one, other, ["$..at"])
    assert [Difference("$.last", 1, 2)] == list(verdict.differences)
    assert MAX_DIFFERENCES == len(verdict.ignored)


def test_values_too_deep_to_be_written_are_told_all_the_same() -> None:
    deep = answer(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}")
    (difference,) = compare(deep, answer({"a": 1})).differences
    assert "list, too deep to be shown" == difference.control
    one, other = (answer(b"[[" + leaf + b"," + b"[" * 900 + b"]" * 900 + b"]]") for leaf in (b"1", b"2"))
    assert ["$[0][0]"] == places(one, other)


def test_long_values_are_cut() -> None:
    verdict = compare(answer({"a": "x" * 10_000, "b": [1] * 10_000}), answer({"a": 1, "b": {}}))
    assert all(len(str(difference.control)) < 300 for difference in verdict.differences)


# --- other bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":1}', b'{"a":'),
        (b"", b"{}"),
        (b'{"a":NaN}', b'{"a":null}'),
        (b'{"a":"\xff"}', b'{"a":""}'),
        (b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000 + b" " + b"]" * 100_000),
        (b'{"a":' * 100_000, b"[]"),
    ],
    ids=["broken", "empty", "NaN", "not utf-8", "deep", "deep and broken"],
)
def test_what_cannot_be_read_as_json_is_compared_as_bytes(one: bytes, other: bytes) -> None:
    assert ["body"] == places(answer(one), answer(other))
    assert ["body"] == places(answer(other), answer(one))


def test_json_as_deep_as_can_be_read_is_compared_structurally() -> None:
    one, other = (b"[" * 1000 + leaf + b"]" * 1000 for leaf in (b"1", b"2"))
    assert ["$" + "[0]" * 1000] == places(answer(one), answer(other))


def test_json_on_one_side_only_is_compared_as_bytes() -> None:
    assert ["header.content-type", "body"] == places(answer({"a": 1}), answer(b'{"a": 1}', "text/html"))


def test_a_vendor_type_with_a_charset_is_json() -> None:
    kind = "Application/Problem+JSON; charset=utf-8"
    assert ["$.a"] == places(answer({"a": 1}, kind), answer({"a": 2}, kind))


def test_other_bodies_tell_the_first_byte_that_differs_and_what_is_there() -> None:
    start = b"<p>" + b"x" * 10_000
    (difference,) = compare(answer(start + b"old</p>", "text/html"), answer(start + b"new", "text/html")).differences
    assert "body" == difference.where
    assert str(difference.control).startswith("byte 10003 of 10010, sha256 ")
    assert str(difference.control).endswith("xold</p>")
    assert str(difference.candidate).endswith("xnew")
    assert len(str(difference.control)) < 300


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 4097, 8192, 9999])
def test_the_first_different_byte_is_found_wherever_it_is(at: int) -> None:
    one = bytes(10_000)
    other = one[:at] + b"\1" + one[at + 1 :]
    (difference,) = compare(answer(one, "image/png"), answer(other, "image/png")).differences
    assert str(difference.control).startswith(f"byte {at} of 10000")
    (shorter,) = compare(answer(one, "image/png"), answer(one[:at], "image/png")).differences
    assert str(shorter.candidate).startswith(f"byte {at} of {at}")


# --- rows ---------------------------------------------------------------------------------------------------------


def inserted(table: str, key: int | str | tuple[object, ...], **columns: object) -> RowChange:
    """A new row, which has its key in the column `id` unless that has several parts."""
    if isinstance(key, tuple):
        return RowChange(table, key, None, columns)
    return RowChange(table, (key,), None, {"id": key, **columns})


def updated(table: str, key: int, **columns: object) -> RowChange:
    return RowChange(table, (key,), {"id": key}, {"id": key, **columns})


def row_places(control: list[RowChange], candidate: list[RowChange], *ignore: str) -> list[str]:
    return [difference.where for difference in compare_rows(control, candidate, ignore).differences]


def test_rows_equal_themselves_in_any_order() -> None:
    rows = [inserted("a", 1, name="x"), updated("a", 2, name="y"), RowChange("b", (3,), {"id": 3}, None)]
    assert compare_rows(rows, rows[::-1]).matched
    assert compare_rows([], []).matched


@pytest.mark.parametrize(
    ("control", "candidate", "expected"),
    [
        ([inserted("a", 1, name="x")], [inserted("a", 1, name="y")], ["rows.a[insert].name"]),
        ([inserted("a", 1, name="x")], [inserted("a", 1)], ["rows.a[insert].name"]),
        ([inserted("a", 1)], [], ["rows.a[insert]"]),
        ([], [updated("a", 1, n=2)], ["rows.a[update]"]),
        ([updated("a", 1, n=2)], [updated("a", 1, n=3)], ["rows.a[update].n"]),
        ([updated("a", 1, n=2)], [updated("a", 2, n=2)], ["rows.a[update]", "rows.a[update]"]),
        ([updated("a", 1, n=2)], [RowChange("a", (1,), {"n": 1}, None)], ["rows.a[delete]", "rows.a[update]"]),
        ([RowChange("a", (1,), {"n": 1}, None)], [RowChange("a", (2,), {"n": 1}, None)], ["rows.a[delete]"] * 2),
    ],
)
def test_a_row_that_differs_is_told_by_table_kind_and_column(
    control: list[RowChange], candidate: list[RowChange], expected: list[str]
) -> None:
    assert expected == row_places(control, candidate)


def test_the_number_of_a_new_row_may_differ_and_so_may_what_refers_to_it() -> None:
    control = [inserted("artists", 7, name="x"), inserted("artists", 8, name="y"), inserted("videos", 1, artist_id=8)]
    candidate = [inserted("artists", 8, name="x"), inserted("artists", 9, name="y"), inserted("videos", 5, artist_id=9)]
    assert compare_rows(control, candidate).matched
    wrong = [*candidate[:2], inserted("videos", 5, artist_id=10)]
    assert ["rows.videos[insert].artist_id"] == row_places(control, wrong)
    assert ["rows.artists[insert]"] == row_places(control, [candidate[0], candidate[2]])[:1]


def test_a_key_that_means_something_may_not_differ() -> None:
    control = [inserted("favorites", (1, 7), user_id=1, video_id=7)]
    assert ["rows.favorites[insert].video_id"] == row_places(
        control, [inserted("favorites", (1, 8), user_id=1, video_id=8)]
    )


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("rows.a", ["rows.b[insert].at"]),
        ("rows.*", []),
        ("rows.*.at", ["rows.a[update].name"]),
        ("rows.a.at", ["rows.a[update].name", "rows.b[insert].at"]),
        ("rows.a[update].*", ["rows.b[insert].at"]),
        ("rows.a[insert]", ["rows.a[update].at", "rows.a[update].name", "rows.b[insert].at"]),
        ("rows.*[*].name", ["rows.a[update].at", "rows.b[insert].at"]),
    ],
)
def test_patterns_of_rows(pattern: str, left: list[str]) -> None:
    check_pattern(pattern)
    control = [updated("a", 1, at=1, name="x"), inserted("b", 1, at=1)]
    assert left == row_places(control, [updated("a", 1, at=2, name="y"), inserted("b", 1, at=2)], pattern)


# --- patterns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "", "foo", "header", "header.", "cookie.", "cookie.sid.valeu", "$a", "$.", "$..", "$.a.", "$.a..", "$.a[",
        "rows", "rows.", "rows.a[x]", "rows.a[insert].", "rows.a.b.c", "$.a[]", "$.a[-1]", "$.a[x]", "$.a['b']",
        '$["\\q"]', '$["a', "$.a b", "status.x", "body.x", " $.a",
    ],
)  # fmt: skip
def test_a_pattern_that_means_nothing_is_refused_and_told_what_was_expected(pattern: str) -> None:
    for use in (lambda: check_pattern(pattern), lambda: compare(answer(), answer(), [pattern])):
        with pytest.raises(ValueError, match="expected"):
            use()


@pytest.mark.parametrize("pattern", ["status", "error", "body", "body.bytes"])
def test_the_other_places_can_be_ignored_by_name(pattern: str) -> None:
    one = Observation(Backend.LEGACY, 200, (("Content-Type", JSON),), b'{"a":1}', error="x")
    other = Observation(Backend.LEGACY, 201, (("Content-Type", JSON),), b'{"a": 1}')
    assert {"status", "error", "body.bytes"} - {pattern} - ({"body.bytes"} if pattern == "body" else set()) == set(
        places(one, other, pattern)
    )


def test_a_pattern_with_many_asterisks_is_quick_on_a_long_key() -> None:
    key = "a" * 50_000
    started = time.thread_time()
    assert ["$." + key] == places(answer({key: 1}), answer({key: 2}), "$.*a*a*a*a*a*a*b")
    assert time.thread_time() - started < 2


# --- any JSON at all ----------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=25,
)
unhurried = settings(deadline=None)


def all_places(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here]
    if isinstance(document, dict | list):
        for step, member in document.items() if isinstance(document, dict) else enumerate(document):
            found += all_places(member, (*here, step))
    return found


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> tuple[Any, Any]:
    """What was there, and a copy that has `value` there instead."""
    copy = [deepcopy(document)]  # so that the root is somewhere, too
    holder: Any = copy
    path = (0, *place)
    for step in path[:-1]:
        holder = holder[step]
    before, holder[path[-1]] = holder[path[-1]], value
    return before, copy[0]


@unhurried
@given(documents)
def test_any_document_equals_itself_and_any_spelling_of_it_differs_in_bytes_only(document: Any) -> None:
    assert compare(answer(document), answer(document)).matched
    spaced = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    assert ["body.bytes"] == places(answer(document), answer(spaced))


@unhurried
@given(documents, documents, st.data())
def test_any_single_change_is_found_at_its_place_and_nowhere_else(document: Any, value: Any, data: Any) -> None:
    place = data.draw(st.sampled_from(all_places(document)))
    before, changed = replaced(document, place, value)
    same_kind = type(before) is type(value)
    assume(not same_kind or (before != value and not isinstance(value, dict | list)))

    one, other = answer(document), answer(changed)
    (difference,) = compare(one, other).differences
    steps = "".join(f"[{json.dumps(step)}]" for step in place)
    for pattern in (difference.where, f"${steps}", "$"):
        assert compare(one, other, [pattern]).matched
    assert not compare(one, other, [f"${steps}.below"]).matched


@unhurried
@given(st.binary(max_size=50), st.binary(max_size=50))
def test_any_two_bodies_are_equal_only_if_their_bytes_are(one: bytes, other: bytes) -> None:
    for kind in (JSON, "text/plain"):
        assert (one == other) == compare(answer(one, kind), answer(other, kind)).matched
