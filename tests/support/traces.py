"""What a request leaves behind in the database and in the folders, and how to undo it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, text
from sqlalchemy.engine import Connection, Engine

from legacy_flask.models import Base

TABLES = Base.metadata.tables
RANDOM = {"token_hash", "jti", "family", "password_hash"}

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Traces:
    """Rows by table, and the digest of every file by its path."""

    rows: Rows
    files: dict[str, str]


class Snapshot:
    """The state of a database and a folder at the time it is taken."""

    def __init__(self, engine: Engine, folder: Path, keep: Path) -> None:
        self._engine, self._folder, self._keep = engine, folder, keep
        shutil.copytree(folder, keep)
        self._before = Traces(self._rows(), self._files())

    def traces(self) -> Traces:
        """The state now. What no two requests share is masked: see `_plain`."""
        now, rows = datetime.now(UTC).replace(tzinfo=None), {}
        for table, live in self._rows().items():
            known = {_key(table, row): row for row in self._before.rows[table]}
            rows[table] = [_plain(row, known.get(_key(table, row), {}), now) for row in live]
        return Traces(rows, self._files())

    def restore(self) -> None:
        live = self._rows()
        changed = [name for name in TABLES if live[name] != self._before.rows[name]]
        if changed:
            with _unchecked(self._engine) as connection:
                for name in changed:
                    connection.execute(delete(TABLES[name]))
                    if self._before.rows[name]:
                        connection.execute(insert(TABLES[name]), self._before.rows[name])
        if self._engine.dialect.name != "sqlite":
            self._reset_counters()
        if self._files() != self._before.files:
            shutil.rmtree(self._folder)
            shutil.copytree(self._keep, self._folder)

    def _rows(self) -> Rows:
        with self._engine.connect() as connection:
            return {
                name: [dict(row._mapping) for row in connection.execute(table.select().order_by(*table.primary_key))]
                for name, table in TABLES.items()
            }

    def _files(self) -> dict[str, str]:
        found = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self._folder)): sha256(path.read_bytes()).hexdigest() for path in found}

    def _reset_counters(self) -> None:
        """MariaDB does not give back an id that a deleted or refused row has used; SQLite does."""
        counters = "SELECT table_name, auto_increment FROM information_schema.tables WHERE table_schema = DATABASE()"
        with self._engine.begin() as connection:
            for name, counter in connection.execute(text(counters)).all():
                first = max((row["id"] for row in self._before.rows[name]), default=0) + 1 if counter else counter
                if counter != first:
                    connection.execute(text(f"ALTER TABLE `{name}` AUTO_INCREMENT = {first}"))


@contextmanager
def _unchecked(engine: Engine) -> Iterator[Connection]:
    """A transaction without foreign keys: tables are refilled in any order, and no DELETE cascades."""
    mysql = engine.dialect.name != "sqlite"
    switch = "SET FOREIGN_KEY_CHECKS = {}" if mysql else "PRAGMA foreign_keys = {}"
    with engine.execution_options(write=True).connect() as connection:
        cursor = connection.connection.cursor()  # below SQLAlchemy, which would begin a transaction first
        cursor.execute(switch.format(0))
        with connection.begin():
            yield connection
        cursor.execute(switch.format(1))
        cursor.close()


def _key(table: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in TABLES[table].primary_key)


def _plain(row: Mapping[str, Any], before: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The row with what is new and by nature different replaced: times by minutes from now, chance by a word."""
    plain = dict(row)
    for name, value in row.items():
        if before and before[name] == value:
            continue
        if isinstance(value, datetime):
            plain[name] = f"in {round((value - now).total_seconds() / 60)} minutes"
        elif name in RANDOM and value is not None:
            plain[name] = "random"
        elif name == "served_by":
            plain[name] = "this side"
    return plain
