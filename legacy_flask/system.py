"""Is it alive, is everything there that it needs, and how is the machine?"""

import os
import platform
import re
import shutil
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, current_app, jsonify, make_response
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .files import tail
from .http import ApiError, query_int, success
from .media import find_ffmpeg
from .models import utcnow

bp = Blueprint("system", __name__)

MIN_FREE_BYTES = 100 * 1024 * 1024
WORKERS_KEY = "rq:workers"
REDIS_S = 0.4  # for each of two steps: whoever asks knows within a second
PROGRAM_S = 10
LARGEST = 20  # directories that are told
LINES, MAX_LINES, MAX_LINE = 100, 1000, 2000  # of the log; the last in characters

STARTED, BEGAN = utcnow(), time.monotonic()
DF_LINE = re.compile(rb"\s(\d+)\s+(\d+)\s+(\d+)\s+(?:\d+%|-)\s")


# --- health ------------------------------------------------------------------------------------------------------


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
        "ffmpeg": installed(find_ffmpeg()),
        "yt_dlp": installed(find_spec("yt_dlp")),
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
    limits = {"socket_connect_timeout": REDIS_S, "socket_timeout": REDIS_S, "retry": Retry(NoBackoff(), 0)}
    try:
        with Redis.from_url(url, **limits) as redis:
            known = redis.smembers(WORKERS_KEY)  # of one that was killed the key stays here, and itself expires
            return "up", up(bool(known) and redis.exists(*known) > 0)
    except (RedisError, ValueError, OSError):
        return "down", "down"


def up(answer: bool) -> str:
    return "up" if answer else "down"


def installed(tool: object) -> str:
    return "installed" if tool else "missing"


def now() -> str:
    return utcnow().isoformat()


# --- the process -------------------------------------------------------------------------------------------------


@bp.get("/admin/system/status/service")
@role_required("admin")
def service_status():
    unit = current_app.config["SERVICE_UNIT"]
    state = unit_state(unit) if unit else None
    memory = said(["ps", "-o", "rss=", "-p", str(os.getpid())]).strip()
    return jsonify(
        pid=os.getpid(),
        type="systemd" if state else "process",
        python=platform.python_version(),
        started_at=STARTED.isoformat(),
        uptime_seconds=round(time.monotonic() - BEGAN, 1),
        memory_bytes=int(memory) * 1024 if memory.isdigit() else None,
        unit=unit or None,
        state=state or "running",
    )


def unit_state(unit: str) -> str | None:
    """What systemd says: "active"; None where there is no systemd."""
    shown = said(["systemctl", "show", "--property=ActiveState", "--", unit])
    return shown.strip().decode(errors="replace").partition("ActiveState=")[2] or None


@bp.post("/admin/system/restart")
@role_required("admin")
def restart():
    command = current_app.config["RESTART_COMMAND"]
    if not command:
        raise ApiError(403, "Restarting is not configured", code="RESTART_DISABLED")
    if shutil.which(command[0]) is None:
        raise ApiError(503, "The restart command is not installed")
    with transaction() as db:
        audit(db, "system.restart", "system")
    response = make_response(success("The restart has been requested", 202))
    response.call_on_close(lambda: launch(command))  # the client has its answer
    return response


def launch(command: list[str]) -> None:
    """In a session of its own: it outlives us."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(command, start_new_session=True, **quiet)
    except OSError:
        current_app.logger.exception("the restart command could not be started")
    else:
        threading.Thread(target=process.wait, daemon=True).start()  # or a zombie would remain


# --- the disk ----------------------------------------------------------------------------------------------------


@bp.get("/admin/system/disk")
@role_required("admin")
def disk_usage():
    """Bytes. `size` is null when it takes too long to find out; `directories` are the largest ones right below."""
    names = {"library": "LIBRARY_PATH", "data": "DATA_PATH", "downloads": "DOWNLOADS_PATH"}
    roots = [root_json(name, current_app.config[key]) for name, key in names.items()]
    return jsonify(roots=roots, count=len(roots))


def root_json(name: str, root: Path) -> dict:
    try:
        total, used, free = space(root)
    except OSError:
        raise ApiError(503, "The disk cannot be read") from None
    size, directories = sizes(root)
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


def space(root: Path) -> tuple[int, int, int]:
    """Total, used, free; by df, or without it."""
    found = DF_LINE.search(said(["df", "-P", "-B1", "--", str(root)]))
    return tuple(map(int, found.groups())) if found else tuple(shutil.disk_usage(root))


def sizes(root: Path) -> tuple[int | None, dict[str, int]]:
    """Of everything below the root, and by name of each directory right below; by du, or without it."""
    try:
        listing = said(["du", "-b", "-0", "-d", "1", "--", str(root)], patient=False)
    except subprocess.TimeoutExpired:
        return None, {}
    found = {}
    for entry in listing.split(b"\0"):
        number, _, path = entry.partition(b"\t")
        if number.isdigit():
            found[os.fsdecode(path)] = int(number)
    total = found.pop(str(root), None)
    if total is None:
        return measured(root)
    return total, {os.path.basename(path): size for path, size in found.items()}


def measured(root: Path) -> tuple[int, dict[str, int]]:
    total, directories = 0, {}
    for folder, below, names in os.walk(root):
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        size = sum(size_of(os.path.join(folder, name)) for name in names + links)
        total += size
        directory = os.path.relpath(folder, root).split(os.sep)[0]
        if directory != ".":
            directories[directory] = directories.get(directory, 0) + size
    return total, directories


def size_of(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def said(command: list[str], patient: bool = True) -> bytes:
    """What a program prints; nothing when it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROGRAM_S, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return b""
    except subprocess.TimeoutExpired:
        if patient:
            return b""
        raise
    return done.stdout


# --- the log -----------------------------------------------------------------------------------------------------


@bp.get("/admin/system/logs/recent")
@role_required("admin")
def recent_logs():
    """The end of one file, which no request can choose."""
    count = min(max(query_int("lines", LINES), 1), MAX_LINES)
    try:
        lines = tail(current_app.config["LOG_FILE"], count)
    except FileNotFoundError:
        lines = []
    except OSError:
        raise ApiError(503, "The log file cannot be read") from None
    return jsonify(lines=[line[:MAX_LINE] for line in lines], count=len(lines))
