"""The scheduler: when it looks for new videos of all monitored artists and playlists, and doing so now."""

import os
from contextlib import suppress
from threading import Event, Thread
from weakref import WeakSet

from flask import Flask, jsonify
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from . import discovery, jobs, playlists, settings
from .auth import role_required
from .db import get_session
from .http import ApiError, success
from .models import Job, PlaylistMonitor, utcnow
from .schedule import WINDOW, planned_id, read_schedule
from .settings import bp

LOOK_EVERY_S = 20.0
STOP_S = 5.0  # for a look that is under way


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


# --- what is planned ---------------------------------------------------------------------------------------------


class Scheduler:
    """The thread of this process that begins what is planned."""

    def __init__(self, app: Flask) -> None:
        self.app, self.pid, self.thread, self.stopped = app, 0, None, Event()

    def begin(self) -> None:
        """With the first request of a process."""
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.stopped = Event()
            self.thread = Thread(target=self.run, args=(self.stopped,), name="scheduler", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """Until the next request."""
        if self.pid == os.getpid():
            self.stopped.set()
            self.thread.join(STOP_S)
            self.pid = 0

    def run(self, stopped: Event) -> None:
        while not stopped.wait(LOOK_EVERY_S):
            with self.app.test_request_context():
                try:
                    plan()
                except Exception:
                    self.app.logger.exception("scheduler")


schedulers: WeakSet[Scheduler] = WeakSet()


def init_app(app: Flask) -> None:
    scheduler = app.extensions["scheduler"] = Scheduler(app)
    schedulers.add(scheduler)
    if not app.config["SHADOW"]:
        app.before_request(scheduler.begin)


def plan() -> None:
    """Begin what is planned for now. Its row is named after the moment: whoever is second finds it, on either side."""
    db, now = get_session(), utcnow()
    schedule = read_schedule(settings.texts(db))
    moment = schedule.next_run(now - WINDOW)
    if moment is None or moment > now:
        return
    begun = set(db.scalars(select(Job.id).where(Job.created_at >= now - 2 * WINDOW)))
    has_playlists = db.scalar(select(PlaylistMonitor.id).limit(1)) is not None
    discovery_id, playlists_id = planned_id("discovery", moment), planned_id("playlists", moment)
    with suppress(ApiError, IntegrityError):  # no key, one is running, or somebody was quicker
        if discovery_id not in begun:
            discovery.start_all(schedule.max_videos, discovery_id)
    with suppress(ApiError, IntegrityError):
        if playlists_id not in begun and has_playlists:
            playlists.start_all(playlists_id)
