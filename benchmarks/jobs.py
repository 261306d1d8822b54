"""How many jobs a second go through rq, and how much of that is rq itself?

The work is nothing. `rq alone` calls a function that does nothing, in a child process for each job as rq does it; ours
also claims a row of the database, opens what work needs, and writes down the end.
"""

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rq
from redis import Redis
from rq.serializers import JSONSerializer

from .harness import SERVER_CORE, Plan, save, spread, table
from .library import PORT, Running, running, wait
from .pages import PYTHON

JOBS = 200
QUEUE, KIND = "default", "nothing"
RQ, OURS = "rq alone", "port"
WORKERS = (1, 4)


def main(plan: Plan) -> None:
    results: dict[str, list[float]] = {f"{name}, {count}": [] for count in WORKERS for name in (RQ, OURS)}
    jobs = JOBS if plan.keep else JOBS // 10
    for _ in range(min(plan.rounds, 5)):
        for count in WORKERS:
            results[f"{RQ}, {count}"].append(rate(RQ, count, jobs))
            results[f"{OURS}, {count}"].append(rate(OURS, count, jobs))
    rows = []
    for count in WORKERS:
        alone, ours = results[f"{RQ}, {count}"], results[f"{OURS}, {count}"]
        shares = [100 * mine / theirs for mine, theirs in zip(ours, alone, strict=True)]
        rows.append([str(count), spread(alone, 1), spread(ours, 1), spread(shares, 0)])
    table(
        f"{jobs} jobs that do nothing", ["workers", "rq alone, jobs/s", "port, jobs/s", "rq's share of time, %"], rows
    )
    save("jobs", plan, results)


def rate(name: str, workers: int, jobs: int) -> float:
    """Jobs a second, from the first that is taken to the last that has ended; all wait before a worker is there."""
    with TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        worker = [*PYTHON, "benchmarks.jobs", name, str(workers)]
        with running(PORT, home, lambda _: None, worker=["taskset", "-c", SERVER_CORE, *worker]) as application:
            ended = _by_rq(jobs) if name == RQ else _by_rows(application, jobs)
            wait(lambda: ended() > 0, "the first job", 30)
            began, first = time.perf_counter(), ended()
            wait(lambda: ended() >= jobs, "all jobs")
            return (jobs - first) / (time.perf_counter() - began)


def _by_rq(jobs: int) -> Any:
    redis = Redis.from_url(os.environ["REDIS_URL"])
    queue = rq.Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    for _ in range(jobs):
        queue.enqueue_call("os.getpid", result_ttl=0)  # what needs no import
    return lambda: jobs - len(queue)


def _by_rows(application: Running, jobs: int) -> Any:
    import sqlite3

    from fastapi_app.queue import Queue

    from .jobs import kinds

    queue = Queue(os.environ["REDIS_URL"], kinds())
    with closing(sqlite3.connect(application.database)) as connection, connection:
        ids = [f"nothing-{number}" for number in range(jobs)]
        insert = "INSERT INTO jobs (id, type, created_at, updated_at) VALUES (?, ?, datetime('now'), datetime('now'))"
        connection.executemany(insert, [(job_id, KIND) for job_id in ids])
    for job_id in ids:
        queue.put_now(KIND, job_id)
    queue.close()
    return lambda: application.scalar("SELECT count(*) FROM jobs WHERE status = 'completed'")


async def no_work(_request: Any, _arguments: Any, _report: Any) -> dict[str, Any]:
    return {}


def kinds() -> Any:
    """Those of the port, and the one that does nothing."""
    from fastapi_app.jobs import Kind
    from fastapi_app.kinds import KINDS

    KINDS[KIND] = Kind(QUEUE, timeout_s=60, attempts=1, work=no_work)
    return KINDS


if __name__ == "__main__":
    name, count = sys.argv[1:]
    if name == RQ:
        options = ["worker-pool", "-q", "-n", count, "-S", "json", "-u", os.environ["REDIS_URL"], QUEUE]
        os.execv(sys.executable, [*PYTHON, "rq.cli", *options])
    from fastapi_app.worker import main as work

    kinds()
    work(["--workers", count, "--queues", QUEUE, "--no-leader"])
