"""Workers: they take jobs out of Redis and do each in a child process of its own.

python -m fastapi_app.worker [--workers N] [--queues NAME,NAME] [--grace S] [--no-leader]

One process holds them and starts those again that end; it has imported everything, so that a job begins at once. Any
number of such pools on any machines share one Redis, one database, and the folders of the library. One pool of all
leads (see `leader`). SIGTERM: no job is begun any more, those that run have `--grace` seconds to end, and then go back.
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import rq
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import worker_registration
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from typing_extensions import override

from . import create_app, fetchers, leader, priority, working
from .config import Settings, StartupError
from .db import Database, DatabaseUnavailable

OTHERS = ("default", "webhooks", "metadata", "media")  # the quick ones first
DOWNLOADS = "downloads"
GRACE_S = 10.0
TIDY_S = 5.0  # for a job to end when its grace is over
RESTART_S = 1.0
PATIENCE_S = 10.0  # with a database, at the start
SEEN_S = 30  # a worker that is not seen for so long, and a minute, is gone for rq
HEARTBEAT_S = 10

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

log = logging.getLogger("fastapi_app")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    config = Settings.load()
    if not config.redis_url:
        raise StartupError("REDIS_URL is missing: workers take their jobs out of Redis")
    working.application = create_app()
    asyncio.run(_prepare(config))
    priority.step_back()
    fetchers.shared.begin()  # of all workers
    gc.collect()
    gc.freeze()  # or the collector of every child would make the memory its own
    parts = {
        f"worker {number}": partial(_serve, config, names, options.grace)
        for number, names in enumerate(shares(options.workers, options.queues), 1)
    }
    if not options.no_leader:
        parts["leader"] = partial(leader.main, working.application)
    Pool(parts, stop_s=options.grace + 2 * TIDY_S).run()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m fastapi_app.worker", description="Do the jobs that wait in Redis.")
    parser.add_argument("--workers", type=_number, default=2, metavar="N", help="jobs at once (2)")
    parser.add_argument("--queues", type=_names, metavar="NAME,NAME", help="for all of them, the first ones first")
    parser.add_argument("--grace", type=float, default=GRACE_S, metavar="S", help="for running jobs at SIGTERM (10)")
    parser.add_argument("--no-leader", action="store_true", help="never look after what others have left")
    return parser.parse_args(arguments)


def _number(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"a number of at least 1 is expected, not {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    known, names = (*OTHERS, DOWNLOADS), text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no queue {name!r}, only {', '.join(known)}")
    return names


def shares(workers: int, queues: Sequence[str] | None = None) -> list[Sequence[str]]:
    """The queues of each worker: one is for downloads, one for all else, so that neither waits for the other."""
    if queues or workers == 1:
        return [queues or (*OTHERS, DOWNLOADS)] * workers
    return [(DOWNLOADS,), OTHERS, *[(*OTHERS, DOWNLOADS)] * (workers - 2)]


async def _prepare(config: Settings) -> None:
    """Look whether the database is as it should be, again when it is just being started or changed."""
    database, until = Database(config.database_url), time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                await database.prepare()
            except DatabaseUnavailable as error:
                if time.monotonic() > until:
                    raise StartupError(str(error)) from None
                await asyncio.sleep(0.5)
            else:
                return
    finally:
        await database.dispose()


class Pool:
    """Child processes by name, started again when they end. Nothing of them is left when `run` returns."""

    def __init__(self, parts: Mapping[str, Callable[[], None]], *, stop_s: float) -> None:
        self._parts, self._stop_s = parts, stop_s
        self._names: dict[int, str] = {}
        self._due = dict.fromkeys(parts, 0.0)  # when to start those that do not run
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self._stopping:
            for name in [name for name, due in self._due.items() if due <= time.monotonic()]:
                self._start(name)
            self._reap()
            time.sleep(0.1)
        for pid in self._names:
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + self._stop_s
        while self._names and time.monotonic() < until:
            self._reap()
            time.sleep(0.05)
        kill_children()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start(self, name: str) -> None:
        del self._due[name]
        pool = os.getpid()
        pid = os.fork()
        if pid:
            self._names[pid] = name
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _system(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == pool:
                self._parts[name]()
                code = 0
        except RedisError as error:
            log.warning("%s cannot reach Redis: %s", name, type(error).__name__)
        except Exception:
            log.exception("%s", name)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                name = self._names.pop(ended[0], None)
                if name is not None:
                    self._due[name] = time.monotonic() + RESTART_S
                    if not self._stopping:
                        log.warning("%s has ended and is started again", name)


def _serve(config: Settings, queues: Sequence[str], grace_s: float) -> None:
    _system(_PR_SET_CHILD_SUBREAPER, 1)  # what a killed job leaves behind comes to us
    Worker(config, queues, grace_s).work(logging_level="WARNING")


class Worker(rq.Worker):
    """rq's, which does not give up when Redis is away, and sees that no row of a killed job says it runs."""

    max_connection_wait_time = 2.0

    def __init__(self, config: Settings, queues: Sequence[str], grace_s: float) -> None:
        redis = Redis.from_url(config.redis_url, socket_connect_timeout=5)
        options: dict[str, Any] = {"worker_ttl": SEEN_S, "job_monitoring_interval": HEARTBEAT_S}
        super().__init__(list(queues), connection=redis, serializer=JSONSerializer, **options)
        self._config, self._grace_s = config, grace_s
        self._code: int | None = 0

    @override
    def monitor_work_horse(self, job: Job, queue: rq.Queue, execution: Execution) -> None:
        horse = self.horse_pid
        while self.horse_pid:
            with suppress(RedisError):  # what rq notes for itself; the row is the truth
                super().monitor_work_horse(job, queue, execution)
        if self._code != 0:
            asyncio.run(self._take_back(working.runner(horse, self.name)))

    @override
    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        ended = super().wait_for_horse()
        self._code = ended[1]
        kill_children()
        return ended

    async def _take_back(self, runner: str) -> None:
        database = Database(self._config.database_url)
        try:
            await leader.take_back(database, runner)
        except Exception:
            log.exception("the row of a killed job could not be put back; the leader will")
        finally:
            await database.dispose()

    @override
    def heartbeat(self, timeout: int | None = None, pipeline: "Pipeline | None" = None) -> None:
        super().heartbeat(timeout, pipeline)
        about = {**self.serialize(), "state": self.get_state()}  # Redis may have lost everything
        (self.connection if pipeline is None else pipeline).hset(self.key, mapping=about)
        worker_registration.register(self, pipeline)

    @override
    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        with suppress(RedisError):
            super().maintain_heartbeats(job, execution)

    @override
    def handle_warm_shutdown_request(self) -> None:
        """The job that runs may end; a while later it must."""
        for after_s, number in ((self._grace_s, signal.SIGTERM), (self._grace_s + TIDY_S, signal.SIGKILL)):
            timer = Timer(after_s, self._signal_horse, (number,))
            timer.daemon = True
            timer.start()

    def _signal_horse(self, number: int) -> None:
        if self.horse_pid:
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, number)

    @override
    def teardown(self) -> None:
        with suppress(RedisError):
            super().teardown()  # type: ignore[no-untyped-call]


def kill_children() -> None:
    """Whatever has this process for its parent, and what becomes its child by that."""
    while _has_children() and (children := list(_children())):
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _has_children() -> bool:
    """Asked after every job: to look through all processes takes longer than many a job."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if entry.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                yield int(entry.parent.name)


def _system(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()
