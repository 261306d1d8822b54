"""Spotify: its artists and playlists, brought into the library."""

from collections.abc import Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import events, settings
from .artists import adopt, artist_json, find_artist, name_fields, refuse_duplicates
from .audit import audit
from .bulk import insert_many, select_among
from .db import Db, DbDep
from .discovery import search_term
from .files import off_loop, safe_name
from .http import ApiError, json_body, json_response, query, query_int, read, success, text
from .identity import Member, Reader
from .models import artists, name_key
from .upstreams import spotify
from .upstreams.spotify import Spotify

router = APIRouter(prefix="/api/spotify", tags=["spotify"])

ATTEMPTS = 5  # at storing artists that others store at the same time

_KNOWN = select(artists.c.id, artists.c.name, artists.c.spotify_id, artists.c.name_key)


@read(router, "/status", name="spotify.status")
async def status(request: Request, db: DbDep, _: Reader) -> Response:
    service, texts = _service(request), await settings.texts(db)
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
    most = 20 if limit is None else min(max(limit, 1), spotify.AT_ONCE)
    found = await _service(request).search_artists(texts, term, most)
    keys = {artist.spotify_id: name_key(artist.name) for artist in found}
    by_id = await select_among(db, _KNOWN, artists.c.spotify_id, list(keys))
    by_name = await select_among(db, _KNOWN, artists.c.name_key, list(keys.values()))
    shown = []
    for artist in found:
        known = by_id.get(artist.spotify_id) or by_name.get(keys[artist.spotify_id])
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
    found = await _service(request).artist(texts, spotify_id)
    fields = {"spotify_id": spotify_id, "genres": found.genres, "thumbnail_url": found.image_url}
    artist_id = await adopt(request, db, name_fields({"name": found.name}) | fields | flags, source="spotify")
    return success("Artist imported", 201, artist=artist_json(await find_artist(db, artist_id)))


@router.post("/playlists/import", name="spotify.import_playlist")
async def import_playlist(request: Request, db: DbDep, _: Member) -> Response:
    """All artists of a playlist, as far as the library does not have them."""
    playlist_id = _id_field(await json_body(request), "playlist_id", "playlist")
    texts = await settings.texts(db)
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

    named, refused = await off_loop(_named, found)

    async def attempt() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with db.transaction() as connection:
            imported, namesakes = await _insert_missing(connection, named)
            why = refused | dict.fromkeys(namesakes, "An artist with this name already exists")
            failed = [{"spotify_id": key, "name": found[key], "error": why[key]} for key in found if key in why]
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
    connection: AsyncConnection, named: Mapping[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The new artists; and the ids of those whose name belongs to somebody else."""
    by_id = await select_among(connection, _KNOWN, artists.c.spotify_id, list(named))
    names = [fields["name_key"] for fields in named.values()]
    by_name = await select_among(connection, _KNOWN, artists.c.name_key, names)
    owners = {key: row.spotify_id for key, row in by_name.items()}
    new, namesakes = [], []
    for spotify_id, fields in named.items():
        key = fields["name_key"]
        if spotify_id in by_id:
            continue
        if key not in owners:
            owners[key] = spotify_id
            new.append(spotify_id)
        elif owners[key] not in (None, spotify_id):
            namesakes.append(spotify_id)
    rows = sorted((named[spotify_id] for spotify_id in new), key=itemgetter("name_key"))  # nobody waits for each other
    await insert_many(connection, artists, rows)
    stored = await select_among(connection, _KNOWN, artists.c.spotify_id, new)
    return [{"id": stored[spotify_id].id, "name": stored[spotify_id].name} for spotify_id in new], namesakes


def _named(found: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The columns of each artist, or why it can have none. 10 000 take 70 ms."""
    named, refused = {}, {}
    for spotify_id, name in found.items():
        try:
            named[spotify_id] = {
                **name_fields({"name": name}),
                "spotify_id": spotify_id,
                "folder_path": safe_name(name),
            }
        except ApiError as error:
            refused[spotify_id] = error.message
    return named, refused


# Small things


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
