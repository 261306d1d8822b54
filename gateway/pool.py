"""Threads for a blocking application: a bounded number, a bounded queue, a bounded wait."""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

log = logging.getLogger(__name__)


class Mailbox:
    """Resolves futures of one loop from any thread; however many there are, the loop is woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._mail: deque[asyncio.Future[None]] = deque()
        self._announced = False

    def wake(self, future: asyncio.Future[None]) -> None:
        self._mail.append(future)
        if not self._announced:
            self._announced = True
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._announced = False  # first: what is added from here on announces itself
        mail = self._mail
        while mail:
            future = mail.popleft()
            if not future.done():
                future.set_result(None)


class Job(Protocol):
    """What the pool runs."""

    queued_at: float  # set by the pool when no thread is free; infinite until then

    def run(self) -> None:
        """Called in a thread, unless the job was withdrawn or refused."""

    def watch(self) -> None:
        """Called on the loop for a job that has been waiting for a while: notice when nobody wants it any more."""

    def refuse(self) -> None:
        """Called on the loop for a job that waited too long; it will not run."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The pool at one moment. `refused` counts from the start."""

    threads: int
    busy: int
    waiting: int
    refused: int


class Pool:
    """Runs jobs in daemon threads that start when they are needed. Everything but the threads stays on the loop.

    `_bell` rings once per waiting job, so that a job can leave the queue: a thread that finds nobody listens on.
    """

    def __init__(self, threads: int, queue: int, wait_s: float) -> None:
        self._size, self._most, self._wait_s = threads, threads + queue, wait_s
        self._round_s = min(0.25, wait_s / 4)
        self._threads: list[Thread] = []
        self._unfinished: set[Job] = set()  # waiting or running
        self._waiting: deque[Job] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._refused = 0
        self._rounds: asyncio.TimerHandle | None = None
        self._mailbox: Mailbox | None = None

    @property
    def stats(self) -> Stats:
        waiting = len(self._waiting)
        return Stats(len(self._threads), len(self._unfinished) - waiting, waiting, self._refused)

    @property
    def unfinished(self) -> int:
        return len(self._unfinished)

    def mailbox(self) -> Mailbox:
        """The mailbox of the running loop. There is one loop for life, but test clients bring one per request."""
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox, self._rounds = Mailbox(loop), None
        return self._mailbox

    def submit(self, job: Job) -> bool:
        """Run the job as soon as a thread is free. False when too many wait already."""
        unfinished = self._unfinished
        if len(unfinished) >= self._most:
            self._refused += 1
            return False
        if len(unfinished) >= len(self._threads) and not self._add_thread():
            self._queue(job)
        unfinished.add(job)
        self._waiting.append(job)
        self._bell.put(None)
        return True

    def _add_thread(self) -> bool:
        if len(self._threads) >= self._size:
            return False
        thread = Thread(target=self._work, name=f"gateway-legacy-{len(self._threads) + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise
            log.warning("The system allows no more than %d threads: %s", len(self._threads), error)
            self._size = len(self._threads)
            return False
        self._threads.append(thread)
        return True

    def _queue(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        job.queued_at = loop.time()
        if self._rounds is None:
            self._rounds = loop.call_later(self._round_s, self._make_round, loop)

    def _make_round(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for job in list(self._waiting):
            waited_s = now - job.queued_at
            if waited_s >= self._wait_s:
                if self.withdraw(job):
                    self._refused += 1
                    job.refuse()
            elif waited_s >= self._round_s:
                job.watch()
        self._rounds = loop.call_later(self._round_s, self._make_round, loop) if self._waiting else None

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue. False when it has begun."""
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        self._unfinished.discard(job)
        with suppress(Empty):
            self._bell.get_nowait()
        return True

    def _work(self) -> None:
        while True:
            self._bell.get()
            try:
                job = self._waiting.popleft()
            except IndexError:
                continue
            try:
                job.run()
            except BaseException:  # one job must not end the thread of all that follow
                log.exception("A job failed to handle its own failure")
            self._unfinished.discard(job)
            del job
