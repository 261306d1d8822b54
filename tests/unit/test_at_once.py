"""Both applications bring the same things into one library at the same time; nobody fails, nothing is there twice."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from flask import Flask
from sqlalchemy import text

import fastapi_app.jobs
import fastapi_app.playlists
import fastapi_app.spotify
import legacy_flask
import legacy_flask.jobs
import legacy_flask.playlists
import legacy_flask.scheduler
import legacy_flask.spotify
from fastapi_app import leader
from fastapi_app.db import Db
from fastapi_app.kinds import ERRANDS, KINDS
from fastapi_app.models import utcnow
from fastapi_app.queue import Queue
from fastapi_app.upstreams.youtube import PlaylistItem
from tests.support import made_once
from tests.support.asgi import Lifespan, ask
from tests.support.databases import create_database
from tests.support.redis_server import redis_server

EACH = 6  # requests of each application
MONITOR = (
    "INSERT INTO playlist_monitors (id, playlist_id, title, auto_download, video_count, created_at, updated_at)"
    " VALUES ({0}, 'PLplaylist{0}', 'Videos', 1, 0, '2026-01-01 00:00:00', '2026-01-01 00:00:00')"
)
pytestmark = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return made_once.sqlite(tmp_path / "app.sqlite3")
    return create_database(request.getfixturevalue("mariadb_server"), "at_once")


@pytest.fixture(autouse=True)
def _environment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"DATA_PATH": str(tmp_path / "data"), "LIBRARY_PATH": str(tmp_path / "library")}
    fixed = {"DATABASE_URL": database, "SECRET_KEY": "s" * 32, "REDIS_URL": "", "BCRYPT_ROUNDS": "4", **paths}
    for name, value in fixed.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def flask_app(_environment: None, database: str, tmp_path: Path) -> Iterator[Flask]:
    with made_once.flask_app(tmp_path, database) as app:
        yield app


@pytest.fixture
async def port(flask_app: Flask) -> AsyncIterator[FastAPI]:
    app = made_once.create_port()
    async with Lifespan(app):
        yield app


def run(app: Flask, statement: str) -> list[Any]:
    with app.extensions["engine"].execution_options(write=True).begin() as connection:
        result = connection.execute(text(statement))
        return list(result) if result.returns_rows else []


def request_of(app: FastAPI) -> Request:
    return Request({"type": "http", "app": app, "headers": [], "client": ("127.0.0.1", 1), "state": {}})


def items(first: int, last: int) -> list[PlaylistItem]:
    """By five artists."""
    return [
        PlaylistItem(f"video{number:06d}", f"Artist {number % 5} - Song {number}", "A channel", None, 2001, None)
        for number in range(first, last)
    ]


async def test_syncs_of_playlists_that_share_videos(flask_app: Flask, port: FastAPI) -> None:
    for number in (1, 2):
        run(flask_app, MONITOR.format(number))
    playlists = {1: items(0, 60), 2: items(30, 90)}

    def by_flask(monitor_id: int) -> dict[str, Any]:
        with flask_app.test_request_context():
            return dict(legacy_flask.playlists.store(monitor_id, playlists[monitor_id]))

    async def by_port(monitor_id: int) -> dict[str, Any]:
        db = Db(port.state.database)
        return await fastapi_app.playlists.store(request_of(port), db, monitor_id, playlists[monitor_id])

    turns = [1 + number % 2 for number in range(EACH)]
    answers = await asyncio.gather(
        *(asyncio.to_thread(by_flask, number) for number in turns), *(by_port(number) for number in turns)
    )

    assert (90, 90, 5) == tuple(
        sum(answer[key] for answer in answers) for key in ("added", "queued", "artists_created")
    )
    assert [(90,)] == run(flask_app, "SELECT count(DISTINCT youtube_id) FROM videos")
    assert [(90,)] == run(flask_app, "SELECT count(DISTINCT active_video_id) FROM downloads")
    assert [(60,), (60,)] == run(flask_app, "SELECT video_count FROM playlist_monitors ORDER BY id")


async def test_imports_of_playlists_that_share_artists(flask_app: Flask, port: FastAPI) -> None:
    playlists = {
        playlist: {f"id{number}": f"Artist {number}" for number in numbers}
        for playlist, numbers in {"one": range(40), "other": range(59, 19, -1)}.items()
    }

    def by_flask(playlist: str) -> tuple[list[Any], list[Any]]:
        with flask_app.test_request_context():
            imported, failed = legacy_flask.spotify.store(playlist, playlists[playlist])
            return imported, failed

    async def by_port(playlist: str) -> tuple[list[Any], list[Any]]:
        return await fastapi_app.spotify.store(request_of(port), Db(port.state.database), playlist, playlists[playlist])

    turns = ["one", "other"] * (EACH // 2)
    answers = await asyncio.gather(
        *(asyncio.to_thread(by_flask, turn) for turn in turns), *(by_port(turn) for turn in turns)
    )

    assert [] == [failure for _, failed in answers for failure in failed]
    assert 60 == sum(len(imported) for imported, _ in answers)
    assert [(60, 60)] == run(flask_app, "SELECT count(*), count(DISTINCT spotify_id) FROM artists")


@pytest.fixture
def queue(port: FastAPI, tmp_path: Path) -> Iterator[None]:
    """The port's way to workers, of which there are none: what it begins waits."""
    with redis_server(tmp_path) as server:
        port.state.queue.close()
        port.state.queue = Queue(server.url, {**KINDS, **ERRANDS})
        yield
        port.state.queue.close()


@pytest.mark.usefixtures("queue")
async def test_of_work_that_is_busy_while_it_runs_one_is_begun(flask_app: Flask, port: FastAPI) -> None:
    done = threading.Event()

    def by_flask() -> str:
        def work(_: Any) -> dict[str, Any]:
            done.wait(60)
            return {}

        with flask_app.test_request_context():
            return str(legacy_flask.jobs.start("discovery", work, busy="Busy"))

    async def by_port() -> str:
        return await fastapi_app.jobs.start(request_of(port), "discovery", {}, busy="Busy")

    outcomes = await asyncio.gather(
        *(asyncio.to_thread(by_flask) for _ in range(EACH)), *(by_port() for _ in range(EACH)), return_exceptions=True
    )
    done.set()

    (job_id,) = (outcome for outcome in outcomes if isinstance(outcome, str))
    refused = [vars(outcome)["payload"] for outcome in outcomes if not isinstance(outcome, str)]
    assert [{"job_id": job_id}] * (2 * EACH - 1) == refused
    assert [(job_id,)] == run(flask_app, "SELECT id FROM jobs")


@pytest.mark.usefixtures("queue")
async def test_what_is_planned_is_begun_once(flask_app: Flask, port: FastAPI) -> None:
    now = utcnow()
    planned = {"schedule_enabled": "true", "schedule_time": f"{now:%H:%M}", "youtube_api_key": "a key"}
    planned["youtube_url"] = "http://127.0.0.1:1"  # nobody there
    for key, value in planned.items():
        insert = (
            "INSERT INTO settings (`key`, value, description, is_secret, updated_at) VALUES ('{}', '{}', '', 0, '{}')"
        )
        run(flask_app, insert.format(key, value, "2026-01-01 00:00:00"))
    run(flask_app, MONITOR.format(1))

    def by_flask() -> None:
        with flask_app.test_request_context():
            legacy_flask.scheduler.plan()

    for _ in range(2):
        plans = [asyncio.to_thread(by_flask) for _ in range(EACH)]
        await asyncio.gather(*plans, *(leader.plan(port) for _ in range(EACH)))

    ids = [f"{kind}-{now:%Y%m%dT%H%M}" for kind in ("discovery", "playlists")]
    assert ids == [row[0] for row in run(flask_app, "SELECT id FROM jobs ORDER BY id")]


async def test_of_those_who_want_to_be_the_first_administrator_one_is(flask_app: Flask, port: FastAPI) -> None:
    def body(name: str) -> bytes:
        return json.dumps({"username": name, "password": "Owner-pass-1"}).encode()

    def by_flask(number: int) -> int:
        sent = {"data": body(f"flask-{number}"), "content_type": "application/json"}
        return flask_app.test_client().post("/auth/first-run", **sent).status_code

    async def by_port(number: int) -> int:
        headers = [("content-type", "application/json"), ("host", "music.test")]
        return (await ask(port, "POST", "/auth/first-run", headers, body(f"port-{number}"))).status

    statuses = await asyncio.gather(
        *(asyncio.to_thread(by_flask, number) for number in range(EACH)), *(by_port(number) for number in range(EACH))
    )

    assert sorted(statuses) == [201] + [403] * (2 * EACH - 1)
    assert [("admin",)] == run(flask_app, "SELECT role FROM users")
    assert [(1,)] == run(flask_app, "SELECT count(*) FROM user_sessions")
