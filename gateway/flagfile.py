"""What does a flag file say, and how is one thing in it changed? Text in, values or text out.

The events of a YAML parser are turned into nodes that know their lines and characters. So every error has a line,
numbers are read from their digits and never through floats, nothing is referenced or constructed (there are no YAML
bombs), and an edit keeps every character but those it is about.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, ClassVar, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError
from typing_extensions import override

from .compare import check_pattern
from .errors import FlagFileError
from .model import FULL_BP, Backend, Flag, FlagSet, Rollout


def parse_flags(text: str, known: Collection[str] | None, path: str = "") -> FlagSet:
    """The flags that `text` declares for the routes in `known` (None: any route).

    Raises FlagFileError with line, key, what was expected and the nearest valid name. Numbers are read from their
    digits, never through floats; nothing is referenced or constructed, so there are no YAML bombs.
    """
    try:
        return replace(_flag_set(_compose(text), known), version=version_of(text))
    except _Refused as error:
        raise FlagFileError(error.message, path=path, line=error.line, key=printable(error.key, 200)) from None


def printable(text: str, limit: int = 500) -> str:
    """`text` for a terminal or a log: control characters escaped, and cut to `limit`."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown + "…" if len(text) > limit else shown


def nearest(name: str, names: Collection[str]) -> str:
    """A question to append to an error message: the valid name that looks most like `name`."""
    near = get_close_matches(name[:200], names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def percent(weight_bp: int) -> int | float:
    """Basis points as a person writes them: 25, 12.5, 0.01."""
    return weight_bp // 100 if weight_bp % 100 == 0 else weight_bp / 100


def basis_points(digits: str) -> int | None:
    """`12.34` as 1234, exactly; None if it is no percentage."""
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,2}))?", digits, re.ASCII)
    weight_bp = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else FULL_BP + 1
    return weight_bp if weight_bp <= FULL_BP else None


def version_of(text: str) -> str:
    """What names a version of the file: the first 12 hex digits of its SHA-256."""
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def no_such_route(key: str, known: Collection[str]) -> str:
    """An error message for a key that is not in `known`."""
    return f"no such route{nearest(key, known)}"


# --- the rules ----------------------------------------------------------------------------------------------------

PERCENT = "a percentage from 0 to 100 with at most two decimals"
OVERRIDES = {"none": None, "legacy": Backend.LEGACY, "fastapi": Backend.FASTAPI}
_WEIGHTS = {"legacy": 0, "fastapi": FULL_BP}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NO_TEXT = re.compile(  # what YAML 1.2 takes for null, a boolean or a number when it stands without quotes
    r"|~|null|true|false|[-+]?(\.\d+|\d+(\.\d*)?)(e[-+]?\d+)?|0o[0-7]+|0x[0-9a-f]+|[-+]?\.inf|\.nan",
    re.IGNORECASE | re.ASCII,
)


def _flag_set(root: "_Node", known: Collection[str] | None) -> FlagSet:
    parts = _parts(root, "", ("version", "override", "rollouts", "routes"))
    if "version" not in parts:
        raise _Refused(root.line, "missing; expected `version: 1`", "version")
    with _naming("version"):
        _exactly(parts["version"], "1")
    with _naming("override"):
        override = _override(parts["override"]) if "override" in parts else None
    rollouts = {name: _rollout(name, node) for name, (_, node) in _entries(parts, "rollouts").items()}
    flags = {}
    for key, (label, node) in _entries(parts, "routes").items():
        if known is not None and key not in known:
            raise _Refused(label.line, no_such_route(key, known), key)
        with _naming(key):
            flags[key] = _flag(key, node, rollouts)
    return FlagSet("", override, flags, rollouts)


def _flag(key: str, node: "_Node", rollouts: Collection[str]) -> Flag:
    if isinstance(node, _Scalar):
        weight_bp = _WEIGHTS.get(node.text, basis_points(node.text) if node.plain else None)
        if weight_bp is None:
            raise _unexpected(node, f"legacy, fastapi, {PERCENT}, or a mapping")
        return Flag(key, weight_bp)
    flag = Flag(key, **_fields(node, key, _FLAG))
    if flag.rollout and flag.rollout not in rollouts:
        line = _mapping(node)["rollout"][1].line
        raise _Refused(line, f"no such rollout: {flag.rollout}{nearest(flag.rollout, rollouts)}", f"{key}.rollout")
    return flag


def _rollout(name: str, node: "_Node") -> Rollout:
    key = f"rollouts.{name}"
    with _naming(key):
        values = _fields(node, key, _ROLLOUT)
    for required in ("steps", "every"):
        if _ROLLOUT[required][0] not in values:
            raise _Refused(node.line, "missing", f"{key}.{required}")
    return Rollout(name, **values)


def _exactly(node: "_Node", text: str) -> None:
    if not (isinstance(node, _Scalar) and node.plain and node.text == text):
        raise _unexpected(node, text)


def _override(node: "_Node") -> Backend | None:
    if not isinstance(node, _Scalar) or node.text not in OVERRIDES:
        raise _unexpected(node, "none, legacy or fastapi")
    return OVERRIDES[node.text]


def _percentage(node: "_Node") -> int:
    weight_bp = basis_points(node.text) if isinstance(node, _Scalar) and node.plain else None
    if weight_bp is None:
        raise _unexpected(node, PERCENT)
    return weight_bp


def _share(node: "_Node") -> int:
    digits, sign, rest = node.text.partition("%") if isinstance(node, _Scalar) else ("", "", "")
    share_bp = basis_points(digits) if sign and not rest else None
    if share_bp is None:
        raise _unexpected(node, "a percentage like 1% or 0.05%")
    return share_bp


def _steps(node: "_Node") -> tuple[int, ...]:
    items = _items(node, "a list of percentages")
    steps = tuple(map(_percentage, items))
    for item, step, following in zip(items[1:], steps, steps[1:], strict=False):
        if following <= step:
            raise _unexpected(item, f"more than {percent(step)}")
    if not steps:
        raise _unexpected(node, "at least one percentage")
    return steps


def _duration(node: "_Node") -> float:
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", node.text, re.ASCII) if isinstance(node, _Scalar) else None
    if not match:
        raise _unexpected(node, "a time like 30s, 10m, 2h or 7d")
    return float(int(match[1]) * _SECONDS[match[2]])


def _number(node: "_Node", pattern: str, expected: str) -> str:
    if not isinstance(node, _Scalar) or not node.plain or not re.fullmatch(pattern, node.text, re.ASCII):
        raise _unexpected(node, expected)
    return node.text


def _count(node: "_Node") -> int:
    return int(_number(node, r"[1-9]\d{0,8}", "a whole number from 1"))


def _factor(node: "_Node") -> float:
    return float(_number(node, r"[1-9]\d{0,3}(\.\d{1,4})?", "a number from 1"))


def _text(node: "_Node") -> str:
    if not isinstance(node, _Scalar) or (node.plain and _NO_TEXT.fullmatch(node.text)):
        raise _unexpected(node, "a text")
    if not node.text or not node.text.isprintable():
        raise _unexpected(node, "a text without control characters")
    return node.text


def _containment(node: "_Node") -> bool:
    words = {"rollback": True, "never": False}
    if not isinstance(node, _Scalar) or node.text not in words:
        raise _unexpected(node, "rollback or never")
    return words[node.text]


def _subjects(node: "_Node") -> frozenset[str]:
    return frozenset(map(_text, _items(node, "a list of subjects")))


def _places(node: "_Node") -> tuple[str, ...]:
    return tuple(map(_place, _items(node, "a list of places")))


def _place(node: "_Node") -> str:
    place = _text(node)
    try:
        check_pattern(place)
    except ValueError as error:
        raise _Refused(node.line, printable(str(error))) from None
    return place


_Fields = Mapping[str, tuple[str, Callable[["_Node"], Any]]]  # key in the file -> field, how to read it
_FLAG: _Fields = {
    "weight": ("weight_bp", _percentage),
    "shadow": ("shadow_bp", _percentage),
    "cohort": ("cohort", _text),
    "pins": ("pins", _subjects),
    "ignore": ("ignore", _places),
    "rollout": ("rollout", _text),
    "shadow_writes": ("shadow_writes", _containment),
}
_ROLLOUT: _Fields = {
    "steps": ("steps_bp", _steps),
    "every": ("every_s", _duration),
    "min_requests": ("min_requests", _count),
    "max_errors": ("max_errors_bp", _share),
    "max_mismatches": ("max_mismatches_bp", _share),
    "max_p95_ratio": ("max_p95_ratio", _factor),
    "drill": ("drill_s", _duration),
}


def _fields(node: "_Node", key: str, known: _Fields) -> dict[str, Any]:
    values = {}
    for name, part in _parts(node, key, known).items():
        field, read = known[name]
        with _naming(f"{key}.{name}"):
            values[field] = read(part)
    return values


def _parts(node: "_Node", key: str, names: Collection[str]) -> dict[str, "_Node"]:
    """The values of a mapping that may have no other keys than `names`."""
    items = _mapping(node)
    for name, (label, _) in items.items():
        if name not in names:
            raise _Refused(label.line, f"unknown key {printable(name, 100)!r}{nearest(name, names)}", key)
    return {name: value for name, (_, value) in items.items()}


def _entries(parts: Mapping[str, "_Node"], name: str) -> "Mapping[str, tuple[_Scalar, _Node]]":
    """Label and value of each entry; none where nothing follows the name."""
    node = parts.get(name)
    if node is None or (isinstance(node, _Scalar) and node.is_nothing):
        return {}
    with _naming(name):
        return _mapping(node)


def _mapping(node: "_Node") -> "Mapping[str, tuple[_Scalar, _Node]]":
    if not isinstance(node, _Map):
        raise _unexpected(node, "a mapping")
    return node.items


def _items(node: "_Node", expected: str) -> "tuple[_Node, ...]":
    if not isinstance(node, _List):
        raise _unexpected(node, expected)
    return node.items


class _Refused(Exception):
    """A rule that the file breaks; the key is added by whoever knows it."""

    def __init__(self, line: int, message: str, key: str = "") -> None:
        super().__init__(message)
        self.line, self.message, self.key = line, message, key


def _unexpected(node: "_Node", expected: str) -> _Refused:
    return _Refused(node.line, f"expected {expected}, not {node.shown}")


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        error.key = error.key or key
        raise


# --- the YAML -----------------------------------------------------------------------------------------------------

_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _Node:
    """A piece of the file: its first line, counted from 1, and where its characters begin and end."""

    line: int
    start: int
    end: int

    @property
    def shown(self) -> str:
        return "this"


@dataclass(frozen=True, slots=True)
class _Scalar(_Node):
    text: str
    plain: bool  # without quotes: may be a number

    @property
    def is_nothing(self) -> bool:
        return self.plain and not self.text

    @property
    @override
    def shown(self) -> str:
        text = printable(self.text, 60)
        return (text or "nothing") if self.plain else f"'{text}'"


@dataclass(frozen=True, slots=True)
class _List(_Node):
    items: tuple[_Node, ...]

    @property
    @override
    def shown(self) -> str:
        return "a list"


@dataclass(frozen=True, slots=True)
class _Map(_Node):
    items: Mapping[str, tuple[_Scalar, _Node]]
    flow: bool  # in braces

    @property
    @override
    def shown(self) -> str:
        return "a mapping"


def _compose(text: str) -> _Map:
    """The outermost mapping of a complete file of one plain document."""
    if not text.strip():
        raise _Refused(1, "the file is empty; expected `version: 1`")
    if not text.endswith("\n"):
        raise _Refused(text.count("\n") + 1, "cut off: the last line does not end with a newline")
    try:
        events = YAML(typ="safe", pure=True).parse(text)
        documents = [_document(event, events) for event in events if isinstance(event, DocumentStartEvent)]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _Refused(line, f"not YAML: {printable(error.problem or 'syntax error')}") from None
    except ReaderError as error:
        raise _Refused(text.count("\n", 0, error.position) + 1, "not YAML: a control character") from None
    if not documents:
        raise _Refused(1, "the file is empty; expected `version: 1`")
    if len(documents) > 1:
        raise _Refused(documents[1].line, "expected one document")
    if not isinstance(documents[0], _Map):
        raise _unexpected(documents[0], "a mapping")
    return documents[0]


def _document(start: DocumentStartEvent, events: Iterator[Any]) -> _Node:
    if start.version or start.tags:
        raise _Refused(1, "directives are not allowed")
    return _node(next(events), events, 0)


def _node(event: Any, events: Iterator[Any], depth: int) -> _Node:
    """The node that begins with `event`, and takes what belongs to it from `events`."""
    line, start, end = event.start_mark.line + 1, event.start_mark.index, event.end_mark.index
    if event.anchor is not None:
        raise _Refused(line, "anchors and aliases are not allowed")
    if event.tag is not None:
        raise _Refused(line, "tags are not allowed")
    if depth > _MAX_DEPTH:
        raise _Refused(line, f"nested more than {_MAX_DEPTH} deep")
    if isinstance(event, ScalarEvent):
        return _Scalar(line, start, end, event.value, plain=event.style is None)

    parts: list[_Node] = []
    while not isinstance(part := next(events), MappingEndEvent | SequenceEndEvent):
        parts.append(_node(part, events, depth + 1))
    if isinstance(event, SequenceStartEvent):
        end = part.end_mark.index if event.flow_style else parts[-1].end
        return _List(line, start, end, tuple(parts))
    items = dict(_pairs(parts))
    end = part.end_mark.index if event.flow_style else list(items.values())[-1][1].end  # not after comments below
    return _Map(line, start, end, items, flow=bool(event.flow_style))


def _pairs(parts: Sequence[_Node]) -> Iterator[tuple[str, tuple[_Scalar, _Node]]]:
    lines: dict[str, int] = {}
    for label, value in zip(parts[::2], parts[1::2], strict=True):
        if not isinstance(label, _Scalar):
            raise _unexpected(label, "a name")
        if label.text in lines:
            raise _Refused(label.line, f"given twice, first in line {lines[label.text]}", label.text)
        lines[label.text] = label.line
        if isinstance(value, _Scalar) and value.is_nothing:  # the parser finds it only where the next entry begins
            yield label.text, (label, replace(value, line=label.line, start=label.end, end=label.end))
        else:
            yield label.text, (label, value)


# --- edits --------------------------------------------------------------------------------------------------------


class Change(Protocol):
    """One change of the flag file: what it means, and how it is written."""

    @property
    def action(self) -> str:
        """What the audit trail calls it."""

    @property
    def key(self) -> str: ...

    def value(self, flags: FlagSet) -> float | str:
        """What the audit trail records, before and after."""

    def flags(self, flags: FlagSet) -> FlagSet:
        """What shall be in force afterwards."""

    def text(self, text: str) -> str:
        """The file that says so."""


def edit(text: str, change: Change, known: Collection[str] | None, path: str = "") -> tuple[str, FlagSet]:
    """The text after one change, and what it says: exactly what the change means, or FlagFileError."""
    wanted = change.flags(parse_flags(text, known, path))
    with suppress(FlagFileError, ValueError):
        edited = change.text(text)
        flags = parse_flags(edited, known)
        if flags == replace(wanted, version=flags.version):
            return edited, flags
    raise FlagFileError("written in a way that only a person can edit", path=path, key=printable(change.key, 200))


@dataclass(frozen=True, slots=True)
class SetWeight:
    """Serve this share of the subjects of one route from FastAPI."""

    key: str
    weight_bp: int
    action: ClassVar[str] = "weight"

    def value(self, flags: FlagSet) -> float | str:
        return percent(flags[self.key].weight_bp)

    def flags(self, flags: FlagSet) -> FlagSet:
        flag = replace(flags[self.key], weight_bp=self.weight_bp)
        return replace(flags, flags={**flags.flags, self.key: flag})

    def text(self, text: str) -> str:
        document, names = _Document(text), ["routes", self.key]
        if isinstance(document.find(names), _Map):
            names.append("weight")
        return document.put(names, str(percent(self.weight_bp)))


@dataclass(frozen=True, slots=True)
class SetShadow:
    """Replay this share of the requests of one route on the other side."""

    key: str
    shadow_bp: int
    action: ClassVar[str] = "shadow"

    def value(self, flags: FlagSet) -> float | str:
        return percent(flags[self.key].shadow_bp)

    def flags(self, flags: FlagSet) -> FlagSet:
        flag = replace(flags[self.key], shadow_bp=self.shadow_bp)
        return replace(flags, flags={**flags.flags, self.key: flag})

    def text(self, text: str) -> str:
        return _Document(text).put_beside(self.key, "shadow", str(percent(self.shadow_bp)))


@dataclass(frozen=True, slots=True)
class SetRollout:
    """Let the weight of one route follow a plan of the same file."""

    key: str
    plan: str
    action: ClassVar[str] = "rollout"

    def value(self, flags: FlagSet) -> float | str:
        return flags[self.key].rollout

    def flags(self, flags: FlagSet) -> FlagSet:
        if self.plan not in flags.rollouts:
            message = f"no such rollout: {printable(self.plan)!r}{nearest(self.plan, flags.rollouts)}"
            raise FlagFileError(message, key=printable(self.key))
        flag = replace(flags[self.key], rollout=self.plan)
        return replace(flags, flags={**flags.flags, self.key: flag})

    def text(self, text: str) -> str:
        return _Document(text).put_beside(self.key, "rollout", _name(self.plan))


@dataclass(frozen=True, slots=True)
class SetOverride:
    """Throw the panic switch, or release it."""

    word: str
    key: str = "override"
    action: ClassVar[str] = "override"

    def value(self, flags: FlagSet) -> float | str:
        return flags.override.value if flags.override else "none"

    def flags(self, flags: FlagSet) -> FlagSet:
        return replace(flags, override=OVERRIDES[self.word])

    def text(self, text: str) -> str:
        return _Document(text).put(["override"], self.word, after="version")


_BY_PROGRAMS = ("weight", "shadow", "rollout")


def differences(old: FlagSet, new: FlagSet) -> Iterator[tuple[str, str, float | str, float | str]]:
    """What differs: action and key as in the audit trail, before and after. Plans and rarer fields are just texts."""
    if old.override != new.override:
        switch = SetOverride("none")
        yield switch.action, switch.key, switch.value(old), switch.value(new)
    for key in sorted(old.flags.keys() | new.flags.keys()):
        for change in (SetWeight(key, 0), SetShadow(key, 0), SetRollout(key, "")):
            if change.value(old) != change.value(new):
                yield change.action, key, change.value(old), change.value(new)
        yield from _rest(key, old[key], new[key], {n: f for n, (f, _) in _FLAG.items() if n not in _BY_PROGRAMS})
    for name in sorted(old.rollouts.keys() | new.rollouts.keys()):
        plans = old.rollouts.get(name), new.rollouts.get(name)
        yield from _rest(f"rollouts.{name}", *plans, {n: f for n, (f, _) in _ROLLOUT.items()})


def _rest(
    key: str, old: Flag | Rollout | None, new: Flag | Rollout | None, names: Mapping[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """What differs in fields that no program edits. `names`: key in the file -> field."""
    changed = {n: f for n, f in names.items() if getattr(old, f, None) != getattr(new, f, None)}
    if changed:
        yield "file", key, _written(old, changed), _written(new, changed)


def _written(values: Flag | Rollout | None, names: Mapping[str, str]) -> str:
    if values is None:
        return "none"
    parts = {name: getattr(values, field) for name, field in names.items()}
    return ", ".join(f"{name}: {_shown(value, names[name])}" for name, value in parts.items())


def _shown(value: object, field: str) -> str:
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item, field) for item in value)}]"
    if isinstance(value, int) and field.endswith("_bp"):
        return f"{percent(value)}%"
    return str(value) or "none"


class _Document:
    """The text of a valid flag file. An edit keeps every character but those it is about."""

    def __init__(self, text: str) -> None:
        self._text, self._root = text, _compose(text)
        self._newline = "\r\n" if "\r\n" in text else "\n"

    def find(self, names: Sequence[str]) -> _Node | None:
        node: _Node | None = self._root
        for name in names:
            _, node = node.items.get(name, (None, None)) if isinstance(node, _Map) else (None, None)
        return node

    def put(self, names: Sequence[str], value: str, after: str = "") -> str:
        """The text with `value` under `names`; what is missing is added behind the entry `after`, or the last one."""
        parent = self._root
        for depth, name in enumerate(names):
            rest = names[depth + 1 :]
            if name not in parent.items:
                return self._add(parent, names[depth:], value, after)
            label, node = parent.items[name]
            if not rest:
                return self._splice(node.start, node.end, value)
            if not isinstance(node, _Map) or not node.items:
                return self._fill(parent, label, node, rest, value)
            parent = node
        raise AssertionError("no names")

    def put_beside(self, key: str, name: str, value: str) -> str:
        """The text with `name: value` in the flag of `key`; a flag that is only a word or a number was a weight."""
        flag = self.find(["routes", key])
        if isinstance(flag, _Scalar) and not flag.is_nothing:
            weight = percent(_WEIGHTS[flag.text]) if flag.text in _WEIGHTS else flag.text
            return self.put(["routes", key], f"{{weight: {weight}, {name}: {value}}}")
        return self.put(["routes", key, name], value)

    def _add(self, parent: _Map, names: Sequence[str], value: str, after: str) -> str:
        """A new entry in a mapping that has some."""
        first, _ = next(iter(parent.items.values()))
        if parent.flow:
            return self._splice(first.start, first.start, f"{_inline(names, value)}, ")
        _, last = parent.items.get(after) or list(parent.items.values())[-1]
        return self._add_lines(self._text, last.end - 1, names, value, self._column(first))

    def _fill(self, parent: _Map, label: _Scalar, node: _Node, names: Sequence[str], value: str) -> str:
        """The first entry under `label`, where nothing stands yet, or `{}`."""
        colon = self._text.index(":", label.end) + 1
        end = max(colon, node.end)
        if parent.flow:
            return self._splice(colon, end, f" {{{_inline(names, value)}}}")
        return self._add_lines(self._splice(colon, end, ""), colon, names, value, self._column(label) + 2)

    def _add_lines(self, text: str, position: int, names: Sequence[str], value: str, column: int) -> str:
        """New lines below the one of `position`."""
        below = text.index("\n", position) + 1
        lines = ""
        for depth, name in enumerate(names):
            content = f" {value}" if depth == len(names) - 1 else ""
            lines += f"{' ' * (column + 2 * depth)}{_name(name)}:{content}{self._newline}"
        return text[:below] + lines + text[below:]

    def _splice(self, start: int, end: int, new: str) -> str:
        return self._text[:start] + new + self._text[end:]

    def _column(self, node: _Node) -> int:
        return node.start - (self._text.rfind("\n", 0, node.start) + 1)


def _inline(names: Sequence[str], value: str) -> str:
    first, *rest = names
    return f"{_name(first)}: " + (f"{{{_inline(rest, value)}}}" if rest else value)


def _name(key: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", key, re.ASCII) and not _NO_TEXT.fullmatch(key)
    return key if plain else json.dumps(key, ensure_ascii=False)
