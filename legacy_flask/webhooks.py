"""Webhooks: who wants to be told what happens here."""

from urllib.parse import unquote, urlsplit

from flask import Blueprint, current_app, jsonify, request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from . import events, outbox
from .audit import audit
from .auth import role_required
from .db import close_session, get_session, transaction
from .http import ApiError, json_body, success, text, text_list
from .models import Webhook, WebhookDelivery
from .upstreams.failures import AddressRefused
from .upstreams.guard import Guard, check

bp = Blueprint("webhooks", __name__, url_prefix="/api/webhooks")

MASK = "********"
TEST = "webhook.test"


@bp.get("/")
@role_required("admin")
def list_webhooks():
    """With the newest delivery of each."""
    db = get_session()
    newest = select(func.max(WebhookDelivery.id)).group_by(WebhookDelivery.webhook_id)
    rows = db.scalars(select(WebhookDelivery).where(WebhookDelivery.id.in_(newest)))
    last = {row.webhook_id: delivery_json(row) for row in rows}
    webhooks = [
        webhook_json(webhook) | {"last_delivery": last.get(webhook.id)}
        for webhook in db.scalars(select(Webhook).order_by(Webhook.id))
    ]
    return success("Webhooks", webhooks=webhooks, count=len(webhooks))


@bp.post("/")
@role_required("admin")
def create_webhook():
    fields, faults = webhook_fields(json_body(), required=("url", "events"))
    if faults:
        return invalid(faults)
    webhook = Webhook(**fields)
    try:
        with transaction() as db:
            refuse_duplicate(db, fields["url"])
            db.add(webhook)
            db.flush()
            audit(db, "webhooks.create", f"webhook:{webhook.id}", url=webhook.url)
    except IntegrityError:
        refuse_duplicate(get_session(), fields["url"])
        raise
    return success("Webhook created", 201, webhook=webhook_json(webhook))


@bp.put("/<path:url>")
@role_required("admin")
def update_webhook(url):
    fields, faults = webhook_fields(json_body())
    if not fields and not faults:
        faults = ["No known field given"]
    if faults:
        return invalid(faults)
    try:
        with transaction() as db:
            webhook = find_webhook(db, url)
            refuse_duplicate(db, fields.get("url"), webhook.id)
            for field, value in fields.items():
                if (field, value) != ("secret", MASK):  # a form that sends back what it was shown
                    setattr(webhook, field, value)
            db.flush()
            audit(db, "webhooks.update", f"webhook:{webhook.id}", url=webhook.url, fields=sorted(fields))
            answer = webhook_json(webhook)
    except IntegrityError:
        refuse_duplicate(get_session(), fields.get("url"))
        raise
    return success("Webhook updated", webhook=answer)


@bp.delete("/<path:url>")
@role_required("admin")
def delete_webhook(url):
    """What it has not been told yet is forgotten."""
    with transaction() as db:
        webhook = find_webhook(db, url)
        db.delete(webhook)
        audit(db, "webhooks.delete", f"webhook:{webhook.id}", url=webhook.url)
    return success("Webhook deleted")


@bp.post("/test")
@role_required("admin")
def test_webhook():
    """Without a secret in the body the message is signed with the one that is stored for this url, if any."""
    fields, faults = webhook_fields(json_body(), ("url", "secret"), required=("url",))
    if faults:
        return invalid(faults)
    url, secret = fields["url"], fields.get("secret", MASK)
    if secret == MASK:
        secret = get_session().scalar(select(Webhook.secret).where(Webhook.url == url))
    close_session()  # no connection is held while others are waited for
    sent = outbox.send(url, secret, TEST, "test", events.message(TEST, {"message": "This is a test"}))
    if sent.status is None:
        raise ApiError(502, sent.error, success=False)
    answer = {"response_status": sent.status, "milliseconds": sent.milliseconds}
    if not sent.delivered:
        raise ApiError(502, "It did not accept the message", success=False, **answer)
    return success("The message was accepted", **answer)


# --- small things ------------------------------------------------------------------------------------------------


def webhook_fields(data: dict, known=("url", "events", "secret", "is_active"), required=()) -> tuple[dict, list[str]]:
    """The columns that the body sets, and all that is wrong with it."""
    fields, faults = {}, []
    for field in known:
        if field not in data and field not in required:
            continue
        try:
            value = fields[field] = READERS[field](data)
        except ApiError as fault:
            faults.append(fault.message)
            continue
        if not value and field in ("url", "events"):
            faults.append(f"{field} is required")
        if field == "events":
            faults += [f"Unknown event: {name}" for name in value if name not in (*events.TYPES, events.ANY)]
    return fields, faults


def url_field(data: dict) -> str | None:
    """An address that may be asked; whether its name leads to a private network shows when it is connected to."""
    url = text(data, "url", 500)
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise ApiError(400, "url must be an http or https address")
    try:
        check(url)
        allowed = Guard(current_app.config["ALLOWED_NETWORKS"]).allows(urlsplit(url).hostname.rstrip("."))
    except AddressRefused:
        raise ApiError(400, "url is not an address that may be asked") from None
    except ValueError:
        return url  # a name
    if not allowed:
        raise ApiError(400, "url leads into a private network")
    return url


READERS = {
    "url": url_field,
    "events": lambda data: text_list(data, "events"),
    "secret": lambda data: text(data, "secret", 255),
    "is_active": lambda data: bool(data["is_active"]),
}


def invalid(faults: list[str]):
    return jsonify(valid=False, errors=faults), 400


def find_webhook(db, path: str) -> Webhook:
    """The webhook whose address the path and the query of this request are."""
    asked = request.environ.get("RAW_URI", "").partition("?")[0].removeprefix(f"{bp.url_prefix}/")
    wanted = spellings(asked, path, request.query_string.decode(errors="replace"))
    rows = db.scalars(select(Webhook).where(Webhook.url.in_(wanted)).with_for_update()).all()
    if not rows:
        raise ApiError(404, "Webhook not found", success=False)
    return min(rows, key=lambda webhook: wanted.index(webhook.url))


def spellings(raw: str, path: str, query: str) -> list[str]:
    """What the client may mean: percent signs as they stand, or what they stand for."""
    if not query:
        return [raw, path]
    return [f"{raw}?{query}", f"{path}?{query}", f"{path}?{unquote(query)}"]


def refuse_duplicate(db, url: str | None, own_id: int = 0) -> None:
    if url is None:
        return
    existing = db.execute(select(Webhook.id, Webhook.url).where(Webhook.url == url, Webhook.id != own_id)).first()
    if existing is not None:
        raise ApiError(409, "A webhook with this url already exists", webhook={"id": existing.id, "url": existing.url})


def webhook_json(webhook: Webhook) -> dict:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "secret": MASK if webhook.secret else None,
        "is_active": webhook.is_active,
        "created_at": webhook.created_at.isoformat(),
        "updated_at": webhook.updated_at.isoformat(),
    }


def delivery_json(delivery: WebhookDelivery) -> dict:
    return {
        "id": delivery.id,
        "event_type": delivery.event_type,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "response_status": delivery.response_status,
        "error": delivery.error,
        "created_at": delivery.created_at.isoformat(),
        "finished_at": delivery.finished_at.isoformat() if delivery.finished_at else None,
    }
