"""The way to the database: every connection comes back, whatever happens, and a dead one is noticed by nobody."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import Executable, event, insert, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import AsyncAdaptedQueuePool

from fastapi_app.config import Settings, StartupError
from fastapi_app.db import LOCK_WAIT_S, ConnectionLost, Database, DatabaseUnavailable, Db
from fastapi_app.models import login_attempts, utcnow
from tests.support.databases import being_made, create_database

SIZE, EXTRA = 2, 2
COUNT = select(login_attempts.c.count).where(login_attempts.c.key == "n")
TOTAL = text("SELECT sum(count) FROM login_attempts")
ADD = update(login_attempts).values(count=login_attempts.c.count + 1)

EVERYWHERE = pytest.mark.parametrize("database", ["sqlite", "aiomysql", "asyncmy"], indirect=True)
ON_A_SERVER = pytest.mark.parametrize("database", ["aiomysql", "asyncmy"], indirect=True)


NUMBERS = count()


@pytest.fixture(autouse=True)
async def _threads_of_sqlite_end() -> AsyncIterator[None]:
    """What failed or was cancelled is finished in a thread that nobody waits for, and that then needs the loop."""
    of_others = set(threading.enumerate())
    yield
    async with asyncio.timeout(30):
        while any("_connection_worker" in thread.name for thread in {*threading.enumerate()} - of_others):
            await asyncio.sleep(0.01)


@pytest.fixture
def on_a_server(mariadb_server: str) -> str:
    """The address of a database of this test: who has cancelled something may have connections for some seconds."""
    return create_database(mariadb_server, f"port_db_{next(NUMBERS)}")


@pytest.fixture
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """With two rows that are always changed together: `n` and `m`. On SQLite, or where the test says so."""
    driver = getattr(request, "param", "sqlite")
    if driver == "sqlite":
        url = f"sqlite:///{tmp_path}/db.sqlite3"
    else:
        url = request.getfixturevalue("on_a_server").replace("mysql:", f"mysql+{driver}:")
    database = Database(url, pool_size=SIZE, max_overflow=EXTRA, wait_s=20)
    async with database.transaction() as connection:
        await connection.run_sync(login_attempts.drop, checkfirst=True)
        await connection.run_sync(login_attempts.create)
        rows = [{"key": key, "count": 0, "window_start": utcnow()} for key in "nm"]
        await connection.execute(insert(login_attempts), rows)
    yield database
    await database.dispose()


def slow(database: Database) -> Executable:
    """A SELECT that takes a tenth of a second or, on a server, as long as you like."""
    if database.engine.dialect.name == "sqlite":
        numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 100000)"
        return text(f"{numbers} SELECT max(n) FROM c")
    return text("SELECT SLEEP(5)")


def borrowed(database: Database) -> float:
    return database.statistics()["checked_out"]


async def until(condition: Any, _what: str) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def kill_all(database: Database) -> int:
    """As when the server ends its connections; how many there were."""
    url = database.engine.url
    with pymysql.connect(host=url.host, port=url.port or 0, user="root") as own, own.cursor() as cursor:
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (url.database,))
        numbers = [number for (number,) in cursor.fetchall()]
        for number in numbers:
            with suppress(pymysql.OperationalError):  # it has gone meanwhile
                cursor.execute("KILL %s", (number,))
        return len(numbers)


@contextmanager
def nobody_reads(database: Database) -> Iterator[None]:
    """Whoever asks for the rows waits until the end of the block."""
    url = database.engine.url
    options = {"host": url.host, "port": url.port or 0, "user": "root", "database": url.database}
    with pymysql.connect(**options) as own, own.cursor() as cursor:
        cursor.execute("LOCK TABLES login_attempts WRITE")
        yield
        cursor.execute("UNLOCK TABLES")


# Transactions


class Stop(BaseException):
    """As KeyboardInterrupt, and as asyncio.CancelledError."""


async def add_in_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(ADD)


@EVERYWHERE
async def test_a_transaction_is_kept_when_its_block_ends(database: Database) -> None:
    await add_in_transaction(database)
    assert (1, 2) == (await Db(database).scalar(COUNT), int(await Db(database).scalar(TOTAL)))


@EVERYWHERE
@pytest.mark.parametrize("error", [ZeroDivisionError, Stop, asyncio.CancelledError])
async def test_a_transaction_is_undone_when_its_block_raises(database: Database, error: type[BaseException]) -> None:
    async def change_and_fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(ADD)
            raise error

    with pytest.raises(error):
        await change_and_fail()
    assert (0, 0) == (borrowed(database), await Db(database).scalar(COUNT))
    await add_in_transaction(database)  # no lock was left


@EVERYWHERE
async def test_a_commit_that_fails_leaves_nothing_open(database: Database) -> None:
    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(database.engine.sync_engine, "commit", fail)
    for _ in range(2 * SIZE):
        with pytest.raises(OperationalError):
            await add_in_transaction(database)
    event.remove(database.engine.sync_engine, "commit", fail)

    await add_in_transaction(database)
    assert 1 == await Db(database).scalar(COUNT)


@EVERYWHERE
async def test_a_cancelled_transaction_is_undone(database: Database) -> None:
    inside = asyncio.Event()

    async def change() -> None:
        async with database.transaction() as connection:
            await connection.execute(ADD)
            inside.set()
            await asyncio.Event().wait()

    changing = asyncio.create_task(change())
    await inside.wait()
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert (0, 0) == (borrowed(database), await Db(database).scalar(COUNT))
    await add_in_transaction(database)


@EVERYWHERE
async def test_a_transaction_that_is_cancelled_at_any_moment_is_whole_or_nothing(database: Database) -> None:
    """At the BEGIN, in the middle, during the COMMIT: the two rows never differ, and no lock is left."""
    done = 0
    for moment in range(40):
        changing = asyncio.create_task(add_in_transaction(database))
        for _ in range(moment):
            await asyncio.sleep(0)
        changing.cancel()
        with suppress(asyncio.CancelledError):
            await changing
            done += 1
    await until(lambda: borrowed(database) == 0, "all connections to be back")
    async with asyncio.timeout(LOCK_WAIT_S / 2):
        await add_in_transaction(database)
    count = await Db(database).scalar(COUNT)
    assert 2 * count == await Db(database).scalar(TOTAL)
    assert done + 1 <= count <= 41


@EVERYWHERE
async def test_no_update_is_lost_between_writers_that_read_first(database: Database) -> None:
    async def add() -> None:
        for _ in range(5):
            async with database.transaction() as connection:
                count = (await connection.execute(COUNT.with_for_update())).scalar() or 0
                await connection.execute(update(login_attempts).values(count=count + 1))

    await asyncio.gather(*(add() for _ in range(8)))
    assert 40 == await Db(database).scalar(COUNT)


async def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new.sqlite3", pool_size=SIZE, max_overflow=EXTRA, wait_s=20)
    with being_made(tmp_path / "new.sqlite3"):
        async with database.transaction() as connection:
            assert "wal" == (await connection.execute(text("PRAGMA journal_mode"))).scalar()
    await database.dispose()


@EVERYWHERE
async def test_readers_and_a_writer_do_not_wait_for_each_other(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(ADD)
        assert 0 == await asyncio.create_task(Db(database).scalar(COUNT))
    assert 1 == await Db(database).scalar(COUNT)


@ON_A_SERVER
async def test_of_two_that_wait_for_each_other_one_fails_and_neither_is_repeated(database: Database) -> None:
    began: list[str] = []
    both = asyncio.Barrier(2)

    async def lock(first: str, second: str) -> None:
        async with database.transaction() as connection:
            began.append(first)
            for key in (first, second):
                await connection.execute(ADD.where(login_attempts.c.key == key))
                if key == first:
                    await both.wait()

    ended = await asyncio.gather(lock("n", "m"), lock("m", "n"), return_exceptions=True)
    failed = [error for error in ended if error]
    assert [True] == [isinstance(error, OperationalError) for error in failed]
    assert ["m", "n"] == sorted(began)
    assert (1, 1) == (await Db(database).scalar(COUNT), int(await Db(database).scalar(TOTAL)) // 2)
    assert 0 == borrowed(database)


@ON_A_SERVER
async def test_every_connection_reads_and_writes_by_the_same_rules(database: Database) -> None:
    rules = text("SELECT @@autocommit, @@tx_isolation, @@time_zone, @@innodb_lock_wait_timeout, @@character_set_client")
    for _ in range(2):
        found = await Db(database).row(rules)
        assert [1, "READ-COMMITTED", "+00:00", LOCK_WAIT_S, "utf8mb4"] == list(found or ())
        await add_in_transaction(database)


@ON_A_SERVER
async def test_reading_is_one_trip_to_the_server_and_writing_two_more_than_its_statements(database: Database) -> None:
    await Db(database).scalar(COUNT)

    async def trips(work: Awaitable[object]) -> int:
        """How many statements arrived, those that SQLAlchemy does not know of included, on the only connection."""
        status = text("SHOW SESSION STATUS LIKE 'Questions'")
        before = (await Db(database).row(status))[1]  # type: ignore[index]
        await work
        return int((await Db(database).row(status))[1]) - int(before) - 1  # type: ignore[index]

    assert 1 == await trips(Db(database).row(COUNT))
    assert 3 == await trips(add_in_transaction(database))
    assert 1 == database.statistics()["opened"]


# Connections come back


@EVERYWHERE
async def test_nothing_is_held_between_two_calls(database: Database) -> None:
    db = Db(database)
    for held in (db.execute(COUNT), db.row(COUNT), db.scalar(COUNT), add_in_transaction(database)):
        await held
        assert 0 == borrowed(database)


@EVERYWHERE
async def test_a_hundred_cancelled_requests_leak_nothing(database: Database) -> None:
    """In the queue, while a connection is opened, in the query, or on the way back."""
    asking = [asyncio.create_task(Db(database).execute(slow(database))) for _ in range(100)]
    for number, task in enumerate(asking):
        await asyncio.sleep(0.001 * (number % 4))
        task.cancel()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert 100 == len(ended)
    await until(lambda: borrowed(database) == 0, "all connections to be back")
    assert 0 == database.statistics()["waiting"]
    assert [0] * 20 == await asyncio.gather(*(Db(database).scalar(COUNT) for _ in range(20)))
    assert database.statistics()["size"] <= SIZE + EXTRA


@ON_A_SERVER
async def test_a_hundred_cancelled_requests_leave_no_connection_at_the_server(database: Database) -> None:
    database._gate._patience_s = 0
    for _ in range(10):
        asking = [asyncio.create_task(Db(database).row(text("SELECT SLEEP(0.5)"))) for _ in range(10)]
        await until(lambda: borrowed(database) == SIZE + EXTRA, "all connections to be busy")
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    left = text("SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()")
    async with asyncio.timeout(30):
        while await Db(database).scalar(left) > database.statistics()["size"]:
            await asyncio.sleep(0.05)


async def test_a_second_connection_of_one_task_is_refused_at_once(database: Database) -> None:
    """Else requests that each hold one wait for each other as soon as there are enough of them."""
    db = Db(database)
    async with database.transaction() as connection:
        await connection.execute(ADD)
        with pytest.raises(RuntimeError, match="use that one"):
            await db.scalar(COUNT)
        with pytest.raises(RuntimeError, match="use that one"):
            await add_in_transaction(database)
    assert (1, 0) == (await db.scalar(COUNT), borrowed(database))


@EVERYWHERE
async def test_more_requests_than_connections_all_get_their_turn(database: Database) -> None:
    async def change_and_look() -> None:
        await add_in_transaction(database)
        await Db(database).scalar(COUNT)

    await asyncio.gather(*(change_and_look() for _ in range(10 * (SIZE + EXTRA))))
    assert 40 == await Db(database).scalar(COUNT)


@EVERYWHERE
async def test_when_all_connections_are_busy_the_next_is_told_in_time_and_the_loop_stays_free(
    database: Database,
) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    small = Database(url, pool_size=1, max_overflow=1, wait_s=20)
    assert isinstance(small.engine.pool, AsyncAdaptedQueuePool)  # the plain QueuePool would block the loop
    release = asyncio.Event()

    async def hold() -> None:
        async with small.transaction() if small.engine.dialect.name != "sqlite" else small._one_connection():
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(2)]
    await until(lambda: small._gate.inside == 2, "both to be busy")
    small._gate._wait_s = 0.3
    asking = asyncio.create_task(Db(small).scalar(COUNT))
    await until(lambda: small.statistics()["waiting"] == 1, "the loop to go on while somebody waits")
    with pytest.raises(DatabaseUnavailable, match=r"^All connections to .* are busy\.$"):
        await asking
    assert 1 == small.statistics()["exhausted"]
    release.set()
    await asyncio.gather(*holding)
    assert 0 == await Db(small).scalar(COUNT)
    await small.dispose()


@ON_A_SERVER
async def test_the_overflow_is_opened_for_slow_queries_only(database: Database) -> None:
    patient = Database(
        database.engine.url.render_as_string(hide_password=False), pool_size=2, max_overflow=8, wait_s=20
    )
    patient._gate._patience_s = 60
    await asyncio.gather(*(Db(patient).scalar(COUNT) for _ in range(50)))
    assert 2 == patient.statistics()["opened"]
    patient._gate._patience_s = 0.01
    with nobody_reads(database):
        slow = [asyncio.create_task(Db(patient).scalar(COUNT)) for _ in range(10)]
        await until(lambda: patient.statistics()["opened"] == 10, "a connection for each")
    assert [0] * 10 == await asyncio.gather(*slow)
    assert 10 == patient.statistics()["opened"]
    assert 2 == patient.statistics()["size"]
    await patient.dispose()


# Connections that break


@ON_A_SERVER
async def test_connections_that_the_server_closed_are_replaced_all_at_once_and_nobody_notices(
    database: Database,
) -> None:
    await asyncio.gather(*(Db(database).row(text("SELECT SLEEP(0.2)")) for _ in range(SIZE)))
    assert SIZE == database.statistics()["size"]
    assert SIZE == kill_all(database)
    assert [0] * 10 == [await Db(database).scalar(COUNT) for _ in range(10)]
    await asyncio.gather(*(Db(database).row(text("SELECT SLEEP(0.2)")) for _ in range(SIZE)))
    assert (1, 1) == tuple(database.statistics()[name] for name in ("reconnects", "errors"))


@ON_A_SERVER
async def test_a_transaction_begins_again_on_a_new_connection(database: Database) -> None:
    assert 1 == kill_all(database)
    await add_in_transaction(database)
    assert (1, 1) == (await Db(database).scalar(COUNT), database.statistics()["reconnects"])


@ON_A_SERVER
async def test_a_transaction_whose_connection_breaks_is_lost_and_not_repeated(database: Database) -> None:
    times = 0

    async def change() -> None:
        nonlocal times
        async with database.transaction() as connection:
            times += 1
            await connection.execute(ADD)
            kill_all(database)
            await connection.execute(ADD)

    with pytest.raises(ConnectionLost):
        await change()
    assert (1, 0) == (times, borrowed(database))
    assert 0 == await Db(database).scalar(COUNT)
    await add_in_transaction(database)


@ON_A_SERVER
async def test_a_read_that_breaks_twice_is_an_error(database: Database) -> None:
    await Db(database).scalar(COUNT)
    asking = asyncio.create_task(Db(database).row(text("SELECT SLEEP(30)")))
    await until(lambda: borrowed(database) == 1, "the query to begin")
    await until(lambda: kill_all(database), "the connection to be there")
    await until(lambda: database.statistics()["opened"] == 2, "the next connection")  # the first may still be seen
    kill_all(database)
    with pytest.raises(ConnectionLost):
        await asking
    assert (0, 0) == (borrowed(database), await Db(database).scalar(COUNT))


@ON_A_SERVER
@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("the transport is closed"), EOFError()])
async def test_what_a_driver_lets_through_means_that_the_connection_is_gone(
    database: Database, error: Exception
) -> None:
    """The drivers wrap most of what a network does, uvloop's closed transports for one not."""
    breaks = [error]

    def fail(*_: object) -> None:
        if breaks:
            raise breaks.pop()

    event.listen(database.engine.sync_engine, "do_execute", fail)
    opened = database.statistics()["opened"]
    assert 0 == await Db(database).scalar(COUNT)
    assert (1, opened + 1) == tuple(database.statistics()[name] for name in ("reconnects", "opened"))
    breaks.append(error)
    await add_in_transaction(database)
    assert 1 == await Db(database).scalar(COUNT)


# The rest


@EVERYWHERE
async def test_it_says_whether_it_answers(database: Database) -> None:
    assert await database.ping(10)


@ON_A_SERVER
async def test_a_database_that_does_not_answer_in_time_is_not_there(database: Database) -> None:
    async with database.transaction(), asyncio.TaskGroup() as others:
        with nobody_reads(database):
            for _ in range(SIZE + EXTRA - 1):
                others.create_task(Db(database).scalar(COUNT))
            await until(lambda: borrowed(database) == SIZE + EXTRA, "all connections to be busy")
            assert not await asyncio.create_task(database.ping(0.05))
    assert await database.ping(10)


async def test_a_database_that_is_gone_is_not_there() -> None:
    for url in ("mysql://nobody@127.0.0.1:1/x", "mysql+asyncmy://nobody@127.0.0.1:1/x", "sqlite:////nowhere/x.db"):
        database = Database(url)
        assert not await database.ping(30)
        assert 1 == database.statistics()["errors"]
        await database.dispose()


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "mysql://nobody@127.0.0.1:1/x"])
async def test_an_unreachable_database_is_named_in_one_sentence(url: str) -> None:
    database = Database(url)
    with pytest.raises(DatabaseUnavailable, match=r"^The database .* cannot be used: ") as told:
        await database.prepare()
    assert 1 == len(str(told.value).splitlines())
    await database.dispose()


@pytest.mark.parametrize("url", ["no address", "postgresql://localhost/x"])
def test_an_address_that_no_driver_knows_is_refused(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="DATABASE_URL"):
        Database(url)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("mysql://h/x", "aiomysql"),
        ("mysql+pymysql://h/x", "aiomysql"),
        ("mariadb://h/x", "aiomysql"),
        ("mariadb+asyncmy://h/x", "asyncmy"),
    ],
)
def test_the_driver_is_asynchronous_whatever_the_address_says(url: str, driver: str) -> None:
    assert driver == Database(url).engine.dialect.driver


def test_a_password_is_never_told() -> None:
    assert "secret" not in Database("mysql://user:secret@h/x").name


def test_the_pool_is_10_and_20_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    env = {"DATA_PATH": str(tmp_path), "LIBRARY_PATH": str(tmp_path), "SECRET_KEY": "s" * 32}
    found = Settings.load(env)
    assert (10, 20) == (found.database_pool_size, found.database_max_overflow)
    found = Settings.load(env | {"DATABASE_POOL_SIZE": "3", "DATABASE_MAX_OVERFLOW": "0"})
    assert (3, 0) == (found.database_pool_size, found.database_max_overflow)
    for wrong in ({"DATABASE_POOL_SIZE": "0"}, {"DATABASE_MAX_OVERFLOW": "-1"}, {"DATABASE_POOL_SIZE": "many"}):
        with pytest.raises(StartupError, match="DATABASE_"):
            Settings.load(env | wrong)


def test_a_startup_error_ends_the_process_with_its_sentence() -> None:
    assert ("no", True) == (str(StartupError("no")), issubclass(StartupError, SystemExit))


@ON_A_SERVER
async def test_times_come_as_they_were_stored(database: Database) -> None:
    moments = ["2024-02-29 03:04:05.000006", "2024-02-29 03:04:05.120000", "0999-12-31 23:59:59.999999"]
    columns = ", ".join(f"CAST('{moment}' AS DATETIME(6))" for moment in moments)
    row = await Db(database).row(text(f"SELECT {columns}, CAST('2024-02-29 03:04:05' AS DATETIME)"))
    assert [*map(datetime.fromisoformat, moments), datetime(2024, 2, 29, 3, 4, 5)] == list(row or ())


@pytest.mark.parametrize("database", ["aiomysql"], indirect=True)
async def test_a_time_that_is_none_stays_text(database: Database) -> None:
    zero = "SELECT CAST('0000-00-00 00:00:00' AS DATETIME)"
    assert ("0000-00-00 00:00:00",) == await Db(database).row(text(f"SET STATEMENT sql_mode='' FOR {zero}"))
