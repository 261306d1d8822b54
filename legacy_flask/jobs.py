"""Work that goes on after the answer: a thread here, and a row of `jobs` that says how far it is.

The row is the truth. One that nobody has touched for a while belongs to a process that is gone.
"""

import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from threading import Thread

from flask import Flask, current_app, g
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from .audit import audit
from .db import get_session, transaction
from .http import ApiError
from .models import Job, utcnow

ACTIVE = ("queued", "running")
REPORT_EVERY_S = 0.5
GONE_AFTER = timedelta(minutes=5)  # without a sign of life; every job reports more often

UNEXPECTED = "The work was ended by an unexpected error"
GONE = "The process that did the work is gone"

Report = Callable[[int, str], None]


def start(kind: str, work: Callable[[Report], dict], busy: str = "", **detail) -> str:
    """Begin `work(report)` in a thread with an app context; the id of its row.

    With `busy`, a sentence, there is one such job at a time: raises ApiError 409 with the id of the one that runs.

    `work` calls `report(percent, message)` as often as it likes and returns the result for the row. What it raises ends
    the job with a sentence: an ApiError with its own.
    """
    job_id, user = uuid.uuid4().hex, g.get("user")
    row = Job(id=job_id, type=kind, active_type=kind if busy else None, created_by=user.id if user else None)
    try:
        with transaction() as db:
            end_forgotten(db)
            refuse_second(db, kind, busy)
            db.add(row)
            audit(db, "jobs.start", f"job:{kind}", **detail)
    except IntegrityError:  # somebody else began it at the same time
        refuse_second(get_session(), kind, busy)
        raise
    app = current_app._get_current_object()
    Thread(target=run, args=(app, job_id, work), name=f"job-{kind}", daemon=True).start()
    return job_id


def running(db, kind: str) -> str | None:
    """The id of a job of this kind that has not ended."""
    alive = Job.updated_at > utcnow() - GONE_AFTER
    return db.scalar(select(Job.id).where(Job.type == kind, Job.status.in_(ACTIVE), alive).limit(1))


def refuse_second(db, kind: str, busy: str) -> None:
    job_id = running(db, kind) if busy else None
    if job_id is not None:
        raise ApiError(409, busy, job_id=job_id)


def end_forgotten(db) -> None:
    forgotten = Job.status.in_(ACTIVE) & (Job.updated_at <= utcnow() - GONE_AFTER)
    ended = update(Job).where(forgotten).values(status="failed", active_type=None, error=GONE, finished_at=utcnow())
    db.execute(ended, execution_options={"synchronize_session": False})


def run(app: Flask, job_id: str, work: Callable[[Report], dict]) -> None:
    with app.app_context():
        progress = Progress(job_id)
        try:
            write(job_id, status="running", started_at=utcnow())
            result = work(progress.report)
        except ApiError as error:
            end = {"status": "failed", "error": error.message}
        except Exception:
            app.logger.exception("job %s", job_id)
            end = {"status": "failed", "error": UNEXPECTED}
        else:
            progress.percent = 100
            end = {"status": "completed", "result": result}
        end |= {"progress": progress.percent, "message": progress.message, "active_type": None}
        try:
            write(job_id, finished_at=utcnow(), **end)
        except Exception:
            app.logger.exception("the end of job %s could not be noted", job_id)


class Progress:
    """What was reported last. It is written twice a second at most, and at the end."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.percent, self.message = job_id, 0, ""
        self.written_at = time.monotonic()

    def report(self, percent: int, message: str = "") -> None:
        self.percent, self.message = min(max(int(percent), 0), 100), message[:500]
        if time.monotonic() - self.written_at < REPORT_EVERY_S:
            return
        try:
            write(self.job_id, progress=self.percent, message=self.message)
        except OperationalError:
            current_app.logger.warning("the progress of job %s could not be noted", self.job_id)
        self.written_at = time.monotonic()


def write(job_id: str, **values) -> None:
    with transaction() as db:
        db.execute(update(Job).where(Job.id == job_id).values(**values))
