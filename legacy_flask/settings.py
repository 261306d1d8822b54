"""Settings: texts in the database. Secrets are written, never shown."""

from flask import Blueprint, jsonify
from sqlalchemy import select

from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .http import ApiError, json_body
from .models import Setting

bp = Blueprint("settings", __name__, url_prefix="/api/settings")

MASK = "********"
MAX_KEY, MAX_VALUE = 100, 10_000


@bp.get("/")
@role_required("admin")
def get_settings():
    rows = get_session().scalars(select(Setting).order_by(Setting.key))
    settings = {row.key: setting_json(row) for row in rows}
    return jsonify(settings=settings, count=len(settings))


@bp.get("/<string:key>")
@role_required("admin")
def get_setting(key):
    row = get_session().get(Setting, key)
    if row is None:
        raise ApiError(404, "Setting not found")
    return jsonify({"key": row.key} | setting_json(row))


@bp.put("/<string:key>")
@role_required("admin")
def put_setting(key):
    data = json_body()
    if "value" not in data:
        raise ApiError(400, "value is required")
    with transaction() as db:
        row = store(db, key, data["value"])
        audit(db, "settings.put", f"setting:{key}")
        db.flush()
    return jsonify({"key": row.key} | setting_json(row))


@bp.put("/bulk")
@role_required("admin")
def put_bulk():
    """The body is a map of keys to values: all are stored, or none."""
    data = json_body()
    with transaction() as db:
        for key in sorted(data):
            store(db, key, data[key])
        audit(db, "settings.put_bulk", keys=sorted(data))
    return jsonify(message="Settings updated", updated=sorted(data), count=len(data))


def store(db, key: str, value) -> Setting:
    if not key.strip() or len(key) > MAX_KEY:
        raise ApiError(400, "A key has 1 to 100 characters")
    if isinstance(value, dict | list):
        raise ApiError(400, "A value is a text, a number, true, false or null")
    value = str(value)
    if len(value) > MAX_VALUE:
        raise ApiError(400, "A value has at most 10000 characters")
    if any("\ud800" <= char <= "\udfff" for char in key + value):
        raise ApiError(400, "The setting is not valid text")
    row = db.get(Setting, key, with_for_update=True)
    if row is None:
        row = Setting(key=key, value=value)
        db.add(row)
    elif not (row.is_secret and value == MASK):  # a form that sends back what it was shown
        row.value = value
    return row


def setting_json(row: Setting) -> dict:
    return {
        "value": MASK if row.is_secret and row.value else row.value,
        "description": row.description,
        "is_secret": row.is_secret,
        "updated_at": row.updated_at.isoformat(),
    }
