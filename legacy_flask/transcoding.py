"""Transcoding: an mp4 beside the video, for what browsers cannot play."""

import json
import os
import re
import secrets
import select as polling
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from flask import current_app, jsonify
from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from . import events, jobs, media
from .audit import audit
from .auth import role_required
from .db import close_session, get_session, transaction
from .files import existing_file, move
from .http import ApiError, find_or_404, success
from .models import Job, Video, utcnow
from .videos import DIRECT_TYPES, bp, titled

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


@bp.post("/<int:video_id>/transcode")
@role_required("user")
def start_transcode(video_id):
    """Begin, once: while it is being done, and when it is done, the answer names the same job."""
    db = get_session()
    video = find_or_404(db, Video, video_id)
    path = existing_file(current_app.config["LIBRARY_PATH"], video.file_path)
    if path is None:
        raise ApiError(404, NO_FILE)
    if path.suffix.lower() in DIRECT_TYPES:
        return already(video)
    target = f"video:{video_id}"
    if job_id := jobs.running(db, KIND, target):
        return success(BUSY, 202, job_id=job_id)
    if media.find_ffmpeg() is None:
        raise ApiError(503, NO_FFMPEG)
    arguments = {"video_id": video_id}
    try:
        job_id = jobs.start(
            KIND, partial(transcode, video_id), target=target, arguments=arguments, busy=BUSY, video_id=video_id
        )
    except ApiError as error:
        if error.status != 409:
            raise
        return success(BUSY, 202, job_id=error.payload["job_id"])
    return success("Transcoding started", 202, job_id=job_id)


def already(video: Video):
    """The answer for a file that browsers play."""
    job = latest(video.id)
    if job is None or job.status != "completed" or (job.result or {}).get("file_path") != video.file_path:
        raise ApiError(400, "This format can be played as it is")
    return success("The video has been transcoded already", job_id=job.id)


@bp.get("/<int:video_id>/transcode/status")
@role_required("readonly")
def transcode_status(video_id):
    find_or_404(get_session(), Video, video_id)
    job = latest(video_id)
    status, error = (STATES.get(job.status, "none"), job.error) if job else ("none", None)
    if status == "processing" and job.updated_at <= utcnow() - jobs.GONE_AFTER:
        status, error = "failed", jobs.GONE
    return jsonify(
        video_id=video_id,
        status=status,
        progress=job.progress if job else 0,
        message=job.message if job else "",
        error=error,
        job_id=job.id if job else None,
        file_path=(job.result or {}).get("file_path") if job else None,
        updated_at=job.updated_at.isoformat() if job else None,
    )


def latest(video_id: int) -> Job | None:
    of_video = select(Job).where(Job.type == KIND, Job.target == f"video:{video_id}")
    return get_session().scalar(of_video.order_by(Job.created_at.desc(), Job.id.desc()).limit(1))


# --- the work ----------------------------------------------------------------------------------------------------


def transcode(video_id: int, report: jobs.Report) -> dict:
    """The original stays; the video's file is the new one. What was begun before and not finished is removed."""
    library, ffmpeg = current_app.config["LIBRARY_PATH"], media.find_ffmpeg()
    video = find_or_404(get_session(), Video, video_id)
    close_session()
    source = existing_file(library, video.file_path)
    if source is None:
        raise ApiError(404, NO_FILE)
    if ffmpeg is None:
        raise ApiError(503, NO_FFMPEG)
    for left in source.parent.glob(f".transcode-{video_id}-*.mp4"):
        left.unlink(missing_ok=True)
    unfinished = source.with_name(f".transcode-{video_id}-{secrets.token_hex(4)}.mp4")
    try:
        duration = convert(ffmpeg, source, unfinished, report)
        target = move(unfinished, source.with_suffix(".mp4"))
    except OSError as error:
        current_app.logger.warning("a transcoded file could not be stored: %s", error)
        raise ApiError(500, FAILED) from None
    finally:
        unfinished.unlink(missing_ok=True)
    file_path, file_size = target.relative_to(library).as_posix(), target.stat().st_size
    try:
        return enter(video, file_path, file_size, duration)
    except BaseException:
        if not is_entered(video_id, file_path):
            target.unlink(missing_ok=True)
        raise


def is_entered(video_id: int, file_path: str) -> bool:
    """Whether the row names the file: a commit that was cut off may have been done. While nobody knows, it stays."""
    try:
        return get_session().scalar(select(Video.file_path).where(Video.id == video_id)) == file_path
    except SQLAlchemyError:
        return True
    finally:
        close_session()


def enter(before: Video, file_path: str, file_size: int, duration: float) -> dict:
    """For a while also into a database that is away: the work of hours is done."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return enter_once(before, file_path, file_size, duration)
        except (OperationalError, InterfaceError):
            if time.monotonic() > until:
                raise
        time.sleep(AGAIN_S)


def enter_once(before: Video, file_path: str, file_size: int, duration: float) -> dict:
    """May be repeated after a commit of which nobody knows whether it was done."""
    result = {"file_path": file_path, "file_size": file_size, "source": before.file_path}
    with transaction() as db:
        video = db.get(Video, before.id, with_for_update=True)
        if video is not None and video.file_path == file_path:
            return result
        if video is None or video.file_path != before.file_path:
            raise ApiError(409, CHANGED)
        video.file_path, video.file_size = file_path, file_size
        video.duration = video.duration or round(duration) or None
        audit(db, "videos.transcode", f"video:{video.id}", before=before.file_path, after=file_path)
        told = {"videos": [titled(video)], "fields": ["file_path", "file_size"], "file_moved": False}
        events.emit(db, "video.updated", told)
    return result


def convert(ffmpeg: str, source: Path, target: Path, report: jobs.Report) -> float:
    """The duration in seconds, 0 when it is unknown. Raises ApiError; whatever it raises, no process is left."""
    known = read_known(media.ask(media.find_ffprobe() or ffmpeg, source))
    command = media.with_parent(command_for(ffmpeg, source, target, known), os.getpid())
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        )
        try:
            media.limit(process, 4 * source.stat().st_size + SLACK)
            follow(process, known["duration"], report)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            code = process.wait()
        if code:
            complaints.seek(0)
            said = complaints.read(64 * 1024)
            current_app.logger.warning("ffmpeg ended with code %s: %s", code, said[-500:].decode(errors="replace"))
            raise ApiError(500, DISK_FULL if b"No space left on device" in said else FAILED)
    return known["duration"]


def command_for(ffmpeg: str, source: Path, target: Path, known: dict) -> list[str]:
    """What browsers play already is only packed anew."""
    video = ["-c:v", "copy"] if known["video"] == ("h264", "yuv420p") else media.H264
    audio = ["-c:a", "copy"] if known["audio"] == "aac" else media.AAC
    command = [ffmpeg, *media.QUIET, "-y", "-progress", "pipe:1", "-stats_period", "0.5", "-threads", media.THREADS]
    command += [*media.READING, "-i", f"file:{source}", "-map", "0:v:0", "-map", "0:a:0?", "-dn", "-sn"]
    command += [*video, *audio, "-threads", media.THREADS, "-movflags", "+faststart", "-f", "mp4", f"file:{target}"]
    return command


def follow(process: subprocess.Popen, duration: float, report: jobs.Report) -> None:
    """Report until it ends. The row is looked at even when ffmpeg says nothing."""
    until, done, output = time.monotonic() + TIMEOUT_S, 0, process.stdout.fileno()
    ready = polling.poll()  # unlike `select`, for any number of open files
    ready.register(output, polling.POLLIN)
    while time.monotonic() < until:
        if ready.poll(jobs.REPORT_EVERY_S * 1000):
            said = os.read(output, 64 * 1024)
            if not said:
                process.wait(max(until - time.monotonic(), 0))
                return
            done = int((re.findall(rb"out_time_us=(\d+)\n", said) or [done * 1_000_000])[-1]) // 1_000_000
        report(min(99, int(100 * done / duration)) if duration else 0, f"{done} of {round(duration)} seconds")
    raise ApiError(504, "The work took too long")


def read_known(output: bytes) -> dict:
    """Duration in seconds, codec and pixels of the pictures, codec of the sound; as far as they were told."""
    known = {"duration": 0.0, "video": None, "audio": None}
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        told = json.loads(output)
        for stream in reversed(told["streams"]):  # the first ones count
            if stream["codec_type"] == "video":
                known["video"] = (stream.get("codec_name"), stream.get("pix_fmt"))
            elif stream["codec_type"] == "audio":
                known["audio"] = stream.get("codec_name")
        duration = float(told["format"]["duration"])
        known["duration"] = duration if 0 < duration < MAX_DURATION else 0.0
    return known
