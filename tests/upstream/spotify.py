"""Spotify: the token and the Web API. The id of an artist is a slug; a track without an id is a local file.

A wrong client is a 400 `invalid_client`, a wrong token a 401. Tokens say that they are good for an hour; they are good
for ever. The dials `{"fail_first": 1, "status": 401}` show what an expired one is like.
"""

import base64
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .catalogue import (
    WITHOUT_VIDEOS,
    Song,
    all_songs,
    artist_in,
    artist_named,
    chance,
    genres,
    hex_id,
    listeners,
    slug,
    songs,
)
from .http import SPOTIFY_ID, SPOTIFY_SECRET, image, number

_TOKEN = "demo-token-"
_LONG = 120
_PAGE = 100
_ids = count(1)


async def token(request: Request) -> Response:
    form = dict(parse_qsl((await request.body()).decode(errors="replace")))
    client = base64.b64encode(f"{SPOTIFY_ID}:{SPOTIFY_SECRET}".encode()).decode()
    if request.headers.get("authorization") != f"Basic {client}":
        return JSONResponse({"error": "invalid_client", "error_description": "Invalid client secret"}, 400)
    if form.get("grant_type") != "client_credentials":
        return JSONResponse({"error": "unsupported_grant_type", "error_description": "grant_type is missing"}, 400)
    return JSONResponse({"access_token": f"{_TOKEN}{next(_ids)}", "token_type": "Bearer", "expires_in": 3600})


async def search(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    query = request.query_params.get("q", "")
    if not query:
        return JSONResponse(error(400), 400)
    artist, _ = artist_in(query)
    names = [artist_named(artist), f"{artist} Tribute Band", f"{artist} Karaoke", f"DJ {artist}"]
    found = [] if not artist or artist.casefold().startswith("nothing") else [_artist(request, name) for name in names]
    return JSONResponse({"artists": _paged(request, found, 20)})


async def artist(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    some_id = request.path_params["id"]
    if some_id.startswith("none"):
        return JSONResponse(error(404), 404)
    return JSONResponse(_artist(request, artist_named(some_id)))


async def top_tracks(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    some_id = request.path_params["id"]
    if some_id.startswith("none"):
        return JSONResponse(error(404), 404)
    return JSONResponse({"tracks": [_track(request, song) for song in songs(artist_named(some_id))]})


async def playlist_tracks(request: Request) -> Response:
    """`fields` is understood as far as no more than asked for is given at the top: `items(…),next,total`."""
    if (refused := _refused(request)) is not None:
        return refused
    name = request.path_params["id"]
    if name.startswith(("none", "priv")):
        return JSONResponse(error(404), 404)
    page = _paged(request, _listed(request, name), _PAGE)
    fields = request.query_params.get("fields", "")
    return JSONResponse({key: value for key, value in page.items() if not fields or key in fields})


token_app = Starlette(routes=[Route("/", token, methods=["POST"])])
app = Starlette(
    routes=[
        Route("/search", search),
        Route("/artists/{id}", artist),
        Route("/artists/{id}/top-tracks", top_tracks),
        Route("/playlists/{id}/tracks", playlist_tracks),
    ]
)


def error(status: int) -> dict[str, Any]:
    return {"error": {"status": status, "message": _MESSAGES.get(status, "Something went wrong")}}


_MESSAGES = {
    400: "No search query",
    401: "The access token expired",
    404: "Resource not found",
    429: "API rate limit exceeded",
}


def token_error(status: int) -> dict[str, Any]:
    return {"error": "server_error", "error_description": f"Status {status}"}


def _listed(request: Request, playlist: str) -> list[dict[str, Any]]:
    """Songs, among them one that is gone (no track), a local file, an episode of a podcast and a repetition."""
    total = 0 if playlist.startswith("empty") else _LONG if playlist.startswith("long") else 12
    items = [_entry(_track(request, song)) for song in all_songs()[:total]]
    for place in range(total):
        if place % 20 == 3:
            items[place] = _entry(None)
        elif place % 20 == 6:
            items[place] = _entry(_local("Home Recorder", "Kitchen Take"), is_local=True)
        elif place % 20 == 8:
            items[place] = _entry({"id": hex_id("episode"), "name": "Episode 12", "type": "episode", "is_local": False})
        elif place % 20 == 10:
            items[place] = items[0]
    return items


def _entry(track: dict[str, Any] | None, is_local: bool = False) -> dict[str, Any]:
    added = {"added_at": "2023-02-01T10:00:00Z", "added_by": {"id": "a-fan", "type": "user"}, "is_local": is_local}
    return added | {"primary_color": None, "track": track}


def _local(artist: str, title: str) -> dict[str, Any]:
    by: dict[str, Any] = {"name": artist, "id": None, "type": "artist", "uri": None, "href": None, "external_urls": {}}
    return {"id": None, "name": title, "type": "track", "is_local": True, "artists": [by], "duration_ms": 185_000}


def _track(request: Request, song: Song) -> dict[str, Any]:
    some_id = hex_id(f"{song.artist} {song.title}")
    return {
        "id": some_id,
        "name": song.title,
        "type": "track",
        "uri": f"spotify:track:{some_id}",
        "is_local": False,
        "explicit": False,
        "duration_ms": song.seconds * 1000,
        "popularity": chance(some_id, 100),
        "track_number": song.number + 1,
        "artists": [_simple(song.artist)],
        "album": {
            "id": hex_id(f"{song.artist} {song.year} album"),
            "name": f"{song.title} (Single)",
            "album_type": "single",
            "release_date": str(song.year),
            "release_date_precision": "year",
            "images": _images(request, f"{slug(song.artist)}-{slug(song.title)}"),
            "artists": [_simple(song.artist)],
        },
    }


def _simple(name: str) -> dict[str, Any]:
    some_id = slug(name)
    return {
        "id": some_id,
        "name": name,
        "type": "artist",
        "uri": f"spotify:artist:{some_id}",
        "href": f"https://api.spotify.com/v1/artists/{some_id}",
        "external_urls": {"spotify": f"https://open.spotify.com/artist/{some_id}"},
    }


def _artist(request: Request, name: str) -> dict[str, Any]:
    return _simple(name) | {
        "genres": genres(name),
        "followers": {"href": None, "total": listeners(name)},
        "images": [] if name == WITHOUT_VIDEOS else _images(request, slug(name)),
        "popularity": chance(f"{name} popularity", 100),
    }


def _images(request: Request, name: str) -> list[dict[str, Any]]:
    """Widest first."""
    return [{"url": image(request, name, size, size), "width": size, "height": size} for size in (640, 320, 160)]


def _paged(request: Request, items: list[dict[str, Any]], size: int) -> dict[str, Any]:
    limit, offset = number(request, "limit", size, _PAGE), number(request, "offset", 0, 10**6)

    def link(start: int) -> str:
        return str(
            request.url.replace(path=f"/spotify{request.url.path}").include_query_params(offset=start, limit=limit)
        )

    return {
        "href": link(offset),
        "items": items[offset : offset + limit],
        "limit": limit,
        "next": link(offset + limit) if offset + limit < len(items) else None,
        "offset": offset,
        "previous": link(max(0, offset - limit)) if offset else None,
        "total": len(items),
    }


def _refused(request: Request) -> Response | None:
    given = request.headers.get("authorization", "")
    return None if given.startswith(f"Bearer {_TOKEN}") else JSONResponse(error(401), 401)
