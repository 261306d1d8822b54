"""The library: statistics, videos by genre, and the files that are to become part of it."""

import os
import shutil
from collections import Counter

from flask import Blueprint, current_app, jsonify
from sqlalchemy import func, select

from . import indexing, intake, settings
from .artists import has_genre
from .auth import role_required
from .db import get_session
from .http import ApiError, json_body, query_flag, success, text_list
from .models import VIDEO_STATUSES, Artist, Video
from .organizing import leads_out

bp = Blueprint("library", __name__, url_prefix="/api")

NEWEST = 5
MAX_LISTED = 1000  # files in a preview of the index, names in a body


@bp.get("/library/stats")
@role_required("readonly")
def library_stats():
    db = get_session()
    by_status = dict(db.execute(select(Video.status, func.count()).group_by(Video.status)).all())
    files, size, duration = db.execute(
        select(func.count(Video.file_path), func.sum(Video.file_size), func.sum(Video.duration))
    ).one()
    size = int(size or 0)
    newest = db.scalars(select(Video).order_by(Video.created_at.desc(), Video.id.desc()).limit(NEWEST))
    return jsonify(
        artists={
            "total": db.scalar(select(func.count(Artist.id))),
            "monitored": db.scalar(select(func.count(Artist.id)).where(Artist.monitored)),
        },
        videos={
            "total": sum(by_status.values()),
            "by_status": {status: by_status.get(status, 0) for status in VIDEO_STATUSES},
            "with_file": files,
            "total_duration": int(duration or 0),
        },
        storage={
            "total_bytes": size,
            "average_bytes": round(size / files, 2) if files else 0.0,
            "on_disk": files_on_disk(current_app.config["LIBRARY_PATH"]),
        },
        disk=disk(current_app.config["LIBRARY_PATH"]),
        newest=[video_row(video) for video in newest],
    )


def files_on_disk(root) -> dict:
    files = size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                size += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # it has just gone, or it is a broken link
            files += 1
    return {"files": files, "bytes": size}


def disk(root) -> dict:
    try:
        usage = shutil.disk_usage(root)
    except OSError:
        return {"total": 0, "used": 0, "free": 0}
    return usage._asdict()


@bp.get("/library/scan")
@role_required("user")
def scan_downloads():
    """What waits to be organized. `modified` is left to jsonify, which writes it like an HTTP date."""
    files = intake.waiting()
    return jsonify(
        files=[intake.file_json(file) for file in files],
        count=len(files),
        total_bytes=sum(file.size for file in files),
    )


@bp.get("/library/preview/<path:filename>")
@role_required("user")
def preview_organize(filename):
    if leads_out(filename):
        raise ApiError(400, "The path leads out of the downloads folder")
    file = intake.find(intake.waiting(), [filename])[filename]
    if file is None:
        raise ApiError(404, "File not found")
    try:
        return success("Nothing was changed", **intake.preview(file))
    except intake.Unfit as error:
        raise ApiError(400, str(error)) from None


@bp.post("/library/organize")
@role_required("manager")
def organize_all():
    """All files that wait, or those that the body names."""
    data = json_body(optional=True)
    names = wanted_names(data) if data else None
    waiting = intake.waiting()
    found = intake.find(waiting, names or [])
    files = waiting if names is None else list(dict.fromkeys(file for file in found.values() if file))
    with_nfo = settings.as_bool(settings.texts(get_session())["organize_nfo"])
    moved, failed = intake.organize(files, with_nfo)
    failed += [{"file": name, "error": "File not found"} for name, file in found.items() if file is None]
    message = f"{len(moved)} of {len(moved) + len(failed)} files organized"
    body = {"success": not failed, "message": message, "moved": moved, "failed": failed, "count": len(moved)}
    return jsonify(body), 207 if failed else 200


def wanted_names(data: dict) -> list[str]:
    if "files" not in data:
        raise ApiError(400, "No known field given")
    names = text_list(data, "files", MAX_LISTED, 1000)
    if not names:
        raise ApiError(400, "files is empty")
    return names


@bp.post("/library/index")
@role_required("manager")
def index_library():
    """Enter the videos of the library in the background; with `preview=true` only list those that have no row."""
    if query_flag("preview"):
        files, known = indexing.library_files(), indexing.known_files()
        new = [file for file in files if file.path not in known and not indexing.is_original(file.path, known)]
        message = f"{len(new)} of {len(files)} files have no row"
        return success(message, files=[intake.file_json(file) for file in new[:MAX_LISTED]], count=len(new))
    return success("The library is being indexed", 202, job_id=indexing.start())


@bp.get("/genres")
@role_required("readonly")
def list_genres():
    db = get_session()
    videos = Counter(genre for genres in db.scalars(select(Video.genres)) for genre in genres)
    artists = Counter(genre for genres in db.scalars(select(Artist.genres)) for genre in genres)
    names = sorted(videos.keys() | artists.keys(), key=lambda name: (name.casefold(), name))
    genres = [{"name": name, "videos": videos[name], "artists": artists[name]} for name in names]
    return jsonify(genres=genres, count=len(genres))


@bp.get("/genres/<genre>/videos")
@role_required("readonly")
def videos_by_genre(genre):
    query = select(Video).where(has_genre(Video.genres, genre)).order_by(func.lower(Video.title), Video.id)
    videos = [video_row(video) for video in get_session().scalars(query)]
    return jsonify(genre=genre, videos=videos, count=len(videos))


def video_row(video: Video) -> dict:
    """A short form; `created_at` is left to jsonify, which writes it like an HTTP date."""
    return {
        "id": video.id,
        "title": video.title,
        "artist_id": video.artist_id,
        "artist_name": video.artist.name,
        "status": video.status,
        "year": video.year,
        "created_at": video.created_at,
    }
