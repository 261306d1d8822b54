"""The outbox: what `events` has written is sent from here, by a worker; without a Redis by tasks of each process.

A row is claimed by compare-and-set, so one process of either application sends it. Of each webhook only the oldest
unfinished row can be claimed: deliveries keep their order. A claim that was not renewed for a minute belonged to a
process that is gone. So a row is sent at least once; after a crash perhaps twice, with the same `X-Webhook-Delivery`.
"""

import asyncio
import hashlib
import hmac
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, func, select, update

from .db import Database, Db
from .models import utcnow, webhook_deliveries, webhooks
from .queue import Queue
from .upstreams.ask import Unreachable, post
from .upstreams.client import UpstreamClient

RETRIES = 3
TIMEOUT_S = 10.0
MAX_PAUSE_S = 20.0  # between two attempts
LEASE = timedelta(seconds=60)  # longer than an attempt and the pause before it
CONCURRENCY = 10  # deliveries at once, each to another webhook
TURN_S = 60.0  # of a worker
TROUBLE_S = 5.0  # before the next look, when the database could not be asked
KEEP, KEEP_ROWS = timedelta(days=30), 1000  # of what is finished: so long, and so many of each webhook
TRIM_EVERY_S = 3600.0

PASSING = (408, 425, 429)  # statuses that another attempt may change, besides 5xx
INACTIVE = "The webhook was deactivated"
LOST = "The process that made the last attempt is gone"

log = logging.getLogger("fastapi_app")

_row = webhook_deliveries.c
_UNFINISHED = _row.status.in_(("pending", "delivering"))
_FINISHED = _row.status.in_(("delivered", "failed"))
_OLDEST = select(func.min(_row.id)).where(_UNFINISHED).group_by(_row.webhook_id)
_TURNS = (
    select(
        _row.id,
        _row.webhook_id,
        _row.event_type,
        _row.attempts,
        _row.claimed_at,
        webhooks.c.url,
        webhooks.c.secret,
        webhooks.c.is_active,
    )
    .join(webhooks, webhooks.c.id == _row.webhook_id)
    .where(_row.id.in_(_OLDEST))
    .order_by(_row.id)
)
_PAYLOAD = select(_row.payload).where(_row.id == bindparam("delivery_id"))
_CROWDED = select(_row.webhook_id).group_by(_row.webhook_id).having(func.count() > KEEP_ROWS)


@dataclass(slots=True)
class Delivery:
    """A row whose turn it is, and where it goes. `claimed_at` is by whom: no two processes claim at one time."""

    id: int
    webhook_id: int
    event_type: str
    attempts: int
    claimed_at: datetime | None
    url: str
    secret: str | None
    is_active: bool


class Sent(NamedTuple):
    """How an attempt ended: with a status, or with a sentence why there is none."""

    status: int | None
    error: str | None
    milliseconds: int = 0

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def may_change(self) -> bool:
        """Whether another attempt may end differently."""
        return self.status is None or self.status >= 500 or self.status in PASSING


class Outbox:
    """The deliveries that this process makes, at most CONCURRENCY at once."""

    def __init__(
        self,
        database: Database,
        client: UpstreamClient,
        *,
        timeout_s: float,
        backoff_s: float,
        queue: Queue | None = None,
    ) -> None:
        """With a queue, workers send; see `empty`."""
        self._database, self._client, self._queue = database, client, queue
        self._calling: asyncio.Task[None] | None = None
        self._timeout_s, self._backoff_s = min(timeout_s, TIMEOUT_S), backoff_s
        self._more, self._turn_over = asyncio.Event(), asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by webhook
        self._trimmed_at = float("-inf")

    async def begin(self) -> None:
        """With the start of the process: take over what one that is gone has left, and wait for more."""
        if self._queue is None:
            self._watching = asyncio.create_task(self._watch(await self._look()), name="webhooks")

    def deliver(self) -> None:
        """Send what waits, soon."""
        self._more.set()
        if self._queue is not None and (self._calling is None or self._calling.done()):
            self._calling = asyncio.create_task(self._call(self._queue), name="webhooks")

    async def _call(self, queue: Queue) -> None:
        while self._more.is_set():
            self._more.clear()
            await queue.put("webhooks")

    async def empty(self) -> None:
        """Send what can be sent now. After TURN_S nothing more is begun, because others wait for the same worker; an
        attempt that is under way ends by itself, because its receiver may know of it already."""
        self._turn_over.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                await self._look()
                while self._tasks:
                    await self._more.wait()
                    self._more.clear()
                    await self._look()
        self._turn_over.set()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def send(self, url: str, secret: str | None, event_type: str, delivery: str, payload: str) -> Sent:
        """One attempt. Receivers compare the signature with the HMAC of the bytes that they got."""
        content = payload.encode()
        headers = {"Content-Type": "application/json", "X-Webhook-Event": event_type, "X-Webhook-Delivery": delivery}
        if secret:
            headers["X-Webhook-Signature"] = f"sha256={hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()}"
        try:
            status, milliseconds = await post(self._client, url, content, headers, self._timeout_s)
        except Unreachable as error:
            return Sent(None, str(error))
        return Sent(status, None, milliseconds)

    async def aclose(self) -> None:
        """Stop. What was not delivered goes back to the others."""
        if self._calling is not None:
            await asyncio.gather(self._calling, return_exceptions=True)
        tasks = [task for task in (self._watching, *self._tasks.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, pause_s: float | None) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._more.wait()
            self._more.clear()
            pause_s = await self._look()

    async def _look(self) -> float | None:
        try:
            return await self._deliver_all()
        except Exception:
            log.exception("webhooks")
            return TROUBLE_S

    async def _deliver_all(self) -> float | None:
        """Begin what can be begun. Seconds until more may be possible by itself; None when nothing is left."""
        rows = [Delivery(*row) for row in await Db(self._database).execute(_TURNS)]
        if not rows and self._queue is None:
            await self._trim_now_and_then()
        gone, until = utcnow() - LEASE, []
        for row in rows:
            if row.webhook_id in self._tasks:
                continue
            if row.claimed_at is not None and row.claimed_at > gone:
                until.append((row.claimed_at - gone).total_seconds())
            elif len(self._tasks) < CONCURRENCY:
                self._start(row)
        return max(0.1, min(until)) if until else None

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.webhook_id}")
        self._tasks[delivery.webhook_id] = task
        task.add_done_callback(lambda _: self._end(delivery.webhook_id))

    def _end(self, webhook_id: int) -> None:
        del self._tasks[webhook_id]
        self._more.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.is_active and delivery.attempts <= RETRIES:
                await self._attempts(delivery)
            else:
                await self._finish(delivery, Sent(None, LOST if delivery.is_active else INACTIVE))
        except asyncio.CancelledError:
            await self._give_back(delivery)
            raise
        except Exception:
            log.exception("webhook delivery %d", delivery.id)

    async def _attempts(self, delivery: Delivery) -> None:
        """With pauses between them, until it is delivered, there is no hope, or others go on with it."""
        while not self._turn_over.is_set():
            if not await self._claim(delivery):
                return
            payload = await Db(self._database).scalar(_PAYLOAD, {"delivery_id": delivery.id}) or ""
            sent = await self.send(delivery.url, delivery.secret, delivery.event_type, str(delivery.id), payload)
            if not sent.may_change or delivery.attempts > RETRIES:
                await self._finish(delivery, sent)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_pause_s(self._backoff_s, delivery.attempts)):
                    await self._turn_over.wait()
        await self._give_back(delivery)

    async def _claim(self, delivery: Delivery) -> bool:
        """For one more attempt, which is counted. False when somebody else has it."""
        before = delivery.claimed_at
        delivery.attempts, delivery.claimed_at = delivery.attempts + 1, utcnow()
        claim = {"status": "delivering", "attempts": delivery.attempts, "claimed_at": delivery.claimed_at}
        return await self._change(delivery, before, **claim)

    async def _finish(self, delivery: Delivery, sent: Sent) -> None:
        status = "delivered" if sent.delivered else "failed"
        end = {"status": status, "response_status": sent.status, "error": sent.error, "finished_at": utcnow()}
        await self._change(delivery, delivery.claimed_at, claimed_at=None, **end)

    async def _give_back(self, delivery: Delivery) -> None:
        await self._change(delivery, delivery.claimed_at, status="pending", claimed_at=None)

    async def _change(self, delivery: Delivery, since: datetime | None, **values: Any) -> bool:
        """Write to a row that is unfinished and claimed since then. Whether it was."""
        claimed = _row.claimed_at.is_(None) if since is None else _row.claimed_at == since
        changed = update(webhook_deliveries).where(_row.id == delivery.id, _UNFINISHED, claimed).values(**values)
        async with Db(self._database).transaction() as connection:
            return (await connection.execute(changed)).rowcount == 1

    async def _trim_now_and_then(self) -> None:
        if time.monotonic() - self._trimmed_at > TRIM_EVERY_S:
            self._trimmed_at = time.monotonic()
            await trim(self._database)


def _pause_s(backoff_s: float, attempts: int) -> float:
    longest = min(MAX_PAUSE_S, backoff_s * 2.0 ** (attempts - 1))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


async def trim(database: Database) -> None:
    """Forget what was finished long ago, and all but the newest of each webhook."""
    async with Db(database).transaction() as connection:
        await connection.execute(delete(webhook_deliveries).where(_FINISHED, _row.created_at < utcnow() - KEEP))
        for webhook_id in (await connection.execute(_CROWDED)).scalars().all():
            of_webhook = select(_row.id).where(_row.webhook_id == webhook_id)
            last = (await connection.execute(of_webhook.order_by(_row.id.desc()).offset(KEEP_ROWS).limit(1))).scalar()
            older = and_(_row.webhook_id == webhook_id, _FINISHED, _row.id <= last)
            await connection.execute(delete(webhook_deliveries).where(older))
