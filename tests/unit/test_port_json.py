"""The port's JSON text against Flask's own."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_app.json import decode, encode, exact_float

FLASK = Flask("oracle")

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats().map(exact_float) | st.text() | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


def jsonify(value: Any) -> bytes:
    with FLASK.app_context():
        return FLASK.json.response(value).data


@PATIENT
@given(values)
def test_any_value_has_the_bytes_of_jsonify(value: Any) -> None:
    assert jsonify(value) == encode(value)


@PATIENT
@given(st.floats())
def test_a_float_that_was_read_is_written_as_python_writes_it(number: float) -> None:
    read = decode(json.dumps([number]))
    assert jsonify([number]) == encode(read)


@pytest.mark.parametrize("number", [1e16, 1e-5, 0.0001, 9.9e-5, 1e22, 5e-324, -0.0, float("nan"), float("-inf"), 0.1])
def test_floats_at_the_borders_of_the_exponent_form(number: float) -> None:
    assert jsonify({"n": number}) == encode({"n": exact_float(number)})


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1, "a": 2, "é": 3, "Z": 4},
        '\x7f\x00\u2028\ud7ff\ue000😀 "\\/',
        'a\\é\\\\ü"',
        "\ud800 alone",
        2**64,
        -(2**70),
        {1: "a number as a key"},
        Decimal("1.10"),
        datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))),
        datetime(2024, 1, 2, 3, 4, 5, 678),
        date(2024, 1, 2),
        [],
        {},
        "",
    ],
)
def test_what_orjson_alone_would_write_otherwise(value: Any) -> None:
    assert jsonify(value) == encode(value)


def test_what_json_cannot_say_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})


texts = st.text() | values.map(lambda value: json.dumps(value, default=str))


@PATIENT
@given(texts.flatmap(lambda text: st.sampled_from([text, *encodings(text)])))
def test_reading_accepts_and_refuses_what_flask_does(text: str | bytes) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            decode(text)
    else:
        assert json.dumps(expected) == json.dumps(decode(text))


def encodings(text: str) -> list[bytes]:
    return [text.encode(name, "surrogatepass") for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32-le", "latin-1")
            if name != "latin-1" or text.isascii()]  # fmt: skip


def test_a_time_without_a_zone_is_utc() -> None:
    aware = datetime(2024, 1, 2, tzinfo=UTC)
    assert encode(aware) == encode(aware.replace(tzinfo=None)) == b'"Tue, 02 Jan 2024 00:00:00 GMT"\n'
