"""Wikipedia: a picture of an artist. It needs no key."""

from collections.abc import Mapping
from typing import Any

from fastapi_app.models import name_key

from .ask import ask
from .client import UpstreamClient
from .errors import WIKIPEDIA
from .fields import address, dig, records, text

PIXELS = 1000  # of the longer side

_COMMON = {"action": "query", "format": "json", "formatversion": "2"}


async def picture(client: UpstreamClient, texts: Mapping[str, str], name: str) -> str | None:
    """The address of a picture of the artist with that name; None when there is none. Raises ApiError 429, 502."""
    wanted = {"list": "search", "srsearch": f"{name} musician", "srlimit": "5"}
    title = _title_of(await ask(client, WIKIPEDIA, texts, "", params=_COMMON | wanted), name)
    if title is None:
        return None
    wanted = {"prop": "pageimages", "titles": title, "piprop": "thumbnail", "pithumbsize": str(PIXELS)}
    return _picture_of(await ask(client, WIKIPEDIA, texts, "", params=_COMMON | wanted))


def _title_of(answer: Mapping[str, Any], name: str) -> str | None:
    """The first page named like the artist; what stands in brackets, as in `Queen (band)`, does not count."""
    for found in records(WIKIPEDIA, dig(answer, "query", "search")):
        title = text(found.get("title"), 300)
        if title and name_key(title.partition(" (")[0]) == name_key(name):
            return title
    return None


def _picture_of(answer: Mapping[str, Any]) -> str | None:
    pages = dig(answer, "query", "pages")
    pages = list(pages.values()) if isinstance(pages, Mapping) else pages  # an object in the old format
    found = (address(dig(page, "thumbnail", "source")) for page in records(WIKIPEDIA, pages))
    return next(filter(None, found), None)
