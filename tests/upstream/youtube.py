"""YouTube Data API v3, as far as an API key gets.

Titles and descriptions of `/search` are HTML-escaped, as YouTube does it; those of `/videos` are not. A key that is
wrong is a 400 with `API_KEY_INVALID`, a missing one a 403.
"""

import html
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .catalogue import Song, all_songs, artist_in, chance, slug, song_with, songs, youtube_id
from .control import QUOTA
from .http import KEY, image, number

_SIZES = {"default": (120, 90), "medium": (320, 180), "high": (480, 360), "standard": (640, 480)}
_LONG, _HUGE = 120, 10_000
_PAGE = 50


@dataclass(frozen=True)
class Clip:
    id: str
    title: str
    channel: str
    description: str
    seconds: int
    published: datetime
    live: str = "none"

    @property
    def channel_id(self) -> str:
        return "UC" + youtube_id(self.channel) + youtube_id(self.channel[::-1])


async def search(request: Request) -> Response:
    """`maxResults` is at most 50, 5 without being said; one page."""
    query = request.query_params.get("q", "")
    if (refused := _refused(request)) is not None:
        return refused
    found = [] if query.casefold().startswith("nothing") else clips(*artist_in(query))
    shown = found[: number(request, "maxResults", 5, _PAGE)]
    items = [
        {
            "kind": "youtube#searchResult",
            "etag": youtube_id(f"etag {clip.id}"),
            "id": {"kind": "youtube#video", "videoId": clip.id},
            "snippet": {
                **_snippet(request, clip),
                "title": _escaped(clip.title),
                "description": _escaped(clip.description[:120]),
                "publishTime": _time(clip.published),
            },
        }
        for clip in shown
    ]
    more = {"nextPageToken": "CAUQAA"} if len(shown) < len(found) else {}
    return JSONResponse(_list("search", items, len(found)) | {"regionCode": "US"} | more)


async def videos(request: Request) -> Response:
    """Ids that do not exist, and private ones, are left out."""
    if (refused := _refused(request)) is not None:
        return refused
    ids = request.query_params.get("id", "").split(",")
    if len(ids) > _PAGE:
        return _error(400, "invalidFilters", "The request specifies an invalid filter parameter.")
    found = [clip for clip in map(clip_with, ids) if clip]
    return JSONResponse(_list("video", [_video(request, clip) for clip in found], len(found)))


async def playlists(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    ids = [name for name in request.query_params.get("id", "").split(",") if _exists(name) and not _private(name)]
    items = [
        {
            "kind": "youtube#playlist",
            "etag": youtube_id(f"etag {name}"),
            "id": name,
            "snippet": {
                "publishedAt": "2020-05-17T09:30:00Z",
                "channelId": "UC" + youtube_id("Video Fan") + youtube_id("naF oediV"),
                "title": f"Videos worth watching ({name})",
                "description": "",
                "thumbnails": _thumbnails(request, name),
                "channelTitle": "Video Fan",
                "localized": {"title": f"Videos worth watching ({name})", "description": ""},
            },
            "status": {"privacyStatus": "public"},
            "contentDetails": {"itemCount": len(listed(name))},
        }
        for name in ids
    ]
    return JSONResponse(_list("playlist", items, len(items)))


async def playlist_items(request: Request) -> Response:
    if (refused := _refused(request)) is not None:
        return refused
    name, token = request.query_params.get("playlistId", ""), request.query_params.get("pageToken", "")
    if not _exists(name):
        return _error(404, "playlistNotFound", "The playlist identified with the request's playlistId cannot be found.")
    if _private(name):
        return _error(403, "playlistItemsNotAccessible", "The request is not properly authorized.")
    if token and not token.removeprefix("EAAa").isdecimal():
        return _error(400, "invalidPageToken", "The request specifies an invalid page token.")
    size, start = number(request, "maxResults", 5, _PAGE), int(token.removeprefix("EAAa") or 0)
    content = listed(name)
    items = [_item(request, name, place, content[place]) for place in range(start, min(start + size, len(content)))]
    page = _list("playlistItem", items, len(content)) | {
        "pageInfo": {"totalResults": len(content), "resultsPerPage": size}
    }
    if start + size < len(content):
        page["nextPageToken"] = f"EAAa{start + size}"
    return JSONResponse(page)


app = Starlette(
    routes=[
        Route("/search", search),
        Route("/videos", videos),
        Route("/playlists", playlists),
        Route("/playlistItems", playlist_items),
    ]
)


def error(status: int) -> dict[str, Any]:
    if status == QUOTA:
        text = "The request cannot be completed because you have exceeded your quota."
        return _error_body(403, "quotaExceeded", text, "youtube.quota")
    return _error_body(status, "backendError", "Something went wrong.")


# --- what there is -----------------------------------------------------------------------------------------------


@lru_cache(4096)
def clips(artist: str, title: str = "") -> tuple[Clip, ...]:
    """What a search finds, best first; `title` is a slug, of which one song is enough to be found alone."""
    wanted = [song for song in songs(artist) if title and slug(song.title) == title] or list(songs(artist))
    if not artist or not wanted:
        return ()
    best, vevo = wanted[0], artist.replace(" ", "") + "VEVO"
    official = [_official(song, vevo if song.number % 2 else artist) for song in wanted]
    others = (
        (f"{artist} - {best.title} (Lyric Video)", vevo, best.seconds),
        (f"{artist} - {best.title} (Live at Pinkpop {best.year + 1})", "Festival Archive", best.seconds + 41),
        (f"{artist} - {best.title} (Official Audio)", f"{artist} - Topic", best.seconds),
        (f"{best.title} - {artist} (Cover by The Garage Six)", "The Garage Six", best.seconds - 9),
        (f"How to play {best.title} by {artist} | Guitar lesson", "Six Strings School", 754),
        (f"First time hearing {artist}!! REACTION", "Honest Ears", 912),
        (f"Best of {artist}: full album mix", "Mix Masters", 4323),
        (f"{best.title} #shorts", "Clip Corner", 38),
        (f"The Garage Six - {best.title} (Official Video)", "The Garage Six", best.seconds + 3),
    )
    noise = [
        Clip(youtube_id(f"{slug(artist)} {text}"), text, channel, "", seconds, _published(text, best.year))
        for text, channel, seconds in others
    ]
    found = (*official[:3], noise[0], *official[3:], *noise[1:])
    _CLIPS.update({clip.id: clip for clip in found})
    return found


def clip_with(some_id: str) -> Clip | None:
    """An id that nothing belongs to is another upload of some song; so every id but `none…` and `priv…` exists."""
    if len(some_id) != 11 or some_id.startswith(("none", "priv")):
        return None
    song = song_with(some_id) or all_songs()[chance(some_id, 100)]
    clip = _CLIPS.get(some_id) or _official(song, song.artist, some_id)
    if some_id.startswith("live"):
        return Clip(some_id, f"{song.artist} live now", song.artist, "", 0, clip.published, "live")
    return clip


@lru_cache(8)
def listed(playlist: str) -> list[Clip]:
    """What a playlist holds; ids `priv…` and `gone…` are items that are private or deleted."""
    if playlist.startswith("PLhuge"):
        return [
            replace(_official(all_songs()[n % 50], "A fan"), id=youtube_id(f"{playlist} {n}")) for n in range(_HUGE)
        ]
    count = 0 if playlist.startswith("PLempty") else _LONG if playlist.startswith("PLlong") else 12
    content = [_official(song, song.artist) for song in all_songs()[:count]]
    for place in range(count):
        if place % 20 == 4:
            content[place] = _hidden(f"priv{place:07d}", "Private video", "This video is private.")
        elif place % 20 == 9:
            content[place] = _hidden(f"gone{place:07d}", "Deleted video", "This video is unavailable.")
        elif place % 20 == 11:
            content[place] = content[place - 1]  # twice in the list
    return content


_CLIPS: dict[str, Clip] = {}


def _official(song: Song, channel: str, some_id: str = "") -> Clip:
    text = f"Official video of “{song.title}” ({song.year}).\nDirected by {song.director}.\n© {song.artist} & friends"
    return Clip(
        some_id or song.youtube_id, song.video_title, channel, text, song.seconds, _published(song.title, song.year)
    )


def _hidden(some_id: str, title: str, description: str) -> Clip:
    return Clip(some_id, title, "", description, 0, datetime(2021, 3, 4, 12, tzinfo=UTC))


def _published(text: str, year: int) -> datetime:
    return datetime(max(year, 2006), 1, 1, 12, tzinfo=UTC) + timedelta(days=chance(text, 360))


def _exists(playlist: str) -> bool:
    return playlist.startswith("PL") and not playlist.startswith("PLnone")


def _private(playlist: str) -> bool:
    return playlist.startswith("PLpriv")


# --- how it is told ----------------------------------------------------------------------------------------------


def _list(kind: str, items: list[dict[str, Any]], total: int) -> dict[str, Any]:
    return {
        "kind": f"youtube#{kind}ListResponse",
        "etag": youtube_id(f"{kind} {total}"),
        "items": items,
        "pageInfo": {"totalResults": total, "resultsPerPage": len(items)},
    }


def _snippet(request: Request, clip: Clip) -> dict[str, Any]:
    return {
        "publishedAt": _time(clip.published),
        "channelId": clip.channel_id,
        "title": clip.title,
        "description": clip.description,
        "thumbnails": _thumbnails(request, clip.title),
        "channelTitle": clip.channel,
        "liveBroadcastContent": clip.live,
    }


def _video(request: Request, clip: Clip) -> dict[str, Any]:
    views = 1000 + chance(f"{clip.id} views", 900_000_000)
    return {
        "kind": "youtube#video",
        "etag": youtube_id(f"etag {clip.id}"),
        "id": clip.id,
        "snippet": {
            **_snippet(request, clip),
            "tags": [clip.channel.lower(), "music video"],
            "categoryId": "10",
            "localized": {"title": clip.title, "description": clip.description},
        },
        "contentDetails": {
            "duration": _duration(clip),
            "dimension": "2d",
            "definition": "hd" if clip.published.year > 2009 else "sd",
            "caption": "false",
            "licensedContent": True,
            "contentRating": {},
            "projection": "rectangular",
        },
        "statistics": {
            "viewCount": str(views),
            "likeCount": str(views // 90),
            "favoriteCount": "0",
            "commentCount": str(views // 2000),
        },
    }


def _item(request: Request, playlist: str, place: int, clip: Clip) -> dict[str, Any]:
    hidden = clip.channel == ""
    owner = {} if hidden else {"videoOwnerChannelTitle": clip.channel, "videoOwnerChannelId": clip.channel_id}
    public = "private" if clip.id.startswith("priv") else "privacyStatusUnspecified"
    return {
        "kind": "youtube#playlistItem",
        "etag": youtube_id(f"etag {playlist} {place}"),
        "id": youtube_id(f"{playlist} {place}") * 3,
        "snippet": {
            "publishedAt": _time(datetime(2022, 1, 1, 8, tzinfo=UTC) + timedelta(days=place)),
            "channelId": "UC" + youtube_id("Video Fan") + youtube_id("naF oediV"),
            "title": clip.title,
            "description": clip.description,
            "thumbnails": {} if hidden else _thumbnails(request, clip.title),
            "channelTitle": "Video Fan",
            "playlistId": playlist,
            "position": place,
            "resourceId": {"kind": "youtube#video", "videoId": clip.id},
            **owner,
        },
        "contentDetails": {"videoId": clip.id} | ({} if hidden else {"videoPublishedAt": _time(clip.published)}),
        "status": {"privacyStatus": public if hidden else "public"},
    }


def _thumbnails(request: Request, title: str) -> dict[str, Any]:
    return {
        size: {"url": image(request, slug(title), width, height), "width": width, "height": height}
        for size, (width, height) in _SIZES.items()
    }


def _duration(clip: Clip) -> str:
    """ISO 8601, without what is zero: PT4M5S, PT1H; P0D while it is live."""
    hours, minutes, seconds = clip.seconds // 3600, clip.seconds // 60 % 60, clip.seconds % 60
    parts = ((hours, "H"), (minutes, "M"), (seconds, "S"))
    text = "".join(f"{amount}{unit}" for amount, unit in parts if amount)
    return f"PT{text}" if text else "P0D"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _escaped(text: str) -> str:
    return html.escape(text).replace("&#x27;", "&#39;")


def _refused(request: Request) -> Response | None:
    key = request.query_params.get("key")
    if not key:
        return _error(403, "forbidden", "The request is missing a valid API key.", status="PERMISSION_DENIED")
    if key != KEY:
        details = [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "youtube.googleapis.com"},
            }
        ]
        text = "API key not valid. Please pass a valid API key."
        return _error(400, "badRequest", text, status="INVALID_ARGUMENT", details=details)
    return None


def _error(code: int, reason: str, message: str, **more: Any) -> Response:
    body = _error_body(code, reason, message, "global" if more else "youtube")
    body["error"].update(more)
    return JSONResponse(body, code)


def _error_body(code: int, reason: str, message: str, domain: str = "global") -> dict[str, Any]:
    errors = [{"message": message, "domain": domain, "reason": reason}]
    return {"error": {"code": code, "message": message, "errors": errors}}
