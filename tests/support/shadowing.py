"""Writes that the reference application answers and its port replays, contained; the same ones every time."""

import asyncio
import gc
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sqlalchemy.engine import Engine
from werkzeug.test import EnvironBuilder, run_wsgi_app

import fastapi_app
import legacy_flask
from gateway.compare import compare, compare_rows
from gateway.model import Backend, Difference, Observation, RowChange
from gateway.shadow import guard, rows
from gateway.shadow.contain import Contained, contained
from gateway.shadow.rows import Recorder, recording
from legacy_flask.models import Base
from legacy_flask.seed import seed
from tests.cases import HOST, ORIGIN, PASSWORDS

from .asgi import Lifespan, http_scope

TIMEOUT_S = 30.0  # of a replay that takes milliseconds
BEGAN = datetime(2026, 11, 1, 12)
STATUSES = ("WANTED", "DOWNLOADING", "DOWNLOADED", "IGNORED", "FAILED", "MONITORED")
UNLIKE = ("cookie.*.value", "rows.*.token_hash", "rows.*.password_hash", "rows.*.served_by")  # by nature


@dataclass(frozen=True)
class Write:
    """What a client sends."""

    method: str
    target: str
    body: Mapping[str, Any] = field(default_factory=dict)
    user: str = "admin"


class Clock:
    """Ticks once per write, so that both applications do it at the same time."""

    def __init__(self) -> None:
        self._time = BEGAN

    def tick(self) -> None:
        self._time += timedelta(milliseconds=1)

    def now(self, _zone: tzinfo) -> datetime:
        return self._time.replace(tzinfo=UTC)


class Stage:
    """One database, empty at first, and both applications on it. Time and chance are the same in every run."""

    def __init__(self, database_url: str, home: Path) -> None:
        self._home = home
        self._context = ExitStack()
        self._clock = Clock()
        self._context.enter_context(_repeatable(self._clock))
        env = {
            "DATABASE_URL": database_url,
            "SECRET_KEY": "repeatable" * 4,
            "DATA_PATH": str(home / "data"),
            "LIBRARY_PATH": str(home / "library"),
            "BCRYPT_ROUNDS": "4",
            "REDIS_URL": "",
            "GATEWAY_SHADOW": "1",  # no thread of either begins anything meanwhile
        }
        rows._catalogs.clear()
        with patch.dict(os.environ, env):
            self.legacy, self.port = legacy_flask.create_app(), fastapi_app.create_app()
        seed(self.legacy, "small", demo=True)
        self.engine: Engine = self.legacy.extensions["engine"]
        self._runner = asyncio.Runner()
        self._lifespan = Lifespan(self.port)
        self._runner.run(self._lifespan.__aenter__())
        assert not self._lifespan.failed
        self._cookies = {user: self._sign_in(user) for user in ("admin", "manager", "user")}

    def close(self) -> None:
        self._runner.run(self._lifespan.__aexit__())
        self._runner.close()
        self.engine.dispose()
        self._context.close()

    def answer(self, write: Write, *, record: bool = True) -> tuple[Observation, tuple[RowChange, ...] | None]:
        """What legacy says to its client, and what it has changed."""
        self._clock.tick()
        builder = EnvironBuilder(write.target, method=write.method, headers=self._headers(write), data=_body(write))
        environ = builder.get_environ() | {"REMOTE_ADDR": "127.0.0.1"}
        with recording() if record else nullcontext(Recorder()) as recorder:
            chunks, status, headers = run_wsgi_app(self.legacy, environ, buffered=True)
        body = b"".join(chunks)
        observation = Observation(Backend.LEGACY, int(status.split()[0]), tuple(headers.to_wsgi_list()), body)
        return observation, recorder.changes()

    def replay(self, write: Write, undo: tuple[RowChange, ...]) -> Contained:
        body = _body(write)
        headers = [*self._headers(write), ("content-length", str(len(body)))]
        scope = http_scope(write.method, write.target, headers)
        return self._runner.run(contained(self.port, scope, body, undo, TIMEOUT_S))

    def checksums(self) -> dict[str, object]:
        """Of every table; on SQLite the rows themselves. And the counters of automatic ids."""
        names = sorted(Base.metadata.tables)
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                return {name: list(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {name}"))) for name in names}
            sums = connection.exec_driver_sql(f"CHECKSUM TABLE {', '.join(names)}").all()
            counters = (
                "SELECT table_name, auto_increment FROM information_schema.tables WHERE table_schema = DATABASE()"
            )
            return {
                "sums": [total for _, total in sums],
                "ids": sorted(map(tuple, connection.exec_driver_sql(counters))),
            }

    def files(self) -> dict[str, str]:
        """The digest of each file."""
        found = sorted(path for path in self._home.rglob("*") if path.is_file() and "sqlite3" not in path.name)
        return {str(path.relative_to(self._home)): sha256(path.read_bytes()).hexdigest() for path in found}

    def ids(self, table: str) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql(f"SELECT id FROM {table} ORDER BY id").scalars())

    def _headers(self, write: Write) -> list[tuple[str, str]]:
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.get(write.user, {}).items())
        return [("Host", HOST), ("Origin", ORIGIN), ("Content-Type", "application/json"), ("Cookie", cookies)]

    def _sign_in(self, user: str) -> dict[str, str]:
        self._cookies: dict[str, dict[str, str]] = {}
        login = Write("POST", "/auth/login", {"username": user, "password": PASSWORDS[user]}, user="")
        answer, _ = self.answer(login)
        assert answer.status == 200, answer.body
        pairs = [value.partition(";")[0] for name, value in answer.headers if name.lower() == "set-cookie"]
        return dict(pair.split("=", 1) for pair in pairs)


def writes(stage: Stage, count: int) -> Iterator[Write]:
    """All kinds of them, good and bad: what they do depends on what those before have done."""
    chance = random.Random(7)
    artists, videos = stage.ids("artists"), stage.ids("videos")
    for number in range(count):
        yield chance.choice(_KINDS)(chance, number, artists, videos)


def _new_artist(chance: random.Random, number: int, *_: list[int]) -> Write:
    name = f"Artist {chance.randrange(number + 10)}"  # some twice
    return Write("POST", "/api/artists/", {"name": name, "genres": ["pop", "réunion"][: chance.randrange(3)]})


def _artist(chance: random.Random, number: int, artists: list[int], _: list[int]) -> Write:
    body = chance.choice([{"bio": f"bio {number}"}, {"name": f"Renamed {number}"}, {"monitored": number % 2 == 0}])
    return Write("PUT", f"/api/artists/{chance.choice(artists) + number // 20}", body)


def _drop_artist(chance: random.Random, number: int, artists: list[int], _: list[int]) -> Write:
    force = "?force=true" if chance.random() < 0.1 else ""
    return Write("DELETE", f"/api/artists/{artists[-1] + chance.randrange(number + 1) - 1}{force}")


def _video(chance: random.Random, number: int, artists: list[int], videos: list[int]) -> Write:
    body = chance.choice([{"title": f"title {number}"}, {"year": 1950 + number % 99}, {"artist_id": artists[0]}])
    return Write("PUT", f"/api/videos/{chance.choice(videos)}", body)


def _status(chance: random.Random, _number: int, _: list[int], videos: list[int]) -> Write:
    return Write("PUT", f"/api/videos/{chance.choice(videos)}/status", {"status": chance.choice(STATUSES)})


def bulk_status(chance: random.Random, _number: int, _: list[int], videos: list[int]) -> Write:
    body = {"video_ids": chance.sample(videos, 5), "status": chance.choice(STATUSES)}
    return Write("PUT", "/api/videos/bulk/status", body)


def _drop_video(chance: random.Random, number: int, _: list[int], videos: list[int]) -> Write:
    return Write("DELETE", f"/api/videos/{chance.choice(videos) if number % 9 == 0 else 10_000}", user="manager")


def _setting(chance: random.Random, number: int, *_: list[int]) -> Write:
    return Write("PUT", f"/api/settings/key{chance.randrange(50)}", {"value": chance.choice(["a", "b", number])})


def _settings(chance: random.Random, number: int, *_: list[int]) -> Write:
    return Write("PUT", "/api/settings/bulk", {f"key{chance.randrange(50)}": number, "other": "text"})


def _new_user(chance: random.Random, number: int, *_: list[int]) -> Write:
    return Write(
        "POST", "/api/users/", {"username": f"user{chance.randrange(number + 5)}", "password": "Str0ng!enough"}
    )


def _role(chance: random.Random, *_: Any) -> Write:
    return Write("PUT", f"/api/users/{chance.randrange(4, 30)}/role", {"role": chance.choice(["user", "readonly"])})


def _login(chance: random.Random, *_: Any) -> Write:
    password = PASSWORDS["user"] if chance.random() < 0.9 else "wrong"
    return Write("POST", "/auth/login", {"username": "user", "password": password}, user="")


def _nonsense(chance: random.Random, *_: Any) -> Write:
    return Write("PUT", "/api/videos/bulk/status", {"video_ids": chance.choice([[], "x", None]), "status": "WANTED"})


_KINDS = (
    *(_new_artist, _artist, _artist, _drop_artist, _video, _video, _status, bulk_status, bulk_status, _drop_video),
    *(_setting, _settings, _new_user, _role, _login, _nonsense),
)


def differences(control: tuple[Observation, tuple[RowChange, ...] | None], result: Contained) -> tuple[Difference, ...]:
    """Of both answers, and of what both have changed."""
    answer, changes = control
    answers = compare(answer, result.observation, UNLIKE)
    return answers.differences + compare_rows(changes or (), result.rows or (), UNLIKE).differences


@contextmanager
def _repeatable(clock: Clock) -> Iterator[None]:
    """The clock of both applications, and the chance of legacy."""
    chance = random.Random(11)
    token = SimpleNamespace(token_urlsafe=lambda size: chance.randbytes(size).hex())
    with (
        patch("legacy_flask.models.datetime", clock),
        patch("fastapi_app.models.datetime", clock),
        patch("legacy_flask.auth.secrets", token),
        patch("legacy_flask.passwords.bcrypt.gensalt", lambda _=4: b"$2b$04$abcdefghijklmnopqrstuu"),
    ):
        yield


def _body(write: Write) -> bytes:
    return json.dumps(write.body).encode() if write.body else b""


@dataclass
class Proof:
    """What became of writes that were replayed, and whether the database is what it is without."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    equal: bool = False
    alone_ms: list[float] = field(default_factory=list)
    recorded_ms: list[float] = field(default_factory=list)
    replay_ms: list[float] = field(default_factory=list)

    def judge(self, write: Write, control: tuple[Observation, tuple[RowChange, ...] | None], result: Contained) -> None:
        self.refused += result.refused
        if result.inconclusive:
            self.outcomes["inconclusive"] += 1
            self.examples.append(f"{write}: {result.inconclusive}")
            return
        different = differences(control, result)
        self.outcomes["mismatched" if different else "matched"] += 1
        self.examples += [f"{write}: {different}"] if different else []


def prove(without: str, shadowed: str, home: Path, count: int) -> Proof:
    """The same writes twice, on two empty databases; the second time all of them are replayed."""
    proof = Proof()
    with staged(without, home / "without") as stage:
        for write in writes(stage, count):
            began = perf_counter()
            stage.answer(write, record=False)
            proof.alone_ms.append((perf_counter() - began) * 1000)
        expected = stage.checksums(), stage.files()
    with staged(shadowed, home / "shadowed") as stage:
        for write in writes(stage, count):
            began = perf_counter()
            control = stage.answer(write)
            answered = perf_counter()
            proof.recorded_ms.append((answered - began) * 1000)
            if control[1] is None:
                proof.outcomes["not recorded"] += 1
                proof.examples.append(f"{write}: not recorded")
                continue
            result = stage.replay(write, control[1])
            proof.replay_ms.append((perf_counter() - answered) * 1000)
            proof.judge(write, control, result)
        proof.equal = (stage.checksums(), stage.files()) == expected
    return proof


@contextmanager
def known_connections() -> Iterator[None]:
    """What other tests of this process have left open is not the candidate's."""
    gc.collect()
    with patch.object(guard, "_trusted", set(guard.open_peers(set()))):
        yield


@contextmanager
def staged(database_url: str, home: Path) -> Iterator[Stage]:
    stage = Stage(database_url, home)
    try:
        yield stage
    finally:
        stage.close()
