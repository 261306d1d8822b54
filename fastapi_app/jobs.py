"""Work that goes on after the answer: a row of `jobs`, the truth about it, and a worker that does it.

A row is `queued`, then `running`, then `completed`, `failed` or `cancelled`. Who takes it counts `attempts`, and writes
to it only while it is running and nobody else has counted. So a row that was cancelled or taken over is not changed by
who had it, and to end a job is to change its status. `updated_at` is a sign of life.
"""

import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import Request
from sqlalchemy import ColumnElement, and_, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from .audit import audit
from .containment import refuse
from .db import Db
from .http import ApiError
from .models import jobs, utcnow

ACTIVE = ("queued", "running")
REPORT_EVERY_S = 0.5
LOOK_EVERY_S = 0.5  # at the own row
SIGN_EVERY_S = 5.0  # of life
GONE_AFTER = timedelta(minutes=5)  # without a sign of life; every job gives them more often
BACKOFF_S = 5.0  # before the first repetition
MAX_BACKOFF_S = 300.0

UNEXPECTED = "The work was ended by an unexpected error"
TOO_LONG = "The work took too long"
GONE = "The process that did the work is gone"
INCOMPLETE = "A part of the work was cancelled"

Report = Callable[[int, str], Awaitable[None]]
Work = Callable[[Request, Mapping[str, Any], Report], Coroutine[Any, Any, dict[str, Any]]]

_ACTIVE = jobs.c.status.in_(ACTIVE)
_ONE = select(jobs).where(jobs.c.id == bindparam("job_id"))
_LOCKED = _ONE.with_for_update()
_RUNNING = (
    select(jobs.c.id)
    .where(jobs.c.type == bindparam("kind"), _ACTIVE, jobs.c.updated_at > bindparam("since"))
    .where(jobs.c.parent_id.is_(None))
    .order_by(jobs.c.created_at)
    .limit(1)
)
_RUNNING_TARGET = _RUNNING.where(jobs.c.target == bindparam("target"))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work: the queue of Redis where it waits, and `work(request, arguments, report)`.

    `work` awaits `report(percent, message)` as often as it likes and returns the result for the row. What it raises
    ends the job with a sentence: an ApiError with its own, and for good; anything else after `attempts` attempts.
    `request` is none that a client has sent: its `app` is a whole application, its `state.user` who has begun the job.
    """

    queue: str
    timeout_s: float
    attempts: int
    work: Work
    has_rows: bool = True


class Taken(Exception):
    """The job is somebody else's, or over: there is nothing left to do for us."""


# Beginning


async def start(
    request: Request,
    kind: str,
    arguments: Mapping[str, Any],
    *,
    target: str = "",
    busy: str = "",
    job_id: str = "",
    **detail: Any,
) -> str:
    """Have the work of this kind done by a worker; the id of its row. `arguments` are JSON, `detail` is for the audit.

    With `busy`, a sentence, there is one such job at a time for each target: raises ApiError 409 with the id of the one
    that runs. Raises ApiError 503 without a Redis.
    """
    refuse("jobs", kind)
    queue, user = request.app.state.queue, getattr(request.state, "user", None)
    await queue.check()
    row = {
        "id": job_id or uuid.uuid4().hex,
        "type": kind,
        "active_type": ":".join(filter(None, (kind, target))) if busy else None,
        "target": target or None,
        "arguments": dict(arguments),
        "created_by": user.id if user else None,
    }
    db = Db(request.app.state.database)
    try:
        async with db.transaction() as connection:
            await _end_forgotten(connection, kind, target)
            await _refuse_second(connection, kind, target, busy)
            await connection.execute(insert(jobs).values(row))
            await audit(connection, request, "jobs.start", f"job:{kind}", **detail)
    except IntegrityError:  # somebody else began it at the same time
        await _refuse_second(db, kind, target, busy)
        raise
    await queue.put(kind, row["id"])
    return str(row["id"])


async def running(db: Db | AsyncConnection, kind: str, target: str = "") -> str | None:
    """The id of a job of this kind that has not ended."""
    values = {"kind": kind, "since": utcnow() - GONE_AFTER}
    if target:
        row = (await db.execute(_RUNNING_TARGET, values | {"target": target})).first()
    else:
        row = (await db.execute(_RUNNING, values)).first()
    return row.id if row else None


async def _refuse_second(db: Db | AsyncConnection, kind: str, target: str, busy: str) -> None:
    job_id = await running(db, kind, target) if busy else None
    if job_id is not None:
        raise ApiError(409, busy, job_id=job_id)


async def _end_forgotten(connection: AsyncConnection, kind: str, target: str) -> None:
    """Those that nobody has touched for so long would keep a new one from beginning."""
    forgotten = and_(jobs.c.type == kind, _ACTIVE, jobs.c.updated_at <= utcnow() - GONE_AFTER)
    if target:
        forgotten = and_(forgotten, jobs.c.target == target)
    ids = list((await connection.execute(select(jobs.c.id).where(forgotten))).scalars())
    if ids:  # by their ids: a search would lock the rows in another order than those who change them
        ended = {"status": "failed", "active_type": None, "error": GONE, "finished_at": utcnow()}
        await connection.execute(update(jobs).where(jobs.c.id.in_(ids), forgotten).values(ended))


# Parts


async def start_parts(request: Request, parent_id: str, kind: str, arguments: Sequence[Mapping[str, Any]]) -> None:
    """To be called by the work of `parent_id`, which is `request.state.job_id`: have parts of it done by other workers.

    The progress of the whole is that of its parts. When the work has returned, the last part that ends completes it:
    numbers of all results are added. If one of them failed, the whole has failed, but not before all have ended.
    Called again, after a crash, it begins nothing twice.
    """
    refuse("jobs", kind)
    rows = [
        {"id": f"{parent_id[:55]}-{number}", "parent_id": parent_id, "type": kind, "arguments": dict(one)}
        for number, one in enumerate(arguments)
    ]
    async with Db(request.app.state.database).transaction() as connection:
        known = set((await connection.execute(select(jobs.c.id).where(jobs.c.parent_id == parent_id))).scalars())
        new = [row for row in rows if row["id"] not in known]
        if new:
            await connection.execute(insert(jobs), new)
    for row in new:
        await request.app.state.queue.put(kind, str(row["id"]))


async def lock_whole(connection: AsyncConnection, part: Any) -> None:
    """To be called before a row is changed that may be a part: whoever cancels locks the whole first, too."""
    if part.parent_id:
        await connection.execute(_LOCKED, {"job_id": part.parent_id})


async def sum_up(connection: AsyncConnection, parent_id: str) -> None:
    """Bring a job whose parts do the work up to date, and complete it when they have ended."""
    parent = (await connection.execute(_LOCKED, {"job_id": parent_id})).first()
    if parent is None or parent.status != "running" or parent.runner is not None:
        return
    parts = (await connection.execute(select(jobs).where(jobs.c.parent_id == parent_id).order_by(jobs.c.id))).all()
    if not parts:
        return
    over = [part for part in parts if part.status not in ACTIVE]
    percent = sum(100 if part.status not in ACTIVE else part.progress for part in parts) // len(parts)
    values: dict[str, Any] = {"progress": percent, "message": f"{len(over)} of {len(parts)} parts"}
    if len(over) == len(parts):
        error = next((part.error or INCOMPLETE for part in parts if part.status != "completed"), None)
        result = _added([parent.result or {}, *(part.result or {} for part in parts)])
        values |= {"status": "failed" if error else "completed", "result": result, "error": error}
        values |= {"active_type": None, "finished_at": utcnow()}
    await connection.execute(update(jobs).where(jobs.c.id == parent_id).values(values))


def _added(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for result in results:
        for name, value in result.items():
            adds = isinstance(value, int | float | list) and isinstance(total.get(name), int | float | list)
            total[name] = total[name] + value if adds else value
    return total


# Ending


async def cancel(connection: AsyncConnection, job_id: str) -> bool:
    """End a job and its parts, wherever they are being done; whether there was anything to end."""
    ended = {"status": "cancelled", "active_type": None, "retry_at": None, "finished_at": utcnow()}
    whole = await connection.execute(update(jobs).where(jobs.c.id == job_id, _ACTIVE).values(ended))
    await connection.execute(update(jobs).where(jobs.c.parent_id == job_id, _ACTIVE).values(ended))
    return whole.rowcount == 1


def put_back(row: Any, attempts: int, error: str) -> dict[str, Any]:
    """What becomes of a row whose work has broken off: it waits a while for the next attempt, or it has failed."""
    if row.attempts < attempts and row.arguments is not None:
        return {"status": "queued", "runner": None, "retry_at": utcnow() + _pause(row.attempts)}
    return {"status": "failed", "active_type": None, "error": error, "finished_at": utcnow()}


def _pause(attempts: int) -> timedelta:
    longest = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** (attempts - 1))
    return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311 - no secret


def held(row: Any) -> ColumnElement[bool]:
    """Whether a row is still with the one who has claimed it so."""
    return and_(jobs.c.id == row.id, jobs.c.attempts == row.attempts, jobs.c.status == "running")
