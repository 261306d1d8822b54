"""Live conversion and transcoding behind a real gateway, by a real ffmpeg."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

import legacy_flask
from legacy_flask.seed import seed
from tests.cases import PASSWORDS
from tests.support.cards import card, converting, probed
from tests.support.processes import threads, wait_until
from tests.support.redis_server import redis_server
from tests.support.serving import ROOT, Server, serving
from tests.support.worker import workers

LONG, SHORT, TRAP = 3, 6, 9  # videos of the small library
SECONDS = 200  # of the long one, in a size that takes longer to convert than any test
TO_TRANSCODE = {"legacy": 11, "fastapi": 12}
both = pytest.mark.parametrize("side", ["legacy", "fastapi"])


@dataclass(frozen=True)
class Site:
    """A signed-in client of a gateway with one process and eight threads for Flask, and a listener for a trap."""

    server: Server
    library: Path
    client: httpx.Client
    listener: socket.socket

    def on(self, side: str) -> httpx.Client:
        self.server.put(override=side)
        return self.client

    def leave(self, path: str) -> None:
        """Ask for a stream, and go when it has begun."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.client.cookies.items())
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nCookie: {cookies}\r\n\r\n".encode())
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("streams")
    library = home / "library"
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(home))
        listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        env = {
            "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
            "DATA_PATH": str(home / "data"),
            "LIBRARY_PATH": str(library),
            "SECRET_KEY": "of the tests of streams, and of nothing else",
            "BCRYPT_ROUNDS": "4",
            "REDIS_URL": redis.url,
        }
        with patch.dict(os.environ, env):
            fill(library, listener.getsockname()[1])
        legacy, fastapi = "legacy_flask:create_app", "fastapi_app:create_app"
        running = serving(home, legacy=legacy, fastapi=fastapi, workers=1, threads=8, env=env, cwd=ROOT)
        server = stack.enter_context(running)
        stack.enter_context(workers(home, env, "--workers=1"))
        client = stack.enter_context(server.client(headers={"Origin": server.url}))
        answer = client.post("/auth/login", json={"username": "user", "password": PASSWORDS["user"]})
        assert answer.status_code == 200, answer.text
        yield Site(server, library, client, listener)


def fill(library: Path, trap_port: int) -> None:
    """The small library with some real videos, and with one that is a playlist in truth."""
    app = legacy_flask.create_app()
    seed(app, "small", demo=True)
    files = {SHORT: "short.mkv", TRAP: "trap.mkv", **{number: f"{side}.mkv" for side, number in TO_TRANSCODE.items()}}
    with app.extensions["engine"].execution_options(write=True).begin() as connection:
        for number, name in files.items():
            connection.exec_driver_sql("UPDATE videos SET file_path = ? WHERE id = ?", (name, number))
        long = connection.exec_driver_sql(f"SELECT file_path FROM videos WHERE id = {LONG}").scalar()
    app.extensions["engine"].dispose()
    piece = card(library / "piece.mkv", 4, "1280x720", rate=25)
    again = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-stream_loop", str(SECONDS // 4 - 1), "-i", f"file:{piece}"]
    subprocess.run([*again, "-c", "copy", f"file:{library / long}"], check=True)
    for name in ("short.mkv", "legacy.mkv", "fastapi.mkv"):
        card(library / name, 8)
    entry = f"http://127.0.0.1:{trap_port}/secret.ts"
    (library / "trap.mkv").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{entry}\n#EXT-X-ENDLIST\n")


@both
def test_clients_that_leave_take_their_ffmpeg_along_and_leave_no_thread(site: Site, side: str) -> None:
    site.on(side)
    (worker,) = wait_until(site.server.workers, "the worker")
    before = threads(worker)
    for _ in range(20):
        site.leave(f"/api/videos/{LONG}/stream")
        wait_until(lambda: not converting(site.library), "the end of ffmpeg", 15)

    wait_until(lambda: threads(worker) <= before + 12, "the threads")  # the pools, which keep theirs
    assert site.client.get("/api/health").status_code == 200


@both
def test_many_streams_at_once_end_with_their_clients(site: Site, side: str) -> None:
    site.on(side)
    path = f"/api/videos/{LONG}/stream"
    with ExitStack() as streams:
        opened = [streams.enter_context(site.client.stream("GET", path)).iter_raw() for _ in range(6)]
        assert all(next(chunks) for chunks in opened)
        assert 6 == len(converting(site.library))
        assert site.client.get("/auth/check").json()["authenticated"]

    wait_until(lambda: not converting(site.library), "the end of all ffmpegs", 15)


@both
def test_a_stream_begins_where_the_client_wants_it(site: Site, side: str, tmp_path: Path) -> None:
    client, path = site.on(side), f"/api/videos/{SHORT}/stream"
    lengths = []
    for start in ("0", "5", "abc"):
        answer = client.get(path, params={"start": start})
        assert (200, "video/mp4", "none") == (
            answer.status_code,
            answer.headers["content-type"],
            answer.headers["accept-ranges"],
        )
        (tmp_path / "got.mp4").write_bytes(answer.content)
        known = probed(tmp_path / "got.mp4")
        assert ("h264", "aac") == (known["video"], known["audio"])
        lengths.append(round(known["duration"]))

    assert [8, 3, 8] == lengths
    assert b"mdat" not in client.get(path, params={"start": "9999"}).content
    head = client.head(path)
    assert (200, "video/mp4", b"") == (head.status_code, head.headers["content-type"], head.content)


@both
def test_a_playlist_that_calls_itself_a_video_leads_nowhere(site: Site, side: str) -> None:
    site.listener.settimeout(0.2)

    answer = site.on(side).get(f"/api/videos/{TRAP}/stream")

    assert (200, b"") == (answer.status_code, answer.content)
    with pytest.raises(TimeoutError):
        site.listener.accept()


@both
def test_a_video_is_transcoded_once_and_then_played_as_it_is(site: Site, side: str) -> None:
    client, video = site.on(side), f"/api/videos/{TO_TRANSCODE[side]}"
    first = client.post(f"{video}/transcode")
    assert first.status_code == 202, first.text
    job_id = first.json()["job_id"]

    wait_until(lambda: client.get(f"{video}/transcode/status").json()["status"] == "completed", "the end", 60)

    job = client.get(f"/api/jobs/{job_id}").json()
    path = site.library / f"{side}.mp4"
    result = {"file_path": path.name, "file_size": path.stat().st_size, "source": f"{side}.mkv"}
    assert ("completed", 100, result) == (job["status"], job["progress"], job["result"])
    assert (200, job_id) == ((again := client.post(f"{video}/transcode")).status_code, again.json()["job_id"])
    assert client.get(f"{video}/stream", headers={"Range": "bytes=0-99"}).content == path.read_bytes()[:100]


@both
def test_a_transcoding_that_is_cancelled_ends_at_once_and_leaves_nothing(site: Site, side: str) -> None:
    client, video = site.on(side), f"/api/videos/{LONG}"
    job_id = client.post(f"{video}/transcode").json()["job_id"]
    wait_until(lambda: converting(site.library), "ffmpeg", 30)
    assert (202, job_id) == ((again := client.post(f"{video}/transcode")).status_code, again.json()["job_id"])

    assert client.post(f"/api/jobs/{job_id}/cancel").status_code == 200

    wait_until(lambda: not converting(site.library), "the end of ffmpeg")
    wait_until(lambda: not list(site.library.rglob(".transcode-*")), "the file to go")
    assert ("cancelled", None) == ((job := client.get(f"/api/jobs/{job_id}").json())["status"], job["result"])
    assert client.get(f"{video}/transcode/status").json()["status"] == "none"
    assert client.post(f"/api/jobs/{job_id}/cancel").status_code == 400
