"""The routes of downloads, beyond single answers: files, programs, many clients at once, and Redis."""

import asyncio
import json
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import rq
from fastapi import FastAPI
from flask import Flask
from sqlalchemy import select, update

import legacy_flask
from fastapi_app import create_app, queue
from legacy_flask.models import Download, Setting, Video, utcnow
from legacy_flask.seed import DEMO_USERS, seed
from tests.cases.downloads import NETSCAPE
from tests.support.asgi import Lifespan, ask
from tests.support.databases import create_database
from tests.support.redis_server import RedisServer, redis_server
from tests.support.upstreams import Upstream
from tests.upstream.catalogue import songs

SIDES = pytest.mark.parametrize("side", ["legacy", "port"])
ON_BOTH = pytest.mark.parametrize("library", ["sqlite", "mariadb"], indirect=True)
HERE = "http://testserver"
MANY = 12
DOWNLOADING, VIDEO = 3, 8  # of the small library


@dataclass
class Library:
    """One database, both applications on it, and a manager who is signed in to both."""

    legacy: Flask
    port: FastAPI
    home: Path
    cookie: str

    async def ask(self, side: str, method: str, target: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON, headers. The body is JSON, or bytes of a file."""
        headers = {"cookie": self.cookie, "origin": HERE}
        content = b""
        if isinstance(body, bytes):
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cookies.txt"\r\n\r\n'
            content, headers["content-type"] = head + body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
        elif body is not None:
            content, headers["content-type"] = json.dumps(body).encode(), "application/json"
        if side == "port":
            answer = await ask(self.port, method, target, headers.items(), content)
            return answer.status, json.loads(answer.body), dict(answer.headers)
        client = self.legacy.test_client(use_cookies=False)
        told = await asyncio.to_thread(
            client.open, target, method=method, base_url=HERE, headers=list(headers.items()), data=content
        )
        return told.status_code, told.json, {name.lower(): value for name, value in told.headers.items()}

    def rows(self, statement: Any) -> list[tuple[Any, ...]]:
        with self.legacy.extensions["engine"].connect() as connection:
            return [tuple(row) for row in connection.execute(statement)]

    def execute(self, statement: Any) -> None:
        with self.legacy.extensions["engine"].execution_options(write=True).begin() as connection:
            connection.execute(statement)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def library(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Library]:
    """The port has a Redis if the test has one. Nothing is downloaded."""
    url = f"sqlite:///{tmp_path}/app.sqlite3"
    if getattr(request, "param", "sqlite") == "mariadb":
        url = create_database(request.getfixturevalue("mariadb_server"), "downloads")
    with_redis = request.getfixturevalue("redis").url if "redis" in request.fixturenames else ""
    env = {
        "DATABASE_URL": url,
        "SECRET_KEY": "s" * 32,
        "REDIS_URL": with_redis,
        "BCRYPT_ROUNDS": "4",
        "FFMPEG": str(tmp_path / "ffmpeg"),
        "ALLOWED_NETWORKS": "127.0.0.1/32",
        **{f"{name}_PATH": str(tmp_path / name.lower()) for name in ("DATA", "LIBRARY", "DOWNLOADS")},
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(queue, "ANSWER_S", 20)
    legacy = legacy_flask.create_app()
    seed(legacy, "small", demo=True)
    port = create_app()
    library = Library(legacy, port, tmp_path, "")
    library.execute(update(Setting).where(Setting.key == "max_concurrent_downloads").values(value="0"))
    library.execute(update(Download).where(Download.id == DOWNLOADING).values(updated_at=utcnow()))
    credentials = {"username": "manager", "password": DEMO_USERS[1][1]}
    signed_in = legacy.test_client().post("/auth/login", base_url=HERE, json=credentials, headers={"Origin": HERE})
    library.cookie = "; ".join(value.partition(";")[0] for value in signed_in.headers.getlist("Set-Cookie"))
    async with Lifespan(port):
        yield library
    legacy.extensions["engine"].dispose()


# Files


@SIDES
async def test_a_cookies_file_is_readable_by_its_owner_only_and_never_told(library: Library, side: str) -> None:
    old = os.umask(0)
    try:
        status, answer, _ = await library.ask(side, "POST", "/api/downloads/cookies", NETSCAPE)
    finally:
        os.umask(old)
    file = library.home / "data/cookies.txt"

    assert (status, answer) == (200, {"success": True, "message": "Cookies saved", "cookies": 2})
    assert file.read_bytes() == NETSCAPE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir() if "cookies" in path.name] == ["cookies.txt"]


@SIDES
async def test_a_cookies_file_takes_the_place_of_a_link_and_does_not_follow_it(library: Library, side: str) -> None:
    elsewhere, file = library.home / "elsewhere", library.home / "data/cookies.txt"
    elsewhere.write_text("mine")
    file.symlink_to(elsewhere)

    assert (await library.ask(side, "POST", "/api/downloads/cookies", NETSCAPE))[0] == 200
    assert elsewhere.read_text() == "mine"
    assert not file.is_symlink()


@SIDES
@pytest.mark.parametrize(
    ("state", "silent_s", "removed"),
    [("paused", 0, True), ("pending", 0, True), ("downloading", 0, False), ("downloading", 3600, True)],
)
async def test_cancelling_removes_what_was_loaded_unless_somebody_is_at_work_on_it(
    library: Library, side: str, state: str, silent_s: int, removed: bool
) -> None:
    loaded = library.home / "downloads/.incoming" / str(DOWNLOADING)
    other = loaded.with_name("4")
    for folder in (loaded, other):
        folder.mkdir(parents=True)
        (folder / "video.mp4.part").write_bytes(b"x")
    seen = utcnow() - timedelta(seconds=silent_s)
    library.execute(update(Download).where(Download.id == DOWNLOADING).values(status=state, updated_at=seen))

    status, answer, _ = await library.ask(side, "POST", f"/api/downloads/{DOWNLOADING}/cancel")

    assert (status, answer["download"]["status"]) == (200, "cancelled")
    assert loaded.exists() is not removed
    assert other.exists()


# Programs


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@SIDES
async def test_the_tools_tell_their_versions(library: Library, side: str) -> None:
    program(library.home / "ffmpeg", "echo 'ffmpeg version 7.1-test Copyright (c) 2000-2024'")

    status, answer, _ = await library.ask(side, "GET", "/api/downloads/tool")

    assert status == 200, answer
    assert answer["tools"]["ffmpeg"] == "7.1-test"
    assert answer["tools"]["yt_dlp"][:2] == "20"


@SIDES
@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exec sleep 60", "ffmpeg does not answer"),
        ("sleep 60 & wait", "ffmpeg does not answer"),
        ("echo ffmpeg version 7; exit 1", "ffmpeg does not work"),
        ("echo something else", "ffmpeg does not work"),
        (None, "ffmpeg is not installed"),
    ],
)
async def test_a_tool_that_is_missing_broken_or_silent_is_told(
    library: Library, side: str, script: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("legacy_flask.downloads", "fastapi_app.downloads"):
        monkeypatch.setattr(f"{module}.PROGRAM_S", 1 if sentence == "ffmpeg does not answer" else 60)
    if script is not None:
        program(library.home / "ffmpeg", script)

    status, answer, _ = await library.ask(side, "GET", "/api/downloads/tool")

    assert (status, answer["status"], answer["tools"]["ffmpeg"]) == (503, "unhealthy", None)
    assert sentence in answer["error"].split("; ")


# Many at once


@ON_BOTH
async def test_a_video_is_queued_once_however_many_ask(library: Library, redis: RedisServer) -> None:
    library.execute(update(Video).where(Video.id == 6).values(url="http://videos.test/a.mp4"))
    sides = ["legacy", "port"] * (MANY // 2)

    answers = await asyncio.gather(*(library.ask(side, "POST", "/api/videos/6/download") for side in sides))

    ids = library.rows(select(Download.id).where(Download.video_id == 6))
    assert Counter(status for status, _, _ in answers) == {200: 1, 409: MANY - 1}
    assert {(answer["download_id"],) for _, answer, _ in answers} == set(ids)


@ON_BOTH
async def test_of_all_who_end_a_download_in_their_own_way_one_succeeds_at_a_time(
    library: Library, redis: RedisServer
) -> None:
    work = [(side, action) for side in ("legacy", "port") for action in ("pause", "resume", "cancel")] * 3

    answers = await asyncio.gather(
        *(library.ask(side, "POST", f"/api/downloads/{DOWNLOADING}/{action}") for side, action in work)
    )

    assert {status for status, _, _ in answers} <= {200, 400}
    done = [action for (_, action), (status, _, _) in zip(work, answers, strict=True) if status == 200]
    assert done.count("cancel") == 1
    assert library.rows(select(Download.status, Download.active_video_id).where(Download.id == DOWNLOADING)) == [
        ("cancelled", None)
    ]


# Redis


async def test_without_its_redis_the_port_queues_nothing_and_does_all_else(library: Library) -> None:
    before = library.rows(select(Download.__table__))
    for method, target, body in (
        ("POST", "/api/videos/6/download", None),
        ("POST", "/api/videos/bulk/download", {"video_ids": [6]}),
        ("POST", "/api/downloads/2/retry", None),
        ("POST", f"/api/downloads/{DOWNLOADING}/resume", None),
    ):
        status, answer, headers = await library.ask("port", method, target, body)
        assert (status, answer["error"], headers["retry-after"]) == (503, "The job queue is not available", "5")
    assert library.rows(select(Download.__table__)) == before

    for action in ("pause", "cancel"):
        status, answer, _ = await library.ask("port", "POST", f"/api/downloads/{DOWNLOADING}/{action}")
        assert status == 200, answer
    assert (await library.ask("port", "GET", "/api/downloads/queue"))[0] == 200


async def test_workers_are_told_once_of_many_downloads(library: Library, redis: RedisServer) -> None:
    status, answer, _ = await library.ask("port", "POST", "/api/videos/bulk/download", {"video_ids": [6, 9, 10, 11]})
    assert (await library.ask("port", "POST", "/api/downloads/2/retry"))[0] == 200

    with redis.client() as client:
        waiting = rq.Queue("downloads", connection=client, is_async=False).count
    assert (status, answer["count"], waiting) == (200, 4, 1)


# Where a video is that has no address


@pytest.fixture
def song(library: Library, upstream: Upstream) -> Any:
    """One that the stub of YouTube knows, by its title only: video 6 of Daft Punk."""
    song = songs("Daft Punk")[0]
    library.execute(update(Video).where(Video.id == 6).values(artist_id=20, title=song.title))
    for key, value in upstream.settings.items():
        library.execute(update(Setting).where(Setting.key == key).values(value=value))
        if not library.rows(select(Setting.key).where(Setting.key == key)):
            library.execute(Setting.__table__.insert().values(key=key, value=value, updated_at=utcnow()))
    return song


async def test_flask_looks_for_it_within_the_request(library: Library, song: Any, upstream: Upstream) -> None:
    assert (await library.ask("legacy", "POST", "/api/videos/6/download"))[0] == 200

    ((address,),) = library.rows(select(Video.url).where(Video.id == 6))
    assert address == f"https://www.youtube.com/watch?v={song.youtube_id}"
    assert [call["path"] for call in upstream.calls("youtube")] == ["/search", "/videos"]


async def test_the_port_answers_without_asking_anybody(
    library: Library, redis: RedisServer, song: Any, upstream: Upstream
) -> None:
    assert (await library.ask("port", "POST", "/api/videos/6/download"))[0] == 200

    assert library.rows(select(Video.url).where(Video.id == 6)) == [(None,)]
    assert upstream.calls("youtube") == []


async def test_flask_searches_for_nothing_that_it_would_refuse(library: Library, song: Any, upstream: Upstream) -> None:
    status, _, _ = await library.ask("legacy", "POST", "/api/videos/bulk/download", {"video_ids": [VIDEO, 2, 999]})

    assert status == 207
    assert upstream.calls("youtube") == []
