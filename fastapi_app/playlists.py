"""Playlists of YouTube that are looked through for new videos."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, jobs, settings
from .artists import name_fields
from .audit import audit
from .bulk import insert_many, select_among
from .db import Db, DbDep, insert_row
from .files import off_loop, safe_name
from .http import MAX_INT, ApiError, json_body, json_response, read, success, text
from .identity import Member, Reader
from .matching import split_title
from .models import artists, downloads, playlist_monitors, utcnow, videos
from .queueing import enqueuing
from .upstreams import youtube
from .videos import UNKNOWN_ARTIST, youtube_fields

router = APIRouter(prefix="/api/youtube/playlists", tags=["playlists"])

ATTEMPTS = 5  # at storing what somebody else may store at the same time


class Entry(NamedTuple):
    """Columns of an item: of its artist and of itself."""

    artist: dict[str, Any]
    video: dict[str, Any]


_ALL = select(playlist_monitors).order_by(playlist_monitors.c.id)
_HOW_MANY = select(func.count()).select_from(playlist_monitors)
_ONE = select(playlist_monitors).where(playlist_monitors.c.id == bindparam("monitor_id"))
_ONE_LOCKED = _ONE.with_for_update()
_VIDEOS = select(videos.c.id, videos.c.youtube_id, videos.c.title)
_ARTISTS = select(artists.c.id, artists.c.name_key, artists.c.quality)
_SAME = select(playlist_monitors).where(playlist_monitors.c.playlist_id == bindparam("playlist_id"))


@read(router, "/", name="playlists.list_monitors")
async def list_monitors(db: DbDep, _: Reader) -> Response:
    monitors = [monitor_json(row) for row in await db.execute(_ALL)]
    return json_response({"monitors": monitors, "count": len(monitors)})


@router.post("/", name="playlists.create_monitor")
async def create_monitor(request: Request, db: DbDep, _: Member) -> Response:
    data = await json_body(request)
    playlist_id, auto_download = _playlist_field(data), bool(data.get("auto_download"))
    await _refuse_duplicate(db, playlist_id)
    texts = await settings.texts(db)
    found = await youtube.playlist(request.app.state.upstream, texts, playlist_id)
    try:
        async with db.transaction() as connection:
            await _refuse_duplicate(connection, playlist_id)
            new = found._asdict() | {"auto_download": auto_download}
            monitor = await _find(connection, await insert_row(connection, playlist_monitors, new))
            await audit(connection, request, "playlists.create", f"playlist:{monitor.id}", title=monitor.title)
    except IntegrityError:
        await _refuse_duplicate(db, playlist_id)
        raise
    return success("Playlist added", 201, monitor=monitor_json(monitor))


@router.delete("/{monitor_id:digits}", name="playlists.delete_monitor")
async def delete_monitor(request: Request, monitor_id: int, db: DbDep, _: Member) -> Response:
    """The videos that it has found stay."""
    async with db.transaction() as connection:
        monitor = await _find(connection, monitor_id, lock=True)
        await connection.execute(delete(playlist_monitors).where(playlist_monitors.c.id == monitor_id))
        await audit(connection, request, "playlists.delete", f"playlist:{monitor_id}", title=monitor.title)
    return success("Playlist removed")


# Looking for new videos


@router.post("/{monitor_id:digits}/sync", name="playlists.sync_monitor")
async def sync_monitor(request: Request, monitor_id: int, db: DbDep, _: Member) -> Response:
    """Store what the library does not have as WANTED, and queue it when the monitor says so."""
    monitor, texts = await _find(db, monitor_id), await settings.texts(db)
    async with enqueuing(request) if monitor.auto_download else nullcontext():
        items = await youtube.playlist_items(request.app.state.upstream, texts, monitor.playlist_id)
        return success("Playlist synced", **await store(request, db, monitor_id, items))


async def start_all(request: Request, db: Db, job_id: str = "") -> str:
    """Have all playlists synced; the job's id. Raises ApiError 400 without a key, 409 while such a job is running."""
    youtube.key_of(await settings.texts(db))
    busy, number = "The playlists are being synced already", await db.scalar(_HOW_MANY)
    return await jobs.start(request, "playlists", {}, busy=busy, job_id=job_id, playlists=number)


async def sync_all(request: Request, _: Mapping[str, Any], report: jobs.Report) -> dict[str, Any]:
    """One playlist after the other: each holds its row while it is stored."""
    db = Db(request.app.state.database)
    texts, monitors = await settings.texts(db), await db.rows(_ALL)
    result = {"playlists": len(monitors), "failed": 0, "added": 0, "queued": 0}
    for number, monitor in enumerate(monitors, 1):
        try:
            items = await youtube.playlist_items(request.app.state.upstream, texts, monitor.playlist_id)
            counts = await store(request, db, monitor.id, items)
            result |= {name: result[name] + counts[name] for name in ("added", "queued")}
            if counts["queued"]:
                await request.app.state.queue.put("download")
        except ApiError:  # gone, private, or the service is down
            result["failed"] += 1
        await report(100 * number // len(monitors), f"{number} of {len(monitors)} playlists")
    return result


async def store(request: Request, db: Db, monitor_id: int, items: Sequence[youtube.PlaylistItem]) -> dict[str, Any]:
    """What came of it: added, artists_created, queued, existing, and the monitor."""
    found = await off_loop(_read_items, items)
    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError):  # somebody has just added one of the videos, or its artist
            async with db.transaction() as connection:
                return await _store_once(connection, request, monitor_id, found)
    async with db.transaction() as connection:
        return await _store_once(connection, request, monitor_id, found)


async def _store_once(
    connection: AsyncConnection, request: Request, monitor_id: int, found: Mapping[str, Entry]
) -> dict[str, Any]:
    monitor = await _find(connection, monitor_id, lock=True)  # another sync of it waits here
    known = await select_among(connection, _VIDEOS, videos.c.youtube_id, list(found))
    new = sorted(found.keys() - known.keys())  # in one order, so that nobody waits for each other
    owners, artists_created = await _artists_of(connection, [found[youtube_id].artist for youtube_id in new])
    owner = {youtube_id: owners[found[youtube_id].artist["name_key"]] for youtube_id in new}
    rows = [{"artist_id": owner[youtube_id].id, **found[youtube_id].video} for youtube_id in new]
    await insert_many(connection, videos, rows)
    inserted = await select_among(connection, _VIDEOS, videos.c.youtube_id, new)
    added = [inserted[youtube_id] for youtube_id in new]
    queued = len(added) if monitor.auto_download else 0
    if queued:
        await _queue(connection, added, owner)
    synced = {"last_synced_at": utcnow(), "video_count": len(found)}
    await connection.execute(update(playlist_monitors).where(playlist_monitors.c.id == monitor_id).values(synced))
    counts = {"added": len(added), "artists_created": artists_created, "queued": queued}
    await audit(connection, request, "playlists.sync", f"playlist:{monitor_id}", **counts)
    await _tell(connection, request, monitor, added, counts)
    shown = monitor_json(await _find(connection, monitor_id))
    return counts | {"existing": len(found) - len(added), "monitor": shown}


async def _artists_of(connection: AsyncConnection, named: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """The artists by `name_key`, and how many of them are new."""
    wanted = {fields["name_key"]: fields for fields in named}
    known = await select_among(connection, _ARTISTS, artists.c.name_key, list(wanted))
    new = sorted(wanted.keys() - known.keys())
    await insert_many(connection, artists, [wanted[key] for key in new])
    return known | await select_among(connection, _ARTISTS, artists.c.name_key, new), len(new)


async def _queue(connection: AsyncConnection, added: Sequence[Any], owner: Mapping[str, Any]) -> None:
    queued = [
        {"video_id": row.id, "active_video_id": row.id, "quality": owner[row.youtube_id].quality} for row in added
    ]
    await insert_many(connection, downloads, queued)


async def _tell(
    connection: AsyncConnection, request: Request, monitor: Any, added: Sequence[Any], counts: Mapping[str, int]
) -> None:
    told = [{"id": row.id, "title": row.title} for row in added]
    if told:
        await events.emit(connection, request, "video.created", {"videos": told})
    if counts["queued"]:
        await events.emit(connection, request, "download.queued", {"videos": told})
    about = {"playlist": {"id": monitor.id, "title": monitor.title}}
    await events.emit(connection, request, "playlist.synced", about | dict(counts))


# Small things


async def _find(db: Db | AsyncConnection, monitor_id: int, *, lock: bool = False) -> Any:
    statement = _ONE_LOCKED if lock else _ONE
    row = (await db.execute(statement, {"monitor_id": monitor_id})).first() if monitor_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, "Playlist not found")
    return row


async def _refuse_duplicate(db: Db | AsyncConnection, playlist_id: str) -> None:
    existing = (await db.execute(_SAME, {"playlist_id": playlist_id})).first()
    if existing is not None:
        shown = {"id": existing.id, "title": existing.title}
        raise ApiError(409, "This playlist is looked through already", monitor=shown)


def _playlist_field(data: Mapping[str, Any]) -> str:
    spelling = text(data, "playlist_id", 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, "playlist_id or url is required")
    playlist_id = youtube.playlist_id_of(spelling)
    if playlist_id is None:
        raise ApiError(400, "Not a playlist on YouTube")
    return playlist_id


def _read_items(items: Sequence[youtube.PlaylistItem]) -> dict[str, Entry]:
    """By `youtube_id`. Takes a fifth of a second for 5000."""
    return {item.youtube_id: Entry(_artist_fields(item), _video_fields(item)) for item in items}


def _artist_fields(item: youtube.PlaylistItem) -> dict[str, Any]:
    """The artist that title or channel name: unmonitored, since nobody asked for more than this video."""
    name = split_title(item.title, item.channel)[0] or UNKNOWN_ARTIST
    try:
        fields = name_fields({"name": name[:255]})
    except ApiError:  # too long when its case is folded
        fields = name_fields({"name": UNKNOWN_ARTIST})
    return {**fields, "folder_path": safe_name(fields["name"]), "monitored": False}


def _video_fields(item: youtube.PlaylistItem) -> dict[str, Any]:
    return youtube_fields(youtube.FoundVideo(**item._asdict(), duration=None, views=None))


def monitor_json(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "playlist_id": row.playlist_id,
        "url": f"https://www.youtube.com/playlist?list={row.playlist_id}",
        "title": row.title,
        "channel": row.channel,
        "auto_download": row.auto_download,
        "video_count": row.video_count,
        "last_synced_at": row.last_synced_at.isoformat() if row.last_synced_at else None,
        "created_at": row.created_at.isoformat(),
        "updated_at": row.updated_at.isoformat(),
    }
