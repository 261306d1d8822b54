"""Events: what happened here, told to the webhooks that want to know.

The table `webhook_deliveries` is an outbox: its rows are written in the transaction of the change, and sent after the
commit.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from .db import after_commit
from .json import encode
from .models import utcnow, webhook_deliveries, webhooks

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

_ACTIVE = select(webhooks.c.id, webhooks.c.events).where(webhooks.c.is_active).with_for_update(read=True)


async def emit(connection: AsyncConnection, request: Request, event_type: str, data: Mapping[str, Any]) -> None:
    """To be called in the transaction of the change; what is sent after its commit is what `data` was now.

    `data` names what the event is about: `{"artist": {"id", "name"}}`, `{"videos": [{"id", "title"}, …]}`; and more.
    """
    wanted = [row.id for row in await connection.execute(_ACTIVE) if ANY in row.events or event_type in row.events]
    if wanted:
        payload = message(event_type, data)
        rows = [{"webhook_id": one, "event_type": event_type, "payload": payload} for one in wanted]
        await connection.execute(insert(webhook_deliveries), rows)
        after_commit(connection, request.app.state.outbox.deliver)


def message(event_type: str, data: Mapping[str, Any]) -> str:
    """The JSON text that is signed and sent."""
    told = {"event_type": event_type, "timestamp": utcnow().isoformat(), "data": dict(data)}
    return encode(told).decode().rstrip("\n")
