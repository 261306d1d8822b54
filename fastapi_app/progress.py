"""How far downloads and jobs are: the document that clients are shown, and the channel of Redis that carries it.

The rows are the truth; what is published is only known sooner. So a document is published after its row was written,
for one id at most twice a second, and the parts of a job not at all.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, TypedDict

from redis.asyncio import Redis
from redis.exceptions import RedisError

from . import containment
from .json import decode, encode

log = logging.getLogger("fastapi_app")

CHANNEL = "music:progress"
ENDED = ("completed", "failed", "cancelled")
PUBLISH_S = 0.2  # for Redis to take a document
QUIET_S = 5.0  # without further attempts when it did not
MAX_BYTES = 8192  # of a document on the channel


class Document(TypedDict):
    """What is known of one download or job. A speed is in bytes per second, `eta` in seconds."""

    id: str  # "download:7", "job:<id>"
    type: str  # "download", or that of the job
    target: str | None  # "video:7"
    status: str
    percent: int
    message: str  # of a download: its title, and in the end what went wrong
    eta: int | None
    speed: int | None
    bytes_done: int | None
    bytes_total: int | None
    updated_at: str  # naive UTC, ISO 8601


_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "type", "status", "message", "updated_at"), (str,)),
    "target": (str, type(None)),
    "percent": (int,),
    **dict.fromkeys(("eta", "speed", "bytes_done", "bytes_total"), (int, type(None))),
}


def of_download(row: Any, title: str) -> Document:
    """From a row of `downloads` and the title of its video."""
    moving = row.status == "downloading"
    return {
        "id": f"download:{row.id}",
        "type": "download",
        "target": f"video:{row.video_id}",
        "status": row.status,
        "percent": row.progress,
        "message": row.error_message or title if row.status in ENDED else title,
        "eta": row.eta if moving else None,
        "speed": row.speed if moving else None,
        "bytes_done": row.bytes_done,
        "bytes_total": row.bytes_total,
        "updated_at": row.updated_at.isoformat(),
    }


def of_job(row: Any) -> Document:
    """From a row of `jobs`."""
    return {
        "id": f"job:{row.id}",
        "type": row.type,
        "target": row.target,
        "status": row.status,
        "percent": row.progress,
        "message": row.error or row.message,
        "eta": None,
        "speed": None,
        "bytes_done": None,
        "bytes_total": None,
        "updated_at": row.updated_at.isoformat(),
    }


def parse(text: bytes) -> Document | None:
    """What came over the channel; None for anything that is no document."""
    if len(text) > MAX_BYTES:
        return None
    try:
        value: Any = decode(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != _TYPES.keys():
        return None
    fits = all(isinstance(value[name], types) for name, types in _TYPES.items())
    document: Document = value  # type: ignore[assignment]  # as was just seen
    return document if fits else None


class Channel:
    """The way to those who listen. Without Redis, nobody is told; they look at the rows."""

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis
        self._quiet_until = 0.0
        self._published = self._failed = 0

    async def publish(self, document: Document) -> None:
        """Never raises, and takes 0.2 s at most; then there is silence for 5 s, so that the work is not slowed."""
        if self._redis is None or time.monotonic() < self._quiet_until or containment.current() is not None:
            return
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._redis.publish(CHANNEL, encode(document))
        except (RedisError, OSError, TimeoutError, RuntimeError) as error:
            self._failed += 1
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("progress is not published: %s", type(error).__name__)
        else:
            self._published += 1

    def statistics(self) -> dict[str, int]:
        return {"published": self._published, "failed": self._failed}
