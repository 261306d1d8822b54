"""Downloads of the Flask application from the row to the file, with real yt-dlp and a real server."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import sessionmaker

from legacy_flask import create_app, downloading
from legacy_flask.files import safe_name
from legacy_flask.http import ApiError
from legacy_flask.models import Artist, Download, Setting, Video, Webhook, WebhookDelivery, utcnow
from legacy_flask.resolving import find_address
from legacy_flask.settings import DEFAULTS
from tests.cases.downloads import HOSTILE_TITLES
from tests.support.media_server import MediaServer, video
from tests.support.processes import child, free_port, wait_until
from tests.support.upstreams import Upstream
from tests.upstream.catalogue import songs

ENDED = ("completed", "failed", "cancelled", "paused")
PATIENCE_S = 120.0


class World:
    """The application in a folder, with one artist. `another` shares its database and its folders."""

    def __init__(self, home: Path) -> None:
        self.home, self.apps = home, list[Flask]()
        self.app = self.another()
        engine = self.app.extensions["engine"].execution_options(write=True)
        self.begin = sessionmaker(engine, expire_on_commit=False).begin
        self.library, self.downloads = home / "library", home / "data/downloads"
        self.incoming = self.downloads / ".incoming"
        with self.begin() as db:
            db.add(Artist(id=1, name="Björk", name_key="bjork", sort_name="bjork", folder_path="Björk"))

    def another(self, **config: Any) -> Flask:
        paths = {"DATA_PATH": self.home / "data", "LIBRARY_PATH": self.home / "library"}
        usual = {"SECRET_KEY": "s" * 32, "ALLOWED_NETWORKS": MediaServer.allowed, "DOWNLOAD_BACKOFF_S": 0.01}
        app = create_app({"DATABASE_URL": f"sqlite:///{self.home}/app.sqlite3", **paths, **usual, **config})
        self.apps.append(app)
        return app

    def wake(self) -> None:
        self.app.extensions["downloader"].wake()

    def put(self, url: str | None, title: str = "Joga", thumbnail_url: str | None = None, **fields: Any) -> int:
        """A video and a row that waits for it; the id of the row."""
        with self.begin() as db:
            film = Video(artist_id=1, title=title, url=url, thumbnail_url=thumbnail_url)
            db.add(film)
            db.flush()
            row = Download(**{"video_id": film.id, "active_video_id": film.id, **fields})
            db.add(row)
            db.flush()
            return row.id

    def set(self, **settings: str) -> None:
        with self.begin() as db:
            for key, value in settings.items():
                db.merge(Setting(key=key, value=value))

    def row(self, download_id: int) -> Download:
        with self.begin() as db:
            return db.get_one(Download, download_id)

    def film(self, download_id: int) -> Video:
        with self.begin() as db:
            return db.get_one(Download, download_id).video

    def change(self, download_id: int, **values: Any) -> None:
        """As another process does it."""
        with self.begin() as db:
            db.execute(update(Download).where(Download.id == download_id).values(**values))

    def ended(self, download_id: int) -> Download:
        self.wake()
        wait_until(lambda: self.row(download_id).status in ENDED, "the end of the download", PATIENCE_S)
        return self.row(download_id)

    def begun(self, download_id: int) -> Path:
        """The file of a download that is on its way."""
        self.wake()
        part = self.incoming / str(download_id) / "video.mp4.part"
        wait_until(lambda: part.exists() and part.stat().st_size > 50_000, "the first bytes", PATIENCE_S)
        return part


@contextmanager
def server(world: World, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of the application, that has begun to download."""
    script = "import legacy_flask as a, time; a.create_app().extensions['downloader'].wake(); time.sleep(600)"
    with child([sys.executable, "-c", script], log, env=variables(world)) as process:
        yield process


def variables(world: World) -> dict[str, str]:
    config = {name: str(world.app.config[name]) for name in ("DATABASE_URL", "DATA_PATH", "LIBRARY_PATH")}
    return os.environ | config | {"SECRET_KEY": "s" * 32, "ALLOWED_NETWORKS": MediaServer.allowed}


def children(of: int = 0) -> list[int]:
    """The processes that download for a process, for this one without another."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == (of or os.getpid()) and b"fetch.py" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def quiet(world: World) -> bool:
    """Whether no thread of an application is at work any more."""
    return all(app.extensions["downloader"].thread is None for app in world.apps) and not children()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    with world.begin() as db:
        db.execute(update(Download).values(status="cancelled"))
    wait_until(lambda: quiet(world), "the end of all downloads", PATIENCE_S)
    for app in world.apps:
        app.extensions["engine"].dispose()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected(size: int) -> str:
    return hashlib.sha256(video(size)).hexdigest()


def left(world: World) -> list[str]:
    """What there is of files and of what is under way."""
    roots = (world.library, world.downloads)
    return sorted(str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.is_file())


def test_a_video_comes_into_the_library_with_all_that_belongs_to_it(world: World, media: MediaServer) -> None:
    world.set(organize_nfo="true")
    with world.begin() as db:
        db.add(Webhook(url=f"http://127.0.0.1:{free_port()}/", events=["*"]))
    download_id = world.put(f"{media.url}/direct.mp4?size=300000", thumbnail_url=f"{media.url}/picture.jpg")

    row = world.ended(download_id)
    wait_until(lambda: world.film(download_id).thumbnail_path, "the picture")

    film = world.film(download_id)
    assert (row.status, row.progress, row.bytes_done, row.bytes_total) == ("completed", 100, 300_000, 300_000)
    assert (row.attempts, row.error_code, row.active_video_id) == (1, None, None)
    assert row.file_path == film.file_path == "Björk/Björk - Joga.mp4"
    assert (film.status, film.file_size, film.duration, film.quality) == ("DOWNLOADED", 300_000, 2, "180p")
    assert digest(world.library / film.file_path) == expected(300_000)
    both = ["Björk/Björk - Joga.mp4", "Björk/Björk - Joga.nfo"]
    wait_until(lambda: left(world) == both, "nothing else to be left")
    assert (world.home / "data" / str(film.thumbnail_path) / "large.jpg").is_file()
    with world.begin() as db:
        told = db.scalars(select(WebhookDelivery.event_type).order_by(WebhookDelivery.id)).all()
    assert told == ["download.started", "download.completed"]


@pytest.mark.parametrize("path", ["/hls/index.m3u8", "/page.html"])
def test_streams_and_pages_become_files_as_well(world: World, media: MediaServer, path: str) -> None:
    row = world.ended(world.put(media.url + path))

    assert (row.status, row.file_path) == ("completed", "Björk/Björk - Joga.mp4")
    assert world.film(row.id).quality == "180p"


@pytest.mark.parametrize("organized", ["true", "false"])
def test_whatever_a_title_says_the_file_gets_a_name_in_its_folder(
    world: World, media: MediaServer, organized: str
) -> None:
    world.set(auto_organize_downloads=organized)
    folder = "Björk/" if organized == "true" else ""
    names = [f"{folder}{safe_name(f'Björk - {title}')}.mp4" for title in HOSTILE_TITLES.values()]

    ids = [
        world.put(f"{media.url}/direct.mp4?size={500_000 + number}", title)
        for number, title in enumerate(HOSTILE_TITLES.values())
    ]

    assert names == [world.ended(download_id).file_path for download_id in ids]
    wait_until(lambda: left(world) == sorted(names), "nothing else to be left")


def test_the_name_of_another_file_is_not_taken(world: World, media: MediaServer) -> None:
    (world.library / "Björk").mkdir()
    (world.library / "Björk/Björk - Joga.mp4").write_text("another one")

    row = world.ended(world.put(f"{media.url}/direct.mp4"))

    assert row.file_path == "Björk/Björk - Joga (1).mp4"
    assert (world.library / "Björk/Björk - Joga.mp4").read_text() == "another one"


def test_who_wants_to_organize_himself_finds_the_file_in_the_downloads_folder(world: World, media: MediaServer) -> None:
    world.set(auto_organize_downloads="false")

    row = world.ended(world.put(f"{media.url}/direct.mp4?size=200000"))

    assert digest(world.downloads / "Björk - Joga.mp4") == expected(200_000)
    assert (world.film(row.id).status, world.film(row.id).file_path) == ("DOWNLOADED", None)


@pytest.mark.parametrize(
    ("path", "code"),
    [("/missing", "unavailable"), ("/text.mp4", "invalid_file"), ("/to-private", "address_refused")],
)
def test_what_will_not_change_has_failed_at_once(world: World, media: MediaServer, path: str, code: str) -> None:
    row = world.ended(world.put(media.url + path))

    assert (row.status, row.error_code, row.attempts, row.active_video_id) == ("failed", code, 1, None)
    assert row.error_message
    assert row.finished_at
    assert world.film(row.id).status == "FAILED"
    wait_until(lambda: not left(world), "nothing to be left")


def test_what_may_pass_is_tried_as_often_as_allowed(world: World, media: MediaServer) -> None:
    row = world.ended(world.put(f"{media.url}/broken", max_attempts=2))

    assert (row.status, row.error_code, row.attempts) == ("failed", "network", 2)


def test_a_pause_keeps_what_is_there_and_going_on_asks_for_the_rest(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=600000&rate=150000")
    part = world.begun(download_id)

    world.change(download_id, status="paused")
    wait_until(lambda: not children(), "the process to be gone")
    size = part.stat().st_size
    assert world.row(download_id).status == "paused"
    world.change(download_id, status="pending")
    row = world.ended(download_id)

    assert row.status == "completed"
    assert media.ranges("/slow.mp4") == [f"bytes={size}-"]
    assert digest(world.library / str(row.file_path)) == expected(600_000)


def test_cancelling_leaves_no_process_and_no_file(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=9000000&rate=150000")
    world.begun(download_id)

    world.change(download_id, status="cancelled", active_video_id=None)

    wait_until(lambda: not children() and not left(world), "nothing to be left")
    assert world.row(download_id).status == "cancelled"


def test_who_deletes_a_video_ends_its_download(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=9000000&rate=150000")
    world.begun(download_id)

    with world.begin() as db:
        db.delete(db.get_one(Download, download_id).video)

    wait_until(lambda: not children() and not left(world), "nothing to be left")


def test_progress_is_in_the_row(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=2000000&rate=150000")
    world.begun(download_id)

    wait_until(lambda: world.row(download_id).progress > 5, "progress", PATIENCE_S)

    row = world.row(download_id)
    assert (row.status, row.bytes_total) == ("downloading", 2_000_000)
    assert 0 < row.bytes_done < 2_000_000
    assert row.speed
    assert world.film(download_id).status == "DOWNLOADING"


def test_a_child_that_was_killed_is_followed_by_another(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=600000&rate=150000")
    world.begun(download_id)

    for pid in children():
        os.kill(pid, signal.SIGKILL)
    row = world.ended(download_id)

    assert (row.status, row.attempts) == ("completed", 2)
    assert digest(world.library / str(row.file_path)) == expected(600_000)


def test_a_server_that_was_killed_leaves_no_process_and_the_next_goes_on(
    world: World, media: MediaServer, tmp_path: Path
) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=600000&rate=150000")
    part = world.incoming / str(download_id) / "video.mp4.part"
    with server(world, tmp_path / "log") as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 50_000, "the first bytes", PATIENCE_S)
        found = children(process.pid)
        process.kill()
        process.wait()

    assert len(found) == 1
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found), "the process to be gone")
    assert world.row(download_id).status == "downloading"
    world.change(download_id, updated_at=utcnow() - timedelta(seconds=61))
    row = world.ended(download_id)

    assert (row.status, row.attempts) == ("completed", 2)
    assert len(media.ranges("/slow.mp4")) == 1
    assert digest(world.library / str(row.file_path)) == expected(600_000)


@pytest.mark.parametrize("fork", ["False", "os.fork()"], ids=["started", "forked by a server that has loaded it"])
def test_a_process_that_ends_puts_back_what_it_downloads(world: World, media: MediaServer, fork: str) -> None:
    script = f"""
import legacy_flask, os, sys
app = legacy_flask.create_app()
if {fork}:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
app.extensions["downloader"].wake()
sys.stdin.read()
"""
    download_id = world.put(f"{media.url}/slow.mp4?size=9000000&rate=150000")
    part = world.incoming / str(download_id) / "video.mp4.part"
    with subprocess.Popen([sys.executable, "-c", script], env=variables(world), stdin=subprocess.PIPE) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 50_000, "the first bytes", PATIENCE_S)

    row = world.row(download_id)
    assert (process.returncode, row.status, row.attempts) == (0, "pending", 1)
    assert 3 == row.max_attempts - row.attempts  # to be stopped is no failure: as many are left as before


def test_what_is_just_being_claimed_when_the_process_ends_is_put_back(
    world: World, media: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloader, claim = world.app.extensions["downloader"], downloading.claim

    def claim_late() -> downloading.Task | None:
        task = claim()
        wait_until(lambda: downloader.stopping, "the end of the process")
        return task

    monkeypatch.setattr(downloading, "claim", claim_late)
    download_id = world.put(f"{media.url}/slow.mp4?size=9000000")
    downloader.wake()
    wait_until(lambda: world.row(download_id).status == "downloading", "the claim")

    downloader.stop()

    assert (world.row(download_id).status, downloader.tasks, children()) == ("pending", {}, [])


@pytest.mark.parametrize(("attempts", "end"), [(1, ("completed", None)), (3, ("failed", "worker_lost"))])
def test_a_row_without_a_sign_of_life_is_taken_back(
    world: World, media: MediaServer, attempts: int, end: tuple[str, str | None]
) -> None:
    gone = {"status": "downloading", "updated_at": utcnow() - timedelta(seconds=61), "runner": "flask:elsewhere:1:x"}

    row = world.ended(world.put(f"{media.url}/direct.mp4", attempts=attempts, **gone))

    assert (row.status, row.error_code) == end


def test_a_full_disk_is_no_reason_to_try_again(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/slow.mp4?size=600000&rate=150000")
    part = world.begun(download_id)
    world.change(download_id, status="paused")
    wait_until(lambda: not children(), "the process to be gone")
    part.unlink()
    part.symlink_to("/dev/full")

    world.change(download_id, status="pending")
    row = world.ended(download_id)

    assert (row.status, row.error_code) == ("failed", "disk_full")
    wait_until(lambda: not left(world), "nothing to be left")


def test_the_limit_holds_for_all_processes_together(world: World, media: MediaServer) -> None:
    world.set(max_concurrent_downloads="2")
    ids = [world.put(f"{media.url}/slow.mp4?size=150000&rate=100000", f"Part {number}") for number in range(5)]
    other = world.another()
    most = 0

    def ready() -> bool:
        nonlocal most
        with world.begin() as db:
            statuses = db.scalars(select(Download.status)).all()
        most = max(most, statuses.count("downloading"))
        return statuses.count("completed") == len(ids)

    world.wake()
    other.extensions["downloader"].wake()
    wait_until(ready, "all downloads", PATIENCE_S)

    assert most == 2
    assert {world.row(download_id).attempts for download_id in ids} == {1}


def test_the_first_are_those_of_the_lowest_number(world: World, media: MediaServer) -> None:
    world.set(max_concurrent_downloads="1")
    late, early = (world.put(f"{media.url}/direct.mp4", f"Of {priority}", priority=priority) for priority in (9, 1))

    assert world.ended(late).started_at > world.ended(early).started_at  # type: ignore[operator]


def test_with_a_limit_of_none_everything_waits(world: World, media: MediaServer) -> None:
    world.set(max_concurrent_downloads="0")
    download_id = world.put(f"{media.url}/direct.mp4")

    world.wake()
    wait_until(lambda: quiet(world), "the look at the queue")

    assert world.row(download_id).status == "pending"
    assert media.requests == []


def test_what_waited_is_continued_with_the_first_request_after_a_start(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/direct.mp4")

    world.another().test_client().get("/api/health")

    wait_until(lambda: world.row(download_id).status == "completed", "the download", PATIENCE_S)


def test_a_process_that_only_repeats_requests_downloads_nothing(world: World, media: MediaServer) -> None:
    download_id = world.put(f"{media.url}/direct.mp4")
    shadow = world.another(SHADOW=True)

    shadow.test_client().get("/api/health")
    shadow.extensions["downloader"].wake()

    assert shadow.extensions["downloader"].thread is None
    assert world.row(download_id).status == "pending"


def test_a_title_that_nobody_knows_has_failed(world: World, upstream: Upstream) -> None:
    world.set(**upstream.settings)

    row = world.ended(world.put(None, "A song that was never written"))

    assert (row.status, row.error_code) == ("failed", "not_found")


def test_the_address_of_a_title_is_that_of_the_best_match(world: World, upstream: Upstream) -> None:
    texts, song = DEFAULTS | upstream.settings, songs("Massive Attack")[0]
    with world.app.app_context():
        url = find_address(texts, song.artist, song.title)

    assert url == f"https://www.youtube.com/watch?v={song.youtube_id}"


def test_without_a_key_yt_dlp_searches(world: World) -> None:
    texts = DEFAULTS | {"download_proxy": f"http://127.0.0.1:{free_port()}"}  # where nobody is

    with world.app.app_context(), pytest.raises(ApiError) as raised:
        find_address(texts, "Massive Attack", "Teardrop")

    assert (raised.value.status, raised.value.message) == (502, "YouTube is not available")
