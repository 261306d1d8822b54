"""The async engine and a request's way to the database.

SQLite takes the write lock when a transaction begins (BEGIN IMMEDIATE), so that two writers never overwrite each
other's work; reading never waits. MariaDB runs READ COMMITTED in UTC; whoever reads in order to write locks the rows.
What one request reads in several statements may be of several moments, on both.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import Depends, Request
from sqlalchemy import URL, Table, bindparam, event, insert, make_url, select, text
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable

from . import containment
from .http import MAX_INT, ApiError
from .json import decode
from .models import metadata

POOL_SIZE = 10
MAX_OVERFLOW = 5
WAIT_S = 10.0  # for a free connection, then 503
RECYCLE_S = 1800
CONNECT_S = 5
SCHEMA_LOCK = "music_videos_schema"

_MYSQL_DRIVERS = {"mysql+asyncmy": "mysql+asyncmy", "mariadb+asyncmy": "mysql+asyncmy"}


class DatabaseUnavailable(Exception):
    """No connection could be had. `str(error)` is one complete sentence for a person."""


class Database:
    """The engine of this process, with a first-come gate in front of its pool.

    The pool alone hands connections out in no particular order, which costs the unlucky ones seconds under load.
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
            self.engine = _open_engine(parsed, pool_size, max_overflow)
        except ModuleNotFoundError as error:
            raise DatabaseUnavailable(f"DATABASE_URL needs {error.name}, which is not installed") from None
        self._writing = self.engine.execution_options(write=True)
        self._gate = asyncio.Semaphore(pool_size + max_overflow)
        self._wait_s = wait_s

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def connect(self, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection that goes back to the pool whatever happens; what was not committed is rolled back.

        Raises DatabaseUnavailable when none is free within `wait_s` seconds or the server does not answer. A contained
        request has one connection and gets it each time.
        """
        if (contained := containment.current()) is not None:
            yield await contained.connection(self._writing)
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await self._gate.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(f"All connections to {self.name} are busy.") from None
        try:
            async with AsyncExitStack() as stack:
                engine = self._writing if write else self.engine
                try:
                    connection = await stack.enter_async_context(engine.connect())
                except (OperationalError, InterfaceError, PoolTimeout, OSError) as error:
                    raise self._unavailable(error) from error
                yield connection
        finally:
            self._gate.release()

    async def prepare(self) -> None:
        """Make the tables that are missing, once, even when several workers start together.

        Raises DatabaseUnavailable in one sentence when that cannot be done.
        """
        try:
            async with self.connect(write=True) as connection, connection.begin():
                if connection.dialect.name == "sqlite":
                    await connection.run_sync(metadata.create_all)
                else:
                    await connection.execute(text("SELECT GET_LOCK(:name, 30)"), {"name": SCHEMA_LOCK})
                    await connection.run_sync(metadata.create_all)
                    await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})
        except DBAPIError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        return DatabaseUnavailable(f"The database {self.name} cannot be used: {cause}")

    async def dispose(self) -> None:
        await self.engine.dispose()


class Db:
    """What one request may do with the database; never more than one connection at a time.

    Reading opens a connection on first use and keeps it, a transaction gives it back first: two requests that each
    held one connection and waited for a second would wait for ever.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stack = AsyncExitStack()
        self._reading: AsyncConnection | None = None

    async def execute(
        self, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Read what is committed."""
        if self._reading is None:
            self._reading = await self._stack.enter_async_context(self._database.connect())
        return await self._reading.execute(statement, values)

    async def row(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any | None:
        """The first row, or None."""
        return (await self.execute(statement, values)).first()

    async def scalar(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, or None."""
        return (await self.execute(statement, values)).scalar()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection to write with: committed at the end of the block, rolled back when it raises."""
        await self.close()
        async with self._database.connect(write=True) as connection, containment.transaction(connection):
            yield connection
        for call in _after_commit.pop(connection, ()):
            call()

    async def close(self) -> None:
        self._reading = None
        await self._stack.aclose()


_after_commit: WeakKeyDictionary[AsyncConnection, list[Callable[[], object]]] = WeakKeyDictionary()


def after_commit(connection: AsyncConnection, call: Callable[[], object]) -> None:
    """Do this when the `transaction` on this connection has been committed; in a contained request never."""
    if containment.current() is None:
        _after_commit.setdefault(connection, []).append(call)


async def _request_db(request: Request) -> AsyncIterator[Db]:
    db = Db(request.app.state.database)
    try:
        yield db
    finally:
        await db.close()


DbDep = Annotated[Db, Depends(_request_db, scope="function")]  # closed before the first byte of the answer


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


def _open_engine(url: URL, pool_size: int, max_overflow: int) -> AsyncEngine:
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "json_serializer": _to_json,
        "json_deserializer": decode,
    }
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), **options)
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    if url.get_backend_name() not in ("mysql", "mariadb"):
        raise DatabaseUnavailable("DATABASE_URL must begin with sqlite: or mysql:")
    return create_async_engine(
        url.set(drivername=_MYSQL_DRIVERS.get(url.drivername, "mysql+aiomysql")),
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_recycle=RECYCLE_S,
        connect_args={"charset": "utf8mb4", "init_command": "SET time_zone='+00:00'", "connect_timeout": CONNECT_S},
        **options,
    )


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # this module says when a transaction begins
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("write", False):  # reading needs none, and saves three trips to a thread
        connection.exec_driver_sql("BEGIN IMMEDIATE")
