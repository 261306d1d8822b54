"""Playlists of YouTube that are looked through for new videos."""

from flask import Blueprint, jsonify
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from . import events, jobs, settings
from .artists import name_fields
from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .files import safe_name
from .http import MAX_INT, ApiError, json_body, success, text
from .matching import split_title
from .models import Artist, Download, PlaylistMonitor, Video, utcnow
from .queueing import wake_after
from .upstreams import youtube
from .videos import UNKNOWN_ARTIST, youtube_fields

bp = Blueprint("playlists", __name__, url_prefix="/api/youtube/playlists")

ATTEMPTS = 5  # at storing what somebody else may store at the same time
AT_ONCE = 500  # values in one query


@bp.get("/")
@role_required("readonly")
def list_monitors():
    rows = get_session().scalars(select(PlaylistMonitor).order_by(PlaylistMonitor.id))
    monitors = [monitor_json(row) for row in rows]
    return jsonify(monitors=monitors, count=len(monitors))


@bp.post("/")
@role_required("user")
def create_monitor():
    data = json_body()
    playlist_id, auto_download = playlist_field(data), bool(data.get("auto_download"))
    db = get_session()
    refuse_duplicate(db, playlist_id)
    found = youtube.playlist(settings.texts(db), playlist_id)
    monitor = PlaylistMonitor(**found._asdict(), auto_download=auto_download)
    try:
        with transaction() as db:
            refuse_duplicate(db, playlist_id)
            db.add(monitor)
            db.flush()
            audit(db, "playlists.create", f"playlist:{monitor.id}", title=monitor.title)
    except IntegrityError:
        refuse_duplicate(get_session(), playlist_id)
        raise
    return success("Playlist added", 201, monitor=monitor_json(monitor))


@bp.delete("/<int:monitor_id>")
@role_required("user")
def delete_monitor(monitor_id):
    """The videos that it has found stay."""
    with transaction() as db:
        monitor = find_monitor(db, monitor_id, lock=True)
        db.delete(monitor)
        audit(db, "playlists.delete", f"playlist:{monitor_id}", title=monitor.title)
    return success("Playlist removed")


# --- looking for new videos --------------------------------------------------------------------------------------


@bp.post("/<int:monitor_id>/sync")
@role_required("user")
def sync_monitor(monitor_id):
    """Store what the library does not have as WANTED, and queue it when the monitor says so."""
    db = get_session()
    monitor = find_monitor(db, monitor_id)
    items = youtube.playlist_items(settings.texts(db), monitor.playlist_id)
    return success("Playlist synced", **store(monitor_id, items))


def start_all(job_id: str = "") -> str:
    """Begin to sync all playlists; the job's id. Raises ApiError 400 without a key, 409 while such a job is running."""
    db = get_session()
    youtube.key_of(settings.texts(db))
    busy, number = "The playlists are being synced already", db.scalar(select(func.count(PlaylistMonitor.id)))
    return jobs.start("playlists", sync_all, busy=busy, job_id=job_id, playlists=number)


def sync_all(report: jobs.Report) -> dict:
    db = get_session()
    texts, monitors = settings.texts(db), db.scalars(select(PlaylistMonitor).order_by(PlaylistMonitor.id)).all()
    result = {"playlists": len(monitors), "failed": 0, "added": 0, "queued": 0}
    for number, monitor in enumerate(monitors, 1):
        try:
            counts = store(monitor.id, youtube.playlist_items(texts, monitor.playlist_id))
            result |= {name: result[name] + counts[name] for name in ("added", "queued")}
        except ApiError:  # gone, private, or the service is down
            result["failed"] += 1
        report(100 * number // len(monitors), f"{number} of {len(monitors)} playlists")
    return result


def store(monitor_id: int, items: list[youtube.PlaylistItem]) -> dict:
    """What came of it: added, artists_created, queued, existing, and the monitor."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return store_once(monitor_id, items)
        except IntegrityError:  # somebody has just added one of the videos, or its artist
            if attempt == ATTEMPTS:
                raise


def store_once(monitor_id: int, items: list[youtube.PlaylistItem]) -> dict:
    with transaction() as db:
        monitor = find_monitor(db, monitor_id, lock=True)  # another sync of it waits here
        new = missing(db, items)
        artists, artists_created = artists_of(db, new)
        rows = [Video(artist_id=artists[item.youtube_id].id, **fields_of(item)) for item in new]
        db.add_all(rows)
        db.flush()
        queued = []
        if monitor.auto_download:
            queued = [
                Download(video_id=row.id, active_video_id=row.id, quality=artists[row.youtube_id].quality)
                for row in rows
            ]
            db.add_all(queued)
            wake_after(db)
        monitor.last_synced_at, monitor.video_count = utcnow(), len(items)
        db.flush()
        counts = {"added": len(rows), "artists_created": artists_created, "queued": len(queued)}
        audit(db, "playlists.sync", f"playlist:{monitor_id}", **counts)
        tell(db, monitor, rows, counts)
        return counts | {"existing": len(items) - len(rows), "monitor": monitor_json(monitor)}


def missing(db, items: list[youtube.PlaylistItem]) -> list[youtube.PlaylistItem]:
    """Those that the library does not have, in one order, so that nobody waits for each other."""
    found = {item.youtube_id: item for item in items}
    known = known_values(db, Video.youtube_id, list(found))
    return [found[youtube_id] for youtube_id in sorted(found.keys() - known)]


def artists_of(db, items: list[youtube.PlaylistItem]) -> tuple[dict[str, Artist], int]:
    """The artist of each item by its `youtube_id`, and how many are new: unmonitored, nobody asked for them."""
    named = {item.youtube_id: artist_fields(item) for item in items}
    wanted = {fields["name_key"]: fields for fields in named.values()}
    known = known_values(db, Artist.name_key, list(wanted))
    new = [wanted[key] for key in sorted(wanted.keys() - known)]
    db.add_all(Artist(**fields, folder_path=safe_name(fields["name"]), monitored=False) for fields in new)
    db.flush()
    rows = {}
    for chunk in chunks(list(wanted)):
        rows |= {row.name_key: row for row in db.scalars(select(Artist).where(Artist.name_key.in_(chunk)))}
    return {youtube_id: rows[fields["name_key"]] for youtube_id, fields in named.items()}, len(new)


def tell(db, monitor: PlaylistMonitor, rows: list[Video], counts: dict) -> None:
    videos = [{"id": row.id, "title": row.title} for row in rows]
    if videos:
        events.emit(db, "video.created", {"videos": videos})
    if counts["queued"]:
        events.emit(db, "download.queued", {"videos": videos})
    about = {"playlist": {"id": monitor.id, "title": monitor.title}}
    events.emit(db, "playlist.synced", about | counts)


# --- small things ------------------------------------------------------------------------------------------------


def find_monitor(db, monitor_id: int, lock: bool = False) -> PlaylistMonitor:
    row = db.get(PlaylistMonitor, monitor_id, with_for_update=lock or None) if monitor_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, "Playlist not found")
    return row


def refuse_duplicate(db, playlist_id: str) -> None:
    existing = db.scalar(select(PlaylistMonitor).where(PlaylistMonitor.playlist_id == playlist_id))
    if existing is not None:
        shown = {"id": existing.id, "title": existing.title}
        raise ApiError(409, "This playlist is looked through already", monitor=shown)


def playlist_field(data: dict) -> str:
    spelling = text(data, "playlist_id", 1000) or text(data, "url", 1000)
    if spelling is None:
        raise ApiError(400, "playlist_id or url is required")
    playlist_id = youtube.playlist_id_of(spelling)
    if playlist_id is None:
        raise ApiError(400, "Not a playlist on YouTube")
    return playlist_id


def artist_fields(item: youtube.PlaylistItem) -> dict:
    """Names of the artist that title or channel name."""
    name = split_title(item.title, item.channel)[0] or UNKNOWN_ARTIST
    try:
        return name_fields({"name": name[:255]})
    except ApiError:  # too long when its case is folded
        return name_fields({"name": UNKNOWN_ARTIST})


def fields_of(item: youtube.PlaylistItem) -> dict:
    return youtube_fields(youtube.FoundVideo(**item._asdict(), duration=None, views=None))


def known_values(db, column, values: list[str]) -> set[str]:
    """Those of the values that are there."""
    return {value for chunk in chunks(values) for value in db.scalars(select(column).where(column.in_(chunk)))}


def chunks(values: list) -> list[list]:
    return [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]


def monitor_json(monitor: PlaylistMonitor) -> dict:
    return {
        "id": monitor.id,
        "playlist_id": monitor.playlist_id,
        "url": f"https://www.youtube.com/playlist?list={monitor.playlist_id}",
        "title": monitor.title,
        "channel": monitor.channel,
        "auto_download": monitor.auto_download,
        "video_count": monitor.video_count,
        "last_synced_at": monitor.last_synced_at.isoformat() if monitor.last_synced_at else None,
        "created_at": monitor.created_at.isoformat(),
        "updated_at": monitor.updated_at.isoformat(),
    }
