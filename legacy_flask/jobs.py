"""Work that goes on after the answer: a thread here, and a row of `jobs` that says how far it is.

The row is the truth. One that nobody has touched for a while belongs to a process that is gone. Whoever takes a row
counts its `attempts` and writes only while it is running and nobody has counted since; so whoever cancels it changes
nothing but the row, and the work stops when it reports next.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from threading import Thread

from flask import Flask, current_app, g
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from .audit import audit
from .beats import beating
from .db import get_session, transaction
from .http import ApiError
from .models import Job, User, utcnow

ACTIVE = ("queued", "running")
REPORT_EVERY_S = 0.5
GONE_AFTER = timedelta(minutes=5)  # without a sign of life

UNEXPECTED = "The work was ended by an unexpected error"
GONE = "The process that did the work is gone"

Report = Callable[[int, str], None]


class Taken(Exception):
    """The job is over, or somebody else's: there is nothing left to do for us."""


def start(
    kind: str,
    work: Callable[[Report], dict],
    *,
    target: str = "",
    arguments: dict | None = None,
    busy: str = "",
    job_id: str = "",
    **detail,
) -> str:
    """Begin `work(report)` in a thread with an app context; the id of its row.

    With `busy`, a sentence, there is one such job at a time for each target: raises ApiError 409 with the id of the one
    that runs. `arguments` are JSON and say to others what is done.

    `work` calls `report(percent, message)` as often as it likes and returns the result for the row. What it raises ends
    the job with a sentence: an ApiError with its own. `report` raises Taken when nobody wants the work any more.
    """
    job_id, user = job_id or uuid.uuid4().hex, g.get("user")
    row = Job(
        id=job_id,
        type=kind,
        active_type=":".join(filter(None, (kind, target))) if busy else None,
        target=target or None,
        arguments=arguments or {},
        created_by=user.id if user else None,
    )
    try:
        with transaction() as db:
            end_forgotten(db, kind, target)
            refuse_second(db, kind, target, busy)
            db.add(row)
            audit(db, "jobs.start", f"job:{kind}", **detail)
    except IntegrityError:  # somebody else began it at the same time
        refuse_second(get_session(), kind, target, busy)
        raise
    app = current_app._get_current_object()
    Thread(target=run, args=(app, job_id, work), name=f"job-{kind}", daemon=True).start()
    return job_id


def running(db, kind: str, target: str = "") -> str | None:
    """The id of a job of this kind that has not ended."""
    alive = Job.updated_at > utcnow() - GONE_AFTER
    found = select(Job.id).where(Job.type == kind, Job.status.in_(ACTIVE), alive, Job.parent_id.is_(None))
    if target:
        found = found.where(Job.target == target)
    return db.scalar(found.order_by(Job.created_at).limit(1))


def refuse_second(db, kind: str, target: str, busy: str) -> None:
    job_id = running(db, kind, target) if busy else None
    if job_id is not None:
        raise ApiError(409, busy, job_id=job_id)


def end_forgotten(db, kind: str, target: str) -> None:
    """Those that nobody has touched for so long would keep a new one from beginning."""
    forgotten = (Job.type == kind) & Job.status.in_(ACTIVE) & (Job.updated_at <= utcnow() - GONE_AFTER)
    if target:
        forgotten &= Job.target == target
    ids = db.scalars(select(Job.id).where(forgotten)).all()
    if ids:  # by their ids: a search would lock the rows in another order than those who change them
        ended = {"status": "failed", "active_type": None, "error": GONE, "finished_at": utcnow()}
        db.execute(
            update(Job).where(Job.id.in_(ids), forgotten).values(ended),
            execution_options={"synchronize_session": False},
        )


def run(app: Flask, job_id: str, work: Callable[[Report], dict]) -> None:
    with app.app_context():
        try:
            job = claim(job_id)
        except Exception:
            app.logger.exception("job %s could not be begun", job_id)
            return
        if job is None:
            return
        try:
            with beating(job.write, Taken, job_id):  # a playlist is loaded in a hundred calls, between two reports
                end = {"status": "completed", "result": work(job.report)}
            job.percent = 100
        except Taken:
            return
        except ApiError as error:
            end = {"status": "failed", "error": error.message}
        except Exception:
            app.logger.exception("job %s", job_id)
            end = {"status": "failed", "error": UNEXPECTED}
        try:
            job.write(finished_at=utcnow(), active_type=None, **end)
        except Taken:
            return
        except Exception:
            app.logger.exception("the end of job %s could not be noted", job_id)


def claim(job_id: str) -> "Claim | None":
    """None when it was cancelled, or taken by somebody else, before it began. In the thread its creator is the user."""
    with transaction() as db:
        row = db.get(Job, job_id, with_for_update=True)
        if row is None or row.status != "queued":
            return None
        row.status, row.started_at, row.attempts = "running", utcnow(), row.attempts + 1
        row.runner = f"flask@{socket.gethostname()}:{os.getpid()}"[:100]
        g.user = db.get(User, row.created_by) if row.created_by else None
        return Claim(job_id, row.attempts)


class Claim:
    """A job that is ours. What was reported last is written twice a second at most, and at the end."""

    def __init__(self, job_id: str, attempts: int) -> None:
        self.job_id, self.attempts = job_id, attempts
        self.percent, self.message = 0, ""
        self.written_at = time.monotonic()

    def report(self, percent: int, message: str = "") -> None:
        self.percent, self.message = min(max(int(percent), 0), 100), message[:500]
        if time.monotonic() - self.written_at < REPORT_EVERY_S:
            return
        try:
            self.write()
        except OperationalError:
            current_app.logger.warning("the progress of job %s could not be noted", self.job_id)
        self.written_at = time.monotonic()

    def write(self, **values) -> None:
        ours = Job.status == "running", Job.attempts == self.attempts
        said = {"progress": self.percent, "message": self.message}
        with transaction() as db:
            done = db.execute(update(Job).where(Job.id == self.job_id, *ours).values(**said, **values))
        if not done.rowcount:
            raise Taken(self.job_id)
