"""Downloads of the port: claimed, fetched by yt-dlp from a local site, checked, and brought into the library."""

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, insert, select, update

from fastapi_app import claiming, create_app, downloading, intake, media, working
from fastapi_app.db import Db
from fastapi_app.fetchers import Fetchers, shared
from fastapi_app.files import safe_name
from fastapi_app.models import artists, downloads, settings, utcnow, videos, webhook_deliveries, webhooks
from tests.cases.downloads import HOSTILE_TITLES
from tests.support.asgi import Lifespan
from tests.support.databases import create_database
from tests.support.media_server import MediaServer, media_server, video
from tests.support.processes import free_port
from tests.support.upstreams import upstream
from tests.upstream.catalogue import songs

SLOW = "/slow.mp4?size=400000&rate=20000"  # 20 seconds


@pytest.fixture(scope="module")
def site() -> Iterator[MediaServer]:
    with media_server() as site:
        yield site


@pytest.fixture(scope="module", autouse=True)
def nursery() -> Iterator[None]:
    shared.begin()
    yield
    shared.end()


@pytest.fixture
async def app(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FastAPI]:
    database = f"sqlite:///{tmp_path}/app.sqlite3"
    if getattr(request, "param", "sqlite") == "mariadb":
        database = create_database(request.getfixturevalue("mariadb_server"), "downloading")
    env = {"SECRET_KEY": "s" * 32, "DATA_PATH": str(tmp_path / "data"), "LIBRARY_PATH": str(tmp_path / "library")}
    env |= {"ALLOWED_NETWORKS": MediaServer.allowed, "DOWNLOAD_BACKOFF_S": "0.01"}
    for name, value in (env | {"DATABASE_URL": database, "REDIS_URL": ""}).items():
        monkeypatch.setenv(name, value)
    app = create_app()
    async with Lifespan(app):
        yield app


async def write(app: FastAPI, statement: Any) -> int:
    """The id of the row, if it is an insert of one."""
    async with Db(app.state.database).transaction() as connection:
        return int((await connection.execute(statement)).lastrowid or 0)


async def queued(app: FastAPI, url: str | None, *, title: str = "Song", artist: str = "Band", **fields: Any) -> int:
    """The id of a row that waits; of an artist of that name, who may be known already."""
    known = await Db(app.state.database).scalar(select(artists.c.id).where(artists.c.name == artist))
    names = {"name": artist, "name_key": artist.casefold(), "sort_name": artist, "folder_path": None}
    artist_id = known or await write(app, insert(artists).values(names))
    video_id = await write(app, insert(videos).values(artist_id=artist_id, title=title, url=url))
    values = {"video_id": video_id, "active_video_id": video_id} | fields
    return await write(app, insert(downloads).values(values))


async def row_of(app: FastAPI, download_id: int) -> Any:
    joined = select(downloads, videos.c.status.label("video_status"), videos.c.file_path.label("video_path"))
    joined = joined.add_columns(videos.c.duration, videos.c.file_size, videos.c.quality.label("video_quality"))
    joined = joined.join(videos, videos.c.id == downloads.c.video_id).where(downloads.c.id == download_id)
    return (await Db(app.state.database).execute(joined)).one()


async def change(app: FastAPI, download_id: int, **values: Any) -> None:
    await write(app, update(downloads).where(downloads.c.id == download_id).values(values))


async def setting(app: FastAPI, **texts: str) -> None:
    await write(app, insert(settings).values([{"key": key, "value": value} for key, value in texts.items()]))


async def until(app: FastAPI, download_id: int, what: Any) -> Any:
    async with asyncio.timeout(30):
        while not what(row := await row_of(app, download_id)):
            await asyncio.sleep(0.02)
    return row


async def closed(site: MediaServer) -> None:
    """Until nobody is being sent anything: the site notices a client that has left when it writes."""
    async with asyncio.timeout(30):
        while site.open:
            await asyncio.sleep(0.01)


def incoming(app: FastAPI, download_id: int) -> Path:
    path: Path = app.state.settings.downloads_path / ".incoming" / str(download_id)
    return path


async def test_a_video_is_fetched_checked_and_brought_into_the_library(app: FastAPI, site: MediaServer) -> None:
    download_id = await queued(app, f"{site.url}/direct.mp4", title="A/B: C?", artist="Höhner")

    await downloading.drain(app)

    row = await row_of(app, download_id)
    size = len(video())
    assert ("completed", 100, size, size, 0, None, 1) == (
        row.status,
        row.progress,
        row.bytes_done,
        row.bytes_total,
        row.eta,
        row.active_video_id,
        row.attempts,
    )
    assert ("DOWNLOADED", "Höhner/Höhner - A_B_ C_.mp4", size, 2) == (
        row.video_status,
        row.video_path,
        row.file_size,
        row.duration,
    )
    assert row.file_path == row.video_path
    assert video() == (app.state.settings.library_path / row.video_path).read_bytes()
    assert not incoming(app, download_id).exists()


async def test_a_stream_in_segments_and_a_page_with_a_video_are_downloaded(app: FastAPI, site: MediaServer) -> None:
    ids = [await queued(app, site.url + path, title=path) for path in ("/hls/index.m3u8", "/page.html")]

    await downloading.drain(app)

    rows = [await row_of(app, download_id) for download_id in ids]
    assert [("completed", 2)] * 2 == [(row.status, row.duration) for row in rows]


async def test_not_organized_it_waits_in_the_downloads_folder(app: FastAPI, site: MediaServer) -> None:
    await setting(app, auto_organize_downloads="false")
    download_id = await queued(app, f"{site.url}/direct.mp4")

    await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("completed", "Band - Song.mp4", "DOWNLOADED", None) == (
        row.status,
        row.file_path,
        row.video_status,
        row.video_path,
    )
    assert video() == (app.state.settings.downloads_path / "Band - Song.mp4").read_bytes()


@pytest.mark.parametrize("organized", ["true", "false"])
async def test_whatever_a_title_says_the_file_gets_a_name_in_its_folder(
    app: FastAPI, site: MediaServer, organized: str
) -> None:
    await setting(app, auto_organize_downloads=organized)
    titles, config = HOSTILE_TITLES.values(), app.state.settings
    folder, root = ("Björk/", config.library_path) if organized == "true" else ("", config.downloads_path)
    names = [f"{folder}{safe_name(f'Björk - {title}')}.mp4" for title in titles]
    urls = [f"{site.url}/direct.mp4?size={500_000 + number}" for number in range(len(titles))]
    ids = [await queued(app, url, title=title, artist="Björk") for url, title in zip(urls, titles, strict=True)]

    await downloading.drain(app)

    assert names == [(await row_of(app, download_id)).file_path for download_id in ids]
    found = (path for part in (config.library_path, config.downloads_path) for path in part.rglob("*"))
    assert {root / name for name in names} == {path for path in found if path.is_file()}


async def test_a_file_about_which_ffprobe_says_nothing_in_time_is_kept_and_asked_about_again(
    app: FastAPI, site: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, asked, answer_of = tmp_path / "slow", list[Path](), media.answer_of
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)

    async def first_in_vain(ffprobe: str, path: Path) -> bytes:
        asked.append(path)
        monkeypatch.setattr(media, "PROBE_TIMEOUT_S", 0.2 if len(asked) == 1 else 60)
        return await answer_of(str(slow) if len(asked) == 1 else ffprobe, path)

    monkeypatch.setattr(downloading, "answer_of", first_in_vain)
    download_id = await queued(app, f"{site.url}/direct.mp4")

    await downloading.drain(app)
    if (row := await row_of(app, download_id)).status == "pending":
        assert ("unexpected", True) == (row.error_code, incoming(app, download_id).exists())
        await asyncio.sleep(0.1)
        await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("completed", 2, "DOWNLOADED") == (row.status, row.attempts, row.video_status)


async def test_a_name_that_is_taken_gets_a_number_and_the_same_file_again_does_not(
    app: FastAPI, site: MediaServer
) -> None:
    folder = app.state.settings.library_path / "Band"
    folder.mkdir()
    (folder / "Band - Song.mp4").write_bytes(b"another one")
    (folder / "Band - Same.mp4").write_bytes(video())
    ids = [await queued(app, f"{site.url}/direct.mp4", title=title) for title in ("Song", "Same")]

    await downloading.drain(app)

    assert ["Band/Band - Song (1).mp4", "Band/Band - Same.mp4"] == [
        (await row_of(app, download_id)).file_path for download_id in ids
    ]
    assert b"another one" == (folder / "Band - Song.mp4").read_bytes()
    assert {"Band - Song.mp4", "Band - Song (1).mp4", "Band - Same.mp4"} == {path.name for path in folder.iterdir()}


async def test_picture_nfo_and_events_come_with_it(app: FastAPI, site: MediaServer) -> None:
    await setting(app, organize_nfo="true")
    await write(app, insert(webhooks).values(url="http://127.0.0.1:9/", events=["*"], is_active=True))
    download_id = await queued(app, f"{site.url}/direct.mp4")
    await write(app, update(videos).values(thumbnail_url=f"{site.url}/picture.jpg"))

    await downloading.drain(app)

    kept = (await Db(app.state.database).execute(select(videos.c.id, videos.c.thumbnail_path))).one()
    assert f"thumbnails/videos/{kept.id}" == kept.thumbnail_path
    assert (app.state.settings.data_path / kept.thumbnail_path / "medium.jpg").exists()
    assert "<title>Song</title>" in (app.state.settings.library_path / "Band/Band - Song.nfo").read_text()
    told = select(webhook_deliveries.c.event_type).order_by(webhook_deliveries.c.id)
    assert ["download.started", "download.completed"] == list((await Db(app.state.database).execute(told)).scalars())
    assert "completed" == (await row_of(app, download_id)).status


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing", "unavailable"),
        ("/sign-in", "sign_in"),
        ("/empty.html", "unsupported"),
        ("/text.mp4", "invalid_file"),
        ("/live.m3u8", "live"),
        ("/to-private", "address_refused"),
        ("/hls/inside.m3u8", "address_refused"),
        ("/direct.mp4#__youtubedl_smuggle=%7B%22http_headers%22%3A%7B%22X%22%3A%22y%22%7D%7D", "address_refused"),
    ],
)
async def test_what_cannot_be_downloaded_fails_with_a_code_and_leaves_nothing(
    app: FastAPI, site: MediaServer, path: str, code: str
) -> None:
    site.reset()
    download_id = await queued(app, site.url + path)

    await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("failed", code, claiming.ERRORS[code], 1, None, "FAILED") == (
        row.status,
        row.error_code,
        row.error_message,
        row.attempts,
        row.active_video_id,
        row.video_status,
    )
    assert [] == list(app.state.settings.library_path.iterdir())
    assert not incoming(app, download_id).exists()
    assert not [request for request in site.requests if request.path.startswith("private:")]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "-o/tmp/x", "http://user:pass@127.0.0.1/x.mp4", "ytsearch1:x"])
async def test_what_is_no_address_of_a_video_is_refused(app: FastAPI, url: str) -> None:
    download_id = await queued(app, url)

    await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("failed", "address_refused") == (row.status, row.error_code)


async def test_too_large_and_too_long_are_refused_by_the_settings(app: FastAPI, site: MediaServer) -> None:
    await setting(app, download_max_mb="1")
    download_id = await queued(app, f"{site.url}/direct.mp4?size=2000000")

    await downloading.drain(app)

    assert "too_large" == (await row_of(app, download_id)).error_code


async def test_what_passes_is_tried_again_later_and_not_for_ever(app: FastAPI, site: MediaServer) -> None:
    download_id = await queued(app, f"{site.url}/broken", max_attempts=2)

    await downloading.drain(app)
    first = await row_of(app, download_id)
    await until(app, download_id, lambda row: row.retry_at is None or row.retry_at <= utcnow())
    await downloading.drain(app)
    last = await row_of(app, download_id)

    if first.status == "pending":  # it may have been due again before the first drain had ended
        assert ("network", 1, "DOWNLOADING") == (first.error_code, first.attempts, first.video_status)
        assert first.retry_at is not None
    assert ("failed", "network", 2, "FAILED") == (last.status, last.error_code, last.attempts, last.video_status)


@pytest.mark.parametrize(("status", "kept"), [("paused", True), ("cancelled", False), ("pending", True)])
async def test_a_row_that_somebody_else_changes_stops_the_download_and_is_left_alone(
    app: FastAPI, site: MediaServer, status: str, kept: bool
) -> None:
    await setting(app, max_concurrent_downloads="1")
    download_id = await queued(app, site.url + SLOW)
    draining = asyncio.create_task(downloading.drain(app))
    await until(app, download_id, lambda row: row.bytes_done > 20_000)

    later = utcnow() + timedelta(hours=1)
    await change(app, download_id, status=status, retry_at=later)
    await draining

    row = await row_of(app, download_id)
    assert (status, later) == (row.status, row.retry_at)
    assert kept == incoming(app, download_id).exists()
    await closed(site)
    assert [] == list(app.state.settings.library_path.iterdir())


async def test_it_goes_on_where_it_was_paused(app: FastAPI, site: MediaServer) -> None:
    site.reset()
    download_id = await queued(app, f"{site.url}/slow.mp4?size=600000&rate=150000")
    draining = asyncio.create_task(downloading.drain(app))
    await until(app, download_id, lambda row: row.bytes_done > 20_000)
    await change(app, download_id, status="paused")
    await draining

    await change(app, download_id, status="pending")
    await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("completed", 2) == (row.status, row.attempts)
    assert any(not asked.startswith("bytes=0-") for asked in site.ranges("/slow.mp4"))
    stored = (app.state.settings.library_path / row.video_path).read_bytes()
    assert hashlib.sha256(video(600_000)).digest() == hashlib.sha256(stored).digest()


async def test_cancelled_while_its_file_gets_its_name_it_leaves_no_file(
    app: FastAPI, site: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, cancelled, place = threading.Event(), threading.Event(), intake.place

    def slow(*arguments: Any) -> Any:
        result = place(*arguments)
        placed.set()
        cancelled.wait(30)
        time.sleep(1.2)  # the disk is slow, or far away: whoever looks at the row sees it
        return result

    monkeypatch.setattr(intake, "place", slow)
    download_id = await queued(app, f"{site.url}/direct.mp4")
    draining = asyncio.create_task(downloading.drain(app))
    assert await asyncio.to_thread(placed.wait, 30)

    await change(app, download_id, status="cancelled", active_video_id=None)
    cancelled.set()
    await draining

    library: Path = app.state.settings.library_path
    assert [] == [path for path in library.rglob("*") if path.is_file()]
    assert not incoming(app, download_id).exists()


@pytest.mark.parametrize("status", ["completed", "downloading"])
async def test_who_has_slept_takes_no_file_away_from_the_attempt_that_came_after(
    app: FastAPI, site: MediaServer, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    complete = claiming.complete

    async def late(request: Any, db: Db, row: Any, file_path: str, *rest: Any) -> None:
        later: dict[str, Any] = {"attempts": row.attempts + 1, "runner": "another", "status": status}
        await change(app, row.id, **later, file_path=file_path if status == "completed" else None)
        await complete(request, db, row, file_path, *rest)

    monkeypatch.setattr(claiming, "complete", late)
    await queued(app, f"{site.url}/direct.mp4", title="Song", artist="Band")

    await downloading.drain(app)

    assert video() == (app.state.settings.library_path / "Band/Band - Song.mp4").read_bytes()


async def test_who_is_told_to_stop_puts_back_what_is_not_done(app: FastAPI, site: MediaServer) -> None:
    download_id = await queued(app, site.url + SLOW)
    draining = asyncio.create_task(downloading.drain(app))
    await until(app, download_id, lambda row: row.bytes_done > 0)

    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining

    row = await row_of(app, download_id)
    assert ("pending", 1, None, None) == (row.status, row.attempts, row.retry_at, row.error_code)
    assert 3 == row.max_attempts - row.attempts  # to be stopped is no failure: as many are left as before
    assert incoming(app, download_id).exists()
    await closed(site)


async def test_so_many_are_downloaded_at_once_as_the_setting_says_by_all_together(
    app: FastAPI, site: MediaServer
) -> None:
    await setting(app, max_concurrent_downloads="2")
    for number in range(5):
        await queued(app, f"{site.url}/slow.mp4?rate=60000&n={number}", title=f"Song {number}")
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            running = select(func.count()).where(downloads.c.status == "downloading")
            most = max(most, (await Db(app.state.database).execute(running)).scalar_one())
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    await asyncio.gather(downloading.drain(app), downloading.drain(app), downloading.drain(app))
    watching.cancel()

    ended = (await Db(app.state.database).execute(select(downloads.c.status, downloads.c.attempts))).all()
    assert [("completed", 1)] * 5 == [tuple(row) for row in ended]
    assert 2 == most


@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
async def test_who_waits_for_another_claim_counts_it_too(app: FastAPI) -> None:
    """Where readers do not wait for a writer, as they do not on MariaDB."""
    await setting(app, max_concurrent_downloads="1")
    for number in range(3):
        await queued(app, "http://127.0.0.1/", title=f"Song {number}")
    request, db = working.request_of(app), Db(app.state.database)
    async with db.transaction() as connection:  # somebody who claims
        await connection.execute(select(settings).with_for_update())
        claims = [asyncio.create_task(claiming.claim(request, db, name)) for name in ("one", "another")]
        await asyncio.sleep(0.5)

    claimed = [row for row in await asyncio.gather(*claims) if row]

    assert 1 == len(claimed)
    running = select(func.count()).where(downloads.c.status == "downloading")
    assert 1 == await db.scalar(running)


async def test_at_a_limit_of_0_nothing_begins(app: FastAPI, site: MediaServer) -> None:
    await setting(app, max_concurrent_downloads="0")
    download_id = await queued(app, f"{site.url}/direct.mp4")

    await downloading.drain(app)

    assert "pending" == (await row_of(app, download_id)).status


async def test_the_order_is_by_priority_and_then_by_age(app: FastAPI, site: MediaServer) -> None:
    await setting(app, max_concurrent_downloads="1")
    ids = [
        await queued(app, f"{site.url}/direct.mp4", title=str(priority), priority=priority) for priority in (5, 9, 1, 5)
    ]

    await downloading.drain(app)

    rows = [await row_of(app, download_id) for download_id in ids]
    assert [ids[at] for at in (2, 0, 3, 1)] == [row.id for row in sorted(rows, key=lambda row: row.started_at)]


async def test_a_row_without_a_sign_of_life_is_put_back_and_in_the_end_has_failed(app: FastAPI) -> None:
    silent, alive = utcnow() - timedelta(seconds=61), utcnow() - timedelta(seconds=30)
    common = {"status": "downloading", "runner": "a:b:1"}
    gone = await queued(app, "http://127.0.0.1/1", title="1", attempts=1, updated_at=silent, **common)
    last = await queued(app, "http://127.0.0.1/2", title="2", attempts=3, updated_at=silent, **common)
    busy = await queued(app, "http://127.0.0.1/3", title="3", attempts=1, updated_at=alive, **common)
    incoming(app, last).mkdir(parents=True)
    incoming(app, gone).mkdir(parents=True)

    assert 2 == await downloading.take_back(app)

    rows = [await row_of(app, download_id) for download_id in (gone, last, busy)]
    assert [("pending", "worker_lost"), ("failed", "worker_lost"), ("downloading", None)] == [
        (row.status, row.error_code) for row in rows
    ]
    assert (True, False) == (incoming(app, gone).exists(), incoming(app, last).exists())
    await claiming.report_gone(Db(app.state.database), "a:b:1")
    assert 1 == await downloading.take_back(app)
    assert "pending" == (await row_of(app, busy)).status


async def test_a_child_that_is_killed_is_noticed_and_its_download_tried_again(app: FastAPI, site: MediaServer) -> None:
    download_id = await queued(app, site.url + SLOW, max_attempts=1)
    draining = asyncio.create_task(downloading.drain(app))
    await until(app, download_id, lambda row: row.bytes_done > 0)

    for child in leaders_below(os.getpid()):
        os.kill(child, signal.SIGKILL)
    await draining

    row = await row_of(app, download_id)
    assert ("failed", "unexpected") == (row.status, row.error_code)


def leaders_below(process: int) -> list[int]:
    """The children of its nurseries."""
    return [child for nursery in nurseries_below(process) for child in children(nursery)]


async def test_where_a_title_can_be_had_is_found_out_and_noted(app: FastAPI) -> None:
    """The address leads nowhere from here: what was found shows in the row of the video."""
    song = songs("Massive Attack")[0]
    with upstream() as services:
        await setting(app, **services.settings)
        found, unknown = [
            await queued(app, None, title=title, artist="Massive Attack", max_attempts=1)
            for title in (song.title, "A song that was never written")
        ]
        await setting(app, download_proxy=f"http://127.0.0.1:{free_port()}")

        await downloading.drain(app)

    rows = [await row_of(app, download_id) for download_id in (found, unknown)]
    assert [("failed", "network"), ("failed", "not_found")] == [(row.status, row.error_code) for row in rows]
    addresses = (await Db(app.state.database).execute(select(videos.c.url).order_by(videos.c.id))).scalars()
    assert [f"https://www.youtube.com/watch?v={song.youtube_id}", None] == list(addresses)


async def test_a_search_that_does_not_get_through_is_a_failure_of_the_service(app: FastAPI) -> None:
    await setting(app, download_proxy="http://127.0.0.1:9")
    download_id = await queued(app, None, max_attempts=1)

    await downloading.drain(app)

    row = await row_of(app, download_id)
    assert ("failed", "service") == (row.status, row.error_code)


async def test_a_nursery_that_was_killed_is_replaced(tmp_path: Path, site: MediaServer) -> None:
    fetchers = Fetchers()
    order: dict[str, Any] = {
        "url": f"{site.url}/missing",
        "folder": str(tmp_path),
        "quality": "",
        "format": "",
        "cookies": None,
    }
    order |= {"proxy": "", "max_bytes": 1000, "max_seconds": 60, "allowed_networks": "127.0.0.1", "ffmpeg": None}
    try:
        first = [line["code"] async for line in fetchers.fetch(order)]
        for nursery in nurseries_below(os.getpid()):
            os.kill(nursery, signal.SIGKILL)
            os.waitid(os.P_PID, nursery, os.WEXITED | os.WNOWAIT)
        second = [line["code"] async for line in fetchers.fetch(order)]
    finally:
        fetchers.end()
        shared.begin()
    assert ["unavailable"] == first == second


async def test_cancelled_while_a_child_is_ordered_it_keeps_its_pipes_until_they_are_sent(
    tmp_path: Path, site: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is closed too early may be that of another file by then."""
    fetchers, sending, cancelled, sent = Fetchers(), threading.Event(), threading.Event(), list[str]()
    send = fetchers._send

    def slow(*pipes: int) -> None:
        sending.set()
        cancelled.wait(30)
        sent.extend(Path(f"/proc/self/fd/{pipe}").readlink().name.partition(":")[0] for pipe in pipes)
        send(*pipes)

    monkeypatch.setattr(fetchers, "_send", slow)
    wanted = anext(fetchers.fetch({"url": f"{site.url}/slow.mp4", "folder": str(tmp_path)}))
    fetching = asyncio.create_task(wanted)
    assert await asyncio.to_thread(sending.wait, 30)
    fetching.cancel()
    await asyncio.wait([fetching], timeout=0.2)  # it would have closed them by now
    cancelled.set()
    await asyncio.wait([fetching])
    fetchers.end()

    assert fetching.cancelled()
    assert ["pipe", "pipe"] == sent


def nurseries_below(process: int) -> list[int]:
    return [child for child in children(process) if b"nursery.py" in read(Path(f"/proc/{child}/cmdline"))]


def children(process: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in read(path).split()]


def read(path: Path) -> bytes:
    """Nothing of a process or a thread that has just ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return path.read_bytes()
    return b""
