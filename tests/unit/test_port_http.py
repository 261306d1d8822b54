"""Queries, forms, pages and redirects of the port against Werkzeug's."""

import re
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.convertors import CONVERTOR_TYPES
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import MethodNotAllowed, NotFound, RequestedRangeNotSatisfiable
from werkzeug.routing import Map, Rule
from werkzeug.routing.exceptions import RequestRedirect
from werkzeug.utils import redirect as werkzeug_redirect
from werkzeug.wrappers import Request as WerkzeugRequest

from fastapi_app.http import (
    ApiError,
    error_page,
    form_fields,
    id_list,
    json_body,
    number,
    page_args,
    query,
    query_int,
    read_body,
    redirect,
    text,
    text_list,
    uploaded_file,
)
from tests.support.asgi import http_scope


def request(body: bytes = b"", chunks: int = 1, complete: bool = True, **headers: str) -> Request:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    size = -(-len(body) // chunks) or 1
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if complete:
        messages[-1]["more_body"] = False
    else:
        messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return Request(http_scope("POST", "/", pairs), receive)


def asked(query_string: str) -> dict[str, str]:
    scope = http_scope("GET", "/") | {"query_string": query_string.encode()}
    return query(Request(scope))


PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
raw_queries = st.lists(
    st.sampled_from(
        ["a=1", "a=2", "b", "=", "&", ";", "%C3%A9", "%ff", "%", "+", "a%3Db=c", "é", "%F0%9F%8E%B8", "b=%00"]
    )
).map("&".join)


@PATIENT
@given(raw_queries)
def test_the_first_of_a_repeated_field_counts_and_damaged_bytes_stay_quoted(query_string: str) -> None:
    oracle = WerkzeugRequest({"QUERY_STRING": query_string.encode().decode("latin-1"), "REQUEST_METHOD": "GET"})
    assert oracle.args.to_dict() == asked(query_string)


@PATIENT
@given(st.text(max_size=8) | st.integers().map(str))
def test_a_number_in_the_query_is_what_int_makes_of_it(value: str) -> None:
    typed = MultiDict({"n": value}).get("n", type=int)
    expected = None if typed is None else min(max(typed, 0), 2**31 - 1)
    assert expected == query_int({"n": value}, "n")


@pytest.mark.parametrize(
    ("query_string", "expected"),
    [("", (1, 50)), ("page=0&per_page=0", (1, 1)), ("page=-3&per_page=999", (1, 100)), ("page=%20%D9%A1", (1, 50))],
)
def test_pages_are_held_within_their_limits(query_string: str, expected: tuple[int, int]) -> None:
    assert expected == page_args(asked(query_string))


@pytest.mark.parametrize("query_string", ["page=abc", "page=", "per_page=1.5"])
def test_a_page_that_is_no_number_is_refused(query_string: str) -> None:
    with pytest.raises(ApiError) as refused:
        page_args(asked(query_string))
    assert 400 == refused.value.status


@pytest.mark.parametrize("error", [NotFound(), MethodNotAllowed(["GET"]), RequestedRangeNotSatisfiable(5)])
def test_error_pages_are_werkzeugs(error: Any) -> None:
    oracle, page = error.get_response(), error_page(error.code)
    assert (oracle.data, oracle.content_type) == (page.body, page.headers["content-type"])


@PATIENT
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20), st.sampled_from([302, 308]))
def test_redirects_are_werkzeugs(path: str, status: int) -> None:
    location = "/" + path.lstrip("/\\")
    oracle, answer = werkzeug_redirect(location, status), redirect(location, status)
    assert oracle.data == answer.body
    assert oracle.get_wsgi_headers({})["Location"] == answer.headers["location"]


@PATIENT
@given(st.text(max_size=6) | st.integers(0).map(str))
def test_a_number_in_the_path_is_what_werkzeug_takes_for_one(segment: str) -> None:
    adapter = Map([Rule("/<int:n>", endpoint="n")], merge_slashes=False).bind("host")
    try:
        _, args = adapter.match(f"/{segment}")
        expected = args["n"]
    except (NotFound, RequestRedirect):
        expected = None
    digits = CONVERTOR_TYPES["digits"]
    found = re.fullmatch(digits.regex, segment)
    assert expected == (digits.convert(segment) if found else None)


# Bodies


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"", 400),
        ("application/json", b"{}", 400),
        ("application/json", b"[1]", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b'{"a": "\xff"}', 400),
        ("text/plain", b'{"a": 1}', 415),
        ("", b'{"a": 1}', 415),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(content_type: str, body: bytes, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        await json_body(request(body, content_type=content_type))
    assert status == refused.value.status


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=x", "application/ld+json"])
async def test_a_json_object_is_read_whatever_the_chunks(content_type: str) -> None:
    body = '{"name": "Bj\u00f6rk", "n": NaN, "big": 123456789012345678901234567890}'.encode()
    data = await json_body(request(body, chunks=7, content_type=content_type))
    assert ("Björk", 123456789012345678901234567890) == (data["name"], data["big"])


async def test_a_body_above_the_limit_is_refused_told_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_app.http.MAX_BODY", 10)
    assert 10 == len(await read_body(request(b"x" * 10, content_length="10")))
    for asking in (request(content_length="11"), request(b"x" * 11, chunks=3)):
        with pytest.raises(ApiError) as refused:
            await read_body(asking)
        assert 413 == refused.value.status


async def test_half_a_body_is_never_taken_for_a_whole_one() -> None:
    with pytest.raises(ApiError) as refused:
        await read_body(request(b'{"a": 1}', complete=False))
    assert 400 == refused.value.status


BOUNDARY = "multipart/form-data; boundary=b"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"


async def test_fields_of_both_kinds_of_forms() -> None:
    encoded = await form_fields(request(b"a=1&a=2&b=%ff+c", content_type="application/x-www-form-urlencoded"))
    body = part("a", b"1") + part("a", b"2") + part("f", b"file", "f.txt") + b"--b--\r\n"
    multipart = await form_fields(request(body, content_type=BOUNDARY))
    assert ({"a": "1", "b": "%FF c"}, {"a": "1"}) == (encoded, multipart)


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (part("file", b"\x00\xff" * 5, "x.png") + b"--b--\r\n", BOUNDARY, b"\x00\xff" * 5),
        (part("file", b"first", "1") + part("file", b"second", "2") + b"--b--\r\n", BOUNDARY, b"first"),
        (part("file", b"x", "") + b"--b--\r\n", BOUNDARY, None),
        (part("file", b"text") + b"--b--\r\n", BOUNDARY, None),
        (b"damaged", BOUNDARY, None),
        (b"x", "multipart/form-data", None),
        (b"x", "image/png", None),
    ],
)
async def test_the_file_of_a_form(body: bytes, content_type: str, expected: bytes | None) -> None:
    assert expected == await uploaded_file(request(body, content_type=content_type), "file")


# Fields


@pytest.mark.parametrize(("value", "expected"), [(5, "5"), (True, "True"), (" a ", "a"), ("  ", None), (None, None)])
def test_text_fields_take_numbers(value: object, expected: str | None) -> None:
    assert expected == text({"f": value}, "f", 5)


@pytest.mark.parametrize("value", ["123456", [], {}, "\ud800"])
def test_text_fields_refuse_what_cannot_be_kept(value: object) -> None:
    with pytest.raises(ApiError):
        text({"f": value}, "f", 5)


@pytest.mark.parametrize(("value", "expected"), [("7", 7), (True, 1), (7.9, 7), (None, None)])
def test_number_fields_take_digits(value: object, expected: int | None) -> None:
    assert expected == number({"f": value}, "f", high=10)


@pytest.mark.parametrize("value", ["x", [], -1, 11, float("inf"), float("nan")])
def test_number_fields_refuse_the_rest(value: object) -> None:
    with pytest.raises(ApiError):
        number({"f": value}, "f", high=10)


def test_lists_lose_blanks_and_repetitions() -> None:
    assert ["a", "1"] == text_list({"f": ["a", " ", 1, "1", None]}, "f")
    assert [3, 1] == id_list({"f": ["3", 1, 3]}, "f")


@pytest.mark.parametrize("value", ["a", {}, list(range(1001))])
def test_lists_must_be_lists_of_a_sensible_length(value: object) -> None:
    for reader in (text_list, id_list):
        with pytest.raises(ApiError):
            reader({"f": value}, "f")
