"""Is it alive, is everything there that it needs, and how is the machine?"""

import asyncio
import logging
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.background import BackgroundTask
from starlette.responses import Response

from . import commands
from .audit import audit
from .containment import refuse
from .db import Database, DbDep
from .files import off_loop, tail, tree_size, usage
from .http import ApiError, json_response, query, query_int, read, success
from .identity import Admin
from .media import find_ffmpeg
from .models import utcnow

router = APIRouter(tags=["system"])
log = logging.getLogger("fastapi_app")

MIN_FREE_BYTES = 100 * 1024 * 1024
WORKERS_KEY = "rq:workers"
REDIS_S = 0.8  # whoever asks knows within a second
DATABASE_S = 2.0
PROGRAM_S = 10
LARGEST = 20  # directories that are told
LINES, MAX_LINES, MAX_LINE = 100, 1000, 2000  # of the log; the last in characters
MAX_LISTING = 50_000_000  # bytes that du may say

_STARTED, _BEGAN = utcnow(), time.monotonic()
_DF_LINE = re.compile(rb"\s(\d+)\s+(\d+)\s+(\d+)\s+(?:\d+%|-)\s")

# Health


@read(router, "/api/health", name="system.health")
async def health(request: Request) -> Response:
    if not await _database_answers(request):
        body = {"status": "unhealthy", "error": "The database is not available", "timestamp": _now()}
        return json_response(body, 503)
    return json_response({"status": "healthy", "timestamp": _now()})


@read(router, "/api/health/status", name="system.health_status")
async def health_status(request: Request) -> Response:
    """Needed are the database, the disk and, when configured, Redis with a worker. Tools are nice to have."""
    library = request.app.state.settings.library_path
    (redis, worker), database, disk, ffmpeg, yt_dlp = await asyncio.gather(
        _redis_and_worker(request.app.state.redis),
        _database_answers(request),
        off_loop(_disk_has_room, library),
        off_loop(find_ffmpeg, request.app.state.settings.ffmpeg),
        off_loop(find_spec, "yt_dlp"),
    )
    components = {
        "database": _up(database),
        "disk": _up(disk),
        "redis": redis,
        "worker": worker,
        "ffmpeg": _installed(ffmpeg),
        "yt_dlp": _installed(yt_dlp),
    }
    healthy = "down" not in components.values()
    body = {"status": "healthy" if healthy else "unhealthy", "components": components, "timestamp": _now()}
    return json_response(body, 200 if healthy else 503)


def open_redis(url: str) -> Redis | None:
    """A client that connects when it is asked, and asks once. None without a URL; ValueError for one that is none."""
    if not url:
        return None
    limits: dict[str, Any] = {"socket_connect_timeout": REDIS_S, "socket_timeout": REDIS_S}
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits)


async def _database_answers(request: Request) -> bool:
    database: Database = request.app.state.database
    return await database.ping(DATABASE_S)


def _disk_has_room(folder: Path) -> bool:
    try:
        return usage(folder).free >= MIN_FREE_BYTES
    except OSError:
        return False


async def _redis_and_worker(redis: Redis | None) -> tuple[str, str]:
    if redis is None:
        return "not configured", "not configured"
    try:
        async with asyncio.timeout(REDIS_S):
            known = await redis.smembers(WORKERS_KEY)  # of one that was killed the key stays here, and itself expires
            return "up", _up(bool(known) and await redis.exists(*known) > 0)
    except (RedisError, OSError, TimeoutError):
        return "down", "down"


def _up(answer: bool) -> str:
    return "up" if answer else "down"


def _installed(tool: object) -> str:
    return "installed" if tool else "missing"


def _now() -> str:
    return utcnow().isoformat()


# The process


@read(router, "/admin/system/status/service", name="system.service_status")
async def service_status(request: Request, _: Admin) -> Response:
    unit = request.app.state.settings.service_unit
    state, memory = await asyncio.gather(_unit_state(unit), _said(["ps", "-o", "rss=", "-p", str(os.getpid())]))
    memory = memory.strip()
    return json_response(
        {
            "pid": os.getpid(),
            "type": "systemd" if state else "process",
            "python": platform.python_version(),
            "started_at": _STARTED.isoformat(),
            "uptime_seconds": round(time.monotonic() - _BEGAN, 1),
            "memory_bytes": int(memory) * 1024 if memory.isdigit() else None,
            "unit": unit or None,
            "state": state or "running",
        }
    )


async def _unit_state(unit: str) -> str | None:
    """What systemd says: "active"; None where there is no systemd."""
    if not unit:
        return None
    shown = await _said(["systemctl", "show", "--property=ActiveState", "--", unit])
    return shown.strip().decode(errors="replace").partition("ActiveState=")[2] or None


@router.post("/admin/system/restart", name="system.restart")
async def restart(request: Request, _: Admin, db: DbDep) -> Response:
    command = request.app.state.settings.restart_command
    if not command:
        raise ApiError(403, "Restarting is not configured", code="RESTART_DISABLED")
    if await off_loop(shutil.which, command[0]) is None:
        raise ApiError(503, "The restart command is not installed")
    refuse("processes", command[0])
    async with db.transaction() as connection:
        await audit(connection, request, "system.restart", "system")
    response = success("The restart has been requested", 202)
    response.background = BackgroundTask(_launch, command)  # the client has its answer
    return response


async def _launch(command: tuple[str, ...]) -> None:
    try:
        await commands.launch(command)
    except commands.CommandMissing:
        log.exception("the restart command could not be started")


# The disk


@read(router, "/admin/system/disk", name="system.disk_usage")
async def disk_usage(request: Request, _: Admin) -> Response:
    """Bytes. `size` is null when it takes too long to find out; `directories` are the largest ones right below."""
    config = request.app.state.settings
    roots = {"library": config.library_path, "data": config.data_path, "downloads": config.downloads_path}
    found = await asyncio.gather(*(_root_json(name, root) for name, root in roots.items()))
    return json_response({"roots": found, "count": len(found)})


async def _root_json(name: str, root: Path) -> dict[str, Any]:
    total, used, free = await _space(root)
    size, directories = await _sizes(root)
    largest = sorted(directories.items(), key=lambda item: (-item[1], item[0]))[:LARGEST]
    told = [{"name": os.fsencode(path).decode(errors="replace"), "bytes": count} for path, count in largest]
    return {
        "name": name,
        "path": str(root),
        "total": total,
        "used": used,
        "free": free,
        "size": size,
        "directories": told,
    }


async def _space(root: Path) -> tuple[int, int, int]:
    """Total, used, free; by df, or without it."""
    found = _DF_LINE.search(await _said(["df", "-P", "-B1", "--", str(root)]))
    if found:
        return int(found[1]), int(found[2]), int(found[3])
    try:
        return await off_loop(usage, root)
    except OSError:
        raise ApiError(503, "The disk cannot be read") from None


async def _sizes(root: Path) -> tuple[int | None, dict[str, int]]:
    """Of everything below the root, and by name of each directory right below; by du, or without it."""
    try:
        listing = await _said(["du", "-b", "-0", "-d", "1", "--", str(root)], patient=False)
    except commands.CommandTimeout:
        return None, {}
    found = {}
    for entry in listing.split(b"\0"):
        number, _, path = entry.partition(b"\t")
        if number.isdigit():
            found[os.fsdecode(path)] = int(number)
    total = found.pop(str(root), None)
    if total is None:
        return await off_loop(_measured, root)
    return total, {Path(path).name: size for path, size in found.items()}


def _measured(root: Path) -> tuple[int, dict[str, int]]:
    directories = []
    with suppress(OSError), os.scandir(root) as entries:
        directories = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return tree_size(root), {path.name: tree_size(path) for path in directories}


async def _said(command: list[str], *, patient: bool = True) -> bytes:
    """What a program prints; nothing when it is not there. Raises CommandTimeout unless `patient`."""
    try:
        done = await commands.run(command, timeout_s=PROGRAM_S, max_bytes=MAX_LISTING, env={"LC_ALL": "C"})
    except commands.CommandTimeout:
        if patient:
            return b""
        raise
    except commands.CommandError:
        return b""
    return done.stdout


# The log


@read(router, "/admin/system/logs/recent", name="system.recent_logs")
async def recent_logs(request: Request, _: Admin) -> Response:
    """The end of one file, which no request can choose."""
    wanted = query_int(query(request), "lines")
    count = min(max(LINES if wanted is None else wanted, 1), MAX_LINES)
    try:
        lines = await off_loop(tail, request.app.state.settings.log_file, count)
    except FileNotFoundError:
        lines = []
    except OSError:
        raise ApiError(503, "The log file cannot be read") from None
    return json_response({"lines": [line[:MAX_LINE] for line in lines], "count": len(lines)})
