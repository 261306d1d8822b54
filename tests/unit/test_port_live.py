"""Live progress of the port: what a socket is told, when, and how little of it is kept for those who are slow."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import delete, insert, update

from fastapi_app import hub, live, progress
from fastapi_app.db import Db
from fastapi_app.json import encode
from fastapi_app.models import artists, downloads, jobs, users, utcnow, videos
from fastapi_app.progress import CHANNEL, Channel, Document, of_job, parse
from fastapi_app.system import open_redis
from tests.support.asgi import http_scope
from tests.support.redis_server import RedisServer, cable, redis_server
from tests.unit import test_port_auth
from tests.unit.test_port_auth import bearer, browser, sql, tokens

app = test_port_auth.app  # a fixture
ALL = {"subscribe": "all"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_S", "SOON_S", "PAUSE_S"):
        monkeypatch.setattr(hub, name, 0.02)
    monkeypatch.setattr(live, "PACE_S", 0.01)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Socket:
    """A client in this process. It takes nothing while `deaf`."""

    def __init__(self, app: FastAPI, headers: dict[str, str]) -> None:
        scope = http_scope("GET", "/ws/jobs", headers.items(), type="websocket", subprotocols=[], scheme="ws")
        del scope["method"]
        scope["extensions"] = {"websocket.http.response": {}}
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self._hears = asyncio.Event()
        self._hears.set()
        self.held = asyncio.Event()  # something waits to be taken
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        self.held.set()
        await self._hears.wait()
        self._outbox.put_nowait(message)

    @property
    def deaf(self) -> bool:
        return not self._hears.is_set()

    @deaf.setter
    def deaf(self, value: bool) -> None:
        if value:
            self.held.clear()
            self._hears.clear()
        else:
            self._hears.set()

    def say(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    def raw(self, **message: Any) -> None:
        self._inbox.put_nowait({"type": "websocket.receive", **message})

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def message(self) -> Any:
        async with asyncio.timeout(30):
            return await self._outbox.get()

    async def told(self) -> Any:
        return json.loads((await self.message())["text"])

    async def update(self) -> Any:
        return (await self.told())["update"]

    async def closed(self) -> int:
        """The code; what comes before it does not matter."""
        while (message := await self.message())["type"] == "websocket.send":
            pass
        assert message["type"] == "websocket.close"
        return int(message["code"])


@asynccontextmanager
async def connected(app: FastAPI, **headers: str) -> AsyncIterator[Socket]:
    """Signed in with a bearer token unless the test brings a cookie."""
    if "cookie" not in headers:
        headers |= bearer((await tokens(app))["access_token"])
    socket = Socket(app, headers)
    assert {"type": "websocket.accept", "subprotocol": None, "headers": []} == await socket.message()
    try:
        yield socket
    finally:
        socket.leave()
        socket.deaf = False
        async with asyncio.timeout(10):
            await asyncio.wait([socket.task])
        assert socket.task.cancelled() or socket.task.exception() is None


async def do(app: FastAPI, *statements: Any) -> None:
    async with Db(app.state.database).transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def add_download(app: FastAPI, number: int = 7, **values: Any) -> str:
    names = {"name": f"Artist {number}", "name_key": f"artist {number}", "sort_name": f"artist {number}"}
    await do(
        app,
        insert(artists).values(id=number, **names),
        insert(videos).values(id=number, artist_id=number, title=f"Song {number}"),
        insert(downloads).values(id=number, video_id=number, **values),
    )
    return f"download:{number}"


def change(number: int = 7, **values: Any) -> Any:
    """As anybody writes, Flask for one."""
    return update(downloads).where(downloads.c.id == number).values(**values)


def document(name: str, **changes: Any) -> dict[str, Any]:
    plain: Document = {
        "id": name,
        "type": "download",
        "target": "video:7",
        "status": "downloading",
        "percent": 0,
        "message": "",
        "eta": None,
        "speed": None,
        "bytes_done": 0,
        "bytes_total": None,
        "updated_at": utcnow().isoformat(),
    }
    return {**plain, **changes}


def published(name: str, **changes: Any) -> bytes:
    return encode(document(name, **changes))


# --- being told


async def test_a_snapshot_comes_first_then_what_changes(app: FastAPI) -> None:
    name = await add_download(app, status="downloading", progress=10, bytes_done=5, bytes_total=50, speed=9, eta=4)
    await do(app, insert(jobs).values(id="j1", type="index", status="running", progress=3, message="walking"))
    async with connected(app) as socket:
        socket.say(ALL)
        told = {one["id"]: one for one in (await socket.told())["snapshot"]}
        assert {name, "job:j1"} == told.keys()
        assert ("download", "video:7", "Song 7", 10, 5, 50, 9, 4) == tuple(
            told[name][key]
            for key in ("type", "target", "message", "percent", "bytes_done", "bytes_total", "speed", "eta")
        )
        assert ("index", None, "running", "walking", 3) == tuple(
            told["job:j1"][key] for key in ("type", "target", "status", "message", "percent")
        )
        await do(app, change(progress=20))
        assert (name, 20) == tuple(map((await socket.update()).get, ("id", "percent")))


async def test_the_end_is_told_once_and_an_end_in_failure_says_why(app: FastAPI) -> None:
    name = await add_download(app, status="downloading")
    async with connected(app) as socket:
        socket.say(ALL)
        await socket.told()
        ended: dict[str, Any] = {"status": "failed", "error_message": "The disk is full", "finished_at": utcnow()}
        await do(app, change(**ended))
        assert (name, "failed", "The disk is full") == tuple(
            map((await socket.update()).get, ("id", "status", "message"))
        )
        other = await add_download(app, 8)
        assert other == (await socket.update())["id"]  # nothing in between


async def test_only_what_was_asked_for_is_told_however_long_ago_it_ended(app: FastAPI) -> None:
    await add_download(app, 1, status="completed", finished_at=utcnow().replace(year=2020))
    await add_download(app, 2, status="downloading")
    third = await add_download(app, 3, status="downloading")
    async with connected(app) as socket:
        socket.say({"subscribe": ["download:1", third, "download:99", "job:none"]})
        assert ["download:1", third] == sorted(one["id"] for one in (await socket.told())["snapshot"])
        await do(app, change(2, progress=50), change(3, progress=60))
        assert third == (await socket.update())["id"]
        socket.say({"unsubscribe": [third], "subscribe": ["download:2"]})
        assert ["download:2"] == [one["id"] for one in (await socket.told())["snapshot"]]
        await do(app, change(3, progress=70), change(2, progress=71))
        assert 71 == (await socket.update())["percent"]


async def test_who_comes_back_is_told_how_it_ended(app: FastAPI) -> None:
    name = await add_download(app, status="downloading")
    async with connected(app) as socket:
        socket.say(ALL)
        await socket.told()
    await do(app, change(status="completed", progress=100, finished_at=utcnow()))
    async with connected(app) as socket:
        socket.say(ALL)
        assert [(name, "completed")] == [(one["id"], one["status"]) for one in (await socket.told())["snapshot"]]


async def test_parts_of_a_job_are_not_told(app: FastAPI) -> None:
    whole = {"id": "whole", "type": "enrichment", "status": "running"}
    await do(app, insert(jobs).values(**whole), insert(jobs).values(whole | {"id": "part", "parent_id": "whole"}))
    async with connected(app) as socket:
        socket.say({"subscribe": ["job:whole", "job:part"]})
        assert ["job:whole"] == [one["id"] for one in (await socket.told())["snapshot"]]
        app.state.live.hub.hear(published("job:part", target=None))
        socket.say({"ping": 1})
        assert {"pong": 1} == await socket.told()


async def test_a_deleted_row_is_the_end_of_it(app: FastAPI) -> None:
    name = await add_download(app, status="paused")
    async with connected(app) as socket:
        socket.say(ALL)
        await socket.told()
        await do(app, delete(videos))
        assert (name, "cancelled") == tuple(map((await socket.update()).get, ("id", "status")))


async def test_many_active_rows_are_told_in_pieces(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_SNAPSHOT", 2)
    monkeypatch.setattr(hub, "AT_ONCE", 2)
    names = {await add_download(app, number) for number in range(1, 6)}
    async with connected(app) as socket:
        socket.say(ALL)
        told = [one["id"] for one in (await socket.told())["snapshot"]]
        assert 2 == len(told)
        told += [(await socket.update())["id"] for _ in range(3)]
    assert names == set(told)
    assert len(told) == len(names)


# --- what is heard, and what the rows say


async def test_what_was_heard_is_believed_until_the_row_says_otherwise(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LOOK_S", 600)
    look_at_rows = app.state.live.hub.known
    name = await add_download(app, status="downloading", progress=10)
    async with connected(app) as socket:
        socket.say(ALL)
        await socket.told()
        app.state.live.hub.hear(published(name, percent=55))
        assert 55 == (await socket.update())["percent"]
        await do(app, change(status="paused", progress=56))
        await look_at_rows(None)
        assert ("paused", 56) == tuple(map((await socket.update()).get, ("status", "percent")))
        app.state.live.hub.hear(published(name, percent=57))  # from a runner that has not seen the pause yet
        assert "downloading" == (await socket.update())["status"]
        await look_at_rows(None)
        assert "paused" == (await socket.update())["status"]


async def test_what_has_ended_is_not_brought_back_by_a_late_word(app: FastAPI) -> None:
    name = await add_download(app, status="downloading")
    async with connected(app) as socket:
        socket.say({"subscribe": [name]})
        await socket.told()
        await do(app, change(status="completed", finished_at=utcnow()))
        assert "completed" == (await socket.update())["status"]
        app.state.live.hub.hear(published(name, percent=99))
        await do(app, change(status="pending", finished_at=None))  # somebody tries it again
        assert "pending" == (await socket.update())["status"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 5000,
        b"null",
        b"{}",
        published("download:7", percent="9"),
        published("download:7", more=1),
        published("download:7", message="x" * 9000),
    ],
)
def test_what_is_no_document_is_not_believed(text: bytes) -> None:
    assert parse(text) is None


async def test_documents_travel_through_redis_also_after_an_outage(
    app: FastAPI, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PUBLISH_S", 20)
    name = await add_download(app, status="downloading")
    client: Any = open_redis(redis.url)
    app.state.live.hub._redis = client
    channel = Channel(client)
    async with connected(app) as socket:
        socket.say(ALL)
        await socket.told()
        await _subscribed(redis)
        await channel.publish(document(name, percent=31, updated_at="9999-01-01T00:00:00"))  # type: ignore[arg-type]
        assert 31 == (await socket.update())["percent"]
        redis.stop()
        await channel.publish(document(name, percent=32))  # type: ignore[arg-type]  # and nothing is raised
        assert {"published": 1, "failed": 1} == channel.statistics()
        await do(app, change(status="paused", progress=33))
        assert 33 == (await socket.update())["percent"]
        redis.start()
        await _subscribed(redis)
        await Channel(client).publish(document(name, percent=34))  # type: ignore[arg-type]
        assert 34 == (await socket.update())["percent"]
    await client.aclose()


async def _subscribed(redis: RedisServer) -> None:
    with redis.client() as client:
        async with asyncio.timeout(30):
            while not dict(client.pubsub_numsub(CHANNEL)).get(CHANNEL):
                await asyncio.sleep(0.01)


async def test_publishing_to_a_redis_that_is_silent_costs_a_moment_once(redis: RedisServer) -> None:
    with cable(redis.port) as line:
        client: Any = open_redis(line.url)
        channel = Channel(client)
        await client.ping()
        line.cut = True
        for _ in range(100):
            await channel.publish(document("download:7"))  # type: ignore[arg-type]
        assert {"published": 0, "failed": 1} == channel.statistics()
        await client.aclose()


async def test_a_connection_to_redis_that_went_silent_is_given_up(
    app: FastAPI, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "PING_S", 0.1)
    with cable(redis.port) as line:
        client: Any = open_redis(line.url)
        app.state.live.hub._redis = client
        async with connected(app) as socket:
            socket.say(ALL)
            await socket.told()
            await _subscribed(redis)
            line.cut = True
            async with asyncio.timeout(10):
                while "live progress does not hear Redis" not in caplog.text:
                    await asyncio.sleep(0.01)
        await app.state.live.aclose()
        await client.aclose()


# --- slow clients


async def test_a_slow_client_gets_the_last_document_only(app: FastAPI) -> None:
    first, second = await add_download(app, 1, status="downloading"), await add_download(app, 2, status="downloading")
    async with connected(app) as slow, connected(app) as quick:
        for socket in (slow, quick):
            socket.say(ALL)
            await socket.told()
        slow.deaf = True
        app.state.live.hub.hear(published(first, percent=1))
        await slow.held.wait()
        assert 1 == (await quick.update())["percent"]
        for percent in range(2, 22):
            app.state.live.hub.hear(published(second, percent=percent))
            app.state.live.hub.hear(published(first, percent=percent))
            assert {percent} == {(await quick.update())["percent"] for _ in range(2)}
        before = app.state.live.statistics()
        slow.deaf = False
        updates = [await slow.update() for _ in range(3)]
        assert [(first, 1), (second, 21), (first, 21)] == [(one["id"], one["percent"]) for one in updates]
        assert 2 * 19 == before["dropped"]
        assert (0, before["sent"] + 2) == (before["stuck"], app.state.live.statistics()["sent"])


async def test_a_client_that_takes_nothing_is_given_up(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STUCK_S", 0.05)
    async with connected(app) as socket:
        socket.deaf = True
        socket.say(ALL)
        async with asyncio.timeout(10):
            await socket.task
    assert {"sockets": 0, "sent": 0, "dropped": 0, "stuck": 1} == app.state.live.statistics()


async def test_nothing_is_read_when_nobody_listens(app: FastAPI) -> None:
    def work() -> Any:
        return app.state.live.hub._work

    async with connected(app) as socket:
        socket.say({"ping": 5})
        assert {"pong": 5} == await socket.told()
        assert work() is None
        socket.say(ALL)
        await socket.told()
        assert not work().done()
        socket.say({"unsubscribe": "all"})
        async with asyncio.timeout(10):
            await work()
        socket.say(ALL)
        await socket.told()
        assert not work().done()


# --- who may listen


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer x"}, {"cookie": "mv_session=forged"}])
async def test_nobody_listens_without_signing_in(app: FastAPI, given: dict[str, str]) -> None:
    socket = Socket(app, given)
    answer = await socket.message()
    assert ("websocket.http.response.start", 401) == (answer["type"], answer["status"])
    assert "AUTH_REQUIRED" == json.loads((await socket.message())["body"])["code"]
    await socket.task


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://testserver:81", "http://testserver.evil"])
async def test_a_page_of_another_site_does_not_listen(app: FastAPI, origin: str) -> None:
    cookie = await session_cookie(app)
    socket = Socket(app, {"cookie": cookie, "origin": origin})
    answer = await socket.message()
    assert ("websocket.http.response.start", 403) == (answer["type"], answer["status"])
    await socket.task
    async with connected(app, cookie=cookie, origin="http://testserver"):
        pass


async def session_cookie(app: FastAPI) -> str:
    return f"mv_session={(await browser(app)).cookies['mv_session']}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE user_sessions SET revoked_at = '2020-01-01 00:00:00.000000'", 4401),
        ("UPDATE users SET is_active = 0", 4401),
        ("UPDATE users SET role = 'none'", 4403),
    ],
)
@pytest.mark.parametrize("how", ["by the clock", "when it subscribes"])
async def test_a_sign_in_that_ended_ends_the_socket(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, change: str, code: int, how: str
) -> None:
    if how == "by the clock":
        monkeypatch.setattr(live, "HEARTBEAT_S", 0.02)
    async with connected(app, cookie=await session_cookie(app)) as socket:
        socket.say(ALL)
        await socket.told()
        await sql(app, change)
        if how == "when it subscribes":
            socket.say({"subscribe": ["download:1"]})
        assert code == await socket.closed()


async def test_a_busy_socket_is_looked_at_too(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(live, "PACE_S", 0.0)
    async with connected(app) as socket:
        await sql(app, "UPDATE user_sessions SET revoked_at = '2020-01-01 00:00:00.000000'")
        number = 0
        while (await _answer(socket, number))["type"] == "websocket.send":
            number += 1


async def _answer(socket: Socket, number: int) -> Any:
    socket.say({"ping": number})
    return await socket.message()


async def test_a_heartbeat_says_what_time_it_is(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.02)
    async with connected(app) as socket:
        beats = [(await socket.told())["heartbeat"] for _ in range(6)]  # past the look at the sign-in
    assert sorted(beats) == beats


async def test_the_database_being_away_is_no_pass(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = bearer((await tokens(app))["access_token"])
    async with connected(app) as socket:
        await sql(app, "ALTER TABLE user_sessions RENAME TO elsewhere")
        socket.say(ALL)
        assert live.TRY_LATER == await socket.closed()
        late = Socket(app, headers)
        assert 503 == (await late.message())["status"]
        await late.task


# --- what a client may say


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"bytes": b"{}"}, live.NOT_UNDERSTOOD),
        *(
            ({"text": text}, live.NOT_UNDERSTOOD)
            for text in (
                "",
                "{",
                "[]",
                "{}",
                "null",
                "[" * 5000,
                '{"subscribe": 7}',
                '{"subscribe": "some"}',
                '{"subscribe": {"all": 1}}',
                '{"subscribe": ["download:7", 7]}',
                '{"subscribe": ["download:x"]}',
                '{"subscribe": ["download:99999999999"]}',
                '{"subscribe": ["download:-1"]}',
                '{"subscribe": ["download:\u0667"]}',
                '{"subscribe": ["video:7"]}',
                '{"subscribe": ["job:"]}',
                '{"subscribe": ["job:%s"]}' % ("x" * 100),
                '{"unsubscribe": null}',
                '{"ping": true}',
                '{"ping": "1"}',
                '{"ping": 1e400}',
                '{"ping": %s}' % ("9" * 5000),
                '{"ping": 1, "more": 1}',
            )
        ),
        ({"text": json.dumps({"subscribe": ["job:x"] * 20_000})}, live.TOO_LARGE),
        ({"text": json.dumps({"subscribe": [f"job:{n}" for n in range(501)]})}, live.NOT_ALLOWED),
    ],
)
async def test_what_is_not_understood_ends_the_conversation(app: FastAPI, message: dict[str, Any], code: int) -> None:
    async with connected(app) as socket:
        socket.raw(**message)
        assert code == await socket.closed()


async def test_a_flood_of_messages_is_answered_without_being_kept(app: FastAPI) -> None:
    async with connected(app) as socket:
        socket.deaf = True
        for number in range(1000):
            socket.say({"ping": number})
        for _ in range(50):
            socket.say(ALL)
        async with asyncio.timeout(20):
            while not socket._inbox.empty():
                await asyncio.sleep(0.01)
        socket.deaf = False
        answers = []
        while {"snapshot": []} not in answers:
            answers.append(await socket.told())
        assert {"pong": 999} in answers
        assert len(answers) <= 4


async def test_there_is_room_for_so_many(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_SOCKETS", 1)
    async with connected(app):
        second = Socket(app, bearer((await tokens(app))["access_token"]))
        answer = await second.message()
        assert (503, (b"retry-after", b"5")) == (answer["status"], answer["headers"][0])
        await second.task
    async with connected(app):
        assert 1 == app.state.live.statistics()["sockets"]


async def test_the_end_of_the_application_is_said_to_all(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CLOSE_S", 1)  # within which those who listen must have heard it
    async with connected(app) as one, connected(app) as other, connected(app) as deaf:
        for socket in (one, other, deaf):
            socket.say(ALL)
            await socket.told()
        deaf.deaf = True
        await app.state.live.aclose()
        assert (live.GOING_AWAY, live.GOING_AWAY) == (await one.closed(), await other.closed())
        assert deaf.task.done()


async def test_the_document_of_a_job(app: FastAPI) -> None:
    await do(app, insert(users).values(id=77, username="b", password_hash="", role="user"))
    values = {"id": "j", "type": "transcode", "target": "video:7", "status": "failed", "error": "No", "message": "half"}
    await do(app, insert(jobs).values(values | {"progress": 50, "created_by": 77}))
    row = await Db(app.state.database).row(jobs.select())
    told = of_job(row)
    assert ("job:j", "transcode", "video:7", "failed", 50, "No", None) == tuple(
        told[key] for key in ("id", "type", "target", "status", "percent", "message", "eta")
    )
    assert told == parse(encode(told))
