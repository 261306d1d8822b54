"""Downloads: the queue, its history, and what a person may do with one of them; and with videos, to get them there.

Rows are changed while they are locked, that of the video first. Whoever downloads looks at his row twice a second, so
to pause or to cancel is to change its status.
"""

import asyncio
import logging
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import commands
from .artists import changes
from .audit import audit
from .containment import refuse
from .db import Db, DbDep
from .events import emit
from .files import off_loop, write_atomic
from .http import (
    MAX_INT,
    ApiError,
    id_list,
    json_body,
    json_response,
    number,
    page_args,
    paged,
    query,
    read,
    success,
    text,
    uploaded_file,
)
from .identity import Manager, Member, Reader
from .media import find_ffmpeg
from .models import artists, downloads, utcnow, videos
from .queueing import PRIORITY, VIDEOS, Wishes, enqueuing, queue_download, queue_downloads, refusals

router = APIRouter(tags=["downloads"])
log = logging.getLogger("fastapi_app")

PREFIX = "/api/downloads"
OPEN = ("pending", "queued", "downloading", "paused")
ENDED = ("completed", "failed", "cancelled")
LEVELS = {"urgent": 1, "high": 3, "normal": 5, "low": 8}  # the first priority of each
ATTEMPTS = 3  # of a download that somebody wants to go on
LIMIT, MAX_LIMIT = 200, 1000  # of the queue
FEW = 200  # rows that become JSON before anybody notices; more would stop the loop
GONE_AFTER = timedelta(seconds=60)  # without a sign of life from whoever downloads
FORMATS = ("mp4", "webm", "mkv")
QUALITY = re.compile(r"best|[1-9][0-9]{2,3}p?")
MAX_COOKIES = 1024 * 1024  # bytes
COOKIES_BEGIN = re.compile(r"# (?:Netscape )?HTTP Cookie File\b")
FLAGS = ("TRUE", "FALSE")
PROGRAM_S = 10
MISSING = "is not installed"
FFMPEG_VERSION = re.compile(rb"^ffmpeg version (\S+)")
YT_DLP_VERSION = re.compile(rb"^(\d[\w.-]*)\s*$")

_DOWNLOADS = (
    select(downloads, videos.c.title.label("video_title"), videos.c.artist_id, artists.c.name.label("artist_name"))
    .join(videos, videos.c.id == downloads.c.video_id)
    .join(artists, artists.c.id == videos.c.artist_id)
)
_ONE = _DOWNLOADS.where(downloads.c.id == bindparam("download_id"))
_OPEN = _DOWNLOADS.where(downloads.c.status.in_(OPEN))
_QUEUE = _OPEN.order_by(downloads.c.priority, downloads.c.id).limit(bindparam("limit"))
_ENDED = _DOWNLOADS.where(downloads.c.status.in_(ENDED))
_VIDEO_ID = select(downloads.c.video_id).where(downloads.c.id == bindparam("download_id"))
_LOCKED = select(downloads).where(downloads.c.id == bindparam("download_id")).with_for_update()
_VIDEO = VIDEOS.where(videos.c.id == bindparam("video_id"))
_VIDEO_LOCKED = _VIDEO.with_for_update()
_SOME_LOCKED = VIDEOS.where(videos.c.id.in_(bindparam("ids", expanding=True))).order_by(videos.c.id).with_for_update()


def _counted(statement: Select[Any]) -> Select[Any]:
    return statement.with_only_columns(func.count(downloads.c.id), maintain_column_froms=True)


_OPEN_COUNT = _counted(_OPEN)


# Reading


@read(router, f"{PREFIX}/queue", name="downloads.download_queue")
async def download_queue(request: Request, db: DbDep, _: Reader) -> Response:
    """What is not over yet, the next first; `limit` is 200 unless given, and at most 1000."""
    limit = _limit(query(request))
    total, rows = await db.scalar(_OPEN_COUNT), await db.rows(_QUEUE, {"limit": limit})

    def page() -> Response:
        queue = [download_json(row) for row in rows]
        return json_response({"queue": queue, "count": len(queue), "total": total, "priority_levels": LEVELS})

    return page() if limit <= FEW else await off_loop(page)


@read(router, f"{PREFIX}/history", name="downloads.download_history")
async def download_history(request: Request, db: DbDep, _: Reader) -> Response:
    """What is over, the last first; `status` may be completed, failed or cancelled."""
    args = query(request)
    page, per_page = page_args(args)
    found = _ENDED
    if status := args.get("status"):
        found = found.where(downloads.c.status == status)
    total = await db.scalar(_counted(found))
    newest = found.order_by(downloads.c.finished_at.desc(), downloads.c.id.desc())
    rows = await db.rows(newest.offset((page - 1) * per_page).limit(per_page))
    return paged("downloads", [download_json(row) for row in rows], total, page, per_page)


# Changing


@router.put(f"{PREFIX}/{{download_id:digits}}/priority", name="downloads.set_priority")
async def set_priority(request: Request, download_id: int, db: DbDep, _: Member) -> Response:
    priority = number(await json_body(request), "priority", 1, 10)
    if priority is None:
        raise ApiError(400, "priority is required")
    rule = "one that is pending gets another priority"
    async with _changing(request, db, download_id, "priority", ("pending",), rule) as (connection, row, _video):
        answer = await _save(connection, row, {"priority": priority})
    return success("Priority changed", download=answer)


@router.post(f"{PREFIX}/{{download_id:digits}}/pause", name="downloads.pause_download")
async def pause_download(request: Request, download_id: int, db: DbDep, _: Member) -> Response:
    """What has been loaded is kept."""
    rule = "one that is downloading can be paused"
    async with _changing(request, db, download_id, "pause", ("downloading",), rule) as (connection, row, _video):
        answer = await _save(connection, row, {"status": "paused", "speed": None, "eta": None})
    return success("Download paused", download=answer)


@router.post(f"{PREFIX}/{{download_id:digits}}/resume", name="downloads.resume_download")
async def resume_download(request: Request, download_id: int, db: DbDep, _: Member) -> Response:
    rule = "one that is paused can be resumed"
    async with (
        enqueuing(request),
        _changing(request, db, download_id, "resume", ("paused",), rule) as (connection, row, _video),
    ):
        fields = {"status": "pending", "retry_at": None, "max_attempts": row.attempts + ATTEMPTS}
        answer = await _save(connection, row, fields)
    return success("Download resumed", download=answer)


@router.post(f"{PREFIX}/{{download_id:digits}}/cancel", name="downloads.cancel_download")
async def cancel_download(request: Request, download_id: int, db: DbDep, _: Member) -> Response:
    """What has been loaded is removed: here, or by whoever is downloading it when he notices."""
    refuse("files", f"what was loaded by download {download_id}")
    rule = "one that is not over can be cancelled"
    async with _changing(request, db, download_id, "cancel", OPEN, rule) as (connection, row, video):
        at_work = row.status == "downloading" and row.updated_at > utcnow() - GONE_AFTER
        fields = {"status": "cancelled", "active_video_id": None, "finished_at": utcnow()}
        answer = await _save(connection, row, {**fields, "speed": None, "eta": None, "retry_at": None})
        if video.status == "DOWNLOADING":
            await connection.execute(update(videos).where(videos.c.id == video.id).values(status="WANTED"))
    if not at_work:
        loaded: Path = request.app.state.settings.downloads_path / ".incoming" / str(row.id)
        await off_loop(_remove_folder, loaded)
    return success("Download cancelled", download=answer)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@router.post(f"{PREFIX}/{{download_id:digits}}/retry", name="downloads.retry_download")
async def retry_download(request: Request, download_id: int, db: DbDep, _: Member) -> Response:
    """From the beginning, with the same wishes."""
    rule = "one that has failed can be retried"
    async with (
        enqueuing(request),
        _changing(request, db, download_id, "retry", ("failed",), rule) as (connection, row, video),
    ):
        for error in (await refusals(connection, request, [video])).values():
            raise error
        fields: dict[str, Any] = {"status": "pending", "active_video_id": row.video_id}
        fields |= {"attempts": 0, "max_attempts": ATTEMPTS, "retry_at": None}
        fields |= {"progress": 0, "bytes_done": 0, "bytes_total": None}
        fields |= {"error_code": None, "error_message": None, "finished_at": None}
        answer = await _save(connection, row, fields)
        await emit(connection, request, "download.queued", {"video": _titled(video), "download": {"id": row.id}})
    return success("Download queued again", download=answer)


@asynccontextmanager
async def _changing(
    request: Request, db: Db, download_id: int, action: str, states: tuple[str, ...], rule: str
) -> AsyncIterator[tuple[AsyncConnection, Any, Any]]:
    """A transaction with the download in one of these states and its video, locked; and its entry in the audit log.

    Raises ApiError 400 or 404.
    """
    async with db.transaction() as connection:
        row, video = await _find_locked(connection, download_id)
        if row.status not in states:
            raise ApiError(400, f"The download is {row.status}: only {rule}", success=False)
        detail = {"before": row.status, "video_id": row.video_id}
        await audit(connection, request, f"downloads.{action}", f"download:{download_id}", **detail)
        yield connection, row, video


async def _find_locked(connection: AsyncConnection, download_id: int) -> tuple[Any, Any]:
    """The download and its video, which is locked first. Raises ApiError 404."""
    which = {"download_id": download_id}
    found = (await connection.execute(_VIDEO_ID, which)).first() if download_id <= MAX_INT else None
    if found is not None:
        video = (await connection.execute(_VIDEO_LOCKED, {"video_id": found.video_id})).first()
        row = (await connection.execute(_LOCKED, which)).first()
        if row is not None:
            return row, video
    raise ApiError(404, "Download not found", success=False)


async def _save(connection: AsyncConnection, row: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The download as it is shown afterwards."""
    if changed := changes(row, fields):
        await connection.execute(update(downloads).where(downloads.c.id == row.id).values(changed))
    return await _shown(connection, row.id)


async def _shown(connection: AsyncConnection, download_id: int) -> dict[str, Any]:
    return download_json((await connection.execute(_ONE, {"download_id": download_id})).one())


# Queueing


@router.post("/api/videos/{video_id:digits}/download", name="videos.download_video")
async def download_video(request: Request, video_id: int, db: DbDep, _: Member) -> Response:
    """The body may wish for a `quality`, a `format` and a `priority`. Where the video is, the worker finds out."""
    wishes = _wishes(await json_body(request, optional=True))
    async with enqueuing(request), db.transaction() as connection:
        which = {"video_id": video_id}
        video = (await connection.execute(_VIDEO_LOCKED, which)).first() if video_id <= MAX_INT else None
        if video is None:
            raise ApiError(404, "Video not found")
        download_id = await queue_download(connection, request, video, wishes)
        await audit(connection, request, "videos.download", f"video:{video_id}", download_id=download_id)
        await emit(connection, request, "download.queued", {"video": _titled(video), "download": {"id": download_id}})
        answer = await _shown(connection, download_id)
    return success("Download queued", download=answer, download_id=download_id)


@router.post("/api/videos/bulk/download", name="videos.bulk_download")
async def bulk_download(request: Request, db: DbDep, _: Member) -> Response:
    """As many as can be; `video_ids`, and the wishes of `download_video`."""
    data = await json_body(request)
    ids, wishes = id_list(data, "video_ids"), _wishes(data)
    async with enqueuing(request), db.transaction() as connection:
        rows = (await connection.execute(_SOME_LOCKED, {"ids": ids})).all()
        queued, refused = await queue_downloads(connection, request, rows, wishes)
        told = [_titled(row) for row in rows if row.id in queued]
        await audit(connection, request, "videos.bulk_download", video_ids=[video["id"] for video in told])
        if told:
            await emit(connection, request, "download.queued", {"videos": told})
    done = [{"id": video_id, "download_id": queued[video_id]} for video_id in ids if video_id in queued]
    failed = [_failure(video_id, refused.get(video_id)) for video_id in ids if video_id not in queued]
    answer = {"success": not failed, "message": f"{len(done)} of {len(ids)} downloads queued"}
    return json_response({**answer, "count": len(done), "queued": done, "failed": failed}, 207 if failed else 200)


def _failure(video_id: int, error: ApiError | None) -> dict[str, Any]:
    if error is None:
        return {"id": video_id, "error": "Video not found"}
    about = {name: value for name, value in error.payload.items() if name == "download_id"}
    return {"id": video_id, "error": error.message, **about}


def _wishes(data: Mapping[str, Any]) -> Wishes:
    quality, container = text(data, "quality", 20), text(data, "format", 20)
    if quality is not None and not QUALITY.fullmatch(quality):
        raise ApiError(400, "quality must be best or a height such as 1080")
    if container is not None and container not in FORMATS:
        raise ApiError(400, f"format must be one of: {', '.join(FORMATS)}")
    return Wishes(number(data, "priority", 1, 10) or PRIORITY, quality, container)


# Tools


@router.post(f"{PREFIX}/cookies", name="downloads.upload_cookies")
async def upload_cookies(request: Request, db: DbDep, _: Manager) -> Response:
    """A file in the format of Netscape, for sites that want one to sign in. It is never shown again."""
    content = await uploaded_file(request, "file")
    if content is None:
        raise ApiError(400, "No file given")
    if len(content) > MAX_COOKIES:
        raise ApiError(413, "The file is too large: at most 1 MB")
    count = await off_loop(count_cookies, content)
    try:
        await off_loop(_write_secret, request.app.state.settings.data_path / "cookies.txt", content)
    except OSError:
        log.exception("the cookies file could not be written")
        raise ApiError(500, "The file could not be saved") from None
    async with db.transaction() as connection:
        await audit(connection, request, "downloads.cookies", "cookies", cookies=count)
    return success("Cookies saved", cookies=count)


def count_cookies(content: bytes) -> int:
    """Raises ApiError 400 for what yt-dlp would not read."""
    try:
        lines = content.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        lines = [""]
    entries = [line.removeprefix("#HttpOnly_") for line in lines]
    cookies = [line.split("\t") for line in entries if line.strip() and not line.startswith("#")]
    if not (COOKIES_BEGIN.match(lines[0]) and cookies and all(map(_is_cookie, cookies))):
        raise ApiError(400, "Not a cookies file: the format of Netscape is expected")
    return len(cookies)


def _is_cookie(fields: list[str]) -> bool:
    """domain, with its subdomains?, path, by TLS only?, when it expires, name, value"""
    if len(fields) != 7:
        return False
    domain, subdomains, path, secure, expires, _, _ = fields
    times = (expires.isascii() and expires.isdigit()) or not expires
    return bool(domain) and path.startswith("/") and subdomains in FLAGS and secure in FLAGS and times


def _write_secret(path: Path, content: bytes) -> None:
    write_atomic(path, content, mode=0o600)


@read(router, f"{PREFIX}/tool", name="downloads.ytdlp_status")
async def ytdlp_status(request: Request, _: Reader) -> Response:
    """The versions of what downloads; 503 when one of the programs is missing or does not answer."""
    ffmpeg = await off_loop(find_ffmpeg, request.app.state.settings.ffmpeg)
    yt_dlp, of_ffmpeg = await asyncio.gather(
        _version([sys.executable, "-m", "yt_dlp", "--ignore-config", "--version"], YT_DLP_VERSION),
        _version([ffmpeg, "-nostdin", "-version"] if ffmpeg else [], FFMPEG_VERSION),
    )
    answers = {"yt_dlp": yt_dlp, "ffmpeg": of_ffmpeg}
    tools = {name: found for name, (found, _) in answers.items()}
    problems = [f"{name.replace('_', '-')} {problem}" for name, (_, problem) in answers.items() if problem]
    if problems:
        return json_response({"status": "unhealthy", "error": "; ".join(problems), "tools": tools}, 503)
    return success("The tools are ready", tools=tools)


async def _version(command: list[str], pattern: re.Pattern[bytes]) -> tuple[str | None, str]:
    """What a program says of itself, or what is wrong with it."""
    if not command:
        return None, MISSING
    try:
        done = await commands.run(command, timeout_s=PROGRAM_S)
    except commands.CommandTimeout:
        return None, "does not answer"
    except commands.CommandMissing:
        return None, MISSING
    except commands.CommandError:
        return None, "does not work"
    found = pattern.match(done.stdout) if done.code == 0 else None
    return (found[1].decode(errors="replace"), "") if found else (None, "does not work")


# Small things


def _limit(args: Mapping[str, str]) -> int:
    try:
        limit = int(args.get("limit", LIMIT))
    except ValueError:
        raise ApiError(400, "limit must be a number") from None
    return min(max(limit, 1), MAX_LIMIT)


def _titled(video: Any) -> dict[str, Any]:
    return {"id": video.id, "title": video.title}


_TIMES = ("created_at", "updated_at", "started_at", "finished_at", "retry_at")
_PLAIN = (
    *("id", "video_id", "video_title", "artist_id", "artist_name", "status", "priority", "progress"),
    *("bytes_done", "bytes_total", "quality", "format", "attempts", "max_attempts"),
    *("error_code", "error_message", "file_path"),
)


def download_json(row: Any) -> dict[str, Any]:
    """A download with `video_title`, `artist_id` and `artist_name`, as it is shown."""
    shown: dict[str, Any] = {name: getattr(row, name) for name in _PLAIN}
    shown |= {name: time.isoformat() if (time := getattr(row, name)) else None for name in _TIMES}
    level = max((level, name) for name, level in LEVELS.items() if level <= row.priority)[1]
    speed = row.speed if row.status == "downloading" else None
    return shown | {"priority_label": level, "speed": speed, "eta": _eta(row)}


def _eta(row: Any) -> int | None:
    """Seconds: by the speed where the size is known, else what was last guessed."""
    if row.status != "downloading":
        return None
    if row.speed and row.bytes_total:
        return int(max(row.bytes_total - row.bytes_done, 0) // row.speed)
    eta: int | None = row.eta
    return eta
