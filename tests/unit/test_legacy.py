"""The Flask application by itself. What it answers to the list of cases is tested together with the port, in parity."""

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from legacy_flask import create_app
from legacy_flask.db import StartupError, open_engine
from legacy_flask.files import move, safe_name
from legacy_flask.models import name_key, sort_name
from legacy_flask.seed import seed, set_admin
from tests.cases import CASES, PASSWORDS, REQUIRED
from tests.cases.pages import BROWSER
from tests.support.databases import create_database
from tests.support.made_once import flask_app
from tests.support.processes import many_open_files, wait_until

ROOT = Path(__file__).parents[2]
HERE = "http://localhost"
GONE = "sqlite:////nowhere/app.sqlite3"


def make_app(root: Path, **config: Any) -> Flask:
    paths = {"DATA_PATH": root / "data", "LIBRARY_PATH": root / "library"}
    return create_app({"DATABASE_URL": "", "SECRET_KEY": "", "REDIS_URL": "", "BCRYPT_ROUNDS": 4, **paths, **config})


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    with flask_app(tmp_path) as app:
        seed(app, "small", demo=True)
        yield app


@pytest.fixture(params=["sqlite", "mariadb"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flask]:
    """The application on either database."""
    url = ""
    if request.param == "mariadb":
        url = create_database(request.getfixturevalue("mariadb_server"), "legacy")
    with flask_app(tmp_path, url) as app:
        seed(app, "small", demo=True)
        yield app


def sign_in(app: Flask, user: str, password: str = "") -> tuple[FlaskClient, TestResponse]:
    client = app.test_client()
    credentials = {"username": user, "password": password or PASSWORDS[user]}
    return client, client.post("/auth/login", json=credentials, headers={"Origin": HERE})


def signed_in(app: Flask, user: str) -> FlaskClient:
    client, answer = sign_in(app, user)
    assert answer.status_code == 200
    return client


# --- the list and the ledger -------------------------------------------------------------------------------------


def test_every_endpoint_has_cases_and_a_required_role(app: Flask) -> None:
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}

    assert endpoints == {case.key for case in CASES if case.key}
    assert endpoints == set(REQUIRED)


def ledger_ids() -> Iterator[str]:
    for line in (ROOT / "docs/quirks.md").read_text().splitlines():
        endpoint = ""
        cases = re.split(r"\| (?:kept|fixed)[^|]*\|", line)[1:]
        for name in re.findall(r"`([^`]+)`", "".join(cases)):
            endpoint = name.partition(":")[0] or endpoint
            yield f"{endpoint}:{name.partition(':')[2]}"


def test_every_case_that_the_quirk_ledger_names_exists() -> None:
    patterns = set(ledger_ids())

    assert len(patterns) > 80
    assert {pattern for pattern in patterns if not any(fnmatch(case.id, pattern) for case in CASES)} == set()


# --- starting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"DATABASE_URL": GONE}, f"The database {GONE} cannot be used: unable to open database file"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL is not the address of a database"),
        ({"DATABASE_URL": "postgresql://x/y"}, "DATABASE_URL must begin with sqlite: or mysql:"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY is too short: at least 32 characters"),
        ({"LIBRARY_PATH": "/dev/null/library"}, "The folder /dev/null/library cannot be used: Not a directory"),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence(tmp_path: Path, config: dict[str, str], sentence: str) -> None:
    with pytest.raises(StartupError) as caught:
        make_app(tmp_path, **config)

    assert sentence == caught.value.message


def test_a_password_in_the_database_address_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"mysql\+pymysql://root:\*\*\*@127\.0\.0\.1:1/music"):
        make_app(tmp_path, DATABASE_URL="mysql://root:secret@127.0.0.1:1/music")


def test_flask_run_shows_the_sentence_and_no_traceback() -> None:
    command = [sys.executable, "-m", "flask", "--app", "legacy_flask", "run", "--port", "0"]
    env = {**os.environ, "DATABASE_URL": GONE}
    done = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True)

    assert done.stderr.splitlines()[-1].startswith(f"Error: The database {GONE} cannot be used")
    assert "Traceback" not in done.stderr


def test_the_secret_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first, second = make_app(tmp_path), make_app(tmp_path)
    for app in (first, second):
        app.extensions["engine"].dispose()

    assert first.config["SECRET_KEY"] == second.config["SECRET_KEY"]
    assert (tmp_path / "data/secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").glob("secret_key*")] == ["secret_key"]


def test_workers_that_start_together_make_the_tables_once(tmp_path: Path) -> None:
    code = "from legacy_flask import create_app; create_app()"
    env = {**os.environ, "DATA_PATH": str(tmp_path / "data"), "LIBRARY_PATH": str(tmp_path / "library")}
    workers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env) for _ in range(2)]

    assert [worker.wait() for worker in workers] == [0, 0]


# --- seed --------------------------------------------------------------------------------------------------------


def test_the_first_admin_is_made_by_a_command(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    set_admin(app, " Boss ", "Strong-pass-1")

    _, answer = sign_in(app, "boss", "Strong-pass-1")
    app.extensions["engine"].dispose()

    assert answer.json["user"]["role"] == "admin"


def test_an_admin_made_again_gets_the_password_and_loses_the_sessions(app: Flask) -> None:
    client = signed_in(app, "user")
    set_admin(app, "user", "Another-pass-1")

    assert client.get("/auth/check").json["authenticated"] is False
    assert sign_in(app, "user", "Another-pass-1")[1].json["user"]["role"] == "admin"


def test_a_weak_password_makes_no_admin(app: Flask) -> None:
    with pytest.raises(StartupError, match="at least 8 characters, an upper-case letter, a digit"):
        set_admin(app, "boss", "secret!")


def test_a_library_that_is_not_empty_is_not_seeded(app: Flask) -> None:
    with pytest.raises(StartupError, match="There are artists already"):
        seed(app, "small")


def test_the_large_library_is_large_and_makes_no_users(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    assert seed(app) == "2000 artists and 20000 videos"
    set_admin(app, "boss", "Strong-pass-1")
    client, _ = sign_in(app, "boss", "Strong-pass-1")

    assert client.get("/api/library/stats").json["videos"]["total"] == 20_000
    assert client.get("/api/users/").json["total"] == 1
    app.extensions["engine"].dispose()


# --- failing closed ----------------------------------------------------------------------------------------------


@pytest.fixture
def without_database(app: Flask) -> Iterator[FlaskClient]:
    client = signed_in(app, "admin")
    working, app.extensions["engine"] = app.extensions["engine"], open_engine(GONE)
    yield client
    app.extensions["engine"] = working


@pytest.mark.parametrize("path", ["/api/health", "/api/health/status"])
def test_health_is_503_without_a_database(without_database: FlaskClient, path: str) -> None:
    answer = without_database.get(path)

    assert answer.status_code == 503
    assert answer.json["status"] == "unhealthy"


@pytest.mark.parametrize("path", ["/auth/check", "/api/users/", "/api/videos/1"])
def test_nobody_is_let_in_without_a_database(without_database: FlaskClient, path: str) -> None:
    answer = without_database.get(path)

    assert answer.status_code == 503
    assert answer.json == {"error": "The database is not available"}


def test_an_unexpected_error_says_nothing_about_itself(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.add_url_rule("/boom", view_func=lambda: 1 / 0)
    answer = app.test_client().get("/boom")

    assert answer.status_code == 500
    assert answer.json == {"error": "Internal server error"}
    assert answer.headers["X-Frame-Options"] == "DENY"
    app.extensions["engine"].dispose()


def test_a_role_that_does_not_exist_may_do_nothing(app: Flask) -> None:
    client = signed_in(app, "admin")
    with app.extensions["engine"].execution_options(write=True).begin() as connection:
        connection.exec_driver_sql("UPDATE users SET role = 'superadmin'")

    assert client.get("/api/videos/1").status_code == 403


@pytest.mark.parametrize("path", ["/", "/api/artists", "/auth/login", "/api/health"])
def test_every_answer_has_the_security_headers(app: Flask, path: str) -> None:
    plain, secure = app.test_client().get(path), app.test_client().get(path, base_url="https://localhost")

    for header in ("X-Content-Type-Options", "X-Frame-Options", "Content-Security-Policy", "Referrer-Policy"):
        assert header in plain.headers
    assert "Strict-Transport-Security" not in plain.headers
    assert "Strict-Transport-Security" in secure.headers


@pytest.mark.parametrize(
    ("path", "accept", "leads_on"),
    [
        ("/nowhere", BROWSER, True),
        ("/artist/abc", BROWSER, True),
        ("/nowhere", "*/*", False),
        ("/nowhere", "application/json", False),
        ("/api/nowhere", BROWSER, False),
        ("/static/nowhere.js", BROWSER, False),
    ],
)
def test_people_who_went_astray_get_a_page_that_leads_on(app: Flask, path: str, accept: str, leads_on: bool) -> None:
    answer = app.test_client().get(path, headers={"Accept": accept})

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert leads_on == ('href="/"' in answer.text)
    assert leads_on == ("Accept" in answer.vary)


def test_behind_tls_an_unsafe_request_must_come_from_https(app: Flask) -> None:
    client = signed_in(app, "user")
    secure = {"base_url": "https://localhost"}

    assert client.post("/auth/logout", headers={"Origin": "http://localhost"}, **secure).status_code == 403
    assert client.post("/auth/logout", headers={"Origin": "https://localhost"}, **secure).status_code == 200


def test_an_echo_equals_a_later_read(anywhere: Flask) -> None:
    client = signed_in(anywhere, "user")
    echo = client.put("/api/videos/6", json={"title": "Ünïcode 🎵"}, headers={"Origin": HERE}).json

    assert client.get("/api/videos/6").json == {key: value for key, value in echo.items() if key != "file_moved"}


# --- many at once ------------------------------------------------------------------------------------------------


def at_once(number: int, work: Any) -> list[Any]:
    results: list[Any] = [None] * number
    start = threading.Barrier(number)

    def run(index: int) -> None:
        start.wait()
        results[index] = work(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_many_guesses_at_once_gain_nothing(anywhere: Flask) -> None:
    statuses = at_once(12, lambda _: sign_in(anywhere, "user", "Wrong-pass-1")[1].status_code)

    assert Counter(statuses) == {401: 5, 429: 7}


def test_of_many_that_create_one_artist_one_succeeds(anywhere: Flask) -> None:
    client = signed_in(anywhere, "user")
    cookie = f"mv_session={client.get_cookie('mv_session').value}"  # type: ignore[union-attr]
    headers = {"Cookie": cookie, "Origin": HERE}

    def create(_: int) -> int:
        return (
            anywhere.test_client(use_cookies=False)
            .post("/api/artists/", json={"name": "X"}, headers=headers)
            .status_code
        )

    assert Counter(at_once(8, create)) == {201: 1, 409: 7}


def test_two_admins_who_demote_each_other_leave_one(anywhere: Flask) -> None:
    set_admin(anywhere, "boss", "Strong-pass-1")
    clients = [signed_in(anywhere, "admin"), sign_in(anywhere, "boss", "Strong-pass-1")[0]]
    ids = [client.get("/api/users/me").json["id"] for client in clients]

    def demote(index: int) -> int:
        path, body = f"/api/users/{ids[1 - index]}/role", {"role": "user"}
        return clients[index].put(path, json=body, headers={"Origin": HERE}).status_code

    assert min(at_once(2, demote)) == 200
    with anywhere.extensions["engine"].connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM users WHERE role = 'admin'").scalar() == 1


# --- live conversion ---------------------------------------------------------------------------------------------


@pytest.fixture
def endless_ffmpeg(tmp_path: Path, app: Flask) -> Path:
    """Stands in for ffmpeg: writes its process id to a file and never stops."""
    script, pid_file = tmp_path / "ffmpeg", tmp_path / "pid"
    script.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nwhile :; do echo frame; done\n")
    script.chmod(0o755)
    app.config["FFMPEG"] = str(script)
    return pid_file


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_client_that_leaves_stops_the_conversion(app: Flask, endless_ffmpeg: Path) -> None:
    answer = signed_in(app, "readonly").get("/api/videos/3/stream")
    assert answer.mimetype == "video/mp4"
    assert next(answer.response).startswith(b"frame")
    pid = int(endless_ffmpeg.read_text())

    assert running(pid)
    answer.close()
    wait_until(lambda: not running(pid), "the conversion to stop")


@pytest.mark.usefixtures("endless_ffmpeg")
def test_a_process_with_many_open_files_converts_as_well(app: Flask) -> None:
    with many_open_files():
        answer = signed_in(app, "readonly").get("/api/videos/3/stream")

        assert next(answer.response).startswith(b"frame")
        answer.close()


def test_head_starts_no_conversion(app: Flask, endless_ffmpeg: Path) -> None:
    answer = signed_in(app, "readonly").head("/api/videos/3/stream")
    answer.close()

    assert answer.status_code == 200
    assert not endless_ffmpeg.exists()


# --- names and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("AC/DC", "AC_DC"),
        ("..", "_"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("What?... ", "What_"),
        ("Beyonce\u0301", "Beyoncé"),
        ("a\0b\nc", "a_b_c"),
        ("x" * 300, "x" * 100),
        ("🎸" * 100, "🎸" * 60),
        ("", "_"),
    ],
)
def test_names_of_files_are_safe_everywhere(name: str, safe: str) -> None:
    assert safe == safe_name(name)


def test_a_move_never_overwrites(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_text(name)
    target = tmp_path / "new/song.mp4"

    moved = [move(tmp_path / f"{name}.mp4", target).name for name in ("a", "b", "c")]

    assert moved == ["song.mp4", "song (1).mp4", "song (2).mp4"]
    assert [(tmp_path / "new" / name).read_text() for name in moved] == ["a", "b", "c"]


def test_a_file_that_has_its_name_stays(tmp_path: Path) -> None:
    (tmp_path / "song.mp4").write_text("a")

    assert move(tmp_path / "song.mp4", tmp_path / "song.mp4") == tmp_path / "song.mp4"


@pytest.mark.parametrize(
    ("name", "key", "sort"),
    [
        ("The Beatles", "the beatles", "beatles, the"),
        ("  The   The ", "the the", "the, the"),
        ("THE", "the", "the"),
        ("Straße", "strasse", "strasse"),
        ("Bjo\u0308rk", "björk", "björk"),
    ],
)
def test_names_have_a_key_and_a_place_in_the_order(name: str, key: str, sort: str) -> None:
    assert key == name_key(name)
    assert sort == sort_name(name)
