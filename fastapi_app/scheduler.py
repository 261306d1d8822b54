"""The scheduler: when it looks for new videos of all monitored artists, and doing so now."""

from fastapi import APIRouter, Request
from sqlalchemy import func, select
from starlette.responses import Response

from . import discovery, settings
from .db import DbDep
from .http import json_response, read, success
from .identity import Manager, Reader
from .jobs import running
from .models import jobs, utcnow
from .schedule import read_schedule

router = APIRouter(prefix="/api/settings/scheduler", tags=["settings"])

_LAST_RUN = select(func.max(jobs.c.finished_at)).where(jobs.c.type == "discovery")


@read(router, "/status", name="settings.scheduler_status")
async def scheduler_status(db: DbDep, _: Reader) -> Response:
    """`last_run` is when the work was last done, planned or not; times are UTC."""
    schedule = read_schedule(await settings.texts(db))
    next_run, last_run = schedule.next_run(utcnow()), await db.scalar(_LAST_RUN)
    return json_response(
        {
            "enabled": schedule.enabled,
            "time": schedule.time.strftime("%H:%M"),
            "days": schedule.days,
            "max_videos": schedule.max_videos,
            "next_run": next_run.isoformat() if next_run else None,
            "last_run": last_run.isoformat() if last_run else None,
            "running": await running(db, "discovery") is not None,
        }
    )


@router.post("/trigger", name="settings.scheduler_trigger")
async def scheduler_trigger(request: Request, db: DbDep, _: Manager) -> Response:
    """Do now what is planned, whether anything is planned or not."""
    schedule = read_schedule(await settings.texts(db))
    return success("Looking for new videos", 202, job_id=await discovery.start_all(request, db, schedule.max_videos))
