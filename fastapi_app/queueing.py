"""Putting videos into the queue of downloads: which may be, and how the workers hear of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from fastapi import Request
from sqlalchemy import BindParameter, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from .bulk import insert_many
from .containment import refuse
from .db import Db
from .http import ApiError
from .models import artists, downloads, videos
from .queue import Queue
from .upstreams import youtube
from .upstreams.failures import AddressRefused
from .upstreams.guard import Guard, check

PRIORITY = 5  # of 1 (first) to 10

# A video is a row of these here. Locking them locks no artist.
VIDEOS = select(
    *(videos.c[name] for name in ("id", "title", "status", "url", "youtube_id")),
    select(artists.c.quality).where(artists.c.id == videos.c.artist_id).scalar_subquery().label("artist_quality"),
)

_IDS: BindParameter[list[int]] = bindparam("ids", expanding=True)
_KNOWN = (
    select(downloads.c.id, downloads.c.video_id, downloads.c.active_video_id)
    .where(downloads.c.video_id.in_(_IDS))
    .where(or_(downloads.c.active_video_id.is_not(None), downloads.c.status == "completed"))
    .order_by(downloads.c.id)
)
_NEW = select(downloads.c.id, downloads.c.video_id).where(downloads.c.active_video_id.in_(_IDS))


class Wishes(NamedTuple):
    """For a download; None leaves it to the artist, then to the settings."""

    priority: int = PRIORITY
    quality: str | None = None
    format: str | None = None


class Queued(NamedTuple):
    """The ids of the new downloads, and why there are none for the others, both by the ids of the videos."""

    ids: dict[int, int]
    refused: dict[int, ApiError]


@asynccontextmanager
async def enqueuing(request: Request) -> AsyncIterator[None]:
    """Around the transaction that makes downloads pending: the workers hear of it after the commit.

    Raises ApiError 503 before anything is done when they cannot be told.
    """
    refuse("jobs", "download")
    queue: Queue = request.app.state.queue
    await queue.check()
    yield
    await queue.put("download")


async def queue_download(connection: AsyncConnection, request: Request, video: Any, wishes: Wishes) -> int:
    """The id of the new row. See `queue_downloads`. Raises ApiError 400 or 409."""
    queued = await queue_downloads(connection, request, [video], wishes)
    for error in queued.refused.values():
        raise error
    return queued.ids[video.id]


async def queue_downloads(connection: AsyncConnection, request: Request, rows: Sequence[Any], wishes: Wishes) -> Queued:
    """To be called within `enqueuing`, in the transaction that has made or locked the videos, which are of VIDEOS."""
    refused = await refusals(connection, request, rows)
    new = [
        {
            "video_id": row.id,
            "active_video_id": row.id,
            "priority": wishes.priority,
            "quality": wishes.quality or row.artist_quality,
            "format": wishes.format,
        }
        for row in rows
        if row.id not in refused
    ]
    await insert_many(connection, downloads, new)
    inserted = await connection.execute(_NEW, {"ids": [row["video_id"] for row in new]})
    return Queued({row.video_id: row.id for row in inserted}, refused)


async def refusals(db: Db | AsyncConnection, request: Request, rows: Sequence[Any]) -> dict[int, ApiError]:
    """Why some of these videos, by their ids, cannot be downloaded now."""
    active: dict[int, int] = {}
    completed: dict[int, int] = {}
    for known in await db.execute(_KNOWN, {"ids": [row.id for row in rows]}):
        (active if known.active_video_id else completed)[known.video_id] = known.id
    guard = Guard(request.app.state.settings.allowed_networks)
    found = {row.id: _refusal(row, guard, active.get(row.id), completed.get(row.id)) for row in rows}
    return {video_id: error for video_id, error in found.items() if error}


def _refusal(video: Any, guard: Guard, active: int | None, completed: int | None) -> ApiError | None:
    if active is not None:
        return ApiError(409, "The video is being downloaded already", success=False, download_id=active)
    if video.status == "DOWNLOADED":
        return ApiError(409, "The video is downloaded already", success=False, download_id=completed)
    address = video.url or (youtube.watch_url(video.youtube_id) if video.youtube_id else None)
    if address is not None and not allowed(address, guard):
        return ApiError(400, "The address of the video is not allowed", success=False)
    return None


def allowed(address: str, guard: Guard) -> bool:
    """Whether it may be asked; whether its name leads into a private network shows when it is connected to."""
    if "__youtubedl_smuggle" in unquote(address):  # what yt-dlp takes for a message to itself
        return False
    try:
        check(address)
        return guard.allows((urlsplit(address).hostname or "").rstrip("."))
    except AddressRefused:
        return False
    except ValueError:
        return True  # a name
