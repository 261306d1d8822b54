"""Artists: the list, the searches, the changes, the pictures."""

import hashlib
import json
import shutil
from collections import Counter
from datetime import timedelta
from pathlib import PurePosixPath

from flask import Blueprint, Response, current_app, jsonify, request
from sqlalchemy import Text, delete, func, select, type_coerce
from sqlalchemy.exc import IntegrityError, OperationalError

from . import events, settings, thumbnails
from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .files import inside, safe_name
from .http import (
    ApiError,
    find_or_404,
    json_body,
    page_args,
    paged,
    query_flag,
    query_int,
    success,
    text,
    text_list,
)
from .models import VIDEO_STATUSES, Artist, CacheEntry, Download, Video, name_key, sort_name, utcnow
from .upstreams import errors, imvdb, lastfm, wikipedia

bp = Blueprint("artists", __name__, url_prefix="/api/artists")

ADVANCED_TTL = timedelta(seconds=300)
VIDEO_COUNT = select(func.count(Video.id)).where(Video.artist_id == Artist.id).correlate(Artist).scalar_subquery()
SORTS = {
    "name": Artist.sort_name,
    "created_at": Artist.created_at,
    "updated_at": Artist.updated_at,
    "video_count": VIDEO_COUNT,
}


# --- reading -----------------------------------------------------------------------------------------------------


@bp.get("/")
@role_required("readonly")
def list_artists():
    page, per_page = page_args()
    query = filtered(request.args.get("search", ""), query_flag("monitored"), query_flag("auto_download"))
    query = query.order_by(*ordering(request.args.get("sort"), request.args.get("order")))
    db = get_session()
    total = db.scalar(query.with_only_columns(func.count(Artist.id)).order_by(None))
    rows = db.execute(query.offset((page - 1) * per_page).limit(per_page))
    return paged("artists", [artist_json(*row) for row in rows], total, page, per_page)


@bp.get("/search/advanced")
@role_required("readonly")
def advanced_search():
    """Filters and analytics. Answers are kept for 300 seconds, whatever changes meanwhile."""
    page, per_page = page_args()
    filters = {
        "q": request.args.get("q", ""),
        "genre": request.args.get("genre", ""),
        "monitored": query_flag("monitored"),
        "auto_download": query_flag("auto_download"),
        "has_thumbnail": query_flag("has_thumbnail"),
        "min_videos": query_int("min_videos"),
        "max_videos": query_int("max_videos"),
        "sort": request.args.get("sort", ""),
        "order": request.args.get("order", ""),
        "page": page,
        "per_page": per_page,
    }
    key = "artists.advanced_search:" + hashlib.sha256(json.dumps(filters, sort_keys=True).encode()).hexdigest()
    db = get_session()
    cached = db.scalar(select(CacheEntry.value).where(CacheEntry.key == key, CacheEntry.expires_at > utcnow()))
    if cached is None:
        cached = current_app.json.dumps(search_with_analytics(db, filters))
        remember(key, cached)
    return Response(f"{cached}\n", mimetype="application/json")


def search_with_analytics(db, filters: dict) -> dict:
    query = filtered(filters["q"], filters["monitored"], filters["auto_download"])
    if filters["genre"]:
        query = query.where(has_genre(Artist.genres, filters["genre"]))
    if filters["has_thumbnail"] is not None:
        missing = Artist.thumbnail_path.is_(None)
        query = query.where(~missing if filters["has_thumbnail"] else missing)
    if filters["min_videos"] is not None:
        query = query.where(VIDEO_COUNT >= filters["min_videos"])
    if filters["max_videos"] is not None:
        query = query.where(VIDEO_COUNT <= filters["max_videos"])
    rows = db.execute(query.order_by(*ordering(filters["sort"], filters["order"]))).all()
    page, per_page = filters["page"], filters["per_page"]
    pages = -(-len(rows) // per_page)
    shown = rows[(page - 1) * per_page : page * per_page]
    return {
        "artists": [artist_json(*row) for row in shown],
        "count": len(shown),
        "pagination": {
            "page": page,
            "per_page": per_page,
            "total": len(rows),
            "pages": pages,
            "has_next": page < pages,
            "has_prev": page > 1,
        },
        "analytics": analytics(rows),
    }


def analytics(rows) -> dict:
    videos = sum(video_count for _, video_count in rows)
    genres = Counter(genre for artist, _ in rows for genre in artist.genres)
    top = sorted(genres.items(), key=lambda item: (-item[1], item[0]))[:5]
    return {
        "total_artists": len(rows),
        "monitored_artists": sum(artist.monitored for artist, _ in rows),
        "artists_with_videos": sum(video_count > 0 for _, video_count in rows),
        "total_videos": videos,
        "average_videos": round(videos / len(rows), 2) if rows else 0.0,
        "top_genres": [{"genre": genre, "artists": number} for genre, number in top],
    }


def remember(key: str, value: str) -> None:
    now = utcnow()
    try:
        with transaction() as db:
            db.execute(delete(CacheEntry).where((CacheEntry.key == key) | (CacheEntry.expires_at <= now)))
            db.add(CacheEntry(key=key, value=value, expires_at=now + ADVANCED_TTL))
    except (IntegrityError, OperationalError):
        pass  # another request has just stored the same answer, or the database is busy: nobody needs to know


@bp.get("/search/suggestions")
@role_required("readonly")
def suggestions():
    term = request.args.get("q", "").strip()
    rows = []
    if len(term) >= 2:
        query = select(Artist.id, Artist.name).where(Artist.name_key.contains(name_key(term), autoescape=True))
        rows = get_session().execute(query.order_by(Artist.sort_name, Artist.id).limit(10))
    found = [{"id": artist_id, "name": name} for artist_id, name in rows]
    return jsonify(suggestions=found, count=len(found), query=term)


@bp.get("/<int:artist_id>")
@role_required("readonly")
def get_artist(artist_id):
    db = get_session()
    artist = find_or_404(db, Artist, artist_id)
    return jsonify(artist_json(artist, count_videos(db, artist)))


@bp.get("/<int:artist_id>/detailed")
@role_required("readonly")
def get_artist_detailed(artist_id):
    artist = find_or_404(get_session(), Artist, artist_id)
    videos, downloads = artist.videos, [download for video in artist.videos for download in video.downloads]
    return jsonify(
        artist_json(artist, len(videos))
        | {
            "videos": [video_summary(video) for video in videos],
            "downloads": [download_summary(download) for download in downloads],
            "statistics": statistics(videos),
        }
    )


def statistics(videos: list[Video]) -> dict:
    durations = [video.duration for video in videos if video.duration is not None]
    statuses = Counter(video.status for video in videos)
    downloaded = statuses["DOWNLOADED"]
    return {
        "total_videos": len(videos),
        "by_status": {status: statuses[status] for status in VIDEO_STATUSES},
        "total_size": sum(video.file_size or 0 for video in videos),
        "total_duration": sum(durations),
        "average_duration": round(sum(durations) / len(durations), 2) if durations else 0.0,
        "downloaded_percent": round(100 * downloaded / len(videos), 1) if videos else 0.0,
    }


# --- changing ----------------------------------------------------------------------------------------------------


@bp.post("/")
@role_required("user")
def create_artist():
    data = json_body()
    fields = artist_fields(data)
    if "name" not in fields:
        raise ApiError(400, "name is required")
    artist = Artist(**({"folder_path": safe_name(fields["name"])} | fields))
    try:
        with transaction() as db:
            refuse_duplicates(db, fields)
            db.add(artist)
            db.flush()
            audit(db, "artists.create", f"artist:{artist.id}", name=artist.name)
            events.emit(db, "artist.created", {"artist": {"id": artist.id, "name": artist.name}})
    except IntegrityError:
        refuse_duplicates(get_session(), fields)
        raise
    return jsonify(id=artist.id, name=artist.name, message="Artist created"), 201


@bp.put("/<int:artist_id>")
@bp.put("/<int:artist_id>/settings")
@role_required("user")
def update_artist(artist_id):
    fields = artist_fields(json_body())
    if not fields:
        raise ApiError(400, "No known field given")
    try:
        with transaction() as db:
            artist = find_or_404(db, Artist, artist_id, lock=True)
            refuse_duplicates(db, fields, artist_id)
            for field, value in fields.items():
                setattr(artist, field, value)
            db.flush()
            audit(db, "artists.update", f"artist:{artist.id}", fields=sorted(fields))
            told = {"artist": {"id": artist.id, "name": artist.name}, "fields": sorted(fields)}
            events.emit(db, "artist.updated", told)
            video_count = count_videos(db, artist)
    except IntegrityError:
        refuse_duplicates(get_session(), fields, artist_id)
        raise
    return success("Artist updated", artist=artist_json(artist, video_count))


@bp.delete("/<int:artist_id>")
@role_required("manager")
def delete_artist(artist_id):
    """Videos go too with `force=true`; the folder only with `delete_files=true`."""
    force, delete_files = query_flag("force"), query_flag("delete_files")
    with transaction() as db:
        artist = find_or_404(db, Artist, artist_id, lock=True)
        videos = db.execute(select(Video.id, Video.thumbnail_path).where(Video.artist_id == artist_id)).all()
        if videos and not force:
            existing = {"id": artist.id, "name": artist.name}
            raise ApiError(
                409,
                "The artist has videos. Use force=true to delete them too",
                artist=existing,
                video_count=len(videos),
            )
        removable = delete_files and not folder_is_shared(db, artist)
        db.execute(delete(Download).where(Download.video_id.in_(select(Video.id).where(Video.artist_id == artist_id))))
        db.execute(delete(Video).where(Video.artist_id == artist_id))
        db.delete(artist)
        audit(db, "artists.delete", f"artist:{artist_id}", name=artist.name, videos=len(videos))
        told = {"artist": {"id": artist_id, "name": artist.name}, "videos_deleted": len(videos)}
        events.emit(db, "artist.deleted", told)
    for folder in [artist.thumbnail_path, *(path for _, path in videos)]:
        thumbnails.remove(folder)
    files_deleted = bool(removable) and remove_folder(artist.folder_path)
    return success("Artist deleted", videos_deleted=len(videos), files_deleted=files_deleted)


def folder_is_shared(db, artist: Artist) -> bool:
    """Whether the folder, or one below it, belongs to another artist or holds another artist's video."""
    if artist.folder_path is None:
        return False
    below = f"{artist.folder_path}/"
    same = Artist.folder_path == artist.folder_path
    artists = select(Artist.id).where(
        Artist.id != artist.id, same | Artist.folder_path.startswith(below, autoescape=True)
    )
    videos = select(Video.id).where(Video.artist_id != artist.id, Video.file_path.startswith(below, autoescape=True))
    return any(db.scalar(query.limit(1)) is not None for query in (artists, videos))


def remove_folder(folder: str | None) -> bool:
    path = inside(current_app.config["LIBRARY_PATH"], folder)
    if path is None or not path.is_dir():
        return False
    try:
        shutil.rmtree(path)
    except OSError:
        current_app.logger.exception("the folder of a deleted artist is still there")
        return False
    return True


# --- found elsewhere ---------------------------------------------------------------------------------------------


def adopt(fields: dict, source: str) -> int:
    """Store an artist found at a service, then the picture if it can be had; the new id. Raises ApiError 409."""
    fields = {"folder_path": safe_name(fields["name"])} | fields
    artist = Artist(**fields)
    try:
        with transaction() as db:
            refuse_duplicates(db, fields)
            db.add(artist)
            db.flush()
            audit(db, "artists.import", f"artist:{artist.id}", name=artist.name, source=source)
            told = {"artist": {"id": artist.id, "name": artist.name}, "source": source}
            events.emit(db, "artist.imported", told)
    except IntegrityError:
        refuse_duplicates(get_session(), fields)
        raise
    adopt_picture(artist.id, artist.thumbnail_url)
    return artist.id


def adopt_picture(artist_id: int, url: str | None) -> bool:
    """Fetch and keep the picture of an artist. When that fails, what is there already stays."""
    folder = f"thumbnails/artists/{artist_id}"
    if not url or not thumbnails.fetch(url, folder):
        return False
    with transaction() as db:
        artist = db.get(Artist, artist_id, with_for_update=True)
        if artist is not None:
            artist.thumbnail_path = folder
    if artist is None:  # deleted meanwhile
        thumbnails.remove(folder)
    return artist is not None


@bp.put("/<int:artist_id>/metadata/update")
@role_required("user")
def refresh_artist_metadata(artist_id):
    """Fill in what IMVDb, Last.fm and Wikipedia know; what is there already stays, unless `overwrite=true`."""
    news = refresh(artist_id, settings.texts(get_session()), bool(query_flag("overwrite")))
    db = get_session()
    artist = find_or_404(db, Artist, artist_id)
    return success("Metadata updated", artist=artist_json(artist, count_videos(db, artist)), **news)


def refresh(artist_id: int, texts: dict, overwrite: bool) -> dict:
    """What has become of it: updated (fields), thumbnail_saved, problems. Raises ApiError when IMVDb fails."""
    artist = find_or_404(get_session(), Artist, artist_id)
    problems = []
    entity = find_entity(texts, artist)
    info = None
    if texts.get("lastfm_api_key") and (overwrite or not (artist.bio and artist.genres)):
        info = tried(problems, lastfm.artist_info, texts, artist.name)
    image, wants_picture = entity.image, overwrite or artist.thumbnail_path is None
    if image is None and wants_picture:
        image = tried(problems, wikipedia.picture, texts, artist.name)
    found = {
        "imvdb_id": entity.imvdb_id,
        "bio": entity.bio or (info and info.bio),
        "genres": info and info.genres,
        "thumbnail_url": image,
    }
    with transaction() as db:
        artist = find_or_404(db, Artist, artist_id, lock=True)
        fields = fresh(artist, found, overwrite)
        refuse_duplicates(db, fields, artist_id)
        for field, value in fields.items():
            setattr(artist, field, value)
        audit(db, "artists.refresh", f"artist:{artist_id}", fields=sorted(fields))
        if fields:
            told = {"artist": {"id": artist_id, "name": artist.name}, "fields": sorted(fields)}
            events.emit(db, "artist.updated", told)
    saved = wants_picture and adopt_picture(artist_id, image)
    return {
        "updated": sorted(fields),
        "thumbnail_saved": saved,
        "problems": [problem.message for problem in problems],
    }


def find_entity(texts: dict, artist: Artist) -> imvdb.Entity:
    """The artist on IMVDb, by id or by exactly that name. Raises ApiError 400, 404, 429, 502."""
    if artist.imvdb_id:
        return imvdb.entity(texts, artist.imvdb_id)[0]
    for entity in imvdb.search_entities(texts, artist.name):
        if name_key(entity.name) == artist.name_key:
            return imvdb.entity(texts, entity.imvdb_id)[0]
    raise errors.not_found(errors.IMVDB, "Artist")


def tried(problems: list[ApiError], ask, *arguments):
    """What a service answers that is not needed; None when it fails, which is noted."""
    try:
        return ask(*arguments)
    except ApiError as problem:
        problems.append(problem)
        return None


def fresh(row, found: dict, overwrite: bool) -> dict:
    """What was found and changes the row: fields that are empty there, with `overwrite` others too."""
    return {
        field: value
        for field, value in found.items()
        if value and value != getattr(row, field) and (overwrite or not getattr(row, field))
    }


# --- pictures ----------------------------------------------------------------------------------------------------


@bp.get("/<int:artist_id>/thumbnail")
@role_required("readonly")
def artist_thumbnail(artist_id):
    return send_thumbnail(artist_id, "medium")


@bp.get("/<int:artist_id>/thumbnail/<size>")
@role_required("readonly")
def artist_thumbnail_size(artist_id, size):
    if size not in thumbnails.SIZES:
        raise ApiError(400, f"Invalid size. Must be one of: {list(thumbnails.SIZES)}")
    return send_thumbnail(artist_id, size)


def send_thumbnail(artist_id: int, size: str):
    artist = find_or_404(get_session(), Artist, artist_id)
    return thumbnails.send(artist.thumbnail_path, size) or thumbnails.send_placeholder(artist.name_key, size)


@bp.post("/<int:artist_id>/thumbnail/upload")
@role_required("user")
def upload_artist_thumbnail(artist_id):
    find_or_404(get_session(), Artist, artist_id)
    upload = request.files.get("file")
    if upload is None or not upload.filename:
        raise ApiError(400, "No file given")
    folder = f"thumbnails/artists/{artist_id}"
    sizes = thumbnails.save(upload, folder)
    with transaction() as db:
        artist = find_or_404(db, Artist, artist_id, lock=True)
        artist.thumbnail_path = folder
        audit(db, "artists.thumbnail", f"artist:{artist_id}")
    return success("Thumbnail saved", sizes=sizes)


# --- small things ------------------------------------------------------------------------------------------------


def filtered(search: str, monitored: bool | None, auto_download: bool | None):
    """Artists with their number of videos."""
    query = select(Artist, VIDEO_COUNT)
    if search.strip():
        query = query.where(Artist.name_key.contains(name_key(search), autoescape=True))
    if monitored is not None:
        query = query.where(Artist.monitored.is_(monitored))
    if auto_download is not None:
        query = query.where(Artist.auto_download.is_(auto_download))
    return query


def ordering(sort: str | None, order: str | None):
    columns = (SORTS.get(sort, Artist.sort_name), Artist.id)
    return [column.desc() for column in columns] if (order or "").lower() == "desc" else columns


def has_genre(column, genre: str):
    """Whether a JSON list of texts holds this one."""
    return func.instr(type_coerce(column, Text), json.dumps(genre, ensure_ascii=False)) > 0


def count_videos(db, artist: Artist) -> int:
    return db.scalar(select(func.count(Video.id)).where(Video.artist_id == artist.id))


def artist_fields(data: dict) -> dict:
    """The columns that the body sets."""
    fields = {}
    for field, limit in (("imvdb_id", 50), ("spotify_id", 50), ("bio", 10_000), ("quality", 20)):
        if field in data:
            fields[field] = text(data, field, limit)
    for field in ("monitored", "auto_download"):
        if field in data:
            fields[field] = bool(data[field])
    if "genres" in data:
        fields["genres"] = text_list(data, "genres")
    if "thumbnail_url" in data:
        fields["thumbnail_url"] = web_address(data, "thumbnail_url")
    if "folder_path" in data:
        fields["folder_path"] = library_folder(data)
    if "name" in data:
        fields |= name_fields(data)
    return fields


def name_fields(data: dict) -> dict:
    name = text(data, "name", 255)
    if name is None:
        raise ApiError(400, "name is required")
    if len(name_key(name)) > 255:
        raise ApiError(400, "name is too long: at most 255 characters")
    return {"name": name, "name_key": name_key(name), "sort_name": sort_name(name)}


def web_address(data: dict, field: str) -> str | None:
    value = text(data, field, 1000)
    if value is not None and not value.startswith(("http://", "https://")):
        raise ApiError(400, f"{field} must be an http or https address")
    return value


def library_folder(data: dict) -> str | None:
    folder = text(data, "folder_path", 240)
    if folder is None:
        return None
    folder = PurePosixPath(folder)
    if ".." in folder.parts or inside(current_app.config["LIBRARY_PATH"], str(folder)) is None:
        raise ApiError(400, "folder_path must stay inside the library")
    return str(folder)


def refuse_duplicates(db, fields: dict, own_id: int | None = None) -> None:
    for column, message in (
        (Artist.name_key, "An artist with this name already exists"),
        (Artist.imvdb_id, "An artist with this imvdb_id already exists"),
        (Artist.spotify_id, "An artist with this spotify_id already exists"),
    ):
        value = fields.get(column.key)
        if value is None:
            continue
        existing = db.execute(select(Artist.id, Artist.name).where(column == value, Artist.id != (own_id or 0))).first()
        if existing is not None:
            raise ApiError(409, message, artist={"id": existing.id, "name": existing.name})


def artist_json(artist: Artist, video_count: int) -> dict:
    return {
        "id": artist.id,
        "name": artist.name,
        "sort_name": artist.sort_name,
        "imvdb_id": artist.imvdb_id,
        "spotify_id": artist.spotify_id,
        "bio": artist.bio,
        "genres": artist.genres,
        "monitored": artist.monitored,
        "auto_download": artist.auto_download,
        "quality": artist.quality,
        "folder_path": artist.folder_path,
        "thumbnail_url": artist.thumbnail_url,
        "has_thumbnail": artist.thumbnail_path is not None,
        "video_count": video_count,
        "created_at": artist.created_at.isoformat(),
        "updated_at": artist.updated_at.isoformat(),
    }


def video_summary(video: Video) -> dict:
    return {
        "id": video.id,
        "title": video.title,
        "status": video.status,
        "year": video.year,
        "duration": video.duration,
        "quality": video.quality,
        "file_size": video.file_size,
        "created_at": video.created_at.isoformat(),
    }


def download_summary(download: Download) -> dict:
    return {
        "id": download.id,
        "video_id": download.video_id,
        "status": download.status,
        "priority": download.priority,
        "progress": download.progress,
        "error_message": download.error_message,
        "created_at": download.created_at.isoformat(),
    }
