"""Last.fm: `artist.getInfo`. Errors come in a 200 answer: 3 method, 6 artist not found, 10 key, 29 rate limit."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .catalogue import artist_named, biography, genres, hex_id, listeners, slug
from .http import KEY, image


async def call(request: Request) -> Response:
    query = request.query_params
    name = query.get("artist", "").strip()
    if query.get("api_key") != KEY:
        return JSONResponse(error(10))
    if query.get("method", "").lower() != "artist.getinfo":
        return JSONResponse(error(3))
    if query.get("format") != "json":
        return Response("<lfm status='ok'></lfm>", media_type="text/xml")
    if not name or name.casefold().startswith("nothing"):
        return JSONResponse(error(6))
    return JSONResponse({"artist": _artist(request, artist_named(name))})


app = Starlette(routes=[Route("/", call)])


def error(code: int) -> dict[str, Any]:
    return {"error": code, "message": _MESSAGES.get(code, "Operation failed"), "links": []}


_MESSAGES = {
    3: "Invalid Method - No method with that name in this package",
    6: "The artist you supplied could not be found",
    10: "Invalid API key - You must be granted a valid key by last.fm",
    11: "Service Offline - This service is temporarily offline. Try again later.",
    29: "Rate limit exceeded",
}
_SIZES = {"small": 34, "medium": 64, "large": 174, "extralarge": 300, "mega": 600}


def _artist(request: Request, name: str) -> dict[str, Any]:
    page, heard = f"https://www.last.fm/music/{slug(name)}", listeners(name)
    link, told = f'<a href="{page}">Read more on Last.fm</a>', biography(name)
    pictures = [{"#text": image(request, slug(name), side, side), "size": size} for size, side in _SIZES.items()]
    return {
        "name": name,
        "mbid": hex_id(name, 32),
        "url": page,
        "image": pictures,
        "streamable": "0",
        "ontour": "0",
        "stats": {"listeners": str(heard), "playcount": str(heard * 31)},
        "similar": {"artist": [{"name": f"{name} Tribute Band", "url": f"{page}-tribute-band", "image": pictures}]},
        "tags": {"tag": [{"name": genre, "url": f"https://www.last.fm/tag/{slug(genre)}"} for genre in genres(name)]},
        "bio": {
            "links": {"link": {"#text": "", "rel": "original", "href": f"{page}/+wiki"}},
            "published": "13 Mar 2008, 03:59",
            "summary": f"{told} {link}",
            "content": f"{told} {link}. User-contributed text is available under the Creative Commons By-SA License.",
        },
    }
