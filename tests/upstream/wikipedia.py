"""Wikipedia's Action API: `list=search`, and `prop=pageimages|extracts` by titles. 403 without a User-Agent."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .catalogue import WITHOUT_VIDEOS, artist_in, artist_named, biography, chance, slug
from .http import image, number


async def call(request: Request) -> Response:
    query = request.query_params
    if not request.headers.get("user-agent"):
        return PlainTextResponse("Please set a user-agent and respect our robot policy https://w.wiki/4wJS.\n", 403)
    if query.get("action") != "query":
        return JSONResponse(error(400))
    told: dict[str, Any] = {"batchcomplete": True if _second(request) else ""}
    if query.get("list") == "search":
        told["query"] = _search(request)
    if query.get("prop"):
        pages = [_page(request, title) for title in query.get("titles", "").split("|") if title]
        keyed: dict[str, Any] = {}
        for number_, page in enumerate(pages, 1):
            keyed[str(page.get("pageid", -number_))] = page
        told["query"] = told.get("query", {}) | {"pages": pages if _second(request) else keyed}
    return JSONResponse(told)


app = Starlette(routes=[Route("/", call)])


def error(status: int) -> dict[str, Any]:
    """Theirs come in a 200 answer, too."""
    return {"error": {"code": "badvalue" if status == 400 else "internal_api_error", "info": "Something went wrong."}}


def _search(request: Request) -> dict[str, Any]:
    artist, _ = artist_in(request.query_params.get("srsearch", "").replace(" (band)", "").replace(" musician", ""))
    known = artist and not artist.casefold().startswith("nothing")
    titles = [artist_named(artist), f"{artist} discography", f"List of songs recorded by {artist}"] if known else []
    found = [
        {
            "ns": 0,
            "title": title,
            "pageid": _page_id(title),
            "size": 1000 + chance(title, 90_000),
            "wordcount": 100 + chance(title, 9000),
            "snippet": f'<span class="searchmatch">{artist}</span> is known for music videos',
            "timestamp": "2025-06-01T12:00:00Z",
        }
        for title in titles
    ]
    return {"searchinfo": {"totalhits": len(found)}, "search": found[: number(request, "srlimit", 10, 500)]}


def _page(request: Request, title: str) -> dict[str, Any]:
    if title.casefold().startswith("nothing"):
        return {"ns": 0, "title": title, "missing": True if _second(request) else ""}
    page: dict[str, Any] = {"pageid": _page_id(title), "ns": 0, "title": title}
    prop = request.query_params.get("prop", "")
    if "pageimages" in prop and title != WITHOUT_VIDEOS:
        width = number(request, "pithumbsize", 50, 2000)
        page["thumbnail"] = {"source": image(request, slug(title), width, width), "width": width, "height": width}
        page["pageimage"] = f"{title.replace(' ', '_')}_2013.jpg"
    if "extracts" in prop:
        page["extract"] = biography(title)
    return page


def _page_id(title: str) -> int:
    return 1000 + chance(title, 10**7)


def _second(request: Request) -> bool:
    return request.query_params.get("formatversion") == "2"
