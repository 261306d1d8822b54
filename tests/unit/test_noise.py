"""What is told and what is ignored when applications answer with noise. Every chance here is seeded."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.compare import ABSENT
from gateway.model import Backend, Observation, RowChange
from gateway.shadow.noise import LIMIT, MAX_KEYS, MAX_LIKE, MAX_PLACES, NoiseBook, Run, _Coin
from gateway.shadow.places import differing_parts
from gateway.shadow.shapes import moment, shape

Body = Callable[[int], Any]  # of the number of a request
JSON = (("Content-Type", "application/json"),)
HTML = (("Content-Type", "text/html; charset=utf-8"),)


def answered(backend: Backend, body: Any, status: int = 200) -> Run:
    if isinstance(body, Observation):
        return Run(Observation(backend, body.status, body.headers, body.body, error=body.error))
    if isinstance(body, str):
        return Run(Observation(backend, status, HTML, body.encode()))
    return Run(Observation(backend, status, JSON, json.dumps(body).encode()))


class Shadow:
    """Replays requests of one route and remembers what was told and how often either side was asked again."""

    def __init__(
        self, control: Body, candidate: Body, book: NoiseBook | None = None, ignore: tuple[str, ...] = ()
    ) -> None:
        self.sides = {Backend.LEGACY: control, Backend.FASTAPI: candidate}
        self.book, self.ignore = book or NoiseBook(), ignore
        self.asked: list[int] = []
        self.told: list[set[str]] = []
        self.ignored: list[set[str]] = []

    def run(self, samples: int = 200) -> "Shadow":
        for request in range(len(self.told), len(self.told) + samples):
            first = {side: answered(side, body(request)) for side, body in self.sides.items()}
            trial = self.book.trial("key", first[Backend.LEGACY], first[Backend.FASTAPI], self.ignore)
            asked = 0
            while side := trial.wants():
                trial.see(answered(side, self.sides[side](request)))
                asked += 1
            verdict = trial.verdict()
            self.asked.append(asked)
            self.told.append({difference.where for difference in verdict.differences})
            self.ignored.append({difference.where for difference in verdict.ignored})
        return self

    @property
    def places(self) -> set[str]:
        return set().union(*self.told)

    @property
    def found_after(self) -> int:
        """Samples until something was told."""
        return next(number for number, told in enumerate(self.told, 1) if told)


def chances(seed: object) -> tuple[random.Random, random.Random]:
    return random.Random(f"{seed} control"), random.Random(f"{seed} candidate")


def two(make: Callable[[random.Random, int], Any], seed: object = 0) -> tuple[Body, Body]:
    """The same application twice, each with a chance of its own."""
    one, other = chances(seed)
    return lambda request: make(one, request), lambda request: make(other, request)


# --- without noise ------------------------------------------------------------------------------------------------


def test_equal_answers_are_asked_once() -> None:
    shadow = Shadow(lambda n: {"a": n}, lambda n: {"a": n}).run(20)
    assert (set(), {0}) == (shadow.places, set(shadow.asked))


def test_a_fault_is_told_at_its_first_request_and_later_costs_one_more_run_of_the_control() -> None:
    shadow = Shadow(lambda n: {"a": 1, "b": n}, lambda n: {"a": "1", "b": n}).run(20)
    assert [{"$.a"}] * 20 == shadow.told
    assert 12 == shadow.asked[0]
    assert [1] * 19 == shadow.asked[1:]


@pytest.mark.parametrize("request_number", [0, 5, 150])
def test_a_fault_of_a_single_request_is_told(request_number: int) -> None:
    shadow = Shadow(lambda n: {"a": n}, lambda n: {"a": -1 if n == request_number else n}).run(200)
    assert [request_number + 1] == [n for n, told in enumerate(shadow.told, 1) if told]


def test_what_an_operator_ignores_is_kept_and_costs_nothing() -> None:
    shadow = Shadow(lambda n: {"a": 1}, lambda n: {"a": 2}, ignore=("$.a",)).run(5)
    assert (set(), [{"$.a"}] * 5, [0] * 5) == (shadow.places, shadow.ignored, shadow.asked)


def test_asking_less_than_wanted_leaves_the_difference_unexplained() -> None:
    book = NoiseBook()
    for asked in range(3):
        trial = book.trial(f"{asked}", answered(Backend.LEGACY, {"a": 1}), answered(Backend.FASTAPI, {"a": 2}))
        for _ in range(asked):
            side = trial.wants()
            assert side is not None
            trial.see(answered(side, {"a": 1 if side is Backend.LEGACY else 2}))
        assert ["$.a"] == [difference.where for difference in trial.verdict().differences]


def test_json_that_cannot_be_read_is_told_among_noise() -> None:
    chance = random.Random(0)

    def cut(n: int) -> Observation:
        return Observation(Backend.FASTAPI, 200, JSON, b'{"at": %d, "a"' % chance.randrange(1000))

    shadow = Shadow(lambda n: {"at": chance.randrange(1000), "a": 1}, cut).run(5)
    assert [{"body"}] * 5 == shadow.told


def test_of_many_places_of_a_kind_some_are_told() -> None:
    shadow = Shadow(lambda n: {"l": [1] * 50, "x": 1}, lambda n: {"l": ["1"] * 50, "x": 2}).run(1)
    assert {*(f"$.l[{n}]" for n in range(MAX_LIKE)), "$.x"} == shadow.places


# --- noise --------------------------------------------------------------------------------------------------------

NOISES: dict[str, Callable[[random.Random, int], Any]] = {
    "text": lambda r, n: f"{r.getrandbits(32):08x}-1111-4111-8111-{r.getrandbits(48):012x}",
    "number": lambda r, n: r.random(),
    "counter": lambda r, n: r.randrange(1000),
    "coin": lambda r, n: r.random() < 0.5,
    "rare": lambda r, n: r.random() < 0.03,
    "null": lambda r, n: None if r.random() < 0.2 else "value",
    "type": lambda r, n: r.choice([1, "1", 1.0]),
    "choice": lambda r, n: r.choice(["red", "green", "blue"]),
    "order": lambda r, n: r.sample([1, 2, 3, 4], 4),
    "objects in random order": lambda r, n: r.sample([{"id": i, "at": r.random()} for i in range(4)], 4),
    "some of many": lambda r, n: r.sample(range(6), 3),
    "length": lambda r, n: [0] * r.randrange(4),
    "random keys": lambda r, n: {f"{r.getrandbits(64):016x}": {"n": 1}},
    "gone": lambda r, n: {} if r.random() < 0.3 else {"x": 1},
    "page": lambda r, n: f"<form>\n<input name=csrf value={r.getrandbits(64):x}>\n</form>\n<p>same</p>",
    "bytes": lambda r, n: Observation(
        Backend.LEGACY, 200, (("Content-Type", "image/png"),), b"PNG\0" + r.randbytes(40)
    ),
    "cookie": lambda r, n: Observation(Backend.LEGACY, 200, (("Set-Cookie", f"sid={r.getrandbits(64):x}; Path=/"),)),
    "etag": lambda r, n: Observation(Backend.LEGACY, 200, (("ETag", f'"{r.getrandbits(64):016x}"'),)),
    "status": lambda r, n: Observation(Backend.LEGACY, 200 if r.random() < 0.8 else 503),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_never_told_and_always_kept(kind: str, seed: int) -> None:
    shadow = Shadow(*two(NOISES[kind], seed)).run(150)
    assert set() == shadow.places
    assert set().union(*shadow.ignored)


def test_noise_that_is_well_known_costs_a_run_only_now_and_then() -> None:
    shadow = Shadow(*two(lambda r, n: {"at": r.randrange(10**6), "id": f"{r.getrandbits(64):016x}"})).run(200)
    assert [1] * 40 == shadow.asked[:40]
    assert sum(shadow.asked[100:]) <= 15


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(lambda b: {**b, "stable": 2}, "stable", id="elsewhere"),
        pytest.param(lambda b: {**b, "at": str(b["at"])}, "at", id="number to string"),
        pytest.param(lambda b: {**b, "at": None}, "at", id="null"),
        pytest.param(lambda b: {k: b[k] for k in b if k != "at"}, "at", id="missing"),
        pytest.param(lambda b: {**b, "id": b["id"][:8]}, "id", id="shorter"),
        pytest.param(lambda b: {**b, "id": b["id"].upper()}, "id", id="in capitals"),
        pytest.param(lambda b: {**b, "list": b["list"][:3]}, "list", id="list cut"),
        pytest.param(lambda b: {**b, "list": [str(i) for i in b["list"]]}, "list", id="type of members"),
        pytest.param(
            lambda b: {**b, "objects": [{**o, "t": -1} for o in b["objects"]]}, "objects", id="stable field of a member"
        ),
        pytest.param(
            lambda b: {**b, "objects": [{**o, "n": "x"} for o in b["objects"]]}, "objects", id="noisy field of a member"
        ),
        pytest.param(lambda b: {**b, "coin": 1}, "coin", id="type of a flag"),
        pytest.param(lambda b: {**b, "coin": True}, "coin", id="always one side of a coin"),
        pytest.param(lambda b: {**b, "rare": not b["rare"]}, "rare", id="turned around"),
    ],
)
def test_a_fault_among_noise_is_found(fault: Callable[[Any], Any], expected: str) -> None:
    def make(r: random.Random, n: int) -> Any:
        objects = [{"id": i, "t": i * 7, "n": r.random()} for i in range(4)]
        return {
            "at": r.random(), "id": f"{r.getrandbits(64):016x}", "list": r.sample(range(5), 5),
            "coin": r.random() < 0.5, "rare": r.random() < 0.05, "objects": r.sample(objects, 4), "stable": 1,
        }  # fmt: skip

    control, port = two(make)
    shadow = Shadow(control, lambda n: fault(port(n))).run(100)
    assert {expected} == {where.split("[")[0].split(".")[1] for where in shadow.places}


def test_a_candidate_that_flickers_while_the_control_is_stable_is_found() -> None:
    chance = random.Random(0)
    shadow = Shadow(lambda n: {"a": 1, "b": 1}, lambda n: {"a": 1, "b": 2 if chance.random() < 0.1 else 1}).run(200)
    assert {"$.b"} == shadow.places
    assert shadow.found_after > 1


def test_a_candidate_that_flickers_more_often_than_the_control_is_found_and_one_that_does_not_is_not() -> None:
    for share, expected in ((0.05, set()), (0.5, {"$"})):
        one, other = chances(share)
        shadow = Shadow(lambda n, r=one: r.random() < 0.05, lambda n, r=other, s=share: r.random() < s).run(300)
        assert expected == shadow.places


def test_a_page_differs_where_it_is_not_noise() -> None:
    page = "<title>{}</title>\n<input name=csrf value={:x}>\n<ul>{}</ul>\n<p>{}</p>"

    def make(r: random.Random, n: int) -> str:
        return page.format(n, r.getrandbits(64), "<li>x</li>" * r.randrange(5), "price 1.10")

    control, port = two(make)
    shadow = Shadow(control, lambda n: port(n).replace("1.10", "1.1") if n == 60 else port(n)).run(100)
    assert [61] == [n for n, told in enumerate(shadow.told, 1) if told]


def test_of_a_page_only_what_is_no_noise_is_shown() -> None:
    run = answered(Backend.LEGACY, "<i>1</i>\n<b>a</b>"), answered(Backend.FASTAPI, "<i>2</i>\n<b>z</b>")
    trial = NoiseBook().trial("key", *run)
    number = 2
    while side := trial.wants():
        number += 1
        trial.see(answered(side, f"<i>{number}</i>\n<b>{'a' if side is Backend.LEGACY else 'z'}</b>"))
    (difference,) = trial.verdict().differences
    assert (b"<i>1</i>\n<b>a</b>", b"<i>1</i>\n<b>z</b>") == (difference.control, difference.candidate)


def test_data_that_change_meanwhile_are_noise() -> None:
    views = iter(range(10_000))
    count: dict[str, int] = {"views": 0}

    def control(n: int) -> Any:
        if next(views) % 3 == 0:
            count["views"] += 1
        return dict(count)

    assert set() == Shadow(control, lambda n: dict(count)).run(300).places


def test_a_cache_that_the_first_request_fills_is_noise() -> None:
    seen: set[int] = set()

    def control(n: int) -> Any:
        warm = n in seen
        seen.add(n)
        return {"cache": "HIT" if warm else "MISS"}

    assert set() == Shadow(control, control).run(200).places


@pytest.mark.parametrize(
    ("control", "candidate"),
    [
        ("2026-01-01T{:02d}:{:02d}:00Z", "2026-01-01T{:02d}:{:02d}:00+00:00"),
        ("2026-01-01T{:02d}:{:02d}:00Z", "2026-01-01T{:02d}:{:02d}:00.000Z"),
        ("2026-01-01T{:02d}:{:02d}:00Z", "2026-01-01 {:02d}:{:02d}:00Z"),
    ],
)
def test_the_format_of_a_time_is_no_noise(control: str, candidate: str) -> None:
    now = iter(range(100_000))

    def at(text: str) -> Body:
        return lambda n: {"at": text.format(*divmod(next(now) % 1440, 60))}

    assert 1 == Shadow(at(control), at(candidate)).run(3).found_after


def test_a_time_in_another_zone_and_one_that_was_taken_once_are_found() -> None:
    now = iter(range(1_700_000_000, 1_800_000_000, 7))

    def clock(n: int) -> Any:
        return {"at": next(now)}

    assert set() == Shadow(clock, clock).run(100).places
    assert {"$.at"} == Shadow(clock, lambda n: {"at": next(now) + 3600}).run(50).places
    assert {"$.at"} == Shadow(clock, lambda n: {"at": 1_700_000_000}).run(50).places
    fresh, _ = two(lambda r, n: {"id": NOISES["text"](r, n)})
    assert {"$.id"} == Shadow(fresh, lambda n: {"id": "12345678-1111-4111-8111-123456781234"}).run(60).places


def test_a_fault_that_was_mended_is_told_no_more() -> None:
    book = NoiseBook()
    control, port = two(lambda r, n: {"coin": r.random() < 0.3, "at": r.random(), "a": 1})
    faulty = Shadow(control, lambda n: {**port(n), "a": 2, "coin": None, "at": 0.5}, book).run(100)
    assert {"$.a", "$.coin", "$.at"} == faulty.places
    assert set() == Shadow(control, port, book).run(200).places


# --- writes -------------------------------------------------------------------------------------------------------


def write(backend: Backend, **row: Any) -> Run:
    return Run(Observation(backend, 201), (RowChange("videos", (1,), None, {"id": 1, **row}),))


def judge_write(control: Run, *candidates: Run) -> list[str]:
    trial = NoiseBook().trial("key", control, candidates[0], again=False)
    again = iter(candidates[1:])
    while side := trial.wants():
        assert side is Backend.FASTAPI
        trial.see(next(again))
    return [difference.where for difference in trial.verdict().differences]


def test_of_a_write_rows_are_compared_and_only_the_candidate_is_asked_again() -> None:
    control, good, bad = write(Backend.LEGACY, n=1), write(Backend.FASTAPI, n=1), write(Backend.FASTAPI, n=2)
    assert [] == judge_write(control, good)
    assert ["rows.videos[insert].n"] == judge_write(control, bad, bad)
    missing = Run(Observation(Backend.FASTAPI, 201), ())
    assert ["rows.videos[insert]"] == judge_write(control, missing, missing)


def test_of_a_write_noise_is_what_the_candidate_does_not_repeat_in_the_same_shape() -> None:
    times = [f"2026-01-01T10:00:0{second}Z" for second in range(4)]
    control, *candidates = (
        write(b, at=t) for b, t in zip([Backend.LEGACY, *[Backend.FASTAPI] * 3], times, strict=True)
    )
    assert [] == judge_write(control, *candidates)
    wrong = [write(Backend.FASTAPI, at=t.replace("T", " ")) for t in times]
    assert ["rows.videos[insert].at"] == judge_write(control, *wrong)
    unknown = Run(Observation(Backend.FASTAPI, 201), None)
    assert [] == judge_write(control, unknown)


# --- what is kept -------------------------------------------------------------------------------------------------


def test_what_was_learned_outlives_the_process() -> None:
    sides = two(lambda r, n: {"at": r.random(), "coin": r.random() < 0.2, "l": r.sample(range(4), 4)})
    first = Shadow(*sides).run(100)
    kept = json.loads(json.dumps(first.book.dump("key")))
    assert {"$.at", "$.coin", "$.l[order]"} == set(kept["places"])
    assert (100, ["$.l"]) == (kept["samples"], kept["unordered"])

    book = NoiseBook()
    book.load("key", kept)
    assert kept == book.dump("key")
    second = Shadow(*sides, book=book).run(50)
    assert set() == second.places
    assert sum(second.asked) < sum(first.asked[:50])


@pytest.mark.parametrize(
    "dumped",
    [
        {},
        {"places": 3},
        {"samples": "x", "places": {}, "unordered": []},
        {"samples": 1, "places": {"$": 3}, "unordered": []},
    ],
)
def test_what_cannot_be_understood_is_left_out(dumped: dict[str, Any]) -> None:
    book = NoiseBook()
    book.load("key", dumped)
    assert {"samples": 0, "unordered": [], "places": {}} == book.dump("key")


def test_what_is_learned_is_bounded_and_beyond_that_noise_is_still_noise() -> None:
    chance = random.Random(0)
    many = [f"field_{n}_x" for n in range(MAX_PLACES + 50)]
    shadow = Shadow(*[lambda n: {name: chance.random() for name in many}] * 2).run(5)
    assert set() == shadow.places
    assert MAX_PLACES == len(shadow.book.dump("key")["places"])

    book = NoiseBook()
    for number in range(MAX_KEYS + 10):
        trial = book.trial(f"{number}", answered(Backend.LEGACY, {}), answered(Backend.FASTAPI, {}))
        assert trial.verdict().matched
    assert 0 == book.dump(f"{MAX_KEYS + 5}")["samples"]
    assert 1 == book.dump("5")["samples"]


def test_no_secret_is_kept_among_the_places() -> None:
    chance = random.Random(0)
    shadow = Shadow(*[lambda n: {"bob@example.org": {"x": chance.random()}}] * 2).run(5)
    assert "bob" not in json.dumps(shadow.book.dump("key"))


def test_the_same_answers_lead_to_the_same_verdicts() -> None:
    def noise(r: random.Random, n: int) -> Any:
        return {"at": r.random(), "l": r.sample(range(4), 4), "coin": r.random() < 0.3}

    one, other = (Shadow(*two(noise)).run(100) for _ in range(2))
    assert (one.told, one.ignored, one.asked) == (other.told, other.ignored, other.asked)
    assert one.book.dump("key") == other.book.dump("key")


# --- shapes and parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-01-01T10:00:00Z", "1999-12-31T23:59:59Z"),
        ("2026-01-01T10:00:00.123456+02:00", "2026-01-01T10:00:00.654321-05:00"),
        ("6f1a2b3c-4d5e-4f70-8a9b-0c1d2e3f4a5b", "00000000-4d5e-4f70-8a9b-0c1d2e3f4a5b"),
        ("d41d8cd98f00b204e9800998ecf8427e", "0cc175b9c0f1b6a831c399e269772661"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"),
        (7, 123), (0.25, 0.75), (1_700_000_000, 1_800_000_001), ("12", "7"), ("half", "some"), (ABSENT, ABSENT),
        ("a@b.example", "somebody@else.example"), ("https://a.example/1", "https://b.example/22"),
    ],
)  # fmt: skip
def test_values_of_one_kind_have_one_shape(one: object, other: object) -> None:
    assert shape(("$",), one) == shape(("$",), other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, ABSENT), (None, ""), ("", " "), (1, True), (1, 1.0), (1, "1"), (1, -1), ([], {}), (0.25, 0.5),
        (1_700_000_000, 1_700_000_000_000), ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00"), ("1.10", "1.1"),
        ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00.5Z"), ("2026-01-01", "2026-01-01T10:00:00Z"),
        ("2026-01-01T10:00:00+00:00", "2026-01-01T10:00:00+0000"), ("abcdef0123456789", "ABCDEF0123456789"),
        ("0123456789abcdef", "0123456789abcde"), ("half", "HALF"), ("half", " half"), ("a & b", "a &amp; b"),
        ("Über", "Uber"), ("some text", "some text that is a lot longer"),
    ],
)  # fmt: skip
def test_values_of_two_kinds_have_two_shapes(one: object, other: object) -> None:
    assert shape(("$",), one) != shape(("$",), other)


def test_points_in_time_are_recognised_however_they_are_written() -> None:
    written = [
        1_700_000_000, 1_700_000_000.0, 1_700_000_000_000, "2023-11-14T22:13:20Z", "2023-11-14T22:13:20",
        "2023-11-14T23:13:20+01:00", "2023-11-14 22:13:20.000", "Tue, 14 Nov 2023 22:13:20 GMT",
    ]  # fmt: skip
    assert {1_700_000_000.0} == {moment(value) for value in written}
    assert {None} == {
        moment(value) for value in (12, "12", True, None, "2023-11-14", "2023-99-14T22:13:20Z", "text", [])
    }


def applied(control: str, parts: list[tuple[int, str, str]]) -> str:
    text, at = "", 0
    for start, ours, theirs in parts:
        assert ours == control[start : start + len(ours)]
        text, at = text + control[at:start] + theirs, start + len(ours)
    return text + control[at:]


lines = st.lists(st.sampled_from(["<p>", "a b", "1-2", "\n", "</p>\n", "x"]), max_size=30).map("".join)


@settings(deadline=None)
@given(lines, lines)
def test_the_parts_that_differ_make_one_text_of_the_other(one: str, other: str) -> None:
    assert other == applied(one, differing_parts(one, other))
    assert [] == differing_parts(one, one)


def test_a_fair_coin_is_convicted_less_often_than_promised() -> None:
    def ever(r: random.Random) -> bool:
        coin = _Coin()
        return any(coin.toss([r.choice(["candidate", "control"])]) or coin.convicts for _ in range(300))

    assert sum(ever(random.Random(seed)) for seed in range(3000)) <= 3 * 3000 / LIMIT + 2
