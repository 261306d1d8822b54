"""IMVDb, API v1. Its ids are numbers; `/entity/` takes slugs, too, and gives them back as `id`."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .catalogue import WITHOUT_VIDEOS, Song, artist_in, artist_named, biography, chance, slug, song_with, songs
from .http import KEY, image, number

_PAGE = 25
_NUMBERED = {"634": "Michel Gondry"}  # the one entity here that has a number like all of theirs


async def search_videos(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    artist, title = artist_in(request.query_params.get("q", ""))
    known = songs(artist) if artist and not artist.casefold().startswith("nothing") else ()
    found = [song for song in known if title and slug(song.title) == title] or list(known)
    return _page(request, [_video(request, song) for song in found])


async def search_entities(request: Request) -> Response:
    """The artist, and two others whose names are like it."""
    if (refused := _refused(request)) is not None:
        return refused
    artist, _ = artist_in(request.query_params.get("q", ""))
    if not artist or artist.casefold().startswith("nothing"):
        return _page(request, [])
    names = [artist_named(artist), f"{artist} Tribute Band", f"DJ {artist}"]
    return _page(request, [_entity(request, name) for name in names])


async def entity(request: Request) -> Response:
    """With `include=artist_videos` also the videos."""
    if (refused := _refused(request)) is not None:
        return refused
    some_id = request.path_params["id"]
    if some_id.startswith("none"):
        return JSONResponse(error(404), 404)
    name = _NUMBERED.get(some_id) or artist_named(some_id)
    known = songs(name)
    told = _entity(request, name, some_id)
    if "artist_videos" in request.query_params.get("include", ""):
        told["artist_videos"] = {
            "total_videos": len(known),
            "videos": [_video(request, song) for song in known],
        }
    return JSONResponse(told)


async def video(request: Request) -> Response:
    """With `include=sources,credits` also where it is, and who made it."""
    if (refused := _refused(request)) is not None:
        return refused
    song = song_with(request.path_params["id"])
    if song is None or str(song.imvdb_id) != request.path_params["id"]:
        return JSONResponse(error(404), 404)
    director = {
        "position_name": "Director",
        "position_code": "dir",
        "entity_name": song.director,
        "entity_slug": slug(song.director),
        "entity_id": 100 + chance(song.director, 9000),
        "entity_url": f"https://imvdb.com/n/{slug(song.director)}",
        "position_notes": None,
        "position_id": 1000 + song.number,
    }
    told = _video(request, song) | {"directors": [director]}
    included = request.query_params.get("include", "")
    if "sources" in included:
        told["sources"] = [
            {
                "source": "vimeo",
                "source_slug": "vimeo",
                "source_data": str(chance(song.title, 10**8)),
                "is_primary": False,
            },
            {"source": "youtube", "source_slug": "youtube", "source_data": song.youtube_id, "is_primary": True},
        ]
    if "credits" in included:
        editor = director | {"position_name": "Editor", "position_code": "edit", "entity_name": "Ed Cutter"}
        told["credits"] = {"total_credits": 2, "crew": [director, editor], "cast": []}
    return JSONResponse(told)


app = Starlette(
    routes=[
        Route("/search/videos", search_videos),
        Route("/search/entities", search_entities),
        Route("/entity/{id}", entity),
        Route("/video/{id}", video),
    ]
)


def error(status: int) -> dict[str, Any]:
    return {"status": "error", "code": status, "message": _MESSAGES.get(status, "Something went wrong")}


_MESSAGES = {401: "Invalid app key", 404: "Not found", 429: "Rate limit exceeded"}


def _entity(request: Request, name: str, some_id: str = "") -> dict[str, Any]:
    quiet = name == WITHOUT_VIDEOS
    numbers = [int(key) for key, numbered in _NUMBERED.items() if numbered == name]
    return {
        "id": numbers[0] if numbers else some_id or slug(name),
        "name": name,
        "slug": slug(name),
        "url": f"https://imvdb.com/n/{slug(name)}",
        "discogs_id": chance(f"{name} discogs", 10**6),
        "byline": "Artist",
        "bio": biography(name) or None,
        "image": None if quiet else image(request, slug(name), 600, 600),
        "artist_video_count": len(songs(name)),
        "featured_video_count": 0,
    }


def _video(request: Request, song: Song) -> dict[str, Any]:
    return {
        "id": song.imvdb_id,
        "production_status": "r",
        "song_title": song.title,
        "song_slug": slug(song.title),
        "url": f"https://imvdb.com/video/{slug(song.artist)}/{slug(song.title)}",
        "multiple_versions": False,
        "version_name": None,
        "version_number": 1,
        "is_imvdb_pick": False,
        "aspect_ratio": None,
        "year": song.year,
        "verified_credits": False,
        "artists": [
            {
                "name": song.artist,
                "slug": slug(song.artist),
                "url": f"https://imvdb.com/n/{slug(song.artist)}",
                "discogs_id": chance(f"{song.artist} discogs", 10**6),
            }
        ],
        "image": {
            size: image(request, f"{slug(song.artist)}-{slug(song.title)}", width, height)
            for size, (width, height) in (("o", (1280, 720)), ("l", (640, 360)), ("b", (320, 180)), ("t", (125, 70)))
        },
    }


def _page(request: Request, found: list[dict[str, Any]]) -> Response:
    size, page = number(request, "per_page", _PAGE, 50), number(request, "page", 1, 10**6)
    return JSONResponse(
        {
            "total_results": len(found),
            "current_page": page,
            "per_page": size,
            "total_pages": -(-len(found) // size),
            "results": found[(page - 1) * size : page * size],
        }
    )


def _refused(request: Request) -> Response | None:
    return None if request.headers.get("imvdb-app-key") == KEY else JSONResponse(error(401), 401)
