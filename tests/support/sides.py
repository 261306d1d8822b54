"""Each application without requests: what its intake and its index do with real folders and a real database."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Protocol
from unittest.mock import patch

from fastapi import Request
from flask import Flask
from sqlalchemy import Engine

import fastapi_app.indexing
import fastapi_app.intake
import legacy_flask
import legacy_flask.indexing
import legacy_flask.intake
from fastapi_app.db import Db
from legacy_flask.db import open_engine

from .made_once import create_port, flask_app, sqlite

Answer = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # moved, failed


class Side(Protocol):
    """One of the two. Folders: `downloads` and `library`."""

    downloads: Path
    library: Path

    def waiting(self) -> list[Any]: ...
    def organize(self, files: Sequence[Any] | None = None, *, with_nfo: bool = False) -> Answer: ...
    def organize_twice_at_once(self) -> list[Answer]: ...
    def index(self) -> dict[str, Any]: ...
    def index_twice_at_once(self) -> list[dict[str, Any]]: ...
    def rows(self, query: str) -> list[tuple[Any, ...]]: ...
    def execute(self, statement: str) -> None: ...


class _Rows:
    def __init__(self, engine: Engine, home: Path) -> None:
        self.engine = engine
        self.downloads, self.library = home / "downloads", home / "library"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def execute(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement)


class LegacySide(_Rows):
    """Every call in an application context of its own."""

    def __init__(self, app: Flask, home: Path) -> None:
        self.app = app
        super().__init__(app.extensions["engine"].execution_options(write=True), home)

    def waiting(self) -> list[Any]:
        with self.app.test_request_context():
            return legacy_flask.intake.waiting()

    def organize(self, files: Sequence[Any] | None = None, *, with_nfo: bool = False) -> Answer:
        with self.app.test_request_context():
            wanted = legacy_flask.intake.waiting() if files is None else list(files)
            return legacy_flask.intake.organize(wanted, with_nfo)

    def organize_twice_at_once(self) -> list[Answer]:
        files = self.waiting()
        return _in_threads(lambda: self.organize(files))

    def index(self) -> dict[str, Any]:
        with self.app.test_request_context():
            return dict(legacy_flask.indexing.index(lambda _percent, _message: None))

    def index_twice_at_once(self) -> list[dict[str, Any]]:
        return _in_threads(self.index)


class PortSide(_Rows):
    """Every call in the same loop."""

    def __init__(self, url: str, home: Path, runner: asyncio.Runner) -> None:
        super().__init__(open_engine(url).execution_options(write=True), home)
        self.app = create_port()
        self.run = runner.run
        self.run(self.app.state.database.prepare())
        self.request = Request({"type": "http", "app": self.app, "headers": [], "client": None, "state": {}})

    def waiting(self) -> list[Any]:
        return self.run(fastapi_app.intake.waiting(self.app.state.settings))

    def organize(self, files: Sequence[Any] | None = None, *, with_nfo: bool = False) -> Answer:
        return self.run(self._organize(self.waiting() if files is None else files, with_nfo))

    def organize_twice_at_once(self) -> list[Answer]:
        files = self.waiting()
        return self.run(_both(self._organize(files), self._organize(files)))

    async def _organize(self, files: Sequence[Any], with_nfo: bool = False) -> Answer:
        db = Db(self.app.state.database)
        return await fastapi_app.intake.organize(self.request, db, files, with_nfo=with_nfo)

    def index(self) -> dict[str, Any]:
        return self.run(fastapi_app.indexing.index(self.request, {}, _silent))

    def index_twice_at_once(self) -> list[dict[str, Any]]:
        index = fastapi_app.indexing.index
        return self.run(_both(index(self.request, {}, _silent), index(self.request, {}, _silent)))


@contextmanager
def opened(name: str, home: Path, database_url: str = "", **env: str) -> Iterator[Side]:
    """`name` is "legacy" or "port"; the database is a new SQLite file unless a URL is given."""
    if name == "legacy" and not env:
        with flask_app(home, database_url) as app:
            yield LegacySide(app, home)
        return
    url = database_url or sqlite(home / "app.sqlite3")
    folders = {f"{folder.upper()}_PATH": str(home / folder) for folder in ("data", "library", "downloads")}
    with patch.dict(os.environ, {"SECRET_KEY": "s" * 32, "DATABASE_URL": url, **folders, **env}):
        if name == "legacy":
            app = legacy_flask.create_app()
            try:
                yield LegacySide(app, home)
            finally:
                app.extensions["engine"].dispose()
            return
        with asyncio.Runner() as runner:
            side = PortSide(url, home, runner)
            try:
                yield side
            finally:
                side.run(side.app.state.database.dispose())
                side.engine.dispose()


def fill(folder: Path, names: Iterable[str]) -> None:
    """Files of different contents."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} {name}", errors="surrogateescape")


def _in_threads(work: Any) -> list[Any]:
    results: list[Any] = []
    threads = [Thread(target=lambda: results.append(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


async def _both(*work: Any) -> list[Any]:
    return list(await asyncio.gather(*work))


async def _silent(_percent: int, _message: str = "") -> None:
    pass
