"""Live progress through two real workers, beside Flask, with Redis and without."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import fastapi_app
from fastapi_app import live
from fastapi_app.progress import CHANNEL
from legacy_flask.models import Artist, Download, Video, name_key, sort_name, utcnow
from tests.e2e.test_sessions import ADMIN, READER, cookie, sign_in
from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer, redis_server
from tests.support.serving import ROOT, Server, environment, serving

APPS = {"legacy": "legacy_flask:create_app", "fastapi": f"{__name__}:create_port"}


def create_port() -> FastAPI:
    """The application, with less patience."""
    live.HEARTBEAT_S, live.CHECK_EVERY, live.STUCK_S = 0.5, 2, 4.0
    return fastapi_app.create_app()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> dict[str, str]:
    home = tmp_path_factory.mktemp("music")
    env = {
        "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
        "DATA_PATH": str(home / "data"),
        "LIBRARY_PATH": str(home / "library"),
        "SECRET_KEY": os.urandom(32).hex(),
        "BCRYPT_ROUNDS": "4",
        "REDIS_URL": redis.url,
    }
    seed = [sys.executable, "-m", "legacy_flask.seed", "--size", "small", "--demo"]
    subprocess.run(seed, check=True, cwd=ROOT, env=environment(env), stdout=subprocess.DEVNULL)
    return env


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("gateway"), **APPS, env=env, cwd=ROOT) as running:
        yield running


class Library:
    """What Flask's threads write, with Flask's own models."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, connect_args={"timeout": 30})

    def close(self) -> None:
        self._engine.dispose()

    def add(self, **values: Any) -> int:
        with Session(self._engine) as session, session.begin():
            name = os.urandom(4).hex()
            artist = Artist(name=name, name_key=name_key(name), sort_name=sort_name(name))
            session.add(artist)
            session.flush()
            video = Video(artist_id=artist.id, title=f"Song of {name}")
            session.add(video)
            session.flush()
            download = Download(video_id=video.id, **values)
            session.add(download)
            session.flush()
            return int(download.id)

    def change(self, number: int, **values: Any) -> None:
        with Session(self._engine) as session, session.begin():
            download = session.get_one(Download, number)
            for name, value in values.items():
                setattr(download, name, value)


@pytest.fixture(scope="module")
def library(env: dict[str, str]) -> Iterator[Library]:
    library = Library(env["DATABASE_URL"])
    yield library
    library.close()


@pytest.fixture(params=["legacy", "fastapi"])
def signed_in(request: pytest.FixtureRequest, server: Server) -> Iterator[httpx.Client]:
    """A reader whose session either side has made; sockets are the port's in both cases."""
    server.put(override=request.param)
    with server.client() as client:
        sign_in(client, READER)
        yield client


@pytest.fixture
def reader(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        sign_in(client, READER)
        yield client


def listening(server: Server, client: httpx.Client | None = None, **headers: str) -> ClientConnection:
    sent = headers | ({"Cookie": cookie(client)} if client else {})
    return connect(f"ws://127.0.0.1:{server.port}/ws/jobs", additional_headers=sent, proxy=None, max_size=None)


def subscribed(client: ClientConnection, wanted: Any = "all") -> dict[str, Any]:
    """The snapshot by name."""
    client.send(json.dumps({"subscribe": wanted}))
    return {one["id"]: one for one in _told(client, "snapshot")}


def updated(client: ClientConnection, name: str) -> Any:
    while (document := _told(client, "update"))["id"] != name:
        pass
    return document


def _told(client: ClientConnection, word: str) -> Any:
    while word not in (message := json.loads(client.recv(timeout=20))):
        assert message.keys() == {"heartbeat"} or word == "update"
    return message[word]


def closed(client: ClientConnection) -> int:
    """The code with which the server ends it."""
    try:
        while True:
            client.recv(timeout=20)
    except ConnectionClosed as ended:
        end = ended.rcvd
    assert end is not None
    return end.code


def published(name: str, **changes: Any) -> str:
    document = {
        "id": name,
        "type": "download",
        "target": "video:1",
        "status": "downloading",
        "percent": 0,
        "message": "",
        "eta": None,
        "speed": None,
        "bytes_done": 0,
        "bytes_total": None,
        "updated_at": (utcnow() + timedelta(seconds=60)).isoformat(),
    }
    return json.dumps(document | changes)


def test_what_flask_writes_into_the_rows_is_told(server: Server, signed_in: httpx.Client, library: Library) -> None:
    number = library.add(status="downloading", progress=10)
    name = f"download:{number}"
    with listening(server, signed_in) as client:
        assert 10 == subscribed(client)[name]["percent"]
        library.change(number, progress=60, speed=1000, eta=4)
        assert (60, 1000, 4) == tuple(map(updated(client, name).get, ("percent", "speed", "eta")))
        library.change(number, status="completed", progress=100, finished_at=utcnow())
        assert "completed" == updated(client, name)["status"]


def test_what_is_published_is_told_by_every_worker(
    server: Server, signed_in: httpx.Client, library: Library, redis: RedisServer
) -> None:
    name = f"download:{library.add(status='downloading')}"
    with ExitStack() as stack:
        clients = [stack.enter_context(listening(server, signed_in)) for _ in range(6)]
        for client in clients:
            assert name in subscribed(client, [name])
        with redis.client() as publisher:
            wait_until(lambda: dict(publisher.pubsub_numsub(CHANNEL))[CHANNEL] >= 1, "somebody to hear")
            wait_until(
                lambda: (
                    publisher.publish(CHANNEL, published(name, percent=77))
                    and all(_heard(client, 77) for client in clients)
                ),
                "all to be told",
            )


def _heard(client: ClientConnection, percent: int) -> bool:
    if getattr(client, "heard", False):
        return True
    try:
        while True:
            message = json.loads(client.recv(timeout=0.2))
            if message.get("update", {}).get("percent") == percent:
                client.heard = True  # type: ignore[attr-defined]
                return True
    except TimeoutError:
        return False


def test_who_comes_back_misses_nothing_that_lasts(server: Server, signed_in: httpx.Client, library: Library) -> None:
    number = library.add(status="downloading", progress=10)
    name = f"download:{number}"
    with listening(server, signed_in) as client:
        assert "downloading" == subscribed(client)[name]["status"]
    library.change(number, status="failed", error_message="The disk is full", finished_at=utcnow())
    for wanted in ("all", [name]):
        with listening(server, signed_in) as client:
            told = subscribed(client, wanted)[name]
            assert ("failed", "The disk is full") == (told["status"], told["message"])


@pytest.mark.parametrize("headers", [{}, {"Cookie": "mv_session=forged"}, {"Authorization": "Bearer forged"}])
def test_nobody_listens_without_signing_in(server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused, listening(server, **headers):
        pass
    assert 401 == refused.value.response.status_code
    assert "AUTH_REQUIRED" == json.loads(refused.value.response.body)["code"]


def test_only_pages_of_our_own_listen(server: Server, signed_in: httpx.Client) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        with pytest.raises(InvalidStatus) as refused, listening(server, signed_in, Origin=origin):
            pass
        assert 403 == refused.value.response.status_code
    with listening(server, signed_in, Origin=server.url) as client:
        client.send('{"ping": 1}')
        assert 1 == _told(client, "pong")


def test_a_bearer_token_is_enough(server: Server) -> None:
    with server.client() as client:
        token = client.post("/auth/token", json=READER).raise_for_status().json()["access_token"]
    with listening(server, Authorization=f"Bearer {token}") as socket_:
        subscribed(socket_)


@pytest.mark.parametrize("side", ["legacy", "fastapi"])
def test_who_signs_out_hears_no_more(server: Server, signed_in: httpx.Client, side: str) -> None:
    with listening(server, signed_in) as client:
        subscribed(client)
        server.put(override=side)
        assert 200 == signed_in.post("/auth/logout", headers={"Origin": server.url}).status_code
        assert 4401 == closed(client)


def test_what_is_not_understood_ends_the_conversation(server: Server, reader: httpx.Client) -> None:
    for message, code in (("{", 1003), (b"{}", 1003), ("x" * 70_000, 1009)):
        with listening(server, reader) as client:
            client.send(message)
            assert code == closed(client)


def deaf(server: Server, client: httpx.Client, wanted: Any) -> socket.socket:
    """A client that subscribes and then reads nothing; its buffers are small."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.settimeout(20)
    wire.connect(("127.0.0.1", server.port))
    head = f"GET /ws/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {cookie(client)}\r\n"
    head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    wire.sendall(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += wire.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    text = json.dumps({"subscribe": wanted}).encode()
    wire.sendall(bytes((0x81, 0x80 | 126)) + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text)
    return wire


def flood(redis: RedisServer, names: list[str], until: threading.Event) -> None:
    """Two documents a second and more for each name, as large as they may be."""
    with redis.client() as publisher:
        percent = 0
        while not until.wait(0.2):
            percent = (percent + 1) % 100
            for name in names:
                publisher.publish(CHANNEL, published(name, percent=percent, message="x" * 7000))


def test_a_client_that_reads_nothing_harms_nobody_and_is_given_up(
    server: Server, reader: httpx.Client, library: Library, redis: RedisServer
) -> None:
    names = [f"download:{library.add(status='downloading')}" for _ in range(120)]
    with server.client() as admin:
        bearer = admin.post("/auth/token", json=ADMIN).raise_for_status().json()["access_token"]

    def given_up() -> bool:
        with server.client() as admin:
            text = admin.get("/metrics", headers={"Authorization": f"Bearer {bearer}"}).raise_for_status().text
        return "music_live_stuck_total 1.0" in text

    done = threading.Event()
    flooding = threading.Thread(target=flood, args=(redis, names, done))
    with deaf(server, reader, names) as wire:
        flooding.start()
        try:
            wait_until(given_up, "the silent client to be given up", timeout_s=60)
            with listening(server, reader) as quick:
                subscribed(quick, names[:1])
                assert updated(quick, names[0])
        finally:
            done.set()
            flooding.join()
        wait_until(lambda: _ended(wire), "the end of its connection")
    for name in names:
        library.change(int(name.partition(":")[2]), status="cancelled", finished_at=utcnow())


def _ended(wire: socket.socket) -> bool:
    """What is sent to a socket that was closed comes back as an error."""
    try:
        wire.sendall(b"\x89\x80\0\0\0\0")
    except ConnectionError:
        return True
    return False


def test_a_server_that_stops_says_so_and_waits_for_nobody(
    tmp_path: Path, env: dict[str, str], library: Library, redis: RedisServer
) -> None:
    names = [f"download:{library.add(status='downloading')}" for _ in range(120)]
    with serving(tmp_path, **APPS, env=env, cwd=ROOT, workers=1, drain_s=50) as server, server.client() as client:
        sign_in(client, READER)
        done = threading.Event()
        flooding = threading.Thread(target=flood, args=(redis, names, done))
        with deaf(server, client, names), listening(server, client) as quick:
            subscribed(quick)
            flooding.start()
            try:
                for _ in range(5 * len(names)):
                    _told(quick, "update")
                server.process.terminate()
                assert closed(quick) in (1001, 1012)
                assert 0 == server.process.wait(40)
            finally:
                done.set()
                flooding.join()
        assert "Traceback" not in server.log.read_text()
