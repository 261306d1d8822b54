"""One worker leads: real processes, a real lock, and what may happen to both."""

import fcntl
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from gateway.rollout import leader as leader_module
from gateway.rollout.leader import Leader
from tests.support.processes import wait_until


def lead(state: Path) -> None:
    """A worker that writes down when it tries to lead, and at every turn that it does."""

    def note() -> None:
        with (state / "turns").open("a") as file:
            file.write(f"{os.getpid()} {time.monotonic()}\n")

    def turn() -> None:
        with (state / "tries").open("a") as file:
            file.write(f"{os.getpid()} {time.monotonic()}\n")
        Leader._turn(leader)

    leader = Leader(state, [note])
    leader._turn = turn
    leader.start()
    signal.pause()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[BaseProcess]]:
    workers: list[BaseProcess] = [get_context("spawn").Process(target=lead, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    yield workers
    for worker in workers:
        worker.kill()
        worker.join()


def turns(state: Path, name: str = "turns") -> list[tuple[int, float]]:
    try:
        lines = (state / name).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(pid), float(at)) for pid, at in map(str.split, lines)]


def test_one_of_several_workers_leads_and_its_death_heals_within_a_second(
    tmp_path: Path, workers: list[BaseProcess]
) -> None:
    for living in (2, 1):
        wait_until(lambda: len(turns(tmp_path)) > 4, "a leader")
        (pid,) = {pid for pid, _ in turns(tmp_path)}
        victim = next(worker for worker in workers if worker.pid == pid)
        victim.kill()
        victim.join()
        died_at = time.monotonic()
        (tmp_path / "turns").rename(tmp_path / f"turns.{living}")

        pid, at = wait_until(lambda: turns(tmp_path), "the next leader")[0]
        assert pid != victim.pid
        tries = Counter(other for other, tried_at in turns(tmp_path, "tries") if died_at < tried_at < at)
        assert (
            max(tries.values(), default=0) * leader_module.TICK_S < 1
        )  # by the time of those who live, who may be held up


@pytest.fixture
def start() -> Iterator[Callable[..., Leader]]:
    leaders: list[Leader] = []

    def start(state: Path, *jobs: Callable[[], object]) -> Leader:
        leaders.append(Leader(state, jobs))
        leaders[-1].start()
        return leaders[-1]

    yield start
    for leader in leaders:
        leader.close()


def test_a_leader_that_closes_hands_over(tmp_path: Path, start: Callable[..., Leader]) -> None:
    first = start(tmp_path)
    wait_until(lambda: first.leading, "the first")
    second = start(tmp_path)
    time.sleep(2 * leader_module.TICK_S)
    assert not second.leading

    first.close()
    wait_until(lambda: second.leading, "the second")
    assert not first.leading


def test_a_job_that_fails_is_counted_logged_once_per_kind_and_harms_no_other(
    tmp_path: Path, start: Callable[..., Leader], caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    def bad() -> None:
        raise ValueError if len(done) % 2 else ZeroDivisionError

    leader = start(tmp_path, bad, lambda: done.append(1))
    wait_until(lambda: len(done) > 4, "turns")
    counted = {kind.rpartition(": ")[2]: count for kind, count in leader.failures.items()}
    assert {"ValueError", "ZeroDivisionError"} == set(counted)
    assert min(counted.values()) > 1
    ours = [record for record in caplog.records if record.name == leader_module.__name__]
    assert [logging.ERROR] * 2 == [record.levelno for record in ours]


def test_where_no_lock_can_be_made_nobody_leads_until_the_trouble_is_over(
    tmp_path: Path, start: Callable[..., Leader]
) -> None:
    (tmp_path / "state").touch()
    done: list[int] = []
    leader = start(tmp_path / "state", lambda: done.append(1))
    wait_until(lambda: sum(leader.failures.values()) > 1, "failures")
    assert ([], False) == (done, leader.leading)

    (tmp_path / "state").unlink()
    wait_until(lambda: leader.leading, "the lock")


def test_a_leader_whose_lock_file_was_deleted_does_not_lead_beside_another(
    tmp_path: Path, start: Callable[..., Leader]
) -> None:
    leader = start(tmp_path)
    wait_until(lambda: leader.leading, "the lock")
    with (tmp_path / "another").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        (tmp_path / "another").replace(tmp_path / leader_module.NAME)  # in one step: it makes no file in between
        wait_until(lambda: not leader.leading, "it to see")
        time.sleep(2 * leader_module.TICK_S)
        assert not leader.leading
    wait_until(lambda: leader.leading, "the lock, again")
