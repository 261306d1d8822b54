"""Discovery: services that lie, many clients at once, and connections that nobody holds while something is asked."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row

from fastapi_app import queue
from fastapi_app.db import Db
from fastapi_app.http import ApiError
from fastapi_app.kinds import KINDS
from fastapi_app.models import jobs
from fastapi_app.settings import DEFAULTS
from fastapi_app.upstreams import imvdb, lastfm, wikipedia, youtube
from fastapi_app.upstreams.client import UpstreamClient
from fastapi_app.working import request_of
from legacy_flask.http import ApiError as LegacyError
from legacy_flask.models import Artist, Setting, Video
from legacy_flask.seed import DEMO_USERS, seed
from legacy_flask.upstreams import imvdb as legacy_imvdb
from legacy_flask.upstreams import lastfm as legacy_lastfm
from legacy_flask.upstreams import wikipedia as legacy_wikipedia
from legacy_flask.upstreams import youtube as legacy_youtube
from tests.support.asgi import Answer, Lifespan, ask
from tests.support.databases import create_database
from tests.support.made_once import create_port, flask_app
from tests.support.redis_server import RedisServer, redis_server
from tests.support.upstreams import Upstream
from tests.upstream.catalogue import songs

ON_BOTH = pytest.mark.parametrize("library", ["sqlite", "mariadb"], indirect=True)
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
MANY = 20
DAFT_PUNK = 20


# What the services say


SPELLED = st.text("htps:/w.youtbecmvlaiknfrs?=&#@[]%-_0AZé ", max_size=60)
IDS = st.text("abcXYZ019-_", min_size=11, max_size=11)


@PATIENT
@given(SPELLED | IDS.map("https://youtu.be/{}".format) | IDS.map("youtube.com/watch?x=1&v={}&v=2".format))
def test_both_sides_find_the_same_id_or_none_in_any_text(text: str) -> None:
    found = youtube.id_of(text)
    assert found is None or (11 == len(found) and found in text)
    assert found == legacy_youtube.id_of(text)
    assert youtube.playlist_id_of(text) == legacy_youtube.playlist_id_of(text)


@pytest.mark.parametrize("module", [youtube, legacy_youtube], ids=["port", "legacy"])
@pytest.mark.parametrize(
    ("spelling", "playlist_id"),
    [
        ("PLabcdefghijk", "PLabcdefghijk"),
        ("https://www.youtube.com/playlist?list=PLabcdefghijk&si=x", "PLabcdefghijk"),
        ("https://youtu.be/loB0kmz_0MM?list=PLabcdefghijk", "PLabcdefghijk"),
        ("https://evil.test/playlist?list=PLabcdefghijk", None),
        ("https://www.youtube.com/playlist", None),
        ("PL/../../etc/passwd", None),
    ],
)
def test_a_playlist_is_found_in_its_addresses(module: ModuleType, spelling: str, playlist_id: str | None) -> None:
    assert playlist_id == module.playlist_id_of(spelling)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("\ud800")
WORDS = """id items snippet title thumbnails high url results name image o sources source source_data directors
    song_title year bio summary artist tags tag error query search pages thumbnail statistics viewCount contentDetails
    duration"""
words = st.sampled_from(WORDS.split())
lies = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4))
records = st.dictionaries(words, lies, max_size=6)
READERS = [
    (youtube._searched_ids, legacy_youtube.searched_ids),
    (youtube._video_of, legacy_youtube.video_of),
    (youtube._playlist_of, legacy_youtube.playlist_of),
    (youtube._playlist_item_of, legacy_youtube.playlist_item_of),
    (imvdb._entity_of, legacy_imvdb.entity_of),
    (imvdb._video_of, legacy_imvdb.video_of),
    (lastfm._info_of, legacy_lastfm.info_of),
    (partial(wikipedia._title_of, name="id"), partial(legacy_wikipedia.title_of, name="id")),
    (wikipedia._picture_of, legacy_wikipedia.picture_of),
]


@PATIENT
@given(records)
def test_both_sides_read_alike_what_may_be_anything(record: dict[str, Any]) -> None:
    for ours, theirs in READERS:
        assert outcome(ours, record) == outcome(theirs, record)


def outcome(reader: Callable[[Any], Any], record: dict[str, Any]) -> Any:
    """What is read, or the refusal; every other exception passes."""
    try:
        found = reader(record)
    except (ApiError, LegacyError) as error:
        return error.status, error.message
    return tuple(found) if found is not None else None


@PATIENT
@given(st.text(max_size=20), st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_durations_are_seconds(noise: str, days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"P{days}DT{hours}H{minutes}M{seconds}S"
    assert 86_400 * days + 3600 * hours + 60 * minutes + seconds == youtube.seconds(text)
    assert youtube.seconds(f"{text}{noise}x") is None


@pytest.mark.parametrize(("text", "seconds"), [("PT4M13S", 253), ("PT1H", 3600), ("P0D", None), ("4:13", None)])
def test_a_duration_of_youtube_is_seconds_or_unknown(text: str, seconds: int | None) -> None:
    assert seconds == youtube.seconds(text)


@pytest.mark.parametrize(
    ("summary", "bio"),
    [
        ('Four &amp; more. <a href="https://www.last.fm/x">Read more on Last.fm</a>', "Four & more."),
        ('<b>Bold</b> 1 < 2 <a class="x" href="y">Read more</a>.', "Bold 1 < 2"),
        (' <a href="https://www.last.fm/x">Read more on Last.fm</a>', None),
        (5, None),
    ],
)
def test_biographies_are_plain_text(summary: object, bio: str | None) -> None:
    assert bio == lastfm._info_of({"artist": {"bio": {"summary": summary}}}).bio


def test_a_single_tag_comes_without_its_list() -> None:
    assert ["rock"] == lastfm._info_of({"artist": {"tags": {"tag": {"name": "Rock"}}}}).genres


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(backoff_s=0.01, allowed_networks="127.0.0.1/32")
    yield client
    await client.aclose()


async def test_a_search_is_two_calls_whatever_it_finds(client: UpstreamClient, upstream: Upstream) -> None:
    texts = DEFAULTS | upstream.settings
    found = await youtube.search_videos(client, texts, "Daft Punk official music video")
    paths = [call["path"] for call in upstream.calls("youtube")]
    assert ["/search", "/videos"] == paths
    assert len(found) == len({video.youtube_id for video in found}) > 10
    assert all(video.duration for video in found)
    assert {song.youtube_id for song in songs("Daft Punk")} <= {video.youtube_id for video in found}
    assert [] == await youtube.search_videos(client, texts, "nothing")


async def test_a_playlist_is_read_to_its_end_without_what_is_hidden(client: UpstreamClient, upstream: Upstream) -> None:
    items = await youtube.playlist_items(client, DEFAULTS | upstream.settings, "PLlong00000000")
    assert 3 == len(upstream.calls("youtube"))
    assert len(items) == len({item.youtube_id for item in items}) > 90
    assert not any(item.title in ("Private video", "Deleted video") for item in items)


# Many at once


@dataclass
class Library:
    """One database, both applications on it, and somebody who is signed in to both."""

    legacy: Flask
    port: FastAPI
    cookie: str

    async def ask(self, target: str, body: Any = None, method: str = "POST") -> Answer:
        headers = {"cookie": self.cookie, "origin": "http://testserver", "content-type": "application/json"}
        content = b"" if body is None else json.dumps(body).encode()
        return await ask(self.port, method, target, headers.items(), content)

    def ask_legacy(self, target: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Cookie": self.cookie, "Origin": "http://testserver"}
        client = self.legacy.test_client(use_cookies=False)
        answer = client.post(target, base_url="http://testserver", headers=headers, json=body)
        return answer.status_code, answer.json

    def execute(self, statement: Any) -> None:
        with self.legacy.extensions["engine"].execution_options(write=True).begin() as connection:
            connection.execute(statement)

    def videos(self) -> list[Row[Any]]:
        """Those that were found."""
        with self.legacy.extensions["engine"].connect() as connection:
            return list(connection.execute(Video.__table__.select().where(Video.id > 60)))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def library(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    upstream: Upstream,
    redis: RedisServer,
) -> AsyncIterator[Library]:
    url = ""
    if getattr(request, "param", "sqlite") == "mariadb":
        url = create_database(request.getfixturevalue("mariadb_server"), "port_discovery")
    with redis.client() as client:
        client.flushall()
    monkeypatch.setattr(queue, "ANSWER_S", 20)
    with flask_app(tmp_path, url, ALLOWED_NETWORKS="127.0.0.1/32") as legacy:
        env = {name: str(legacy.config[name]) for name in ("DATABASE_URL", "SECRET_KEY", "DATA_PATH", "LIBRARY_PATH")}
        env |= {"BCRYPT_ROUNDS": "4", "ALLOWED_NETWORKS": "127.0.0.1/32", "REDIS_URL": redis.url}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        port = create_port()
        seed(legacy, "small", demo=True)
        name, password, _ = DEMO_USERS[0]
        signed_in = legacy.test_client().post("/auth/login", json={"username": name, "password": password})
        cookie = "; ".join(one.partition(";")[0] for one in signed_in.headers.getlist("Set-Cookie"))
        library = Library(legacy, port, cookie)
        with legacy.extensions["engine"].execution_options(write=True).begin() as connection:
            keys = list(upstream.settings)
            connection.execute(Setting.__table__.delete().where(Setting.key.in_(keys)))
            connection.execute(insert(Setting), [{"key": key, "value": upstream.settings[key]} for key in keys])
        async with Lifespan(port):
            yield library


def same_artists(library: Library) -> list[int]:
    """Ten artists who are all Daft Punk to the services."""
    ids = list(range(1, 11))
    for number in ids:
        name = "Daft Punk" + "!" * number
        library.execute(update(Artist).where(Artist.id == number).values(name=name, name_key=name.lower()))
    return ids


def each_once(library: Library, answers: list[dict[str, Any]]) -> None:
    """What was stored was counted, and once."""
    ids = Counter(video.youtube_id for video in library.videos())
    assert {song.youtube_id for song in songs("Daft Punk")} == set(ids)
    assert {1} == set(ids.values())
    assert sum(answer["stored"] for answer in answers) == len(ids) == sum(len(answer["videos"]) for answer in answers)


@pytest.mark.parametrize("library", ["sqlite"], indirect=True)
async def test_of_a_playlist_of_ten_thousand_videos_both_sides_read_half(
    library: Library, client: UpstreamClient, upstream: Upstream
) -> None:
    texts, playlist = DEFAULTS | upstream.settings, "PLhuge00000000"
    items = await youtube.playlist_items(client, texts, playlist)
    assert 100 == len(upstream.calls("youtube"))
    assert 5000 == len({item.youtube_id for item in items}) == len(items)

    upstream.reset()
    with library.legacy.app_context():
        assert items == await asyncio.to_thread(copy_context().run, legacy_youtube.playlist_items, texts, playlist)
    assert 100 == len(upstream.calls("youtube"))


@ON_BOTH
async def test_concurrent_discoveries_of_one_artist_store_each_video_once(library: Library) -> None:
    answers = await asyncio.gather(*(library.ask(f"/api/discovery/artist/{DAFT_PUNK}") for _ in range(MANY)))
    assert {200} == {answer.status for answer in answers}
    each_once(library, [json.loads(answer.body) for answer in answers])


@ON_BOTH
async def test_concurrent_discoveries_of_several_artists_store_each_video_once(library: Library) -> None:
    targets = [f"/api/discovery/artist/{number}" for number in same_artists(library)] * 2
    answers = await asyncio.gather(*map(library.ask, targets))
    assert {200} == {answer.status for answer in answers}
    each_once(library, [json.loads(answer.body) for answer in answers])


@ON_BOTH
async def test_concurrent_discoveries_of_flask_store_each_video_once(library: Library) -> None:
    targets = [f"/api/discovery/artist/{number}" for number in (DAFT_PUNK, *same_artists(library))] * 2
    with ThreadPoolExecutor(len(targets)) as threads:
        answers = list(threads.map(library.ask_legacy, targets))
    assert {200} == {status for status, _ in answers}
    each_once(library, [body for _, body in answers])


@ON_BOTH
async def test_concurrent_imports_of_one_video_make_one(library: Library) -> None:
    body = {"youtube_id": songs("Portishead")[0].youtube_id}
    answers = await asyncio.gather(*(library.ask("/api/videos/import-from-youtube", body) for _ in range(MANY)))
    assert {201: 1, 409: MANY - 1} == Counter(answer.status for answer in answers)
    assert 1 == len(library.videos())


@ON_BOTH
async def test_concurrent_imports_of_one_artist_make_the_artist_once(library: Library) -> None:
    bodies = [{"youtube_id": song.youtube_id, "download": True} for song in songs("Portishead")]
    answers = await asyncio.gather(*(library.ask("/api/videos/import-from-youtube", body) for body in bodies))
    assert {201} == {answer.status for answer in answers}
    assert [1, len(bodies) - 1] == sorted(Counter(json.loads(a.body)["artist_created"] for a in answers).values())
    assert 1 == len({video.artist_id for video in library.videos()})


@ON_BOTH
async def test_concurrent_imports_of_an_artist_of_imvdb_make_one(library: Library) -> None:
    body = {"imvdb_id": "portishead"}
    answers = await asyncio.gather(*(library.ask("/api/discovery/artists/import", body) for _ in range(MANY)))
    assert {201: 1, 409: MANY - 1} == Counter(answer.status for answer in answers)


async def test_all_artists_are_looked_up_at_the_same_time(library: Library, upstream: Upstream) -> None:
    upstream.dial({"youtube": {"latency_s": 60}})
    assert 202 == (await library.ask("/api/discovery/all")).status
    working = asyncio.create_task(work_of(library.port, "discovery"))  # as a worker does it
    async with asyncio.timeout(20):
        while library.port.state.upstream.statistics()["in_flight"] < 15:  # every monitored one
            await asyncio.sleep(0.005)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def work_of(app: FastAPI, kind: str) -> None:
    async def silent(_percent: int, _message: str = "") -> None:
        """Nobody is told."""

    (row,) = await Db(app.state.database).rows(select(jobs).where(jobs.c.type == kind))
    await KINDS[kind].work(request_of(app), row.arguments or {}, silent)


# Nothing is held


ASKING = [
    ("GET", "/api/discovery/artists?q=portishead", None),
    ("GET", "/api/discovery/artists/portishead", None),
    ("POST", "/api/discovery/artists/import", {"imvdb_id": "portishead"}),
    ("GET", "/api/discovery/videos?q=portishead", None),
    ("POST", f"/api/discovery/artist/{DAFT_PUNK}", None),
    ("PUT", f"/api/artists/{DAFT_PUNK}/metadata/update", None),
    ("POST", "/api/videos/import-from-youtube", {"youtube_id": songs("Portishead")[0].youtube_id}),
    ("POST", "/api/videos/1/refresh-metadata", None),
]


@pytest.mark.parametrize(("method", "target", "body"), ASKING, ids=[f"{method} {path}" for method, path, _ in ASKING])
async def test_no_connection_is_held_while_a_service_is_asked(
    library: Library, upstream: Upstream, method: str, target: str, body: Any
) -> None:
    with held_while_asked(library.port) as held:
        upstream.dial({name: {"latency_s": 0.05} for name in ("youtube", "imvdb", "lastfm", "images")})
        answer = await library.ask(target, body, method)
    assert answer.status in (200, 201)
    assert held
    assert {0} == set(held)


@contextmanager
def held_while_asked(app: FastAPI) -> Iterator[list[int]]:
    """How many connections are out of the pool, seen again and again while a service is asked."""
    held: list[int] = []

    async def watch() -> None:
        while True:
            if app.state.upstream.statistics()["in_flight"]:
                held.append(app.state.database.statistics()["checked_out"])
            await asyncio.sleep(0.001)

    watcher = asyncio.create_task(watch())
    yield held
    watcher.cancel()
