"""Metadata of all artists: both sides find the same, whether one artist comes after the other or a few at a time."""

from pathlib import Path
from typing import Any

import pytest

import fastapi_app.enrichment
import legacy_flask.enrichment
from legacy_flask.seed import seed
from tests.support.sides import LegacySide, Side, opened
from tests.support.upstreams import Upstream

IDS = list(range(1, 13))
FOUND = "SELECT name, imvdb_id, bio, genres, thumbnail_url, thumbnail_path FROM artists ORDER BY id"
NOTED = "SELECT target, detail FROM audit_log WHERE action = 'artists.refresh' ORDER BY target"


def enriched(side: Side) -> dict[str, Any]:
    said: list[tuple[int, str]] = []
    if isinstance(side, LegacySide):
        with side.app.app_context():
            result = legacy_flask.enrichment.enrich(lambda percent, message: said.append((percent, message)))
    else:

        async def report(percent: int, message: str = "") -> None:
            said.append((percent, message))

        part = fastapi_app.enrichment.enrich_part(side.request, {"artists": IDS}, report)
        try:
            result = side.run(part)
        finally:
            side.run(side.app.state.upstream.aclose())
    assert (100, "12 of 12 artists") == said[-1]
    return dict(result)


@pytest.mark.parametrize("trouble", [{}, {"lastfm": {"malformed": True}}, {"imvdb": {"status": 500}}], ids=str)
def test_both_sides_find_the_same_and_go_on_after_those_who_fail(
    upstream: Upstream, tmp_path: Path, trouble: dict[str, Any]
) -> None:
    left = []
    for name in ("legacy", "port"):
        upstream.reset()
        upstream.dial(trouble)
        more = {"ALLOWED_NETWORKS": "127.0.0.1/32", "UPSTREAM_BACKOFF_S": "0.01"}
        with opened(name, tmp_path / name, **more) as side:
            filler = legacy_flask.create_app()
            seed(filler, "small")
            filler.extensions["engine"].dispose()
            side.execute(
                f"DELETE FROM downloads WHERE video_id IN (SELECT id FROM videos WHERE artist_id > {len(IDS)})"
            )
            side.execute(f"DELETE FROM videos WHERE artist_id > {len(IDS)}")
            side.execute(f"DELETE FROM artists WHERE id > {len(IDS)}")
            for key, value in upstream.settings.items():
                side.execute(f"DELETE FROM settings WHERE key = '{key}'")
                added = f"('{key}', '{value}', CURRENT_TIMESTAMP)"
                side.execute(f"INSERT INTO settings (key, value, updated_at) VALUES {added}")
            left.append((enriched(side), side.rows(FOUND), side.rows(NOTED)))

    assert left[0] == left[1]
    result = left[0][0]
    assert len(IDS) == result["artists"]
    assert (result["updated"] == 0) == ("imvdb" in trouble)
    assert 0 < result["failed"] <= len(IDS)
