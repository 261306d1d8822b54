"""Is the async port faster than the Flask application tuned as well as it can be, on the same MariaDB?

Both are the real reference application, signed in, one process each: Flask under gunicorn, the port behind the gateway,
as it is deployed.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from sqlalchemy import func, select

from legacy_flask import create_app
from legacy_flask.db import get_session
from legacy_flask.models import Video
from legacy_flask.seed import DEMO_USERS, seed
from tests.support.databases import create_database, mariadb

from .harness import Cell, Contestant, Plan, compete, ratios, save, serving, spread, table

PYTHON = [sys.executable, "-m"]
THREADS = "8"  # more are slower: they only queue for the interpreter
FLASK, NULL, AIOMYSQL, ASYNCMY = "Flask, 8 threads", "a second Flask", "port, aiomysql", "port, asyncmy"
CLIENTS = 32
TARGETS = {  # ratio at least, by driver
    "50 rows, no database": (3.0, 3.0),
    "one row by primary key": (1.5, 1.8),
    "50 rows, joined": (2.5, 4.0),
}


def main(plan: Plan) -> None:
    with TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "server").mkdir()
        with (
            mariadb(home / "server") as server,
            application(create_database(server, "pages"), home) as artist_id,
            serving(contestants(home)) as ports,
        ):
            cookie = sign_in(ports[FLASK])
            results = {cell.name: compete(plan, ports, cell) for cell in cells(cookie, artist_id)}
    rows = []
    for name, rounds in results.items():
        errors = sum(measured.errors for measureds in rounds.values() for measured in measureds)
        base = spread([measured.rps for measured in rounds[FLASK]], 0)
        mine = [spread(ratios(rounds, contestant, FLASK)) for contestant in (NULL, AIOMYSQL, ASYNCMY)]
        rows.append([name, base, *mine, " / ".join(map(str, TARGETS[name])), str(errors)])
    header = [f"{CLIENTS} clients", f"{FLASK}, req/s", *(f"{name}, ratio" for name in (NULL, AIOMYSQL, ASYNCMY))]
    table("The reference application", [*header, "at least", "errors"], rows)
    save("pages", plan, results)


@contextmanager
def application(url: str, home: Path) -> Iterator[int]:
    """Environment and rows for all contestants; yields an artist with at least 50 videos."""
    env = {
        "DATABASE_URL": url,
        "SECRET_KEY": secrets.token_hex(32),
        "DATA_PATH": str(home / "data"),
        "LIBRARY_PATH": str(home / "library"),
        "BCRYPT_ROUNDS": "4",
    }
    with patch.dict(os.environ, env):
        app = create_app()
        seed(app, "large", demo=True)
        with app.app_context():
            counted = select(Video.artist_id).group_by(Video.artist_id).having(func.count() >= 50)
            artist_id = get_session().scalars(counted.order_by(Video.artist_id)).first()
        app.extensions["engine"].dispose()
        yield artist_id


def contestants(home: Path) -> list[Contestant]:
    gunicorn = [*PYTHON, "gunicorn", "-k", "gthread", "--threads", THREADS, "--bind", "127.0.0.1:{port}"]
    gunicorn += ["--log-level", "warning", "benchmarks.music:make_flask()"]
    flags = home / "flags.yaml"
    flags.write_text("version: 1\noverride: fastapi\n")
    gateway = [*PYTHON, "gateway", "serve", "--legacy", "benchmarks.music:make_flask", "--port", "{port}"]
    gateway += ["--fastapi", "benchmarks.music:make_port", "--flags", str(flags), "--log-level", "warning"]
    asyncmy = {"DATABASE_URL": os.environ["DATABASE_URL"].replace("mysql:", "mysql+asyncmy:")}
    return [
        Contestant(FLASK, gunicorn),
        Contestant(NULL, gunicorn),
        Contestant(AIOMYSQL, [*gateway, "--state", str(home / "aiomysql")]),
        Contestant(ASYNCMY, [*gateway, "--state", str(home / "asyncmy")], asyncmy),
    ]


def cells(cookie: str, artist_id: int) -> Sequence[Cell]:
    paths = ("/page", f"/api/artists/{artist_id}", f"/api/videos/?artist_id={artist_id}&limit=50")
    return [Cell(name, path, CLIENTS, cookie=cookie) for name, path in zip(TARGETS, paths, strict=True)]


def sign_in(port: int) -> str:
    """The cookie of a session that holds on all sides."""
    username, password, _ = DEMO_USERS[0]
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"username": username, "password": password})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/auth/login", body, headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        sys.exit(f"signing in failed: {answer.status}")
    cookies: Mapping[str, str] = dict(
        value.partition(";")[0].partition("=")[::2]
        for name, value in answer.getheaders()
        if name.lower() == "set-cookie"
    )
    connection.close()
    return f"mv_session={cookies['mv_session']}"
