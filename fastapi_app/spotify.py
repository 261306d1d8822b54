"""Spotify: its artists and playlists, brought into the library."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, settings
from .artists import adopt, artist_json, find_artist, name_fields, refuse_duplicates
from .audit import audit
from .db import Db, DbDep
from .discovery import search_term
from .files import safe_name
from .http import ApiError, json_body, json_response, query, query_int, read, success, text
from .identity import Member, Reader
from .models import artists, name_key
from .upstreams import spotify
from .upstreams.spotify import Spotify

router = APIRouter(prefix="/api/spotify", tags=["spotify"])

ATTEMPTS = 5  # at storing artists that others store at the same time
AT_ONCE = 500  # values in one query

_KNOWN = select(artists.c.id, artists.c.name, artists.c.spotify_id, artists.c.name_key)


@read(router, "/status", name="spotify.status")
async def status(request: Request, db: DbDep, _: Reader) -> Response:
    service, texts = _service(request), await settings.texts(db)
    await db.close()
    spotify.credentials(texts)
    error = None
    try:
        await service.token(texts)
    except ApiError as problem:
        error = problem.message
    breaker = service.breaker_state(texts)
    return json_response({"configured": True, "token_valid": error is None, "error": error, "breaker": breaker})


@read(router, "/artists", name="spotify.search_artists")
async def search_artists(request: Request, db: DbDep, _: Member) -> Response:
    term, limit = search_term(request), query_int(query(request), "limit")
    texts = await settings.texts(db)
    await db.close()
    most = 20 if limit is None else min(max(limit, 1), spotify.AT_ONCE)
    found = await _service(request).search_artists(texts, term, most)
    by_id, by_name = await _known_artists(db, {artist.spotify_id: artist.name for artist in found})
    shown = []
    for artist in found:
        known = by_id.get(artist.spotify_id) or by_name.get(name_key(artist.name))
        mark = {"already_have": known is not None, "artist_id": known.id if known else None}
        shown.append(artist._asdict() | mark)
    return json_response({"artists": shown, "count": len(shown), "query": term})


@router.post("/artists/import", name="spotify.import_artist")
async def import_artist(request: Request, db: DbDep, _: Member) -> Response:
    """An artist with genres, and with the picture if that can be had."""
    data = await json_body(request)
    spotify_id = _id_field(data, "spotify_id", "artist")
    flags = {field: bool(data[field]) for field in ("monitored", "auto_download") if field in data}
    await refuse_duplicates(db, {"spotify_id": spotify_id})
    texts = await settings.texts(db)
    await db.close()
    found = await _service(request).artist(texts, spotify_id)
    fields = {"spotify_id": spotify_id, "genres": found.genres, "thumbnail_url": found.image_url}
    artist_id = await adopt(request, db, name_fields({"name": found.name}) | fields | flags, source="spotify")
    return success("Artist imported", 201, artist=artist_json(await find_artist(db, artist_id)))


@router.post("/playlists/import", name="spotify.import_playlist")
async def import_playlist(request: Request, db: DbDep, _: Member) -> Response:
    """All artists of a playlist, as far as the library does not have them."""
    playlist_id = _id_field(await json_body(request), "playlist_id", "playlist")
    texts = await settings.texts(db)
    await db.close()
    entries = await _service(request).playlist_artists(texts, playlist_id)
    imported, failed = await store(request, db, playlist_id, entries.artists)
    return success(
        f"{len(imported)} artists imported",
        207 if failed else 201 if imported else 200,
        playlist_id=playlist_id,
        imported=imported,
        existing=len(entries.artists) - len(imported) - len(failed),
        failed=failed,
        read=entries.read,
        total=entries.total,
    )


async def store(
    request: Request, db: Db, playlist_id: str, found: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The artists that were stored, all or none of the missing ones; and those that cannot be, with the reason."""

    async def attempt() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with db.transaction() as connection:
            imported, failed = await _insert_missing(connection, found)
            counts = {"imported": len(imported), "failed": len(failed)}
            await audit(connection, request, "spotify.import_playlist", f"playlist:{playlist_id}", **counts)
            if imported:
                told = {"artists": imported, "source": "spotify", "playlist_id": playlist_id}
                await events.emit(connection, request, "artist.imported", told)
        return imported, failed

    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError):  # somebody has just added one of them
            return await attempt()
    return await attempt()


async def _insert_missing(
    connection: AsyncConnection, found: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_id, by_name = await _known_artists(connection, found)
    rows: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    taken = {key: row.spotify_id for key, row in by_name.items()}
    for spotify_id, name in found.items():
        if spotify_id in by_id:
            continue
        try:
            fields = name_fields({"name": name})
        except ApiError as error:
            refused[spotify_id] = error.message
            continue
        key = fields["name_key"]
        if key not in taken:
            rows[spotify_id] = fields | {"spotify_id": spotify_id, "folder_path": safe_name(name)}
            taken[key] = spotify_id
        elif taken[key] not in (None, spotify_id):
            refused[spotify_id] = "An artist with this name already exists"
    if rows:
        ordered = sorted(rows.values(), key=lambda row: str(row["name_key"]))  # so that nobody waits for each other
        await connection.execute(insert(artists), ordered)
    stored, _ = await _known_artists(connection, {spotify_id: found[spotify_id] for spotify_id in rows})
    imported = [{"id": stored[spotify_id].id, "name": stored[spotify_id].name} for spotify_id in rows]
    return imported, [{"spotify_id": key, "name": found[key], "error": error} for key, error in refused.items()]


# Small things


async def _known_artists(db: Db | AsyncConnection, found: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of the artists that the library has: by their id on Spotify, and by `name_key`."""
    ids, names = list(found), [name_key(name) for name in found.values()]
    by_id: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    for start in range(0, len(found), AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        same_id = await db.execute(_KNOWN.where(artists.c.spotify_id.in_(ids[chunk])))
        by_id |= {row.spotify_id: row for row in same_id}
        same_name = await db.execute(_KNOWN.where(artists.c.name_key.in_(names[chunk])))
        by_name |= {row.name_key: row for row in same_name}
    return by_id, by_name


def _id_field(data: Mapping[str, Any], field: str, kind: str) -> str:
    spelling = text(data, field, 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, f"{field} or url is required")
    spotify_id = spotify.id_of(spelling, kind)
    if spotify_id is None:
        raise ApiError(400, f"Not a Spotify {kind}")
    return spotify_id


def _service(request: Request) -> Spotify:
    service: Spotify = request.app.state.spotify
    return service
