"""Jobs: what goes on after an answer, to be seen, to be begun and to be cancelled."""

import re

import rq
from flask import Blueprint, current_app, jsonify, request
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.serializers import JSONSerializer
from sqlalchemy import func, select, update

from . import discovery, enrichment, indexing, jobs, playlists
from .audit import audit
from .auth import role_required
from .db import close_session, get_session, transaction
from .http import ApiError, json_body, page_args, paged, success, text
from .models import Download, Job, utcnow

bp = Blueprint("jobs", __name__, url_prefix="/api/jobs")

REDIS_S = 0.5
JOB_ID = re.compile(r"[\w -]{0,63}[\w-]", re.ASCII)  # a blank at the end is none to some databases
STARTED = {
    "enrichment": enrichment.start_all,
    "playlists": playlists.start_all,
    "discovery": discovery.start_all,
    "index": indexing.start,
}


@bp.get("/")
@role_required("readonly")
def list_jobs():
    """The newest first. Parts of another job are not listed."""
    page, per_page = page_args()
    found = select(Job).where(Job.parent_id.is_(None))
    for name in ("type", "status"):
        if value := request.args.get(name):
            found = found.where(getattr(Job, name) == value)
    db = get_session()
    total = db.scalar(found.with_only_columns(func.count(Job.id)))
    newest = found.order_by(Job.created_at.desc(), Job.id.desc())
    rows = db.scalars(newest.offset((page - 1) * per_page).limit(per_page))
    return paged("jobs", [job_json(row) for row in rows], total, page, per_page)


@bp.post("/")
@role_required("manager")
def start_job():
    kind = text(json_body(), "type", 50)
    if kind not in STARTED:
        raise ApiError(400, f"Invalid type. Must be one of: {', '.join(STARTED)}", success=False)
    return success("The job has been started", 202, job_id=STARTED[kind]())


@bp.get("/queues")
@role_required("readonly")
def list_queues():
    """How many rows there are by status, and what the workers of Redis are doing, if there are any."""
    db = get_session()
    body = {"jobs": count_by_status(db, Job), "downloads": count_by_status(db, Download)}
    close_session()  # Redis may take its time
    return jsonify(body | in_redis(current_app.config["REDIS_URL"]))


def count_by_status(db, model) -> dict:
    return {status: count for status, count in db.execute(select(model.status, func.count()).group_by(model.status))}


def in_redis(url: str) -> dict:
    if not url:
        return {"redis": "not configured", "queues": [], "workers": []}
    limits = {"socket_connect_timeout": REDIS_S, "socket_timeout": REDIS_S, "retry": Retry(NoBackoff(), 0)}
    try:
        with Redis.from_url(url, **limits) as redis:
            queues = [{"name": queue.name, "waiting": queue.count} for queue in rq.Queue.all(redis)]
            workers = [worker_json(worker) for worker in rq.Worker.all(redis, serializer=JSONSerializer)]
    except (RedisError, ValueError, OSError):
        return {"redis": "down", "queues": [], "workers": []}
    queues, workers = (sorted(rows, key=lambda row: row["name"]) for rows in (queues, workers))
    return {"redis": "up", "queues": queues, "workers": workers}


def worker_json(worker: rq.Worker) -> dict:
    seen_at = worker.last_heartbeat
    return {
        "name": worker.name,
        "host": worker.hostname,
        "state": str(getattr(worker.get_state(), "value", worker.get_state())),
        "queues": worker.queue_names(),
        "job_id": worker.get_current_job_id(),
        "completed": worker.successful_job_count,
        "failed": worker.failed_job_count,
        "seen_at": seen_at.replace(tzinfo=None).isoformat() if seen_at else None,
    }


@bp.get("/<job_id>")
@role_required("readonly")
def get_job(job_id):
    return jsonify(job_json(find_job(get_session(), job_id)))


@bp.post("/<job_id>/cancel")
@role_required("user")
def cancel_job(job_id):
    """End it and its parts. Whoever does the work sees it in the row, and stops."""
    active, ended = Job.status.in_(jobs.ACTIVE), {"status": "cancelled", "active_type": None, "retry_at": None}
    with transaction() as db:
        job = find_job(db, job_id, lock=True)
        if job.status not in jobs.ACTIVE:
            raise ApiError(400, f"The job cannot be cancelled: it is {job.status}", success=False)
        for those in (Job.id == job_id, Job.parent_id == job_id):
            db.execute(update(Job).where(those, active).values(finished_at=utcnow(), **ended))
        audit(db, "jobs.cancel", f"job:{job_id}", type=job.type)
    return success("The job has been cancelled", job_id=job_id)


def find_job(db, job_id: str, lock: bool = False) -> Job:
    row = db.get(Job, job_id, with_for_update=lock or None) if JOB_ID.fullmatch(job_id) else None
    if row is None:
        raise ApiError(404, "Job not found", success=False)
    return row


def job_json(job: Job) -> dict:
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
        **{name: shown(getattr(job, name)) for name in ("created_at", "updated_at", "started_at", "finished_at")},
    }


def shown(time) -> str | None:
    return time.isoformat() if time else None
