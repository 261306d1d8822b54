"""Rows for files: what lies below a folder, what ffprobe says about it, and the video that it belongs to."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fastapi import Request
from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from . import events, jobs, media
from .artists import changes
from .config import Settings
from .db import Db, insert_row
from .files import existing_file, off_loop, safe_name
from .http import ApiError
from .media import find_ffprobe
from .models import artists, name_key, sort_name, videos
from .organizing import Guess, is_video, parse_name, problem, title_key

PROBES = 8  # at once
MAX_DURATION, MAX_SIDE = 10_000_000, 100_000  # seconds, pixels
MAX_PATH = 500  # characters, of `videos.file_path`
HEIGHTS = (2160, 1440, 1080, 720, 480, 360, 240)
HAS_FILE = ("DOWNLOADED", "DOWNLOADING", "IGNORED")  # what a video stays when its file is found

_KNOWN = (
    select(videos.c.id, videos.c.file_path, videos.c.file_size, videos.c.duration, videos.c.quality, videos.c.status)
    .where(videos.c.file_path.is_not(None))
    .order_by(videos.c.id.desc())
)
_BY_YOUTUBE_ID = select(videos).where(videos.c.youtube_id == bindparam("youtube_id"))
_BY_FILE = (
    select(videos)
    .where(videos.c.artist_id == bindparam("artist_id"), videos.c.file_path == bindparam("file_path"))
    .order_by(videos.c.id)
    .limit(1)
)
_ARTIST = select(artists).where(artists.c.id == bindparam("artist_id"))
_VIDEO = select(videos).where(videos.c.id == bindparam("video_id"))
_OF_ARTIST = select(videos).where(videos.c.artist_id == bindparam("artist_id")).order_by(videos.c.id)


class File(NamedTuple):
    """A video on the disk."""

    path: str  # relative, with slashes
    size: int
    modified: datetime | None  # as `moment` gives it


# The disk


def video_files(root: Path, *skipped: Path) -> list[File]:
    """Complete videos below a folder, by path. Hidden ones, links and what vanishes meanwhile are left out.

    Blocks. Raises OSError when the folder itself cannot be read.
    """
    found: list[File] = []
    folders, prefix = [str(root)], len(str(root)) + 1
    while folders:
        folder = folders.pop()
        if Path(folder) in skipped:
            continue
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    _look_at(entry, prefix, folders, found)
        except OSError:
            if folder == str(root):
                raise
    return sorted(found)


def _look_at(entry: os.DirEntry[str], prefix: int, folders: list[str], found: list[File]) -> None:
    with suppress(OSError):  # it has just gone
        if entry.name.startswith(".") or entry.is_symlink():
            return
        if entry.is_dir():
            folders.append(entry.path)
        elif is_video(entry.name) and entry.is_file():
            about = entry.stat()
            found.append(File(entry.path[prefix:], about.st_size, moment(about.st_mtime)))


def moment(timestamp: float) -> datetime | None:
    """Naive UTC; None outside the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return None


def shown(path: str) -> str:
    """The path as text; bytes that are no UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


async def probe(ffprobe: str | None, path: Path) -> dict[str, Any]:
    """Duration in seconds and quality, as far as they can be told."""
    return read_probe(await media.ask(ffprobe, path)) if ffprobe else {}


def read_probe(output: bytes) -> dict[str, Any]:
    """What is missing in the answer, or makes no sense, is missing in the result."""
    fields: dict[str, Any] = {}
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


# The rows


class Match(NamedTuple):
    """`video` waits for this file; `title` is that of a video that may have one already."""

    artist: Any | None
    video: Any | None
    title: str


async def match(
    db: Db | AsyncConnection, library: Path, guess: Guess, folder: str = "", *, lock: bool = False
) -> Match:
    """What is known of the video of this name; `folder` is where it lies in the library.

    `lock` keeps others from entering videos of the same artist meanwhile.
    """
    if guess.youtube_id:
        one = _BY_YOUTUBE_ID.with_for_update() if lock else _BY_YOUTUBE_ID
        video = (await db.execute(one, {"youtube_id": guess.youtube_id})).first()
        if video is not None:
            owner = (await db.execute(_ARTIST, {"artist_id": video.artist_id})).one()
            return Match(owner, await off_loop(_without_file, library, [video]), video.title)
    artist = await _find_artist(db, str(guess.artist), folder, lock=lock)
    if artist is None:
        return Match(None, None, guess.title)
    key = title_key(guess.title)
    same = [row for row in await db.execute(_OF_ARTIST, {"artist_id": artist.id}) if title_key(row.title) == key]
    waiting = await off_loop(_without_file, library, same)
    return Match(artist, waiting, same[0].title if same else guess.title)


async def _find_artist(db: Db | AsyncConnection, name: str, folder: str, *, lock: bool) -> Any | None:
    key = name_key(name)
    by_folder = artists.c.folder_path.in_([folder, safe_name(name)])
    found = select(artists.c.id).where(or_(artists.c.name_key == key, by_folder))
    row = (await db.execute(found.order_by(artists.c.name_key != key, artists.c.id).limit(1))).first()
    one = _ARTIST.with_for_update() if lock else _ARTIST
    return (await db.execute(one, {"artist_id": row.id})).first() if row else None


def _without_file(library: Path, rows: Sequence[Any]) -> Any | None:
    """The first video whose file is not there."""
    return next((row for row in rows if existing_file(library, row.file_path) is None), None)


async def new_artist(connection: AsyncConnection, name: str) -> Any:
    names = {"name": name, "name_key": name_key(name), "sort_name": sort_name(name), "folder_path": safe_name(name)}
    artist_id = await insert_row(connection, artists, names)
    return (await connection.execute(_ARTIST, {"artist_id": artist_id})).one()


async def enter(
    connection: AsyncConnection, found: Match, artist: Any, guess: Guess, fields: Mapping[str, Any]
) -> tuple[Any, bool]:
    """The row of the file: its own, the one that waits for it, or a new one; and whether it is new.

    `fields` has its `file_path`. Path, size and status are set; what else is known already stays.
    """
    own = {"artist_id": artist.id, "file_path": fields["file_path"]}
    video = (await connection.execute(_BY_FILE, own)).first() or found.video
    fields = {"year": guess.year, **fields}
    if video is None:
        known = (await connection.execute(_BY_YOUTUBE_ID, {"youtube_id": guess.youtube_id})).first()
        fields |= {"artist_id": artist.id, "title": found.title, "youtube_id": None if known else guess.youtube_id}
        video_id = await insert_row(connection, videos, fields)
    else:
        video_id = video.id
        if changed := changes(video, _news(video, fields)):
            await connection.execute(update(videos).where(videos.c.id == video_id).values(changed))
    return (await connection.execute(_VIDEO, {"video_id": video_id})).one(), video is None


def _news(row: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that may be set: those of the file, and those of which nothing is known."""
    always = ("file_path", "file_size", "status")
    return {name: value for name, value in fields.items() if name in always or getattr(row, name) is None}


# The job


async def start(request: Request) -> str:
    """Have the library indexed; the job's id. Raises ApiError 409 while it is."""
    return await jobs.start(request, "index", {}, busy="The library is being indexed already")


async def index(request: Request, _arguments: Mapping[str, Any], report: jobs.Report) -> dict[str, Any]:
    """Enter every video of the library, and complete what is known of it. Nothing is taken out."""
    config, db = request.app.state.settings, Db(request.app.state.database)
    found, known = await library_files(config), await known_files(db)
    files = [file for file in found if not is_original(file.path, known)]
    ffprobe = await off_loop(find_ffprobe, config.ffmpeg, config.ffprobe)
    counts = dict.fromkeys(("created", "matched", "updated", "unchanged"), 0) | {"skipped": len(found) - len(files)}
    for start in range(0, len(files), PROBES):
        batch = [(file, known.get(file.path)) for file in files[start : start + PROBES]]
        said = await asyncio.gather(*(_ask(ffprobe, config.library_path, file, row) for file, row in batch))
        for number, ((_, row), fields) in enumerate(zip(batch, said, strict=True), start):
            await report(100 * number // len(files), f"{number} of {len(files)} files")
            outcome = await (_complete(db, row, fields) if row else _add(db, config.library_path, fields))
            counts[outcome] += 1
    result = {"files": len(found), **counts}
    async with db.transaction() as connection:
        await events.emit(connection, request, "library.indexed", result)
    await report(100, f"{len(files)} of {len(files)} files")
    return result


async def library_files(config: Settings) -> list[File]:
    """Raises ApiError 503 when the library cannot be read."""
    try:
        return await off_loop(video_files, config.library_path, config.downloads_path)
    except OSError:
        raise ApiError(503, "The library cannot be read") from None


def is_original(path: str, known: Mapping[str, Any]) -> bool:
    """Whether it has no row because the mp4 beside it, which was made of it, is the file of its video."""
    made = PurePosixPath(path).with_suffix(".mp4").as_posix()
    return path not in known and made != path and made in known


async def known_files(db: Db) -> dict[str, Any]:
    """What is known of the videos that have a file, by its path."""
    return {row.file_path: row for row in await db.execute(_KNOWN)}


async def _ask(ffprobe: str | None, library: Path, file: File, row: Any) -> dict[str, Any]:
    """What the disk says about a file, as columns; ffprobe is asked only for what is not known."""
    fields = {"file_path": file.path, "file_size": file.size, "status": "DOWNLOADED"}
    if row is None or row.duration is None or row.quality is None:
        fields |= await probe(ffprobe, library / file.path)
    return fields


async def _complete(db: Db, row: Any, fields: Mapping[str, Any]) -> str:
    if row.status in HAS_FILE:
        fields = {**fields, "status": row.status}
    changed = changes(row, _news(row, fields))
    if not changed:
        return "unchanged"
    async with db.transaction() as connection:
        await connection.execute(update(videos).where(videos.c.id == row.id).values(changed))
    return "updated"


async def _add(db: Db, library: Path, fields: Mapping[str, Any]) -> str:
    path = fields["file_path"]
    guess = parse_name(path)
    if problem(guess) or shown(path) != path or len(path) > MAX_PATH:
        return "skipped"
    if not await off_loop((library / path).is_file):
        return "skipped"  # it has gone meanwhile
    try:
        return await _add_once(db, library, guess, fields)
    except IntegrityError:  # somebody else has just entered the same artist
        return await _add_once(db, library, guess, fields)


async def _add_once(db: Db, library: Path, guess: Guess, fields: Mapping[str, Any]) -> str:
    folder = str(PurePosixPath(fields["file_path"]).parent)
    async with db.transaction() as connection:
        found = await match(connection, library, guess, folder, lock=True)
        artist = found.artist or await new_artist(connection, str(guess.artist))
        _, created = await enter(connection, found, artist, guess, fields)
    return "created" if created else "matched"
