"""Wikipedia: a picture of an artist. It needs no key."""

from ..models import name_key
from . import client
from .errors import WIKIPEDIA
from .fields import address, dig, records, text

PIXELS = 1000  # of the longer side

COMMON = {"action": "query", "format": "json", "formatversion": "2"}


def picture(texts: dict, name: str) -> str | None:
    """The address of a picture of the artist with that name; None when there is none. Raises ApiError 429, 502."""
    wanted = {"list": "search", "srsearch": f"{name} musician", "srlimit": "5"}
    title = title_of(client.ask(WIKIPEDIA, texts, "", params=COMMON | wanted), name)
    if title is None:
        return None
    wanted = {"prop": "pageimages", "titles": title, "piprop": "thumbnail", "pithumbsize": str(PIXELS)}
    return picture_of(client.ask(WIKIPEDIA, texts, "", params=COMMON | wanted))


def title_of(answer: dict, name: str) -> str | None:
    """The first page named like the artist; what stands in brackets, as in `Queen (band)`, does not count."""
    for found in records(WIKIPEDIA, dig(answer, "query", "search")):
        title = text(found.get("title"), 300)
        if title and name_key(title.partition(" (")[0]) == name_key(name):
            return title
    return None


def picture_of(answer: dict) -> str | None:
    pages = dig(answer, "query", "pages")
    pages = list(pages.values()) if isinstance(pages, dict) else pages  # an object in the old format
    found = (address(dig(page, "thumbnail", "source")) for page in records(WIKIPEDIA, pages))
    return next(filter(None, found), None)
