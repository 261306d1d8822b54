"""The library: statistics, videos by genre, and the files that are to become part of it."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import func, select
from starlette.responses import Response

from . import indexing, intake, settings
from .artists import has_genre
from .db import DbDep
from .files import off_loop
from .http import ApiError, json_body, json_response, query, query_flag, read, success, text_list
from .identity import Manager, Member, Reader
from .models import VIDEO_STATUSES, artists, videos
from .organizing import leads_out

router = APIRouter(prefix="/api", tags=["library"])

NEWEST = 5
MAX_LISTED = 1000  # files in a preview of the index, names in a body

_BY_STATUS = select(videos.c.status, func.count().label("number")).group_by(videos.c.status)
_SUMS = select(func.count(videos.c.file_path), func.sum(videos.c.file_size), func.sum(videos.c.duration))
_ARTISTS = select(func.count(artists.c.id))
_MONITORED = _ARTISTS.where(artists.c.monitored)
_SHORT = select(
    videos.c.id,
    videos.c.title,
    videos.c.artist_id,
    artists.c.name.label("artist_name"),
    videos.c.status,
    videos.c.year,
    videos.c.created_at,
).join_from(videos, artists)
_NEWEST = _SHORT.order_by(videos.c.created_at.desc(), videos.c.id.desc()).limit(NEWEST)
_BY_TITLE = _SHORT.order_by(func.lower(videos.c.title), videos.c.id)


@read(router, "/library/stats", name="library.library_stats")
async def library_stats(request: Request, db: DbDep, _: Reader) -> Response:
    by_status = {row.status: row.number for row in await db.execute(_BY_STATUS)}
    files, size, duration = (await db.execute(_SUMS)).one()
    size = int(size or 0)
    newest = [_video_row(row) for row in await db.execute(_NEWEST)]
    number_of = {"total": await db.scalar(_ARTISTS), "monitored": await db.scalar(_MONITORED)}
    root = request.app.state.settings.library_path
    return json_response(
        {
            "artists": number_of,
            "videos": {
                "total": sum(by_status.values()),
                "by_status": {status: by_status.get(status, 0) for status in VIDEO_STATUSES},
                "with_file": files,
                "total_duration": int(duration or 0),
            },
            "storage": {
                "total_bytes": size,
                "average_bytes": round(size / files, 2) if files else 0.0,
                "on_disk": await off_loop(files_on_disk, root),
            },
            "disk": await off_loop(disk, root),
            "newest": newest,
        }
    )


def files_on_disk(root: Path) -> dict[str, int]:
    """Number of files and their bytes. Blocks: it walks the whole library."""
    files = size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                size += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118  # a Path for each doubles it
            except OSError:
                continue  # it has just gone, or it is a broken link
            files += 1
    return {"files": files, "bytes": size}


def disk(root: Path) -> dict[str, int]:
    try:
        usage = shutil.disk_usage(root)
    except OSError:
        return {"total": 0, "used": 0, "free": 0}
    return usage._asdict()


@read(router, "/library/scan", name="library.scan_downloads")
async def scan_downloads(request: Request, _: Member) -> Response:
    """What waits to be organized. `modified` comes out like an HTTP date."""
    files = await intake.waiting(request.app.state.settings)

    def answer() -> Response:
        listed = [intake.file_json(file) for file in files]
        total_bytes = sum(file.size for file in files)
        return json_response({"files": listed, "count": len(files), "total_bytes": total_bytes})

    return await off_loop(answer)  # there may be thousands


@read(router, "/library/preview/{filename:tail}", name="library.preview_organize")
async def preview_organize(request: Request, filename: str, db: DbDep, _: Member) -> Response:
    if leads_out(filename):
        raise ApiError(400, "The path leads out of the downloads folder")
    config = request.app.state.settings
    found = await off_loop(intake.find, await intake.waiting(config), [filename])
    file = found[filename]
    if file is None:
        raise ApiError(404, "File not found")
    try:
        return success("Nothing was changed", **await intake.preview(db, config.library_path, file))
    except intake.Unfit as error:
        raise ApiError(400, str(error)) from None


@router.post("/library/organize", name="library.organize_all")
async def organize_all(request: Request, db: DbDep, _: Manager) -> Response:
    """All files that wait, or those that the body names."""
    data = await json_body(request, optional=True)
    names = _wanted_names(data) if data else None
    texts = await settings.texts(db)
    waiting = await intake.waiting(request.app.state.settings)
    found = await off_loop(intake.find, waiting, names or [])
    files = waiting if names is None else list(dict.fromkeys(file for file in found.values() if file))
    with_nfo = settings.as_bool(texts["organize_nfo"])
    moved, failed = await intake.organize(request, db, files, with_nfo=with_nfo)
    failed += [{"file": name, "error": "File not found"} for name, file in found.items() if file is None]
    message = f"{len(moved)} of {len(moved) + len(failed)} files organized"
    body = {"success": not failed, "message": message, "moved": moved, "failed": failed, "count": len(moved)}
    return json_response(body, 207 if failed else 200)


def _wanted_names(data: Mapping[str, Any]) -> list[str]:
    if "files" not in data:
        raise ApiError(400, "No known field given")
    names = text_list(data, "files", MAX_LISTED, 1000)
    if not names:
        raise ApiError(400, "files is empty")
    return names


@router.post("/library/index", name="library.index_library")
async def index_library(request: Request, db: DbDep, _: Manager) -> Response:
    """Enter the videos of the library in the background; with `preview=true` only list those that have no row."""
    if query_flag(query(request), "preview"):
        known = await indexing.known_files(db)
        files = await indexing.library_files(request.app.state.settings)
        new = [file for file in files if file.path not in known and not indexing.is_original(file.path, known)]
        listed = [intake.file_json(file) for file in new[:MAX_LISTED]]
        return success(f"{len(new)} of {len(files)} files have no row", files=listed, count=len(new))
    job_id = await indexing.start(request)
    return success("The library is being indexed", 202, job_id=job_id)


@read(router, "/genres", name="library.list_genres")
async def list_genres(db: DbDep, _: Reader) -> Response:
    in_videos: Counter[str] = Counter()
    in_artists: Counter[str] = Counter()
    for table, counter in ((videos, in_videos), (artists, in_artists)):
        for genres, number in await db.execute(select(table.c.genres, func.count()).group_by(table.c.genres)):
            for genre in genres:
                counter[genre] += number
    names = sorted(in_videos.keys() | in_artists.keys(), key=lambda name: (name.casefold(), name))
    genres = [{"name": name, "videos": in_videos[name], "artists": in_artists[name]} for name in names]
    return json_response({"genres": genres, "count": len(genres)})


@read(router, "/genres/{genre}/videos", name="library.videos_by_genre")
async def videos_by_genre(genre: str, db: DbDep, _: Reader) -> Response:
    rows = await db.execute(_BY_TITLE.where(has_genre(videos.c.genres, genre)))
    shown = [_video_row(row) for row in rows]
    return json_response({"genre": genre, "videos": shown, "count": len(shown)})


def _video_row(row: Any) -> dict[str, Any]:
    """A short form; `created_at` comes out like an HTTP date."""
    return dict(row._mapping)  # noqa: SLF001  # public, in spite of its name
