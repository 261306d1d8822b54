"""Metadata of all artists, from IMVDb, Last.fm and Wikipedia."""

from sqlalchemy import func, select

from . import artists, jobs, settings
from .db import get_session
from .http import ApiError
from .models import Artist
from .upstreams import imvdb

KIND = "enrichment"
BUSY = "The metadata of all artists is being updated already"


def start_all() -> str:
    """Begin it; the job's id. Raises ApiError 400 without a key of IMVDb, 409 while such a job is running."""
    db = get_session()
    imvdb.key_of(settings.texts(db))
    return jobs.start(KIND, enrich, busy=BUSY, artists=db.scalar(select(func.count(Artist.id))))


def enrich(report: jobs.Report) -> dict:
    """One artist after the other. Those of whom nothing can be found are counted."""
    db = get_session()
    texts, ids = settings.texts(db), db.scalars(select(Artist.id).order_by(Artist.id)).all()
    result = {"artists": len(ids), "updated": 0, "failed": 0}
    for number, artist_id in enumerate(ids, 1):
        try:
            result["updated"] += bool(artists.refresh(artist_id, texts, False)["updated"])
        except ApiError:
            result["failed"] += 1
        report(100 * number // len(ids), f"{number} of {len(ids)} artists")
    return result
