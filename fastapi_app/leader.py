"""The leader: one process of all pools that looks every few seconds after what nobody else would notice.

A lock in Redis says who it is. That two lead for a moment, when one of them has slept, does no harm: whatever the
leader does is a compare-and-set in the database, or puts a job into Redis that finds its row taken.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from fastapi import FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from . import claiming, discovery, downloading, intake, outbox, playlists, settings, working
from .db import Database, Db
from .files import off_loop
from .http import ApiError
from .jobs import ACTIVE, GONE, held, lock_whole, put_back, sum_up
from .kinds import ERRANDS, KINDS
from .models import downloads, jobs, playlist_monitors, utcnow, webhook_deliveries
from .schedule import WINDOW, planned_id, read_schedule

TICK_S = 3.0
LOCK, LOCK_MS = "music:leader", 15_000
TRIM_EVERY_S = 3600.0
KEEP = timedelta(days=30)  # of jobs that have ended
SIGN_EVERY = timedelta(minutes=1)  # of life, for jobs that wait
MOST = 10_000  # rows at a time

RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

log = logging.getLogger("fastapi_app")

_whole = jobs.alias("whole")
_PARTS = exists().where(_whole.c.parent_id == jobs.c.id)
_DIVIDED = select(jobs.c.id).where(jobs.c.status == "running", jobs.c.runner.is_(None), _PARTS)
_OWNERLESS = (
    select(jobs.c.id)
    .join(_whole, _whole.c.id == jobs.c.parent_id)
    .where(jobs.c.status.in_(ACTIVE), _whole.c.status.not_in(ACTIVE))
)
_DELIVERY = webhook_deliveries.c


def main(app: FastAPI) -> None:
    """Until SIGTERM."""
    asyncio.run(_lead(app))


async def _lead(app: FastAPI) -> None:
    leading = asyncio.create_task(Leader(app).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leading.cancel)
    guard = asyncio.create_task(working.with_parent(leading))
    with suppress(asyncio.CancelledError):
        await leading
    guard.cancel()
    await working.close(app)


class Leader:
    """`run` ticks while this process has the lock, and waits for it otherwise."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._name = app, working.this_runner()
        self._redis: Redis = app.state.redis
        self._trimmed_at = float("-inf")

    async def run(self) -> None:
        try:
            while True:
                if await self._leads():
                    await self._tick()
                await asyncio.sleep(TICK_S)
        finally:
            with suppress(RedisError, OSError):
                await self._redis.eval(RELEASE, 1, LOCK, self._name)

    async def _leads(self) -> bool:
        try:
            if await self._redis.set(LOCK, self._name, nx=True, px=LOCK_MS):
                return True
            return bool(await self._redis.eval(RENEW, 1, LOCK, self._name, LOCK_MS))
        except (RedisError, OSError):
            return False

    async def _tick(self) -> None:
        steps: tuple[Callable[[FastAPI], Awaitable[None]], ...] = (
            take_back_stale,
            take_back_downloads,
            look_after_parts,
            put_waiting,
            call,
            plan,
        )
        for step in (*steps, self._trim):
            try:
                await step(self._app)
            except Exception:
                log.exception("leader: %s", step.__name__)

    async def _trim(self, app: FastAPI) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._trimmed_at > TRIM_EVERY_S:
            self._trimmed_at = now
            await outbox.trim(app.state.database)
            for folder in (app.state.settings.library_path, app.state.settings.downloads_path):
                await off_loop(intake.tidy, folder)
            over = and_(jobs.c.status.not_in(ACTIVE), jobs.c.created_at < utcnow() - KEEP)
            async with Db(app.state.database).transaction() as connection:
                await connection.execute(delete(jobs).where(over))


# What others have left


async def take_back_stale(app: FastAPI) -> None:
    """Rows of jobs without a sign of life: whoever had them is gone."""
    stale = utcnow() - timedelta(seconds=app.state.settings.job_stale_s)
    await _take_back(app.state.database, and_(jobs.c.updated_at < stale, or_(jobs.c.runner.is_not(None), ~_PARTS)))


async def take_back_downloads(app: FastAPI) -> None:
    await downloading.take_back(app)


async def take_back(database: Database, runner: str) -> None:
    """Rows of a process that is known to be gone."""
    await claiming.report_gone(Db(database), runner)
    await _take_back(database, jobs.c.runner == runner)


async def _take_back(database: Database, which: ColumnElement[bool]) -> None:
    db = Db(database)
    for row in await db.rows(select(jobs).where(jobs.c.status == "running", which)):
        attempts = KINDS[row.type].attempts if row.type in KINDS else 0
        async with db.transaction() as connection:
            await lock_whole(connection, row)
            unseen = jobs.c.updated_at == row.updated_at
            back = update(jobs).where(held(row), unseen).values(put_back(row, attempts, GONE))
            if (await connection.execute(back)).rowcount and row.parent_id:
                await sum_up(connection, row.parent_id)


async def look_after_parts(app: FastAPI) -> None:
    """Of jobs that are done in parts: bring the whole up to date; end the parts of what has ended."""
    db = Db(app.state.database)
    for row in await db.rows(_DIVIDED):
        async with db.transaction() as connection:
            await sum_up(connection, row.id)
    ownerless = [row.id for row in await db.rows(_OWNERLESS)]
    if ownerless:
        ended = {"status": "cancelled", "active_type": None, "finished_at": utcnow()}
        which = and_(jobs.c.id.in_(ownerless), jobs.c.status.in_(ACTIVE))
        async with db.transaction() as connection:
            await connection.execute(update(jobs).where(which).values(ended))


async def put_waiting(app: FastAPI) -> None:
    """Rows that wait, and of which Redis knows nothing: it has lost them, or their next attempt is due."""
    db, now = Db(app.state.database), utcnow()
    waits = and_(jobs.c.status == "queued", jobs.c.type.in_(list(KINDS)))
    due = and_(waits, or_(jobs.c.retry_at.is_(None), jobs.c.retry_at <= now))
    rows = await db.rows(select(jobs.c.id, jobs.c.type).where(due).order_by(jobs.c.created_at).limit(MOST))
    if not rows:
        return
    known = await off_loop(app.state.queue.waiting)
    for row in rows:
        if row.id not in known and not await app.state.queue.put(row.type, row.id):
            break  # Redis is away: the next look begins here
    async with db.transaction() as connection:
        unseen = and_(waits, jobs.c.updated_at < now - SIGN_EVERY)
        await connection.execute(update(jobs).where(unseen).values(updated_at=now))


async def call(app: FastAPI) -> None:
    """Somebody for what waits in other tables."""
    db, now = Db(app.state.database), utcnow()
    free = or_(_DELIVERY.claimed_at.is_(None), _DELIVERY.claimed_at < now - outbox.LEASE)
    unsent = select(_DELIVERY.id).where(_DELIVERY.status.in_(("pending", "delivering")), free)
    if await db.row(unsent.limit(1)) is not None:
        await app.state.queue.put("webhooks")
    due = or_(downloads.c.retry_at.is_(None), downloads.c.retry_at <= now)
    pending = select(downloads.c.id).where(downloads.c.status == "pending", due)
    if "download" in ERRANDS and await db.row(pending.limit(1)) is not None:
        running = await db.scalar(select(func.count()).where(downloads.c.status == "downloading"))
        if running < settings.as_number((await settings.texts(db))["max_concurrent_downloads"], 3):
            await app.state.queue.put("download")


# The plan


async def plan(app: FastAPI) -> None:
    """Begin what is planned for now. Its row is named after the moment: whoever is second finds it, on either side."""
    db, now = Db(app.state.database), utcnow()
    schedule = read_schedule(await settings.texts(db))
    moment = schedule.next_run(now - WINDOW)
    if moment is None or moment > now:
        return
    request = working.request_of(app)
    begun = {row.id for row in await db.rows(select(jobs.c.id).where(jobs.c.created_at >= now - 2 * WINDOW))}
    discovery_id, playlists_id = planned_id("discovery", moment), planned_id("playlists", moment)
    with suppress(ApiError, IntegrityError):  # no key, one is running, or somebody was quicker
        if discovery_id not in begun:
            await discovery.start_all(request, db, schedule.max_videos, discovery_id)
    with suppress(ApiError, IntegrityError):
        if playlists_id not in begun and await db.row(select(playlist_monitors.c.id).limit(1)) is not None:
            await playlists.start_all(request, db, playlists_id)
