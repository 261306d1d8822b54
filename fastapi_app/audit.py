"""Who did what to which thing: one row per change, written in the transaction of the change."""

from typing import Any

from fastapi import Request
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from .models import audit_log

_ENTRY = insert(audit_log)


async def audit(connection: AsyncConnection, request: Request, action: str, target: str = "", **detail: Any) -> None:
    """Note what the user of this request does; of nobody in particular while nobody is known."""
    user = getattr(request.state, "user", None)
    entry = {
        "user_id": user.id if user else None,
        "username": user.username if user else "",
        "action": action,
        "target": target,
        "detail": detail,
        "ip": client_address(request),
    }
    await connection.execute(_ENTRY, entry)


def client_address(request: Request) -> str:
    return (request.client.host if request.client else "")[:45]
