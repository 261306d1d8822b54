"""The way to the database: first come first served, and every connection comes back."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from fastapi_app.config import StartupError
from fastapi_app.db import MAX_OVERFLOW, Database, DatabaseUnavailable, Db
from fastapi_app.models import login_attempts, utcnow
from tests.support.databases import create_database

SLOW = text("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000000) SELECT max(n) FROM c")
COUNT = select(login_attempts.c.count).where(login_attempts.c.key == "n")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/db.sqlite3", pool_size=1, wait_s=0.2)
    await database.prepare()
    async with database.connect(write=True) as connection, connection.begin():
        await connection.execute(insert(login_attempts).values(key="n", count=0, window_start=utcnow()))
    yield database
    await database.dispose()
    await threads_of_sqlite_end()


async def threads_of_sqlite_end() -> None:
    """What failed or was cancelled is finished in a thread that nobody waits for, and that then needs the loop."""
    while any("_connection_worker" in thread.name for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


@pytest.fixture
async def served(mariadb_server: str) -> AsyncIterator[Database]:
    """On MariaDB, by aiomysql."""
    database = Database(create_database(mariadb_server, "port_db"), pool_size=1, wait_s=5)
    await database.prepare()
    async with database.connect(write=True) as connection, connection.begin():
        await connection.execute(insert(login_attempts).values(key="n", count=0, window_start=utcnow()))
    yield database
    await database.dispose()


def borrowed(database: Database) -> int:
    return database.engine.pool.checkedout()  # type: ignore[attr-defined]


async def test_a_transaction_is_kept_when_its_block_ends(database: Database) -> None:
    db = Db(database)
    async with db.transaction() as connection:
        await connection.execute(update(login_attempts).values(count=7))
    assert 7 == await db.scalar(COUNT)
    await db.close()


async def test_a_transaction_is_undone_when_its_block_raises(database: Database) -> None:
    db = Db(database)

    async def change_and_fail() -> None:
        async with db.transaction() as connection:
            await connection.execute(update(login_attempts).values(count=7))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change_and_fail()
    assert 0 == await db.scalar(COUNT)
    await db.close()


async def test_a_request_never_holds_two_connections(database: Database) -> None:
    db = Db(database)
    await db.scalar(COUNT)
    async with db.transaction():
        assert 1 == borrowed(database)
    assert 0 == borrowed(database)


async def test_a_cancelled_query_returns_its_connection(database: Database) -> None:
    for _ in range(2 * MAX_OVERFLOW):

        async def ask() -> None:
            db = Db(database)
            try:
                await db.execute(SLOW)
            finally:
                await db.close()

        asking = asyncio.create_task(ask())
        while not borrowed(database):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)  # into the query
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert 0 == borrowed(database)
    db = Db(database)
    assert 0 == await db.scalar(COUNT)
    await db.close()


async def test_a_server_keeps_answering_after_cancelled_queries(served: Database) -> None:
    for _ in range(2 * MAX_OVERFLOW):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), served.connect() as connection:
                await connection.execute(text("SELECT SLEEP(5)"))
    assert 0 == borrowed(served)
    for _ in range(20):
        async with served.connect() as connection:
            assert 0 == (await connection.execute(COUNT)).scalar()


async def test_a_connection_that_the_server_closed_is_replaced(served: Database) -> None:
    async with served.connect() as connection:
        number = (await connection.execute(text("SELECT CONNECTION_ID()"))).scalar()
    other = Database(str(served.engine.url.render_as_string(hide_password=False)))
    async with other.connect() as connection:
        await connection.execute(text(f"KILL {number}"))
    await other.dispose()
    async with served.connect() as connection:
        assert 0 == (await connection.execute(COUNT)).scalar()


async def test_writers_that_read_first_lock_what_they_read(served: Database) -> None:
    async def add() -> None:
        for _ in range(5):
            async with Db(served).transaction() as connection:
                count = (await connection.execute(COUNT.with_for_update())).scalar() or 0
                await connection.execute(update(login_attempts).values(count=count + 1))

    await asyncio.gather(*(add() for _ in range(8)))
    async with served.connect() as connection:
        assert 40 == (await connection.execute(COUNT)).scalar()


async def test_a_cancelled_transaction_is_undone(database: Database) -> None:
    inside = asyncio.Event()

    async def change() -> None:
        async with Db(database).transaction() as connection:
            await connection.execute(update(login_attempts).values(count=7))
            inside.set()
            await asyncio.Event().wait()

    changing = asyncio.create_task(change())
    await inside.wait()
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    db = Db(database)
    assert 0 == await db.scalar(COUNT)
    await db.close()


async def test_connections_are_handed_out_in_the_order_of_asking(database: Database) -> None:
    database = Database(str(database.engine.url), pool_size=1, max_overflow=0, wait_s=5)
    order: list[int] = []

    async def ask(number: int) -> None:
        async with database.connect():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(ask(number) for number in range(50)))
    await database.dispose()
    assert list(range(50)) == order


async def test_when_all_connections_are_busy_the_next_one_is_told_in_time(database: Database) -> None:
    release = asyncio.Event()

    async def hold() -> None:
        async with database.connect():
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(1 + MAX_OVERFLOW)]
    while borrowed(database) < len(holding):
        await asyncio.sleep(0.001)
    with pytest.raises(DatabaseUnavailable, match="busy"):
        async with database.connect():
            pass
    release.set()
    await asyncio.gather(*holding)
    async with database.connect() as connection:
        assert 0 == (await connection.execute(COUNT)).scalar()


async def test_no_update_is_lost_between_writers_that_read_first(database: Database) -> None:
    database = Database(str(database.engine.url), wait_s=30)

    async def add() -> None:
        for _ in range(10):
            async with Db(database).transaction() as connection:
                count = (await connection.execute(COUNT)).scalar() or 0
                await connection.execute(update(login_attempts).values(count=count + 1))

    await asyncio.gather(*(add() for _ in range(8)))
    async with database.connect() as connection:
        assert 80 == (await connection.execute(COUNT)).scalar()
    await database.dispose()


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "mysql://nobody@127.0.0.1:1/x"])
async def test_an_unreachable_database_is_named_in_one_sentence(url: str) -> None:
    database = Database(url)
    with pytest.raises(DatabaseUnavailable, match=r"^The database .* cannot be used: ") as told:
        await database.prepare()
    assert 1 == len(str(told.value).splitlines())
    await database.dispose()
    await threads_of_sqlite_end()


@pytest.mark.parametrize("url", ["no address", "postgresql://localhost/x", "mysql+asyncmy://localhost/x"])
def test_an_address_that_no_driver_knows_is_refused(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="DATABASE_URL"):
        Database(url)


@pytest.mark.parametrize(
    ("url", "driver"),
    [("mysql://h/x", "aiomysql"), ("mysql+pymysql://h/x", "aiomysql"), ("mariadb://h/x", "aiomysql")],
)
def test_the_driver_is_asynchronous_whatever_the_address_says(url: str, driver: str) -> None:
    assert driver == Database(url).engine.dialect.driver


def test_a_password_is_never_told() -> None:
    assert "secret" not in Database("mysql://user:secret@h/x").name


async def test_readers_and_a_writer_do_not_wait_for_each_other(database: Database) -> None:
    reader = Db(database)
    await reader.scalar(COUNT)
    async with Db(database).transaction() as connection:
        await connection.execute(update(login_attempts).values(count=7))
        assert 0 == await reader.scalar(COUNT)
    assert 7 == await reader.scalar(COUNT)
    await reader.close()


def test_a_startup_error_ends_the_process_with_its_sentence() -> None:
    assert ("no", True) == (str(StartupError("no")), issubclass(StartupError, SystemExit))
