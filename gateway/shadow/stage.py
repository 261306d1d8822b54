"""Where a contained request plays: a transaction as it was before the control's changes, of which nothing remains."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from typing_extensions import override

from gateway.model import RowChange

from .rows import OWN, Catalog, Opaque, at, name_of, plain, read

if TYPE_CHECKING:
    from sqlalchemy import Connection, Insert

MAX_COPY_BYTES = 32 * 1024 * 1024  # of an SQLite database: it is copied for each request


class Unlike(Exception):
    """The database is not as the control left it, or not as is needed. One sentence for a person."""


class Stage(ABC):
    """What both databases have in common."""

    checks_off, checks_on = "", ""  # of foreign keys, within a transaction

    @abstractmethod
    def begin(self, connection: "Connection") -> None:
        """Begin a transaction on a fresh connection. Raises Unlike when that would not be safe."""

    def roll_back(self, connection: "Connection") -> None:
        """End the transaction."""
        connection.rollback()

    @abstractmethod
    def end(self, connection: "Connection") -> None:
        """After the rollback: the connection as it was."""

    def undo(self, connection: "Connection", catalog: Catalog, changes: Sequence[RowChange]) -> None:
        """Take the control's changes back. Raises Unlike when somebody has changed one of the rows since."""
        from sqlalchemy.exc import DBAPIError

        if not changes:
            return
        try:
            live = read(connection, catalog, [(change.table, change.key) for change in changes], lock=True)
            for change in changes:
                if live.get((change.table, change.key)) != change.after:
                    raise Unlike(f"row {change.key} of {change.table} has been changed since")
            connection.exec_driver_sql(self.checks_off, execution_options=OWN)
            for change in reversed(changes):
                _undo(connection, catalog, change)
            connection.exec_driver_sql(self.checks_on, execution_options=OWN)
        except DBAPIError as error:
            raise Unlike(f"the control's changes cannot be undone: {error.orig}") from error
        except Opaque as error:
            raise Unlike(f"the control's changes cannot be undone: {error}") from error


def _undo(connection: "Connection", catalog: Catalog, change: RowChange) -> None:
    from sqlalchemy import delete, insert, update

    before, after = change.before, change.after
    columns = catalog.key(change.table)
    table = plain(change.table, before or after or ())
    here = at(table, columns, change.key)
    statement: Any
    if after is None:
        statement = insert(table).values(dict(before or {}))
    elif before is None:
        statement = delete(table).where(here)
    else:
        statement = update(table).where(here).values(_changed(before, after))
    if connection.execute(statement, execution_options=OWN).rowcount != 1:
        raise Unlike(f"row {change.key} of {change.table} could not be put back")


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in before.items() if value != after[name]}


class MariaDb(Stage):
    """The database itself. No lock is waited for, and the server ends what this process forgets.

    Inside a branch of a global transaction the server itself refuses COMMIT, DDL, and whatever else would commit; it
    knows savepoints as usual. The branch is never prepared, so it dies with the connection.
    """

    checks_off, checks_on = "SET foreign_key_checks = 0", "SET foreign_key_checks = 1"
    _names = ("innodb_lock_wait_timeout", "idle_transaction_timeout", "max_statement_time")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._kept: tuple[object, ...] = ()
        self._branch = f"gateway-{uuid4().hex}"

    @override
    def begin(self, connection: "Connection") -> None:
        if not getattr(connection.dialect, "is_mariadb", False):
            raise Unlike("MySQL cannot be told not to wait for locks; MariaDB can")
        connection.begin()
        autocommit, checks, *kept = self._ask(connection, "autocommit", "foreign_key_checks", *self._names)
        if autocommit or not checks:
            raise Unlike("the connection commits by itself, or does not check foreign keys")
        self._kept = tuple(kept)
        self._set(connection, (0, ceil(self._timeout_s), self._timeout_s))
        self._say(connection, f"XA START '{self._branch}'")

    @override
    def roll_back(self, connection: "Connection") -> None:
        self._say(connection, f"XA END '{self._branch}'")
        self._say(connection, f"XA ROLLBACK '{self._branch}'")
        super().roll_back(connection)

    @override
    def end(self, connection: "Connection") -> None:
        self._set(connection, self._kept)
        connection.rollback()

    def _ask(self, connection: "Connection", *names: str) -> list[Any]:
        sql = "SELECT " + ", ".join(f"@@{name}" for name in names)
        return list(connection.exec_driver_sql(sql, execution_options=OWN).one())

    def _set(self, connection: "Connection", values: Iterable[object]) -> None:
        pairs = zip(self._names, values, strict=True)
        self._say(connection, "SET " + ", ".join(f"{name} = {value}" for name, value in pairs))

    def _say(self, connection: "Connection", sql: str) -> None:
        connection.exec_driver_sql(sql, execution_options=OWN)


class Sqlite(Stage):
    """A copy in memory, in place of the file on the same connection: nobody ever waits for the lock of the file."""

    checks_off, checks_on = "PRAGMA defer_foreign_keys = ON", "PRAGMA defer_foreign_keys = OFF"

    @override
    def begin(self, connection: "Connection") -> None:
        pooled = connection.connection
        if isinstance(pooled.driver_connection, sqlite3.Connection):
            _become_a_copy(pooled.driver_connection)
        else:  # aiosqlite: in the thread of that connection
            pooled.dbapi_connection.run_async(lambda it: it._execute(_become_a_copy, it._conn))  # type: ignore[union-attr]  # noqa: SLF001
        connection.begin()
        driver: Any = pooled.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN", execution_options=OWN)

    @override
    def end(self, connection: "Connection") -> None:
        connection.invalidate()  # it has no file any more


def _become_a_copy(connection: sqlite3.Connection) -> None:
    """Raises Unlike for what cannot be copied."""
    names = [(name, file) for _, name, file in connection.execute("PRAGMA database_list")]
    if [name for name, _ in names if name != "temp"] != ["main"] or not names[0][1]:
        raise Unlike("the connection has other databases besides its file")
    (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    if pages * size > MAX_COPY_BYTES:
        raise Unlike(f"the database has {pages * size >> 20} MiB: too much for a copy")
    content = bytearray(connection.serialize())
    content[18:20] = b"\1\1"  # no write-ahead log: in memory there is none
    connection.deserialize(content)


class Ids:
    """New rows get the ids that the control's rows got, in their order; those beyond get negative ones.

    So both answers name the same ids, and the database never uses up one of its own for what is rolled back.
    """

    def __init__(self, undone: Iterable[RowChange]) -> None:
        self._left: dict[str, list[object]] = {}
        self._known: set[tuple[str, object]] = set()
        self._extra = 0
        for change in undone:
            self._known.add((change.table, change.key[0]))
            if change.before is None:
                self._left.setdefault(change.table, []).append(change.key[0])

    def give(self, catalog: Catalog, statement: "Insert", many: Any, one: Any) -> tuple[Any, Any]:
        """The parameters, with an id for each row that has none. Raises Opaque where that cannot be."""
        table: Any = statement.table
        name = name_of(table)
        if name not in catalog.counted:
            return many, one
        column = _id_column(catalog, name, table)
        if statement.select is not None or statement._multi_values:  # noqa: SLF001
            raise Opaque("an INSERT of rows that are not parameters")
        values = {key: getattr(value, "value", None) for key, value in (statement._values or {}).items()}  # noqa: SLF001
        rows = [self._with_id(catalog, name, column, values, row) for row in (many or [one])]
        return (rows, {}) if many else ([], rows[0])

    def _with_id(
        self, catalog: Catalog, table: str, column: Any, values: Mapping[Any, Any], row: Mapping[Any, Any]
    ) -> Mapping[Any, Any]:
        given = row.get(column.key, row.get(column, values.get(column)))
        if given is None and column not in values:
            return {**row, column.key: self._next(table, unsigned=catalog.counted[table])}
        if (table, given) not in self._known:
            raise Opaque(f"{table} is given an id that the control did not use")
        return row

    def _next(self, table: str, *, unsigned: bool) -> object:
        if left := self._left.get(table):
            return left.pop(0)
        if unsigned:
            raise Opaque(f"more new rows of {table} than the control made, and no negative ids")
        self._extra -= 1
        return self._extra


def _id_column(catalog: Catalog, name: str, table: Any) -> Any:
    columns = catalog.key(name)
    found = [column for column in table.columns if column.name == columns[0]]
    if len(columns) != 1 or not found:
        raise Opaque(f"{name} has an automatic id beside its key")
    return found[0]
