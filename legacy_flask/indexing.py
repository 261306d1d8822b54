"""Rows for files: what lies below a folder, what ffprobe says about it, and the video that it belongs to."""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flask import current_app
from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError

from . import events, jobs, media
from .db import get_session, transaction
from .files import existing_file, safe_name
from .http import ApiError
from .media import find_ffprobe
from .models import Artist, Video, name_key, sort_name
from .organizing import Guess, is_video, parse_name, problem, title_key

MAX_DURATION, MAX_SIDE = 10_000_000, 100_000  # seconds, pixels
MAX_PATH = 500  # characters, of `videos.file_path`
HEIGHTS = (2160, 1440, 1080, 720, 480, 360, 240)
HAS_FILE = ("DOWNLOADED", "DOWNLOADING", "IGNORED")  # what a video stays when its file is found


class File(NamedTuple):
    path: str  # relative, with slashes
    size: int
    modified: datetime | None  # naive UTC; None before the year 1 and after 9999


# --- the disk ----------------------------------------------------------------------------------------------------


def video_files(root: Path, *skipped: Path) -> list[File]:
    """Complete videos below a folder, by path. Hidden ones, links and what vanishes meanwhile are left out.

    Raises OSError when the folder itself cannot be read.
    """
    found, folders = [], [str(root)]
    while folders:
        folder = folders.pop()
        if Path(folder) in skipped:
            continue
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    look_at(entry, folders, found)
        except OSError:
            if folder == str(root):
                raise
    return sorted(File(path[len(str(root)) + 1 :], size, moment(modified)) for path, size, modified in found)


def look_at(entry: os.DirEntry, folders: list, found: list) -> None:
    try:
        if entry.name.startswith(".") or entry.is_symlink():
            return
        if entry.is_dir():
            folders.append(entry.path)
        elif is_video(entry.name) and entry.is_file():
            about = entry.stat()
            found.append((entry.path, about.st_size, about.st_mtime))
    except OSError:
        pass  # it has just gone


def moment(timestamp: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return None


def shown(path: str) -> str:
    """The path as text; bytes that are no UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


def probe(ffprobe: str | None, path: Path) -> dict:
    """Duration in seconds and quality, as far as they can be told."""
    return read_probe(media.ask(ffprobe, path)) if ffprobe else {}


def read_probe(output: bytes) -> dict:
    """What is missing in the answer, or makes no sense, is missing in the result."""
    fields = {}
    with suppress(ValueError, LookupError, TypeError, OverflowError):
        duration = round(float(json.loads(output)["format"]["duration"]))
        if 0 < duration <= MAX_DURATION:
            fields["duration"] = duration
    with suppress(ValueError, LookupError, TypeError, OverflowError, StopIteration):
        pictures = next(stream for stream in json.loads(output)["streams"] if "width" in stream)
        width, height = (int(pictures[side]) for side in ("width", "height"))
        if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
            fields["quality"] = quality(width, height)
    return fields


def quality(width: int, height: int) -> str:
    """`1080p`; black bars that were cut off, and standing on its side, do not count."""
    lines = max(min(width, height), max(width, height) * 9 // 16)
    return f"{next((known for known in HEIGHTS if known <= lines), lines)}p"


# --- the rows ----------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """`video` waits for this file; `title` is that of a video that may have one already."""

    artist: Artist | None
    video: Video | None
    title: str


def match(db, guess: Guess, folder: str = "", lock: bool = False) -> Match:
    """What is known of the video of this name; `folder` is where it lies in the library.

    `lock` keeps others from entering videos of the same artist meanwhile.
    """
    if guess.youtube_id:
        query = select(Video).where(Video.youtube_id == guess.youtube_id)
        video = db.scalar(query.with_for_update() if lock else query)
        if video is not None:
            return Match(video.artist, None if has_file(video) else video, video.title)
    key = name_key(guess.artist)
    by_folder = Artist.folder_path.in_([folder, safe_name(guess.artist)])
    query = select(Artist.id).where(or_(Artist.name_key == key, by_folder)).order_by(Artist.name_key != key, Artist.id)
    artist = db.get(Artist, db.scalar(query.limit(1)) or 0, with_for_update=lock or None)
    if artist is None:
        return Match(None, None, guess.title)
    videos = db.scalars(select(Video).where(Video.artist_id == artist.id).order_by(Video.id))
    same = [video for video in videos if title_key(video.title) == title_key(guess.title)]
    waiting = next((video for video in same if not has_file(video)), None)
    return Match(artist, waiting, same[0].title if same else guess.title)


def has_file(video: Video) -> bool:
    return existing_file(current_app.config["LIBRARY_PATH"], video.file_path) is not None


def new_artist(db, name: str) -> Artist:
    artist = Artist(name=name, name_key=name_key(name), sort_name=sort_name(name), folder_path=safe_name(name))
    db.add(artist)
    db.flush()
    return artist


def enter(db, found: Match, artist: Artist, guess: Guess, fields: dict) -> tuple[Video, bool]:
    """The row of the file: its own, the one that waits for it, or a new one; and whether it is new.

    `fields` has its `file_path`. Path, size and status are set; what else is known already stays.
    """
    own = select(Video).where(Video.artist_id == artist.id, Video.file_path == fields["file_path"])
    video = db.scalar(own.order_by(Video.id).limit(1)) or found.video
    created = video is None
    if created:
        known = db.scalar(select(Video.id).where(Video.youtube_id == guess.youtube_id))
        video = Video(artist_id=artist.id, title=found.title, youtube_id=None if known else guess.youtube_id)
        db.add(video)
    for name, value in news(video, {"year": guess.year, **fields}).items():
        setattr(video, name, value)
    db.flush()
    return video, created


def news(row, fields: dict) -> dict:
    """The fields that may be set: those of the file, and those of which nothing is known."""
    always = ("file_path", "file_size", "status")
    return {name: value for name, value in fields.items() if name in always or getattr(row, name) is None}


# --- the job -----------------------------------------------------------------------------------------------------


def start() -> str:
    """Begin it; the job's id. Raises ApiError 409 while one is running."""
    return jobs.start("index", index, busy="The library is being indexed already")


def index(report) -> dict:
    """Enter every video of the library, and complete what is known of it. Nothing is taken out."""
    found, known, ffprobe = library_files(), known_files(), find_ffprobe()
    files = [file for file in found if not is_original(file.path, known)]
    counts = dict.fromkeys(("created", "matched", "updated", "unchanged"), 0) | {"skipped": len(found) - len(files)}
    for number, file in enumerate(files):
        report(100 * number // len(files), f"{number} of {len(files)} files")
        row = known.get(file.path)
        fields = ask(ffprobe, file, row)
        counts[complete(row, fields) if row else add(fields)] += 1
    result = {"files": len(found), **counts}
    with transaction() as db:
        events.emit(db, "library.indexed", result)
    report(100, f"{len(files)} of {len(files)} files")
    return result


def library_files() -> list[File]:
    try:
        return video_files(current_app.config["LIBRARY_PATH"], current_app.config["DOWNLOADS_PATH"])
    except OSError:
        raise ApiError(503, "The library cannot be read") from None


def is_original(path: str, known: dict) -> bool:
    """Whether it has no row because the mp4 beside it, which was made of it, is the file of its video."""
    made = PurePosixPath(path).with_suffix(".mp4").as_posix()
    return path not in known and made != path and made in known


def known_files() -> dict:
    """What is known of the videos that have a file, by its path."""
    columns = (Video.id, Video.file_path, Video.file_size, Video.duration, Video.quality, Video.status)
    rows = get_session().execute(select(*columns).where(Video.file_path.is_not(None)).order_by(Video.id.desc()))
    return {row.file_path: row for row in rows}


def ask(ffprobe: str | None, file: File, row) -> dict:
    """What the disk says about a file, as columns; ffprobe is asked only for what is not known."""
    fields = {"file_path": file.path, "file_size": file.size, "status": "DOWNLOADED"}
    if row is None or row.duration is None or row.quality is None:
        fields |= probe(ffprobe, current_app.config["LIBRARY_PATH"] / file.path)
    return fields


def complete(row, fields: dict) -> str:
    if row.status in HAS_FILE:
        fields = fields | {"status": row.status}
    changed = {name: value for name, value in news(row, fields).items() if getattr(row, name) != value}
    if not changed:
        return "unchanged"
    with transaction() as db:
        db.execute(update(Video).where(Video.id == row.id).values(changed))
    return "updated"


def add(fields: dict) -> str:
    path = fields["file_path"]
    guess = parse_name(path)
    if problem(guess) or shown(path) != path or len(path) > MAX_PATH:
        return "skipped"
    if not (current_app.config["LIBRARY_PATH"] / path).is_file():
        return "skipped"  # it has gone meanwhile
    try:
        return add_once(guess, fields)
    except IntegrityError:  # somebody else has just entered the same artist
        return add_once(guess, fields)


def add_once(guess: Guess, fields: dict) -> str:
    folder = str(PurePosixPath(fields["file_path"]).parent)
    with transaction() as db:
        found = match(db, guess, folder, lock=True)
        _, created = enter(db, found, found.artist or new_artist(db, guess.artist), guess, fields)
    return "created" if created else "matched"
