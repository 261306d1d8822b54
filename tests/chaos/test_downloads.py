"""Downloads by real workers, with a real Redis and yt-dlp: whatever is killed, cut or full, none is lost or doubled."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import pytest
from flask import Flask
from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import OperationalError

import fastapi_app
import legacy_flask
from fastapi_app.models import artists, downloads, settings, videos
from tests.support.asgi import Lifespan, ask
from tests.support.databases import MariaDb, create_database
from tests.support.disks import needs_small_disk, with_small_disk
from tests.support.media_server import MediaServer, media_server, video
from tests.support.processes import child, session_members, wait_until
from tests.support.redis_server import RedisServer, redis_server
from tests.support.worker import ROOT, workers

pytestmark = pytest.mark.timeout(300)  # real workers, one after the other

SIZE, RATE = 400_000, 20_000  # bytes, bytes a second: nothing comes to its end before the site is in haste
SLOW = f"/slow.mp4?size={SIZE}&rate={RATE}"
ADMIN = {"username": "admin", "password": "Admin-pass-1"}
ALIVE_S = 120.0  # the most that anything here may take


@pytest.fixture(scope="module")
def site() -> Iterator[MediaServer]:
    with media_server() as site:
        yield site


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


class Home:
    """Folders, a database with its tables, and what is in them. No process yet."""

    def __init__(self, folder: Path, database_url: str, redis_url: str) -> None:
        self.folder, self.library, self.incoming = folder, folder / "library", folder / "downloads/.incoming"
        self.env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DATA_PATH": str(folder / "data"),
            "LIBRARY_PATH": str(self.library),
            "DOWNLOADS_PATH": str(folder / "downloads"),
            "LOG_FILE": str(folder / "app.log"),
            "SECRET_KEY": "s" * 32,
            "BCRYPT_ROUNDS": "4",
            "ALLOWED_NETWORKS": MediaServer.allowed,
            "DOWNLOAD_BACKOFF_S": "0.1",
        }
        self.flask = self.legacy(GATEWAY_SHADOW="1")  # it makes the tables, answers, and begins nothing by itself
        self.engine: Engine = self.flask.extensions["engine"]

    def legacy(self, **more: str) -> Flask:
        with patch.dict(os.environ, {**self.env, **more}):
            return legacy_flask.create_app()

    def port(self) -> Any:
        with patch.dict(os.environ, self.env):
            return fastapi_app.create_app()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self.engine.execution_options(write=True).begin() as connection:
            yield connection

    def execute(self, statement: Any) -> Any:
        with self.connection() as connection:
            return connection.execute(statement)

    def setting(self, key: str, value: str) -> None:
        self.execute(delete(settings).where(settings.c.key == key))
        self.execute(insert(settings).values(key=key, value=value, description="", is_secret=False))

    def queue(self, *urls: str, **fields: Any) -> list[int]:
        """Rows that wait, each of a video of its own."""
        ids = []
        with self.connection() as connection:
            name = {"name": "Band", "name_key": "band", "sort_name": "band"}
            artist_id = connection.execute(select(artists.c.id).where(artists.c.name_key == "band")).scalar()
            artist_id = artist_id or connection.execute(insert(artists).values(name)).lastrowid
            for number, url in enumerate(urls):
                known = insert(videos).values(artist_id=artist_id, title=f"Song {number}", url=url)
                video_id = connection.execute(known).lastrowid
                row = {"video_id": video_id, "active_video_id": video_id, **fields}
                ids.append(int(connection.execute(insert(downloads).values(row)).lastrowid))
        return ids

    def row(self, download_id: int) -> Any:
        joined = select(downloads, videos.c.status.label("video_status")).join(videos)
        with self.engine.connect() as connection:
            return connection.execute(joined.where(downloads.c.id == download_id)).one()

    def until(self, download_id: int, what: Callable[[Any], bool], timeout_s: float = ALIVE_S) -> Any:
        """The row, as soon as it is like that."""
        seen: list[Any] = [None]

        def found() -> Any:
            with suppress(OperationalError):
                seen[0] = self.row(download_id)
            return seen[0] if seen[0] is not None and what(seen[0]) else None

        try:
            return wait_until(found, "the row", timeout_s)
        except AssertionError:
            raise AssertionError(f"{seen[0]}\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    def stored(self, row: Any) -> bytes:
        return Path(self.library, row.file_path).read_bytes()


@pytest.fixture
def home(tmp_path: Path, redis: RedisServer) -> Iterator[Home]:
    home = Home(tmp_path, f"sqlite:///{tmp_path}/app.sqlite3", redis.url)
    yield home
    home.engine.dispose()


def at_half(row: Any) -> bool:
    return bool(row.status == "downloading" and row.bytes_done > SIZE // 10)


def completed(row: Any) -> bool:
    return bool(row.status == "completed")


def horse_of(row: Any) -> int:
    """The process that downloads it."""
    return int(row.runner.rpartition(":")[2])


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def fetching(session: int) -> list[int]:
    """The processes below the nurseries of a pool."""
    nurseries = [pid for pid in children(session) if b"nursery.py" in told(Path(f"/proc/{pid}/cmdline"))]
    return [pid for nursery in nurseries for pid in children(nursery)]


def children(process: int) -> list[int]:
    return [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in told(path).split()]


def told(path: Path) -> bytes:
    """What /proc says; nothing of a process that has just ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def same(one: bytes, other: bytes) -> bool:
    return hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


def test_what_is_cut_off_again_and_again_is_continued_and_whole(home: Home, site: MediaServer) -> None:
    site.reset()
    (download_id,) = home.queue(f"{site.url}/cut.mp4?size={SIZE}&times=4")
    with workers(home.folder, home.env):
        row = home.until(download_id, completed)

    assert same(video(SIZE), home.stored(row))
    assert [asked for asked in site.ranges("/cut.mp4") if asked != "bytes=0-"]


@pytest.mark.parametrize("victim", ["job", "worker"])
def test_whoever_is_killed_the_download_goes_on_and_nothing_is_left(home: Home, site: MediaServer, victim: str) -> None:
    site.reset()
    (download_id,) = home.queue(site.url + SLOW)
    with workers(home.folder, home.env) as pool:
        row = home.until(download_id, at_half)
        horse = horse_of(row)
        orphans = fetching(pool.pid)
        assert orphans
        killed_at = time.monotonic()
        os.kill(horse if victim == "job" else parent_of(horse), signal.SIGKILL)

        back = home.until(download_id, lambda row: row.status == "pending" or row.attempts == 2)
        seen_s = time.monotonic() - killed_at
        site.in_haste = True
        row = home.until(download_id, completed)
        wait_until(lambda: not fetching(pool.pid), "no process to be left")

        assert seen_s < (40 if victim == "job" else 90)  # after a minute others would have seen it, too
        assert back.attempts in (1, 2)
        assert 2 == row.attempts
        assert same(video(SIZE), home.stored(row))
        assert not any(alive(pid) for pid in orphans)
    assert [] == session_members(pool.pid)
    with home.connection() as connection:
        assert 1 == len(connection.execute(select(downloads.c.id)).all())
    assert ["Band - Song 0.mp4"] == [path.name for path in (home.library / "Band").iterdir()]
    assert not (home.incoming / str(download_id)).exists()


def alive(process: int) -> bool:
    return b"nursery" in told(Path(f"/proc/{process}/cmdline"))


def test_a_pool_that_is_told_to_stop_puts_its_downloads_back_for_the_next(home: Home, site: MediaServer) -> None:
    site.reset()
    (download_id,) = home.queue(site.url + SLOW)
    with workers(home.folder, home.env, "--grace=0") as pool:
        home.until(download_id, at_half)
        pool.terminate()
        pool.wait(30)
        row = home.row(download_id)
        assert ("pending", 1, None) == (row.status, row.attempts, row.error_code)
        assert [] == session_members(pool.pid)
    site.in_haste = True
    with workers(home.folder, home.env):
        row = home.until(download_id, completed)

    assert same(video(SIZE), home.stored(row))
    assert [asked for asked in site.ranges("/slow.mp4") if asked != "bytes=0-"]


@pytest.mark.timeout(700)
def test_of_200_that_wait_none_is_lost_and_the_limit_is_kept(home: Home, site: MediaServer) -> None:
    site.reset()
    home.setting("max_concurrent_downloads", "3")
    ids = home.queue(*(f"{site.url}/direct.mp4?n={number}" for number in range(200)))
    most = most_open = 0

    def all_done() -> bool:
        nonlocal most, most_open
        with home.engine.connect() as connection:
            states = Counter(connection.execute(select(downloads.c.status)).scalars())
        most, most_open = max(most, states["downloading"]), max(most_open, site.open)
        return states["completed"] == len(ids)

    with workers(home.folder, home.env, "--workers=4"):
        wait_until(all_done, "200 downloads", timeout_s=600)

    assert most <= 3
    assert most_open <= 3
    assert 200 == len(list((home.library / "Band").iterdir()))
    with home.engine.connect() as connection:
        assert {1} == set(connection.execute(select(downloads.c.attempts)).scalars())


# --- the other side


class Member(Protocol):
    """Somebody who signs in on one side; the status of the answer."""

    def ask(self, download_id: int, action: str) -> int: ...


@dataclass
class FlaskMember:
    home: Home

    def ask(self, download_id: int, action: str) -> int:
        client = self.home.flask.test_client()
        assert 200 == client.post("/auth/login", json=ADMIN).status_code
        origin = {"Origin": "http://localhost"}
        return int(client.post(f"/api/downloads/{download_id}/{action}", json={}, headers=origin).status_code)


@dataclass
class PortMember:
    home: Home

    def ask(self, download_id: int, action: str) -> int:
        return asyncio.run(self._ask(f"/api/downloads/{download_id}/{action}"))

    async def _ask(self, path: str) -> int:
        app, headers = self.home.port(), [("content-type", "application/json"), ("origin", "http://testserver")]
        async with Lifespan(app):
            entered = await ask(app, "POST", "/auth/login", headers, json.dumps(ADMIN).encode())
            cookies = "; ".join(cookie.partition(";")[0] for cookie in entered.get_all("set-cookie"))
            return (await ask(app, "POST", path, [*headers, ("cookie", cookies)], b"{}")).status


@contextmanager
def flask_threads(home: Home) -> Iterator[None]:
    """Flask downloads what waits now; what waits later only when it is woken."""
    home.legacy().extensions["downloader"].wake()
    yield


@contextmanager
def port_workers(home: Home) -> Iterator[None]:
    with workers(home.folder, home.env):
        yield


@pytest.mark.parametrize(
    ("runners", "member"), [(flask_threads, PortMember), (port_workers, FlaskMember)], ids=["by port", "by flask"]
)
def test_what_one_side_downloads_the_other_pauses_resumes_cancels_and_retries(
    home: Home, site: MediaServer, runners: Any, member: Callable[[Home], Member]
) -> None:
    site.reset()
    seed = [sys.executable, "-m", "legacy_flask.seed", "--size", "small", "--demo"]
    subprocess.run(seed, check=True, env={**os.environ, **home.env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    home.execute(update(downloads).values(status="cancelled", active_video_id=None))
    home.setting("max_concurrent_downloads", "3")
    long = f"{site.url}/slow.mp4?size={3 * SIZE}&rate={RATE}"  # not at its end before the third has failed
    paused, cancelled, failed = home.queue(long, f"{long}&other", f"{site.url}/missing")
    who = member(home)
    with runners(home):
        home.until(paused, at_half)
        home.until(cancelled, at_half)
        home.until(failed, lambda row: row.status == "failed")
        assert [200, 200] == [who.ask(paused, "pause"), who.ask(cancelled, "cancel")]
        asked_at = time.monotonic()
        wait_until(lambda: not site.open, "nothing to be sent any more", 60)
        took_s = time.monotonic() - asked_at
        wait_until(lambda: not (home.incoming / str(cancelled)).exists(), "what was cancelled to be removed")
        assert (home.incoming / str(paused)).is_dir()
        assert ("paused", "cancelled") == (home.row(paused).status, home.row(cancelled).status)
        assert "WANTED" == home.row(cancelled).video_status

    site.in_haste = True
    with port_workers(home):
        good = update(videos).where(videos.c.id == home.row(failed).video_id).values(url=f"{site.url}/direct.mp4")
        home.execute(good)
        assert [200, 200] == [who.ask(paused, "resume"), who.ask(failed, "retry")]
        rows = [home.until(one, completed) for one in (paused, failed)]

    assert took_s < 30  # by itself it would have gone on for a minute
    assert [True, True] == [
        same(content, home.stored(row)) for content, row in zip((video(3 * SIZE), video()), rows, strict=True)
    ]
    assert [asked for asked in site.ranges("/slow.mp4") if asked != "bytes=0-"]


# --- what they stand on


def test_a_database_that_restarts_costs_no_download(tmp_path: Path, redis: RedisServer, site: MediaServer) -> None:
    site.reset()
    (tmp_path / "mariadb").mkdir()
    server = MariaDb(tmp_path / "mariadb")
    server.start()
    home = Home(tmp_path, create_database(server.url, "music"), redis.url)
    try:
        (download_id,) = home.queue(f"{site.url}/slow.mp4?size={2 * SIZE}&rate={RATE}")
        with workers(home.folder, home.env):
            home.until(download_id, at_half)
            server.stop(signal.SIGKILL)
            site.in_haste = True
            asked = site.count("/slow.mp4")
            wait_until(lambda: not site.open, "the end of the file", timeout_s=ALIVE_S)
            server.start()
            row = home.until(download_id, completed)

        assert same(video(2 * SIZE), home.stored(row))
        assert (1, asked) == (row.attempts, site.count("/slow.mp4"))
    finally:
        home.engine.dispose()
        server.stop()


@needs_small_disk
def test_on_a_full_disk_a_download_fails_with_its_reason_and_leaves_nothing(home: Home, site: MediaServer) -> None:
    (download_id,) = home.queue(f"{site.url}/direct.mp4?size=3000000")
    downloads, left = home.folder / "downloads", home.folder / "left"
    downloads.mkdir(exist_ok=True)
    serve = f"{sys.executable} -m fastapi_app.worker & trap 'kill $!' TERM; wait; wait"
    command = with_small_disk(downloads, "1m", f"{serve}; find {downloads} -type f > {left}")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **home.env}
    with child(command, home.folder / "workers.log", cwd=home.folder, env=env) as process:
        row = home.until(download_id, lambda row: row.status not in ("pending", "downloading"))
        process.terminate()
        process.wait(30)

    assert ("failed", "disk_full", "The disk is full", "FAILED") == (
        row.status,
        row.error_code,
        row.error_message,
        row.video_status,
    )
    assert "" == left.read_text()
