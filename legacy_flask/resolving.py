"""Where a video can be had of which only artist and title are known: the best match on YouTube."""

import time
from typing import NamedTuple

from flask import current_app

from . import settings
from .child import Child
from .matching import Wanted, ranked
from .upstreams import errors, youtube

CANDIDATES = 10
SEARCH_WITHIN_S = 45


class Candidate(NamedTuple):
    """What yt-dlp tells of a video that it has found."""

    youtube_id: str
    title: str
    channel: str
    duration: int | None
    year: int | None = None


def find_address(texts: dict, artist: str, title: str) -> str | None:
    """The address of the official video; None when nothing is alike enough. `texts` are the settings.

    With a key YouTube's API is asked, else yt-dlp searches. Raises ApiError when the search itself fails.
    """
    words = f"{artist} {title}"
    has_key = texts.get("youtube_api_key", "").strip()
    found = youtube.search_videos(texts, words, CANDIDATES) if has_key else search(texts, words)
    matches = ranked(Wanted(artist, title), found, settings.as_number(texts["discovery_threshold"], 60))
    return youtube.watch_url(matches[0][1].youtube_id) if matches else None


def search(texts: dict, words: str) -> list[Candidate]:
    """By yt-dlp, without a key. Raises ApiError 502."""
    order = {"search": " ".join(words.split()), "proxy": texts["download_proxy"].strip(), "max_bytes": 0}
    order |= {"allowed_networks": current_app.config["ALLOWED_NETWORKS"]}
    ends_at, found = time.monotonic() + SEARCH_WITHIN_S, None
    with Child(order) as child:
        while (left_s := ends_at - time.monotonic()) > 0 and (lines := child.told(left_s)) is not None:
            for line in lines:
                if line["event"] == "found":
                    found = line["videos"]
                elif line["event"] == "error":
                    current_app.logger.warning("the search for %r failed: %s", words, line["detail"])
    if found is None:
        raise errors.unavailable(errors.YOUTUBE)
    return [candidate(video) for video in found if youtube.ID.fullmatch(video["id"])]


def candidate(video: dict) -> Candidate:
    duration = video["duration"]
    return Candidate(video["id"], video["title"], video["channel"] or "", None if duration is None else int(duration))
