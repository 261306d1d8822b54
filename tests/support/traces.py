"""What requests leave behind in the database and in the folders, and how to undo it."""

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Table
from sqlalchemy.engine import Connection, Engine

from legacy_flask.models import Base

TABLES = Base.metadata.tables
NEAR = timedelta(days=30)
TICK_NS = 100_000_000
RANDOM = {"token_hash", "jti", "family", "password_hash", "jobs.id", "runner"}

Row = tuple[Any, ...]  # as the driver gives it
Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class Traces:
    """Rows by table, and the digest of every file by its path."""

    rows: Rows
    files: dict[str, str]


class Snapshot:
    """The state of a database and a folder at the time it is taken."""

    def __init__(self, engine: Engine, folder: Path, keep: Path) -> None:
        self._engine, self._folder, self._keep = engine, folder, keep
        self._statements = {name: _statements(table, engine) for name, table in TABLES.items()}
        self._digests: dict[tuple[str, int, int, int], str] = {}
        shutil.copytree(folder, keep)
        self._sums: dict[str, int] = {}
        self._count, self._written = "", engine.connect()
        self._before = Traces(self._rows(), self._files())
        with engine.connect() as connection:
            self._sums = self._checksums(connection)
        self._count = self._writes()

    def close(self) -> None:
        self._written.close()

    def traces(self) -> Traces:
        """The state now. What no two requests share is masked: see `_masked`."""
        if self._writes() == self._count:
            return Traces(self._before.rows, self._files())
        now, rows = datetime.now(UTC).replace(tzinfo=None), {}
        for name, live in self._rows().items():
            known = {_key(name, row): row for row in self._before.rows[name]}
            rows[name] = [_masked(name, row, known.get(_key(name, row)), now) for row in live]
        return Traces(rows, self._files())

    def restore(self) -> None:
        if self._writes() != self._count:
            self._restore_rows()
            self._count = self._writes()
        if self._files() != self._before.files:
            shutil.rmtree(self._folder)
            shutil.copytree(self._keep, self._folder)

    def _restore_rows(self) -> None:
        live = self._rows()
        changed = [name for name in TABLES if live[name] != self._before.rows[name]]
        if changed:
            with _unchecked(self._engine) as connection:
                for name in changed:
                    _, delete, insert = self._statements[name]
                    connection.exec_driver_sql(delete)
                    if self._before.rows[name]:
                        connection.exec_driver_sql(insert, self._before.rows[name])
        if self._engine.dialect.name != "sqlite":
            self._reset_counters()

    def _writes(self) -> str:
        """Another one when anybody has written since; most requests only read, and then no row need be looked at."""
        with self._written.begin():
            if self._engine.dialect.name == "sqlite":
                return str(self._written.exec_driver_sql("PRAGMA data_version").scalar())
            handled = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Handler_write', 'Handler_update', 'Handler_delete')"
            return str(self._written.exec_driver_sql(handled).all())

    def _rows(self) -> Rows:
        """All rows now. Those of a table whose checksum has not changed are not read again."""
        with self._engine.connect() as connection:
            sums = self._checksums(connection)
            same = {name for name in TABLES if sums and sums[name] == self._sums.get(name)}
            return {
                name: self._before.rows[name] if name in same else list(map(tuple, connection.exec_driver_sql(select)))
                for name, (select, _, _) in self._statements.items()
            }

    def _checksums(self, connection: Connection) -> dict[str, int]:
        """One round trip to MariaDB instead of one per table; SQLite has neither checksums nor round trips."""
        if self._engine.dialect.name == "sqlite":
            return {}
        answer = connection.exec_driver_sql(f"CHECKSUM TABLE {', '.join(f'`{name}`' for name in TABLES)}")
        return {name.partition(".")[2]: checksum for name, checksum in answer.all()}

    def _files(self) -> dict[str, str]:
        found = (Path(where, name) for where, _, names in os.walk(self._folder) for name in names)
        return {str(path): self._digest(path) for path in found}

    def _digest(self, path: Path) -> str:
        """Read only if the file has changed. One that changed just now may do so again within a tick of its clock."""
        status = path.stat()
        known = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if known in self._digests:
            return self._digests[known]
        digest = sha256(path.read_bytes()).hexdigest()
        if time.time_ns() - status.st_mtime_ns > TICK_NS:
            self._digests[known] = digest
        return digest

    def _reset_counters(self) -> None:
        """MariaDB does not give back an id that a deleted or refused row has used; SQLite does."""
        counters = "SELECT table_name, auto_increment FROM information_schema.tables WHERE table_schema = DATABASE()"
        with self._engine.begin() as connection:
            for name, counter in connection.exec_driver_sql(counters).all():
                first = max((row[0] for row in self._before.rows[name]), default=0) + 1 if counter else counter
                if counter != first:
                    connection.exec_driver_sql(f"ALTER TABLE `{name}` AUTO_INCREMENT = {first}")


def _statements(table: Table, engine: Engine) -> tuple[str, str, str]:
    """SELECT, DELETE and INSERT of whole rows, for the driver itself: converting types would take most of the time."""
    quote = engine.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.columns)
    marks = ", ".join("?" if engine.dialect.name == "sqlite" else "%s" for _ in table.columns)
    order = ", ".join(quote(column.name) for column in table.primary_key)
    name = quote(table.name)
    return (
        f"SELECT {columns} FROM {name} ORDER BY {order}",
        f"DELETE FROM {name}",
        f"INSERT INTO {name} ({columns}) VALUES ({marks})",
    )


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


def _key(table: str, row: Row) -> Row:
    return row[: len(TABLES[table].primary_key)]


def _masked(table: str, row: Row, before: Row | None, now: datetime) -> Row:
    """The row with what is new and by nature different replaced: times by minutes from now, chance by a word."""
    if row == before:
        return row
    old: Sequence[Any] = before or [None] * len(row)
    return tuple(
        value if value is None or value == known else _plain(table, column.name, column.type, value, now)
        for column, value, known in zip(TABLES[table].columns, row, old, strict=True)
    )


def _plain(table: str, name: str, kind: object, value: Any, now: datetime) -> Any:
    if isinstance(kind, DateTime):
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        near = abs(time - now) < NEAR  # other times were written down by the case
        return f"in {round((time - now).total_seconds() / 60)} minutes" if near else value
    if name in RANDOM or f"{table}.{name}" in RANDOM:
        return "random"
    if f"{table}.{name}" == "webhook_deliveries.payload":
        return re.sub(r'"timestamp":"[^"]+"}$', '"timestamp":"then"}', value)
    return "this side" if name == "served_by" else value
