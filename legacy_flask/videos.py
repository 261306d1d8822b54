"""Videos: the list, the search, the changes, the picture and the stream."""

import os
import select as polling
import signal
import subprocess
from contextlib import suppress

from flask import Blueprint, Response, current_app, jsonify, request, send_file
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import contains_eager

from . import events, media, settings, thumbnails
from .artists import fresh, has_genre, name_fields, tried, web_address
from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .files import existing_file, move, rename_new, safe_name
from .http import (
    ApiError,
    find_or_404,
    id_list,
    json_body,
    number,
    query_flag,
    query_int,
    success,
    text,
    text_list,
)
from .matching import Wanted, ranked, split_title, words
from .models import VIDEO_STATUSES, Artist, Video, name_key
from .queueing import queue_download
from .upstreams import errors, imvdb, youtube

bp = Blueprint("videos", __name__, url_prefix="/api/videos")

SORTS = {
    "title": func.lower(Video.title),
    "artist": Artist.sort_name,
    "year": Video.year,
    "status": Video.status,
    "created_at": Video.created_at,
}
DIRECT_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}  # browsers play these as they are
CHUNK = 64 * 1024
LOOK_EVERY_S = 0.5  # whether the client is still there
UNKNOWN_ARTIST = "Unknown Artist"
ATTEMPTS = 5  # at storing what somebody else may store at the same time


# --- reading -----------------------------------------------------------------------------------------------------


@bp.get("/")
@role_required("readonly")
def list_videos():
    """All of them, unless `limit` says otherwise."""
    query = videos_query()
    if status := request.args.get("status"):
        query = query.where(Video.status == status)
    if (artist_id := query_int("artist_id")) is not None:
        query = query.where(Video.artist_id == artist_id)
    return jsonify(page_of_videos(query, limit=query_int("limit")))


@bp.get("/search")
@role_required("readonly")
def search_videos():
    filters = {
        "q": request.args.get("q", "").strip() or None,
        "artist": request.args.get("artist", "").strip() or None,
        "artist_id": query_int("artist_id"),
        "status": request.args.get("status") or None,
        "quality": request.args.get("quality") or None,
        "genre": request.args.get("genre") or None,
        "year": query_int("year"),
        "year_from": query_int("year_from"),
        "year_to": query_int("year_to"),
        "duration_min": query_int("duration_min"),
        "duration_max": query_int("duration_max"),
        "has_file": query_flag("has_file"),
    }
    filters = {name: value for name, value in filters.items() if value is not None}
    query = videos_query().where(*(CONDITIONS[name](value) for name, value in filters.items()))
    return jsonify(page_of_videos(query, limit=query_int("limit", 100)) | {"filters": filters})


CONDITIONS = {
    "q": lambda value: Video.title.icontains(value, autoescape=True),
    "artist": lambda value: Artist.name_key.contains(name_key(value), autoescape=True),
    "artist_id": lambda value: Video.artist_id == value,
    "status": lambda value: Video.status == value,
    "quality": lambda value: Video.quality == value,
    "genre": lambda value: has_genre(Video.genres, value),
    "year": lambda value: Video.year == value,
    "year_from": lambda value: Video.year >= value,
    "year_to": lambda value: Video.year <= value,
    "duration_min": lambda value: Video.duration >= value,
    "duration_max": lambda value: Video.duration <= value,
    "has_file": lambda value: Video.file_path.is_not(None) if value else Video.file_path.is_(None),
}


@bp.get("/<int:video_id>")
@role_required("readonly")
def get_video(video_id):
    return jsonify(video_json(find_or_404(get_session(), Video, video_id)))


# --- changing ----------------------------------------------------------------------------------------------------


@bp.put("/<int:video_id>")
@role_required("user")
def update_video(video_id):
    """With `rename_file` the file takes the name that artist and title give it."""
    data = json_body()
    fields = video_fields(data)
    rename = bool(data.get("rename_file"))
    if not fields and not rename:
        raise ApiError(400, "No known field given")
    moved = None
    try:
        with transaction() as db:
            video = find_or_404(db, Video, video_id, lock=True)
            refuse_duplicates(db, fields, video_id)
            if "artist_id" in fields and db.get(Artist, fields["artist_id"]) is None:
                raise ApiError(400, "No such artist")
            for field, value in fields.items():
                setattr(video, field, value)
            db.flush()
            moved = rename_file(video) if rename else None
            audit(db, "videos.update", f"video:{video_id}", fields=sorted(fields), file_moved=bool(moved))
            told = {"videos": [titled(video)], "fields": sorted(fields), "file_moved": bool(moved)}
            events.emit(db, "video.updated", told)
            db.flush()
            db.refresh(video)
            answer = video_json(video) | {"file_moved": bool(moved)}
    except IntegrityError:
        refuse_duplicates(get_session(), fields, video_id)
        raise
    except BaseException:
        if moved:
            rename_new(moved[1], moved[0])
        raise
    return jsonify(answer)


def rename_file(video: Video):
    """Old and new path, or None when the file has its proper name already."""
    library = current_app.config["LIBRARY_PATH"]
    source = existing_file(library, video.file_path)
    if source is None:
        raise ApiError(409, "The video has no file to rename")
    folder = library / (video.artist.folder_path or safe_name(video.artist.name))
    name = safe_name(f"{video.artist.name} - {video.title}")
    try:
        target = move(source, folder / f"{name}{source.suffix}")
    except OSError:
        current_app.logger.exception("a file could not be renamed")
        raise ApiError(500, "The file could not be renamed") from None
    video.file_path = target.relative_to(library).as_posix()
    return (source, target) if target != source else None


@bp.delete("/<int:video_id>")
@role_required("manager")
def delete_video(video_id):
    """The row. The file stays, unless `delete_file=true`."""
    with transaction() as db:
        video = find_or_404(db, Video, video_id, lock=True)
        db.delete(video)
        audit(db, "videos.delete", f"video:{video_id}", title=video.title, file_path=video.file_path)
        events.emit(db, "video.deleted", {"videos": [titled(video)]})
    thumbnails.remove(video.thumbnail_path)
    file_deleted = bool(query_flag("delete_file")) and remove_file(video.file_path)
    return success("Video deleted", file_deleted=file_deleted)


def remove_file(file_path: str | None) -> bool:
    path = existing_file(current_app.config["LIBRARY_PATH"], file_path)
    if path is None:
        return False
    try:
        path.unlink()
    except OSError:
        current_app.logger.exception("the file of a deleted video is still there")
        return False
    return True


@bp.put("/<int:video_id>/status")
@role_required("user")
def set_status(video_id):
    status = status_field(json_body())
    with transaction() as db:
        video = find_or_404(db, Video, video_id, lock=True)
        audit(db, "videos.set_status", f"video:{video_id}", before=video.status, after=status)
        tell_status(db, [video], status)
        video.status = status
        db.flush()
        answer = video_json(video)
    return success("Status updated", video=answer)


@bp.put("/bulk/status")
@role_required("user")
def bulk_status():
    data = json_body()
    ids, status = id_list(data, "video_ids"), status_field(data)
    with transaction() as db:
        query = select(Video.id, Video.title, Video.status).where(Video.id.in_(ids)).with_for_update()
        rows = db.execute(query.order_by(Video.id)).all()
        found = [row.id for row in rows]
        changed = update(Video).where(Video.id.in_(found)).values(status=status)
        db.execute(changed, execution_options={"synchronize_session": False})
        audit(db, "videos.bulk_status", video_ids=found, after=status)
        tell_status(db, rows, status)
    missing = [video_id for video_id in ids if video_id not in found]
    return success(f"Status of {len(found)} videos updated", updated=len(found), not_found=missing)


@bp.post("/bulk/delete")
@role_required("manager")
def bulk_delete_videos():
    """Rows only, never files."""
    ids = id_list(json_body(), "video_ids")
    with transaction() as db:
        query = select(Video.id, Video.title, Video.thumbnail_path).where(Video.id.in_(ids)).with_for_update()
        rows = db.execute(query.order_by(Video.id)).all()
        pictures = {row.id: row.thumbnail_path for row in rows}
        deleted = [video_id for video_id in ids if video_id in pictures]
        gone = delete(Video).where(Video.id.in_(deleted))
        db.execute(gone, execution_options={"synchronize_session": False})
        audit(db, "videos.bulk_delete", video_ids=deleted)
        if rows:
            events.emit(db, "video.deleted", {"videos": [titled(row) for row in rows]})
    for path in pictures.values():
        thumbnails.remove(path)
    failed = [{"id": video_id, "error": "Video not found"} for video_id in ids if video_id not in pictures]
    message = f"{len(deleted)} of {len(ids)} videos deleted"
    return jsonify(message=message, count=len(deleted), deleted=deleted, failed=failed), 207 if failed else 200


# --- found elsewhere ---------------------------------------------------------------------------------------------


@bp.post("/import-from-youtube")
@role_required("user")
def import_youtube():
    """A video by its id or address there, of the artist that `artist_id` or its title names; `download` queues it."""
    data = json_body()
    youtube_id, artist_id = youtube_field(data), number(data, "artist_id")
    download = bool(data.get("download"))
    db = get_session()
    refuse_duplicates(db, {"youtube_id": youtube_id}, 0)
    if artist_id is not None and db.get(Artist, artist_id) is None:
        raise ApiError(400, "No such artist")
    found = youtube.video(settings.texts(db), youtube_id)
    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError):  # somebody has just added the video, or its artist
            return success("Video imported", 201, **add_found(found, artist_id, download))
    return success("Video imported", 201, **add_found(found, artist_id, download))


def add_found(found: youtube.FoundVideo, artist_id: int | None, download: bool) -> dict:
    with transaction() as db:
        refuse_duplicates(db, {"youtube_id": found.youtube_id}, 0)
        artist, created = artist_of(db, artist_id, found)
        video = Video(artist_id=artist.id, **youtube_fields(found))
        db.add(video)
        db.flush()
        about = {"video": {"id": video.id, "title": video.title}}
        audit(db, "videos.import", f"video:{video.id}", youtube_id=video.youtube_id, artist_created=created)
        events.emit(db, "video.imported", about | {"source": "youtube"})
        queued = None
        if download:
            queued = queue_download(db, video)
            events.emit(db, "download.queued", about | {"download": {"id": queued.id}})
        answer = video_json(video)
    return {"video": answer, "artist_created": created, "download_id": queued.id if queued else None}


def artist_of(db, artist_id: int | None, found: youtube.FoundVideo) -> tuple[Artist, bool]:
    """The artist of a video, and whether it was made now: unmonitored, since only this video was asked for."""
    if artist_id is not None:
        artist = db.get(Artist, artist_id)
        if artist is None:
            raise ApiError(400, "No such artist")
        return artist, False
    name = split_title(found.title, found.channel)[0] or UNKNOWN_ARTIST
    fields = name_fields({"name": name[:255]})
    artist = db.scalar(select(Artist).where(Artist.name_key == fields["name_key"]))
    if artist is not None:
        return artist, False
    artist = Artist(**fields, folder_path=safe_name(fields["name"]), monitored=False)
    db.add(artist)
    db.flush()
    return artist, True


def youtube_field(data: dict) -> str:
    spelling = text(data, "youtube_id", 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, "youtube_id or url is required")
    youtube_id = youtube.id_of(spelling)
    if youtube_id is None:
        raise ApiError(400, "Not a video on YouTube")
    return youtube_id


def youtube_fields(found: youtube.FoundVideo) -> dict:
    """The columns that YouTube fills."""
    return {
        "title": split_title(found.title, found.channel)[1],
        "youtube_id": found.youtube_id,
        "url": youtube.watch_url(found.youtube_id),
        "description": found.description,
        "year": found.year,
        "duration": found.duration,
        "thumbnail_url": found.thumbnail_url,
    }


@bp.post("/<int:video_id>/refresh-metadata")
@role_required("user")
def refresh_video_metadata(video_id):
    """Fill in what IMVDb and YouTube know, as far as they are configured; `overwrite=true` also replaces."""
    overwrite = bool(query_flag("overwrite"))
    db = get_session()
    video = find_or_404(db, Video, video_id)
    found, problems = found_elsewhere(settings.texts(db), video)
    with transaction() as db:
        video = find_or_404(db, Video, video_id, lock=True)
        fields = fresh(video, found, overwrite)
        refuse_duplicates(db, fields, video_id)
        for field, value in fields.items():
            setattr(video, field, value)
        db.flush()
        audit(db, "videos.refresh", f"video:{video_id}", fields=sorted(fields))
        if fields:
            told = {"video": {"id": video_id, "title": video.title}, "fields": sorted(fields)}
            events.emit(db, "video.updated", told)
        answer = video_json(video)
    told = [problem.message for problem in problems]
    return success("Metadata updated", video=answer, updated=sorted(fields), problems=told)


def found_elsewhere(texts: dict, video: Video) -> tuple[dict, list[ApiError]]:
    """Columns for a video, and what went wrong. Raises ApiError when no service has anything to say."""
    wanted = Wanted(video.artist.name, video.title, video.year, video.duration)
    problems, song, clip = [], None, None
    if not (texts.get("imvdb_api_key") or texts.get("youtube_api_key")):
        raise errors.not_configured(errors.IMVDB)
    if texts.get("imvdb_api_key"):
        song = tried(problems, find_on_imvdb, texts, wanted, video.imvdb_id)
    youtube_id = video.youtube_id or (song and song.youtube_id)
    if texts.get("youtube_api_key"):
        clip = tried(problems, find_on_youtube, texts, wanted, youtube_id)
        youtube_id = clip and clip.youtube_id
    if song is None and clip is None:
        raise problems[0]
    return merged(song, clip, youtube_id), problems


def find_on_imvdb(texts: dict, wanted: Wanted, imvdb_id: str | None) -> imvdb.FoundVideo:
    """By id, or by exactly that artist and title. Raises ApiError 400, 404, 429, 502."""
    if imvdb_id:
        return imvdb.video(texts, imvdb_id)
    for found in imvdb.search_videos(texts, f"{wanted.artist} - {wanted.title}"):
        by_artist = words(wanted.artist) in map(words, found.artists)
        if by_artist and words(found.title) == words(wanted.title):
            return imvdb.video(texts, found.imvdb_id)
    raise errors.not_found(errors.IMVDB, "Video")


def find_on_youtube(texts: dict, wanted: Wanted, youtube_id: str | None) -> youtube.FoundVideo:
    """By id, or the best match of a search that is good enough. Raises ApiError 400, 404, 429, 502."""
    if youtube_id:
        return youtube.video(texts, youtube_id)
    found = youtube.search_videos(texts, f"{wanted.artist} - {wanted.title}")
    matches = ranked(wanted, found, settings.as_number(texts["discovery_threshold"], 60))
    if not matches:
        raise errors.not_found(errors.YOUTUBE, "Video")
    return matches[0][1]


def merged(song: imvdb.FoundVideo | None, clip: youtube.FoundVideo | None, youtube_id: str | None) -> dict:
    """What both say; IMVDb knows the song better, YouTube the file."""
    found = {"youtube_id": youtube_id, "url": youtube.watch_url(youtube_id) if youtube_id else None}
    if clip is not None:
        fields = ("description", "year", "duration", "thumbnail_url")
        found |= {field: getattr(clip, field) for field in fields}
    if song is not None:
        better = {
            "imvdb_id": song.imvdb_id,
            "directors": song.directors,
            "year": song.year,
            "thumbnail_url": song.image,
        }
        found |= {field: value for field, value in better.items() if value}
    return found


# --- files -------------------------------------------------------------------------------------------------------


@bp.get("/<int:video_id>/thumbnail")
@role_required("readonly")
def video_thumbnail(video_id):
    video = find_or_404(get_session(), Video, video_id)
    picture = thumbnails.send(video.thumbnail_path, "medium")
    if picture is None:
        raise ApiError(404, "Thumbnail not found")
    return picture


@bp.get("/<int:video_id>/stream")
@role_required("readonly")
def stream_video(video_id):
    """The file itself when browsers can play it, else a live conversion to fragmented mp4."""
    video = find_or_404(get_session(), Video, video_id)
    path = existing_file(current_app.config["LIBRARY_PATH"], video.file_path)
    if path is None:
        raise ApiError(404, "Video file not found")
    mimetype = DIRECT_TYPES.get(path.suffix.lower())
    if mimetype:
        if "," in request.headers.get("Range", ""):
            request.environ.pop("HTTP_RANGE")  # several ranges at once: the whole file, as RFC 9110 allows
        return send_file(path, mimetype=mimetype)
    ffmpeg = media.find_ffmpeg()
    if ffmpeg is None:
        raise ApiError(503, "This format cannot be played: ffmpeg is not installed")
    chunks = convert(ffmpeg, path, query_int("start", 0))
    return Response(chunks, mimetype="video/mp4", headers={"Accept-Ranges": "none"})


def convert(ffmpeg, path, start):
    """The output of ffmpeg from that second on. It starts with the first chunk and ends when nobody reads any more.

    Whenever there is nothing to say an empty chunk gives the server the chance to notice that its client has left.
    """
    command = [ffmpeg, *media.QUIET, "-threads", media.THREADS, "-ss", str(start), *media.READING, "-i", f"file:{path}"]
    command += ["-map", "0:v:0", "-map", "0:a:0?", *media.H264, *media.AAC, "-threads", media.THREADS]
    command += ["-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "1000000"]
    process = subprocess.Popen(
        [*command, "-f", "mp4", "pipe:1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    output = process.stdout.fileno()
    ready = polling.poll()  # unlike `select`, for any number of open files
    ready.register(output, polling.POLLIN)
    try:
        media.limit(process)
        chunk = None
        while chunk != b"":
            chunk = os.read(output, CHUNK) if ready.poll(LOOK_EVERY_S * 1000) else None
            yield chunk or b""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


# --- small things ------------------------------------------------------------------------------------------------


def videos_query():
    """Every video has an artist; by the outer join MariaDB begins with the videos and need not sort all of them."""
    return select(Video).outerjoin(Video.artist).options(contains_eager(Video.artist))


def page_of_videos(query, limit: int | None) -> dict:
    db = get_session()
    offset = query_int("offset", 0)
    total = db.scalar(query.with_only_columns(func.count(Video.id)))
    rows = db.scalars(query.order_by(*ordering()).offset(offset).limit(limit))
    videos = [video_json(video) for video in rows]
    return {"videos": videos, "count": len(videos), "total": total, "offset": offset, "limit": limit}


def ordering():
    """The newest first, unless asked otherwise."""
    sort, order = request.args.get("sort"), request.args.get("order", "").lower()
    column = SORTS.get(sort, Video.created_at)
    descending = order == "desc" or (order != "asc" and sort not in SORTS)
    return [column.desc(), Video.id.desc()] if descending else [column, Video.id]


def titled(video) -> dict:
    return {"id": video.id, "title": video.title}


def tell_status(db, videos: list, status: str) -> None:
    """Of those that have another status now; to be called with what they were before."""
    changed = [titled(video) for video in videos if video.status != status]
    if changed:
        events.emit(db, "video.status_changed", {"videos": changed, "status": status})


def status_field(data: dict) -> str:
    status = (text(data, "status", 100) or "").upper()
    if status not in VIDEO_STATUSES:
        raise ApiError(400, f"Invalid status. Must be one of: {', '.join(VIDEO_STATUSES)}")
    return status


def video_fields(data: dict) -> dict:
    """The columns that the body sets."""
    fields = {}
    for field, limit in (("youtube_id", 20), ("imvdb_id", 50), ("description", 10_000), ("quality", 20)):
        if field in data:
            fields[field] = text(data, field, limit)
    for field in ("url", "thumbnail_url"):
        if field in data:
            fields[field] = web_address(data, field)
    for field in ("genres", "directors"):
        if field in data:
            fields[field] = text_list(data, field)
    for field, high in (("year", 9999), ("duration", 10_000_000)):
        if field in data:
            fields[field] = number(data, field, high=high)
    if "title" in data:
        fields["title"] = required(text(data, "title", 500), "title")
    if "artist_id" in data:
        fields["artist_id"] = required(number(data, "artist_id"), "artist_id")
    return fields


def required(value, field: str):
    if value is None:
        raise ApiError(400, f"{field} is required")
    return value


def refuse_duplicates(db, fields: dict, own_id: int) -> None:
    for column in (Video.youtube_id, Video.imvdb_id):
        value = fields.get(column.key)
        if value is None:
            continue
        existing = db.execute(select(Video.id, Video.title).where(column == value, Video.id != own_id)).first()
        if existing is not None:
            message = f"A video with this {column.key} already exists"
            raise ApiError(409, message, video={"id": existing.id, "title": existing.title})


def video_json(video: Video) -> dict:
    return {
        "id": video.id,
        "artist_id": video.artist_id,
        "artist_name": video.artist.name,
        "title": video.title,
        "status": video.status,
        "youtube_id": video.youtube_id,
        "imvdb_id": video.imvdb_id,
        "url": video.url,
        "description": video.description,
        "directors": video.directors,
        "genres": video.genres,
        "year": video.year,
        "duration": video.duration,
        "quality": video.quality,
        "file_path": video.file_path,
        "file_size": video.file_size,
        "thumbnail_url": video.thumbnail_url,
        "has_thumbnail": video.thumbnail_path is not None,
        "created_at": video.created_at.isoformat(),
        "updated_at": video.updated_at.isoformat(),
    }
