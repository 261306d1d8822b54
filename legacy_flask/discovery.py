"""Discovery: artists and videos that the library does not have yet."""

from contextlib import suppress

from flask import Blueprint, jsonify, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from . import events, jobs, settings
from .artists import adopt, artist_json, count_videos, name_fields, refuse_duplicates
from .audit import audit
from .auth import role_required
from .db import get_session, transaction
from .http import ApiError, find_or_404, json_body, query_int, success, text
from .matching import Wanted, ranked, split_title
from .models import Artist, Video, name_key
from .upstreams import imvdb, youtube
from .videos import video_json, youtube_fields

bp = Blueprint("discovery", __name__, url_prefix="/api/discovery")

MAX_QUERY = 200  # characters
ATTEMPTS = 5  # at storing, when others store the same videos for other artists


# --- artists -----------------------------------------------------------------------------------------------------


@bp.get("/artists")
@role_required("user")
def discover_artists():
    query = search_term()
    db = get_session()
    entities = imvdb.search_entities(settings.texts(db), query)
    return jsonify(artists=entities_json(db, entities), count=len(entities), query=query)


@bp.get("/artists/<imvdb_id>")
@role_required("user")
def preview_artist(imvdb_id):
    db = get_session()
    entity, videos = imvdb.entity(settings.texts(db), imvdb_id)
    known = known_videos(db, Video.imvdb_id, [video.imvdb_id for video in videos])
    shown = [
        {
            "imvdb_id": video.imvdb_id,
            "title": video.title,
            "year": video.year,
            "image": video.image,
            "already_have": video.imvdb_id in known,
            "video_id": known.get(video.imvdb_id),
        }
        for video in videos
    ]
    return jsonify(entities_json(db, [entity])[0] | {"bio": entity.bio, "videos": shown})


@bp.post("/artists/import")
@role_required("user")
def import_artist():
    """An artist of IMVDb, with the picture if that can be had."""
    data = json_body()
    imvdb_id = text(data, "imvdb_id", 50)
    if imvdb_id is None:
        raise ApiError(400, "imvdb_id is required")
    flags = {field: bool(data[field]) for field in ("monitored", "auto_download") if field in data}
    db = get_session()
    refuse_duplicates(db, {"imvdb_id": imvdb_id})
    entity, _ = imvdb.entity(settings.texts(db), imvdb_id)
    found = {"imvdb_id": imvdb_id, "bio": entity.bio, "thumbnail_url": entity.image}
    artist_id = adopt(name_fields({"name": entity.name}) | found | flags, source="imvdb")
    db = get_session()
    artist = find_or_404(db, Artist, artist_id)
    return success("Artist imported", 201, artist=artist_json(artist, count_videos(db, artist)))


def entities_json(db, entities: list[imvdb.Entity]) -> list[dict]:
    """With marks on those that the library has, by their id there or by their name."""
    ids, keys = [entity.imvdb_id for entity in entities], [name_key(entity.name) for entity in entities]
    by_id = dict(db.execute(select(Artist.imvdb_id, Artist.id).where(Artist.imvdb_id.in_(ids))).all())
    by_name = dict(db.execute(select(Artist.name_key, Artist.id).where(Artist.name_key.in_(keys))).all())
    had = [by_id.get(entity.imvdb_id, by_name.get(name_key(entity.name))) for entity in entities]
    return [
        {
            "imvdb_id": entity.imvdb_id,
            "name": entity.name,
            "image": entity.image,
            "video_count": entity.video_count,
            "already_have": artist_id is not None,
            "artist_id": artist_id,
        }
        for entity, artist_id in zip(entities, had)
    ]


# --- videos ------------------------------------------------------------------------------------------------------


@bp.get("/videos")
@role_required("user")
def search_youtube():
    query = search_term()
    limit = min(max(query_int("max_results", 10), 1), youtube.AT_ONCE)
    db = get_session()
    videos = youtube.search_videos(settings.texts(db), query, limit)
    known = known_videos(db, Video.youtube_id, [video.youtube_id for video in videos])
    return jsonify(videos=[found_json(video, known) for video in videos], count=len(videos), query=query)


def found_json(video: youtube.FoundVideo, known: dict) -> dict:
    artist, song = split_title(video.title, video.channel)
    return {
        "youtube_id": video.youtube_id,
        "url": youtube.watch_url(video.youtube_id),
        "title": video.title,
        "artist": artist,
        "song": song,
        "channel": video.channel,
        "year": video.year,
        "duration": video.duration,
        "views": video.views,
        "thumbnail_url": video.thumbnail_url,
        "already_have": video.youtube_id in known,
        "video_id": known.get(video.youtube_id),
    }


@bp.post("/artist/<int:artist_id>")
@role_required("user")
def discover_for_artist(artist_id):
    """Store the best new videos of an artist as WANTED."""
    db = get_session()
    artist = find_or_404(db, Artist, artist_id)
    texts = settings.texts(db)
    found, matches = search(texts, artist.name)
    about = {"artist": {"id": artist_id, "name": artist.name}, "found": found, "matched": len(matches)}

    def note(db, stored: list[dict]) -> None:
        audit(db, "discovery.artist", f"artist:{artist_id}", stored=len(stored))
        events.emit(db, "discovery.completed", about | {"stored": len(stored)})

    stored = store(artist_id, matches, most(texts), note)
    return success(f"{len(stored)} new videos found", stored=len(stored), videos=stored, **about)


@bp.post("/all")
@role_required("manager")
def discover_all():
    return success("Discovery started", 202, job_id=start_all())


def start_all(max_videos: int | None = None, job_id: str = "") -> str:
    """Begin to look for new videos of all monitored artists, `max_videos` of each, one after the other; the job's id.

    Raises ApiError 400 without a key, 409 while such a job is running.
    """
    db = get_session()
    texts = settings.texts(db)
    youtube.key_of(texts)
    artists = db.execute(select(Artist.id, Artist.name).where(Artist.monitored).order_by(Artist.id)).all()
    limit = most(texts) if max_videos is None else max_videos

    def work(report) -> dict:
        result = {"artists": len(artists), "failed": 0, "stored": 0}
        for number, (artist_id, name) in enumerate(artists, 1):
            try:
                result["stored"] += len(store(artist_id, search(texts, name)[1], limit))
            except ApiError:
                result["failed"] += 1
            report(100 * number // len(artists), f"{number} of {len(artists)} artists")
        with transaction() as db:
            events.emit(db, "discovery.completed", result)
        return result

    arguments, busy = {"max_videos": limit}, "Discovery is running already"
    return jobs.start("discovery", work, arguments=arguments, busy=busy, job_id=job_id, artists=len(artists))


def search(texts: dict, artist_name: str) -> tuple[int, list[tuple]]:
    """How many videos there are of an artist, and the scores and videos that are good enough, the best first."""
    found = youtube.search_videos(texts, f"{artist_name} official music video")
    return len(found), ranked(Wanted(artist_name), found, settings.as_number(texts["discovery_threshold"], 60))


def most(texts: dict) -> int:
    """New videos of one artist at a time."""
    return min(int(settings.as_number(texts["discovery_max_videos"], 10)), youtube.AT_ONCE)


def store(artist_id: int, matches: list[tuple], limit: int, note=None) -> list[dict]:
    """The best ones that nobody has stored yet, stored now as WANTED; `note(db, stored)` is part of the transaction."""

    def attempt() -> list[dict]:
        with transaction() as db:
            stored = insert_new(db, artist_id, matches, limit)
            if note:
                note(db, stored)
        return stored

    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError):  # they were found for another artist, too, who was quicker
            return attempt()
    return attempt()


def insert_new(db, artist_id: int, matches: list[tuple], limit: int) -> list[dict]:
    find_or_404(db, Artist, artist_id, lock=True)
    known = known_videos(db, Video.youtube_id, [video.youtube_id for _, video in matches])
    new = [(score, video) for score, video in matches if video.youtube_id not in known][:limit]
    if not new:
        return []
    rows = {video.youtube_id: Video(artist_id=artist_id, **youtube_fields(video)) for _, video in new}
    db.add_all(rows[youtube_id] for youtube_id in sorted(rows))  # in one order, so that nobody waits for each other
    db.flush()
    stored = [video_json(rows[video.youtube_id]) | {"score": score} for score, video in new]
    events.emit(db, "video.created", {"videos": [{"id": row["id"], "title": row["title"]} for row in stored]})
    return stored


# --- small things ------------------------------------------------------------------------------------------------


def search_term() -> str:
    query = request.args.get("q", "").strip()
    if not query:
        raise ApiError(400, "q is required")
    if len(query) > MAX_QUERY:
        raise ApiError(400, f"q is too long: at most {MAX_QUERY} characters")
    return query


def known_videos(db, column, values: list[str]) -> dict:
    """Ids of the videos that have one of these values."""
    return dict(db.execute(select(column, Video.id).where(column.in_(values))).all())
