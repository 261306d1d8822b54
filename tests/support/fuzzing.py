"""Requests that nobody thought of: sequences made from the list of cases by changing paths, queries, bodies and users.

The list says which rules, parameters, fields and values there are, so a new case makes the fuzzer know more. Both sides
play each sequence from the same state; the answers, the rows and the files must be equal, and no answer may be a 500.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gateway.compare import compare
from gateway.model import Observation
from tests.cases import CASES, MASK, Case

from .traces import Row, Traces

MAX_LENGTH = 4  # requests of a sequence

Steps = tuple[Case, ...]


# --- what is asked


@dataclass(frozen=True)
class Known:
    """What the cases of one endpoint use."""

    cases: tuple[Case, ...]
    parameters: Mapping[str, tuple[str, ...]]  # of the query, with values
    fields: Mapping[str, tuple[Any, ...]]  # of the body, with values
    mask: frozenset[str]  # what may differ in its answers


@cache
def known() -> dict[str, Known]:
    """By endpoint; the key "" stands for requests that no rule matches."""
    return {key: _learn([case for case in CASES if case.key == key]) for key in dict.fromkeys(c.key for c in CASES)}


def _learn(cases: Sequence[Case]) -> Known:
    parameters: dict[str, dict[str, None]] = {}
    fields: dict[str, list[Any]] = {}
    for case in cases:
        for name, value in parse_qsl(case.query, keep_blank_values=True):
            parameters.setdefault(name, {})[value] = None
        for name, value in case.json.items() if isinstance(case.json, dict) else ():
            fields.setdefault(name, []).append(value)
    return Known(
        tuple(case for case in cases if not case.files),
        {name: tuple(values) for name, values in parameters.items()},
        {name: tuple(values) for name, values in fields.items()},
        frozenset(place for case in cases for place in case.mask),
    )


ODD_TEXTS = (
    *("", " ", "0", "-1", "1", "2", "1.0", "1e3", "007", "abc", "null", "true", "NaN", "a" * 300, "9" * 30),
    *("2147483647", "2147483648", "Ⅷ", "é", "e\u0301", "🎸", "ﬁ", "İ", "\u0661", "\u202eabc", "\x00", "\x7f"),
    *("%", "%25", "_", "\\", "'", '"', "<b>", ";", "&", "=", "+", "a+b c", "../../etc/passwd"),
    *("\r\nX-Evil: 1", "https://a.test/?q=1#x"),
)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 10**30, 2**31, 2**63, "\ud800", "a\x00b"),
    *([], {}, [[]], [None], [1, 1, 2], ["a", "a", 5], {"a": 1}),
)
ODD_SEGMENTS = (
    *("0", "1", "2", "7", "999", "-1", "+1", "1.0", "01", "abc", "a%20b", "%D9%A1", "9" * 20),
    *("%2e%2e", "%2F", "..", ".", "", "%00", "%FF"),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
HEADERS = tuple(
    (name, value)
    for name, *values in (
        ("Accept", "text/html", "application/json"),
        ("Accept-Encoding", "gzip"),
        ("Authorization", "Bearer x", "Basic eDp5"),
        ("Content-Type", "application/json; charset=latin-1", "application/x-www-form-urlencoded", "text/json", ""),
        ("Cookie", "mv_session=forged"),
        ("If-Modified-Since", "Wed, 21 Oct 2037 07:28:00 GMT"),
        ("If-None-Match", "*"),
        ("If-Range", '"x"'),
        ("Origin", "https://evil.test", "null"),
        ("Range", "bytes=0-9", "bytes=-5", "bytes=5-1"),
        ("Referer", "http://music.test/a"),
        ("User-Agent", "x" * 400),
        ("X-CSRF-Token", "{csrf_token}", "é"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-HTTP-Method-Override", "DELETE"),
    )
    for value in values
)
BODIES = (
    *(b"", b"{", b"null", b"[1]", b"\xff\xfe{\x00}\x00", b'{"a":1}{"b":2}', b'{"name":"a","name":"b"}'),
    *(b"a=1&b=2", b"[" * 2000),
)
USERS = ("anonymous", "readonly", "user", "manager", "admin")

texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20))
values: SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD_VALUES),
    texts,
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), texts),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=5,
    ),
)


@st.composite
def sequences(draw: DrawFn) -> Steps:
    """One to four requests; a case that needs others before it sometimes brings them along."""
    steps: list[Case] = []
    for _ in range(draw(st.integers(1, MAX_LENGTH))):
        step = draw(requests())
        if step.setup and draw(_one_in(2)):
            steps += step.setup
        steps.append(replace(step, setup=(), sql=(), outside={}))
    return tuple(steps)


@st.composite
def requests(draw: DrawFn) -> Case:
    """One case, changed in some places and not in others."""
    of = known()[draw(st.sampled_from(sorted(known())))]
    case = draw(st.sampled_from(of.cases))
    changes: dict[str, Any] = {}
    if draw(_one_in(5)):
        changes["user"] = draw(st.sampled_from(USERS))
    if draw(_one_in(4)):
        changes["path"] = _other_path(draw, case.path)
    if draw(_one_in(2)):
        changes["query"] = _other_query(draw, case, of)
    if draw(_one_in(12)):
        changes["method"] = draw(st.sampled_from(METHODS))
    if draw(_one_in(4)):
        extra = draw(st.lists(st.sampled_from(HEADERS), max_size=3))
        changes["headers"] = {**case.headers, **dict(extra)}
    if case.method not in ("GET", "HEAD", "OPTIONS"):
        changes |= _other_body(draw, case, of)
    return replace(case, **changes)


def _one_in(number: int) -> SearchStrategy[bool]:
    return st.integers(1, number).map(lambda drawn: drawn == number)


def _other_path(draw: DrawFn, path: str) -> str:
    segments = path.split("/")
    place = draw(st.integers(1, len(segments) - 1))
    changed = draw(
        st.one_of(st.sampled_from(ODD_SEGMENTS), texts.map(lambda text: quote(text, safe="", errors="replace")))
    )
    kind = draw(st.sampled_from(("replace", "replace", "append", "double")))
    if kind == "replace":
        segments[place] = changed
    elif kind == "append":
        segments.append(changed)
    else:
        segments.insert(place, "")
    return "/".join(segments) if segments[1:] != [""] else "/"


def _other_query(draw: DrawFn, case: Case, of: Known) -> str:
    pairs = parse_qsl(case.query, keep_blank_values=True) if draw(st.booleans()) else []
    names = st.sampled_from([*of.parameters, "page", "q", "unknown"])
    for name in draw(st.lists(names, max_size=4)):
        value = draw(st.one_of(st.sampled_from(of.parameters.get(name, ("1",))), texts))
        pairs.insert(draw(st.integers(0, len(pairs))), (name, value))
    query = "&".join(f"{quote(name)}={quote(value, errors='replace')}" for name, value in pairs)
    return query + draw(st.sampled_from(("", "", "", "&", "&&a", "&%FF=%FE", "&a=%", "&page")))


def _other_body(draw: DrawFn, case: Case, of: Known) -> dict[str, Any]:
    if draw(_one_in(10)):
        headers = {"Content-Type": "application/json"} | dict(case.headers)
        return {"json": None, "data": None, "body": draw(st.sampled_from(BODIES)), "headers": headers}
    if not isinstance(case.json, dict):
        return {}
    body = dict(case.json)
    for name in draw(st.lists(st.sampled_from([*of.fields, "unknown"]), max_size=3)):
        if draw(_one_in(6)):
            body.pop(name, None)
        else:
            seen = of.fields.get(name, (1,))
            body[name] = draw(st.one_of(st.sampled_from(range(len(seen))).map(seen.__getitem__), values))
    return {"json": body}


# --- what is found


@dataclass
class Tally:
    """What was asked, by endpoint and status."""

    sequences: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.answers.total()

    def count(self, steps: Steps, answers: Sequence[Observation]) -> None:
        self.sequences += 1
        self.answers.update((step.key, answer.status) for step, answer in zip(steps, answers, strict=True))


def differences(
    steps: Steps, control: tuple[list[Observation], Traces], candidate: tuple[list[Observation], Traces]
) -> list[str]:
    """Where the two sides answered unlike, left unlike things behind, or broke; empty when all is well."""
    found = []
    mask = set(MASK)
    for number, (step, expected, answer) in enumerate(zip(steps, control[0], candidate[0], strict=True), 1):
        mask |= known()[step.key].mask
        if step.method not in ("GET", "HEAD", "OPTIONS"):
            mask |= {"header.etag", "header.last-modified"}  # of files written a moment ago
        if expected.status == 500:  # 502 and 503 are answers: something else is down
            found.append(f"{number}: {step.method} {step.target}: Flask breaks")
        verdict = compare(_timeless(expected), _timeless(answer), mask)
        found += [f"{number}: {step.method} {step.target}: {difference}" for difference in verdict.differences]
    return found + [f"left behind: {line}" for line in _unlike(control[1], candidate[1])]


def _unlike(one: Traces, other: Traces) -> list[str]:
    lines = [
        f"{table}: {row}"
        for table in one.rows
        for row in {*map(_timeless_row, one.rows[table])} ^ {*map(_timeless_row, other.rows[table])}
    ]
    return lines + sorted(f"{name}: {digest}" for name, digest in {*one.files.items()} ^ {*other.files.items()})


_ISO = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?")
_HTTP_DATE = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (?:[A-Z][a-z]{2}) \d{4} \d\d:\d\d:\d\d GMT")
_NEAR = timedelta(days=8)
_STEP_S = 600


def _timeless(answer: Observation) -> Observation:
    """With the times around now, which no two requests share, told in steps of ten minutes from now."""
    return replace(answer, body=_without_times(answer.body))


def _timeless_row(row: Row) -> str:
    return _without_times(repr(row).encode()).decode()  # a cached answer is a text with times in it


def _without_times(text: bytes) -> bytes:
    text = _ISO.sub(lambda found: _from_now(found[0], datetime.fromisoformat), text)
    return _HTTP_DATE.sub(lambda found: _from_now(found[0], parsedate_to_datetime), text)


def _from_now(text: bytes, parse: Any) -> bytes:
    try:
        away = parse(text.decode()).replace(tzinfo=UTC) - datetime.now(UTC)
    except ValueError:
        return text
    return text if abs(away) > _NEAR else f"in {round(away.total_seconds() / _STEP_S)} steps".encode()


def describe(steps: Steps) -> str:
    """To play it again by hand, and to make a case of it."""
    lines = []
    for step in steps:
        parts = [step.method, step.target, f"as {step.user}", json.dumps(dict(step.headers))]
        given = step.body if step.json is None else json.dumps(step.json)
        lines.append(" ".join(parts) + (f" {given!r}" if given is not None else ""))
    return "\n".join(lines)
