"""The list of cases, and what only the Flask application can show, against its test client on SQLite."""

import shutil
import sqlite3
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from legacy_flask import create_app, seed
from tests.cases import CASES, ORIGIN, PASSWORDS, REQUIRED, Case


class Site:
    """The application on a database and files that `reset` puts back."""

    def __init__(self, root: Path) -> None:
        self.data, self.library, self.snapshot = root / "data", root / "library", root / "snapshot"
        self.app = create_app(
            {
                "DATABASE_URL": f"sqlite:///{self.data / 'app.sqlite3'}",
                "DATA_PATH": self.data,
                "LIBRARY_PATH": self.library,
                "SECRET_KEY": "k" * 32,
                "BCRYPT_ROUNDS": 4,
                "FFMPEG": "/nowhere/ffmpeg",
                "REDIS_URL": "",
            }
        )
        seed.seed(self.app, "small", demo=True)
        self.cookies = {user: sign_in(self.app, user) for user in PASSWORDS if user != "former"}
        self.app.extensions["engine"].dispose()
        for folder in (self.data, self.library):
            shutil.copytree(folder, self.snapshot / folder.name)

    def reset(self) -> None:
        self.app.extensions["engine"].dispose()
        for folder in (self.data, self.library):
            shutil.rmtree(folder)
            shutil.copytree(self.snapshot / folder.name, folder)

    def execute(self, statement: str) -> list[Any]:
        with sqlite3.connect(self.data / "app.sqlite3") as connection:
            return connection.execute(statement).fetchall()

    def send(self, case: Case, etag: str = "", last_modified: str = "") -> TestResponse:
        cookies = self.cookies.get(case.user, {})
        values = {
            "{etag}": etag,
            "{last_modified}": last_modified,
            "{session}": cookies.get("mv_session", ""),
            "{csrf_token}": cookies.get("csrf_token", ""),
        }
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} | case.sent_headers
        for placeholder, value in values.items():
            headers = {name: text.replace(placeholder, value) for name, text in headers.items()}
        return client(self.app).open(case.target, method=case.method, headers=headers, **body(case))

    def run(self, case: Case) -> TestResponse:
        self.reset()
        answer = None
        for before in case.setup:
            answer = self.send(before)
            answer.close()
            assert before.expect_status == answer.status_code, before.id
        for statement in case.sql:
            self.execute(statement)
        last = answer.headers if answer else {}
        return self.send(case, last.get("ETag", ""), last.get("Last-Modified", ""))


def client(app: Flask) -> FlaskClient:
    return app.test_client(use_cookies=False)


def sign_in(app: Flask, user: str) -> dict[str, str]:
    answer = client(app).post("/auth/login", json={"username": user, "password": PASSWORDS[user]}, base_url=ORIGIN)
    assert answer.status_code == 200
    return dict(cookie.split(";")[0].split("=", 1) for cookie in answer.headers.getlist("Set-Cookie"))


def body(case: Case) -> dict[str, Any]:
    if case.body is not None:
        return {"data": case.body}
    if case.json is not None:
        return {"json": case.json}
    if case.files is not None:
        parts = {
            name: FileStorage(BytesIO(data), filename, name, kind)
            for name, (filename, data, kind) in case.files.items()
        }
        boundary, content = encode_multipart({**(case.data or {}), **parts})
        return {"data": content, "content_type": f"multipart/form-data; boundary={boundary}"}
    return {"data": dict(case.data)} if case.data is not None else {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.app.extensions["engine"].dispose()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_legacy_answers_every_case_with_the_expected_status(site: Site, case: Case) -> None:
    answer = site.run(case)

    assert case.expect_status == answer.status_code, answer.get_data(as_text=True)[:500]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    answer.close()


def test_every_endpoint_has_cases_and_a_required_role(site: Site) -> None:
    endpoints = {rule.endpoint for rule in site.app.url_map.iter_rules()}

    assert endpoints == {case.key for case in CASES if case.key}
    assert endpoints == set(REQUIRED)
