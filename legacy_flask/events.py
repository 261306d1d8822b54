"""Events: what happened here, told to the webhooks that want to know.

The table `webhook_deliveries` is an outbox: its rows are written in the transaction of the change, and sent after the
commit.
"""

import json

from flask import current_app
from sqlalchemy import event, select

from .models import Webhook, WebhookDelivery, utcnow

TYPES = (
    "artist.created",
    "artist.updated",
    "artist.deleted",
    "artist.imported",
    "video.created",
    "video.updated",
    "video.deleted",
    "video.status_changed",
    "video.imported",
    "download.queued",
    "download.started",
    "download.completed",
    "download.failed",
    "playlist.synced",
    "library.organized",
    "library.indexed",
    "discovery.completed",
)
ANY = "*"


def emit(db, event_type: str, data: dict) -> None:
    """To be called in the transaction of the change; what is sent after its commit is what `data` was now.

    `data` names what the event is about: `{"artist": {"id", "name"}}`, `{"videos": [{"id", "title"}, …]}`; and more.
    """
    active = select(Webhook.id, Webhook.events).where(Webhook.is_active).with_for_update(read=True)
    wanted = [webhook_id for webhook_id, events in db.execute(active) if ANY in events or event_type in events]
    if wanted:
        payload = message(event_type, data)
        db.add_all(WebhookDelivery(webhook_id=one, event_type=event_type, payload=payload) for one in wanted)
        outbox = current_app.extensions["outbox"]
        event.listen(db, "after_commit", lambda _: outbox.deliver(), once=True)


def message(event_type: str, data: dict) -> str:
    """The JSON text that is signed and sent."""
    told = {"event_type": event_type, "timestamp": utcnow().isoformat(), "data": data}
    return json.dumps(told, sort_keys=True, separators=(",", ":"))
