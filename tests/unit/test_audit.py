"""The audit trail: written by many, believed by nobody before it is verified."""

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import audit as audit_module
from gateway.audit import RESERVE_BYTES, UNRECORDED, Audit, Event, epoch, read_audit, utc_now

OLD = (
    b'{"id": %d, "at": "2026-01-01T00:00:00.000+00:00", "by": "ann", "why": "", "key": "a", "before": 0, "after": 1, '
    b'"version_before": "", "version": "aaaaaaaaaaaa", "evidence": {}}\n'
)


def event(number: int = 0, **changes: object) -> Event:
    made = Event(
        0, utc_now(), "ann", "because", "videos.list", number, number + 1, "", version(number), action="weight"
    )
    return replace(made, evidence={"errors": number, "said": "é\n"}, **changes)


def text(number: int) -> str:
    return f"version: 1  # {number}\n"


def version(number: int) -> str:
    return sha256(text(number).encode()).hexdigest()[:12]


def written(state: Path, count: int = 5) -> Path:
    audit = Audit(state)
    for number in range(count):
        audit.append(event(number))
    return state / "audit.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A trail of old lines, hashed ones, and one that a crash has torn."""
    state = tmp_path_factory.mktemp("whole")
    path = state / "audit.jsonl"
    path.write_bytes(OLD % 1)
    written(state, 2)
    with path.open("ab") as file:
        file.write(b'{"id":4,"at":"20')
    written(state, 2)
    assert [] == Audit(state).verify()
    return path.read_bytes()


# --- written


def test_events_are_numbered_chained_and_read_as_they_were_returned(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "new" / "state")
    appended = [audit.append(event(number)) for number in range(3)]

    assert [1, 2, 3] == [each.id for each in appended]
    assert appended == audit.events() == read_audit(tmp_path / "new" / "state" / "audit.jsonl")
    assert [each.hash for each in appended] == [each.hash for each in audit.events()]
    assert f"3:{appended[-1].hash}" == audit.head()
    assert [] == audit.verify()


def test_each_line_seals_the_bytes_of_the_one_before(tmp_path: Path) -> None:
    lines = written(tmp_path).read_bytes().splitlines(keepends=True)
    assert [sha256(line).hexdigest() for line in lines[:-1]] == [json.loads(line)["prev"] for line in lines[1:]]


def test_what_was_never_written_is_empty_and_whole(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "state")
    assert ([], "", "", []) == (audit.events(), audit.head(), audit.version_at(0), audit.verify())
    assert not (tmp_path / "state").exists()


def test_lines_older_than_hashes_stay_readable_and_are_sealed_by_the_first_that_has_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(OLD % 1 + OLD % 2)
    assert [] == Audit(tmp_path).verify()

    assert 3 == Audit(tmp_path).append(event()).id
    assert [1, 2, 3] == [each.id for each in Audit(tmp_path).events()]
    path.write_bytes(path.read_bytes().replace(b"ann", b"eve", 1))
    assert ["changed, removed or added before event 3"] == [problem.what for problem in Audit(tmp_path).verify()]


def test_a_line_torn_by_a_crash_is_passed_over_and_sealed(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    with path.open("ab") as file:
        file.write(b'{"id":3,"at":"2026-')
    assert [3] == [problem.line for problem in Audit(tmp_path).verify()]

    assert 3 == Audit(tmp_path).append(event()).id
    assert [1, 2, 3] == [each.id for each in Audit(tmp_path).events()]
    assert [] == Audit(tmp_path).verify()
    path.write_bytes(path.read_bytes().replace(b'"at":"2026-\n', b'"at":"2027-\n'))
    assert Audit(tmp_path).verify()


def test_a_line_whose_newline_was_lost_is_gone_on_from(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    os.truncate(path, path.stat().st_size - 1)
    assert Audit(tmp_path).verify()
    assert 3 == Audit(tmp_path).append(event()).id
    assert [] == Audit(tmp_path).verify()


def test_an_event_that_is_larger_than_any_block_is_gone_on_from(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.append(event(why="x" * 200_000))
    audit.append(event(1))
    with audit.writing() as trail:
        assert version(1) == trail.version
    assert [] == audit.verify()


def test_several_events_can_be_written_under_one_lock(tmp_path: Path) -> None:
    with Audit(tmp_path).writing() as trail:
        assert "" == trail.version
        assert [1, 2] == [trail.append(event(number)).id for number in range(2)]
        assert version(1) == trail.version
        trail.append(event(2, version=""))
        assert version(1) == trail.version
    assert [] == Audit(tmp_path).verify()


def _append_many(state: Path, by: str) -> None:
    audit_module.LOCK_WAIT_S = 100.0  # on a slow disk the others have their turns for long
    for number in range(20):
        Audit(state).append(event(number, by=by))


def test_processes_that_write_at_once_lose_nothing_and_break_no_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "LOCK_WAIT_S", 100.0)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(tmp_path, name)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        while writer.is_alive():
            assert [] == Audit(tmp_path).verify()
            writer.join(0.01)

    assert list(range(1, 81)) == [each.id for each in Audit(tmp_path).events()]
    for name in "abcd":
        assert list(range(20)) == [each.before for each in Audit(tmp_path).events() if each.by == name]
    assert [] == Audit(tmp_path).verify()


def test_a_trail_that_is_moved_away_is_begun_anew_and_its_numbers_go_on(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    path.rename(tmp_path / "audit.old")
    assert 4 == Audit(tmp_path).append(event()).id
    assert [] == Audit(tmp_path).verify()


# --- harmed


def _problems(state: Path, data: bytes) -> bool:
    (state / "audit.jsonl").write_bytes(data)
    return bool(Audit(state).verify())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, whole: bytes) -> Path:
    """A state directory with the right head and, for each test in turn, a harmed trail."""
    state = tmp_path_factory.mktemp("copy")
    last = json.loads(whole.splitlines()[-1])
    Audit(state).write_head(Event(last["id"], "", "", "", "", "", "", "", "", hash=last["hash"]))
    assert not _problems(state, whole)
    return state


def test_any_flipped_byte_is_detected(copy: Path, whole: bytes) -> None:
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        assert _problems(copy, flipped), place


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_in_the_place_of_another_is_detected(copy: Path, whole: bytes, place: int, byte: int) -> None:
    place %= len(whole)
    assert (whole[place] != byte) == _problems(copy, whole[:place] + bytes([byte]) + whole[place + 1 :])


@given(place=st.integers(0, 10_000), more=st.binary(min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_bytes_added_are_detected(copy: Path, whole: bytes, place: int, more: bytes) -> None:
    place %= len(whole) + 1
    assert _problems(copy, whole[:place] + more + whole[place:])


def test_a_trail_cut_off_anywhere_is_detected(copy: Path, whole: bytes) -> None:
    for length in range(len(whole)):
        assert _problems(copy, whole[:length]), length


@given(order=st.permutations(range(6)), count=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_lines_in_another_order_or_fewer_are_detected(copy: Path, whole: bytes, order: list[int], count: int) -> None:
    lines = whole.splitlines(keepends=True)
    assert 6 == len(lines)
    mixed = b"".join(lines[index] for index in order[:count])
    assert (mixed != whole) == _problems(copy, mixed)


def test_any_flipped_byte_of_the_head_is_detected(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "audit.head"
    head = path.read_bytes()
    for place in range(len(head)):
        path.write_bytes(head[:place] + bytes([head[place] ^ 1 << place % 8]) + head[place + 1 :])
        assert Audit(tmp_path).verify(), place


@pytest.mark.parametrize("name", ["audit.head", "audit.jsonl"])
def test_a_missing_file_is_detected(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    assert 1 == len(Audit(tmp_path).verify())


def test_a_trail_that_was_cut_and_gone_on_with_keeps_its_gap(tmp_path: Path) -> None:
    path = written(tmp_path, 5)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    for number in range(3):
        Audit(tmp_path).append(event(number))

    assert [1, 2, 3, 6, 7, 8] == [each.id for each in Audit(tmp_path).events()]
    assert ["event 6 follows event 3: some are missing"] == [problem.what for problem in Audit(tmp_path).verify()]


def test_a_problem_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"before":2', b'"before":9'))
    (problem,) = Audit(tmp_path).verify()
    assert (3, "changed, removed or added before event 4") == (problem.line, problem.what)


def test_a_chain_forged_with_its_head_contradicts_a_head_that_was_kept_elsewhere(tmp_path: Path) -> None:
    written(tmp_path)
    kept = Audit(tmp_path).head()
    Audit(tmp_path).append(event(9))
    assert [] == Audit(tmp_path).verify(kept)

    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.head").unlink()
    written(tmp_path, 9)
    assert [] == Audit(tmp_path).verify()
    assert [f"no event is {kept}"] == [problem.what for problem in Audit(tmp_path).verify(kept)]


def test_a_head_that_a_crash_has_left_behind_is_no_problem(tmp_path: Path) -> None:
    written(tmp_path, 2)
    head = (tmp_path / "audit.head").read_bytes()
    Audit(tmp_path).append(event(2))
    (tmp_path / "audit.head").write_bytes(head)
    assert [] == Audit(tmp_path).verify()
    assert 4 == Audit(tmp_path).append(event(3)).id
    assert [] == Audit(tmp_path).verify()


@given(st.binary(max_size=400))
@settings(max_examples=50, deadline=None)
def test_whatever_stands_in_the_file_it_can_be_read_verified_and_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    state = tmp_path_factory.mktemp("noise")
    (state / "audit.jsonl").write_bytes(data)
    Audit(state).verify()
    assert 1 <= Audit(state).append(event()).id
    assert [] == Audit(state).verify()


# --- failing


def test_a_trail_that_cannot_be_opened_lets_nothing_begin(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(IsADirectoryError), Audit(tmp_path).writing():
        pytest.fail("begun")


def test_what_is_urgent_happens_and_is_logged_where_it_cannot_be_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with Audit(tmp_path).writing(urgent=True) as trail:
        assert "" == trail.version
        assert UNRECORDED == trail.append(event(why="3 a.m.")).id
    assert "3 a.m." in caplog.text


def test_a_locked_trail_is_waited_for_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "LOCK_WAIT_S", 0.05)
    path = written(tmp_path)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="locked by another program"):
            Audit(tmp_path).append(event())
        assert UNRECORDED == Audit(tmp_path).append(event(), urgent=True).id
        assert 5 == len(Audit(tmp_path).events())
        assert [] == Audit(tmp_path).verify()
    assert 6 == Audit(tmp_path).append(event()).id


def test_room_is_kept_for_bad_times(tmp_path: Path) -> None:
    written(tmp_path, 1)
    reserve = (tmp_path / "audit.reserve").stat()
    assert RESERVE_BYTES == reserve.st_size <= reserve.st_blocks * 512


def test_a_full_disk_is_given_the_reserve_piece_by_piece(tmp_path: Path) -> None:
    audit, tries = Audit(tmp_path), []
    audit.append(event())

    def act() -> str:
        tries.append((tmp_path / "audit.reserve").stat().st_size)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        return "done"

    assert "done" == audit.with_room(act)
    assert [65_536, 57_344, 49_152] == tries
    audit.append(event())
    assert RESERVE_BYTES == (tmp_path / "audit.reserve").stat().st_size


@pytest.mark.parametrize("code", [5, 13, 28])
def test_a_disk_that_stays_full_or_fails_otherwise_is_an_error(tmp_path: Path, code: int) -> None:
    def act() -> None:
        raise OSError(code, "no")

    Audit(tmp_path).append(event())
    with pytest.raises(OSError, match="no"):
        Audit(tmp_path).with_room(act)


# --- versions


def test_the_text_of_a_version_is_kept_once_and_found_again(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    for _ in range(2):
        audit.keep_version(version(7), text(7))
    assert text(7) == audit.text_of(version(7))
    assert [f"{version(7)}.yaml"] == [path.name for path in (tmp_path / "versions").iterdir()]


@pytest.mark.parametrize("name", ["", "000000000000", "../secret_key", "ABCDEFABCDEF", "a" * 13])
def test_what_is_no_kept_version_has_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret_key.yaml").write_text("secret")
    assert Audit(tmp_path).text_of(name) is None


def test_a_kept_text_with_a_flipped_byte_is_reported_not_believed_and_mended(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.keep_version(version(1), text(1))
    (tmp_path / "versions" / f"{version(1)}.yaml").write_text(text(2))
    assert audit.text_of(version(1)) is None
    assert 1 == len(audit.verify())

    audit.keep_version(version(1), text(1))
    assert text(1) == audit.text_of(version(1))
    assert [] == audit.verify()


def test_old_versions_are_forgotten_but_never_the_one_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "KEPT_VERSIONS", 10)
    audit = Audit(tmp_path)
    for number in range(10):
        audit.keep_version(version(number), text(number))
        later = number + 2.1e9  # of a clock ahead of ours
        os.utime(tmp_path / "versions" / f"{version(number)}.yaml", (later, later))
    audit.keep_version(version(10), text(10))

    assert text(10) == audit.text_of(version(10))
    assert audit.text_of(version(0)) is None
    assert all(audit.text_of(version(number)) for number in range(2, 10))


def test_a_version_that_cannot_be_kept_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "versions").write_text("in the way")
    Audit(tmp_path).keep_version(version(1), text(1))
    assert version(1) in caplog.text


# --- time


def at(clock: str) -> str:
    return f"2026-03-01T{clock}:00.000+00:00"


def version_at(tmp_path: Path) -> Callable[[str], str]:
    return lambda clock: Audit(tmp_path).version_at(epoch(at(clock)))


def test_the_version_of_a_time_is_that_of_the_last_event_before(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.append(event(at=at("10:00"), version_before="first", version="second"))
    audit.append(event(at=at("10:30"), version=""))
    audit.append(event(at=at("11:00"), version_before="second", version="third"))
    expected = {"09:00": "first", "10:00": "second", "10:45": "second", "11:00": "third", "23:00": "third"}
    assert expected == {clock: version_at(tmp_path)(clock) for clock in expected}


def test_after_a_clock_was_put_back_the_later_event_counts(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.append(event(at=at("12:00"), version="before"))
    audit.append(event(at=at("11:10"), version="after"))
    assert "after" == version_at(tmp_path)("11:30") == version_at(tmp_path)("12:30")
    assert [] == audit.verify()


def test_a_time_that_is_none_counts_as_the_beginning() -> None:
    assert 0.0 == epoch("yesterday")


def test_flags_that_were_never_changed_were_in_force_all_the_time(tmp_path: Path) -> None:
    text = "version: 1\n"
    version = sha256(text.encode()).hexdigest()[:12]
    Audit(tmp_path).keep_version(version, text)
    assert version == Audit(tmp_path).version_at(0)
    Audit(tmp_path).keep_version(sha256(b"other").hexdigest()[:12], "other")
    assert "" == Audit(tmp_path).version_at(0)
