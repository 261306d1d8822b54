"""What takes a tenth of a second to make, made once per test process: tables, Flask's rules, the port's routes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from flask import Flask
from starlette.routing import BaseRoute

import fastapi_app
import legacy_flask
from legacy_flask import db, logs
from legacy_flask.downloader import stop_all

_routes: list[BaseRoute] = []


def sqlite(path: Path) -> str:
    """The address of a new file with all tables, which are empty. Raises FileExistsError.

    Over one that somebody has open it would be another database: the pages are in another order in each process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(_tables())
    return f"sqlite:///{path}"


@cache
def _tables() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "app.sqlite3")
        engine = db.open_engine(f"sqlite:///{path}")
        db.create_tables(engine)
        engine.dispose()  # with the last connection everything is in this one file
        return path.read_bytes()


def create_port() -> FastAPI:
    """As `fastapi_app.create_app()`. FastAPI prepares its routes when they are asked first, and then they are good for
    all applications of this process."""
    app = fastapi_app.create_app()
    if _routes:
        app.router.routes[:] = _routes
    else:
        _routes.extend(app.router.routes)
    return app


@contextmanager
def flask_app(home: Path, database_url: str = "", **config: Any) -> Iterator[Flask]:
    """The application of this process with such a configuration, as if just made: with these folders, and a new SQLite
    file unless a URL is given. Only one at a time."""
    app = _flask_app(**config)
    usual = dict(app.config)
    names = ("DATA_PATH", "LIBRARY_PATH", "DOWNLOADS_PATH")
    folders = {name: home / name.removesuffix("_PATH").lower() for name in names}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    url = database_url or sqlite(home / "app.sqlite3")
    app.config.update(folders, DATABASE_URL=url, LOG_FILE="")
    logs.init_app(app)
    engine = app.extensions["engine"] = db.open_engine(url)
    try:
        if database_url:
            db.create_tables(engine)
        for service in ("upstream", "spotify"):
            app.extensions[service].forget()
        yield app
    finally:
        stop_all()  # while it finds what it has begun with
        engine.dispose()
        app.config.clear()
        app.config.update(usual)


@cache
def _flask_app(**config: Any) -> Flask:
    with TemporaryDirectory() as home:
        paths = {f"{name}_PATH": f"{home}/{name}" for name in ("DATA", "LIBRARY", "DOWNLOADS")}
        usual = {"SECRET_KEY": "s" * 32, "BCRYPT_ROUNDS": 4, "REDIS_URL": "", **paths}
        return legacy_flask.create_app({**usual, "DATABASE_URL": f"sqlite:///{home}/app.sqlite3", **config})
