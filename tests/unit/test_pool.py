"""Threads for a blocking application, and how they reach the loop."""

import asyncio
import resource
import threading
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest

from gateway.pool import Mailbox, Pool
from tests.unit.test_wsgi import until


class Task:
    """A job that does what it is told."""

    queued_at = inf

    def __init__(self, work: Callable[[], object] = bool) -> None:
        self.work, self.ran, self.refused = work, threading.Event(), False

    def run(self) -> None:
        self.ran.set()
        self.work()

    def watch(self) -> None: ...

    def refuse(self) -> None:
        self.refused = True


@pytest.fixture
def hold() -> Iterator[threading.Event]:
    hold = threading.Event()
    yield hold
    hold.set()


async def test_a_job_that_fails_does_not_end_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(1, 10, 60)
    for error in (LookupError("first"), SystemExit("second")):

        def fail(error: BaseException = error) -> None:
            raise error

        assert pool.submit(Task(fail))
    last = Task()
    assert pool.submit(last)
    await until(last.ran.is_set)
    assert "LookupError: first" in caplog.text
    assert "SystemExit: second" in caplog.text
    assert 1 == pool.stats.threads


async def test_jobs_begin_in_the_order_in_which_they_came(hold: threading.Event) -> None:
    pool, order = Pool(1, 100, 60), []
    pool.submit(Task(hold.wait))
    for n in range(50):
        pool.submit(Task(lambda n=n: order.append(n)))
    hold.set()
    await until(lambda: len(order) == 50)
    assert list(range(50)) == order


async def test_a_job_that_leaves_takes_its_place_with_it(hold: threading.Event) -> None:
    pool = Pool(1, 100, 60)
    first = Task(hold.wait)
    pool.submit(first)
    await until(first.ran.is_set)
    jobs = [Task() for _ in range(20)]
    for job in jobs:
        pool.submit(job)
    assert [True] * 10 == [pool.withdraw(job) for job in jobs[::2]]
    assert [False, False] == [pool.withdraw(jobs[0]), pool.withdraw(first)]
    assert 10 == pool.stats.waiting
    hold.set()
    await until(lambda: not pool.unfinished)
    assert [False, True] * 10 == [job.ran.is_set() for job in jobs]
    assert 0 == pool._bell.qsize()


async def test_only_those_who_waited_too_long_are_refused(hold: threading.Event) -> None:
    pool = Pool(1, 100, 60)
    pool.submit(Task(hold.wait))
    old, young = Task(), Task()
    pool.submit(old)
    pool.submit(young)
    old.queued_at -= 60
    await until(lambda: old.refused)
    assert (False, 1) == (young.refused, pool.stats.refused)
    hold.set()
    await until(young.ran.is_set)
    assert not old.ran.is_set()


@pytest.fixture
def no_memory_for_threads() -> Iterator[Callable[[], None]]:
    stack = threading.stack_size(64 * 1_048_576)  # more than the C library would use again of a thread that ended
    before = resource.getrlimit(resource.RLIMIT_AS)

    def limit() -> None:
        """Room for all but the stack of a thread: nothing else of this process may want for memory."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 32 * 1_048_576, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)
    threading.stack_size(stack)


async def test_a_system_that_allows_no_more_threads_is_lived_with(
    no_memory_for_threads: Callable[[], None], hold: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    pool, first, second = Pool(4, 10, 60), Task(hold.wait), Task()
    pool.submit(first)
    await until(first.ran.is_set)
    no_memory_for_threads()
    assert pool.submit(second)
    assert (1, 1) == (pool.stats.threads, pool.stats.waiting)
    assert "no more than 1 threads" in caplog.text
    hold.set()
    await until(second.ran.is_set)


async def test_a_system_that_allows_no_thread_at_all_is_an_error(no_memory_for_threads: Callable[[], None]) -> None:
    pool = Pool(4, 10, 60)
    no_memory_for_threads()
    with pytest.raises(RuntimeError, match="thread"):
        pool.submit(Task())
    assert 0 == pool.unfinished


async def test_the_loop_is_woken_once_for_all_that_happened_meanwhile() -> None:
    class Loop:
        def __init__(self) -> None:
            self.calls: list[Callable[[], None]] = []
            self.call_soon_threadsafe = self.calls.append

    loop = Loop()
    mailbox = Mailbox(loop)
    futures = [asyncio.get_running_loop().create_future() for _ in range(5)]
    for future in futures:
        mailbox.wake(future)
        mailbox.wake(future)
    assert 1 == len(loop.calls)
    loop.calls.pop()()
    assert all(future.done() for future in futures)
    mailbox.wake(asyncio.get_running_loop().create_future())
    assert 1 == len(loop.calls)


def test_a_closed_loop_is_not_woken() -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    Mailbox(loop).wake(future)
    assert not future.done()
