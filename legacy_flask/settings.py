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
SECRETS = ("youtube_api_key", "imvdb_api_key", "spotify_client_secret", "lastfm_api_key")  # also without a row yet

DEFAULTS = {  # of settings that have no row
    "youtube_url": "https://www.googleapis.com/youtube/v3",
    "imvdb_url": "https://imvdb.com/api/v1",
    "spotify_url": "https://api.spotify.com/v1",
    "spotify_token_url": "https://accounts.spotify.com/api/token",
    "lastfm_url": "https://ws.audioscrobbler.com/2.0/",
    "wikipedia_url": "https://en.wikipedia.org/w/api.php",
    "youtube_per_second": "10",
    "imvdb_per_second": "1",
    "spotify_per_second": "10",
    "lastfm_per_second": "5",
    "wikipedia_per_second": "10",
    "discovery_threshold": "60",
    "discovery_max_videos": "10",
    "organize_nfo": "false",
    "max_concurrent_downloads": "3",
    "download_quality": "1080",
    "download_format": "mp4",
    "download_proxy": "",
    "download_max_minutes": "720",
    "download_max_mb": "16384",
    "auto_organize_downloads": "true",
    "schedule_enabled": "false",
    "schedule_time": "03:00",
    "schedule_days": "daily",
    "schedule_max_videos": "10",
}


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


def texts(db) -> dict[str, str]:
    """All settings, secrets in clear."""
    stored = db.execute(select(Setting.key, Setting.value)).all()
    return DEFAULTS | {key: value for key, value in stored if value.strip()}


def as_bool(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "yes", "on")


def as_number(value: str, default: float, low: float = 0) -> float:
    """What a person wrote where a number belongs; `default` for anything else."""
    try:
        number = float(value)
    except ValueError:
        return default
    return number if low <= number < float("inf") else default


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
        row = Setting(key=key, value=value, is_secret=key in SECRETS)
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
