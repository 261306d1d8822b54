"""Where do two runs differ? As `compare` says, and finer: in pages and other texts part by part."""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate, islice
from zlib import crc32

from gateway.compare import ABSENT, ORDER, Found, Place, differences, general, is_id, row_differences, spell
from gateway.model import Observation, RowChange

from .redact import redact_text

MAX_PLACES = 2_000  # of two runs; what differs in more is broken anyway
_MAX_PARTS = 2_000  # of a text that are aligned with each other; beyond that it is one

_BEFORE = 24  # characters before a part of a text, by which it is known again

_NUMBER = re.compile(r"[0-9]+")
_PART = re.compile(r"[^\n>]*[\n>]|[^\n>]+")  # lines and tags
_WORD = re.compile(r"[\w.~+/-]+|\W")  # a token, a date, a path
_TEXT = ("text/", "xml", "javascript", "x-www-form-urlencoded")  # what claims to be JSON and is not is broken


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one side and, for a write, the rows that it changed (None: unknown)."""

    answer: Observation
    rows: tuple[RowChange, ...] | None = None


class Differing:
    """All places where `other` differs from `control`; of a text parts: ("body", "text", start, end, before)."""

    def __init__(self, control: Run, other: Run, unordered: Container[Place]) -> None:
        found = islice(_find(control, other, unordered), MAX_PLACES)
        self.pairs: Mapping[Place, tuple[object, object]] = {place: (ours, theirs) for place, ours, theirs in found}
        self._above = {place[:end] for place in self.pairs for end in range(1, len(place))}
        self._partial = {place[:-1] for place, values in self.pairs.items() if ABSENT in values}
        self._parts = [place[2:4] for place in self.pairs if is_part(place)]

    def __contains__(self, place: Place) -> bool:
        """Whether anything differs at the place, above it, below it or, in a text, across it."""
        if is_part(place):
            return any(int(start) <= int(place[3]) and int(place[2]) <= int(end) for start, end in self._parts)
        return (
            place in self.pairs
            or place in self._above
            or any(place[:end] in self.pairs for end in range(1, len(place)))
        )

    def is_partial(self, members: Place) -> bool:
        """Whether a list has members that the other one lacks."""
        return members in self._partial

    def is_below(self, place: Place) -> bool:
        """Whether something differs only below the place, which itself is of the same type."""
        return place in self._above and place not in self.pairs

    def unordered(self) -> set[str]:
        """Lists with the same members in another order, and objects whose keys are made up each time, by name."""
        keyed = (place[:-1] for place, (_, other) in self.pairs.items() if other is ABSENT and is_id(str(place[-1])))
        made_up = {place for place in keyed if any(p[:-1] == place and o is ABSENT for p, (o, _) in self.pairs.items())}
        return {name(place) for place in made_up} | {name(place[:-1]) for place in self.pairs if place[-1] == ORDER}


def is_part(place: Place) -> bool:
    return place[:2] == ("body", "text")


@lru_cache(4096)
def name(place: Place) -> str:
    """What places are learned by: without numbers of list members, ids of things, positions in a text, and secrets."""
    if is_part(place):
        return f"body after {place[4]}"
    text = general(spell(place))
    return redact_text(text) if '"' in text else text


def _find(control: Run, other: Run, unordered: Container[Place]) -> Iterator[Found]:
    for found in differences(control.answer, other.answer, unordered):
        if found[0][0] != "body":
            yield found
        elif found[0] == ("body",) and (texts := _texts(control.answer, other.answer)):
            for start, ours, theirs in differing_parts(*texts):
                before = _NUMBER.sub("0", texts[0][max(0, start - _BEFORE) : start])
                yield ("body", "text", start, start + len(ours), f"{crc32(before.encode()):08x}"), ours, theirs
        else:
            yield found[0], control.answer.body, other.answer.body
    if control.rows is not None and other.rows is not None:
        yield from row_differences(control.rows, other.rows)


def _texts(control: Observation, other: Observation) -> tuple[str, str] | None:
    if not (_is_text(control) and _is_text(other)):
        return None
    try:
        return control.body.decode(), other.body.decode()
    except UnicodeDecodeError:
        return None


def _is_text(answer: Observation) -> bool:
    kind = next((value for header, value in answer.headers if header.lower() == "content-type"), "").lower()
    return any(mark in kind for mark in _TEXT)


def differing_parts(control: str, other: str) -> list[tuple[int, str, str]]:
    """(position in the control, its text there, the other's text), in order; words where lines or tags correspond."""
    parts: list[tuple[int, str, str]] = []
    for start, ours, theirs in _unequal(_PART.findall(control), _PART.findall(other), 0):
        if len(ours) == len(theirs):
            places = accumulate(map(len, ours), initial=start)
            pairs = list(zip(places, ours, theirs, strict=False))
        else:
            pairs = [(start, "".join(ours), "".join(theirs))]
        for at, one, two in pairs:
            if one != two:
                parts += _differing_words(one, two, at)
    return parts


def _differing_words(control: str, other: str, start: int) -> Iterator[tuple[int, str, str]]:
    ours, theirs = _WORD.findall(control), _WORD.findall(other)
    if len(ours) == len(theirs):
        places = accumulate(map(len, ours), initial=start)
        yield from ((at, one, two) for at, one, two in zip(places, ours, theirs, strict=False) if one != two)
    else:
        start, ours, theirs = _trimmed(ours, theirs, start)
        yield start, "".join(ours), "".join(theirs)


Stretch = tuple[int, list[str], list[str]]  # position in the control, its words there, the other's


def _unequal(ours: list[str], theirs: list[str], start: int) -> list[Stretch]:
    """Stretches that do not correspond."""
    start, ours, theirs = _trimmed(ours, theirs, start)
    if max(len(ours), len(theirs)) > _MAX_PARTS:
        return [(start, ours, theirs)]
    at = list(accumulate(map(len, ours), initial=0))
    operations = SequenceMatcher(None, ours, theirs).get_opcodes()
    return [(start + at[a], ours[a:b], theirs[c:d]) for kind, a, b, c, d in operations if kind != "equal"]


def _trimmed(ours: list[str], theirs: list[str], start: int) -> Stretch:
    """Without what both begin and end with."""
    first, short = 0, min(len(ours), len(theirs))
    while first < short and ours[first] == theirs[first]:
        first += 1
    last = 0
    while last < short - first and ours[-1 - last] == theirs[-1 - last]:
        last += 1
    start += sum(map(len, ours[:first]))
    return start, ours[first : len(ours) - last], theirs[first : len(theirs) - last]
