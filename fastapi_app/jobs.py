"""Work that goes on after the answer: a task of this process, and a row of `jobs` that says how far it is.

The row is the truth. One that nobody has touched for a while belongs to a process that is gone.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from fastapi import Request
from sqlalchemy import and_, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from .audit import audit
from .containment import refuse
from .db import Database, DatabaseUnavailable, Db
from .http import ApiError
from .models import jobs, utcnow

log = logging.getLogger("fastapi_app")

ACTIVE = ("queued", "running")
REPORT_EVERY_S = 0.5
GONE_AFTER = timedelta(minutes=5)  # without a sign of life; every job reports more often

UNEXPECTED = "The work was ended by an unexpected error"
STOPPED = "The server was stopped"
GONE = "The process that did the work is gone"

Report = Callable[[int, str], Awaitable[None]]
Work = Callable[[Report], Awaitable[dict[str, Any]]]

_ACTIVE = jobs.c.status.in_(ACTIVE)
_RUNNING = (
    select(jobs.c.id).where(jobs.c.type == bindparam("kind"), _ACTIVE, jobs.c.updated_at > bindparam("since")).limit(1)
)


async def start(request: Request, kind: str, work: Work, *, busy: str = "", **detail: Any) -> str:
    """Begin `work(report)` in a task that ends with the application at the latest; the id of its row.

    With `busy`, a sentence, there is one such job at a time: raises ApiError 409 with the id of the one that runs.

    `work` awaits `report(percent, message)` as often as it likes and returns the result for the row. What it raises
    ends the job with a sentence: an ApiError with its own. It outlives the request, so it opens its own `Db`.
    """
    refuse("jobs", kind)
    job_id, user = uuid.uuid4().hex, getattr(request.state, "user", None)
    row = {"id": job_id, "type": kind, "active_type": kind if busy else None, "created_by": user.id if user else None}
    db = Db(request.app.state.database)
    try:
        async with db.transaction() as connection:
            await _end_forgotten(connection)
            await _refuse_second(connection, kind, busy)
            await connection.execute(insert(jobs).values(row))
            await audit(connection, request, "jobs.start", f"job:{kind}", **detail)
    except IntegrityError:  # somebody else began it at the same time
        async with db.transaction() as connection:
            await _refuse_second(connection, kind, busy)
        raise
    request.app.state.jobs.run(job_id, work)
    return job_id


async def running(db: Db | AsyncConnection, kind: str) -> str | None:
    """The id of a job of this kind that has not ended."""
    row = (await db.execute(_RUNNING, {"kind": kind, "since": utcnow() - GONE_AFTER})).first()
    return row.id if row else None


async def _refuse_second(connection: AsyncConnection, kind: str, busy: str) -> None:
    job_id = await running(connection, kind) if busy else None
    if job_id is not None:
        raise ApiError(409, busy, job_id=job_id)


async def _end_forgotten(connection: AsyncConnection) -> None:
    forgotten = and_(_ACTIVE, jobs.c.updated_at <= utcnow() - GONE_AFTER)
    ended = {"status": "failed", "active_type": None, "error": GONE, "finished_at": utcnow()}
    await connection.execute(update(jobs).where(forgotten).values(ended))


class Jobs:
    """The jobs that this process does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ends: dict[asyncio.Task[dict[str, Any]], asyncio.Task[None]] = {}

    def run(self, job_id: str, work: Work) -> None:
        progress = Progress(self._database, job_id)
        working = asyncio.create_task(self._begin(job_id, work, progress), name=f"job {job_id}")
        self._ends[working] = end = asyncio.create_task(self._end(job_id, working, progress))
        end.add_done_callback(lambda _: self._ends.pop(working))

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until its rows say so."""
        for working in self._ends:
            working.cancel()
        await asyncio.gather(*self._ends.values())

    async def _begin(self, job_id: str, work: Work, progress: "Progress") -> dict[str, Any]:
        await _write(self._database, job_id, status="running", started_at=utcnow())
        return await work(progress.report)

    async def _end(self, job_id: str, working: asyncio.Task[dict[str, Any]], progress: "Progress") -> None:
        end: dict[str, Any]
        try:
            result = await working
        except ApiError as error:
            end = {"status": "failed", "error": error.message}
        except asyncio.CancelledError:
            end = {"status": "cancelled", "error": STOPPED}
        except Exception:
            log.exception("job %s", job_id)
            end = {"status": "failed", "error": UNEXPECTED}
        else:
            progress.percent = 100
            end = {"status": "completed", "result": result}
        end |= {"progress": progress.percent, "message": progress.message, "active_type": None, "finished_at": utcnow()}
        try:
            await _write(self._database, job_id, **end)
        except Exception:
            log.exception("the end of job %s could not be noted", job_id)


class Progress:
    """What was reported last. It is written twice a second at most, and at the end."""

    def __init__(self, database: Database, job_id: str) -> None:
        self._database, self._job_id = database, job_id
        self.percent, self.message = 0, ""
        self._written_at = time.monotonic()

    async def report(self, percent: int, message: str = "") -> None:
        """`percent` is held within 0 and 100, `message` cut at 500 characters."""
        self.percent, self.message = min(max(int(percent), 0), 100), message[:500]
        if time.monotonic() - self._written_at < REPORT_EVERY_S:
            return
        self._written_at = time.monotonic()
        try:
            await _write(self._database, self._job_id, progress=self.percent, message=self.message)
        except (DBAPIError, DatabaseUnavailable):
            log.warning("the progress of job %s could not be noted", self._job_id)


async def _write(database: Database, job_id: str, **values: Any) -> None:
    async with Db(database).transaction() as connection:
        await connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
