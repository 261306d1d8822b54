"""Is it alive, and is everything there that it needs?"""

import shutil

from flask import Blueprint, current_app, jsonify
from redis import Redis, RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from .db import get_session
from .models import utcnow

bp = Blueprint("system", __name__)

MIN_FREE_BYTES = 100 * 1024 * 1024
WORKERS_KEY = "rq:workers"


@bp.get("/api/health")
def health():
    if not database_answers():
        return jsonify(status="unhealthy", error="The database is not available", timestamp=now()), 503
    return jsonify(status="healthy", timestamp=now())


@bp.get("/api/health/status")
def health_status():
    """Needed are the database, the disk and, when configured, Redis with a worker. Tools are nice to have."""
    redis, worker = redis_and_worker()
    components = {
        "database": up(database_answers()),
        "disk": up(disk_has_room()),
        "redis": redis,
        "worker": worker,
        "ffmpeg": installed("ffmpeg"),
        "yt_dlp": installed("yt-dlp"),
    }
    healthy = "down" not in components.values()
    body = {"status": "healthy" if healthy else "unhealthy", "components": components, "timestamp": now()}
    return jsonify(body), 200 if healthy else 503


def database_answers() -> bool:
    try:
        get_session().execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def disk_has_room() -> bool:
    try:
        return shutil.disk_usage(current_app.config["LIBRARY_PATH"]).free >= MIN_FREE_BYTES
    except OSError:
        return False


def redis_and_worker() -> tuple[str, str]:
    url = current_app.config["REDIS_URL"]
    if not url:
        return "not configured", "not configured"
    try:
        with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as redis:
            return "up", up(redis.scard(WORKERS_KEY) > 0)
    except (RedisError, ValueError):
        return "down", "down"


def up(answer: bool) -> str:
    return "up" if answer else "down"


def installed(tool: str) -> str:
    return "installed" if shutil.which(tool) else "missing"


def now() -> str:
    return utcnow().isoformat()
