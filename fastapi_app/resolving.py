"""Where a video can be had of which only artist and title are known: the best match on YouTube."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from . import settings
from .fetchers import Fetchers
from .matching import Wanted, ranked
from .upstreams import errors, youtube
from .upstreams.client import UpstreamClient
from .upstreams.errors import YOUTUBE

log = logging.getLogger("fastapi_app")

CANDIDATES = 10
SEARCH_WITHIN_S = 45


class Candidate(NamedTuple):
    """What yt-dlp tells of a video that it has found."""

    youtube_id: str
    title: str
    channel: str
    duration: int | None
    year: int | None = None


class Resolver:
    """`allowed_networks` are those that yt-dlp may connect to, besides the internet."""

    def __init__(self, client: UpstreamClient, fetchers: Fetchers, allowed_networks: str) -> None:
        self._client, self._fetchers, self._allowed = client, fetchers, allowed_networks

    async def find_address(self, texts: Mapping[str, str], artist: str, title: str) -> str | None:
        """The address of the official video; None when nothing is alike enough. `texts` are the settings.

        With a key YouTube's API is asked, else yt-dlp searches. Raises ApiError when the search itself fails.
        """
        words, found = f"{artist} {title}", list[Candidate | youtube.FoundVideo]()
        if texts.get("youtube_api_key", "").strip():
            found += await youtube.search_videos(self._client, texts, words, CANDIDATES)
        else:
            found += await self._search(texts, words)
        matches = ranked(Wanted(artist, title), found, settings.as_number(texts["discovery_threshold"], 60))
        return youtube.watch_url(matches[0][1].youtube_id) if matches else None

    async def _search(self, texts: Mapping[str, str], words: str) -> Sequence[Candidate]:
        """By yt-dlp, without a key. Raises ApiError 502."""
        order = {"search": " ".join(words.split()), "proxy": texts["download_proxy"].strip(), "max_bytes": 0}
        found: list[dict[str, Any]] | None = None
        try:
            async with (
                asyncio.timeout(SEARCH_WITHIN_S),
                aclosing(self._fetchers.fetch(order | {"allowed_networks": self._allowed})) as told,
            ):
                async for line in told:
                    if line["event"] == "found":
                        found = line["videos"]
                    elif line["event"] == "error":
                        log.warning("the search for %r failed: %s", words, line["detail"])
        except TimeoutError:
            log.warning("the search for %r took too long", words)
        if found is None:
            raise errors.unavailable(YOUTUBE)
        return [_candidate(video) for video in found if youtube.id_of(video["id"]) == video["id"]]


def _candidate(video: Mapping[str, Any]) -> Candidate:
    duration = video["duration"]
    return Candidate(video["id"], video["title"], video["channel"] or "", None if duration is None else int(duration))
