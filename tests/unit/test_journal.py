"""A line per request, in a ring of files that several processes share and several things harm."""

import multiprocessing
import os
import shutil
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import journal as journal_module
from gateway.journal import Entry, Journal, accept, new_id
from gateway.model import Backend, Reason
from tests.support.processes import wait_until

RING_BYTES = 1 << 20


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path, RING_BYTES)
    journal.start()
    yield journal
    journal.close()


def note(journal: Journal, name: str, **changes: Any) -> None:
    usual: dict[str, Any] = {
        "key": "videos.list",
        "method": "GET",
        "subject": "user:7",
        "version": "0123456789ab",
        "backend": Backend.FASTAPI,
        "reason": Reason.SPLIT,
        "bucket_bp": 1234,
        "status": 200,
        "fallback": False,
        "shadow": True,
    }
    journal.note(name, **(usual | changes))


def segments(state: Path) -> list[Path]:
    return sorted((state / "journal").iterdir())


def size(state: Path) -> int:
    return sum(path.stat().st_size for path in segments(state))


def close(journal: Journal) -> None:
    """Until the last line is written, which a busy machine may do later than `close` waits for it."""
    journal.close()
    wait_until(lambda: not journal._thread.is_alive(), "the last line")


def write(state: Path, *ids: str, max_bytes: int = RING_BYTES) -> Journal:
    """One life of one process."""
    journal = Journal(state, max_bytes)
    journal.start()
    for name in ids:
        note(journal, name)
    close(journal)
    return journal


# --- kept


def test_a_request_is_found_with_all_that_was_noted(journal: Journal, tmp_path: Path) -> None:
    note(journal, "one")
    note(
        journal, "two", key="", subject="", backend=Backend.LEGACY, reason=Reason.UNMATCHED, bucket_bp=None, status=404
    )
    entry = wait_until(lambda: Journal.find(tmp_path, "two"), "the line")
    assert (
        Entry(entry.at, "two", "", "GET", "", "0123456789ab", Backend.LEGACY, Reason.UNMATCHED, None, 404, False, True)
        == entry
    )
    found = Journal.find(tmp_path, "one")
    assert found is not None
    assert ("one", "videos.list", "user:7", 1234) == (found.id, found.key, found.subject, found.bucket_bp)


def test_what_was_never_noted_is_not_found(journal: Journal, tmp_path: Path) -> None:
    assert Journal.find(tmp_path, "one") is None
    note(journal, "one")
    wait_until(lambda: Journal.find(tmp_path, "one"), "the line")
    assert [None] * 5 == [Journal.find(tmp_path, name) for name in ("on", "ne", "", "videos.list", '"one"')]


def test_an_id_that_stands_elsewhere_in_a_line_is_no_request(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RING_BYTES)
    journal.start()
    note(journal, "wanted", subject="first")
    note(journal, "other", subject="wanted", key='"wanted"')
    close(journal)
    found = Journal.find(tmp_path, "wanted")
    assert found is not None
    assert "first" == found.subject


def test_of_two_requests_of_one_id_the_newest_is_found(tmp_path: Path) -> None:
    for status in (200, 201, 202):
        journal = Journal(tmp_path, RING_BYTES)
        journal.start()
        note(journal, "same", status=status - 100)
        note(journal, "same", status=status)
        close(journal)
    found = Journal.find(tmp_path, "same")
    assert found is not None
    assert 202 == found.status


@given(
    st.from_regex(r"[!-~]{1,40}", fullmatch=True),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Lu"]), max_size=40),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_subject_or_id_stays_in_its_line(tmp_path: Path, name: str, subject: str) -> None:
    state = tmp_path / os.urandom(8).hex()
    journal = Journal(state, RING_BYTES)
    journal.start()
    note(journal, "before")
    note(journal, name, subject=subject)
    note(journal, "after")
    close(journal)
    found = [Journal.find(state, each) for each in ("before", name, "after")]
    assert ["user:7", subject, "user:7"] == [entry.subject if entry else None for entry in found]
    assert 3 == len(segments(state)[0].read_bytes().splitlines())
    assert 0 == journal.dropped


def test_a_line_torn_by_a_crash_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path, "one")
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b'[1700000000.0,"torn","videos')
    write(tmp_path, "two")
    assert [True, False, True] == [Journal.find(tmp_path, name) is not None for name in ("one", "torn", "two")]


def test_a_journal_of_no_bytes_writes_nothing(tmp_path: Path) -> None:
    journal = write(tmp_path, "one", max_bytes=0)
    assert 0 == journal.dropped
    assert not (tmp_path / "journal").exists()


# --- the ring


def test_the_ring_stays_within_its_bytes_and_keeps_the_newest(tmp_path: Path) -> None:
    ids = [f"id-{number}" for number in range(8000)]
    journal = write(tmp_path, *ids, max_bytes=200_000)

    assert 0 == journal.dropped
    assert size(tmp_path) <= 200_000
    kept = [number for number, name in enumerate(ids) if Journal.find(tmp_path, name)]
    assert list(range(kept[0], 8000)) == kept
    assert len(kept) > 1000


def test_the_ring_stays_within_its_bytes_however_its_lines_come(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 200_000)
    for number in range(200):
        for _ in range(number * 37 % 300):
            note(journal, "id")
        journal._flush()
        assert sum(path.stat().st_size for path in tmp_path.glob("journal/*")) <= 200_000
    journal.start()
    close(journal)


def _live(state: Path, name: str) -> None:
    write(state, *(f"{name}-{number}" for number in range(3000)), max_bytes=400_000)


def test_processes_share_one_ring(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_live, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [0, 0, 0] == [process.exitcode for process in processes]
    assert size(tmp_path) <= 400_000 + len(processes) * 400_000 / 16 * 2
    assert any(Journal.find(tmp_path, f"{name}-2999") for name in "abc")


def test_processes_that_live_for_seconds_do_not_fill_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 5)
    for number in range(12):
        write(tmp_path, f"id-{number}")
    assert 5 >= len(segments(tmp_path))
    assert Journal.find(tmp_path, "id-11")


def test_what_is_old_is_told_by_the_number_not_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 3)
    for number in range(5):
        write(tmp_path, f"id-{number}")
        os.utime(segments(tmp_path)[-1], (1e9 - number, 1e9 - number))
    assert [False, False, True] == [Journal.find(tmp_path, f"id-{number}") is not None for number in (0, 1, 4)]


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 1)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "notes.log").write_text("mine")
    for number in range(3):
        write(tmp_path, f"id-{number}")
    assert "mine" == (tmp_path / "journal" / "notes.log").read_text()
    assert Journal.find(tmp_path, "id-2")


# --- harmed


def test_a_ring_that_is_deleted_is_begun_anew(journal: Journal, tmp_path: Path) -> None:
    note(journal, "one")
    wait_until(lambda: Journal.find(tmp_path, "one"), "the line")
    shutil.rmtree(tmp_path / "journal")
    note(journal, "two")
    wait_until(lambda: Journal.find(tmp_path, "two"), "the line after the deletion")
    assert 0 == journal.dropped


def test_what_cannot_be_written_is_counted_and_the_next_is_tried_again(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("in the way")
    for number in range(300):
        note(journal, f"lost-{number}")
    wait_until(lambda: journal.dropped == 300, "the count")

    (tmp_path / "journal").unlink()
    note(journal, "kept")
    wait_until(lambda: Journal.find(tmp_path, "kept"), "the line")
    assert 300 == journal.dropped


def test_what_no_thread_takes_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, RING_BYTES)
    surplus = 7
    for number in range(journal_module._MAX_PENDING + surplus):
        note(journal, str(number))
    assert surplus == journal.dropped
    journal.start()
    close(journal)
    assert [False, True] == [Journal.find(tmp_path, name) is not None for name in ("0", str(number))]


def test_closing_a_journal_that_never_began_is_no_error(tmp_path: Path) -> None:
    Journal(tmp_path, RING_BYTES).close()


# --- cost


def test_a_note_costs_a_few_microseconds_at_most(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RING_BYTES)
    values = ("id", "key", "GET", "user:7", "v", Backend.FASTAPI, Reason.SPLIT, 1, 200, False, False)
    assert min(timeit.repeat(lambda: journal.note(*values), number=1000, repeat=20)) / 1000 < 5e-6


def test_a_request_is_found_in_a_full_ring_within_a_second(tmp_path: Path) -> None:
    write(tmp_path, "first", max_bytes=1 << 26)
    line = segments(tmp_path)[0].read_bytes().replace(b"first", b"17c0ffee-0123456789ab-7")
    for number in range(15):
        (tmp_path / "journal" / f"{number + 2:012}-1.log").write_bytes(line * (4_194_304 // len(line)))
    assert Journal.find(tmp_path, "first")
    assert min(timeit.repeat(lambda: Journal.find(tmp_path, "nobody"), number=1, repeat=3)) < 1.0


# --- ids


def test_ids_are_unique_and_can_be_ids_of_a_proxy() -> None:
    ids = [new_id() for _ in range(20_000)]
    assert len(ids) == len(set(ids))
    assert ids[:50] == [accept(name.encode()) for name in ids[:50]]


def _ids(pipe: Any) -> None:
    pipe.send([new_id() for _ in range(1000)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ids_of_two_processes_are_never_the_same(method: str) -> None:
    context = multiprocessing.get_context(method)
    ours = [new_id() for _ in range(1000)]
    ends = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_ids, args=(end,)) for _, end in ends]
    for process in processes:
        process.start()
    ids = [name for end, _ in ends for name in end.recv()] + ours
    for process in processes:
        process.join()
    assert 3000 == len(set(ids))


def test_ids_begin_with_their_time_also_after_the_clock_was_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for now in (1_800_000_000.0, 1_800_000_001.0, 1_799_996_401.0, 1_800_003_601.0):
        clock = SimpleNamespace(time=lambda now=now: now, monotonic=time.monotonic)
        monkeypatch.setattr(journal_module, "time", clock)  # and of nobody else in this process
        ids.append(new_id())
    monkeypatch.undo()
    assert [0, 1000, -3_599_000, 3_601_000] == [int(name.split("-")[0], 16) - 1_800_000_000_000 for name in ids]
    new_id()


def test_an_id_costs_a_few_microseconds_at_most() -> None:
    assert min(timeit.repeat(new_id, number=1000, repeat=20)) / 1000 < 3e-6


@pytest.mark.parametrize("raw", [b"7", b"Root=1-67891233-abcdef012345678912345678;Sampled=1", b"x" * 128, b"a/b+c=_.~"])
def test_an_id_of_a_proxy_is_taken_as_it_is(raw: bytes) -> None:
    assert raw.decode() == accept(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"x" * 129, b"a b", b"a\nb", b"a\n", b"\x1b[31m", b"a\x00", b"caf\xc3\xa9", b"\x7f", b"x" * 60_000]
)
def test_an_id_that_could_forge_a_line_of_a_log_is_none(raw: bytes) -> None:
    assert accept(raw) is None


@given(st.binary(max_size=200))
def test_an_accepted_id_is_visible_ascii(raw: bytes) -> None:
    name = accept(raw)
    assert name is None or (name.isascii() and name.isprintable() and " " not in name and 1 <= len(name) <= 128)
