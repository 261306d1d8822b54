"""Jobs: what goes on after an answer, to be seen, to be begun and to be cancelled."""

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import discovery, enrichment, indexing, playlists, progress
from .audit import audit
from .db import Db, DbDep
from .http import ApiError, json_body, json_response, page_args, paged, query, read, success, text
from .identity import Manager, Member, Reader
from .jobs import ACTIVE, cancel
from .models import downloads, jobs

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

_JOB_ID = re.compile(r"[\w -]{0,63}[\w-]", re.ASCII)  # a blank at the end is none to some databases
_WHOLE = select(jobs).where(jobs.c.parent_id.is_(None))
_NEWEST = jobs.c.created_at.desc(), jobs.c.id.desc()
_ONE = select(jobs).where(jobs.c.id == bindparam("job_id"))
_LOCKED = _ONE.with_for_update()
_JOBS_BY_STATUS = select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)
_DOWNLOADS_BY_STATUS = select(downloads.c.status, func.count().label("number")).group_by(downloads.c.status)
_FILTERS = {"type": jobs.c.type, "status": jobs.c.status}


async def _index(request: Request, _: Db) -> str:
    return await indexing.start(request)


_STARTED: Mapping[str | None, Callable[[Request, Db], Awaitable[str]]] = {
    "enrichment": enrichment.start_all,
    "playlists": playlists.start_all,
    "discovery": discovery.start_all,
    "index": _index,
}


@read(router, "/", name="jobs.list_jobs")
async def list_jobs(request: Request, db: DbDep, _: Reader) -> Response:
    """The newest first. Parts of another job are not listed."""
    args = query(request)
    page, per_page = page_args(args)
    found = _WHOLE.where(*(column == args[name] for name, column in _FILTERS.items() if args.get(name)))
    total = await db.scalar(found.with_only_columns(func.count(jobs.c.id)))
    rows = await db.rows(found.order_by(*_NEWEST).offset((page - 1) * per_page).limit(per_page))
    return paged("jobs", [job_json(row) for row in rows], total, page, per_page)


@router.post("/", name="jobs.start_job")
async def start_job(request: Request, db: DbDep, _: Manager) -> Response:
    kind = text(await json_body(request), "type", 50)
    if kind not in _STARTED:
        kinds = ", ".join(map(str, _STARTED))
        raise ApiError(400, f"Invalid type. Must be one of: {kinds}", success=False)
    return success("The job has been started", 202, job_id=await _STARTED[kind](request, db))


@read(router, "/queues", name="jobs.list_queues")
async def list_queues(request: Request, db: DbDep, _: Reader) -> Response:
    """How many rows there are by status, and what the workers of Redis are doing, if there are any."""
    body = {
        "jobs": {row.status: row.number for row in await db.rows(_JOBS_BY_STATUS)},
        "downloads": {row.status: row.number for row in await db.rows(_DOWNLOADS_BY_STATUS)},
    }
    return json_response(body | await request.app.state.queue.seen())


@read(router, "/{job_id}", name="jobs.get_job")
async def get_job(job_id: str, db: DbDep, _: Reader) -> Response:
    return json_response(job_json(await _find(db, job_id)))


@router.post("/{job_id}/cancel", name="jobs.cancel_job")
async def cancel_job(request: Request, job_id: str, db: DbDep, _: Member) -> Response:
    """End it and its parts. Whoever does the work sees it in the row, and stops."""
    async with db.transaction() as connection:
        job = await _find(connection, job_id, lock=True)
        if job.status not in ACTIVE:
            raise ApiError(400, f"The job cannot be cancelled: it is {job.status}", success=False)
        await cancel(connection, job_id)
        await audit(connection, request, "jobs.cancel", f"job:{job_id}", type=job.type)
        job = (await connection.execute(_ONE, {"job_id": job_id})).one()
    if job.parent_id is None:
        await request.app.state.channel.publish(progress.of_job(job))
    return success("The job has been cancelled", job_id=job_id)


async def _find(db: Db | AsyncConnection, job_id: str, *, lock: bool = False) -> Any:
    row = None
    if _JOB_ID.fullmatch(job_id):
        row = (await db.execute(_LOCKED if lock else _ONE, {"job_id": job_id})).first()
    if row is None:
        raise ApiError(404, "Job not found", success=False)
    return row


def job_json(job: Any) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": job.type,
        "target": job.target,
        "status": job.status,
        "progress": job.progress,
        "message": job.message,
        "result": job.result,
        "error": job.error,
        "created_by": job.created_by,
        "created_at": _shown(job.created_at),
        "updated_at": _shown(job.updated_at),
        "started_at": _shown(job.started_at),
        "finished_at": _shown(job.finished_at),
    }


def _shown(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
