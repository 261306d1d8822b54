"""What the shadows showed: sums, causes and noise, on disk soon, for any process, without secrets."""

import os
import sqlite3
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import store as store_module
from gateway.compare import ABSENT
from gateway.model import Backend, Difference, Observation, Outcome, Verdict
from gateway.shadow import verdicts as verdicts_module
from gateway.shadow.verdicts import MAX_GROUPS, OTHER, SAMPLES, Group, Verdicts, _Cause, _Mismatch, _refine
from gateway.store import NAME

OK, BROKEN = Observation(Backend.LEGACY, 200), Observation(Backend.FASTAPI, 500)


@dataclass
class Asked:
    id: str = "r1"
    at: float = 100.0
    scope: dict[str, Any] = field(default_factory=lambda: {"method": "GET", "path": "/a", "query_string": b""})


@pytest.fixture
def verdicts(tmp_path: Path) -> Iterator[Verdicts]:
    verdicts = Verdicts(tmp_path)
    verdicts.start()
    yield verdicts
    verdicts.close()


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.002)
    return time.monotonic() - started


def mismatch(*differences: Difference) -> Verdict:
    return Verdict(differences)


TITLE, PRICE = Difference("$.items[3].title", "a", "b"), Difference("$.price", "1.10", 1.1)


def add(verdicts: Verdicts, verdict: Verdict, name: str = "r1", at: float = 100.0, key: str = "a") -> None:
    verdicts.add(Asked(name, at), key, Backend.FASTAPI, verdict, OK, Observation(Backend.FASTAPI, 200))


# --- sums ---------------------------------------------------------------------------------------------------------


def test_before_anything_was_written_there_is_nothing_to_read(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "state")
    assert ({}, {}, [], {}) == (verdicts.tallies(), verdicts.pairs(), verdicts.groups(), verdicts.noise())
    assert not (tmp_path / "state").exists()


def test_outcomes_are_summed_by_key_over_processes_and_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        verdicts = Verdicts(tmp_path)
        verdicts.start()
        verdicts.count("a", Outcome.SHED)
        verdicts.count("a", Outcome.SHED)
        verdicts.count("b", Outcome.CRASHED)
        add(verdicts, Verdict())
        add(verdicts, mismatch(PRICE))
        verdicts.close()
    expected = {
        "a": {Outcome.SHED: 4, Outcome.MATCHED: 2, Outcome.MISMATCHED: 2},
        "b": {Outcome.CRASHED: 2},
    }
    assert expected == Verdicts(tmp_path).tallies()


def test_the_classes_of_both_statuses_are_counted_in_both_directions(verdicts: Verdicts) -> None:
    gone = Observation(Backend.FASTAPI, 0, error="timeout")
    for control, candidate in [(OK, OK), (OK, BROKEN), (OK, BROKEN), (BROKEN, OK), (OK, gone)]:
        verdicts.add(Asked(), "a", Backend.FASTAPI, Verdict(), control, candidate)
    verdicts.close()
    expected = {("2xx", "2xx"): 1, ("2xx", "5xx"): 2, ("5xx", "2xx"): 1, ("2xx", "none"): 1}
    assert {"a": expected} == verdicts.pairs()


def test_a_verdict_is_on_disk_within_three_tenths_of_a_second(verdicts: Verdicts, tmp_path: Path) -> None:
    add(verdicts, mismatch(PRICE))
    until(verdicts.groups)  # the tables are made
    reader = Verdicts(tmp_path)
    taken = []
    for number in range(2, 7):
        add(verdicts, mismatch(PRICE))
        taken.append(until(lambda number=number: reader.tallies()["a"][Outcome.MISMATCHED] == number))  # type: ignore[misc]
    assert min(taken) < 0.3


# --- causes -------------------------------------------------------------------------------------------------------


def test_a_mismatch_is_told_with_everything_an_operator_needs(verdicts: Verdicts) -> None:
    asked = Asked("r1", 100.0, {"method": "GET", "path": "/videos/7", "query_string": b"page=2&token=hunter2"})
    verdicts.add(asked, "videos.get", Backend.FASTAPI, mismatch(TITLE, PRICE), OK, BROKEN)
    verdicts.close()
    (group,) = verdicts.groups()
    assert ("videos.get", "GET", Backend.FASTAPI) == (group.key, group.method, group.candidate)
    assert ("$.items[*].title: value", "$.price: string -> number") == group.places
    assert (1, 100.0, 100.0) == (group.count, group.first_at, group.last_at)
    (sample,) = group.samples
    assert ("r1", 100.0, "/videos/7?page=2&token=<7 characters>") == (sample.id, sample.at, sample.target)
    assert (200, 500) == (sample.control, sample.candidate)
    assert {Difference("$.items[3].title", '"a"', '"b"'), Difference("$.price", '"1.10"', "1.1")} == set(
        sample.differences
    )


@pytest.mark.parametrize(
    ("difference", "place"),
    [
        (Difference("status", 200, 500), "status: 200 -> 500"),
        (Difference("$.a", 1, ABSENT), "$.a: missing"),
        (Difference("$.a", ABSENT, None), "$.a: extra"),
        (Difference("$.a", None, ""), "$.a: null -> string"),
        (Difference("$.a[0][12].b", [], {}), "$.a[*][*].b: list -> object"),
        (Difference("$.by.6f1a2b3c4d5e6f70.n", 1, 2), "$.by.*.n: value"),
        (Difference("$.by.1234", 1, 2), "$.by.*: value"),
        (Difference("$.decade.facade", 1, 2), "$.decade.facade: value"),
        (Difference('$["bob@example.org"]', 1, 2), '$["<e-mail>"]: value'),
        (Difference("body", b"a", b"b"), "body: value"),
        (Difference("rows.a[insert]", {"id": 1}, ABSENT), "rows.a[insert]: missing"),
    ],
)
def test_a_cause_is_named_without_what_is_special_about_one_request(difference: Difference, place: str) -> None:
    assert place == verdicts_module._cause(difference)


def test_ten_thousand_mismatches_read_as_three_causes(verdicts: Verdicts) -> None:
    header = Difference("header.vary", "cookie", ABSENT)
    for number in range(10_000):
        found = [header] if number % 7 == 0 else []
        found += [TITLE] if number % 3 else []
        found += [PRICE, Difference("$.currency", "EUR", ABSENT)] if number % 2 or not found else []
        add(verdicts, mismatch(*found), str(number), float(number))
        if number % 1000 == 0:
            until(lambda: not verdicts._mismatches)
    verdicts.close()
    assert 0 == verdicts.dropped
    groups = {group.places: group for group in verdicts.groups("a")}
    assert {
        ("$.items[*].title: value",),
        ("$.currency: missing", "$.price: string -> number"),
        ("header.vary: missing",),
    } == set(groups)
    title = groups["$.items[*].title: value",]
    assert (6666, 1.0, 9998.0) == (title.count, title.first_at, title.last_at)
    assert SAMPLES == len(title.samples)
    assert "1" == title.samples[0].id
    assert [1.0, 3000.0, 6000.0] < [sample.at for sample in title.samples]
    assert {1} == {len(sample.differences) for sample in title.samples}


def test_methods_and_directions_have_causes_of_their_own(verdicts: Verdicts) -> None:
    for method, backend in [("GET", Backend.FASTAPI), ("POST", Backend.FASTAPI), ("GET", Backend.LEGACY)]:
        verdicts.add(Asked(scope={"method": method, "path": "/"}), "a", backend, mismatch(PRICE), OK, OK)
    verdicts.close()
    assert 3 == len({group.id for group in verdicts.groups()})


@settings(deadline=None)
@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), max_size=40))
def test_causes_never_overlap_and_each_was_shown_as_often_as_it_says(shown: list[frozenset[str]]) -> None:
    causes: list[_Cause] = []
    for number, places in enumerate(shown):
        differences = {place: (place, "1", "2") for place in places}
        causes = _refine(causes, _Mismatch(("", "", ""), float(number), {}, differences))
    every = [place for cause in causes for place in cause.places]
    assert sorted(set().union(*shown)) == sorted(every)
    for cause in causes:
        assert {sum(place in places for places in shown) for place in cause.places} == {cause.count}
        assert all(sample["differences"].keys() == cause.places for sample in cause.samples)


def test_causes_are_bounded_and_the_rest_is_counted_together(verdicts: Verdicts) -> None:
    for number in range(3 * MAX_GROUPS):
        add(verdicts, mismatch(Difference(f"$.field_{number}_x", 1, 2)))
    add(verdicts, mismatch(*(Difference(f"$.field_{number}_x", 1, 2) for number in range(0, 2 * MAX_GROUPS, 2))))
    verdicts.close()
    groups = verdicts.groups()
    assert MAX_GROUPS + 1 == len(groups)
    (other,) = (group for group in groups if group.places == (OTHER,))
    assert 2 * MAX_GROUPS + 1 == other.count
    assert other.samples[0].differences


def test_no_secret_reaches_the_disk(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.start()
    found = [
        Difference("$.user.email", "bob@example.org", None),
        Difference("cookie.sid.value", "hunter2", "hunter3"),
        Difference("$.user", {"password": "hunter2", "note": "mail bob@example.org"}, ABSENT),
        Difference("body", b"<input name=csrf value=hunter2> a", b"<input name=csrf value=hunter3> b"),
        Difference('$.by["bob@example.org"].password', "hunter2", 1),
    ]
    scope = {
        "method": "GET",
        "path": "/users/bob@example.org",
        "query_string": b"password=hunter2",
        "headers": [(b"cookie", b"sid=hunter2"), (b"authorization", b"Bearer hunter2")],
    }
    secret = Observation(Backend.LEGACY, 200, (("Set-Cookie", "sid=hunter2"),), b"hunter2")
    verdicts.add(Asked(scope=scope), "a", Backend.FASTAPI, mismatch(*found), secret, secret)
    verdicts.close()
    assert 1 == len(verdicts.groups())
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for text in (b"hunter", b"bob@", b"example.org"):
        assert text not in stored


# --- noise, and a new start ---------------------------------------------------------------------------------------


def test_the_last_noise_of_every_key_outlives_the_process(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.start()
    for number in range(3):
        verdicts.learn("a", {"places": number})
    verdicts.learn("b", {})
    verdicts.close()
    assert {"a": {"places": 2}, "b": {}} == Verdicts(tmp_path).noise()
    assert {"a": {"places": 2}} == Verdicts(tmp_path).noise("a")


def test_what_is_forgotten_begins_anew_and_sums_stay(verdicts: Verdicts, tmp_path: Path) -> None:
    for key in ("a", "b"):
        add(verdicts, mismatch(PRICE), key=key)
        verdicts.learn(key, {"x": 1})
    until(lambda: len(verdicts.noise()) == 2)
    Verdicts(tmp_path).forget("a")
    assert (["b"], ["b"]) == ([group.key for group in verdicts.groups()], list(verdicts.noise()))
    assert 1 == verdicts.tallies()["a"][Outcome.MISMATCHED]
    assert {"a": {Outcome.MISMATCHED: 0}, "b": {Outcome.MISMATCHED: 1}} == verdicts.tallies(fresh=True)
    add(verdicts, Verdict())
    add(verdicts, mismatch(PRICE))
    verdicts.close()
    assert {Outcome.MATCHED: 1, Outcome.MISMATCHED: 1} == verdicts.tallies(fresh=True)["a"]
    assert 1 == verdicts.groups("a")[0].count


def test_forgetting_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(OSError):
        Verdicts(tmp_path / "state").forget("a")


# --- harm ---------------------------------------------------------------------------------------------------------


def _write_some(state: Path, count: int) -> None:
    store_module.BUSY_S = verdicts_module.BUSY_S = 30.0  # what is left at the end is tried only once
    verdicts = Verdicts(state)
    verdicts.start()
    for number in range(count):
        add(verdicts, mismatch(TITLE if number % 2 else PRICE), f"{os.getpid()}-{number}")
    verdicts.close()


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    workers = [get_context("spawn").Process(target=_write_some, args=(tmp_path, 200)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [0] * 4 == [worker.exitcode for worker in workers]
    verdicts = Verdicts(tmp_path)
    assert 800 == verdicts.tallies()["a"][Outcome.MISMATCHED]
    assert [400, 400] == [group.count for group in verdicts.groups()]


def test_while_the_file_is_locked_nothing_blocks_and_afterwards_nothing_is_missing(
    verdicts: Verdicts, tmp_path: Path
) -> None:
    add(verdicts, mismatch(PRICE))
    until(verdicts.groups)
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        for _ in range(50):
            add(verdicts, mismatch(PRICE))
        assert time.monotonic() - started < 10 * store_module.BUSY_S  # which each would wait for
        until(lambda: verdicts.dropped)
        other.execute("ROLLBACK")
    until(lambda: [group.count for group in verdicts.groups()] == [51])
    assert 51 == verdicts.tallies()["a"][Outcome.MISMATCHED]


def test_mismatches_that_have_no_room_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts_module, "_MAX_PENDING", 10)
    (tmp_path / "state").write_text("no directory")
    verdicts = Verdicts(tmp_path / "state")
    verdicts.start()
    for _ in range(5):
        for _ in range(10):
            add(verdicts, mismatch(PRICE))
        until(lambda: not verdicts._mismatches)
    verdicts.close()
    assert verdicts.dropped >= 41  # all but ten, and each failure


def test_a_corrupt_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database" * 1000)
    verdicts = Verdicts(tmp_path)
    verdicts.start()
    add(verdicts, mismatch(PRICE))
    until(verdicts.groups)
    verdicts.close()
    assert (tmp_path / f"{NAME}.corrupt").exists()


def test_noting_a_verdict_takes_microseconds(verdicts: Verdicts) -> None:
    took_s = timeit.repeat(
        lambda: verdicts.add(Asked(), "a", Backend.FASTAPI, Verdict(), OK, OK), number=100, repeat=10
    )
    assert min(took_s) / 100 < 0.0005


def test_groups_can_be_told_apart(verdicts: Verdicts) -> None:
    add(verdicts, mismatch(TITLE))
    add(verdicts, mismatch(PRICE))
    verdicts.close()
    groups: list[Group] = verdicts.groups("a")
    assert 2 == len({group.id for group in groups})
    assert [] == verdicts.groups("b")
