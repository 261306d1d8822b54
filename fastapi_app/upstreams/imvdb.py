"""IMVDb: artists, and videos with their directors. About one call a second is welcome."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from . import errors
from .ask import ask
from .client import UpstreamClient
from .errors import IMVDB
from .fields import address, dig, identifier, records, text, whole, year

_ID = re.compile(r"[\w-]{1,50}")

Texts = Mapping[str, str]


class Entity(NamedTuple):
    """An artist. `video_count` is None where the service does not say."""

    imvdb_id: str
    name: str
    bio: str | None
    image: str | None
    video_count: int | None


class FoundVideo(NamedTuple):
    """A video; directors and `youtube_id` only come with `video`."""

    imvdb_id: str
    title: str
    artists: list[str]
    year: int | None
    image: str | None
    directors: list[str]
    youtube_id: str | None


async def search_entities(client: UpstreamClient, texts: Texts, query: str) -> list[Entity]:
    """Artists whose names are like the query, each once. Raises ApiError 400, 429, 502."""
    answer = await _ask(client, texts, "/search/entities", {"q": query})
    found = filter(None, map(_entity_of, records(IMVDB, answer.get("results"))))
    return list({entity.imvdb_id: entity for entity in found}.values())


async def entity(client: UpstreamClient, texts: Texts, imvdb_id: str) -> tuple[Entity, list[FoundVideo]]:
    """An artist, under the id that was asked for, and the videos. Raises ApiError 400, 404, 429, 502."""
    params = {"include": "artist_videos"}
    answer = await _ask(client, texts, f"/entity/{_in_path(imvdb_id, 'Artist')}", params, "Artist")
    found = _entity_of(answer)
    if found is None:
        raise errors.nonsense(IMVDB)
    return found._replace(imvdb_id=imvdb_id), _videos_of(dig(answer, "artist_videos", "videos") or [])


async def search_videos(client: UpstreamClient, texts: Texts, query: str) -> list[FoundVideo]:
    """Raises ApiError 400, 429, 502."""
    answer = await _ask(client, texts, "/search/videos", {"q": query})
    return _videos_of(answer.get("results"))


async def video(client: UpstreamClient, texts: Texts, imvdb_id: str) -> FoundVideo:
    """Raises ApiError 400, 404, 429, 502."""
    params = {"include": "sources,credits"}
    answer = await _ask(client, texts, f"/video/{_in_path(imvdb_id, 'Video')}", params, "Video")
    found = _video_of(answer)
    if found is None:
        raise errors.nonsense(IMVDB)
    return found._replace(imvdb_id=imvdb_id)


def key_of(texts: Texts) -> str:
    """Raises ApiError 400 when there is none."""
    key = texts.get("imvdb_api_key", "").strip()
    if not key:
        raise errors.not_configured(IMVDB)
    return key


async def _ask(
    client: UpstreamClient, texts: Texts, path: str, params: Mapping[str, str], what: str = ""
) -> dict[str, Any]:
    key = key_of(texts)
    headers = {"IMVDB-APP-KEY": key}
    answer: dict[str, Any] = await ask(client, IMVDB, texts, path, params=params, headers=headers, what=what)
    return answer


def _in_path(imvdb_id: str, what: str) -> str:
    """What is no id there can only be unknown, and must not lead to another path."""
    if not _ID.fullmatch(imvdb_id):
        raise errors.not_found(IMVDB, what)
    return quote(imvdb_id)


# Out of its answers


def _entity_of(item: Mapping[str, Any]) -> Entity | None:
    imvdb_id, name = identifier(item.get("id"), 50), text(item.get("name"), 255)
    if not (imvdb_id and name):
        return None
    count = whole(item.get("artist_video_count"))
    return Entity(imvdb_id, name, text(item.get("bio"), 10_000), _picture(item.get("image")), count)


def _videos_of(value: Any) -> list[FoundVideo]:
    found = filter(None, map(_video_of, records(IMVDB, value)))
    return list({video.imvdb_id: video for video in found}.values())


def _video_of(item: Mapping[str, Any]) -> FoundVideo | None:
    imvdb_id, title = identifier(item.get("id"), 50), text(item.get("song_title"), 500)
    if not (imvdb_id and title):
        return None
    return FoundVideo(
        imvdb_id=imvdb_id,
        title=title,
        artists=_names(item.get("artists"), "name"),
        year=year(item.get("year")),
        image=_picture(item.get("image")),
        directors=_names(item.get("directors"), "entity_name"),
        youtube_id=_youtube_id(item.get("sources")),
    )


def _names(value: Any, field: str) -> list[str]:
    names = (text(dig(item, field), 100) for item in value) if isinstance(value, list) else ()
    return list(dict.fromkeys(name for name in names if name))


def _youtube_id(sources: Any) -> str | None:
    """Of several the one that comes first."""
    for source in sources if isinstance(sources, list) else ():
        found = dig(source, "source_data")
        if (
            dig(source, "source") == "youtube"
            and isinstance(found, str)
            and re.fullmatch(r"[\w-]{11}", found, re.ASCII)
        ):
            return found
    return None


def _picture(value: Any) -> str | None:
    """An address, or the largest of several by the letter of their size."""
    sizes = [value.get(size) for size in "olbts"] if isinstance(value, Mapping) else [value]
    return next(filter(None, map(address, sizes)), None)
