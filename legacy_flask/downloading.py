"""One download, from the row that waits to the file in the library.

The row is the truth, and other processes, also of the other application, work on the same rows. Whoever claims one
counts its attempts up and signs it. All that he writes later is written only as long as the row is still `downloading`
with both. When it is not (paused, cancelled, taken over), he stops and leaves the row alone.
"""

import errno
import os
import random
import secrets
import shutil
import socket
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flask import current_app
from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from . import beats, events, indexing, intake, media, settings, thumbnails
from .beats import beating
from .child import Child
from .db import close_session, get_session, transaction
from .files import inside, safe_name
from .http import ApiError
from .models import Artist, Download, Setting, Video, utcnow
from .organizing import VIDEO_TYPES, nfo, target_path
from .resolving import find_address
from .upstreams.youtube import watch_url

LIMIT = "max_concurrent_downloads"
MOST = 100  # whatever the setting says
LOOK_EVERY_S = 0.5  # at the row: is it still ours?
GONE_AFTER = timedelta(seconds=60)  # without a sign of life
STALLED_S = 900.0  # without a word of the child: the longest merging of two files
LONGEST_PAUSE_S = 3600.0  # between two attempts
INCOMING = ".incoming"  # below the downloads folder; what begins with a dot is neither indexed nor organized

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
PASSING = {"network", "service", "worker_lost", "unexpected"}  # tried again


class Lost(Exception):
    """The row is no longer ours: paused, cancelled, deleted, or somebody else has it."""


class Failed(Exception):
    """The text is one of the codes above."""


class Task(NamedTuple):
    """A row that is ours. `attempts` counts this one, too."""

    id: int
    attempts: int
    runner: str | None
    max_attempts: int
    video_id: int
    quality: str | None
    format: str | None


class Subject(NamedTuple):
    """What is to be downloaded. `texts` are the settings."""

    artist: str
    folder: str | None
    title: str
    url: str | None
    thumbnail_url: str | None
    texts: dict


# --- the queue ---------------------------------------------------------------------------------------------------


def limit(value: str | None) -> int:
    """How many downloads there may be at a time, of all processes together; 0: none begins."""
    default = settings.DEFAULTS[LIMIT]
    return min(int(settings.as_number(value or default, float(default))), MOST)


def due():
    row = Download
    return (row.status == "pending") & or_(row.retry_at.is_(None), row.retry_at <= utcnow())


def stale():
    return (Download.status == "downloading") & (Download.updated_at < utcnow() - GONE_AFTER)


def is_more() -> bool:
    """Whether there may be something to do now or soon. It only reads."""
    db = get_session()
    if not limit(db.scalar(select(Setting.value).where(Setting.key == LIMIT))):
        return db.scalar(select(Download.id).where(stale()).limit(1)) is not None
    return db.scalar(select(Download.id).where(Download.status.in_(("pending", "downloading"))).limit(1)) is not None


def is_room() -> bool:
    """Whether a claim would succeed, most likely. It only reads."""
    db = get_session()
    most = limit(db.scalar(select(Setting.value).where(Setting.key == LIMIT)))
    return running(db) < most and db.scalar(select(Download.id).where(due()).limit(1)) is not None


def running(db) -> int:
    return db.scalar(select(func.count()).where(Download.status == "downloading"))


def claim() -> Task | None:
    """The next row that waits, for us; None when there is none or the limit is reached.

    The lock on the row of the setting lets one claim at a time count what is running: so the limit holds everywhere.
    """
    row = Download
    try:
        with transaction() as db:
            setting = db.get(Setting, LIMIT, with_for_update=True)
            if setting is None:
                setting = Setting(key=LIMIT, value=settings.DEFAULTS[LIMIT])
                db.add(setting)
                db.flush()
            if running(db) >= limit(setting.value):
                return None
            first = select(row.id, row.video_id).where(due()).order_by(row.priority, row.id).limit(1)
            for download_id, video_id in db.execute(first).all():
                video = db.get(Video, video_id, with_for_update=True)  # first, as whoever changes both
                found = db.scalar(select(row).where(row.id == download_id, due()).with_for_update())
                return taken(db, found, video) if found else None
    except IntegrityError:  # somebody else has just written the row of the setting
        pass
    return None


def taken(db, row: Download, video: Video) -> Task:
    row.status, row.attempts, row.runner = "downloading", row.attempts + 1, runner()
    row.started_at = row.updated_at = utcnow()
    row.retry_at = row.finished_at = row.error_code = row.error_message = row.speed = row.eta = None
    video.status = "DOWNLOADING"
    events.emit(db, "download.started", about(row))
    return Task(row.id, row.attempts, row.runner, row.max_attempts, row.video_id, row.quality, row.format)


def runner() -> str:
    """Another one each time: the attempts of a row begin anew when somebody retries it."""
    return f"flask:{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"


def about(row: Download, **more) -> dict:
    """What an event says of a download."""
    return {"download_id": row.id, "videos": [{"id": row.video_id, "title": row.video.title}], **more}


def take_back() -> None:
    """Rows of runners that are gone wait again, or have failed when that happened too often."""
    row = Download
    columns = (row.id, row.attempts, row.runner, row.max_attempts, row.video_id, row.quality, row.format)
    for found in get_session().execute(select(*columns).where(stale())).all():
        with suppress(Lost):
            fail(Task(*found), "worker_lost", stale())


def ours(task: Task):
    row = Download
    same = (row.id == task.id) & (row.attempts == task.attempts) & (row.runner == task.runner)
    return same & (row.status == "downloading")


def write(task: Task, **values) -> None:
    """Raises Lost."""
    with transaction() as db:
        changed = update(Download).where(ours(task)).values(updated_at=utcnow(), **values)
        if not db.execute(changed, execution_options={"synchronize_session": False}).rowcount:
            raise Lost


def release(task: Task) -> None:
    """Put it back as it is. Nothing has failed: as many attempts are left as before. Raises Lost."""
    write(task, status="pending", speed=None, eta=None, max_attempts=Download.max_attempts + 1)


def own(db, task: Task, *conditions) -> Download:
    """The row, locked after its video. Raises Lost."""
    db.get(Video, task.video_id, with_for_update=True)
    found = db.scalar(select(Download).where(ours(task), *conditions).with_for_update())
    if found is None:
        raise Lost
    return found


def check(task: Task) -> None:
    """Raises Lost."""
    found = get_session().scalar(select(Download.id).where(ours(task)))
    close_session()
    if found is None:
        raise Lost


# --- the work ----------------------------------------------------------------------------------------------------


def run(task: Task) -> None:
    """Never raises: how it went is in the row, or nobody can write there, and somebody takes the row back."""
    try:
        try:
            finish(task, *fetched(task))
        except Failed as error:
            fail(task, str(error))
        except Lost:
            pass
        except SQLAlchemyError:
            raise
        except Exception as error:
            current_app.logger.exception("download %s", task.id)
            fail(task, "disk_full" if is_disk_full(error) else "unexpected")
    except Lost:
        pass
    except SQLAlchemyError:
        current_app.logger.exception("what became of download %s could not be noted", task.id)
    with suppress(SQLAlchemyError):
        tidy()


def is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def incoming(task_id: int) -> Path:
    return current_app.config["DOWNLOADS_PATH"] / INCOMING / str(task_id)


def fetched(task: Task) -> tuple[Subject, Path]:
    """The file, still among its leftovers. Raises Lost, Failed."""
    subject = subject_of(task)
    url = subject.url or resolved(task, subject)
    folder = incoming(task.id)
    folder.mkdir(parents=True, exist_ok=True)
    with Child(order(task, subject.texts, url, folder)) as child:
        return subject, followed(task, child, folder)


def subject_of(task: Task) -> Subject:
    db = get_session()
    columns = (Artist.name, Artist.folder_path, Video.title, Video.url, Video.thumbnail_url, Video.youtube_id)
    found = db.execute(select(*columns).join(Artist).where(Video.id == task.video_id)).first()
    texts = settings.texts(db)
    close_session()
    if found is None:
        raise Lost
    *columns, youtube_id = found
    subject = Subject(*columns, texts)
    return subject._replace(url=subject.url or (watch_url(youtube_id) if youtube_id else None))


def resolved(task: Task, subject: Subject) -> str:
    """Of a video that was queued without an address, as the other application does. Raises Lost, Failed."""
    try:
        with beating(partial(write, task), Lost, str(task.id)):
            url = find_address(subject.texts, subject.artist, subject.title)
    except ApiError as error:
        raise Failed("service") from error
    if url is None:
        raise Failed("not_found")
    with transaction() as db:
        db.execute(update(Video).where(Video.id == task.video_id, Video.url.is_(None)).values(url=url))
    return url


def order(task: Task, texts: dict, url: str, folder: Path) -> dict:
    """As `fetch.py` wants it."""
    number = settings.as_number
    return {
        "url": url,
        "folder": str(folder),
        "quality": task.quality or texts["download_quality"].strip(),
        "format": task.format or texts["download_format"].strip(),
        "cookies": str(current_app.config["DATA_PATH"] / "cookies.txt"),
        "proxy": texts["download_proxy"].strip(),
        "max_bytes": int(number(texts["download_max_mb"], 16384, 1) * 1024**2),
        "max_seconds": number(texts["download_max_minutes"], 720, 1) * 60,
        "allowed_networks": current_app.config["ALLOWED_NETWORKS"],
        "ffmpeg": media.find_ffmpeg(),
    }


def followed(task: Task, child: Child, folder: Path) -> Path:
    """What the child has made. Its progress is written twice a second at most. Raises Lost, Failed."""
    progress, written_at, heard_at = {}, time.monotonic(), time.monotonic()
    while (lines := child.told(LOOK_EVERY_S)) is not None:
        now = time.monotonic()
        for line in lines:
            heard_at = now
            if line["event"] == "progress":
                progress = line
            elif line["event"] == "done":
                return made(folder, line["path"])
            elif line["event"] == "error":
                current_app.logger.warning("download %s: %s: %s", task.id, line["code"], line["detail"])
                raise Failed(line["code"] if line["code"] in ERRORS else "unexpected")
        if now - heard_at > STALLED_S:
            raise Failed("network")
        try:
            if now - written_at >= (LOOK_EVERY_S if progress else beats.EVERY_S):
                write(task, **columns_of(progress))
                progress, written_at = {}, now
            elif not lines:
                check(task)
        except SQLAlchemyError:  # who cannot be asked cannot give the row to somebody else either
            current_app.logger.warning("the progress of download %s could not be noted", task.id)
    raise Failed("unexpected")  # it was killed, or could not even begin


def columns_of(progress: dict) -> dict:
    """The end of the bytes is not that of the work: 99 % are the most."""
    if not progress:
        return {}
    done, total = progress["done"], progress["total"]
    percent = {"progress": min(99, 100 * done // total)} if total else {}
    return percent | {"bytes_done": done, "bytes_total": total, "speed": progress["speed"], "eta": progress["eta"]}


def made(folder: Path, path: str) -> Path:
    """The file that the child names, if it is one of the folder. Raises Failed."""
    file = folder / Path(path).name
    if file.is_symlink() or not file.is_file():
        raise Failed("unexpected")
    return file


# --- the end -----------------------------------------------------------------------------------------------------


def finish(task: Task, subject: Subject, file: Path) -> None:
    """The file gets its place, and the rows say so. Raises Lost, Failed, OSError."""
    ffprobe = media.find_ffprobe()
    found = indexing.probe(ffprobe, file)
    if ffprobe and "quality" not in found:
        raise Failed("invalid_file")
    found["file_size"] = file.stat().st_size
    organized = settings.as_bool(subject.texts["auto_organize_downloads"])
    root = current_app.config["LIBRARY_PATH" if organized else "DOWNLOADS_PATH"]
    staged = intake.staged_path() if organized else file
    try:
        if organized:
            with beating(partial(write, task), Lost, str(task.id)):
                intake.stage(file, staged)
        wanted = target(root, subject, suffix_of(file), organized)
        path, note = settled(task, root, staged, wanted, found, organized)
    finally:
        if organized:
            staged.unlink(missing_ok=True)
    if organized and settings.as_bool(subject.texts["organize_nfo"]):
        intake.write_nfo(path, note)
    adopt_picture(task.video_id, subject.thumbnail_url)


def suffix_of(file: Path) -> str:
    """A file whose type nobody has named can be anything: what is called mkv is converted when it is played."""
    return file.suffix if file.suffix.lower() in VIDEO_TYPES else ".mkv"


def target(root: Path, subject: Subject, suffix: str, organized: bool) -> str:
    """The path below the root that the rules of the library ask for; in the downloads folder, only the name."""
    path = target_path(subject.folder or safe_name(subject.artist), subject.artist, subject.title, suffix)
    if not organized:
        return Path(path).name
    if inside(root, path) is None:  # the folder of the artist leads out of the library
        return target_path(safe_name(subject.artist), subject.artist, subject.title, suffix)
    return path


def settled(task: Task, root: Path, staged: Path, wanted: str, found: dict, organized: bool) -> tuple[str, str]:
    """The path that the file got below the root, and the nfo. Raises Lost, OSError.

    When the commit fails, the file keeps its place: whoever does the work again finds the same content there.
    """
    with transaction() as db:
        row = own(db, task)
        path, _ = intake.place(root, staged, wanted)
        size, video = found["file_size"], row.video
        row.status, row.active_video_id, row.progress, row.file_path = "completed", None, 100, path
        row.bytes_done, row.bytes_total, row.speed, row.eta, row.finished_at = size, size, None, 0, utcnow()
        video.status = "DOWNLOADED"
        if organized:
            for name, value in {**found, "file_path": path}.items():
                setattr(video, name, value)
        events.emit(db, "download.completed", about(row, file_path=path, file_size=size))
        return path, nfo(video.title, video.artist.name, video.year, video.genres, video.directors, video.description)


def adopt_picture(video_id: int, url: str | None) -> None:
    """Fetch and keep the picture of a video that has none."""
    folder = f"thumbnails/videos/{video_id}"
    known = get_session().scalar(select(Video.thumbnail_path).where(Video.id == video_id))
    close_session()
    if known or not url or not thumbnails.fetch(url, folder):
        return
    with transaction() as db:
        video = db.get(Video, video_id, with_for_update=True)
        if video is not None:
            video.thumbnail_path = folder
    if video is None:  # deleted meanwhile
        thumbnails.remove(folder)


def fail(task: Task, code: str, *conditions) -> None:
    """What passes is tried again, later and later, as long as there are attempts left. Raises Lost."""
    again = code in PASSING and task.attempts < task.max_attempts
    with transaction() as db:
        row = own(db, task, *conditions)
        row.error_code, row.error_message, row.speed, row.eta = code, ERRORS[code], None, None
        if again:
            row.status, row.retry_at = "pending", utcnow() + timedelta(seconds=pause_s(task.attempts))
        else:
            row.status, row.active_video_id, row.finished_at = "failed", None, utcnow()
            row.video.status = "FAILED"
            events.emit(db, "download.failed", about(row, error_code=code))
    if not again:
        shutil.rmtree(incoming(task.id), ignore_errors=True)


def pause_s(attempts: int) -> float:
    longest = min(LONGEST_PAUSE_S, current_app.config["DOWNLOAD_BACKOFF_S"] * 2 ** (attempts - 1))
    return longest * random.uniform(0.5, 1)


def tidy() -> None:
    """Remove what is left of downloads that are over for good."""
    folder = current_app.config["DOWNLOADS_PATH"] / INCOMING
    left = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    if not left:
        return
    row, ids = Download, [int(path.name) for path in left]
    in_use = select(row.id).where(row.id.in_(ids), row.status.not_in(("completed", "cancelled")))
    kept = set(get_session().scalars(in_use))
    close_session()
    for path in left:
        if int(path.name) not in kept:
            shutil.rmtree(path, ignore_errors=True)
