"""Spotify: its artists and playlists, brought into the library."""

from flask import Blueprint, jsonify
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from . import events, settings
from .artists import adopt, artist_json, count_videos, name_fields, refuse_duplicates
from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .discovery import search_term
from .files import safe_name
from .http import ApiError, find_or_404, json_body, query_int, success, text
from .models import Artist, name_key
from .upstreams import spotify

bp = Blueprint("spotify", __name__, url_prefix="/api/spotify")

ATTEMPTS = 5  # at storing artists that others store at the same time
AT_ONCE = 500  # values in one query


@bp.get("/status")
@role_required("readonly")
def status():
    texts = settings.texts(get_session())
    spotify.credentials(texts)
    try:
        spotify.token(texts)
        error = None
    except ApiError as problem:
        error = problem.message
    breaker = spotify.breaker_state(texts)
    return jsonify(configured=True, token_valid=error is None, error=error, breaker=breaker)


@bp.get("/artists")
@role_required("user")
def search_artists():
    query, limit = search_term(), min(max(query_int("limit", 20), 1), spotify.AT_ONCE)
    db = get_session()
    found = spotify.search_artists(settings.texts(db), query, limit)
    by_id, by_name = known_artists(db, {artist.spotify_id: artist.name for artist in found})
    shown = []
    for artist in found:
        known = by_id.get(artist.spotify_id) or by_name.get(name_key(artist.name))
        mark = {"already_have": known is not None, "artist_id": known.id if known else None}
        shown.append(artist._asdict() | mark)
    return jsonify(artists=shown, count=len(shown), query=query)


@bp.post("/artists/import")
@role_required("user")
def import_artist():
    """An artist with genres, and with the picture if that can be had."""
    data = json_body()
    spotify_id = id_field(data, "spotify_id", "artist")
    flags = {field: bool(data[field]) for field in ("monitored", "auto_download") if field in data}
    db = get_session()
    refuse_duplicates(db, {"spotify_id": spotify_id})
    found = spotify.artist(settings.texts(db), spotify_id)
    fields = {"spotify_id": spotify_id, "genres": found.genres, "thumbnail_url": found.image_url}
    artist_id = adopt(name_fields({"name": found.name}) | fields | flags, source="spotify")
    db = get_session()
    artist = find_or_404(db, Artist, artist_id)
    return success("Artist imported", 201, artist=artist_json(artist, count_videos(db, artist)))


@bp.post("/playlists/import")
@role_required("user")
def import_playlist():
    """All artists of a playlist, as far as the library does not have them."""
    playlist_id = id_field(json_body(), "playlist_id", "playlist")
    entries = spotify.playlist_artists(settings.texts(get_session()), playlist_id)
    imported, failed = store(playlist_id, entries.artists)
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


def store(playlist_id: str, found: dict[str, str]) -> tuple[list[dict], list[dict]]:
    """The artists that were stored, all or none of the missing ones; and those that cannot be, with the reason."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction() as db:
                imported, failed = insert_missing(db, found)
                target = f"playlist:{playlist_id}"
                audit(db, "spotify.import_playlist", target, imported=len(imported), failed=len(failed))
                if imported:
                    told = {"artists": imported, "source": "spotify", "playlist_id": playlist_id}
                    events.emit(db, "artist.imported", told)
            return imported, failed
        except IntegrityError:  # somebody has just added one of them
            if attempt == ATTEMPTS:
                raise


def insert_missing(db, found: dict[str, str]) -> tuple[list[dict], list[dict]]:
    by_id, by_name = known_artists(db, found)
    rows, refused = {}, {}
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
            rows[spotify_id] = Artist(**fields, spotify_id=spotify_id, folder_path=safe_name(name))
            taken[key] = spotify_id
        elif taken[key] not in (None, spotify_id):
            refused[spotify_id] = "An artist with this name already exists"
    db.add_all(sorted(rows.values(), key=lambda row: row.name_key))  # in one order, so that nobody waits for each other
    db.flush()
    imported = [{"id": row.id, "name": row.name} for row in rows.values()]
    return imported, [{"spotify_id": key, "name": found[key], "error": error} for key, error in refused.items()]


# --- small things ------------------------------------------------------------------------------------------------


def known_artists(db, found: dict[str, str]) -> tuple[dict, dict]:
    """Rows of the artists that the library has: by their id on Spotify, and by `name_key`."""
    columns = select(Artist.id, Artist.spotify_id, Artist.name_key)
    ids, names = list(found), [name_key(name) for name in found.values()]
    by_id, by_name = {}, {}
    for start in range(0, len(found), AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        by_id |= {row.spotify_id: row for row in db.execute(columns.where(Artist.spotify_id.in_(ids[chunk])))}
        by_name |= {row.name_key: row for row in db.execute(columns.where(Artist.name_key.in_(names[chunk])))}
    return by_id, by_name


def id_field(data: dict, field: str, kind: str) -> str:
    spelling = text(data, field, 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, f"{field} or url is required")
    spotify_id = spotify.id_of(spelling, kind)
    if spotify_id is None:
        raise ApiError(400, f"Not a Spotify {kind}")
    return spotify_id
