"""What workers can do: KINDS by the `type` of a row of `jobs`, and ERRANDS."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI

from . import discovery, downloading, indexing, playlists
from .jobs import Kind

KINDS: dict[str, Kind] = {
    "discovery": Kind("metadata", timeout_s=3600, attempts=3, work=discovery.discover),
    "playlists": Kind("metadata", timeout_s=3600, attempts=3, work=playlists.sync_all),
    "index": Kind("media", timeout_s=6 * 3600, attempts=3, work=indexing.index),
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
