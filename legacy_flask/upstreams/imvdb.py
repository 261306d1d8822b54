"""IMVDb: artists, and videos with their directors. About one call a second is welcome."""

import re
from typing import NamedTuple
from urllib.parse import quote

from . import client, errors
from .errors import IMVDB
from .fields import address, dig, identifier, records, text, whole, year

ID = re.compile(r"[\w-]{1,50}")


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


def search_entities(texts: dict, query: str) -> list[Entity]:
    """Artists whose names are like the query, each once. Raises ApiError 400, 429, 502."""
    answer = ask(texts, "/search/entities", {"q": query})
    found = filter(None, map(entity_of, records(IMVDB, answer.get("results"))))
    return list({entity.imvdb_id: entity for entity in found}.values())


def entity(texts: dict, imvdb_id: str) -> tuple[Entity, list[FoundVideo]]:
    """An artist, under the id that was asked for, and the videos. Raises ApiError 400, 404, 429, 502."""
    params = {"include": "artist_videos"}
    answer = ask(texts, f"/entity/{in_path(imvdb_id, 'Artist')}", params, "Artist")
    found = entity_of(answer)
    if found is None:
        raise errors.nonsense(IMVDB)
    return found._replace(imvdb_id=imvdb_id), videos_of(dig(answer, "artist_videos", "videos") or [])


def search_videos(texts: dict, query: str) -> list[FoundVideo]:
    """Raises ApiError 400, 429, 502."""
    answer = ask(texts, "/search/videos", {"q": query})
    return videos_of(answer.get("results"))


def video(texts: dict, imvdb_id: str) -> FoundVideo:
    """Raises ApiError 400, 404, 429, 502."""
    params = {"include": "sources,credits"}
    answer = ask(texts, f"/video/{in_path(imvdb_id, 'Video')}", params, "Video")
    found = video_of(answer)
    if found is None:
        raise errors.nonsense(IMVDB)
    return found._replace(imvdb_id=imvdb_id)


def key_of(texts: dict) -> str:
    """Raises ApiError 400 when there is none."""
    key = texts.get("imvdb_api_key", "").strip()
    if not key:
        raise errors.not_configured(IMVDB)
    return key


def ask(texts: dict, path: str, params: dict, what: str = "") -> dict:
    key = key_of(texts)
    headers = {"IMVDB-APP-KEY": key}
    return client.ask(IMVDB, texts, path, params=params, headers=headers, what=what)


def in_path(imvdb_id: str, what: str) -> str:
    """What is no id there can only be unknown, and must not lead to another path."""
    if not ID.fullmatch(imvdb_id):
        raise errors.not_found(IMVDB, what)
    return quote(imvdb_id)


# --- out of its answers ----------------------------------------------------------------------------------------------


def entity_of(item: dict) -> Entity | None:
    imvdb_id, name = identifier(item.get("id"), 50), text(item.get("name"), 255)
    if not (imvdb_id and name):
        return None
    count = whole(item.get("artist_video_count"))
    return Entity(imvdb_id, name, text(item.get("bio"), 10_000), picture(item.get("image")), count)


def videos_of(value) -> list[FoundVideo]:
    found = filter(None, map(video_of, records(IMVDB, value)))
    return list({video.imvdb_id: video for video in found}.values())


def video_of(item: dict) -> FoundVideo | None:
    imvdb_id, title = identifier(item.get("id"), 50), text(item.get("song_title"), 500)
    if not (imvdb_id and title):
        return None
    return FoundVideo(
        imvdb_id=imvdb_id,
        title=title,
        artists=names(item.get("artists"), "name"),
        year=year(item.get("year")),
        image=picture(item.get("image")),
        directors=names(item.get("directors"), "entity_name"),
        youtube_id=youtube_id(item.get("sources")),
    )


def names(value, field: str) -> list[str]:
    names = (text(dig(item, field), 100) for item in value) if isinstance(value, list) else ()
    return list(dict.fromkeys(name for name in names if name))


def youtube_id(sources) -> str | None:
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


def picture(value) -> str | None:
    """An address, or the largest of several by the letter of their size."""
    sizes = [value.get(size) for size in "olbts"] if isinstance(value, dict) else [value]
    return next(filter(None, map(address, sizes)), None)
