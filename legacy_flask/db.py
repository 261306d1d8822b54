"""The engine, a session per request for reading, and `transaction()` for writing.

SQLite takes the write lock when a transaction begins (BEGIN IMMEDIATE), so that two writers never overwrite each other's
work; reading never waits. MariaDB runs READ COMMITTED in UTC, and whoever reads in order to write locks the rows.
"""

import json
import sqlite3
import time
from contextlib import contextmanager

import click
from flask import Flask, current_app, g
from sqlalchemy import UniqueConstraint, create_engine, event, inspect, text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateColumn

from .models import Base

SCHEMA_LOCK = "music_videos_schema"
LOCK_WAIT_S = 10  # for what another transaction has locked


class StartupError(click.ClickException):
    """The application cannot start. `flask run` prints the message as one line."""


def init_app(app: Flask) -> None:
    engine = open_engine(app.config["DATABASE_URL"])
    create_tables(engine)
    app.extensions["engine"] = engine
    app.teardown_appcontext(close_session)


def open_engine(database_url: str) -> Engine:
    """Bytes on the wire and JSON in the columns are UTF-8 without escapes."""
    try:
        url = make_url(database_url)
    except ArgumentError:
        raise StartupError("DATABASE_URL is not the address of a database") from None
    options = {"json_serializer": to_json, "pool_size": 10, "max_overflow": 20}
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url.set(drivername="sqlite"), **options)
        event.listen(engine, "connect", configure_sqlite)
        event.listen(engine, "begin", begin_sqlite)
        return engine
    if url.get_backend_name() not in ("mysql", "mariadb"):
        raise StartupError("DATABASE_URL must begin with sqlite: or mysql:")
    return create_engine(
        url.set(drivername="mysql+pymysql"),
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={
            "charset": "utf8mb4",
            "init_command": f"SET time_zone='+00:00', innodb_lock_wait_timeout={LOCK_WAIT_S}",
            "connect_timeout": 5,
        },
        **options,
    )


def to_json(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def configure_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # this module says when a transaction begins
    for pragma in (f"busy_timeout={LOCK_WAIT_S * 1000}", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    begin_wal(connection)


def begin_wal(connection) -> None:
    """Of several processes that open a new file at once, SQLite refuses all but one, without waiting."""
    ends_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends_at:
                raise
            time.sleep(0.01)
        else:
            return


def begin_sqlite(connection) -> None:
    writing = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def create_tables(engine: Engine) -> None:
    """Make what is missing, once, even when several workers start together."""
    try:
        with engine.execution_options(write=True).begin() as connection:
            if engine.dialect.name == "sqlite":
                add_what_is_missing(connection)
            else:
                connection.execute(text("SELECT GET_LOCK(:name, 30)"), {"name": SCHEMA_LOCK})
                add_what_is_missing(connection)
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})
    except DBAPIError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise StartupError(f"The database {where} cannot be used: {error.orig}") from None
    engine.dispose()  # workers that fork from here open their own connections


def add_what_is_missing(connection: Connection) -> None:
    """Tables; and what those of an older version lack: columns that may be empty or have a default, and indexes."""
    Base.metadata.create_all(connection)
    found, quote = inspect(connection), connection.dialect.identifier_preparer.quote
    for table in Base.metadata.sorted_tables:
        columns = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name in columns:
                continue
            if not (column.nullable or column.server_default):
                raise StartupError(f"The database is too old: {table.name}.{column.name} is missing")
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {quote(table.name)} ADD COLUMN {definition}")
        indexes = {index["name"] for index in found.get_indexes(table.name) + found.get_unique_constraints(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(connection)
        for unique in table.constraints:
            if isinstance(unique, UniqueConstraint) and unique.name not in indexes:
                names = ", ".join(map(quote, unique.columns.keys()))
                connection.exec_driver_sql(f"CREATE UNIQUE INDEX {unique.name} ON {quote(table.name)} ({names})")


def get_session() -> Session:
    """This request's session, for reading. It is rolled back at the end."""
    if "session" not in g:
        g.session = Session(current_app.extensions["engine"])
    return g.session


@contextmanager
def transaction():
    """A session to write with: committed at the end of the block, rolled back when it raises."""
    close_session()  # one connection per request; what was read stays usable
    engine = current_app.extensions["engine"].execution_options(write=True)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def close_session(_error=None) -> None:
    session = g.pop("session", None)
    if session is not None:
        try:
            session.close()
        except DBAPIError:  # the server is gone, and perhaps the answer is ready
            session.invalidate()
