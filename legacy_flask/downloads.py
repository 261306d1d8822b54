"""Downloads: the queue, its history, and what a person may do with one of them; and with videos, to get them there.

Rows are changed while they are locked, that of the video first. Whoever downloads looks at his row twice a second, so
to pause or to cancel is to change its status.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from flask import Blueprint, current_app, jsonify, request
from sqlalchemy import func, select
from sqlalchemy.orm import contains_eager, selectinload

from . import events, media, resolving, settings
from .audit import audit
from .auth import role_required
from .db import close_session, get_session, transaction
from .http import (
    MAX_INT,
    ApiError,
    find_or_404,
    id_list,
    json_body,
    number,
    page_args,
    paged,
    success,
    text,
)
from .models import Artist, Download, Video, utcnow
from .queueing import PRIORITY, address_of, queue_download, queue_downloads, refusals, wake_after
from .videos import bp as videos_bp

bp = Blueprint("downloads", __name__, url_prefix="/api/downloads")

OPEN = ("pending", "queued", "downloading", "paused")
ENDED = ("completed", "failed", "cancelled")
LEVELS = {"urgent": 1, "high": 3, "normal": 5, "low": 8}  # the first priority of each
ATTEMPTS = 3  # of a download that somebody wants to go on
LIMIT, MAX_LIMIT = 200, 1000  # of the queue
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


# --- reading -----------------------------------------------------------------------------------------------------


@bp.get("/queue")
@role_required("readonly")
def download_queue():
    """What is not over yet, the next first; `limit` is 200 unless given, and at most 1000."""
    limit = limit_arg()
    db = get_session()
    query = downloads_query().where(Download.status.in_(OPEN))
    total = db.scalar(query.with_only_columns(func.count(Download.id)))
    queue = [download_json(row) for row in db.scalars(query.order_by(Download.priority, Download.id).limit(limit))]
    return jsonify(queue=queue, count=len(queue), total=total, priority_levels=LEVELS)


@bp.get("/history")
@role_required("readonly")
def download_history():
    """What is over, the last first; `status` may be completed, failed or cancelled."""
    page, per_page = page_args()
    query = downloads_query().where(Download.status.in_(ENDED))
    if status := request.args.get("status"):
        query = query.where(Download.status == status)
    db = get_session()
    total = db.scalar(query.with_only_columns(func.count(Download.id)))
    newest = query.order_by(Download.finished_at.desc(), Download.id.desc())
    rows = db.scalars(newest.offset((page - 1) * per_page).limit(per_page))
    return paged("downloads", [download_json(row) for row in rows], total, page, per_page)


# --- changing ----------------------------------------------------------------------------------------------------


@bp.put("/<int:download_id>/priority")
@role_required("user")
def set_priority(download_id):
    priority = number(json_body(), "priority", 1, 10)
    if priority is None:
        raise ApiError(400, "priority is required")
    with changing(download_id, "priority", ("pending",), "one that is pending gets another priority") as (db, row):
        row.priority = priority
        db.flush()
        answer = download_json(row)
    return success("Priority changed", download=answer)


@bp.post("/<int:download_id>/pause")
@role_required("user")
def pause_download(download_id):
    """What has been loaded is kept."""
    with changing(download_id, "pause", ("downloading",), "one that is downloading can be paused") as (db, row):
        row.status, row.speed, row.eta = "paused", None, None
        db.flush()
        answer = download_json(row)
    return success("Download paused", download=answer)


@bp.post("/<int:download_id>/resume")
@role_required("user")
def resume_download(download_id):
    with changing(download_id, "resume", ("paused",), "one that is paused can be resumed") as (db, row):
        row.status, row.retry_at, row.max_attempts = "pending", None, row.attempts + ATTEMPTS
        db.flush()
        wake_after(db)
        answer = download_json(row)
    return success("Download resumed", download=answer)


@bp.post("/<int:download_id>/cancel")
@role_required("user")
def cancel_download(download_id):
    """What has been loaded is removed: here, or by whoever is downloading it when he notices."""
    with changing(download_id, "cancel", OPEN, "one that is not over can be cancelled") as (db, row):
        at_work = row.status == "downloading" and row.updated_at > utcnow() - GONE_AFTER
        row.status, row.active_video_id, row.finished_at = "cancelled", None, utcnow()
        row.speed, row.eta, row.retry_at = None, None, None
        if row.video.status == "DOWNLOADING":
            row.video.status = "WANTED"
        db.flush()
        answer = download_json(row)
    if not at_work:
        shutil.rmtree(current_app.config["DOWNLOADS_PATH"] / ".incoming" / str(row.id), ignore_errors=True)
    return success("Download cancelled", download=answer)


@bp.post("/<int:download_id>/retry")
@role_required("user")
def retry_download(download_id):
    """From the beginning, with the same wishes."""
    with changing(download_id, "retry", ("failed",), "one that has failed can be retried") as (db, row):
        for error in refusals(db, [row.video]).values():
            raise error
        row.status, row.active_video_id = "pending", row.video_id
        row.attempts, row.max_attempts, row.retry_at = 0, ATTEMPTS, None
        row.progress, row.bytes_done, row.bytes_total = 0, 0, None
        row.error_code, row.error_message, row.finished_at = None, None, None
        db.flush()
        events.emit(db, "download.queued", {"video": titled(row.video), "download": {"id": row.id}})
        wake_after(db)
        answer = download_json(row)
    return success("Download queued again", download=answer)


@contextmanager
def changing(download_id: int, action: str, states: tuple, rule: str):
    """A transaction with the download in one of these states, locked; and its entry in the audit log."""
    with transaction() as db:
        row = find_locked(db, download_id)
        if row.status not in states:
            raise ApiError(400, f"The download is {row.status}: only {rule}", success=False)
        audit(db, f"downloads.{action}", f"download:{download_id}", before=row.status, video_id=row.video_id)
        yield db, row


def find_locked(db, download_id: int) -> Download:
    """With its video, which is locked before. Raises ApiError 404."""
    row, video_id = None, None
    if download_id <= MAX_INT:  # read without its row, which would not be read again once it is locked
        video_id = db.scalar(select(Download.video_id).where(Download.id == download_id))
    if video_id is not None:
        db.get(Video, video_id, with_for_update=True)
        row = db.get(Download, download_id, with_for_update=True)
    if row is None:
        raise ApiError(404, "Download not found", success=False)
    return row


# --- queueing ----------------------------------------------------------------------------------------------------


@videos_bp.post("/<int:video_id>/download")
@role_required("user")
def download_video(video_id):
    """The body may wish for a `quality`, a `format` and a `priority`."""
    wanted = wishes(json_body(optional=True))
    addresses = found_addresses([find_or_404(get_session(), Video, video_id)])
    with transaction() as db:
        video = find_or_404(db, Video, video_id, lock=True)
        video.url = video.url or addresses.get(video_id)
        row = queue_download(db, video, **wanted)
        audit(db, "videos.download", f"video:{video_id}", download_id=row.id)
        events.emit(db, "download.queued", {"video": titled(video), "download": {"id": row.id}})
        answer = download_json(row)
    return success("Download queued", download=answer, download_id=row.id)


@videos_bp.post("/bulk/download")
@role_required("user")
def bulk_download():
    """As many as can be; `video_ids`, and the wishes of `download_video`."""
    data = json_body()
    ids, wanted = id_list(data, "video_ids"), wishes(data)
    query = select(Video).where(Video.id.in_(ids)).order_by(Video.id).options(selectinload(Video.artist))
    addresses = found_addresses(get_session().scalars(query).all())
    with transaction() as db:
        videos = {video.id: video for video in db.scalars(query.with_for_update())}
        for video in videos.values():
            video.url = video.url or addresses.get(video.id)
        rows, refused = queue_downloads(db, list(videos.values()), **wanted)
        audit(db, "videos.bulk_download", video_ids=list(rows))
        if rows:
            events.emit(db, "download.queued", {"videos": [titled(videos[video_id]) for video_id in rows]})
    queued = [{"id": video_id, "download_id": rows[video_id].id} for video_id in ids if video_id in rows]
    failed = [failure(video_id, refused.get(video_id)) for video_id in ids if video_id not in rows]
    answer = {"success": not failed, "message": f"{len(queued)} of {len(ids)} downloads queued"}
    return jsonify(**answer, count=len(queued), queued=queued, failed=failed), 207 if failed else 200


def found_addresses(videos: list[Video]) -> dict[int, str]:
    """Of those that have none, one search after the other; what is not found is left to the downloader to tell."""
    db, found = get_session(), {}
    refused = refusals(db, videos)
    unknown = [video for video in videos if address_of(video) is None and video.id not in refused]
    names, texts = [(video.id, video.artist.name, video.title) for video in unknown], settings.texts(db)
    close_session()  # no connection is held while others are waited for
    for video_id, artist, title in names:
        with suppress(ApiError):
            found[video_id] = resolving.find_address(texts, artist, title)
    return found


def failure(video_id: int, error: ApiError | None) -> dict:
    if error is None:
        return {"id": video_id, "error": "Video not found"}
    about = {name: value for name, value in error.payload.items() if name == "download_id"}
    return {"id": video_id, "error": error.message, **about}


def wishes(data: dict) -> dict:
    quality, format = text(data, "quality", 20), text(data, "format", 20)
    if quality is not None and not QUALITY.fullmatch(quality):
        raise ApiError(400, "quality must be best or a height such as 1080")
    if format is not None and format not in FORMATS:
        raise ApiError(400, f"format must be one of: {', '.join(FORMATS)}")
    return {"quality": quality, "format": format, "priority": number(data, "priority", 1, 10) or PRIORITY}


# --- tools -------------------------------------------------------------------------------------------------------


@bp.post("/cookies")
@role_required("manager")
def upload_cookies():
    """A file in the format of Netscape, for sites that want one to sign in. It is never shown again."""
    upload = request.files.get("file")
    if upload is None or not upload.filename:
        raise ApiError(400, "No file given")
    content = upload.read(MAX_COOKIES + 1)
    if len(content) > MAX_COOKIES:
        raise ApiError(413, "The file is too large: at most 1 MB")
    count = count_cookies(content)
    try:
        write_secret(current_app.config["DATA_PATH"] / "cookies.txt", content)
    except OSError:
        current_app.logger.exception("the cookies file could not be written")
        raise ApiError(500, "The file could not be saved") from None
    with transaction() as db:
        audit(db, "downloads.cookies", "cookies", cookies=count)
    return success("Cookies saved", cookies=count)


def count_cookies(content: bytes) -> int:
    """Raises ApiError 400 for what yt-dlp would not read."""
    try:
        lines = content.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        lines = [""]
    entries = [line.removeprefix("#HttpOnly_") for line in lines]
    cookies = [line.split("\t") for line in entries if line.strip() and not line.startswith("#")]
    if not (COOKIES_BEGIN.match(lines[0]) and cookies and all(map(is_cookie, cookies))):
        raise ApiError(400, "Not a cookies file: the format of Netscape is expected")
    return len(cookies)


def is_cookie(fields: list[str]) -> bool:
    """domain, with its subdomains?, path, by TLS only?, when it expires, name, value"""
    if len(fields) != 7:
        return False
    domain, subdomains, path, secure, expires, _, _ = fields
    times = expires.isascii() and expires.isdigit() or not expires
    return bool(domain) and path.startswith("/") and subdomains in FLAGS and secure in FLAGS and times


def write_secret(path: Path, content: bytes) -> None:
    """Replace the file as a whole; only its owner can read it at any time."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@bp.get("/tool")
@role_required("readonly")
def ytdlp_status():
    """The versions of what downloads; 503 when one of the programs is missing or does not answer."""
    ffmpeg = media.find_ffmpeg()
    answers = {
        "yt_dlp": version([sys.executable, "-m", "yt_dlp", "--ignore-config", "--version"], YT_DLP_VERSION),
        "ffmpeg": version([ffmpeg, "-nostdin", "-version"], FFMPEG_VERSION) if ffmpeg else (None, MISSING),
    }
    tools = {name: found for name, (found, _) in answers.items()}
    problems = [f"{name.replace('_', '-')} {problem}" for name, (_, problem) in answers.items() if problem]
    if problems:
        return jsonify(status="unhealthy", error="; ".join(problems), tools=tools), 503
    return success("The tools are ready", tools=tools)


def version(command: list[str], pattern: re.Pattern) -> tuple[str | None, str]:
    """What a program says of itself, or what is wrong with it."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_S)
    except subprocess.TimeoutExpired:
        return None, "does not answer"
    except OSError:
        return None, MISSING
    found = pattern.match(done.stdout) if done.returncode == 0 else None
    return (found[1].decode(errors="replace"), "") if found else (None, "does not work")


# --- small things ------------------------------------------------------------------------------------------------


def downloads_query():
    video = contains_eager(Download.video)
    return select(Download).join(Download.video).join(Video.artist).options(video, video.contains_eager(Video.artist))


def limit_arg() -> int:
    try:
        limit = int(request.args.get("limit", LIMIT))
    except ValueError:
        raise ApiError(400, "limit must be a number") from None
    return min(max(limit, 1), MAX_LIMIT)


def titled(video: Video) -> dict:
    return {"id": video.id, "title": video.title}


def download_json(row: Download) -> dict:
    artist: Artist = row.video.artist
    return {
        "id": row.id,
        "video_id": row.video_id,
        "video_title": row.video.title,
        "artist_id": artist.id,
        "artist_name": artist.name,
        "status": row.status,
        "priority": row.priority,
        "priority_label": max((level, name) for name, level in LEVELS.items() if level <= row.priority)[1],
        "progress": row.progress,
        "bytes_done": row.bytes_done,
        "bytes_total": row.bytes_total,
        "speed": row.speed if row.status == "downloading" else None,
        "eta": eta(row),
        "quality": row.quality,
        "format": row.format,
        "attempts": row.attempts,
        "max_attempts": row.max_attempts,
        "error_code": row.error_code,
        "error_message": row.error_message,
        "file_path": row.file_path,
        "created_at": row.created_at.isoformat(),
        "updated_at": row.updated_at.isoformat(),
        "started_at": row.started_at.isoformat() if row.started_at else None,
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        "retry_at": row.retry_at.isoformat() if row.retry_at else None,
    }


def eta(row: Download) -> int | None:
    """Seconds: by the speed where the size is known, else what was last guessed."""
    if row.status != "downloading":
        return None
    if row.speed and row.bytes_total:
        return max(row.bytes_total - row.bytes_done, 0) // row.speed
    return row.eta
