"""A candidate of its own: synchronous, with the ORM, and forty lines of co-operation."""

import asyncio
import gc
import http.client
import os
import smtplib
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import Connection, Engine, create_engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from gateway.model import RowChange
from gateway.shadow import contain, rows
from gateway.shadow.contain import Contained, contained, supports
from gateway.shadow.rows import recording
from tests.support.asgi import http_scope
from tests.support.databases import create_database
from tests.support.processes import wait_until
from tests.support.shadowing import known_connections
from tests.unit.test_rows import Artist, Base, Note, Video

Play = Callable[[Session], object]

PATIENCE_S = 30.0  # with a busy machine
HANDBOOK = Path(__file__).parents[2] / "docs/howto.md"

# --- the application's half of the protocol -----------------------------------------------------------------------

_shadow: ContextVar[Any] = ContextVar("shadow", default=None)
_connection: ContextVar[Connection | None] = ContextVar("connection", default=None)


class Containment:
    def __init__(self, app: Any, engine: Engine) -> None:
        self._app, self._engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shadow = scope.get("extensions", {}).get("gateway.shadow")
        if shadow is None:
            await self._app(scope, receive, send)
            return
        _shadow.set(shadow)
        with self._engine.connect() as connection:
            shadow.attach(connection)
            _connection.set(connection)
            try:
                await self._app(scope, receive, send)
            finally:
                shadow.detach()


@contextmanager
def session_of(engine: Engine) -> Iterator[Session]:
    """Committed at the end; in a contained request as far as a savepoint."""
    contained_in = _connection.get()
    mode: Any = "create_savepoint" if contained_in else "conditional_savepoint"
    with Session(contained_in or engine, join_transaction_mode=mode) as session, session.begin():
        yield session


def refuse(kind: str, what: str) -> None:
    if shadow := _shadow.get():
        shadow.refuse(kind, what)


def make_candidate(engine: Engine, play: Play) -> FastAPI:
    app = FastAPI()
    guards = ("database", "files", "http", "jobs", "mail")
    app.state.gateway_shadow = {"version": 1, "guards": guards, "engine": engine}
    app.add_middleware(Containment, engine=engine)

    @app.post("/play")
    def run(request: Request) -> str:
        with session_of(engine) as session:
            return str(play(session))

    return app


# --- the tests' own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(mariadb_server: str) -> str:
    """The address of a database for one test after the other."""
    return create_database(mariadb_server, "contain").replace("mysql://", "mysql+pymysql://")


@pytest.fixture(params=["sqlite", "mariadb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Artists 1 and 2, a video of the first with a note."""
    url, options = f"sqlite:///{tmp_path}/contain.sqlite3", {"connect_args": {"check_same_thread": False}}
    if request.param == "mariadb":
        url, options = request.getfixturevalue("database"), {"connect_args": {"ssl_disabled": True}}
    rows._catalogs.clear()
    engine = create_engine(url, isolation_level={"mariadb": "READ COMMITTED"}.get(request.param), **options)
    if request.param == "sqlite":
        configure(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Artist(id=1, name="Björk"), Artist(id=2, name="Cher")])
        session.flush()
        session.add(Video(id=1, artist_id=1, title="one"))
        session.flush()
        session.add(Note(key="first", video_id=1))
    yield engine
    engine.dispose()


def configure(engine: Engine) -> None:
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture(autouse=True, scope="module")
def _what_is_loaded_is_no_garbage() -> Iterator[None]:
    """Looking through all of it again before each test would take a quarter of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(contain, "LOCKED_S", PATIENCE_S)
    with known_connections():
        yield


async def replay(app: FastAPI, undo: tuple[RowChange, ...] = (), timeout_s: float = PATIENCE_S) -> Contained:
    return await contained(app, http_scope("POST", "/play"), b"", undo, timeout_s)


async def given_up(app: FastAPI, path: str) -> Contained:
    """A replay that does not come to its end. What is asked of the database only once has been asked before."""
    assert (await replay(app)).inconclusive == ""
    return await contained(app, http_scope("POST", path), b"", (), 0.5)


def control(engine: Engine, play: Play) -> tuple[RowChange, ...]:
    """What the other side has committed before."""
    with recording() as recorder, Session(engine) as session, session.begin():
        play(session)
    changes = recorder.changes()
    assert changes is not None
    return changes


def state(engine: Engine) -> dict[str, Any]:
    tables = {name: table.select().order_by(*table.primary_key) for name, table in Base.metadata.tables.items()}
    with engine.connect() as connection:
        found: dict[str, Any] = {name: connection.execute(query).all() for name, query in tables.items()}
        if engine.dialect.name == "mysql":
            counters = (
                "SELECT table_name, auto_increment FROM information_schema.tables WHERE table_schema = DATABASE()"
            )
            found["ids"] = sorted(map(tuple, connection.exec_driver_sql(counters)))
        return found


# --- what it finds out --------------------------------------------------------------------------------------------


async def test_the_candidate_sees_the_rows_as_the_control_saw_them_and_leaves_nothing(engine: Engine) -> None:
    def play(session: Session) -> object:
        """All kinds of changes, and a look at the rows before."""
        seen = [(artist.name, artist.plays) for artist in session.scalars(select(Artist).order_by(Artist.id))]
        session.get_one(Artist, 2).plays = 7
        fresh = Artist(name="Dido")
        session.add(fresh)
        session.execute(delete(Artist).where(Artist.id == 1))
        session.execute(insert(Note).values(key="second"))
        session.flush()
        return seen, fresh.id

    undo = control(engine, play)
    before = state(engine)
    result = await replay(make_candidate(engine, play), undo)

    assert (result.inconclusive, result.refused) == ("", ())
    assert result.observation.body == b"\"([('Bj\xc3\xb6rk', 0), ('Cher', 0)], 3)\""
    assert sorted(result.rows or (), key=repr) == sorted(undo, key=repr)
    assert state(engine) == before


async def test_a_missing_change_and_one_too_many_show_in_the_rows(engine: Engine) -> None:
    undo = control(engine, lambda session: session.execute(update(Artist).where(Artist.id == 1).values(plays=1)))
    other = make_candidate(engine, lambda s: s.execute(update(Artist).where(Artist.id == 2).values(plays=1)))
    result = await replay(other, undo)

    assert [(change.table, change.key) for change in undo] == [("artists", (1,))]
    assert [(change.table, change.key) for change in result.rows or ()] == [("artists", (2,))]


async def test_new_rows_get_the_ids_of_the_controls_and_further_ones_use_none_up(engine: Engine) -> None:
    undo = control(engine, lambda session: session.add_all([Artist(name="Dido"), Artist(name="Enya")]))
    control(engine, lambda session: session.add(Artist(name="somebody else's")))
    before = state(engine)

    def play(session: Session) -> object:
        session.add_all([Artist(name=name) for name in ("Dido", "Enya", "Feist", "Gal")])
        session.flush()
        return session.execute(insert(Artist).values(name="Haim", plays=0)).inserted_primary_key

    result = await replay(make_candidate(engine, play), undo)

    assert result.inconclusive == ""
    assert [change.key for change in result.rows or ()] == [(3,), (4,), (-1,), (-2,), (-3,)]
    assert state(engine) == before
    control(engine, lambda session: session.add(Artist(name="the next")))
    assert [row.id for row in state(engine)["artists"]] == [1, 2, 3, 4, 5, 6]


async def test_a_savepoint_of_the_candidate_that_is_rolled_back_leaves_no_rows(engine: Engine) -> None:
    def play(session: Session) -> object:
        nested = session.begin_nested()
        session.execute(update(Artist).values(plays=1))
        nested.rollback()
        return session.execute(update(Video).values(title="new")).rowcount

    result = await replay(make_candidate(engine, play))

    assert result.inconclusive == ""
    assert [(change.table, change.key) for change in result.rows or ()] == [("videos", (1,))]


async def test_a_candidate_that_fails_is_an_answer(engine: Engine) -> None:
    def play(session: Session) -> object:
        session.add(Artist(name="Cher"))  # taken
        session.flush()
        return "never"

    result = await replay(make_candidate(engine, play))

    assert result.observation.status == 500
    assert (result.inconclusive, result.rows) == ("", ())


async def test_an_application_takes_part_with_the_lines_of_the_handbook(engine: Engine) -> None:
    """They are run as they stand there."""
    drivers = {"sqlite": "sqlite+aiosqlite", "mysql": "mysql+aiomysql"}
    slow = create_async_engine(engine.url.set(drivername=drivers[engine.dialect.name]))
    app = FastAPI()
    words: dict[str, Any] = {"engine": slow, "app": app, "ContextVar": ContextVar}
    words["asynccontextmanager"] = asynccontextmanager
    chapter = HANDBOOK.read_text().partition("## Shadow writes safely")[2]
    exec(chapter.partition("```python\n")[2].partition("```")[0], words)
    app.add_middleware(words["Containment"], engine=slow)

    @app.post("/play")
    async def play() -> int:
        async with words["transaction"]() as connection:
            await connection.execute(update(Artist).where(Artist.id == 2).values(plays=Artist.plays + 1))
        async with words["transaction"]() as connection:
            return int(await connection.scalar(select(Artist.plays).where(Artist.id == 2)))

    undo = control(engine, lambda session: session.execute(update(Artist).where(Artist.id == 2).values(plays=1)))
    before = state(engine)
    result = await replay(app, undo)
    await slow.dispose()

    assert (result.observation.body, result.inconclusive, result.rows) == (b"1", "", undo)
    assert state(engine) == before


# --- what it cannot find out --------------------------------------------------------------------------------------


async def test_a_row_that_somebody_has_changed_since_makes_it_inconclusive(engine: Engine) -> None:
    undo = control(engine, lambda session: session.execute(update(Artist).where(Artist.id == 1).values(plays=1)))
    control(engine, lambda session: session.execute(update(Artist).where(Artist.id == 1).values(plays=2)))
    result = await replay(make_candidate(engine, lambda _: ""), undo)

    assert result.inconclusive == "row (1,) of artists has been changed since"
    assert result.rows is None


async def test_an_application_that_does_not_take_part_is_never_run(engine: Engine) -> None:
    app = make_candidate(engine, lambda _: pytest.fail("it ran"))
    declared = app.state.gateway_shadow

    for wrong, why in [
        (None, "the application does not declare app.state.gateway_shadow"),
        ({**declared, "version": 2}, "the application speaks version 2 of the protocol, not 1"),
        ({**declared, "guards": ["database", "files"]}, "the application does not guard http, jobs, mail"),
        ({**declared, "engine": None}, "the application does not declare its engine"),
        ({**declared, "engine": create_engine("sqlite://")}, "a database in memory cannot be copied"),
    ]:
        app.state.gateway_shadow = wrong
        assert supports(app) == why
        assert (await replay(app)).inconclusive == why


async def test_a_process_with_other_connections_runs_nothing(engine: Engine) -> None:
    app = make_candidate(engine, lambda _: pytest.fail("it ran"))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        result = await replay(app)
        assert client.fileno() > 0

    assert result.inconclusive.startswith("there are open connections to 127.0.0.1:")


async def test_a_candidate_that_hangs_is_given_up_and_its_transaction_with_it(engine: Engine) -> None:
    app, before = make_candidate(engine, lambda _: ""), state(engine)

    @app.post("/hang")
    async def hang() -> None:
        with session_of(engine) as session:
            session.execute(update(Artist).values(plays=1))
            await asyncio.sleep(60)

    began = time.monotonic()
    result = await given_up(app, "/hang")

    assert (result.timed_out, result.poisoned, result.inconclusive) == (True, False, "it took too long")
    assert time.monotonic() - began < PATIENCE_S
    assert state(engine) == before
    control(engine, lambda session: session.execute(update(Artist).values(plays=2)))  # no lock is left


async def test_a_candidate_that_cannot_be_stopped_poisons_the_process(engine: Engine) -> None:
    app, enough = make_candidate(engine, lambda _: ""), asyncio.Event()

    @app.post("/deaf")
    async def deaf() -> None:
        while not enough.is_set():
            try:
                await asyncio.wait_for(enough.wait(), 60)
            except asyncio.CancelledError:
                continue

    result = await given_up(app, "/deaf")
    enough.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})

    assert (result.poisoned, result.inconclusive) == (True, "it could not be stopped")


async def test_the_rows_of_a_busy_client_are_not_waited_for(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        await _sqlite_clients_never_wait(engine)
        return
    undo = control(engine, lambda session: session.execute(update(Artist).where(Artist.id == 1).values(plays=1)))
    waits_s: list[int | None] = []

    def play(session: Session) -> object:
        waits_s.append(session.scalar(text("SELECT @@innodb_lock_wait_timeout")))
        return session.execute(update(Artist).where(Artist.id == 2).values(plays=2))

    with engine.begin() as client:
        client.execute(update(Artist).where(Artist.id == 2).values(plays=9))
        result = await replay(make_candidate(engine, play), undo)

    assert result.inconclusive == "the database was busy: a row is locked by somebody else"
    assert waits_s == [0]


async def _sqlite_clients_never_wait(engine: Engine) -> None:
    written: list[bool] = []

    def play(session: Session) -> object:
        """While it holds the lock of its copy, a client writes to the database."""
        session.execute(update(Artist).values(plays=1))
        client.start()
        client.join()
        return session.scalar(select(Artist.plays).where(Artist.id == 1))

    def write() -> None:
        with sqlite3.connect(engine.url.database or "", timeout=0) as connection:
            connection.execute("UPDATE artists SET plays = 5")
        connection.close()
        written.append(True)

    client = threading.Thread(target=write, name="gateway-client")  # that the guard takes for one of ours
    result = await replay(make_candidate(engine, play))

    assert (result.observation.body, result.inconclusive) == (b'"1"', "")
    assert [row.plays for row in state(engine)["artists"]] == [5, 5]
    assert written == [True]


# --- what it must not do ------------------------------------------------------------------------------------------


def _write_file(_: Session) -> None:
    Path("leak").write_text("leak")


def _move_files(_: Session) -> None:
    Path("there").rename("elsewhere")


def _remove_a_file(_: Session) -> None:
    os.remove("there")  # noqa: PTH107


def _make_a_folder_and_carry_on(_: Session) -> None:
    with suppress(OSError):
        Path("folder").mkdir()


def _connect(_: Session) -> None:
    socket.create_connection(("127.0.0.1", 9), 1).close()


def _send_a_datagram(_: Session) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"leak", ("127.0.0.1", 9))


def _ask_somebody(_: Session) -> None:
    http.client.HTTPConnection("127.0.0.1", 9, timeout=1).request("GET", "/")


def _resolve(_: Session) -> None:
    socket.getaddrinfo("leak.example", 80)


def _mail(_: Session) -> None:
    smtplib.SMTP("127.0.0.1", 9)


def _start_a_process(_: Session) -> None:
    subprocess.run(["touch", "leak"], check=False)


def _use_a_shell(_: Session) -> None:
    os.system("touch leak")


def _open_another_database(_: Session) -> None:
    sqlite3.connect("leak").close()


def _use_another_thread(_: Session) -> None:
    with ThreadPoolExecutor(1) as pool:  # which copies no context
        pool.submit(Path("leak").touch).result()


def _enqueue(_: Session) -> None:
    refuse("jobs", "tasks.download")


def _use_another_connection(session: Session) -> None:
    engine = session.get_bind().engine
    with engine.begin() as connection:
        connection.execute(update(Artist).values(plays=1))


def _commit(session: Session) -> None:
    connection = session.connection()
    session.execute(update(Artist).values(plays=1))
    root = connection.get_transaction()
    assert root is not None
    root.commit()


def _roll_everything_back(session: Session) -> None:
    root = session.connection().get_transaction()
    assert root is not None
    root.rollback()


def _write_sql(session: Session) -> None:
    session.execute(text("UPDATE artists SET plays = 1"))


def _make_a_table(session: Session) -> None:
    session.execute(text("CREATE TABLE leak (id INTEGER PRIMARY KEY)"))


def _begin_in_sql(session: Session) -> None:
    session.execute(text("START TRANSACTION"))


def _lock_by_name(session: Session) -> None:
    session.execute(text("SELECT GET_LOCK('leak', 1)"))


def _take_an_id(session: Session) -> None:
    session.execute(insert(Artist).values(id=1000, name="leak", plays=0))


LEAKS = (
    (_write_file, "files: open leak w"),
    (_move_files, "files: os.rename there elsewhere"),
    (_remove_a_file, "files: os.remove there"),
    (_make_a_folder_and_carry_on, "files: os.mkdir folder"),
    (_connect, "network: socket.getaddrinfo 127.0.0.1"),
    (_send_a_datagram, "network: socket.sendto ('127.0.0.1', 9)"),
    (_ask_somebody, "network: http.client.connect 127.0.0.1"),
    (_resolve, "network: socket.getaddrinfo leak.example"),
    (_mail, "mail: smtplib.connect 127.0.0.1"),
    (_start_a_process, "processes: subprocess.Popen touch"),
    (_use_a_shell, "processes: os.system"),
    (_open_another_database, "network: sqlite3.connect leak"),
    (_use_another_thread, "files: "),
    (_enqueue, "jobs: tasks.download"),
    (_use_another_connection, "database: a statement on another connection: "),
    (_commit, "database: COMMIT of the whole"),
    (_roll_everything_back, "database: ROLLBACK of the whole"),
    (_write_sql, "database: SQL text: UPDATE artists SET plays = 1"),
    (_make_a_table, "database: "),
    (_begin_in_sql, "database: "),
    (_lock_by_name, "database: a change in SQL text: "),
    (_take_an_id, "database: artists is given an id that the control did not use"),
)


@pytest.mark.parametrize(("leak", "refusal"), LEAKS, ids=lambda value: getattr(value, "__name__", "")[1:])
async def test_what_would_remain_is_refused(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: Play, refusal: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").touch()
    before = state(engine)
    undo = control(engine, lambda session: session.execute(update(Video).values(title="changed")))
    between = state(engine)
    result = await replay(make_candidate(engine, leak), undo)

    assert [told for told in result.refused[:1] if told.startswith(refusal)], result
    assert result.inconclusive == f"it wanted what must not be: {result.refused[0]}"
    assert result.rows is None
    assert state(engine) == between != before
    assert Path("there").exists()
    assert not [name for name in ("leak", "folder", "elsewhere") if Path(name).exists()]


async def test_a_commit_past_sqlalchemy_does_not_reach_the_database(engine: Engine) -> None:
    """The server refuses it, or it happens to a copy."""

    def play(session: Session) -> object:
        session.execute(update(Artist).values(plays=1))
        session.connection().connection.cursor().execute("COMMIT")
        return ""

    undo = control(engine, lambda session: session.execute(update(Video).values(title="changed")))
    before = state(engine)
    result = await replay(make_candidate(engine, play), undo)

    assert result.observation.status == 500 or result.inconclusive
    assert state(engine) == before


async def test_a_task_that_outlives_its_request_is_stopped_and_stays_refused(engine: Engine, tmp_path: Path) -> None:
    app, tasks = make_candidate(engine, lambda _: ""), set()
    go_on = threading.Event()

    def later() -> None:
        go_on.wait(60)
        try:
            (tmp_path / "leak").touch()
        finally:
            tasks.clear()

    @app.post("/later")
    async def start() -> str:
        tasks.add(asyncio.create_task(asyncio.to_thread(later)))
        return "answered"

    result = await given_up(app, "/later")
    go_on.set()
    await asyncio.to_thread(wait_until, lambda: not tasks, "the thread to end")

    assert result.observation.body == b'"answered"'
    assert (result.timed_out, result.inconclusive) == (True, "it took too long")
    assert not (tmp_path / "leak").exists()


async def test_the_guard_is_off_between_two_requests(engine: Engine, tmp_path: Path) -> None:
    app = make_candidate(engine, lambda session: session.execute(update(Artist).values(plays=1)).rowcount)
    assert [(await replay(app)).observation.body for _ in range(3)] == [b'"2"'] * 3
    (tmp_path / "file").write_text("allowed")
    with engine.begin() as connection:
        connection.execute(text("UPDATE artists SET plays = 3"))

    assert [row.plays for row in state(engine)["artists"]] == [3, 3]
