"""Counters and live workers, written by several processes and harmed in several ways."""

import os
import signal
import socket
import sqlite3
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest

from gateway import ledger as ledger_module
from gateway import store as store_module
from gateway.latency import latency_bucket
from gateway.ledger import BOUNDS_S, Counter, Ledger, Trial
from gateway.model import Backend


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(ledger_module, "STALE_S", 60.0)  # no worker is gone when the machine is busy with others
    ledger = Ledger(tmp_path)
    ledger.start()
    yield ledger
    ledger.close()


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.002)
    return time.monotonic() - started


def test_before_anything_was_written_there_is_nothing_to_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    assert ([], [], {}) == (ledger.workers(), ledger.counters(), ledger.fallbacks())
    assert not (tmp_path / "state").exists()


def test_answers_are_summed_by_key_backend_and_status(ledger: Ledger, tmp_path: Path) -> None:
    for duration_s in (0.001, 0.005, 0.006, 99.0):
        ledger.count("a", Backend.FASTAPI, 200, duration_s)
    ledger.count("a", Backend.LEGACY, 500, 0.03)
    ledger.count_fallback("a")
    ledger.count_fallback("a")
    ledger.close()

    fast, slow = sorted(Ledger(tmp_path).counters(), key=lambda counter: counter.status)
    assert Counter("a", Backend.FASTAPI, 200, 4, 99.012, (2, 1, *[0] * 9, 1)) == fast
    assert Counter("a", Backend.LEGACY, 500, 1, 0.03, (0, 0, 0, 1, *[0] * 8)) == slow
    assert len(BOUNDS_S) + 1 == len(fast.buckets)
    assert {"a": 2} == Ledger(tmp_path).fallbacks()


def test_trials_are_summed_over_workers_apart_from_what_nobody_may_compare(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = Ledger(tmp_path)
        ledger.start()
        for status, duration_s in [(200, 0.010), (200, 0.010), (404, 0.010), (499, 0.010), (503, 0.020), (0, 7.0)]:
            ledger.count("a", Backend.FASTAPI, status, duration_s, True)
        ledger.count("a", Backend.LEGACY, 200, 0.010, True)
        ledger.count("a", Backend.LEGACY, 500, 0.010)
        ledger.count("b", Backend.FASTAPI, 500, 0.010)
        ledger.close()

    latencies = {latency_bucket(0.010): 8, latency_bucket(0.020): 2, latency_bucket(7.0): 2}
    port, legacy = Trial(12, 4, latencies), Trial(2, 0, {latency_bucket(0.010): 2})
    assert {("a", Backend.FASTAPI): port, ("a", Backend.LEGACY): legacy} == Ledger(tmp_path).trials()


def test_a_subject_counts_once_at_each_weight_however_often_and_wherever_it_asks(tmp_path: Path) -> None:
    for weight_bp, places in [(500, (1, 1, 499, 500)), (500, (1, 9999)), (1000, (999, 1000, 999))]:
        before = Ledger(tmp_path).splits()
        ledger = Ledger(tmp_path)
        ledger.start()
        for place_bp in places:
            ledger.count_place("a", weight_bp, place_bp)
        ledger.close()
    assert [(500, 4, 2)] == [(split.weight_bp, split.subjects, split.on_port) for split in before.values()]
    assert [(1000, 2, 1)] == [(s.weight_bp, s.subjects, s.on_port) for s in Ledger(tmp_path).splits().values()]


def test_trials_are_on_disk_within_a_third_of_a_second(ledger: Ledger, tmp_path: Path) -> None:
    ledger.seen("v1")
    until(ledger.workers)
    reader, took_s = Ledger(tmp_path), []
    for n in range(1, 6):
        ledger.count("a", Backend.FASTAPI, 200, 0.01, True)
        took_s.append(until(lambda n=n: [n] == [trial.count for trial in reader.trials().values()]))
    assert min(took_s) < 0.35  # each begins right after a write; with the heartbeat it would take a second


def test_an_idle_ledger_writes_only_its_heartbeat(ledger: Ledger, tmp_path: Path) -> None:
    ledger.seen("v1")
    until(ledger.workers)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as connection:
        versions = set()
        started = time.monotonic()
        while time.monotonic() < started + 1.5:
            versions |= set(connection.execute("PRAGMA data_version"))
            time.sleep(0.01)
        beats = (time.monotonic() - started) / ledger_module.BEAT_S
    assert len(versions) <= 2 + beats


def test_sums_outlive_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = Ledger(tmp_path)
        ledger.start()
        ledger.count("a", Backend.LEGACY, 200, 0.5)
        ledger.close()
    assert [(2, 1.0)] == [(counter.count, counter.sum_s) for counter in Ledger(tmp_path).counters()]


def test_counters_are_on_disk_about_a_second_later(ledger: Ledger) -> None:
    ledger.count("a", Backend.LEGACY, 200, 0.5)
    until(lambda: [1] == [counter.count for counter in ledger.counters()])


def test_the_version_a_worker_runs_is_on_disk_within_milliseconds(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BEAT_S", 100.0)  # no heartbeat brings it
    reader, took_s = Ledger(tmp_path), []
    for n in range(100):
        ledger.seen(f"v{n}", "broken" if n % 2 else "")
        took_s.append(until(lambda n=n: [f"v{n}"] == [worker.version for worker in reader.workers()]))
    assert sorted(took_s)[10] < 0.1  # the machine may be busy with others most of the time

    (worker,) = reader.workers()
    assert (os.getpid(), socket.gethostname(), "broken") == (worker.pid, worker.host, worker.rejected)
    assert worker.started_at <= worker.seen_at <= time.time()


def test_a_worker_that_closes_is_off_the_list(ledger: Ledger) -> None:
    ledger.seen("v1")
    until(ledger.workers)
    ledger.close()
    assert [] == ledger.workers()


def test_a_worker_that_is_heard_of_no_more_counts_as_gone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.seen("v1")
    until(ledger.workers)
    monkeypatch.setattr(ledger_module, "STALE_S", 0)
    assert [] == ledger.workers()


def work(state: Path, answers: int) -> None:
    store_module.BUSY_S = ledger_module.BUSY_S = 30.0  # what is left at the end is tried only once
    ledger = Ledger(state)
    ledger.start()
    ledger.seen("v1")
    for _ in range(answers):
        ledger.count("a", Backend.LEGACY, 200, 0.01)
    if not answers:
        signal.pause()
    ledger.close()


def test_workers_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    workers = [get_context("spawn").Process(target=work, args=(tmp_path, 2000)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [0] * 4 == [worker.exitcode for worker in workers]
    assert [8000] == [counter.count for counter in Ledger(tmp_path).counters()]


def test_a_killed_worker_is_off_the_list_at_once_and_struck_out_by_the_others(tmp_path: Path, ledger: Ledger) -> None:
    ledger.seen("v1")
    victim = get_context("spawn").Process(target=work, args=(tmp_path, 0))
    victim.start()
    until(lambda: {os.getpid(), victim.pid} == {worker.pid for worker in ledger.workers()})
    victim.kill()
    victim.join()

    assert [os.getpid()] == [worker.pid for worker in ledger.workers()]
    until(lambda: [(os.getpid(),)] == rows(tmp_path, "SELECT pid FROM workers"))


def rows(state: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(state / "ledger.sqlite3")) as connection:
        return connection.execute(query).fetchall()


# --- harm ---------------------------------------------------------------------------------------------------------


def delete(file: Path) -> None:
    file.unlink()


def delete_all(file: Path) -> None:
    for path in file.parent.iterdir():
        path.unlink(missing_ok=True)  # whoever finds the first one gone clears away the others


def overwrite(file: Path) -> None:
    """Where nobody has the old content in memory."""
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink()
    other = file.with_name("other")
    other.write_bytes(b"This is no database. " * 1000)
    other.replace(file)  # in one step: nobody begins a new one in between


def change_the_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("DROP TABLE counters; CREATE TABLE counters (other)")


@pytest.mark.parametrize("harm", [delete, delete_all, overwrite, change_the_tables])
def test_a_ledger_that_is_harmed_is_begun_anew_and_goes_on(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    workers = [Ledger(tmp_path), Ledger(tmp_path)]
    for worker in workers:
        worker.start()
        worker.count("a", Backend.LEGACY, 200, 0.1)
        worker.seen("v1")
    until(lambda: [2] == [counter.count for counter in workers[0].counters()])

    harm(tmp_path / "ledger.sqlite3")
    for worker in workers:
        worker.count("b", Backend.LEGACY, 200, 0.1)
        worker.seen("v2")
    until(lambda: [("b", 2)] == [(c.key, c.count) for c in workers[0].counters() if c.key == "b"])
    until(lambda: ["v2"] == [worker.version for worker in workers[0].workers()])
    for worker in workers:
        worker.close()


def test_where_nothing_can_be_written_nothing_is_raised_and_the_failure_counted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = Ledger(tmp_path / "file" / "state")
    ledger.start()
    ledger.count("a", Backend.LEGACY, 200, 0.1)
    ledger.seen("v1")
    until(lambda: ledger.dropped)
    assert ([], []) == (ledger.workers(), ledger.counters())
    ledger.close()


def test_what_a_locked_ledger_does_not_take_is_written_later(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_S", 0.05)
    ledger.seen("v1")
    until(ledger.workers)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.count("a", Backend.LEGACY, 200, 0.1)
        until(lambda: ledger.dropped)
        other.execute("ROLLBACK")
    until(lambda: [1] == [counter.count for counter in ledger.counters()])
    until(lambda: any(worker.dropped["ledger"] for worker in ledger.workers()))


def test_a_worker_tells_what_its_other_instruments_have_dropped(tmp_path: Path, ledger: Ledger) -> None:
    broken = Ledger(tmp_path / "elsewhere")
    broken.dropped = 7
    ledger.answer_for(journal=broken)
    ledger.seen("v1")
    until(lambda: [{"ledger": 0, "journal": 7}] == [worker.dropped for worker in ledger.workers()])


def test_counting_costs_less_than_a_microsecond(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    took_s = timeit.repeat(
        lambda: ledger.count("a", Backend.LEGACY, 200, 0.01), number=10_000, repeat=5, timer=time.process_time
    )
    assert min(took_s) / 10_000 < 1e-6
