"""Webhooks: who wants to be told what happens here."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from .artists import changes
from .audit import audit
from .db import Db, DbDep, insert_row
from .events import ANY, TYPES, message
from .http import ApiError, json_body, json_response, read, success, text, text_list
from .identity import Admin
from .models import webhook_deliveries, webhooks
from .outbox import Outbox
from .upstreams.failures import AddressRefused
from .upstreams.guard import Guard, check

PREFIX = "/api/webhooks"
router = APIRouter(prefix=PREFIX, tags=["webhooks"])

MASK = "********"
TEST = "webhook.test"

_ALL = select(webhooks).order_by(webhooks.c.id)
_ONE = select(webhooks).where(webhooks.c.id == bindparam("webhook_id"))
_SECRET = select(webhooks.c.secret).where(webhooks.c.url == bindparam("url"))
_NEWEST = select(webhook_deliveries).where(
    webhook_deliveries.c.id.in_(select(func.max(webhook_deliveries.c.id)).group_by(webhook_deliveries.c.webhook_id))
)


@read(router, "/", name="webhooks.list_webhooks")
async def list_webhooks(db: DbDep, _: Admin) -> Response:
    """With the newest delivery of each."""
    last = {row.webhook_id: _delivery_json(row) for row in await db.execute(_NEWEST)}
    shown = [_webhook_json(row) | {"last_delivery": last.get(row.id)} for row in await db.execute(_ALL)]
    return success("Webhooks", webhooks=shown, count=len(shown))


@router.post("/", name="webhooks.create_webhook")
async def create_webhook(request: Request, db: DbDep, _: Admin) -> Response:
    fields, faults = _fields(request, await json_body(request), required=("url", "events"))
    if faults:
        return _invalid(faults)
    try:
        async with db.transaction() as connection:
            await _refuse_duplicate(connection, fields["url"])
            webhook_id = await insert_row(connection, webhooks, fields)
            await audit(connection, request, "webhooks.create", f"webhook:{webhook_id}", url=fields["url"])
            answer = _webhook_json((await connection.execute(_ONE, {"webhook_id": webhook_id})).one())
    except IntegrityError:
        await _refuse_duplicate(db, fields["url"])
        raise
    return success("Webhook created", 201, webhook=answer)


@router.put("/{url:tail}", name="webhooks.update_webhook")
async def update_webhook(request: Request, url: str, db: DbDep, _: Admin) -> Response:
    fields, faults = _fields(request, await json_body(request))
    if not fields and not faults:
        faults = ["No known field given"]
    if faults:
        return _invalid(faults)
    try:
        async with db.transaction() as connection:
            webhook = await _find(connection, request, url)
            await _refuse_duplicate(connection, fields.get("url"), webhook.id)
            kept = {**fields, "secret": webhook.secret} if fields.get("secret") == MASK else fields
            if changed := changes(webhook, kept):
                await connection.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(changed))
            detail = {"url": fields.get("url", webhook.url), "fields": sorted(fields)}
            await audit(connection, request, "webhooks.update", f"webhook:{webhook.id}", **detail)
            answer = _webhook_json((await connection.execute(_ONE, {"webhook_id": webhook.id})).one())
    except IntegrityError:
        await _refuse_duplicate(db, fields.get("url"))
        raise
    return success("Webhook updated", webhook=answer)


@router.delete("/{url:tail}", name="webhooks.delete_webhook")
async def delete_webhook(request: Request, url: str, db: DbDep, _: Admin) -> Response:
    """What it has not been told yet is forgotten."""
    async with db.transaction() as connection:
        webhook = await _find(connection, request, url)
        await connection.execute(delete(webhooks).where(webhooks.c.id == webhook.id))
        await audit(connection, request, "webhooks.delete", f"webhook:{webhook.id}", url=webhook.url)
    return success("Webhook deleted")


@router.post("/test", name="webhooks.test_webhook")
async def test_webhook(request: Request, db: DbDep, _: Admin) -> Response:  # noqa: PT019 - no test of pytest's
    """Without a secret in the body the message is signed with the one that is stored for this url, if any."""
    fields, faults = _fields(request, await json_body(request), ("url", "secret"), required=("url",))
    if faults:
        return _invalid(faults)
    url, secret = fields["url"], fields.get("secret", MASK)
    if secret == MASK:
        secret = await db.scalar(_SECRET, {"url": url})
    outbox: Outbox = request.app.state.outbox
    sent = await outbox.send(url, secret, TEST, "test", message(TEST, {"message": "This is a test"}))
    if sent.error is not None:
        raise ApiError(502, sent.error, success=False)
    answer: dict[str, Any] = {"response_status": sent.status, "milliseconds": sent.milliseconds}
    if not sent.delivered:
        raise ApiError(502, "It did not accept the message", success=False, **answer)
    return success("The message was accepted", **answer)


# Small things


def _fields(
    request: Request,
    data: Mapping[str, Any],
    known: Iterable[str] = ("url", "events", "secret", "is_active"),
    required: Iterable[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The columns that the body sets, and all that is wrong with it."""
    fields: dict[str, Any] = {}
    faults: list[str] = []
    for field in known:
        if field not in data and field not in required:
            continue
        try:
            value = fields[field] = _READERS[field](request, data)
        except ApiError as fault:
            faults.append(fault.message)
            continue
        if not value and field in ("url", "events"):
            faults.append(f"{field} is required")
        if field == "events":
            faults += [f"Unknown event: {name}" for name in value if name not in (*TYPES, ANY)]
    return fields, faults


def _url(request: Request, data: Mapping[str, Any]) -> str | None:
    """An address that may be asked; whether its name leads to a private network shows when it is connected to."""
    url = text(data, "url", 500)
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise ApiError(400, "url must be an http or https address")
    try:
        check(url)
        allowed = Guard(request.app.state.settings.allowed_networks).allows((urlsplit(url).hostname or "").rstrip("."))
    except AddressRefused:
        raise ApiError(400, "url is not an address that may be asked") from None
    except ValueError:
        return url  # a name
    if not allowed:
        raise ApiError(400, "url leads into a private network")
    return url


_READERS: dict[str, Callable[[Request, Mapping[str, Any]], Any]] = {
    "url": _url,
    "events": lambda _, data: text_list(data, "events"),
    "secret": lambda _, data: text(data, "secret", 255),
    "is_active": lambda _, data: bool(data["is_active"]),
}


def _invalid(faults: list[str]) -> Response:
    return json_response({"valid": False, "errors": faults}, 400)


async def _find(connection: AsyncConnection, request: Request, path: str) -> Any:
    """The webhook whose address the path and the query of this request are, locked. Raises ApiError 404."""
    asked = request.scope.get("raw_path", b"").decode("latin-1").removeprefix(f"{PREFIX}/")
    wanted = spellings(asked, path, request.scope["query_string"].decode(errors="replace"))
    rows = (await connection.execute(select(webhooks).where(webhooks.c.url.in_(wanted)).with_for_update())).all()
    if not rows:
        raise ApiError(404, "Webhook not found", success=False)
    return min(rows, key=lambda row: wanted.index(row.url))


def spellings(raw: str, path: str, query: str) -> list[str]:
    """What the client may mean: percent signs as they stand, or what they stand for."""
    if not query:
        return [raw, path]
    return [f"{raw}?{query}", f"{path}?{query}", f"{path}?{unquote(query)}"]


async def _refuse_duplicate(db: Db | AsyncConnection, url: str | None, own_id: int = 0) -> None:
    """Raises ApiError 409 with the webhook that has this url already."""
    if url is None:
        return
    same = select(webhooks.c.id, webhooks.c.url).where(webhooks.c.url == url, webhooks.c.id != own_id)
    existing = (await db.execute(same)).first()
    if existing is not None:
        raise ApiError(409, "A webhook with this url already exists", webhook={"id": existing.id, "url": existing.url})


def _webhook_json(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "events": row.events,
        "secret": MASK if row.secret else None,
        "is_active": row.is_active,
        "created_at": row.created_at.isoformat(),
        "updated_at": row.updated_at.isoformat(),
    }


def _delivery_json(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "event_type": row.event_type,
        "status": row.status,
        "attempts": row.attempts,
        "response_status": row.response_status,
        "error": row.error,
        "created_at": row.created_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
    }
