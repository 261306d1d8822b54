"""The rows of `downloads`, as those who download change them: taken, signed, ended, put back.

Whoever takes a row counts `attempts`. What he writes later he writes only while the row is `downloading` and nobody
else has counted: a row that was paused, cancelled or taken over is not changed by who had it.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from fastapi import Request
from sqlalchemy import Update, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from . import events
from .db import Db
from .models import artists, downloads, settings, utcnow, videos
from .settings import DEFAULTS, as_number

GONE_AFTER = timedelta(seconds=60)  # without a sign of life
AT_A_TIME = 100  # rows that are put back
MOST = 100  # at once, whatever the setting says
LONGEST_PAUSE_S = 3600.0  # between two attempts

ERRORS = {
    "sign_in": "The site wants you to sign in: upload a cookies file",
    "unavailable": "The video is not available",
    "not_found": "No video was found for this title",
    "geo_blocked": "The video is not available in this country",
    "network": "The server could not be reached or did not answer",
    "disk_full": "The disk is full",
    "live": "Live streams are not downloaded",
    "too_long": "The video is longer than the limit",
    "too_large": "The file is larger than the limit",
    "invalid_file": "What was downloaded is not a playable video",
    "address_refused": "The address is not allowed",
    "proxy": "The proxy in the settings is not the address of one",
    "unsupported": "No video was found at this address",
    "service": "The search for this title failed",
    "worker_lost": "The process that downloaded it is gone",
    "unexpected": "The download was ended by an unexpected error",
}
PASSING = ("network", "worker_lost", "unexpected", "service")  # worth another attempt

_LIMIT = select(settings.c.value).where(settings.c.key == "max_concurrent_downloads").with_for_update()
_RUNNING = select(func.count()).where(downloads.c.status == "downloading")
_DUE = (
    select(downloads.c.id, downloads.c.video_id, downloads.c.attempts)
    .where(downloads.c.status == "pending")
    .where(or_(downloads.c.retry_at.is_(None), downloads.c.retry_at <= bindparam("now")))
    .order_by(downloads.c.priority, downloads.c.id)
    .limit(1)
)
_VIDEO_LOCKED = select(videos.c.id).where(videos.c.id == bindparam("video_id")).with_for_update()
_WHOLE = (
    select(
        downloads,
        *(videos.c[name] for name in ("title", "url", "youtube_id", "thumbnail_url", "thumbnail_path")),
        *(videos.c[name] for name in ("year", "genres", "directors", "description")),
        artists.c.name.label("artist"),
        artists.c.folder_path,
    )
    .join(videos, videos.c.id == downloads.c.video_id)
    .join(artists, artists.c.id == videos.c.artist_id)
)
_ONE = _WHOLE.where(downloads.c.id == bindparam("download_id"))
_SILENT = (
    _WHOLE.where(downloads.c.status == "downloading")
    .where(downloads.c.updated_at < bindparam("since"))
    .order_by(downloads.c.id)
    .limit(AT_A_TIME)
)
_OURS = and_(
    downloads.c.id == bindparam("its_id"),
    downloads.c.attempts == bindparam("its_attempts"),  # which begin anew when somebody retries
    func.coalesce(downloads.c.runner, "") == bindparam("its_runner"),
    downloads.c.status == "downloading",
)
_STATES = select(downloads.c.id, downloads.c.status, downloads.c.attempts, downloads.c.runner).where(
    downloads.c.id.in_(bindparam("ids", expanding=True))
)
_PROGRESS = ("progress", "bytes_done", "bytes_total", "speed", "eta", "updated_at")
_SIGN = update(downloads).where(_OURS).values({name: bindparam(name) for name in _PROGRESS})
_AT_REST = {"speed": None, "eta": None}


class Lost(Exception):
    """The row is no longer ours: it was paused, cancelled, put back, or has gone."""


async def claim(request: Request, db: Db, runner: str) -> Any | None:
    """The first row that is due, which is ours from now on, with what is known of its video; None when there is none.

    The row of the setting is locked meanwhile: so many are downloaded at once by all processes together, not more.
    """
    if await db.row(_DUE, {"now": utcnow()}) is None:
        return None
    try:
        return await _claim(request, db, runner)
    except IntegrityError:  # somebody else has just made the row of the setting
        return None


async def _claim(request: Request, db: Db, runner: str) -> Any | None:
    async with db.transaction() as connection:
        most = await _most(connection)  # first: what was counted before the lock is not what is running now
        if (await connection.execute(_RUNNING)).scalar_one() >= most:
            return None
        due = (await connection.execute(_DUE, {"now": utcnow()})).first()
        if due is None:
            return None
        await connection.execute(_VIDEO_LOCKED, {"video_id": due.video_id})
        news = {"status": "downloading", "attempts": due.attempts + 1, "runner": runner, "started_at": utcnow()}
        news |= {"retry_at": None, "error_code": None, "error_message": None, "finished_at": None}
        same = and_(downloads.c.id == due.id, downloads.c.status == "pending", downloads.c.attempts == due.attempts)
        if not (await connection.execute(update(downloads).where(same).values(news))).rowcount:
            return None  # it was paused or cancelled meanwhile
        await _set_video(connection, due.video_id, status="DOWNLOADING")
        row = (await connection.execute(_ONE, {"download_id": due.id})).one()
        await events.emit(connection, request, "download.started", told(row))
    return row


async def _most(connection: AsyncConnection) -> int:
    """Locks the setting, which is made when nobody has."""
    value = (await connection.execute(_LIMIT)).scalar()
    default = DEFAULTS["max_concurrent_downloads"]
    if value is None:
        await connection.execute(insert(settings).values(key="max_concurrent_downloads", value=default))
    return min(int(as_number(value or default, float(default))), MOST)


def told(row: Any, **more: Any) -> dict[str, Any]:
    """What events say of a download."""
    return {"download_id": row.id, "videos": [{"id": row.video_id, "title": row.title}], **more}


def whose(row: Any) -> dict[str, Any]:
    """What shows that a row is still ours."""
    return {"its_id": row.id, "its_attempts": row.attempts, "its_runner": row.runner or ""}


async def states(db: Db, ids: Sequence[int]) -> dict[int, tuple[str, int, str | None]]:
    """Status, attempts and runner of those that exist."""
    return {row.id: (row.status, row.attempts, row.runner) for row in await db.rows(_STATES, {"ids": list(ids)})}


async def sign(db: Db, signs: Sequence[Mapping[str, Any]]) -> None:
    """Each has what `whose` says, progress, bytes_done, bytes_total, speed, eta, updated_at."""
    async with db.transaction() as connection:
        await connection.execute(_SIGN, list(signs))


async def note_address(db: Db, video_id: int, address: str) -> None:
    """Where a video can be had, unless somebody has said so meanwhile."""
    async with db.transaction() as connection:
        unknown = and_(videos.c.id == video_id, videos.c.url.is_(None))
        await connection.execute(update(videos).where(unknown).values(url=address))


async def note_picture(db: Db, video_id: int, folder: str) -> bool:
    """Whether there still is such a video."""
    async with db.transaction() as connection:
        changed = update(videos).where(videos.c.id == video_id).values(thumbnail_path=folder)
        return bool((await connection.execute(changed)).rowcount)


async def complete(request: Request, db: Db, row: Any, file_path: str, size: int, fields: Mapping[str, Any]) -> None:
    """`file_path` is that of the download, `fields` are those of the video. Raises Lost.

    May be repeated after a commit of which nobody knows whether it was done.
    """
    now = utcnow()
    end = {"status": "completed", "progress": 100, "file_path": file_path, "active_video_id": None, "finished_at": now}
    end |= {"bytes_done": size, "bytes_total": size, "speed": None, "eta": 0, "updated_at": now}
    async with db.transaction() as connection:
        await connection.execute(_VIDEO_LOCKED, {"video_id": row.video_id})
        if not await _end(connection, row, end):
            known = (await connection.execute(_ONE, {"download_id": row.id})).first()
            if known and (known.status, known.attempts, known.file_path) == ("completed", row.attempts, file_path):
                return
            raise Lost
        await _set_video(connection, row.video_id, status="DOWNLOADED", **fields)
        await events.emit(connection, request, "download.completed", told(row, file_path=file_path, file_size=size))


async def has_file(db: Db, download_id: int, file_path: str) -> bool:
    """Whether somebody else has entered this file, or may find it just now, which is the one that he would make."""
    row = await db.row(_ONE, {"download_id": download_id})
    return row is not None and (row.status == "downloading" or (row.status, row.file_path) == ("completed", file_path))


async def fail(request: Request, db: Db, row: Any, code: str, *, silent: bool = False) -> bool:
    """Another attempt later, or the end of it; whether it is the end. Raises Lost; `silent`: also when it is signed."""
    now, last = utcnow(), code not in PASSING or row.attempts >= row.max_attempts
    end = {"error_code": code, "error_message": ERRORS[code], "updated_at": now, **_AT_REST}
    if last:
        end |= {"status": "failed", "active_video_id": None, "finished_at": now}
    else:
        end |= {
            "status": "pending",
            "retry_at": now + pause(request.app.state.settings.download_backoff_s, row.attempts),
        }
    async with db.transaction() as connection:
        await connection.execute(_VIDEO_LOCKED, {"video_id": row.video_id})
        if not await _end(connection, row, end, silent=silent):
            raise Lost
        if last:
            await _set_video(connection, row.video_id, status="FAILED")
            await events.emit(connection, request, "download.failed", told(row, error_code=code))
    return last


def pause(backoff_s: float, attempts: int) -> timedelta:
    """Before the next attempt."""
    longest = min(LONGEST_PAUSE_S, backoff_s * 2 ** (attempts - 1))
    return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311 - no secret


async def release(db: Db, row: Any) -> None:
    """Put back what could go on, for the next who looks. Nothing has failed: as many attempts are left as before."""
    back = {"status": "pending", "max_attempts": downloads.c.max_attempts + 1, "updated_at": utcnow(), **_AT_REST}
    async with db.transaction() as connection:
        await _end(connection, row, back)


async def take_back(request: Request, db: Db) -> int:
    """Put back what a runner has left behind that is gone: those without a sign of life. How many."""
    count = 0
    for row in await db.rows(_SILENT, {"since": utcnow() - GONE_AFTER}):
        try:
            await fail(request, db, row, "worker_lost", silent=True)
        except Lost:
            continue
        count += 1
    return count


async def report_gone(db: Db, runner: str) -> None:
    """Let the rows of a runner that is known to be gone look as if they had had no sign of life for long."""
    left = and_(downloads.c.status == "downloading", downloads.c.runner == runner)
    async with db.transaction() as connection:
        await connection.execute(update(downloads).where(left).values(updated_at=utcnow() - 2 * GONE_AFTER))


async def _end(connection: AsyncConnection, row: Any, values: Mapping[str, Any], *, silent: bool = False) -> bool:
    """Whether it was ours, or nobody's."""
    statement: Update = update(downloads).where(_OURS).values(dict(values))
    if silent:
        statement = statement.where(downloads.c.updated_at == row.updated_at)
    return bool((await connection.execute(statement, whose(row))).rowcount)


async def _set_video(connection: AsyncConnection, video_id: int, **fields: Any) -> None:
    await connection.execute(update(videos).where(videos.c.id == video_id).values(fields))
