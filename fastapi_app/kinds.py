"""What workers can do: KINDS by the `type` of a row of `jobs`, and ERRANDS."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI

from . import discovery, downloading, enrichment, indexing, playlists, transcoding
from .jobs import Kind

KINDS: dict[str, Kind] = {
    "discovery": Kind("metadata", timeout_s=3600, attempts=3, work=discovery.discover),
    "playlists": Kind("metadata", timeout_s=3600, attempts=3, work=playlists.sync_all),
    "index": Kind("media", timeout_s=6 * 3600, attempts=3, work=indexing.index),
    "enrichment": Kind("metadata", timeout_s=600, attempts=3, work=enrichment.enrich),
    "enrichment_part": Kind("metadata", timeout_s=3600, attempts=3, work=enrichment.enrich_part),
    "transcode": Kind("media", timeout_s=transcoding.TIMEOUT_S + 600, attempts=2, work=transcoding.transcode),
}


@dataclass(frozen=True, slots=True)
class Errand:
    """Work that no row of `jobs` stands for: `work(app)` does all there is, and finds what that is in other tables."""

    queue: str
    work: Callable[[FastAPI], Awaitable[None]]
    timeout_s: float | None = None
    has_rows: bool = False


async def _deliver(app: FastAPI) -> None:
    await app.state.outbox.empty()


ERRANDS: dict[str, Errand] = {
    "webhooks": Errand("webhooks", _deliver),
    "download": Errand("downloads", downloading.drain),
}
