"""Videos: the list, the search, the changes, the picture and the stream."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from anyio import CancelScope
from fastapi import APIRouter, Request
from sqlalchemy import ColumnElement, Integer, Select, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, settings, thumbnails
from .artists import changes, fresh, has_genre, name_fields, tried, web_address
from .audit import audit
from .containment import refuse
from .convert import converted
from .db import Db, DbDep, find_or_404, insert_row
from .events import emit
from .files import existing_file, move, off_loop, rename_new, safe_name
from .http import (
    MAX_INT,
    ApiError,
    id_list,
    json_body,
    json_response,
    number,
    query,
    query_flag,
    query_int,
    read,
    success,
    text,
    text_list,
)
from .identity import Manager, Member, Reader
from .matching import Wanted, ranked, split_title, words
from .media import find_ffmpeg
from .models import VIDEO_STATUSES, artists, as_dicts, name_key, videos
from .queueing import VIDEOS as QUEUEABLE
from .queueing import Wishes, enqueuing, queue_download
from .sending import Stream, send_file
from .upstreams import errors, imvdb, youtube
from .upstreams.client import UpstreamClient

router = APIRouter(prefix="/api/videos", tags=["videos"])
log = logging.getLogger("fastapi_app")

T = TypeVar("T")

SORTS: dict[str | None, ColumnElement[Any]] = {
    "title": func.lower(videos.c.title),
    "artist": artists.c.sort_name,
    "year": videos.c.year,
    "status": videos.c.status,
    "created_at": videos.c.created_at,
}
UNKNOWN_ARTIST = "Unknown Artist"
ATTEMPTS = 5  # at storing what somebody else may store at the same time
FEW = 200  # rows that become JSON before anybody notices; more would stop the loop
DIRECT_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}  # browsers play these as they are

# Every video has an artist; by the outer join MariaDB begins with the videos and need not sort all of them.
VIDEOS = select(videos, artists.c.name.label("artist_name")).join_from(videos, artists, isouter=True)
_ONE = VIDEOS.where(videos.c.id == bindparam("video_id"))
_TITLED = select(videos.c.id, videos.c.title, videos.c.status, videos.c.thumbnail_path).order_by(videos.c.id)


# Reading


@read(router, "/", name="videos.list_videos")
async def list_videos(request: Request, db: DbDep, _: Reader) -> Response:
    """All of them, unless `limit` says otherwise."""
    args = query(request)
    asked = {"status": args.get("status") or None, "artist_id": query_int(args, "artist_id")}
    filters = {name: value for name, value in asked.items() if value is not None}
    limit = query_int(args, "limit")
    statements = _listing(tuple(filters), _ordering(args), limit is not None)
    return await _page_of_videos(db, statements, filters, args, limit)


@read(router, "/search", name="videos.search_videos")
async def search_videos(request: Request, db: DbDep, _: Reader) -> Response:
    args = query(request)
    asked = {
        "q": args.get("q", "").strip() or None,
        "artist": args.get("artist", "").strip() or None,
        "artist_id": query_int(args, "artist_id"),
        "status": args.get("status") or None,
        "quality": args.get("quality") or None,
        "genre": args.get("genre") or None,
        "year": query_int(args, "year"),
        "year_from": query_int(args, "year_from"),
        "year_to": query_int(args, "year_to"),
        "duration_min": query_int(args, "duration_min"),
        "duration_max": query_int(args, "duration_max"),
        "has_file": query_flag(args, "has_file"),
    }
    filters = {name: value for name, value in asked.items() if value is not None}
    found = VIDEOS.where(*(CONDITIONS[name](value) for name, value in filters.items()))
    limit = query_int(args, "limit")
    statements = _paged(found, _ordering(args), limited=True)
    return await _page_of_videos(db, statements, {}, args, 100 if limit is None else limit, filters=filters)


CONDITIONS: dict[str, Callable[[Any], ColumnElement[bool]]] = {
    "q": lambda value: videos.c.title.icontains(value, autoescape=True),
    "artist": lambda value: artists.c.name_key.contains(name_key(value), autoescape=True),
    "artist_id": lambda value: videos.c.artist_id == value,
    "status": lambda value: videos.c.status == value,
    "quality": lambda value: videos.c.quality == value,
    "genre": lambda value: has_genre(videos.c.genres, value),
    "year": lambda value: videos.c.year == value,
    "year_from": lambda value: videos.c.year >= value,
    "year_to": lambda value: videos.c.year <= value,
    "duration_min": lambda value: videos.c.duration >= value,
    "duration_max": lambda value: videos.c.duration <= value,
    "has_file": lambda value: videos.c.file_path.is_not(None) if value else videos.c.file_path.is_(None),
}


async def _page_of_videos(
    db: Db,
    statements: tuple[Select[Any], Select[Any]],
    values: Mapping[str, Any],
    args: Mapping[str, str],
    limit: int | None,
    **more: Any,
) -> Response:
    page, count = statements
    offset = query_int(args, "offset") or 0
    rows = await db.rows(page, {**values, "offset": offset, "limit": limit})
    total = rows[0].total if rows else await db.scalar(count, values)

    def answer() -> Response:
        shown = videos_json(rows)
        for video in shown:
            del video["total"]
        about = {"count": len(shown), "total": total, "offset": offset, "limit": limit}
        return json_response({"videos": shown, **about, **more})

    return answer() if limit is not None and limit <= FEW else await off_loop(answer)


class _Ordering(NamedTuple):
    sort: str | None
    descending: bool


def _ordering(args: Mapping[str, str]) -> _Ordering:
    """The newest first, unless asked otherwise."""
    sort, order = args.get("sort"), args.get("order", "").lower()
    sort = sort if sort in SORTS else None
    return _Ordering(sort, order == "desc" or (order != "asc" and sort is None))


@lru_cache(maxsize=256)
def _listing(filters: tuple[str, ...], ordering: _Ordering, limited: bool) -> tuple[Select[Any], Select[Any]]:
    """Statements for videos with these columns: kept, for to make them takes half as long as to ask them."""
    found = VIDEOS.where(*(videos.c[name] == bindparam(name) for name in filters))
    return _paged(found, ordering, limited)


def _paged(found: Select[Any], ordering: _Ordering, limited: bool) -> tuple[Select[Any], Select[Any]]:
    """Two statements: a page of what is found, by `offset` and `limit`, and how many there are on all pages.

    Each row of a page says so as well, as its `total`: that is a trip to the server less.
    """
    count = found.with_only_columns(func.count(videos.c.id), maintain_column_froms=True)
    page = found.add_columns(count.correlate(None).scalar_subquery().label("total"))
    keys = [SORTS.get(ordering.sort, videos.c.created_at), videos.c.id]
    page = page.order_by(*(key.desc() if ordering.descending else key for key in keys))
    page = page.offset(bindparam("offset", type_=Integer))
    return page.limit(bindparam("limit", type_=Integer)) if limited else page, count


@read(router, "/{video_id:digits}", name="videos.get_video")
async def get_video(video_id: int, db: DbDep, _: Reader) -> Response:
    return json_response(video_json(await _find(db, video_id)))


async def _find(db: Db, video_id: int) -> Any:
    """The video with the name of its artist. Raises ApiError 404."""
    row = await db.row(_ONE, {"video_id": video_id}) if video_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, "Video not found")
    return row


# Changing


@router.put("/{video_id:digits}", name="videos.update_video")
async def update_video(request: Request, video_id: int, db: DbDep, _: Member) -> Response:
    """With `rename_file` the file takes the name that artist and title give it."""
    data = await json_body(request)
    fields = _video_fields(data)
    rename = bool(data.get("rename_file"))
    if not fields and not rename:
        raise ApiError(400, "No known field given")
    moved: tuple[Path, Path] | None = None
    try:
        async with db.transaction() as connection:
            await _save(connection, video_id, fields)
            if rename:
                moved = await _rename_file(connection, request, video_id)
            detail = {"fields": sorted(fields), "file_moved": bool(moved)}
            await audit(connection, request, "videos.update", f"video:{video_id}", **detail)
            row = (await connection.execute(_ONE, {"video_id": video_id})).one()
            answer = video_json(row)
            await emit(connection, request, "video.updated", {"videos": [_titled(row)], **detail})
    except IntegrityError:
        await refuse_duplicates(db, fields, video_id)
        raise
    except BaseException:
        if moved:
            with CancelScope(shield=True):  # a client that leaves must not leave the file behind
                await off_loop(rename_new, moved[1], moved[0])
        raise
    return json_response(answer | {"file_moved": bool(moved)})


async def _save(connection: AsyncConnection, video_id: int, fields: Mapping[str, Any]) -> None:
    video = await find_or_404(connection, videos, video_id, lock=True)
    await refuse_duplicates(connection, fields, video_id)
    if "artist_id" in fields:
        artist = select(artists.c.id).where(artists.c.id == fields["artist_id"])
        if (await connection.execute(artist)).first() is None:
            raise ApiError(400, "No such artist")
    if changed := changes(video, fields):
        await connection.execute(update(videos).where(videos.c.id == video_id).values(changed))


async def _rename_file(connection: AsyncConnection, request: Request, video_id: int) -> tuple[Path, Path] | None:
    """Old and new path, or None when the file has its proper name already. Raises ApiError 409 or 500."""
    refuse("files", f"rename the file of video {video_id}")
    library: Path = request.app.state.settings.library_path
    statement = _ONE.add_columns(artists.c.folder_path)
    video = (await connection.execute(statement, {"video_id": video_id})).one()
    source = await off_loop(existing_file, library, video.file_path)
    if source is None:
        raise ApiError(409, "The video has no file to rename")
    folder = library / (video.folder_path or safe_name(video.artist_name))
    name = safe_name(f"{video.artist_name} - {video.title}")
    try:
        target = await off_loop(move, source, folder / f"{name}{source.suffix}")
    except OSError:
        log.exception("a file could not be renamed")
        raise ApiError(500, "The file could not be renamed") from None
    file_path = target.relative_to(library).as_posix()
    if file_path != video.file_path:
        await connection.execute(update(videos).where(videos.c.id == video_id).values(file_path=file_path))
    return (source, target) if target != source else None


@router.delete("/{video_id:digits}", name="videos.delete_video")
async def delete_video(request: Request, video_id: int, db: DbDep, _: Manager) -> Response:
    """The row. The file stays, unless `delete_file=true`."""
    config = request.app.state.settings
    async with db.transaction() as connection:
        video = await find_or_404(connection, videos, video_id, lock=True)
        await connection.execute(delete(videos).where(videos.c.id == video_id))
        detail = {"title": video.title, "file_path": video.file_path}
        await audit(connection, request, "videos.delete", f"video:{video_id}", **detail)
        await emit(connection, request, "video.deleted", {"videos": [_titled(video)]})
    await off_loop(thumbnails.remove, config.data_path, [video.thumbnail_path])
    wanted = query_flag(query(request), "delete_file")
    file_deleted = bool(wanted) and await off_loop(_remove_file, config.library_path, video.file_path)
    return success("Video deleted", file_deleted=file_deleted)


def _remove_file(library: Path, file_path: str | None) -> bool:
    refuse("files", file_path)  # whether it is still there or not: the other side has been here
    path = existing_file(library, file_path)
    if path is None:
        return False
    try:
        path.unlink()
    except OSError:
        log.exception("the file of a deleted video is still there")
        return False
    return True


@router.put("/{video_id:digits}/status", name="videos.set_status")
async def set_status(request: Request, video_id: int, db: DbDep, _: Member) -> Response:
    status = _status_field(await json_body(request))
    async with db.transaction() as connection:
        video = await find_or_404(connection, videos, video_id, lock=True)
        await audit(connection, request, "videos.set_status", f"video:{video_id}", before=video.status, after=status)
        await _tell_status(connection, request, [video], status)
        if status != video.status:
            await connection.execute(update(videos).where(videos.c.id == video_id).values(status=status))
        answer = video_json((await connection.execute(_ONE, {"video_id": video_id})).one())
    return success("Status updated", video=answer)


@router.put("/bulk/status", name="videos.bulk_status")
async def bulk_status(request: Request, db: DbDep, _: Member) -> Response:
    data = await json_body(request)
    ids, status = id_list(data, "video_ids"), _status_field(data)
    async with db.transaction() as connection:
        wanted = _TITLED.where(videos.c.id.in_(ids)).with_for_update()
        rows = (await connection.execute(wanted)).all()
        found = [row.id for row in rows]
        await connection.execute(update(videos).where(videos.c.id.in_(found)).values(status=status))
        await audit(connection, request, "videos.bulk_status", video_ids=found, after=status)
        await _tell_status(connection, request, rows, status)
    there = set(found)
    missing = [video_id for video_id in ids if video_id not in there]
    return success(f"Status of {len(found)} videos updated", updated=len(found), not_found=missing)


@router.post("/bulk/delete", name="videos.bulk_delete_videos")
async def bulk_delete_videos(request: Request, db: DbDep, _: Manager) -> Response:
    """Rows only, never files."""
    ids = id_list(await json_body(request), "video_ids")
    async with db.transaction() as connection:
        wanted = _TITLED.where(videos.c.id.in_(ids)).with_for_update()
        rows = (await connection.execute(wanted)).all()
        pictures = {row.id: row.thumbnail_path for row in rows}
        deleted = [video_id for video_id in ids if video_id in pictures]
        await connection.execute(delete(videos).where(videos.c.id.in_(deleted)))
        await audit(connection, request, "videos.bulk_delete", video_ids=deleted)
        if rows:
            await emit(connection, request, "video.deleted", {"videos": [_titled(row) for row in rows]})
    await off_loop(thumbnails.remove, request.app.state.settings.data_path, list(pictures.values()))
    failed = [{"id": video_id, "error": "Video not found"} for video_id in ids if video_id not in pictures]
    message = f"{len(deleted)} of {len(ids)} videos deleted"
    body = {"message": message, "count": len(deleted), "deleted": deleted, "failed": failed}
    return json_response(body, 207 if failed else 200)


# Found elsewhere


@router.post("/import-from-youtube", name="videos.import_youtube")
async def import_youtube(request: Request, db: DbDep, _: Member) -> Response:
    """A video by its id or address there, of the artist that `artist_id` or its title names; `download` queues it."""
    data = await json_body(request)
    youtube_id, artist_id = _youtube_field(data), number(data, "artist_id")
    download = bool(data.get("download"))
    await refuse_duplicates(db, {"youtube_id": youtube_id}, 0)
    if artist_id is not None:
        await _artist(db, artist_id)
    async with enqueuing(request) if download else nullcontext():
        found = await youtube.video(request.app.state.upstream, await settings.texts(db), youtube_id)

        async def attempt() -> Response:
            async with db.transaction() as connection:
                answer = await _add_found(connection, request, found, artist_id, download=download)
            return success("Video imported", 201, **answer)

        for _attempt in range(ATTEMPTS - 1):
            with suppress(IntegrityError):  # somebody has just added the video, or its artist
                return await attempt()
        return await attempt()


async def _add_found(
    connection: AsyncConnection, request: Request, found: youtube.FoundVideo, artist_id: int | None, *, download: bool
) -> dict[str, Any]:
    await refuse_duplicates(connection, {"youtube_id": found.youtube_id}, 0)
    artist, created = await _artist_of(connection, artist_id, found)
    video_id = await insert_row(connection, videos, {"artist_id": artist.id, **youtube_fields(found)})
    video = (await connection.execute(_ONE, {"video_id": video_id})).one()
    about = {"video": {"id": video_id, "title": video.title}}
    detail = {"youtube_id": video.youtube_id, "artist_created": created}
    await audit(connection, request, "videos.import", f"video:{video_id}", **detail)
    await events.emit(connection, request, "video.imported", about | {"source": "youtube"})
    download_id = None
    if download:
        which = QUEUEABLE.where(videos.c.id == video_id)
        row = (await connection.execute(which)).one()
        download_id = await queue_download(connection, request, row, Wishes())
        await events.emit(connection, request, "download.queued", about | {"download": {"id": download_id}})
    return {"video": video_json(video), "artist_created": created, "download_id": download_id}


async def _artist_of(connection: AsyncConnection, artist_id: int | None, found: youtube.FoundVideo) -> tuple[Any, bool]:
    """The artist of a video, and whether it was made now: unmonitored, since only this video was asked for."""
    if artist_id is not None:
        return await _artist(connection, artist_id), False
    name = split_title(found.title, found.channel)[0] or UNKNOWN_ARTIST
    fields = name_fields({"name": name[:255]})
    same = select(artists).where(artists.c.name_key == fields["name_key"])
    artist = (await connection.execute(same)).first()
    if artist is not None:
        return artist, False
    new = {**fields, "folder_path": safe_name(fields["name"]), "monitored": False}
    return await _artist(connection, await insert_row(connection, artists, new)), True


async def _artist(db: Db | AsyncConnection, artist_id: int) -> Any:
    """Raises ApiError 400, since it is the body that names the artist."""
    artist = (await db.execute(select(artists).where(artists.c.id == artist_id))).first()
    if artist is None:
        raise ApiError(400, "No such artist")
    return artist


def _youtube_field(data: Mapping[str, Any]) -> str:
    spelling = text(data, "youtube_id", 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, "youtube_id or url is required")
    youtube_id = youtube.id_of(spelling)
    if youtube_id is None:
        raise ApiError(400, "Not a video on YouTube")
    return youtube_id


def youtube_fields(found: youtube.FoundVideo) -> dict[str, Any]:
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


@router.post("/{video_id:digits}/refresh-metadata", name="videos.refresh_video_metadata")
async def refresh_video_metadata(request: Request, video_id: int, db: DbDep, _: Member) -> Response:
    """Fill in what IMVDb and YouTube know, as far as they are configured; `overwrite=true` also replaces."""
    overwrite = bool(query_flag(query(request), "overwrite"))
    video = await _find(db, video_id)
    texts = await settings.texts(db)
    found, problems = await _found_elsewhere(request.app.state.upstream, texts, video)
    async with db.transaction() as connection:
        row = await find_or_404(connection, videos, video_id, lock=True)
        fields = fresh(row, found, overwrite=overwrite)
        await refuse_duplicates(connection, fields, video_id)
        if fields:
            await connection.execute(update(videos).where(videos.c.id == video_id).values(fields))
        await audit(connection, request, "videos.refresh", f"video:{video_id}", fields=sorted(fields))
        if fields:
            told = {"video": {"id": video_id, "title": row.title}, "fields": sorted(fields)}
            await events.emit(connection, request, "video.updated", told)
        answer = video_json((await connection.execute(_ONE, {"video_id": video_id})).one())
    told_problems = [problem.message for problem in problems]
    return success("Metadata updated", video=answer, updated=sorted(fields), problems=told_problems)


async def _found_elsewhere(
    client: UpstreamClient, texts: Mapping[str, str], video: Any
) -> tuple[dict[str, Any], list[ApiError]]:
    """Columns for a video, and what went wrong. Raises ApiError when no service has anything to say."""
    wanted = Wanted(video.artist_name, video.title, video.year, video.duration)
    keys = texts.get("imvdb_api_key"), texts.get("youtube_api_key")
    if not any(keys):
        raise errors.not_configured(errors.IMVDB)
    on_imvdb: list[ApiError] = []
    on_youtube: list[ApiError] = []

    async def ask_imvdb() -> imvdb.FoundVideo | None:
        return await tried(on_imvdb, _find_on_imvdb(client, texts, wanted, video.imvdb_id)) if keys[0] else None

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask_imvdb())
        song, clip, youtube_id = None, None, video.youtube_id
        if youtube_id is None:  # IMVDb may know it, which spares a search
            song = await asked
            youtube_id = song and song.youtube_id
        if keys[1]:
            clip = await tried(on_youtube, _find_on_youtube(client, texts, wanted, youtube_id))
            youtube_id = clip and clip.youtube_id
    song, problems = asked.result(), on_imvdb + on_youtube
    if song is None and clip is None:
        raise problems[0]
    return _merged(song, clip, youtube_id), problems


async def _find_on_imvdb(
    client: UpstreamClient, texts: Mapping[str, str], wanted: Wanted, imvdb_id: str | None
) -> imvdb.FoundVideo:
    """By id, or by exactly that artist and title. Raises ApiError 400, 404, 429, 502."""
    if imvdb_id:
        return await imvdb.video(client, texts, imvdb_id)
    for found in await imvdb.search_videos(client, texts, f"{wanted.artist} - {wanted.title}"):
        by_artist = words(wanted.artist) in map(words, found.artists)
        if by_artist and words(found.title) == words(wanted.title or ""):
            return await imvdb.video(client, texts, found.imvdb_id)
    raise errors.not_found(errors.IMVDB, "Video")


async def _find_on_youtube(
    client: UpstreamClient, texts: Mapping[str, str], wanted: Wanted, youtube_id: str | None
) -> youtube.FoundVideo:
    """By id, or the best match of a search that is good enough. Raises ApiError 400, 404, 429, 502."""
    if youtube_id:
        return await youtube.video(client, texts, youtube_id)
    found = await youtube.search_videos(client, texts, f"{wanted.artist} - {wanted.title}")
    matches = ranked(wanted, found, settings.as_number(texts["discovery_threshold"], 60))
    if not matches:
        raise errors.not_found(errors.YOUTUBE, "Video")
    return matches[0][1]


def _merged(song: imvdb.FoundVideo | None, clip: youtube.FoundVideo | None, youtube_id: str | None) -> dict[str, Any]:
    """What both say; IMVDb knows the song better, YouTube the file."""
    found: dict[str, Any] = {"youtube_id": youtube_id, "url": youtube.watch_url(youtube_id) if youtube_id else None}
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


# Files


@read(router, "/{video_id:digits}/thumbnail", name="videos.video_thumbnail")
async def video_thumbnail(request: Request, video_id: int, db: DbDep, _: Reader) -> Response:
    video = await find_or_404(db, videos, video_id)
    picture = await thumbnails.send(request, video.thumbnail_path, "medium")
    if picture is None:
        raise ApiError(404, "Thumbnail not found")
    return picture


@read(router, "/{video_id:digits}/stream", name="videos.stream_video")
async def stream_video(request: Request, video_id: int, db: DbDep, _: Reader) -> Response:
    """The file itself when browsers can play it, else a live conversion to fragmented mp4."""
    video = await find_or_404(db, videos, video_id)
    config = request.app.state.settings
    path = await off_loop(existing_file, config.library_path, video.file_path)
    if path is None:
        raise ApiError(404, "Video file not found")
    media_type = DIRECT_TYPES.get(path.suffix.lower())
    if media_type:
        several = "," in request.headers.get("range", "")  # then the whole file, as RFC 9110 allows
        return await send_file(request, path, media_type, ranges=not several)
    ffmpeg = await off_loop(find_ffmpeg, config.ffmpeg)
    if ffmpeg is None:
        raise ApiError(503, "This format cannot be played: ffmpeg is not installed")
    chunks = converted(ffmpeg, path, query_int(query(request), "start") or 0)
    return Stream(chunks, 200, {"accept-ranges": "none", "content-type": "video/mp4"})


# Small things


def _titled(video: Any) -> dict[str, Any]:
    return {"id": video.id, "title": video.title}


async def _tell_status(connection: AsyncConnection, request: Request, rows: Sequence[Any], status: str) -> None:
    """Of those that have another status now; to be called with what they were before."""
    if changed := [_titled(row) for row in rows if row.status != status]:
        await emit(connection, request, "video.status_changed", {"videos": changed, "status": status})


def _status_field(data: Mapping[str, Any]) -> str:
    status = (text(data, "status", 100) or "").upper()
    if status not in VIDEO_STATUSES:
        raise ApiError(400, f"Invalid status. Must be one of: {', '.join(VIDEO_STATUSES)}")
    return status


def _video_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the body sets."""
    fields: dict[str, Any] = {}
    limits = {"youtube_id": 20, "imvdb_id": 50, "description": 10_000, "quality": 20}
    fields |= {field: text(data, field, limit) for field, limit in limits.items() if field in data}
    fields |= {field: web_address(data, field) for field in ("url", "thumbnail_url") if field in data}
    fields |= {field: text_list(data, field) for field in ("genres", "directors") if field in data}
    limits = {"year": 9999, "duration": 10_000_000}
    fields |= {field: number(data, field, high=high) for field, high in limits.items() if field in data}
    if "title" in data:
        fields["title"] = _required(text(data, "title", 500), "title")
    if "artist_id" in data:
        fields["artist_id"] = _required(number(data, "artist_id"), "artist_id")
    return fields


def _required(value: T | None, field: str) -> T:
    if value is None:
        raise ApiError(400, f"{field} is required")
    return value


async def refuse_duplicates(db: Db | AsyncConnection, fields: Mapping[str, Any], own_id: int) -> None:
    """Raises ApiError 409 with the video that has this youtube_id or imvdb_id already."""
    for column in (videos.c.youtube_id, videos.c.imvdb_id):
        value = fields.get(column.key)
        if value is None:
            continue
        same = select(videos.c.id, videos.c.title).where(column == value, videos.c.id != own_id)
        existing = (await db.execute(same)).first()
        if existing is not None:
            message = f"A video with this {column.key} already exists"
            raise ApiError(409, message, video={"id": existing.id, "title": existing.title})


def video_json(row: Any) -> dict[str, Any]:
    return videos_json([row])[0]


def videos_json(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Videos of one result with `artist_name`, as they are shown: every column but one."""
    shown = as_dicts(rows)
    for video in shown:
        video["has_thumbnail"] = video.pop("thumbnail_path") is not None
        video["created_at"] = video["created_at"].isoformat()
        video["updated_at"] = video["updated_at"].isoformat()
    return shown
