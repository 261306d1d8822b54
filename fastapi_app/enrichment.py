"""Metadata of all artists, from IMVDb, Last.fm and Wikipedia: parts of them by as many workers as there are."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from sqlalchemy import func, select

from . import artists, jobs, settings
from .db import Db
from .http import ApiError
from .models import artists as rows
from .upstreams import imvdb

KIND, PART = "enrichment", "enrichment_part"
PART_SIZE = 20  # artists
AT_ONCE = 5  # of one part; how often a service is asked is its own limit
BUSY = "The metadata of all artists is being updated already"

_HOW_MANY = select(func.count()).select_from(rows)
_IDS = select(rows.c.id).order_by(rows.c.id)


async def start_all(request: Request, db: Db) -> str:
    """Have it done; the job's id. Raises ApiError 400 without a key of IMVDb, 409 while such a job is running."""
    imvdb.key_of(await settings.texts(db))
    return await jobs.start(request, KIND, {}, busy=BUSY, artists=await db.scalar(_HOW_MANY))


async def enrich(request: Request, _arguments: Mapping[str, Any], _report: jobs.Report) -> dict[str, Any]:
    """Leave it to parts; what they count is added."""
    ids = [row.id for row in await Db(request.app.state.database).rows(_IDS)]
    parts = [{"artists": ids[start : start + PART_SIZE]} for start in range(0, len(ids), PART_SIZE)]
    await jobs.start_parts(request, request.state.job_id, PART, parts)
    return {"artists": 0, "updated": 0, "failed": 0}


async def enrich_part(request: Request, arguments: Mapping[str, Any], report: jobs.Report) -> dict[str, Any]:
    """A few at a time. Those of whom nothing can be found are counted."""
    db, gate, ids = Db(request.app.state.database), asyncio.Semaphore(AT_ONCE), arguments["artists"]
    texts = await settings.texts(db)
    result = {"artists": len(ids), "updated": 0, "failed": 0}

    async def refresh(artist_id: int) -> None:
        async with gate:
            try:
                news = await artists.refresh(request, db, artist_id, texts, overwrite=False)
                result["updated"] += bool(news["updated"])
            except ApiError:
                result["failed"] += 1

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(refresh(artist_id)) for artist_id in ids]
        for number, task in enumerate(tasks, 1):
            await asyncio.wait([task])
            await report(100 * number // len(ids), f"{number} of {len(ids)} artists")
    return result
