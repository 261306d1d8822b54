"""Settings: texts in the database. Secrets are written, never shown."""

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from .audit import audit
from .db import Db, DbDep
from .http import ApiError, json_body, json_response, read
from .identity import Admin
from .models import settings

router = APIRouter(prefix="/api/settings", tags=["settings"])

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

_TEXTS = select(settings.c.key, settings.c.value)
_ALL = select(settings).order_by(settings.c.key)
_ONE = select(settings).where(settings.c.key == bindparam("name"))
_ONE_LOCKED = _ONE.with_for_update()


@read(router, "/", name="settings.get_settings")
async def get_settings(db: DbDep, _: Admin) -> Response:
    found = {row.key: _setting_json(row) for row in await db.execute(_ALL)}
    return json_response({"settings": found, "count": len(found)})


@router.put("/bulk", name="settings.put_bulk")
async def put_bulk(request: Request, db: DbDep, _: Admin) -> Response:
    """The body is a map of keys to values: all are stored, or none."""
    data = await json_body(request)
    async with db.transaction() as connection:
        for key in sorted(data):
            await _store(connection, key, data[key])
        await audit(connection, request, "settings.put_bulk", keys=sorted(data))
    return json_response({"message": "Settings updated", "updated": sorted(data), "count": len(data)})


@read(router, "/{key}", name="settings.get_setting")
async def get_setting(key: str, db: DbDep, _: Admin) -> Response:
    row = await db.row(_ONE, {"name": key})
    if row is None:
        raise ApiError(404, "Setting not found")
    return json_response({"key": row.key} | _setting_json(row))


@router.put("/{key}", name="settings.put_setting")
async def put_setting(request: Request, key: str, db: DbDep, _: Admin) -> Response:
    data = await json_body(request)
    if "value" not in data:
        raise ApiError(400, "value is required")
    async with db.transaction() as connection:
        await _store(connection, key, data["value"])
        await audit(connection, request, "settings.put", f"setting:{key}")
        row = (await connection.execute(_ONE, {"name": key})).one()
    return json_response({"key": row.key} | _setting_json(row))


async def texts(db: Db) -> dict[str, str]:
    """All settings, secrets in clear."""
    return DEFAULTS | {key: value for key, value in await db.execute(_TEXTS) if value.strip()}


def as_bool(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "yes", "on")


def as_number(value: str, default: float, low: float = 0) -> float:
    """What a person wrote where a number belongs; `default` for anything else."""
    try:
        number = float(value)
    except ValueError:
        return default
    return number if low <= number < float("inf") else default


async def _store(connection: AsyncConnection, key: str, value: object) -> None:
    if not key.strip() or len(key) > MAX_KEY:
        raise ApiError(400, "A key has 1 to 100 characters")
    if isinstance(value, dict | list):
        raise ApiError(400, "A value is a text, a number, true, false or null")
    value = str(value)
    if len(value) > MAX_VALUE:
        raise ApiError(400, "A value has at most 10000 characters")
    if any("\ud800" <= char <= "\udfff" for char in key + value):
        raise ApiError(400, "The setting is not valid text")
    row = (await connection.execute(_ONE_LOCKED, {"name": key})).first()
    if row is None:
        await connection.execute(insert(settings).values(key=key, value=value, is_secret=key in SECRETS))
    elif value not in (row.value, MASK if row.is_secret else row.value):  # a form may send back what it was shown
        await connection.execute(update(settings).where(settings.c.key == key).values(value=value))


def _setting_json(row: Any) -> dict[str, Any]:
    return {
        "value": MASK if row.is_secret and row.value else row.value,
        "description": row.description,
        "is_secret": row.is_secret,
        "updated_at": row.updated_at.isoformat(),
    }
