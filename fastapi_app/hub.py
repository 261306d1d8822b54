"""What this process knows of downloads and jobs, and tells to those who listen.

Only while somebody listens it reads what is active every two seconds, and hears from Redis what happens in between. A
row is right whatever was heard, so nothing is missed when Redis is away or when Flask, which publishes nothing, works.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Select, Table, bindparam, select
from sqlalchemy.sql import Executable

from .db import Database, DatabaseUnavailable, Db
from .http import MAX_INT
from .json import encode
from .models import downloads, jobs, utcnow, videos
from .progress import CHANNEL, ENDED, Document, of_download, of_job, parse

log = logging.getLogger("fastapi_app")

LOOK_S = 2.0
SOON_S = 0.2  # until the next look when something unknown was heard of
KEEP_S = 300.0  # what has ended is known so long: somebody may be on the way back
RECENT = 500  # rows of each kind that have ended within that time
AT_ONCE = 500  # rows of one statement
MAX_HEARD = 1000  # unknown names between two looks
PING_S = 5.0  # of silence; after as much again the connection is given up
PAUSE_S, MAX_PAUSE_S = 0.5, 10.0  # before Redis is tried again


class Known(NamedTuple):
    """The last document of a name."""

    text: str  # as JSON
    status: str
    updated_at: str
    mark: tuple[Any, ...] | None  # of the row that it was read from; None when it was heard
    ended_at: float  # by the monotonic clock; 0 while it goes on


class Listener(Protocol):
    """Somebody who wants to be told."""

    @property
    def interested(self) -> bool: ...

    def offer(self, name: str, known: Known) -> None:
        """Take note and return at once."""


class Source(NamedTuple):
    """A table of what makes progress."""

    active: Executable  # with what changes whenever a row is written
    recent: Executable  # the same of what has ended
    by_id: Executable
    document: Callable[[Any], Document]


def _marks(table: Table) -> Select[Any]:
    return select(table.c.id, table.c.status, table.c.progress, table.c.updated_at)


def _recent(table: Table) -> Select[Any]:
    ended = table.c.finished_at
    return _marks(table).where(ended > bindparam("since")).order_by(ended.desc()).limit(RECENT)


_WHOLE = jobs.c.parent_id.is_(None)  # parts are told by what they are parts of

SOURCES = {
    "download": Source(
        active=_marks(downloads).where(downloads.c.status.in_(("pending", "queued", "downloading", "paused"))),
        recent=_recent(downloads),
        by_id=select(downloads, videos.c.title)
        .join_from(downloads, videos)
        .where(downloads.c.id.in_(bindparam("ids", expanding=True))),
        document=lambda row: of_download(row, row.title),
    ),
    "job": Source(
        active=_marks(jobs).where(jobs.c.status.in_(("queued", "running")), _WHOLE),
        recent=_recent(jobs).where(_WHOLE),
        by_id=select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True)), _WHOLE),
        document=of_job,
    ),
}


def is_name(value: object) -> bool:
    """Whether it could name a download or a job."""
    if not isinstance(value, str) or len(value) > 80 or not value.isascii():
        return False
    kind, _, key = value.partition(":")
    return (kind == "job" and bool(key)) or (kind == "download" and key.isdecimal() and int(key) <= MAX_INT)


class Hub:
    """One per process. It begins with the first who listens and rests when the last has left."""

    def __init__(self, database: Database, redis: Redis | None) -> None:
        self._db, self._redis = Db(database), redis
        self.listeners: set[Listener] = set()
        self._known: dict[str, Known] = {}
        self._heard: set[str] = set()  # of which the rows must be seen
        self._work: asyncio.Task[None] | None = None
        self._looking, self._looked_at = asyncio.Lock(), 0.0
        self._soon = asyncio.Event()
        self._waiting = 0
        self._turn = asyncio.Semaphore(8)

    async def known(self, names: Collection[str] | None) -> dict[str, Known]:
        """What is known now of these; of all that is active or has just ended for None.

        Raises DatabaseUnavailable or DBAPIError when the rows cannot be read.
        """
        self._waiting += 1
        try:
            self._begin()
            await self._look_after(time.monotonic())
            if names is None:
                return dict(self._known)
            await self._read([name for name in names if name not in self._known], quiet=True)
            return {name: self._known[name] for name in names if name in self._known}
        finally:
            self._waiting -= 1

    async def turn(self) -> None:
        """Wait until others have had theirs: hundreds of sockets with the same news must not stop the loop."""
        async with self._turn:
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    def _begin(self) -> None:
        if self._work is None or self._work.done():
            self._known.clear()
            self._heard.clear()
            self._looked_at = 0.0
            self._work = asyncio.create_task(self._run(), name="live progress")

    async def _run(self) -> None:
        hearing = asyncio.create_task(self._hear(self._redis)) if self._redis is not None else None
        try:
            while self._waiting or any(listener.interested for listener in self.listeners):
                try:
                    await self._look_after(time.monotonic())
                except Exception as error:
                    known = isinstance(error, DatabaseUnavailable)
                    log.warning("live progress cannot read the rows: %s", error if known else "", exc_info=not known)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._soon.wait()
                        await asyncio.sleep(SOON_S)
                self._soon.clear()
        finally:
            if hearing is not None:
                hearing.cancel()

    # Rows

    async def _look_after(self, moment: float) -> None:
        """Look, unless somebody has begun to after that moment: many who come at once share a look."""
        async with self._looking:
            if self._looked_at < moment:
                began = time.monotonic()
                await self._look()
                self._looked_at = began

    async def _look(self) -> None:
        """Read what has changed since the last look."""
        since = {"since": utcnow() - timedelta(seconds=KEEP_S)}
        marks = {
            f"{kind}:{row.id}": tuple(row[1:])
            for kind, source in SOURCES.items()
            for statement, values in ((source.recent, since), (source.active, None))
            for row in await self._db.rows(statement, values)
        }
        self._forget()
        known = self._known
        changed = {name for name, mark in marks.items() if name not in known or known[name].mark != mark}
        left = {name for name, last in known.items() if not last.ended_at and name not in marks}
        heard, self._heard = self._heard, set()
        await self._read(changed | left | heard)

    async def _read(self, names: Iterable[str], *, quiet: bool = False) -> None:
        """Read these rows; `quiet` tells nobody of what has ended long ago."""
        missing = set(names)
        for kind, source in SOURCES.items():
            keys = [name.partition(":")[2] for name in missing if name.startswith(f"{kind}:")]
            for start in range(0, len(keys), AT_ONCE):
                ids: list[Any] = keys[start : start + AT_ONCE]
                ids = [int(key) for key in ids] if kind == "download" else ids
                for row in await self._db.rows(source.by_id, {"ids": ids}):
                    missing.discard(self._take(kind, row, quiet=quiet))
        for name in missing & self._known.keys():
            self._lose(name)

    def _take(self, kind: str, row: Any, *, quiet: bool) -> str:
        """Note what a row says, and tell it when it is news."""
        document = SOURCES[kind].document(row)
        name, status, updated_at = document["id"], document["status"], document["updated_at"]
        mark, last = (row.status, row.progress, row.updated_at), self._known.get(name)
        if last and last.mark is None and last.status == status and last.updated_at > updated_at:
            self._known[name] = last._replace(mark=mark)  # more was heard since it was written
        else:
            self._note(document, mark, quiet=quiet)
        return name

    def _note(self, document: Document, mark: tuple[str, int, datetime] | None, *, quiet: bool = False) -> None:
        name, ended = document["id"], document["status"] in ENDED
        last = self._known.get(name)
        ended_at = ((last.ended_at if last else 0) or time.monotonic()) if ended else 0.0
        known = Known(encode(document).decode().rstrip(), document["status"], document["updated_at"], mark, ended_at)
        self._known[name] = known
        if not (quiet and ended) and (last is None or last.text != known.text):
            self._tell(name, known)

    def _lose(self, name: str) -> None:
        """The row was deleted: whoever watches it learns that nothing more will come."""
        last = self._known.pop(name)
        if not last.ended_at:
            gone = parse(last.text.encode())
            if gone is not None:
                gone |= {"status": "cancelled", "eta": None, "speed": None, "updated_at": utcnow().isoformat()}
                text = encode(gone).decode().rstrip()
                self._tell(name, Known(text, "cancelled", gone["updated_at"], None, time.monotonic()))

    def _tell(self, name: str, known: Known) -> None:
        for listener in self.listeners:
            listener.offer(name, known)

    def _forget(self) -> None:
        before = time.monotonic() - KEEP_S
        for name in [name for name, known in self._known.items() if 0 < known.ended_at < before]:
            del self._known[name]

    # Redis

    async def _hear(self, redis: Redis) -> None:
        """Listen for ever, to a new connection when the last one broke."""
        pause_s = PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._subscription(redis)
            except (RedisError, OSError, TimeoutError) as error:
                pause_s = PAUSE_S if time.monotonic() - began > MAX_PAUSE_S else min(2 * pause_s, MAX_PAUSE_S)
                log.warning("live progress does not hear Redis: %s", type(error).__name__)
            await asyncio.sleep(pause_s)

    async def _subscription(self, redis: Redis) -> None:
        async with redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            silent = False
            while True:
                message = await channel.get_message(timeout=PING_S)
                if message is not None:
                    silent = False
                    if message["type"] == "message":
                        self.hear(message["data"])
                elif silent:
                    raise TimeoutError
                else:
                    silent = True
                    await channel.ping()

    def hear(self, text: bytes) -> None:
        """Believe it for the time being, if it is about something known that goes on; else look at the row soon."""
        document = parse(text)
        if document is None or not is_name(document["id"]):
            return
        last = self._known.get(document["id"])
        if last is not None and not last.ended_at:
            if document["updated_at"] >= last.updated_at:
                self._note(document, None)
        elif len(self._heard) < MAX_HEARD:
            self._heard.add(document["id"])
            self._soon.set()
