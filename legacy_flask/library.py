"""Statistics of the library, and videos by genre."""

import os
import shutil
from collections import Counter

from flask import Blueprint, current_app, jsonify
from sqlalchemy import func, select

from .artists import has_genre
from .auth import role_required
from .db import get_session
from .models import VIDEO_STATUSES, Artist, Video

bp = Blueprint("library", __name__, url_prefix="/api")

NEWEST = 5


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
