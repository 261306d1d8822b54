"""Putting videos into the queue of downloads: which may be, and what wakes those who download."""

from urllib.parse import unquote, urlsplit

from flask import current_app
from sqlalchemy import event, or_, select

from .http import ApiError
from .models import Download, Video
from .upstreams import youtube
from .upstreams.failures import AddressRefused
from .upstreams.guard import Guard, check

PRIORITY = 5  # of 1 (first) to 10


def queue_download(db, video: Video, **wanted) -> Download:
    """See `queue_downloads`. Raises ApiError 400 or 409."""
    queued, refused = queue_downloads(db, [video], **wanted)
    for error in refused.values():
        raise error
    return queued[video.id]


def queue_downloads(
    db, videos: list[Video], *, priority: int = PRIORITY, quality: str | None = None, format: str | None = None
) -> tuple[dict[int, Download], dict[int, ApiError]]:
    """The new rows, and why there are none for the others, both by the ids of the videos.

    To be called in the transaction that has made or locked the videos; the downloader is woken after its commit.
    """
    refused = refusals(db, videos)
    queued = {
        video.id: Download(
            video_id=video.id,
            active_video_id=video.id,
            priority=priority,
            quality=quality or video.artist.quality,
            format=format,
        )
        for video in videos
        if video.id not in refused
    }
    db.add_all(queued.values())
    db.flush()
    if queued:
        wake_after(db)
    return queued, refused


def refusals(db, videos: list[Video]) -> dict[int, ApiError]:
    """Why some of these videos, by their ids, cannot be downloaded now."""
    concerned = Download.video_id.in_([video.id for video in videos])
    known = or_(Download.active_video_id.is_not(None), Download.status == "completed")
    active, completed = {}, {}
    query = select(Download.id, Download.video_id, Download.active_video_id).where(concerned, known)
    for row in db.execute(query.order_by(Download.id)):
        (active if row.active_video_id else completed)[row.video_id] = row.id
    found = {video.id: refusal(video, active.get(video.id), completed.get(video.id)) for video in videos}
    return {video_id: error for video_id, error in found.items() if error}


def refusal(video: Video, active: int | None, completed: int | None) -> ApiError | None:
    if active is not None:
        return ApiError(409, "The video is being downloaded already", success=False, download_id=active)
    if video.status == "DOWNLOADED":
        return ApiError(409, "The video is downloaded already", success=False, download_id=completed)
    address = address_of(video)
    if address is not None and not allowed(address):
        return ApiError(400, "The address of the video is not allowed", success=False)
    return None


def address_of(video: Video) -> str | None:
    """Where it can be had; None when that must be found out first."""
    return video.url or (youtube.watch_url(video.youtube_id) if video.youtube_id else None)


def allowed(address: str) -> bool:
    """Whether it may be asked; whether its name leads into a private network shows when it is connected to."""
    if "__youtubedl_smuggle" in unquote(address):  # what yt-dlp takes for a message to itself
        return False
    try:
        check(address)
        return Guard(current_app.config["ALLOWED_NETWORKS"]).allows(urlsplit(address).hostname.rstrip("."))
    except AddressRefused:
        return False
    except ValueError:
        return True  # a name


def wake_after(db) -> None:
    """Have somebody look at the queue when this transaction has been committed."""
    downloader = current_app.extensions.get("downloader")
    if downloader is not None:
        event.listen(db, "after_commit", lambda _: downloader.wake(), once=True)
