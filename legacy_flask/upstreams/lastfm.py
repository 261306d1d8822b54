"""Last.fm: biographies and tags of artists. Its errors come with status 200."""

import re
from html import unescape
from typing import NamedTuple

from . import client, errors
from .errors import LASTFM
from .fields import dig, text, whole

MAX_GENRES = 5
WAIT_S = 1  # what to tell a client; the service does not say

LINK = re.compile(r"<a\s[^<>]*>[^<>]*</a>\.?")  # `Read more on Last.fm`
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Info(NamedTuple):
    """`genres` are its tags, the most frequent first."""

    bio: str | None
    genres: list[str]


def artist_info(texts: dict, name: str) -> Info:
    """What is known about an artist. Raises ApiError 400, 404, 429, 502."""
    key = texts.get("lastfm_api_key", "").strip()
    if not key:
        raise errors.not_configured(LASTFM)
    params = {"method": "artist.getInfo", "artist": name, "autocorrect": "1", "api_key": key, "format": "json"}
    return info_of(client.ask(LASTFM, texts, "", params=params, what="Artist"))


def info_of(answer: dict) -> Info:
    """Raises ApiError for an error that came with status 200."""
    if "error" in answer:
        raise refusal(answer["error"])
    artist = answer.get("artist")
    if not isinstance(artist, dict):
        raise errors.nonsense(LASTFM)
    return Info(bio(dig(artist, "bio", "summary")), genres(dig(artist, "tags", "tag")))


def refusal(code) -> Exception:
    match whole(code):
        case 6:
            return errors.not_found(LASTFM, "Artist")
        case 4 | 9 | 10 | 26:
            return errors.key_refused(LASTFM)
        case 29:
            return errors.asked_to_wait(LASTFM, WAIT_S)
        case 8 | 11 | 16:
            return errors.unavailable(LASTFM)
        case _:
            return errors.nonsense(LASTFM)


def bio(value) -> str | None:
    """Plain text out of HTML."""
    found = text(value, 20_000)
    return text(unescape(TAG.sub("", LINK.sub("", found))), 10_000) if found else None


def genres(value) -> list[str]:
    """A single tag comes without its list."""
    tags = value if isinstance(value, list) else [value]
    names = (text(dig(tag, "name"), 100) for tag in tags)
    return list(dict.fromkeys(name.lower() for name in names if name))[:MAX_GENRES]
