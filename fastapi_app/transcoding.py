"""Transcoding: an mp4 beside the video, for what browsers cannot play."""

import asyncio
import json
import logging
import os
import resource
import secrets
from collections.abc import Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from anyio import CancelScope
from fastapi import APIRouter, Request
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from starlette.responses import Response

from . import commands, events, jobs, media
from .audit import audit
from .containment import refuse
from .db import DatabaseUnavailable, Db, DbDep, find_or_404
from .files import existing_file, move, off_loop
from .http import ApiError, json_response, read, success
from .identity import Member, Reader
from .models import jobs as rows
from .models import utcnow, videos
from .videos import DIRECT_TYPES

router = APIRouter(prefix="/api/videos", tags=["videos"])
log = logging.getLogger("fastapi_app")

KIND = "transcode"
TIMEOUT_S = 6 * 3600
MAX_DURATION = 10_000_000  # seconds
PATIENCE_S, AGAIN_S = 60.0, 1.0  # with a database that is away, when all is done
SLACK = 1024**3  # bytes by which the result may be larger than four times the original

BUSY = "The video is being transcoded already"
NO_FFMPEG = "This format cannot be transcoded: ffmpeg is not installed"
NO_FILE = "Video file not found"
FAILED = "The file could not be converted"
DISK_FULL = "The disk is full"
CHANGED = "The video was changed meanwhile"
STATES = {"queued": "processing", "running": "processing", "completed": "completed", "failed": "failed"}

_LATEST = (
    select(rows)
    .where(rows.c.type == KIND, rows.c.target == bindparam("target"))
    .order_by(rows.c.created_at.desc(), rows.c.id.desc())
    .limit(1)
)
_FILE_PATH = select(videos.c.file_path).where(videos.c.id == bindparam("video_id"))
_VIDEO_LOCKED = select(videos).where(videos.c.id == bindparam("video_id")).with_for_update()


@router.post("/{video_id:digits}/transcode", name="videos.start_transcode")
async def start_transcode(request: Request, video_id: int, db: DbDep, _: Member) -> Response:
    """Begin, once: while it is being done, and when it is done, the answer names the same job."""
    config = request.app.state.settings
    video = await find_or_404(db, videos, video_id)
    path = await off_loop(existing_file, config.library_path, video.file_path)
    if path is None:
        raise ApiError(404, NO_FILE)
    if path.suffix.lower() in DIRECT_TYPES:
        return await _already(db, video)
    target = f"video:{video_id}"
    if job_id := await jobs.running(db, KIND, target):
        return success(BUSY, 202, job_id=job_id)
    if await off_loop(media.find_ffmpeg, config.ffmpeg) is None:
        raise ApiError(503, NO_FFMPEG)
    try:
        job_id = await jobs.start(request, KIND, {"video_id": video_id}, target=target, busy=BUSY, video_id=video_id)
    except ApiError as error:
        if error.status != 409:
            raise
        return success(BUSY, 202, job_id=error.payload["job_id"])
    return success("Transcoding started", 202, job_id=job_id)


async def _already(db: Db, video: Any) -> Response:
    """The answer for a file that browsers play."""
    job = await _latest(db, video.id)
    if job is None or job.status != "completed" or (job.result or {}).get("file_path") != video.file_path:
        raise ApiError(400, "This format can be played as it is")
    return success("The video has been transcoded already", job_id=job.id)


@read(router, "/{video_id:digits}/transcode/status", name="videos.transcode_status")
async def transcode_status(video_id: int, db: DbDep, _: Reader) -> Response:
    await find_or_404(db, videos, video_id)
    job = await _latest(db, video_id)
    status, error = (STATES.get(job.status, "none"), job.error) if job else ("none", None)
    if job and status == "processing" and job.updated_at <= utcnow() - jobs.GONE_AFTER:
        status, error = "failed", jobs.GONE
    return json_response(
        {
            "video_id": video_id,
            "status": status,
            "progress": job.progress if job else 0,
            "message": job.message if job else "",
            "error": error,
            "job_id": job.id if job else None,
            "file_path": (job.result or {}).get("file_path") if job else None,
            "updated_at": job.updated_at.isoformat() if job else None,
        }
    )


async def _latest(db: Db, video_id: int) -> Any | None:
    return await db.row(_LATEST, {"target": f"video:{video_id}"})


# The work


async def transcode(request: Request, arguments: Mapping[str, Any], report: jobs.Report) -> dict[str, Any]:
    """The original stays; the video's file is the new one. What was begun before and not finished is removed."""
    config, db, video_id = request.app.state.settings, Db(request.app.state.database), arguments["video_id"]
    video = await find_or_404(db, videos, video_id)
    source = await off_loop(existing_file, config.library_path, video.file_path)
    if source is None:
        raise ApiError(404, NO_FILE)
    ffmpeg = await off_loop(media.find_ffmpeg, config.ffmpeg)
    if ffmpeg is None:
        raise ApiError(503, NO_FFMPEG)
    ffprobe = await off_loop(media.find_ffprobe, config.ffmpeg, config.ffprobe)
    refuse("processes", ffmpeg)
    unfinished = source.with_name(f".transcode-{video_id}-{secrets.token_hex(4)}.mp4")
    try:
        await off_loop(_remove_unfinished, source.parent, video_id)
        known = read_known(await media.ask(ffprobe or ffmpeg, source))
        await _convert(_command(ffmpeg, source, unfinished, known), source, known.duration, report)
        target = await off_loop(move, unfinished, source.with_suffix(".mp4"))
    except OSError as error:
        log.warning("a transcoded file could not be stored: %s", error)
        raise ApiError(500, FAILED) from None
    finally:
        with CancelScope(shield=True):
            await off_loop(_remove, unfinished)
    try:
        return await _enter(request, db, video, target, known.duration)
    except BaseException:
        with CancelScope(shield=True):
            if not await _is_entered(request, db, video_id, target):
                await off_loop(_remove, target)
        raise


def _remove_unfinished(folder: Path, video_id: int) -> None:
    for left in folder.glob(f".transcode-{video_id}-*.mp4"):
        _remove(left)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _enter(request: Request, db: Db, before: Any, target: Path, duration: float) -> dict[str, Any]:
    """For a while also into a database that is away: the work of hours is done."""
    until = monotonic() + PATIENCE_S
    while True:
        try:
            return await _enter_once(request, db, before, target, duration)
        except (DatabaseUnavailable, OperationalError, InternalError):
            if monotonic() > until:
                raise
        await asyncio.sleep(AGAIN_S)


async def _is_entered(request: Request, db: Db, video_id: int, target: Path) -> bool:
    """Whether a row names the file: a commit that was cut off may have been done. While nobody knows, it stays."""
    try:
        file_path = await db.scalar(_FILE_PATH, {"video_id": video_id})
    except (DatabaseUnavailable, DBAPIError):
        return True
    return bool(file_path == _relative(request, target))


def _relative(request: Request, path: Path) -> str:
    library: Path = request.app.state.settings.library_path
    return path.relative_to(library).as_posix()


async def _enter_once(request: Request, db: Db, before: Any, target: Path, duration: float) -> dict[str, Any]:
    """May be repeated after a commit of which nobody knows whether it was done."""
    file_path, file_size = _relative(request, target), (await off_loop(target.stat)).st_size
    result = {"file_path": file_path, "file_size": file_size, "source": before.file_path}
    async with db.transaction() as connection:
        video = (await connection.execute(_VIDEO_LOCKED, {"video_id": before.id})).first()
        if video is not None and video.file_path == file_path:
            return result
        if video is None or video.file_path != before.file_path:
            raise ApiError(409, CHANGED)
        fields = {"file_path": file_path, "file_size": file_size, "duration": video.duration or round(duration) or None}
        await connection.execute(update(videos).where(videos.c.id == video.id).values(fields))
        await audit(
            connection, request, "videos.transcode", f"video:{video.id}", before=before.file_path, after=file_path
        )
        told = {"videos": [{"id": video.id, "title": video.title}], "fields": ["file_path", "file_size"]}
        await events.emit(connection, request, "video.updated", told | {"file_moved": False})
    return result


async def _convert(command: list[str], source: Path, duration: float, report: jobs.Report) -> None:
    """Raises ApiError; whatever it raises, no process is left."""
    most = 4 * (await off_loop(source.stat)).st_size + SLACK
    limits = {**media.LIMITS, resource.RLIMIT_FSIZE: most}
    guarded = media.with_parent(command, os.getpid())
    try:
        async with aclosing(commands.lines(guarded, timeout_s=TIMEOUT_S, limits=limits)) as lines:
            async for line in lines:
                name, _, value = line.partition("=")
                if name == "out_time_us" and value.isdecimal():
                    done = int(value) // 1_000_000
                    percent = min(99, int(100 * done / duration)) if duration else 0
                    await report(percent, f"{done} of {round(duration)} seconds")
    except commands.CommandFailed as error:
        log.warning("%s: %s", error, error.stderr[-500:].decode(errors="replace"))
        raise ApiError(500, DISK_FULL if b"No space left on device" in error.stderr else FAILED) from None
    except commands.CommandTimeout:
        raise ApiError(504, jobs.TOO_LONG) from None
    except commands.CommandMissing:
        raise ApiError(503, NO_FFMPEG) from None


class Known(NamedTuple):
    """What was told of a file: seconds, 0 when unknown; codec and pixels of the pictures; codec of the sound."""

    duration: float
    video: tuple[str | None, str | None] | None
    audio: str | None


def _command(ffmpeg: str, source: Path, target: Path, known: Known) -> list[str]:
    """What browsers play already is only packed anew."""
    video = ("-c:v", "copy") if known.video == ("h264", "yuv420p") else media.H264
    audio = ("-c:a", "copy") if known.audio == "aac" else media.AAC
    command = [ffmpeg, *media.QUIET, "-y", "-progress", "pipe:1", "-stats_period", "0.5", "-threads", media.THREADS]
    command += [*media.READING, "-i", f"file:{source}", "-map", "0:v:0", "-map", "0:a:0?", "-dn", "-sn"]
    command += [*video, *audio, "-threads", media.THREADS, "-movflags", "+faststart", "-f", "mp4", f"file:{target}"]
    return command


def read_known(output: bytes) -> Known:
    """As far as it was told."""
    duration, video, audio = 0.0, None, None
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        told = json.loads(output)
        for stream in reversed(told["streams"]):  # the first ones count
            if stream["codec_type"] == "video":
                video = (stream.get("codec_name"), stream.get("pix_fmt"))
            elif stream["codec_type"] == "audio":
                audio = stream.get("codec_name")
        seconds = float(told["format"]["duration"])
        duration = seconds if 0 < seconds < MAX_DURATION else 0.0
    return Known(duration, video, audio)
