"""The async engine and a request's way to the database.

SQLite takes the write lock when a transaction begins (BEGIN IMMEDIATE), so that two writers never overwrite each
other's work; reading never waits. MariaDB runs READ COMMITTED in UTC; whoever reads in order to write locks the rows.
What one request reads in several statements may be of several moments, on both.

A connection is held for one statement that reads, or for one transaction that writes. It begins nothing by itself, so
reading is one trip to the server. Whether it still stands shows when it is used: a read, or the BEGIN of a transaction,
is then repeated once on a new one. Nothing else is repeated: a deadlock, a lock that is waited for too long, a commit
that was cut off are errors, and the client decides.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import cache, partial
from typing import Annotated, Any, TypeVar
from weakref import WeakKeyDictionary

from fastapi import Depends, Request
from pymysql.constants import FIELD_TYPE
from pymysql.converters import convert_datetime, decoders
from sqlalchemy import URL, Result, Row, Table, bindparam, event, insert, make_url, select, text
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable
from sqlalchemy.util import await_only, greenlet_spawn

from . import containment
from .gate import Gate
from .http import MAX_INT, ApiError
from .json import decode
from .models import metadata

POOL_SIZE = 10
MAX_OVERFLOW = 20
WAIT_S = 10.0  # for a free connection, then 503
LOCK_WAIT_S = 10  # for what another transaction has locked, then 503
ISOLATION = "READ COMMITTED"
RECYCLE_S = 1800
CONNECT_S = 5
SCHEMA_LOCK = "music_videos_schema"

_MYSQL_DRIVERS = {"mysql+asyncmy": "mysql+asyncmy", "mariadb+asyncmy": "mysql+asyncmy"}
_PING = text("SELECT 1")
_BROKEN = (OSError, EOFError, RuntimeError)  # what drivers let through when the network fails: uvloop's is the last
_NOT_OPENED = (SQLAlchemyError, *_BROKEN)

T = TypeVar("T")
Rows = Result[*tuple[Any, ...]]


class DatabaseUnavailable(Exception):
    """No connection could be had. `str(error)` is one complete sentence for a person."""


class ConnectionLost(DatabaseUnavailable):
    """The connection broke while it was used."""


class Database:
    """The engine of this process, with a first-come gate in front of its pool.

    The pool alone hands connections out in no particular order, which costs the unlucky ones seconds under load, and
    opens and closes its overflow all the time.
    """

    def __init__(
        self, url: str, *, pool_size: int = POOL_SIZE, max_overflow: int = MAX_OVERFLOW, wait_s: float = WAIT_S
    ) -> None:
        """Raises DatabaseUnavailable for a URL that no driver understands. Connects to nothing yet."""
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise DatabaseUnavailable("DATABASE_URL is not the address of a database") from None
        try:
            self.engine = _open_engine(parsed, pool_size, max_overflow, wait_s)
        except ModuleNotFoundError as error:
            raise DatabaseUnavailable(f"DATABASE_URL needs {error.name}, which is not installed") from None
        self._writing = self.engine.execution_options()
        self._contained = self.engine
        if self.engine.dialect.name != "sqlite":
            self._contained = self.engine.execution_options(isolation_level=ISOLATION)  # no autocommit, as was promised
        self._gate = Gate(pool_size, max_overflow, wait_s)
        self._holding: set[asyncio.Task[Any] | None] = set()
        self._opened = self._errors = self._reconnects = 0
        event.listen(self._writing.sync_engine, "begin", _begin)  # listeners cost each statement of their engine
        event.listen(self.engine.sync_engine, "connect", self._note_opened)
        event.listen(self.engine.sync_engine, "handle_error", self._translate)

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    async def read(self, statement: Executable, values: Mapping[str, Any] | None, take: Callable[[Rows], T]) -> T:
        """What `take` makes of the result, such as `Result.first`; the connection is free again before this returns.

        Raises DatabaseUnavailable when none is free within `wait_s` seconds or the server does not answer.
        """
        if (contained := containment.current()) is not None:
            return take(await (await contained.connection(self._contained)).execute(statement, values))
        async with self._one_connection():
            try:
                return await greenlet_spawn(self._read, statement, values, take)
            except ConnectionLost:
                self._reconnects += 1
                return await greenlet_spawn(self._read, statement, values, take)

    def _read(self, statement: Executable, values: Mapping[str, Any] | None, take: Callable[[Rows], T]) -> T:
        """All in one go: through AsyncConnection it is a third more work."""
        try:
            connection = self.engine.sync_engine.connect()
        except _NOT_OPENED as error:
            raise self._unavailable(error) from error
        with connection:
            return take(connection.execute(statement, values))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection to write with: committed at the end of the block, rolled back when it raises.

        In a contained request it is a savepoint on the only connection. Raises DatabaseUnavailable like `read`.
        """
        if (contained := containment.current()) is not None:
            connection = await contained.connection(self._contained)
            async with connection.begin_nested():
                yield connection
            return
        async with self._one_connection(), AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._writing.connect())
            except _NOT_OPENED as error:
                raise self._unavailable(error) from error
            await self._begin(connection)
            yield connection
            try:
                await connection.commit()
            except BaseException:
                await connection.rollback()  # or it would go back to the pool as it is
                raise
        for call in _after_commit.pop(connection, ()):
            call()

    async def _begin(self, connection: AsyncConnection) -> None:
        try:
            await connection.begin()
        except ConnectionLost:
            self._reconnects += 1
            await connection.begin()  # SQLAlchemy takes a new one from the pool

    async def prepare(self) -> None:
        """Make the tables that are missing, once, even when several workers start together.

        Raises DatabaseUnavailable in one sentence when that cannot be done.
        """
        try:
            async with self.transaction() as connection:
                if connection.dialect.name == "sqlite":
                    await connection.run_sync(metadata.create_all)
                else:
                    await connection.execute(text("SELECT GET_LOCK(:name, 30)"), {"name": SCHEMA_LOCK})
                    await connection.run_sync(metadata.create_all)
                    await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})
        except DBAPIError as error:
            raise self._unavailable(error) from error

    async def ping(self, timeout_s: float) -> bool:
        """Whether the database answers within so many seconds, waiting for a free connection included. Never raises."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.read(_PING, None, Result.first)
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError):
            return False
        return True

    def statistics(self) -> dict[str, float]:
        """Of this process: connections and requests now, all else since it began."""
        pool: Any = self.engine.pool
        return {
            "size": pool.checkedin() + pool.checkedout(),
            "checked_out": pool.checkedout(),
            "waiting": self._gate.waiting,
            "waited_seconds": self._gate.waited_s,
            "exhausted": self._gate.turned_away,  # how often nothing came free in time
            "opened": self._opened,
            "errors": self._errors,  # connections that broke or could not be opened
            "reconnects": self._reconnects,  # of them, those that no client noticed
        }

    async def dispose(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def _one_connection(self) -> AsyncIterator[None]:
        """A place in the pool, for a task that has none: who holds one and waits for another may wait for ever."""
        task = asyncio.current_task()
        if task in self._holding:
            raise RuntimeError("this task has a connection already, and must use that one")
        try:
            await self._gate.enter()
        except TimeoutError:
            raise DatabaseUnavailable(f"All connections to {self.name} are busy.") from None
        self._holding.add(task)
        try:
            yield
        finally:
            self._holding.discard(task)
            self._gate.leave()

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        """What SQLAlchemy asks before it raises an error of the driver."""
        error = context.original_exception
        context.is_disconnect = context.is_disconnect or isinstance(error, _BROKEN)
        return (
            self._unavailable(error, ConnectionLost) if context.is_disconnect and isinstance(error, Exception) else None
        )

    def _unavailable(
        self, error: BaseException, kind: type[DatabaseUnavailable] = DatabaseUnavailable
    ) -> DatabaseUnavailable:
        self._errors += 1
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        return kind(f"The database {self.name} cannot be used: {cause}")

    def _note_opened(self, *_: object) -> None:
        self._opened += 1


class Db:
    """What one request may do with the database. Nothing is held between two calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def execute(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Result[*tuple[Any, ...]]:
        """Read what is committed."""
        frozen = await self._database.read(statement, values, Result.freeze)
        return frozen()

    async def rows(
        self, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """All rows: the quickest way to many."""
        return await self._database.read(statement, values, Result.all)

    async def row(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any | None:
        """The first row, or None."""
        return await self._database.read(statement, values, Result.first)

    async def scalar(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, or None."""
        return await self._database.read(statement, values, Result.scalar)

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """See `Database.transaction`."""
        return self._database.transaction()


_after_commit: WeakKeyDictionary[AsyncConnection, list[Callable[[], object]]] = WeakKeyDictionary()


def after_commit(connection: AsyncConnection, call: Callable[[], object]) -> None:
    """Do this when the `transaction` on this connection has been committed; in a contained request never."""
    if containment.current() is None:
        _after_commit.setdefault(connection, []).append(call)


async def _request_db(request: Request) -> Db:
    return Db(request.app.state.database)


DbDep = Annotated[Db, Depends(_request_db)]


async def insert_row(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> int:
    """The id of the new row."""
    key = (await connection.execute(insert(table).values(**values))).inserted_primary_key
    return int(key[0]) if key else 0


async def find_or_404(db: Db | AsyncConnection, table: Table, row_id: int, *, lock: bool = False) -> Any:
    """The row with that id; `lock` keeps other writers away until the transaction ends. Raises ApiError 404."""
    row = (await db.execute(_by_id(table, lock), {"row_id": row_id})).first() if row_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, f"{table.name.removesuffix('s').capitalize()} not found")
    return row


@cache
def _by_id(table: Table, lock: bool) -> Executable:
    statement = select(table).where(table.c.id == bindparam("row_id"))
    return statement.with_for_update() if lock else statement


def _open_engine(url: URL, pool_size: int, max_overflow: int, wait_s: float) -> AsyncEngine:
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": wait_s,
        "json_serializer": _to_json,
        "json_deserializer": decode,
    }
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), **options)
        configure, in_transaction = _configure_sqlite, lambda driver: driver.in_transaction
    elif url.get_backend_name() in ("mysql", "mariadb"):
        driver = _MYSQL_DRIVERS.get(url.drivername, "mysql+aiomysql")
        engine = create_async_engine(
            url.set(drivername=driver),
            isolation_level=ISOLATION,
            pool_recycle=RECYCLE_S,
            connect_args=_mysql_options(driver),
            **options,
        )
        configure, in_transaction = _configure_mysql, lambda driver: driver.get_transaction_status()
    else:
        raise DatabaseUnavailable("DATABASE_URL must begin with sqlite: or mysql:")
    event.listen(engine.sync_engine, "connect", configure)
    engine.dialect.do_rollback = partial(_roll_back, in_transaction)  # type: ignore[method-assign]
    return engine


def _mysql_options(driver: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "charset": "utf8mb4",
        "init_command": f"SET time_zone='+00:00', innodb_lock_wait_timeout={LOCK_WAIT_S}",
        "connect_timeout": CONNECT_S,
    }
    if driver == "mysql+aiomysql":  # it reads times in Python
        options["conv"] = {**decoders, FIELD_TYPE.DATETIME: _moment}
    return options


def _moment(text: str) -> Any:
    """A DATETIME; what is none, such as `0000-00-00 00:00:00`, stays text."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return convert_datetime(text)


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# Connections begin nothing by themselves: this module says when.


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={LOCK_WAIT_S * 1000}", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _begin_wal(cursor)
    cursor.close()


def _begin_wal(cursor: Any) -> None:
    """Of several processes that open a new file at once, SQLite refuses all but one, without waiting."""
    ends_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends_at:
                raise
            await_only(asyncio.sleep(0.01))
        else:
            return


def _configure_mysql(connection: Any, _record: object) -> None:
    connection.autocommit(True)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")


def _roll_back(in_transaction: Callable[[Any], bool], connection: Any) -> None:
    """SQLAlchemy rolls back whatever comes back to the pool; for what only read that is a trip to the server less."""
    if in_transaction(connection.driver_connection):
        connection.rollback()
