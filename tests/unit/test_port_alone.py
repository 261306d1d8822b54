"""The port without the gateway: paths that nobody has, wrong methods, slashes, errors, the start."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from flask import Flask
from sqlalchemy.exc import OperationalError
from werkzeug.test import EnvironBuilder, run_wsgi_app

import legacy_flask
from fastapi_app import create_app
from fastapi_app.config import StartupError
from fastapi_app.db import DatabaseUnavailable
from fastapi_app.frame import SECURITY_HEADERS
from tests.support.asgi import Answer, Lifespan, ask


def configure(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    env = {
        "SECRET_KEY": "s" * 32,
        "DATA_PATH": f"{home}/data",
        "LIBRARY_PATH": f"{home}/library",
        "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    configure(monkeypatch, tmp_path)
    return monkeypatch


@pytest.fixture
async def app(environment: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    app = create_app()
    async with Lifespan(app):
        yield app


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, Flask]]:
    """Both, made once: where there is no route nothing is changed, and no database is asked."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        configure(monkeypatch, tmp_path_factory.mktemp("sides"))
        port, legacy = create_app(), legacy_flask.create_app()
    yield port, legacy
    legacy.extensions["engine"].dispose()


def oracle(legacy: Flask, method: str, path: str) -> Answer:
    environ = EnvironBuilder(method=method, headers={"Host": "testserver"}).get_environ()
    path, _, query = path.partition("?")
    chunks, status, headers = run_wsgi_app(legacy, environ | {"PATH_INFO": path, "QUERY_STRING": query}, buffered=True)
    found = [(name.lower(), value) for name, value in headers.to_wsgi_list()]
    return Answer(int(status.split()[0]), found, b"".join(chunks), True)


def comparable(answer: Answer) -> tuple[int, bytes, dict[str, object]]:
    headers: dict[str, object] = {name: value for name, value in answer.headers if name != "date"}
    if "allow" in headers:  # a set
        headers["allow"] = set(str(headers["allow"]).split(", "))
    return answer.status, answer.body, headers


PATHS = [
    "/nowhere",
    "/api/artists",
    "/api/artists?x=1&y=%20",
    "/api/artists/",
    "/api/artists/abc",
    "/api/artists/-1",
    "/api/artists/1.0",
    "/api/artists/5/",
    "/api/artists/5",
    "/api/artists/5/thumbnail/small/x",
    "/api//artists",
    "//api//artists/",
    "/api/health/",
    "/api//health",
    "/api/genres/",
    "/api/genres/a/b/videos",
    "/api/videos/bulk/status",
    "/api/videos//1/stream",
    "/api/settings/bulk",
    "/api/settings/a//b",
    "/auth/login",
    "/auth/login/",
    "/API/health",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", PATHS)
async def test_what_no_route_answers_is_answered_as_ever(sides: tuple[FastAPI, Flask], path: str, method: str) -> None:
    port, legacy = sides
    assert comparable(oracle(legacy, method, path)) == comparable(await ask(port, method, path))


async def test_every_answer_carries_the_security_headers(app: FastAPI) -> None:
    for path in ("/api/health", "/nowhere", "/api/artists/", "/openapi.json"):
        answer = await ask(app, "GET", path)
        assert SECURITY_HEADERS == {name: answer.get(name) for name in SECURITY_HEADERS}
        assert answer.get("strict-transport-security") is None


async def test_behind_tls_browsers_are_told_to_stay_there(app: FastAPI) -> None:
    assert (await ask(app, "GET", "/api/health", scheme="https")).get("strict-transport-security")


async def test_a_failure_is_a_500_in_the_words_of_the_api(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    app.state.database = None  # as any bug would
    answer = await ask(app, "GET", "/api/health")
    assert (500, b'{"error":"Internal server error"}\n') == (answer.status, answer.body)
    assert "nosniff" == answer.get("x-content-type-options")
    assert "GET /api/health" in caplog.text


@pytest.mark.parametrize("error", [DatabaseUnavailable("busy"), OperationalError("", {}, Exception())])
async def test_without_its_database_it_says_so(app: FastAPI, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def unavailable(*_: object) -> None:
        raise error

    client = {"authorization": "Bearer x"}
    monkeypatch.setattr(app.state.database, "read", unavailable)
    monkeypatch.setattr(app.state.signer, "verify", lambda *_: type("C", (), dict.fromkeys(FIELDS, "x"))())
    answer = await ask(app, "GET", "/api/users/me", client.items())
    assert (503, b'{"error":"The database is not available"}\n') == (answer.status, answer.body)


FIELDS = ("user_id", "session_token", "jti", "family")


async def test_the_description_of_the_api_names_every_route_once(app: FastAPI) -> None:
    answer = await ask(app, "GET", "/openapi.json")
    operations = [o["operationId"] for path in json.loads(answer.body)["paths"].values() for o in path.values()]
    assert len(operations) == len(set(operations)) > 40


async def test_the_page_about_the_api_may_load_what_it_needs(app: FastAPI) -> None:
    answer = await ask(app, "GET", "/api/docs")
    assert 200 == answer.status
    assert "cdn.jsdelivr.net" in (answer.get("content-security-policy") or "")


async def test_a_start_without_database_is_refused_in_one_sentence(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "sqlite:////nowhere/at/all.sqlite3")
    async with Lifespan(create_app()) as started:
        assert started.failed.startswith("The database sqlite+aiosqlite:////nowhere/at/all.sqlite3 cannot be used: ")
        assert 1 == len(started.failed.splitlines())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SECRET_KEY", "short", "SECRET_KEY is too short"),
        ("BCRYPT_ROUNDS", "many", "BCRYPT_ROUNDS"),
        ("DATA_PATH", "/dev/null/data", "The folder /dev/null/data cannot be used"),
        ("DATABASE_URL", "postgresql://host/x", "DATABASE_URL"),
    ],
)
def test_a_wrong_setting_is_named(environment: pytest.MonkeyPatch, name: str, value: str, sentence: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(StartupError, match=sentence):
        create_app()


def test_the_secret_is_made_once_and_is_its_owners_only(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("SECRET_KEY")
    first, second = create_app(), create_app()
    assert first.state.settings.secret_key == second.state.settings.secret_key
    assert 0o600 == (tmp_path / "data/secret_key").stat().st_mode & 0o777
