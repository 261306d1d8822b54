"""What a worker's child process does: one job, from the claim of its row to the end.

The row is looked at twice a second, also when nothing moves: whoever cancelled it or took it over has only changed it.
The worker is looked at as well: when it is gone, or says that it stops, the work is ended and its row goes back.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from typing import Any

from fastapi import FastAPI, Request
from sqlalchemy import Update, bindparam, select, update
from sqlalchemy.exc import DBAPIError

from . import commands, create_app, progress
from .db import DatabaseUnavailable, Db
from .files import off_loop
from .http import ApiError
from .jobs import (
    ACTIVE,
    LOOK_EVERY_S,
    REPORT_EVERY_S,
    SIGN_EVERY_S,
    TOO_LONG,
    UNEXPECTED,
    Kind,
    held,
    lock_whole,
    put_back,
    sum_up,
)
from .kinds import ERRANDS, KINDS
from .logs import LogFile
from .models import jobs, users, utcnow

END_S = 60.0  # for a database that is away, at the end of the work
AGAIN_S = 1.0

log = logging.getLogger("fastapi_app")
application: FastAPI | None = None  # made by the worker before it forks

_ONE = select(jobs).where(jobs.c.id == bindparam("job_id"))
_USER = select(users).where(users.c.id == bindparam("user_id"))
_AWAY = (DBAPIError, DatabaseUnavailable)


def work_on(job_id: str) -> None:
    """What rq calls: do this job, if it still waits."""
    asyncio.run(_in_application(lambda app: _work_on(app, job_id)))


def run(errand: str) -> None:
    """What rq calls: do all there is of work that has no rows of `jobs`."""
    asyncio.run(_in_application(ERRANDS[errand].work))


def runner(pid: int, worker: str) -> str:
    """The name of a process, as it stands in the rows that it has claimed."""
    return f"{socket.gethostname()[:40]}:{worker[:40]}:{pid}"


def this_runner() -> str:
    return runner(os.getpid(), os.environ.get("RQ_WORKER_ID", ""))


def request_of(app: FastAPI, user: Any = None, job_id: str = "") -> Request:
    """A request that nobody has sent."""
    state = {"user": user, "job_id": job_id}
    return Request({"type": "http", "method": "POST", "app": app, "headers": [], "client": None, "state": state})


async def _in_application(work: Any) -> None:
    """Do it, and end it when the worker is gone or says so by SIGTERM."""
    app = application or create_app()  # blocks: nobody waits in this process
    log_file = LogFile(app.state.settings.log_file)
    await off_loop(log_file.open)
    task = asyncio.create_task(work(app))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    guard = asyncio.create_task(with_parent(task))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        guard.cancel()
        await close(app)
        await off_loop(log_file.close)


async def with_parent(task: asyncio.Task[None]) -> None:
    """Cancel the task when the process that has forked this one is gone."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(LOOK_EVERY_S)
    task.cancel()


async def close(app: FastAPI) -> None:
    """What an application holds that serves nobody."""
    await app.state.outbox.aclose()
    await app.state.upstream.aclose()
    commands.stop()
    if app.state.redis is not None:
        await app.state.redis.aclose()
    app.state.queue.close()
    await app.state.database.dispose()


# A job


async def _work_on(app: FastAPI, job_id: str) -> None:
    db = Db(app.state.database)
    row = await claim(db, job_id)
    if row is not None:
        await Job(app, row, KINDS[row.type]).run()


async def claim(db: Db, job_id: str) -> Any | None:
    """The row, which is ours now; None when it is not waiting, or not yet."""
    row = await db.row(_ONE, {"job_id": job_id})
    if row is None or row.status != "queued" or row.type not in KINDS:
        return None
    if row.retry_at is not None and row.retry_at > utcnow():
        return None
    ours = {"status": "running", "attempts": row.attempts + 1, "runner": this_runner(), "retry_at": None}
    waiting = jobs.c.id == job_id, jobs.c.status == "queued", jobs.c.attempts == row.attempts
    async with db.transaction() as connection:
        changed = await connection.execute(update(jobs).where(*waiting).values(started_at=utcnow(), **ours))
        return (await connection.execute(_ONE, {"job_id": job_id})).one() if changed.rowcount else None


class Job:
    """One that is ours: `row` as it was claimed."""

    def __init__(self, app: FastAPI, row: Any, kind: Kind) -> None:
        self._app, self._row, self._kind = app, row, kind
        self._db = Db(app.state.database)
        self._percent, self._message = 0, ""
        self._written_at = time.monotonic()
        self._working: asyncio.Task[dict[str, Any]] | None = None
        self._lost = False  # somebody has ended it or taken it over

    async def run(self) -> None:
        user = await self._db.row(_USER, {"user_id": self._row.created_by}) if self._row.created_by else None
        request = request_of(self._app, user, self._row.id)
        self._working = asyncio.create_task(self._kind.work(request, self._row.arguments or {}, self._report))
        watching = asyncio.create_task(self._watch(self._working))
        try:
            end = await self._outcome(self._working)
        finally:
            watching.cancel()
        if not self._lost:
            await self._end(end)

    async def _outcome(self, working: asyncio.Task[dict[str, Any]]) -> dict[str, Any]:
        """What is to be written at the end."""
        limit = asyncio.timeout(self._kind.timeout_s)
        try:
            async with limit:
                return {"status": "completed", "result": await working}
        except ApiError as error:
            return {"status": "failed", "error": error.message}
        except asyncio.CancelledError:  # by whoever ends this process; our attempt does not count
            working.cancel()
            await asyncio.wait([working])
            return {"status": "queued", "runner": None, "attempts": self._row.attempts - 1}
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return {"status": "failed", "error": TOO_LONG}
            log.exception("job %s", self._row.id)
            return put_back(self._row, self._kind.attempts, UNEXPECTED)

    async def _end(self, end: dict[str, Any]) -> None:
        """Write it, for a while even to a database that is away; after that the leader notices."""
        self._percent = 100 if end["status"] == "completed" else self._percent
        end |= {"progress": self._percent, "message": self._message}
        until = time.monotonic() + END_S
        while True:
            try:
                return await self._write_end(end)
            except _AWAY:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _write_end(self, end: dict[str, Any]) -> None:
        if end["status"] not in ACTIVE:
            end = {**end, "active_type": None, "finished_at": utcnow()}
        parts = select(jobs.c.id).where(jobs.c.parent_id == self._row.id).limit(1)
        async with self._db.transaction() as connection:
            await lock_whole(connection, self._row)
            if end["status"] == "completed" and (await connection.execute(parts)).first():
                given = {"runner": None, "result": end["result"]}  # the last of its parts will complete it
                await connection.execute(self._change(given))
                await sum_up(connection, self._row.id)
            elif (await connection.execute(self._change(end))).rowcount and self._row.parent_id:
                await sum_up(connection, self._row.parent_id)
        await self._publish()

    async def _report(self, percent: int, message: str = "") -> None:
        """`percent` is held within 0 and 100, `message` cut at 500 characters. Written twice a second at most."""
        self._percent, self._message = min(max(int(percent), 0), 100), message[:500]
        if time.monotonic() - self._written_at >= REPORT_EVERY_S:
            await self._write({"progress": self._percent, "message": self._message})
            await self._publish()

    async def _watch(self, working: asyncio.Task[dict[str, Any]]) -> None:
        ours = select(jobs.c.id).where(held(self._row))
        while not self._lost:
            await asyncio.sleep(LOOK_EVERY_S)
            if time.monotonic() - self._written_at >= SIGN_EVERY_S:
                await self._write({})
                continue
            with contextlib.suppress(*_AWAY):
                self._lost = await self._db.row(ours) is None
        if not working.cancelling():  # or it would be disturbed while it clears away
            working.cancel()

    async def _write(self, values: dict[str, Any]) -> None:
        """A sign of life, at least. Whoever has lost the row gets no further."""
        self._written_at = time.monotonic()
        try:
            async with self._db.transaction() as connection:
                await lock_whole(connection, self._row)
                changed = await connection.execute(self._change({"updated_at": utcnow(), **values}))
                self._lost = not changed.rowcount
                if self._row.parent_id and not self._lost:
                    await sum_up(connection, self._row.parent_id)
        except _AWAY:
            log.warning("the progress of job %s could not be noted", self._row.id)
        if self._lost and self._working is not None:
            self._working.cancel()

    def _change(self, values: dict[str, Any]) -> Update:
        return update(jobs).where(held(self._row)).values(values)

    async def _publish(self) -> None:
        row = await self._db.row(_ONE, {"job_id": self._row.id})
        if row is not None and row.parent_id is None:
            await self._app.state.channel.publish(progress.of_job(row))
