"""Artists: the list, the searches, the changes, the pictures."""

import asyncio
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, settings, thumbnails
from .audit import audit
from .containment import refuse
from .db import Db, DbDep, find_or_404, insert_row
from .events import emit
from .files import inside, off_loop, safe_name
from .http import (
    MAX_INT,
    ApiError,
    json_body,
    json_response,
    page_args,
    paged,
    query,
    query_flag,
    query_int,
    read,
    success,
    text,
    text_list,
    uploaded_file,
)
from .identity import Manager, Member, Reader
from .models import VIDEO_STATUSES, artists, as_dicts, cache, downloads, name_key, sort_name, utcnow, videos
from .upstreams import errors, imvdb, lastfm, wikipedia
from .upstreams.client import UpstreamClient

router = APIRouter(prefix="/api/artists", tags=["artists"])
log = logging.getLogger("fastapi_app")

T = TypeVar("T")

ADVANCED_TTL = timedelta(seconds=300)
video_count = (
    select(func.count(videos.c.id)).where(videos.c.artist_id == artists.c.id).correlate(artists).scalar_subquery()
)
SORTS: dict[str | None, ColumnElement[Any]] = {
    "name": artists.c.sort_name,
    "created_at": artists.c.created_at,
    "updated_at": artists.c.updated_at,
    "video_count": video_count,
}

_ARTISTS = select(artists, video_count.label("video_count"))
_ONE = _ARTISTS.where(artists.c.id == bindparam("artist_id"))
_LOCKED = select(artists).where(artists.c.id == bindparam("artist_id")).with_for_update()
_CACHED = select(cache.c.value).where(cache.c.key == bindparam("name"), cache.c.expires_at > bindparam("now"))
_VIDEOS = select(videos).where(videos.c.artist_id == bindparam("artist_id")).order_by(videos.c.id)
_DOWNLOADS = (
    select(downloads)
    .join(videos, videos.c.id == downloads.c.video_id)
    .where(videos.c.artist_id == bindparam("artist_id"))
    .order_by(videos.c.id, downloads.c.id)
)
_SUGGESTIONS = select(artists.c.id, artists.c.name).order_by(artists.c.sort_name, artists.c.id).limit(10)


# Reading


@read(router, "/", name="artists.list_artists")
async def list_artists(request: Request, db: DbDep, _: Reader) -> Response:
    args = query(request)
    page, per_page = page_args(args)
    found = filtered(args.get("search", ""), query_flag(args, "monitored"), query_flag(args, "auto_download"))
    total = await db.scalar(found.with_only_columns(func.count(artists.c.id), maintain_column_froms=True))
    ordered = found.order_by(*ordering(args.get("sort"), args.get("order")))
    rows = await db.rows(ordered.offset((page - 1) * per_page).limit(per_page))
    return paged("artists", artists_json(rows), total, page, per_page)


@read(router, "/search/advanced", name="artists.advanced_search")
async def advanced_search(request: Request, db: DbDep, _: Reader) -> Response:
    """Filters and analytics. Answers are kept for 300 seconds, whatever changes meanwhile."""
    args = query(request)
    page, per_page = page_args(args)
    filters = {
        "q": args.get("q", ""),
        "genre": args.get("genre", ""),
        "monitored": query_flag(args, "monitored"),
        "auto_download": query_flag(args, "auto_download"),
        "has_thumbnail": query_flag(args, "has_thumbnail"),
        "min_videos": query_int(args, "min_videos"),
        "max_videos": query_int(args, "max_videos"),
        "sort": args.get("sort", ""),
        "order": args.get("order", ""),
        "page": page,
        "per_page": per_page,
    }
    key = "artists.advanced_search:" + hashlib.sha256(json.dumps(filters, sort_keys=True).encode()).hexdigest()
    answer: str | None = await db.scalar(_CACHED, {"name": key, "now": utcnow()})
    if answer is None:
        answer = await _search_with_analytics(db, filters)
        await _remember(db, key, answer)
    return Response(f"{answer}\n", media_type="application/json")


async def _search_with_analytics(db: Db, filters: Mapping[str, Any]) -> str:
    found = filtered(filters["q"], filters["monitored"], filters["auto_download"])
    if filters["genre"]:
        found = found.where(has_genre(artists.c.genres, filters["genre"]))
    if filters["has_thumbnail"] is not None:
        missing = artists.c.thumbnail_path.is_(None)
        found = found.where(~missing if filters["has_thumbnail"] else missing)
    if filters["min_videos"] is not None:
        found = found.where(video_count >= filters["min_videos"])
    if filters["max_videos"] is not None:
        found = found.where(video_count <= filters["max_videos"])
    result = await db.execute(found.order_by(*ordering(filters["sort"], filters["order"])))
    return await off_loop(lambda: json.dumps(_analysed(result.all(), filters), sort_keys=True))


def _analysed(rows: Sequence[Any], filters: Mapping[str, Any]) -> dict[str, Any]:
    page, per_page = filters["page"], filters["per_page"]
    pages = -(-len(rows) // per_page)
    shown = rows[(page - 1) * per_page : page * per_page]
    return {
        "artists": artists_json(shown),
        "count": len(shown),
        "pagination": {
            "page": page,
            "per_page": per_page,
            "total": len(rows),
            "pages": pages,
            "has_next": page < pages,
            "has_prev": page > 1,
        },
        "analytics": _analytics(rows),
    }


def _analytics(rows: Sequence[Any]) -> dict[str, Any]:
    total = sum(row.video_count for row in rows)
    genres = Counter(genre for row in rows for genre in row.genres)
    top = sorted(genres.items(), key=lambda item: (-item[1], item[0]))[:5]
    return {
        "total_artists": len(rows),
        "monitored_artists": sum(row.monitored for row in rows),
        "artists_with_videos": sum(row.video_count > 0 for row in rows),
        "total_videos": total,
        "average_videos": round(total / len(rows), 2) if rows else 0.0,
        "top_genres": [{"genre": genre, "artists": number} for genre, number in top],
    }


async def _remember(db: Db, key: str, value: str) -> None:
    now = utcnow()
    try:
        async with db.transaction() as connection:
            await connection.execute(delete(cache).where((cache.c.key == key) | (cache.c.expires_at <= now)))
            await connection.execute(insert(cache).values(key=key, value=value, expires_at=now + ADVANCED_TTL))
    except IntegrityError:
        pass  # another request has just stored the same answer


@read(router, "/search/suggestions", name="artists.suggestions")
async def suggestions(request: Request, db: DbDep, _: Reader) -> Response:
    term = query(request).get("q", "").strip()
    found = []
    if len(term) >= 2:
        rows = await db.execute(_SUGGESTIONS.where(artists.c.name_key.contains(name_key(term), autoescape=True)))
        found = [{"id": row.id, "name": row.name} for row in rows]
    return json_response({"suggestions": found, "count": len(found), "query": term})


@read(router, "/{artist_id:digits}", name="artists.get_artist")
async def get_artist(artist_id: int, db: DbDep, _: Reader) -> Response:
    return json_response(artist_json(await find_artist(db, artist_id)))


@read(router, "/{artist_id:digits}/detailed", name="artists.get_artist_detailed")
async def get_artist_detailed(artist_id: int, db: DbDep, _: Reader) -> Response:
    artist = await find_artist(db, artist_id)
    shown = (await db.execute(_VIDEOS, {"artist_id": artist_id})).all()
    fetched = await db.execute(_DOWNLOADS, {"artist_id": artist_id})
    return json_response(
        artist_json(artist)
        | {
            "videos": [_video_summary(video) for video in shown],
            "downloads": [_download_summary(download) for download in fetched],
            "statistics": _statistics(shown),
        }
    )


def _statistics(rows: Sequence[Any]) -> dict[str, Any]:
    durations = [video.duration for video in rows if video.duration is not None]
    statuses = Counter(video.status for video in rows)
    return {
        "total_videos": len(rows),
        "by_status": {status: statuses[status] for status in VIDEO_STATUSES},
        "total_size": sum(video.file_size or 0 for video in rows),
        "total_duration": sum(durations),
        "average_duration": round(sum(durations) / len(durations), 2) if durations else 0.0,
        "downloaded_percent": round(100 * statuses["DOWNLOADED"] / len(rows), 1) if rows else 0.0,
    }


# Changing


@router.post("/", name="artists.create_artist")
async def create_artist(request: Request, db: DbDep, _: Member) -> Response:
    fields = await _artist_fields(request, await json_body(request))
    if "name" not in fields:
        raise ApiError(400, "name is required")
    try:
        async with db.transaction() as connection:
            await refuse_duplicates(connection, fields)
            new = {"folder_path": safe_name(fields["name"])} | fields
            artist_id = await insert_row(connection, artists, new)
            await audit(connection, request, "artists.create", f"artist:{artist_id}", name=fields["name"])
            told: dict[str, Any] = {"artist": {"id": artist_id, "name": fields["name"]}}
            await emit(connection, request, "artist.created", told)
    except IntegrityError:
        await refuse_duplicates(db, fields)
        raise
    return json_response({"id": artist_id, "name": fields["name"], "message": "Artist created"}, 201)


@router.put("/{artist_id:digits}", name="artists.update_artist")
@router.put("/{artist_id:digits}/settings", name="artists.update_artist")
async def update_artist(request: Request, artist_id: int, db: DbDep, _: Member) -> Response:
    fields = await _artist_fields(request, await json_body(request))
    if not fields:
        raise ApiError(400, "No known field given")
    try:
        async with db.transaction() as connection:
            artist = await find_or_404(connection, artists, artist_id, lock=True)
            await refuse_duplicates(connection, fields, artist_id)
            if changed := changes(artist, fields):
                await connection.execute(update(artists).where(artists.c.id == artist_id).values(changed))
            await audit(connection, request, "artists.update", f"artist:{artist_id}", fields=sorted(fields))
            answer = artist_json((await connection.execute(_ONE, {"artist_id": artist_id})).one())
            told = {"artist": {"id": artist_id, "name": answer["name"]}, "fields": sorted(fields)}
            await emit(connection, request, "artist.updated", told)
    except IntegrityError:
        await refuse_duplicates(db, fields, artist_id)
        raise
    return success("Artist updated", artist=answer)


@router.delete("/{artist_id:digits}", name="artists.delete_artist")
async def delete_artist(request: Request, artist_id: int, db: DbDep, _: Manager) -> Response:
    """Videos go too with `force=true`; the folder only with `delete_files=true`."""
    args = query(request)
    force, delete_files = query_flag(args, "force"), query_flag(args, "delete_files")
    async with db.transaction() as connection:
        artist = await find_or_404(connection, artists, artist_id, lock=True)
        own = select(videos.c.id, videos.c.thumbnail_path).where(videos.c.artist_id == artist_id)
        rows = (await connection.execute(own)).all()
        if rows and not force:
            raise ApiError(
                409,
                "The artist has videos. Use force=true to delete them too",
                artist={"id": artist.id, "name": artist.name},
                video_count=len(rows),
            )
        removable = bool(delete_files) and not await _folder_is_shared(connection, artist)
        ids = select(videos.c.id).where(videos.c.artist_id == artist_id)
        await connection.execute(delete(downloads).where(downloads.c.video_id.in_(ids)))
        await connection.execute(delete(videos).where(videos.c.artist_id == artist_id))
        await connection.execute(delete(artists).where(artists.c.id == artist_id))
        await audit(connection, request, "artists.delete", f"artist:{artist_id}", name=artist.name, videos=len(rows))
        told = {"artist": {"id": artist_id, "name": artist.name}, "videos_deleted": len(rows)}
        await emit(connection, request, "artist.deleted", told)
    config = request.app.state.settings
    pictures = [artist.thumbnail_path, *(row.thumbnail_path for row in rows)]
    await off_loop(thumbnails.remove, config.data_path, pictures)
    files_deleted = removable and await off_loop(_remove_folder, config.library_path, artist.folder_path)
    return success("Artist deleted", videos_deleted=len(rows), files_deleted=files_deleted)


async def _folder_is_shared(connection: AsyncConnection, artist: Any) -> bool:
    """Whether the folder, or one below it, belongs to another artist or holds another artist's video."""
    if artist.folder_path is None:
        return False
    below = f"{artist.folder_path}/"
    folder = artists.c.folder_path
    taken = (folder == artist.folder_path) | folder.startswith(below, autoescape=True)
    of_artists = select(artists.c.id).where(artists.c.id != artist.id, taken)
    of_videos = select(videos.c.id).where(
        videos.c.artist_id != artist.id, videos.c.file_path.startswith(below, autoescape=True)
    )
    for others in (of_artists, of_videos):
        if (await connection.execute(others.limit(1))).first() is not None:
            return True
    return False


def _remove_folder(library: Path, folder: str | None) -> bool:
    refuse("files", folder)  # whether it is still there or not: the other side has been here
    path = inside(library, folder)
    if path is None or not path.is_dir():
        return False
    try:
        shutil.rmtree(path)
    except OSError:
        log.exception("the folder of a deleted artist is still there")
        return False
    return True


# Found elsewhere


async def adopt(request: Request, db: Db, fields: Mapping[str, Any], source: str) -> int:
    """Store an artist found at a service, then the picture if it can be had; the new id. Raises ApiError 409."""
    new = {"folder_path": safe_name(fields["name"])} | dict(fields)
    try:
        async with db.transaction() as connection:
            await refuse_duplicates(connection, new)
            artist_id = await insert_row(connection, artists, new)
            name = new["name"]
            await audit(connection, request, "artists.import", f"artist:{artist_id}", name=name, source=source)
            told = {"artist": {"id": artist_id, "name": name}, "source": source}
            await events.emit(connection, request, "artist.imported", told)
    except IntegrityError:
        await refuse_duplicates(db, new)
        raise
    await adopt_picture(request, db, artist_id, new.get("thumbnail_url"))
    return artist_id


async def adopt_picture(request: Request, db: Db, artist_id: int, url: str | None) -> bool:
    """Fetch and keep the picture of an artist. When that fails, what is there already stays."""
    folder = f"thumbnails/artists/{artist_id}"
    if not url or not await thumbnails.fetch(request, url, folder):
        return False
    async with db.transaction() as connection:
        artist = (await connection.execute(_LOCKED, {"artist_id": artist_id})).first()
        if artist is not None and artist.thumbnail_path != folder:
            changed = update(artists).where(artists.c.id == artist_id).values(thumbnail_path=folder)
            await connection.execute(changed)
    if artist is None:  # deleted meanwhile
        await off_loop(thumbnails.remove, request.app.state.settings.data_path, [folder])
    return artist is not None


@router.put("/{artist_id:digits}/metadata/update", name="artists.refresh_artist_metadata")
async def refresh_artist_metadata(request: Request, artist_id: int, db: DbDep, _: Member) -> Response:
    """Fill in what IMVDb, Last.fm and Wikipedia know; what is there already stays, unless `overwrite=true`."""
    overwrite = bool(query_flag(query(request), "overwrite"))
    news = await refresh(request, db, artist_id, await settings.texts(db), overwrite=overwrite)
    return success("Metadata updated", artist=artist_json(await find_artist(db, artist_id)), **news)


async def refresh(
    request: Request, db: Db, artist_id: int, texts: Mapping[str, str], *, overwrite: bool
) -> dict[str, Any]:
    """What has become of it: updated (fields), thumbnail_saved, problems. Raises ApiError when IMVDb fails."""
    artist = await find_or_404(db, artists, artist_id)
    found, problems = await _found_elsewhere(request.app.state.upstream, texts, artist, overwrite=overwrite)
    async with db.transaction() as connection:
        row = await find_or_404(connection, artists, artist_id, lock=True)
        fields = fresh(row, found, overwrite=overwrite)
        await refuse_duplicates(connection, fields, artist_id)
        if fields:
            await connection.execute(update(artists).where(artists.c.id == artist_id).values(fields))
        await audit(connection, request, "artists.refresh", f"artist:{artist_id}", fields=sorted(fields))
        if fields:
            told = {"artist": {"id": artist_id, "name": row.name}, "fields": sorted(fields)}
            await events.emit(connection, request, "artist.updated", told)
    wanted = overwrite or artist.thumbnail_path is None
    saved = wanted and await adopt_picture(request, db, artist_id, found["thumbnail_url"])
    return {
        "updated": sorted(fields),
        "thumbnail_saved": saved,
        "problems": [problem.message for problem in problems],
    }


async def _found_elsewhere(
    client: UpstreamClient, texts: Mapping[str, str], artist: Any, *, overwrite: bool
) -> tuple[dict[str, Any], list[ApiError]]:
    """Columns for an artist, and what went wrong with Last.fm and Wikipedia. Raises ApiError when IMVDb fails."""
    refusals: list[ApiError] = []
    problems: list[ApiError] = []
    incomplete = overwrite or not (artist.bio and artist.genres)
    info = None
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(tried(refusals, _find_entity(client, texts, artist)))
        if texts.get("lastfm_api_key") and incomplete:
            info = await tried(problems, lastfm.artist_info(client, texts, artist.name))
    entity = asked.result()
    if entity is None:
        raise refusals[0]
    image = entity.image
    if image is None and (overwrite or artist.thumbnail_path is None):
        image = await tried(problems, wikipedia.picture(client, texts, artist.name))
    bio, genres = (info.bio, info.genres) if info else (None, [])
    found = {"imvdb_id": entity.imvdb_id, "bio": entity.bio or bio, "genres": genres, "thumbnail_url": image}
    return found, problems


async def _find_entity(client: UpstreamClient, texts: Mapping[str, str], artist: Any) -> imvdb.Entity:
    """The artist on IMVDb, by id or by exactly that name. Raises ApiError 400, 404, 429, 502."""
    if artist.imvdb_id:
        return (await imvdb.entity(client, texts, artist.imvdb_id))[0]
    for entity in await imvdb.search_entities(client, texts, artist.name):
        if name_key(entity.name) == artist.name_key:
            return (await imvdb.entity(client, texts, entity.imvdb_id))[0]
    raise errors.not_found(errors.IMVDB, "Artist")


async def tried(problems: list[ApiError], answer: Awaitable[T]) -> T | None:
    """What a service answers that is not needed; None when it fails, which is noted."""
    try:
        return await answer
    except ApiError as problem:
        problems.append(problem)
        return None


def fresh(row: Any, found: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """What was found and changes the row: fields that are empty there, with `overwrite` others too."""
    return {
        field: value
        for field, value in found.items()
        if value and value != getattr(row, field) and (overwrite or not getattr(row, field))
    }


# Pictures


@read(router, "/{artist_id:digits}/thumbnail", name="artists.artist_thumbnail")
async def artist_thumbnail(request: Request, artist_id: int, db: DbDep, _: Reader) -> Response:
    return await _send_thumbnail(request, db, artist_id, "medium")


@read(router, "/{artist_id:digits}/thumbnail/{size}", name="artists.artist_thumbnail_size")
async def artist_thumbnail_size(request: Request, artist_id: int, size: str, db: DbDep, _: Reader) -> Response:
    if size not in thumbnails.SIZES:
        raise ApiError(400, f"Invalid size. Must be one of: {list(thumbnails.SIZES)}")
    return await _send_thumbnail(request, db, artist_id, size)


async def _send_thumbnail(request: Request, db: Db, artist_id: int, size: str) -> Response:
    artist = await find_or_404(db, artists, artist_id)
    picture = await thumbnails.send(request, artist.thumbnail_path, size)
    return picture or await thumbnails.send_placeholder(request, artist.name_key, size)


@router.post("/{artist_id:digits}/thumbnail/upload", name="artists.upload_artist_thumbnail")
async def upload_artist_thumbnail(request: Request, artist_id: int, db: DbDep, _: Member) -> Response:
    await find_or_404(db, artists, artist_id)
    content = await uploaded_file(request, "file")
    if content is None:
        raise ApiError(400, "No file given")
    folder = f"thumbnails/artists/{artist_id}"
    sizes = await off_loop(thumbnails.save, content, request.app.state.settings.data_path / folder)
    async with db.transaction() as connection:
        artist = await find_or_404(connection, artists, artist_id, lock=True)
        if artist.thumbnail_path != folder:
            changed = update(artists).where(artists.c.id == artist_id).values(thumbnail_path=folder)
            await connection.execute(changed)
        await audit(connection, request, "artists.thumbnail", f"artist:{artist_id}")
    return success("Thumbnail saved", sizes=sizes)


# Small things


def filtered(search: str, monitored: bool | None, auto_download: bool | None) -> Select[Any]:
    """Artists with their number of videos."""
    found = _ARTISTS
    if search.strip():
        found = found.where(artists.c.name_key.contains(name_key(search), autoescape=True))
    if monitored is not None:
        found = found.where(artists.c.monitored.is_(monitored))
    if auto_download is not None:
        found = found.where(artists.c.auto_download.is_(auto_download))
    return found


def ordering(sort: str | None, order: str | None) -> Sequence[ColumnElement[Any]]:
    columns = (SORTS.get(sort, artists.c.sort_name), artists.c.id)
    return [column.desc() for column in columns] if (order or "").lower() == "desc" else columns


def has_genre(column: ColumnElement[Any], genre: str) -> ColumnElement[bool]:
    """Whether a JSON list of texts holds this one."""
    return func.instr(type_coerce(column, Text), json.dumps(genre, ensure_ascii=False)) > 0


async def find_artist(db: Db, artist_id: int) -> Any:
    """The artist with its number of videos. Raises ApiError 404."""
    row = await db.row(_ONE, {"artist_id": artist_id}) if artist_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, "Artist not found")
    return row


def changes(row: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ from the row: saving what is there already changes nothing, not even `updated_at`."""
    return {name: value for name, value in fields.items() if getattr(row, name) != value}


async def _artist_fields(request: Request, data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the body sets."""
    fields: dict[str, Any] = {}
    limits = {"imvdb_id": 50, "spotify_id": 50, "bio": 10_000, "quality": 20}
    fields |= {field: text(data, field, limit) for field, limit in limits.items() if field in data}
    fields |= {field: bool(data[field]) for field in ("monitored", "auto_download") if field in data}
    if "genres" in data:
        fields["genres"] = text_list(data, "genres")
    if "thumbnail_url" in data:
        fields["thumbnail_url"] = web_address(data, "thumbnail_url")
    if "folder_path" in data:
        fields["folder_path"] = await _library_folder(request, data)
    if "name" in data:
        fields |= name_fields(data)
    return fields


def name_fields(data: Mapping[str, Any]) -> dict[str, str]:
    name = text(data, "name", 255)
    if name is None:
        raise ApiError(400, "name is required")
    if len(name_key(name)) > 255:
        raise ApiError(400, "name is too long: at most 255 characters")
    return {"name": name, "name_key": name_key(name), "sort_name": sort_name(name)}


def web_address(data: Mapping[str, Any], field: str) -> str | None:
    value = text(data, field, 1000)
    if value is not None and not value.startswith(("http://", "https://")):
        raise ApiError(400, f"{field} must be an http or https address")
    return value


async def _library_folder(request: Request, data: Mapping[str, Any]) -> str | None:
    folder = text(data, "folder_path", 240)
    if folder is None:
        return None
    path, library = PurePosixPath(folder), request.app.state.settings.library_path
    if ".." in path.parts or await off_loop(inside, library, str(path)) is None:
        raise ApiError(400, "folder_path must stay inside the library")
    return str(path)


async def refuse_duplicates(db: Db | AsyncConnection, fields: Mapping[str, Any], own_id: int = 0) -> None:
    """Raises ApiError 409 with the artist that has this name, imvdb_id or spotify_id already."""
    for column, message in (
        (artists.c.name_key, "An artist with this name already exists"),
        (artists.c.imvdb_id, "An artist with this imvdb_id already exists"),
        (artists.c.spotify_id, "An artist with this spotify_id already exists"),
    ):
        value = fields.get(column.key)
        if value is None:
            continue
        same = select(artists.c.id, artists.c.name).where(column == value, artists.c.id != own_id)
        existing = (await db.execute(same)).first()
        if existing is not None:
            raise ApiError(409, message, artist={"id": existing.id, "name": existing.name})


def artist_json(row: Any) -> dict[str, Any]:
    return artists_json([row])[0]


def artists_json(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Artists of one result with `video_count`, as they are shown: every column but two."""
    shown = as_dicts(rows)
    for artist in shown:
        del artist["name_key"]
        artist["has_thumbnail"] = artist.pop("thumbnail_path") is not None
        artist["created_at"] = artist["created_at"].isoformat()
        artist["updated_at"] = artist["updated_at"].isoformat()
    return shown


def _video_summary(video: Any) -> dict[str, Any]:
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


def _download_summary(download: Any) -> dict[str, Any]:
    return {
        "id": download.id,
        "video_id": download.video_id,
        "status": download.status,
        "priority": download.priority,
        "progress": download.progress,
        "error_message": download.error_message,
        "created_at": download.created_at.isoformat(),
    }
