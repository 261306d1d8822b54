"""The outbox: what `events` has written is sent from here, by one thread of each process.

A row is claimed by compare-and-set, so one process of either application sends it. Of each webhook only the oldest
unfinished row can be claimed: deliveries keep their order. A claim that was not renewed for a minute belonged to a
process that is gone. So a row is sent at least once; after a crash perhaps twice, with the same `X-Webhook-Delivery`.
"""

import hashlib
import hmac
import os
import random
import time
from datetime import datetime, timedelta
from threading import Event, Lock, Thread
from typing import NamedTuple

from flask import Flask, current_app
from sqlalchemy import delete, func, select, update

from .db import close_session, get_session, transaction
from .models import Webhook, WebhookDelivery, utcnow
from .upstreams import client

RETRIES = 3
TIMEOUT_S = 10.0
MAX_PAUSE_S = 20.0  # between two attempts
LEASE = timedelta(seconds=60)  # longer than an attempt and the pause before it
TROUBLE_S = 5.0  # before the next look, when the database could not be asked
KEEP, KEEP_ROWS = timedelta(days=30), 1000  # of what is finished: so long, and so many of each webhook
TRIM_EVERY_S = 3600.0

PASSING = (408, 425, 429)  # statuses that another attempt may change, besides 5xx
INACTIVE = "The webhook was deactivated"
LOST = "The process that made the last attempt is gone"
UNFINISHED = WebhookDelivery.status.in_(("pending", "delivering"))
OLDEST = select(func.min(WebhookDelivery.id)).where(UNFINISHED).group_by(WebhookDelivery.webhook_id)


class Delivery(NamedTuple):
    """A row whose turn it is, and where it goes. `claimed_at` is by whom: no two processes claim at one time."""

    id: int
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
    """The thread of this process. It is there as long as something waits."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.lock, self.more = Lock(), Event()
        self.thread = None
        self.pid = 0
        self.trimmed_at = float("-inf")

    def begin(self) -> None:
        """With the first request of a process: take over what one that is gone has left."""
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.deliver()

    def deliver(self) -> None:
        """Send what waits, soon."""
        with self.lock:
            self.more.set()
            if self.thread is None or not self.thread.is_alive():
                self.thread = Thread(target=self.run, name="webhooks", daemon=True)
                self.thread.start()

    def run(self) -> None:
        while True:
            self.more.clear()
            pause_s = self.deliver_all()
            if pause_s:
                self.more.wait(pause_s)
            elif self.is_idle():
                return

    def is_idle(self) -> bool:
        with self.lock:
            if not self.more.is_set():
                self.thread = None
            return self.thread is None

    def deliver_all(self) -> float:
        """Until nothing can be claimed. Seconds until that may change by itself; 0 when nothing is left."""
        with self.app.app_context():
            try:
                while rows := oldest():
                    free = [row for row in rows if row.claimed_at is None or row.claimed_at < utcnow() - LEASE]
                    if not free:
                        left = min(row.claimed_at for row in rows) + LEASE - utcnow()
                        return max(0.1, left.total_seconds())
                    begin(free[0])
                self.trim()
            except Exception:
                self.app.logger.exception("webhooks")
                return TROUBLE_S
        return 0.0

    def trim(self) -> None:
        if time.monotonic() - self.trimmed_at > TRIM_EVERY_S:
            self.trimmed_at = time.monotonic()
            trim()


def init_app(app: Flask) -> None:
    outbox = app.extensions["outbox"] = Outbox(app)
    if not app.config["SHADOW"]:
        app.before_request(outbox.begin)


def oldest() -> list[Delivery]:
    """Of each webhook the delivery whose turn it is."""
    row = WebhookDelivery
    columns = (row.id, row.event_type, row.attempts, row.claimed_at, Webhook.url, Webhook.secret, Webhook.is_active)
    query = select(*columns).join(Webhook, Webhook.id == row.webhook_id).where(row.id.in_(OLDEST)).order_by(row.id)
    found = [Delivery(*values) for values in get_session().execute(query)]
    close_session()
    return found


def begin(delivery: Delivery) -> None:
    if not delivery.is_active or delivery.attempts > RETRIES:
        finish(delivery, Sent(None, LOST if delivery.is_active else INACTIVE))
    elif mine := claimed(delivery):
        deliver(mine)


def claimed(delivery: Delivery) -> Delivery | None:
    """The delivery for one more attempt, which is counted; None when somebody else has it."""
    now = utcnow()
    mine = delivery._replace(attempts=delivery.attempts + 1, claimed_at=now)
    there = change(delivery, status="delivering", attempts=mine.attempts, claimed_at=now)
    return mine if there else None


def change(delivery: Delivery, **values) -> bool:
    """Write to a row that is unfinished, and claimed by the same as when it was read. Whether it was."""
    row = WebhookDelivery
    by = row.claimed_at.is_(None) if delivery.claimed_at is None else row.claimed_at == delivery.claimed_at
    with transaction() as db:
        changed = update(row).where(row.id == delivery.id, UNFINISHED, by).values(**values)
        return db.execute(changed, execution_options={"synchronize_session": False}).rowcount == 1


def deliver(delivery: Delivery) -> None:
    """Attempts with pauses between them, until it is delivered or there is no hope. `delivery` is claimed."""
    payload = get_session().scalar(select(WebhookDelivery.payload).where(WebhookDelivery.id == delivery.id))
    close_session()  # no connection is held while others are waited for
    while delivery is not None and payload is not None:
        sent = send(delivery.url, delivery.secret, delivery.event_type, str(delivery.id), payload)
        if not sent.may_change or delivery.attempts > RETRIES:
            finish(delivery, sent)
            return
        time.sleep(pause_s(delivery.attempts))
        delivery = claimed(delivery)


def finish(delivery: Delivery, sent: Sent) -> None:
    status = "delivered" if sent.delivered else "failed"
    end = {"status": status, "response_status": sent.status, "error": sent.error, "finished_at": utcnow()}
    change(delivery, claimed_at=None, **end)


def send(url: str, secret: str | None, event_type: str, delivery: str, payload: str) -> Sent:
    """One attempt. Receivers compare the signature with the HMAC of the bytes that they got."""
    content = payload.encode()
    headers = {"Content-Type": "application/json", "X-Webhook-Event": event_type, "X-Webhook-Delivery": delivery}
    if secret:
        signature = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
        headers["X-Webhook-Signature"] = f"sha256={signature}"
    try:
        timeout_s = min(TIMEOUT_S, current_app.config["UPSTREAM_TIMEOUT_S"])
        status, milliseconds = client.post(url, content, headers, timeout_s)
    except client.Unreachable as error:
        return Sent(None, str(error))
    return Sent(status, None, milliseconds)


def pause_s(attempts: int) -> float:
    longest = min(MAX_PAUSE_S, current_app.config["UPSTREAM_BACKOFF_S"] * 2 ** (attempts - 1))
    return longest * random.uniform(0.5, 1)


def trim() -> None:
    """Forget what was finished long ago, and all but the newest of each webhook."""
    row, finished = WebhookDelivery, WebhookDelivery.status.in_(("delivered", "failed"))
    with transaction() as db:
        db.execute(delete(row).where(finished, row.created_at < utcnow() - KEEP))
        many = select(row.webhook_id).group_by(row.webhook_id).having(func.count() > KEEP_ROWS)
        for webhook_id in db.scalars(many).all():
            of_webhook = select(row.id).where(row.webhook_id == webhook_id)
            last = db.scalar(of_webhook.order_by(row.id.desc()).offset(KEEP_ROWS).limit(1))
            db.execute(delete(row).where(row.webhook_id == webhook_id, finished, row.id <= last))
