"""A database that goes away under load and comes back: both sides say so meanwhile, and neither remembers it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pymysql
import pytest

from tests.support.databases import MariaDb, create_database
from tests.support.load import Load, load
from tests.support.processes import resident_mb, wait_until
from tests.support.serving import ROOT, Server, environment, serving

APPS = {"legacy": "legacy_flask:create_app", "fastapi": "fastapi_app:create_app"}
# Not by weight: where legacy answers nothing, the breaker cannot know that it would fail, too.
PIN = '{weight: 0, pins: ["user:1"]}'
PORTED = (f"artists.get_artist: {PIN}", f"videos.set_status: {PIN}")
SAID = {"error": "The database is not available"}
WORKERS, THREADS, CLIENTS = 2, 8, 2
BACK_WITHIN_S = 2.0  # whoever asks later is served
FIRST_WITHIN_S = 10.0  # an answer is there; the machine may stand still meanwhile


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MariaDb]:
    (tmp_path / "mariadb").mkdir()
    server = MariaDb(tmp_path / "mariadb")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(request: pytest.FixtureRequest, database: MariaDb, tmp_path: Path) -> Iterator[Server]:
    """The reference application on two workers, with the small library; two of its routes are ported."""
    url = create_database(database.url, "music")
    env = {
        "DATABASE_URL": url,
        "DATA_PATH": str(tmp_path / "data"),
        "LIBRARY_PATH": str(tmp_path / "library"),
        "SECRET_KEY": os.urandom(32).hex(),
        "BCRYPT_ROUNDS": "4",
    }
    seed = [sys.executable, "-m", "legacy_flask.seed", "--size", "small", "--demo"]
    subprocess.run(seed, check=True, cwd=ROOT, env=environment(env), stdout=subprocess.DEVNULL)
    env["DATABASE_URL"] = url.replace("mysql:", f"mysql+{request.param}:")
    options = {"env": env, "cwd": ROOT, "workers": WORKERS, "threads": THREADS, "served_by": True}
    with serving(tmp_path, *PORTED, **APPS, **options) as running:
        yield running


def connections(database: MariaDb) -> int:
    with pymysql.connect(host="127.0.0.1", port=database.port, user="root") as own, own.cursor() as cursor:
        return int(cursor.execute("SELECT id FROM information_schema.processlist WHERE db = 'music'"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["aiomysql", "asyncmy"], indirect=True)
def test_a_database_that_was_killed_or_stopped_is_forgotten_within_two_seconds(
    server: Server, database: MariaDb
) -> None:
    headers = signed_in(server) | {"Origin": server.url, "Content-Type": "application/json"}
    change = {"method": "PUT", "headers": headers, "clients": CLIENTS}
    with ExitStack() as stack:
        asked = {
            ("fastapi", "reads"): load(server, "/api/artists/1", headers=headers, clients=CLIENTS),
            ("legacy", "reads"): load(server, "/api/videos/1", headers=headers, clients=CLIENTS),
            ("fastapi", "writes"): load(server, "/api/videos/1/status", body=b'{"status": "WANTED"}', **change),
            ("legacy", "writes"): load(server, "/api/artists/1", body=b'{"bio": "x"}', **change),
        }
        loads = {name: stack.enter_context(one) for name, one in asked.items()}
        wait_until(lambda: all(len(one.requests) >= 50 for one in loads.values()), "load", 60)
        size = {pid: resident_mb(pid) for pid in server.workers()}
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            outage(database, how, loads)
        idle = {pid: resident_mb(pid) for pid in server.workers()}
    assert size.keys() == idle.keys()  # nobody died
    assert max(idle[pid] - size[pid] for pid in size) < 48
    assert connections(database) <= WORKERS * (10 + THREADS)


def outage(database: MariaDb, how: signal.Signals, loads: dict[tuple[str, str], Load]) -> None:
    """Stop the database, start it again, and look at every answer since."""
    met = {name: len(one.requests) for name, one in loads.items()}
    assert [] == [one.failures[-1:] for one in loads.values() if one.requests[-1].status != 200]
    database.stop(how)
    gone_at = time.monotonic()
    away = lambda: all(later(one, gone_at, 503) >= 5 for one in loads.values())  # noqa: E731
    wait_until(away, "everybody to be told", 30)
    database.start()
    back_at = time.monotonic()
    again = lambda: all(later(one, back_at + BACK_WITHIN_S, 200) >= 50 for one in loads.values())  # noqa: E731
    wait_until(again, "everybody to be served again", 60)

    for (side, what), one in loads.items():
        answers = one.requests[met[side, what] :]
        where = f"{what} of {side}"
        assert [] == [answer for answer in answers if answer.status not in (200, 503)], where
        assert all(answer.answer == SAID for answer in answers if answer.status == 503), where
        assert min(answer.ended for answer in answers if answer.began > back_at and answer.status == 200) < (
            back_at + FIRST_WITHIN_S
        ), where
        since = [answer for answer in answers if answer.began > back_at + BACK_WITHIN_S]
        assert {(200, side)} == {(answer.status, answer.by) for answer in since}, where


def later(one: Load, moment: float, status: int) -> int:
    return sum(asked.began > moment and asked.status == status for asked in one.requests[-200:])


def signed_in(server: Server) -> dict[str, str]:
    with server.client() as client:
        who = {"username": "admin", "password": "Admin-pass-1"}
        answer = client.post("/auth/login", content=json.dumps(who), headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        return {"Cookie": f"mv_session={client.cookies['mv_session']}"}
