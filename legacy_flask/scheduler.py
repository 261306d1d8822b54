"""The scheduler: when it looks for new videos of all monitored artists, and doing so now."""

from flask import jsonify
from sqlalchemy import func, select

from . import discovery, jobs, settings
from .auth import role_required
from .db import get_session
from .http import success
from .models import Job, utcnow
from .schedule import read_schedule
from .settings import bp


@bp.get("/scheduler/status")
@role_required("readonly")
def scheduler_status():
    """`last_run` is when the work was last done, planned or not; times are UTC."""
    db = get_session()
    schedule = read_schedule(settings.texts(db))
    next_run = schedule.next_run(utcnow())
    last_run = db.scalar(select(func.max(Job.finished_at)).where(Job.type == "discovery"))
    return jsonify(
        enabled=schedule.enabled,
        time=schedule.time.strftime("%H:%M"),
        days=schedule.days,
        max_videos=schedule.max_videos,
        next_run=next_run.isoformat() if next_run else None,
        last_run=last_run.isoformat() if last_run else None,
        running=jobs.running(db, "discovery") is not None,
    )


@bp.post("/scheduler/trigger")
@role_required("manager")
def scheduler_trigger():
    """Do now what is planned, whether anything is planned or not."""
    schedule = read_schedule(settings.texts(get_session()))
    return success("Looking for new videos", 202, job_id=discovery.start_all(schedule.max_videos))
