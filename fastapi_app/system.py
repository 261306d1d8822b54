"""Is it alive, and is everything there that it needs?"""

import shutil
from pathlib import Path

from fastapi import APIRouter, Request
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from .db import DatabaseUnavailable, Db, DbDep
from .files import off_loop
from .http import json_response, read
from .models import utcnow

router = APIRouter(tags=["system"])

MIN_FREE_BYTES = 100 * 1024 * 1024
WORKERS_KEY = "rq:workers"

_PING = text("SELECT 1")


@read(router, "/api/health", name="system.health")
async def health(db: DbDep) -> Response:
    if not await _database_answers(db):
        body = {"status": "unhealthy", "error": "The database is not available", "timestamp": _now()}
        return json_response(body, 503)
    return json_response({"status": "healthy", "timestamp": _now()})


@read(router, "/api/health/status", name="system.health_status")
async def health_status(request: Request, db: DbDep) -> Response:
    """Needed are the database, the disk and, when configured, Redis with a worker. Tools are nice to have."""
    config = request.app.state.settings
    redis, worker = await _redis_and_worker(config.redis_url)
    components = {
        "database": _up(await _database_answers(db)),
        "disk": _up(await off_loop(_disk_has_room, config.library_path)),
        "redis": redis,
        "worker": worker,
        "ffmpeg": await off_loop(_installed, "ffmpeg"),
        "yt_dlp": await off_loop(_installed, "yt-dlp"),
    }
    healthy = "down" not in components.values()
    body = {"status": "healthy" if healthy else "unhealthy", "components": components, "timestamp": _now()}
    return json_response(body, 200 if healthy else 503)


async def _database_answers(db: Db) -> bool:
    try:
        await db.execute(_PING)
    except (SQLAlchemyError, DatabaseUnavailable):
        return False
    return True


def _disk_has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= MIN_FREE_BYTES
    except OSError:
        return False


async def _redis_and_worker(url: str) -> tuple[str, str]:
    if not url:
        return "not configured", "not configured"
    try:
        async with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as redis:
            return "up", _up(await redis.scard(WORKERS_KEY) > 0)
    except (RedisError, ValueError):
        return "down", "down"


def _up(answer: bool) -> str:
    return "up" if answer else "down"


def _installed(tool: str) -> str:
    return "installed" if shutil.which(tool) else "missing"


def _now() -> str:
    return utcnow().isoformat()
