"""Discovery: artists and videos that the library does not have yet."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Column, Select, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, jobs, settings
from .artists import adopt, artist_json, find_artist, name_fields, refuse_duplicates
from .audit import audit
from .db import Db, DbDep, find_or_404
from .http import ApiError, json_body, json_response, query, query_int, read, success, text
from .identity import Manager, Member
from .matching import Wanted, ranked, split_title
from .models import artists, name_key, videos
from .upstreams import imvdb, youtube
from .upstreams.client import UpstreamClient
from .videos import VIDEOS, video_json, youtube_fields

router = APIRouter(prefix="/api/discovery", tags=["discovery"])

MAX_QUERY = 200  # characters
ATTEMPTS = 5  # at storing, when others store the same videos for other artists
AT_ONCE = 100  # artists that are looked up at the same time

Matches = Sequence[tuple[int, youtube.FoundVideo]]  # score and video, the best first
Note = Callable[[AsyncConnection, list[dict[str, Any]]], Awaitable[None]]

_MONITORED = select(artists.c.id, artists.c.name).where(artists.c.monitored).order_by(artists.c.id)
_HOW_MANY = select(func.count()).where(artists.c.monitored)


# Artists


@read(router, "/artists", name="discovery.discover_artists")
async def discover_artists(request: Request, db: DbDep, _: Member) -> Response:
    term = search_term(request)
    texts = await settings.texts(db)
    entities = await imvdb.search_entities(request.app.state.upstream, texts, term)
    shown = await _entities_json(db, entities)
    return json_response({"artists": shown, "count": len(shown), "query": term})


@read(router, "/artists/{imvdb_id}", name="discovery.preview_artist")
async def preview_artist(request: Request, imvdb_id: str, db: DbDep, _: Member) -> Response:
    texts = await settings.texts(db)
    entity, found = await imvdb.entity(request.app.state.upstream, texts, imvdb_id)
    known = await _known_videos(db, videos.c.imvdb_id, [video.imvdb_id for video in found])
    shown = [
        {
            "imvdb_id": video.imvdb_id,
            "title": video.title,
            "year": video.year,
            "image": video.image,
            "already_have": video.imvdb_id in known,
            "video_id": known.get(video.imvdb_id),
        }
        for video in found
    ]
    (told,) = await _entities_json(db, [entity])
    return json_response(told | {"bio": entity.bio, "videos": shown})


@router.post("/artists/import", name="discovery.import_artist")
async def import_artist(request: Request, db: DbDep, _: Member) -> Response:
    """An artist of IMVDb, with the picture if that can be had."""
    data = await json_body(request)
    imvdb_id = text(data, "imvdb_id", 50)
    if imvdb_id is None:
        raise ApiError(400, "imvdb_id is required")
    flags = {field: bool(data[field]) for field in ("monitored", "auto_download") if field in data}
    await refuse_duplicates(db, {"imvdb_id": imvdb_id})
    texts = await settings.texts(db)
    entity, _videos = await imvdb.entity(request.app.state.upstream, texts, imvdb_id)
    found = {"imvdb_id": imvdb_id, "bio": entity.bio, "thumbnail_url": entity.image}
    fields = name_fields({"name": entity.name}) | found | flags
    artist_id = await adopt(request, db, fields, source="imvdb")
    return success("Artist imported", 201, artist=artist_json(await find_artist(db, artist_id)))


async def _entities_json(db: Db, entities: Sequence[imvdb.Entity]) -> list[dict[str, Any]]:
    """With marks on those that the library has, by their id there or by their name."""
    ids, keys = [entity.imvdb_id for entity in entities], [name_key(entity.name) for entity in entities]
    by_id = await _known(db, select(artists.c.imvdb_id, artists.c.id).where(artists.c.imvdb_id.in_(ids)))
    by_name = await _known(db, select(artists.c.name_key, artists.c.id).where(artists.c.name_key.in_(keys)))
    had = [by_id.get(entity.imvdb_id, by_name.get(key)) for entity, key in zip(entities, keys, strict=True)]
    return [
        {
            "imvdb_id": entity.imvdb_id,
            "name": entity.name,
            "image": entity.image,
            "video_count": entity.video_count,
            "already_have": artist_id is not None,
            "artist_id": artist_id,
        }
        for entity, artist_id in zip(entities, had, strict=True)
    ]


# Videos


@read(router, "/videos", name="discovery.search_youtube")
async def search_youtube(request: Request, db: DbDep, _: Member) -> Response:
    term, most = search_term(request), query_int(query(request), "max_results")
    limit = 10 if most is None else min(max(most, 1), youtube.AT_ONCE)
    texts = await settings.texts(db)
    found = await youtube.search_videos(request.app.state.upstream, texts, term, limit)
    known = await _known_videos(db, videos.c.youtube_id, [video.youtube_id for video in found])
    shown = [_found_json(video, known) for video in found]
    return json_response({"videos": shown, "count": len(shown), "query": term})


def _found_json(video: youtube.FoundVideo, known: Mapping[str, int]) -> dict[str, Any]:
    artist, song = split_title(video.title, video.channel)
    return {
        "youtube_id": video.youtube_id,
        "url": youtube.watch_url(video.youtube_id),
        "title": video.title,
        "artist": artist,
        "song": song,
        "channel": video.channel,
        "year": video.year,
        "duration": video.duration,
        "views": video.views,
        "thumbnail_url": video.thumbnail_url,
        "already_have": video.youtube_id in known,
        "video_id": known.get(video.youtube_id),
    }


@router.post("/artist/{artist_id:digits}", name="discovery.discover_for_artist")
async def discover_for_artist(request: Request, artist_id: int, db: DbDep, _: Member) -> Response:
    """Store the best new videos of an artist as WANTED."""
    artist = await find_or_404(db, artists, artist_id)
    texts = await settings.texts(db)
    found, matches = await _search(request.app.state.upstream, texts, artist.name)
    about: dict[str, Any] = {"artist": {"id": artist_id, "name": artist.name}, "found": found, "matched": len(matches)}

    async def note(connection: AsyncConnection, stored: list[dict[str, Any]]) -> None:
        await audit(connection, request, "discovery.artist", f"artist:{artist_id}", stored=len(stored))
        await events.emit(connection, request, "discovery.completed", about | {"stored": len(stored)})

    stored = await _store(request, db, artist_id, matches, _most(texts), note)
    return success(f"{len(stored)} new videos found", stored=len(stored), videos=stored, **about)


@router.post("/all", name="discovery.discover_all")
async def discover_all(request: Request, db: DbDep, _: Manager) -> Response:
    return success("Discovery started", 202, job_id=await start_all(request, db))


async def start_all(request: Request, db: Db, max_videos: int | None = None, job_id: str = "") -> str:
    """Have new videos of all monitored artists looked for, `max_videos` of each; the job's id.

    Raises ApiError 400 without a key, 409 while such a job is running.
    """
    texts = await settings.texts(db)
    youtube.key_of(texts)
    arguments = {"max_videos": _most(texts) if max_videos is None else max_videos}
    busy, number = "Discovery is running already", await db.scalar(_HOW_MANY)
    return await jobs.start(request, "discovery", arguments, busy=busy, job_id=job_id, artists=number)


async def discover(request: Request, arguments: Mapping[str, Any], report: jobs.Report) -> dict[str, Any]:
    """Look many artists up at the same time, store what they have one after the other: at most `max_videos` of each."""
    db, gate = Db(request.app.state.database), asyncio.Semaphore(AT_ONCE)
    texts, monitored, limit = await settings.texts(db), await db.rows(_MONITORED), arguments["max_videos"]
    result = {"artists": len(monitored), "failed": 0, "stored": 0}

    async def look_up(name: str) -> Matches | ApiError:
        async with gate:
            try:
                return (await _search(request.app.state.upstream, texts, name))[1]
            except ApiError as error:
                return error

    async with asyncio.TaskGroup() as group:
        searches = [group.create_task(look_up(artist.name)) for artist in monitored]
        for number, (artist, search) in enumerate(zip(monitored, searches, strict=True), 1):
            matches = await search
            try:
                if isinstance(matches, ApiError):
                    raise matches
                result["stored"] += len(await _store(request, db, artist.id, matches, limit))
            except ApiError:
                result["failed"] += 1
            await report(100 * number // len(monitored), f"{number} of {len(monitored)} artists")
    async with db.transaction() as connection:
        await events.emit(connection, request, "discovery.completed", result)
    return result


async def _search(client: UpstreamClient, texts: Mapping[str, str], artist_name: str) -> tuple[int, Matches]:
    """How many videos there are of an artist, and those that are good enough."""
    found = await youtube.search_videos(client, texts, f"{artist_name} official music video")
    return len(found), ranked(Wanted(artist_name), found, settings.as_number(texts["discovery_threshold"], 60))


def _most(texts: Mapping[str, str]) -> int:
    """New videos of one artist at a time."""
    return min(int(settings.as_number(texts["discovery_max_videos"], 10)), youtube.AT_ONCE)


async def _store(
    request: Request, db: Db, artist_id: int, matches: Matches, limit: int, note: Note | None = None
) -> list[dict[str, Any]]:
    """The best ones that nobody has stored yet, stored now as WANTED; `note` is part of the transaction."""

    async def attempt() -> list[dict[str, Any]]:
        async with db.transaction() as connection:
            stored = await _insert_new(connection, request, artist_id, matches, limit)
            if note:
                await note(connection, stored)
        return stored

    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError):  # they were found for another artist, too, who was quicker
            return await attempt()
    return await attempt()


async def _insert_new(
    connection: AsyncConnection, request: Request, artist_id: int, matches: Matches, limit: int
) -> list[dict[str, Any]]:
    await find_or_404(connection, artists, artist_id, lock=True)
    known = await _known_videos(connection, videos.c.youtube_id, [video.youtube_id for _, video in matches])
    new = [(score, video) for score, video in matches if video.youtube_id not in known][:limit]
    if not new:
        return []
    rows = [{"artist_id": artist_id, **youtube_fields(video)} for _, video in new]
    rows.sort(key=itemgetter("youtube_id"))  # in one order, so that nobody waits for each other
    await connection.execute(insert(videos), rows)
    ids = [row["youtube_id"] for row in rows]
    inserted = await connection.execute(VIDEOS.where(videos.c.youtube_id.in_(ids)))
    by_id = {row.youtube_id: video_json(row) for row in inserted}
    stored = [by_id[video.youtube_id] | {"score": score} for score, video in new]
    told = {"videos": [{"id": row["id"], "title": row["title"]} for row in stored]}
    await events.emit(connection, request, "video.created", told)
    return stored


# Small things


def search_term(request: Request) -> str:
    term = query(request).get("q", "").strip()
    if not term:
        raise ApiError(400, "q is required")
    if len(term) > MAX_QUERY:
        raise ApiError(400, f"q is too long: at most {MAX_QUERY} characters")
    return term


async def _known_videos(db: Db | AsyncConnection, column: Column[Any], values: Sequence[str]) -> dict[str, int]:
    """Ids of the videos that have one of these values."""
    return await _known(db, select(column, videos.c.id).where(column.in_(values)))


async def _known(db: Db | AsyncConnection, pairs: Select[tuple[Any, int]]) -> dict[str, int]:
    return {row[0]: row[1] for row in await db.execute(pairs)}
