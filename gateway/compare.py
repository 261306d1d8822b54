"""When are two answers equal? One definition, for parity tests and for production shadows.

A difference has a place: `status`, `error`, `header.NAME`, `cookie.NAME.ATTRIBUTE`, `$.items[3].title` in a JSON body,
`$.items[order]` where a list has the same members in another order, `body.bytes` where JSON is spelled differently,
`body` for everything else, and `rows.TABLE[insert].COLUMN` (or `update`, `delete`) in the database.

An ignore pattern is a place, with `*` for any one step or part of a name, and `..` for any depth: `header.etag`,
`cookie.*.value`, `$.items[*].updated_at`, `$.user.*_at`, `$..timestamp`, `rows.*.updated_at`. It covers its place and
all that lies below.
"""

import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from hashlib import sha256
from json import dumps, loads
from typing import Any
from zlib import crc32

import orjson

from .model import Difference, Observation, RowChange, Verdict

MAX_DIFFERENCES = 100  # of each kind in one verdict: those that count and those ignored
_EXCERPT = 200  # characters or bytes of a value
_MAX_ALIKE = 50  # rows among which the most similar one is looked for

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

Place = tuple[
    str | int, ...
]  # ("$", "items", 3, "title"), ("cookie", "sid", "path"), ("rows", "users", "insert", "id")
Found = tuple[Place, object, object]
Rows = Sequence[RowChange]

ORDER = -1  # the step below a list that stands for the order of its members
_NEW = 1 << 32  # from here on steps below a list without order: members that only the candidate has


def compare(control: Observation, candidate: Observation, ignore: Collection[str] = ()) -> Verdict:
    """All places where the two answers differ, the ignored ones apart.

    Raises ValueError for a pattern that `check_pattern` would refuse.
    """
    return _verdict(differences(control, candidate), ignore)


def compare_rows(control: Rows, candidate: Rows, ignore: Collection[str] = ()) -> Verdict:
    """The same for what two runs changed in the database. What it generated anew, such as a number, may differ."""
    return _verdict(row_differences(control, candidate), ignore)


def _verdict(found: Iterator[Found], ignore: Collection[str]) -> Verdict:
    patterns = _compile_all(tuple(ignore))
    counting: list[Difference] = []
    ignored: list[Difference] = []
    for place, ours, theirs in found:
        kind = ignored if any(_covers(pattern, place) for pattern in patterns) else counting
        if len(kind) < MAX_DIFFERENCES:
            kind.append(Difference(spell(place), show(ours), show(theirs)))
        elif kind is counting:
            break
    return Verdict(tuple(counting), tuple(ignored))


def check_pattern(pattern: str) -> None:
    """Raise ValueError, saying what was expected, unless `pattern` is an ignore pattern."""
    _compile(pattern)


def is_covered(place: Place, ignore: Collection[str]) -> bool:
    """Whether one of the patterns describes the place or one above it."""
    return any(_covers(pattern, place) for pattern in _compile_all(tuple(ignore)))


def differences(control: Observation, candidate: Observation, unordered: Container[Place] = ()) -> Iterator[Found]:
    """Each place where the answers differ and the two values; ABSENT where there is none.

    Of the lists `unordered` members are matched with each other wherever they are, and of the objects among them, if
    all keys are made up, in turn.
    """
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
        yield from _body_differences(control, candidate, unordered)


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


def _body_differences(control: Observation, candidate: Observation, unordered: Container[Place]) -> Iterator[Found]:
    if _is_json(control) and _is_json(candidate):
        try:
            ours, theirs = orjson.loads(control.body), orjson.loads(candidate.body)
        except orjson.JSONDecodeError:  # broken, not UTF-8, NaN, or deeper than 1 024 levels
            pass
        else:
            first = None
            for first in _json_differences(ours, theirs, unordered):
                yield first
            if first is None or _are_spelled_differently(control.body, candidate.body):
                yield ("body", "bytes"), *_excerpts(control.body, candidate.body)
            return
    yield ("body",), *_excerpts(control.body, candidate.body)


def _is_json(answer: Observation) -> bool:
    kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
    media = kind.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def _json_differences(control: Any, candidate: Any, unordered: Container[Place]) -> Iterator[Found]:
    """In the order of the control. The order of keys is free, that of lists is not, and 1, 1.0, True, "1" differ."""
    left: list[tuple[Place, Any, Any]] = [(("$",), control, candidate)]
    while left:
        place, ours, theirs = left.pop()
        if type(ours) is not type(theirs):
            yield place, ours, theirs
        elif isinstance(ours, dict):
            if place in unordered and all(map(is_id, (*ours, *theirs))) and not ours.keys() & theirs.keys():
                ours, theirs = dict(enumerate(ours.values())), dict(enumerate(theirs.values()))
            left += _below(place, _unequal(ours, theirs))
        elif isinstance(ours, list):
            members = _unequal(dict(enumerate(ours)), dict(enumerate(theirs)))
            pairing = _pairing(ours, theirs, forced=place in unordered) if members else None
            if pairing:
                orders, members = pairing
                yield from _differ((*place, ORDER), *orders)
            left += _below(place, members)
        elif ours != theirs:
            yield place, ours, theirs


Members = list[tuple[str | int, object, object]]


def _below(place: Place, members: Members) -> list[Found]:
    return [((*place, step), one, other) for step, one, other in reversed(members)]


def _unequal(ours: Mapping[Any, object], theirs: Mapping[Any, object]) -> Members:
    """The members that may differ."""
    members: Members = []
    for key, one in ours.items():
        other = theirs.get(key, ABSENT)
        kind = type(one)
        if kind is not type(other) or kind is dict or kind is list or one != other:
            members.append((key, one, other))
    members += [(key, ABSENT, other) for key, other in theirs.items() if key not in ours]
    return members


# --- lists in another order


def _pairing(
    ours: list[Any], theirs: list[Any], *, forced: bool
) -> tuple[tuple[list[object], list[object]], Members] | None:
    """The orders of both lists, equal if that cannot be told, and pairs of members; None unless they are the same ones
    in another order or, when `forced`, some are new and some gone.
    """
    if not forced and (len(ours) != len(theirs) or len(ours) < 2):
        return None
    names = _names_of_members(ours, theirs, forced=forced)
    if names is None or (not forced and names[0] == names[1]):
        return None
    left: dict[object, deque[object]] = defaultdict(deque)
    for name, other in zip(names[1], theirs, strict=True):
        left[name].append(other)
    members: Members = [
        (at, one, left[name].popleft() if left[name] else ABSENT)
        for at, (name, one) in enumerate(zip(names[0], ours, strict=True))
    ]
    new = [(_NEW + crc32(repr(name).encode()), ABSENT, other) for name, others in left.items() for other in others]
    are_all = not new and all(other is not ABSENT for _, _, other in members)
    return (names if are_all else ([], [])), members + new


def _names_of_members(ours: list[Any], theirs: list[Any], *, forced: bool) -> tuple[list[Any], list[Any]] | None:
    """What the members can be told apart by: a unique field that both sides have, or all of their content."""
    if all(isinstance(member, dict) for member in (*ours, *theirs)):
        for name in sorted(ours[0] if ours else (), key=_likely_name):
            one, other = [m.get(name) for m in ours], [m.get(name) for m in theirs]
            if _are_names(one) and _are_names(other) and (set(one) == set(other) or (forced and {*one} & {*other})):
                return one, other
    texts = [_content(member) for member in ours], [_content(member) for member in theirs]
    return texts if forced or sorted(texts[0]) == sorted(texts[1]) else None


def _likely_name(field: str) -> tuple[bool, bool, str]:
    return field != "id", not field.endswith(("id", "key", "name", "slug")), field


def _are_names(values: list[Any]) -> bool:
    return all(type(value) in (int, str) for value in values) and len(set(values)) == len(values)


def _content(member: object) -> str:
    try:
        return orjson.dumps(member, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError:  # deeper than 254 levels
        return ""


# --- spelling

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def _are_spelled_differently(one: bytes, other: bytes) -> bool:
    """Whether two JSON texts were written by other rules, as far as both show them: spaces, escapes, the end."""
    ours, theirs = _spelling(one), _spelling(other)
    return any(ours[rule] != theirs[rule] for rule in ours.keys() & theirs.keys())


def _spelling(body: bytes) -> dict[str, object]:
    rules: dict[str, object] = {"end": body[len(body.rstrip()) :]}
    if not body.isascii() or b"\\u" in body:
        rules["escapes"] = body.isascii()
    bare = _STRING.sub(b'""', body)
    for mark, spaces in re.findall(rb"([:,])(\s*)", bare[:4096]):
        rules.setdefault(mark.decode(), spaces)
    return rules


# --- excerpts


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


def show(value: object) -> object:
    """The value itself, or so much of it as fits into a report."""
    if isinstance(value, dict | list):
        try:
            value = orjson.dumps(value, default=str).decode()
        except orjson.JSONEncodeError:
            value = f"{type(value).__name__}, too deep to be shown"
    return f"{value[:_EXCERPT]}…" if isinstance(value, str) and len(value) > _EXCERPT else value


# --- rows ---------------------------------------------------------------------------------------------------------


def row_differences(control: Rows, candidate: Rows) -> Iterator[Found]:
    """What two runs did differently to the database, table by table.

    Rows are the same if their keys are, and inserted ones if they are most alike: the database may have numbered them
    anew. Such a number may differ, and so may the columns that refer to it.
    """
    ours, theirs = _by_kind(control), _by_kind(candidate)
    pairs = {place: _pairs(ours.get(place, []), theirs.get(place, [])) for place in sorted({*ours, *theirs})}
    matched = [(mine, yours) for of_kind in pairs.values() for mine, yours in of_kind if mine and yours]
    numbered = [(one.key, other.key) for one, other in matched if _is_numbered(one)]
    for place, of_kind in pairs.items():
        for mine, yours in of_kind:
            if mine and yours:
                yield from _column_differences(place, mine.after or {}, yours.after or {}, numbered)
            else:
                yield place, _content_of(mine), _content_of(yours)


def _by_kind(rows: Rows) -> dict[tuple[str, str, str], list[RowChange]]:
    """By what begins their places."""
    kinds: dict[tuple[str, str, str], list[RowChange]] = defaultdict(list)
    for row in rows:
        kind = "insert" if row.before is None else "delete" if row.after is None else "update"
        kinds["rows", row.table, kind].append(row)
    return kinds


def _pairs(ours: list[RowChange], theirs: list[RowChange]) -> list[tuple[RowChange | None, RowChange | None]]:
    """Which rows are to be compared, None where one side has no such row."""
    left = dict(enumerate(theirs))
    alike = ours and ours[0].before is None and {mine.key for mine in ours} != {yours.key for yours in theirs}
    pairs: list[tuple[RowChange | None, RowChange | None]] = []
    for mine in ours:
        if alike:  # the first of those that are most alike
            best = max(list(left)[:_MAX_ALIKE], key=lambda index: _likeness(mine, left[index]), default=None)
        else:
            best = next((index for index, yours in left.items() if yours.key == mine.key), None)
        pairs.append((mine, None if best is None else left.pop(best)))
    return pairs + [(None, yours) for yours in left.values()]


def _likeness(one: RowChange, other: RowChange) -> int:
    ours, theirs = one.after or {}, other.after or {}
    return sum(column in theirs and value == theirs[column] for column, value in ours.items())


def _is_numbered(row: RowChange) -> bool:
    """Whether this is a new row with a key that says nothing about it."""
    if row.before is not None or not row.after or len(row.key) != 1:
        return False
    names = ("id", "uuid", "pk", f"{row.table.removesuffix('s')}_id")
    return any(row.after.get(name, ABSENT) == row.key[0] for name in names)


def _column_differences(
    place: Place, ours: Mapping[str, object], theirs: Mapping[str, object], numbered: Collection[object]
) -> Iterator[Found]:
    for column in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(column, ABSENT), theirs.get(column, ABSENT)
        if one != other and not (column.endswith(("id", "pk")) and ((one,), (other,)) in numbered):
            yield (*place, column), one, other


def _content_of(row: RowChange | None) -> object:
    return ABSENT if row is None else dict(row.after or row.before or {})


# --- places and patterns ------------------------------------------------------------------------------------------

Step = tuple[bool, Callable[[str | int], bool]]  # at any depth below the one before; what it takes
Pattern = tuple[Step, ...]

_PLAIN_KEY = re.compile(r"""[^.\[\]"'*\s]+""")
_QUOTED_KEY = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_JSON_STEP = re.compile(
    rf"""(?P<dots>\.\.?)(?P<key>[^.\[\]"'\s]+)|(?P<deep>\.\.)?\[(?P<item>\*|order|[0-9]+|(?P<quoted>{_QUOTED_KEY}))\]"""
)
_ID = re.compile(r"[0-9]+|(?=[a-f]*[0-9])[0-9a-f]{8,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SINGULAR = re.compile(rf"\[(?:[0-9]+|new)\]|\.(?:{_ID.pattern})(?=[.\[]|$)", re.IGNORECASE)
_ROWS = re.compile(r"rows\.(?P<table>[^.\[\]\s]+)(\[(?P<kind>insert|update|delete|\*)\])?(\.(?P<column>[^.\[\]\s]+))?")
_EXPECTED = (
    "expected status, error, header.NAME, cookie.NAME, cookie.NAME.ATTRIBUTE, body, body.bytes, a path from $,"
    " rows.TABLE, rows.TABLE.COLUMN or rows.TABLE[insert].COLUMN"
)


def spell(place: Place) -> str:
    """As in a `Difference`; it is the pattern for exactly this place, too."""
    if place[0] == "rows":
        _, table, kind, *column = place
        return ".".join((f"rows.{table}[{kind}]", *map(str, column)))
    if place[0] != "$":
        return ".".join(map(str, place))
    return "$" + "".join(map(_spell_step, place[1:]))


def _spell_step(step: str | int) -> str:
    if isinstance(step, int):
        return "[order]" if step == ORDER else "[new]" if step >= _NEW else f"[{step}]"
    return f".{step}" if _PLAIN_KEY.fullmatch(step) else f"[{dumps(step)}]"


def general(where: str) -> str:
    """A place as spelled, without the numbers of list members and without keys that are ids of something."""
    return _SINGULAR.sub(lambda step: ".*" if step[0][0] == "." else "[*]", where)


def is_id(key: str) -> bool:
    """Whether a key of an object looks made up for one thing: a number, a UUID, a hash."""
    return _ID.fullmatch(key) is not None


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
    if rows := _ROWS.fullmatch(text):
        steps = ["rows", rows["table"], rows["kind"] or "*", *([rows["column"]] if rows["column"] else [])]
        return tuple(map(_step, steps))
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
            yield _exactly(ORDER if found["item"] == "order" else int(found["item"]), deep=deep)
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
