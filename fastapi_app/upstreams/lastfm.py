"""Last.fm: biographies and tags of artists. Its errors come with status 200."""

import re
from collections.abc import Mapping
from html import unescape
from typing import Any, NamedTuple

from . import errors
from .ask import ask
from .client import UpstreamClient
from .errors import LASTFM
from .fields import dig, text, whole

MAX_GENRES = 5
WAIT_S = 1  # what to tell a client; the service does not say

_LINK = re.compile(r"<a\s[^<>]*>[^<>]*</a>\.?")  # `Read more on Last.fm`
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Info(NamedTuple):
    """`genres` are its tags, the most frequent first."""

    bio: str | None
    genres: list[str]


async def artist_info(client: UpstreamClient, texts: Mapping[str, str], name: str) -> Info:
    """What is known about an artist. Raises ApiError 400, 404, 429, 502."""
    key = texts.get("lastfm_api_key", "").strip()
    if not key:
        raise errors.not_configured(LASTFM)
    params = {"method": "artist.getInfo", "artist": name, "autocorrect": "1", "api_key": key, "format": "json"}
    return _info_of(await ask(client, LASTFM, texts, "", params=params, what="Artist"))


def _info_of(answer: Mapping[str, Any]) -> Info:
    """Raises ApiError for an error that came with status 200."""
    if "error" in answer:
        raise _refusal(answer["error"])
    artist = answer.get("artist")
    if not isinstance(artist, Mapping):
        raise errors.nonsense(LASTFM)
    return Info(_bio(dig(artist, "bio", "summary")), _genres(dig(artist, "tags", "tag")))


def _refusal(code: Any) -> Exception:
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


def _bio(value: Any) -> str | None:
    """Plain text out of HTML."""
    found = text(value, 20_000)
    return text(unescape(_TAG.sub("", _LINK.sub("", found))), 10_000) if found else None


def _genres(value: Any) -> list[str]:
    """A single tag comes without its list."""
    tags = value if isinstance(value, list) else [value]
    names = (text(dig(tag, "name"), 100) for tag in tags)
    return list(dict.fromkeys(name.lower() for name in names if name))[:MAX_GENRES]
