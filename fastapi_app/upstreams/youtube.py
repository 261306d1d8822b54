"""YouTube Data API v3: search, videos, playlists. A search costs 100 units of 10 000 a day, everything else 1."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from . import errors
from .ask import ask
from .client import UpstreamClient
from .errors import YOUTUBE
from .fields import address, dig, identifier, records, seconds, text, whole, year

AT_ONCE = 50  # records per call; the service gives no more
MAX_PAGES = 100  # of a playlist

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HOSTS = ("youtube.com", "www.youtube.com", "m.youtube.com", "music.youtube.com", "www.youtube-nocookie.com")
_SHORT_HOSTS = ("youtu.be", "www.youtu.be")
_FOLDERS = ("shorts", "embed", "live", "v")
_UNREADABLE = ("Private video", "Deleted video")

Texts = Mapping[str, str]


class FoundVideo(NamedTuple):
    """A video on YouTube. `duration` is in seconds, `year` that of its publication there."""

    youtube_id: str
    title: str
    channel: str
    description: str | None
    year: int | None
    duration: int | None
    views: int | None
    thumbnail_url: str | None


class FoundPlaylist(NamedTuple):
    playlist_id: str
    title: str
    channel: str | None
    video_count: int


class PlaylistItem(NamedTuple):
    """A video in a playlist. `channel` is its own, not that of the playlist."""

    youtube_id: str
    title: str
    channel: str
    description: str | None
    year: int | None
    thumbnail_url: str | None


async def search_videos(client: UpstreamClient, texts: Texts, query: str, limit: int = AT_ONCE) -> list[FoundVideo]:
    """Music videos, the best match first, each once, 50 at most. Raises ApiError 400, 429, 502."""
    params = {"part": "snippet", "type": "video", "videoCategoryId": "10", "order": "relevance"}
    answer = await _ask(client, texts, "/search", {**params, "maxResults": str(min(limit, AT_ONCE)), "q": query})
    return await videos(client, texts, _searched_ids(answer)[:limit])


async def videos(client: UpstreamClient, texts: Texts, ids: Sequence[str]) -> list[FoundVideo]:
    """Those of 50 videos that exist and may be seen, in the order of the ids. Raises ApiError 400, 429, 502."""
    if not ids:
        return []
    params = {"part": "snippet,contentDetails,statistics", "id": ",".join(ids)}
    answer = await _ask(client, texts, "/videos", params, "Video")
    found = {video.youtube_id: video for video in map(_video_of, records(YOUTUBE, answer.get("items"))) if video}
    return [found[youtube_id] for youtube_id in dict.fromkeys(ids) if youtube_id in found]


async def video(client: UpstreamClient, texts: Texts, youtube_id: str) -> FoundVideo:
    """Raises ApiError 400, 404, 429, 502."""
    found = await videos(client, texts, [youtube_id])
    if not found:
        raise errors.not_found(YOUTUBE, "Video")
    return found[0]


async def playlist(client: UpstreamClient, texts: Texts, playlist_id: str) -> FoundPlaylist:
    """Raises ApiError 400, 404, 429, 502."""
    params = {"part": "snippet,contentDetails", "id": playlist_id}
    answer = await _ask(client, texts, "/playlists", params, "Playlist")
    for found in map(_playlist_of, records(YOUTUBE, answer.get("items"))):
        if found and found.playlist_id == playlist_id:
            return found
    raise errors.not_found(YOUTUBE, "Playlist")


async def playlist_items(client: UpstreamClient, texts: Texts, playlist_id: str) -> list[PlaylistItem]:
    """All videos of a playlist in its order, each once, without private and deleted ones; 5000 at most.

    Raises ApiError 400, 404, 429, 502.
    """
    params = {"part": "snippet,contentDetails,status", "maxResults": str(AT_ONCE), "playlistId": playlist_id}
    found: dict[str, PlaylistItem] = {}
    tokens = [""]  # a token that comes again would lead round in circles
    while len(tokens) <= MAX_PAGES:
        page = {"pageToken": tokens[-1]} if tokens[-1] else {}
        answer = await _ask(client, texts, "/playlistItems", params | page, "Playlist")
        for item in map(_playlist_item_of, records(YOUTUBE, answer.get("items"))):
            if item:
                found.setdefault(item.youtube_id, item)
        following = text(answer.get("nextPageToken"), 200)
        if following is None or following in tokens:
            break
        tokens.append(following)
    return list(found.values())


def key_of(texts: Texts) -> str:
    """Raises ApiError 400 when there is none."""
    key = texts.get("youtube_api_key", "").strip()
    if not key:
        raise errors.not_configured(YOUTUBE)
    return key


def watch_url(youtube_id: str) -> str:
    return f"https://www.youtube.com/watch?v={youtube_id}"


def id_of(spelling: str) -> str | None:
    """The id in an id or in any address of a video on YouTube; None for everything else."""
    spelling = spelling.strip()
    if _ID.fullmatch(spelling):
        return spelling
    path, query = _place(spelling)
    if path is None:
        return None
    folder, _, rest = path.removeprefix("/").partition("/")
    if folder == "watch" and not rest:
        candidate = parse_qs(query).get("v", [""])[0]
    else:
        candidate = rest.removesuffix("/") if folder in _FOLDERS else ""
    return candidate if _ID.fullmatch(candidate) else None


def playlist_id_of(spelling: str) -> str | None:
    """The id in an id or in any address of a playlist on YouTube, also that of a video played in it."""
    spelling = spelling.strip()
    path, query = _place(spelling)
    candidate = spelling if path is None else parse_qs(query).get("list", [""])[0]
    return candidate if re.fullmatch(r"[A-Za-z0-9_-]{12,64}", candidate) else None


def _place(spelling: str) -> tuple[str | None, str]:
    """Path and query of an address on YouTube, that of the short host in its long form; None for another host."""
    if any(char <= " " or char in "\\\x7f" for char in spelling):
        return None, ""
    try:
        parts = urlsplit(spelling if _SCHEME.match(spelling) else f"https://{spelling}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return None, ""
    if parts.scheme not in ("http", "https") or port not in (None, 80, 443) or "@" in parts.netloc:
        return None, ""
    if host in _SHORT_HOSTS:
        return f"/v{parts.path}", parts.query
    return (parts.path, parts.query) if host in _HOSTS else (None, "")


async def _ask(
    client: UpstreamClient, texts: Texts, path: str, params: Mapping[str, str], what: str = ""
) -> dict[str, Any]:
    answer: dict[str, Any] = await ask(client, YOUTUBE, texts, path, params={**params, "key": key_of(texts)}, what=what)
    return answer


# Out of its answers


def _searched_ids(answer: Mapping[str, Any]) -> list[str]:
    ids = (dig(item, "id", "videoId") for item in records(YOUTUBE, answer.get("items")))
    return list(dict.fromkeys(found for found in ids if isinstance(found, str) and _ID.fullmatch(found)))


def _video_of(item: Mapping[str, Any]) -> FoundVideo | None:
    snippet, youtube_id = item.get("snippet"), item.get("id")
    title = text(dig(snippet, "title"), 500)
    if not (isinstance(youtube_id, str) and _ID.fullmatch(youtube_id) and title):
        return None
    return FoundVideo(
        youtube_id=youtube_id,
        title=title,
        channel=text(dig(snippet, "channelTitle"), 255) or "",
        description=text(dig(snippet, "description"), 10_000),
        year=year(dig(snippet, "publishedAt")),
        duration=seconds(dig(item, "contentDetails", "duration")),
        views=whole(dig(item, "statistics", "viewCount"), 2**63 - 1),
        thumbnail_url=_picture(snippet),
    )


def _playlist_of(item: Mapping[str, Any]) -> FoundPlaylist | None:
    snippet, playlist_id = item.get("snippet"), identifier(item.get("id"), 64)
    title = text(dig(snippet, "title"), 500)
    if not (playlist_id and title):
        return None
    count = whole(dig(item, "contentDetails", "itemCount"))
    return FoundPlaylist(playlist_id, title, text(dig(snippet, "channelTitle"), 255), count or 0)


def _playlist_item_of(item: Mapping[str, Any]) -> PlaylistItem | None:
    snippet = item.get("snippet")
    youtube_id, title = dig(snippet, "resourceId", "videoId"), text(dig(snippet, "title"), 500)
    hidden = dig(item, "status", "privacyStatus") in ("private", "privacyStatusUnspecified") or title in _UNREADABLE
    if hidden or not (isinstance(youtube_id, str) and _ID.fullmatch(youtube_id) and title):
        return None
    return PlaylistItem(
        youtube_id=youtube_id,
        title=title,
        channel=text(dig(snippet, "videoOwnerChannelTitle"), 255) or "",
        description=text(dig(snippet, "description"), 10_000),
        year=year(dig(item, "contentDetails", "videoPublishedAt")),
        thumbnail_url=_picture(snippet),
    )


def _picture(snippet: Any) -> str | None:
    sizes = (dig(snippet, "thumbnails", size, "url") for size in ("high", "medium", "default"))
    return next(filter(None, map(address, sizes)), None)
