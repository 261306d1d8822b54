"""When are two answers equal? One definition, for parity tests and for production shadows.

A difference has a place: `status`, `error`, `header.NAME`, `cookie.NAME.ATTRIBUTE`, `$.items[3].title` in a JSON body,
`body.bytes` where equal JSON is spelled differently, and `body` for everything else.

An ignore pattern is a place, with `*` for any one step or part of a name, and `..` for any depth: `header.etag`,
`cookie.*.value`, `$.items[*].updated_at`, `$.user.*_at`, `$..timestamp`. It covers its place and all that lies below.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from hashlib import sha256
from json import dumps, loads
from typing import Any

import orjson

from .model import Difference, Observation, Verdict

MAX_DIFFERENCES = 100  # of each kind in one verdict: those that count and those ignored
_EXCERPT = 200  # characters or bytes of a value

_SETS = frozenset({"allow", "vary"})  # comma-separated, in any order
_HEADERS = frozenset(
    {
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-range",
        "content-type",
        "etag",
        "last-modified",
        "location",
        "retry-after",
        "www-authenticate",
    }
    | _SETS
)
_COOKIE_ATTRIBUTES = ("value", "path", "domain", "secure", "httponly", "samesite", "max-age", "expires", "partitioned")


class Absent(Enum):
    """Stands where one side has nothing at all, which is not the same as `null`."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT

Place = tuple[str | int, ...]  # ("$", "items", 3, "title"), ("cookie", "sid", "path")
Found = tuple[Place, object, object]


def compare(control: Observation, candidate: Observation, ignore: Collection[str] = ()) -> Verdict:
    """All places where the two answers differ, the ignored ones apart.

    Raises ValueError for a pattern that `check_pattern` would refuse.
    """
    patterns = _compile_all(tuple(ignore))
    differences: list[Difference] = []
    ignored: list[Difference] = []
    for place, ours, theirs in _differences(control, candidate):
        kind = ignored if any(_covers(pattern, place) for pattern in patterns) else differences
        if len(kind) < MAX_DIFFERENCES:
            kind.append(Difference(_spell(place), _show(ours), _show(theirs)))
        elif kind is differences:
            break
    return Verdict(tuple(differences), tuple(ignored))


def check_pattern(pattern: str) -> None:
    """Raise ValueError, saying what was expected, unless `pattern` is an ignore pattern."""
    _compile(pattern)


def _differences(control: Observation, candidate: Observation) -> Iterator[Found]:
    if control.status != candidate.status:
        yield ("status",), control.status, candidate.status
    if control.error != candidate.error:
        yield ("error",), control.error, candidate.error
    if control.headers != candidate.headers:
        ours, theirs = _headers(control), _headers(candidate)
        for name in sorted(_HEADERS):
            yield from _differ(("header", name), ours.get(name, ABSENT), theirs.get(name, ABSENT))
        yield from _cookie_differences(_cookies(control), _cookies(candidate))
    if control.body != candidate.body:
        yield from _body_differences(control, candidate)


def _differ(place: Place, ours: object, theirs: object) -> Iterator[Found]:
    if ours != theirs:
        yield place, ours, theirs


# --- headers and cookies ------------------------------------------------------------------------------------------


def _headers(answer: Observation) -> dict[str, str]:
    """The headers that matter, by name; repeated ones joined, sets in alphabetical order."""
    headers: dict[str, str] = {}
    for raw, value in answer.headers:
        name = raw.lower()
        if name in _HEADERS:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    for name in _SETS & headers.keys():
        members = {member.strip() for member in headers[name].split(",")}
        headers[name] = ", ".join(sorted({m.lower() for m in members} if name == "vary" else members))
    return headers


def _cookies(answer: Observation) -> dict[str, list[dict[str, str | bool]]]:
    """By name, in order: several cookies may share a name, with other paths."""
    cookies: dict[str, list[dict[str, str | bool]]] = {}
    for raw, line in answer.headers:
        if raw.lower() == "set-cookie":
            pair, *rest = line.split(";")
            name, _, value = pair.partition("=")
            cookie: dict[str, str | bool] = {"value": value.strip()}
            for part in rest:
                attribute, _, setting = part.partition("=")
                cookie.update([_attribute(attribute.strip().lower(), setting.strip())])
            cookies.setdefault(name.strip(), []).append(cookie)
    return cookies


def _attribute(name: str, setting: str) -> tuple[str, str | bool]:
    """As browsers read it: flags and dates by presence, because dates move, and SameSite in any case."""
    if name in ("secure", "httponly", "partitioned", "expires"):
        return name, True
    return name, setting.lower() if name in ("samesite", "domain") else setting


def _cookie_differences(
    ours: Mapping[str, list[dict[str, str | bool]]], theirs: Mapping[str, list[dict[str, str | bool]]]
) -> Iterator[Found]:
    for name in sorted(ours.keys() | theirs.keys()):
        control, candidate = ours.get(name, []), theirs.get(name, [])
        if len(control) != len(candidate):
            yield ("cookie", name), _names(control), _names(candidate)
            continue
        for mine, other in zip(control, candidate, strict=True):
            for attribute in _COOKIE_ATTRIBUTES:
                place = ("cookie", name, attribute)
                yield from _differ(place, mine.get(attribute, ABSENT), other.get(attribute, ABSENT))


def _names(cookies: list[dict[str, str | bool]]) -> object:
    """How often a cookie is set and where; its value is nobody's business."""
    return ABSENT if not cookies else f"{len(cookies)}, path " + ", ".join(str(c.get("path", "")) for c in cookies)


# --- bodies -------------------------------------------------------------------------------------------------------


def _body_differences(control: Observation, candidate: Observation) -> Iterator[Found]:
    if _is_json(control) and _is_json(candidate):
        try:
            ours, theirs = orjson.loads(control.body), orjson.loads(candidate.body)
        except orjson.JSONDecodeError:  # broken, not UTF-8, NaN, or deeper than 1 024 levels
            pass
        else:
            first = None
            for first in _json_differences(ours, theirs):
                yield first
            if first is None:
                yield ("body", "bytes"), *_excerpts(control.body, candidate.body)
            return
    yield ("body",), *_excerpts(control.body, candidate.body)


def _is_json(answer: Observation) -> bool:
    kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
    media = kind.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def _json_differences(control: object, candidate: object) -> Iterator[Found]:
    """In the order of the control. The order of keys is free, that of lists is not, and 1, 1.0, True, "1" differ."""
    left: list[Found] = [(("$",), control, candidate)]
    while left:
        place, ours, theirs = left.pop()
        if type(ours) is not type(theirs):
            yield place, ours, theirs
        elif isinstance(ours, dict | list):
            steps = _steps(ours, theirs)
            left += [((*place, step), one, other) for step, one, other in reversed(steps)]
        elif ours != theirs:
            yield place, ours, theirs


def _steps(ours: Any, theirs: Any) -> list[tuple[str | int, object, object]]:
    """The members of two dictionaries, or of two lists, that may differ."""
    if isinstance(ours, list):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    steps = []
    for key, one in ours.items():
        other = theirs.get(key, ABSENT)
        kind = type(one)
        if kind is not type(other) or kind is dict or kind is list or one != other:
            steps.append((key, one, other))
    steps += [(key, ABSENT, other) for key, other in theirs.items() if key not in ours]
    return steps


def _excerpts(control: bytes, candidate: bytes) -> tuple[str, str]:
    """Both sides around the first byte that differs, each with its length and hash."""
    at = _first_difference(control, candidate)
    return _excerpt(control, at), _excerpt(candidate, at)


def _excerpt(body: bytes, at: int) -> str:
    start = max(0, at - _EXCERPT // 4)
    text = body[start : start + _EXCERPT].decode("utf-8", "replace")
    return f"byte {at} of {len(body)}, sha256 {sha256(body).hexdigest()[:16]}: {text}"


def _first_difference(one: bytes, other: bytes, block: int = 4096) -> int:
    at = 0
    while at < len(one) and one[at : at + block] == other[at : at + block]:
        at += block
    pairs = zip(one[at : at + block], other[at : at + block], strict=False)
    short = min(len(one), len(other))
    return next((at + offset for offset, (a, b) in enumerate(pairs) if a != b), short)


def _show(value: object) -> object:
    """The value itself, or so much of it as fits into a report."""
    text = orjson.dumps(value).decode() if isinstance(value, dict | list) else value
    return f"{text[:_EXCERPT]}…" if isinstance(text, str) and len(text) > _EXCERPT else text


# --- places and patterns ------------------------------------------------------------------------------------------

Step = tuple[bool, Callable[[str | int], bool]]  # at any depth below the one before; what it takes
Pattern = tuple[Step, ...]

_PLAIN_KEY = re.compile(r"""[^.\[\]"'*\s]+""")
_QUOTED_KEY = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_JSON_STEP = re.compile(
    rf"""(?P<dots>\.\.?)(?P<key>[^.\[\]"'\s]+)|(?P<deep>\.\.)?\[(?P<item>\*|[0-9]+|(?P<quoted>{_QUOTED_KEY}))\]"""
)
_EXPECTED = "expected status, error, header.NAME, cookie.NAME, cookie.NAME.ATTRIBUTE, body, body.bytes or a path from $"


def _spell(place: Place) -> str:
    if place[0] != "$":
        return ".".join(map(str, place))
    return "$" + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if _PLAIN_KEY.fullmatch(step) else f"[{dumps(step)}]"
        for step in place[1:]
    )


def _covers(pattern: Pattern, place: Place) -> bool:
    """Whether the pattern describes the place or one above it."""
    reached = {0}  # how many steps of the pattern may be behind us
    for here in place:
        following = set()
        for index in reached:
            deep, takes = pattern[index]
            if deep:
                following.add(index)
            if takes(here):
                following.add(index + 1)
        if len(pattern) in following:
            return True
        reached = following
    return False


@lru_cache(256)
def _compile_all(patterns: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(_compile(pattern) for pattern in patterns)


@lru_cache(1024)
def _compile(text: str) -> Pattern:
    if text.startswith("$"):
        return (_step("$"), *_json_steps(text))
    first, _, rest = text.partition(".")
    if text in ("status", "error", "body", "body.bytes"):
        return tuple(_step(part) for part in text.split("."))
    if first == "header" and rest:
        return _step("header"), _step(rest.lower())
    if first == "cookie" and rest:
        name, _, attribute = rest.rpartition(".")
        if not name:
            return _step("cookie"), _step(rest)
        if attribute != "*" and attribute.lower() not in _COOKIE_ATTRIBUTES:
            raise ValueError(f"{text!r}: expected cookie.NAME and one of {', '.join(_COOKIE_ATTRIBUTES)}, or *")
        return _step("cookie"), _step(name), _step(attribute.lower())
    raise ValueError(f"{text!r}: {_EXPECTED}")


def _json_steps(text: str) -> Iterator[Step]:
    at = 1
    while at < len(text):
        found = _JSON_STEP.match(text, at)
        if found is None:
            raise ValueError(f'{text!r}: expected .KEY, ..KEY, [NUMBER], ["KEY"] or [*] at {text[at:]!r}')
        deep = ".." in (found["dots"], found["deep"])
        if found["quoted"]:
            yield _exactly(loads(found["quoted"]), deep=deep)
        elif found["item"] and found["item"] != "*":
            yield _exactly(int(found["item"]), deep=deep)
        else:
            yield _step(found["key"] or "*", deep=deep)
        at = found.end()


def _step(text: str, *, deep: bool = False) -> Step:
    """One step of a pattern; an asterisk stands for any text, and alone for any step."""
    if "*" not in text:
        return _exactly(text, deep=deep)
    glob = re.compile(translate(re.sub(r"[?[]", r"[\g<0>]", text)))
    return deep, lambda here: glob.match(str(here)) is not None


def _exactly(wanted: str | int, *, deep: bool) -> Step:
    return deep, lambda here: here == wanted
