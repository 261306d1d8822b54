"""Run a write on the candidate so that nothing of it remains, and say which rows it would have changed.

The candidate comes after the control, which has committed. So within one transaction, which is always rolled back:
first the control's changes are undone, then the candidate runs, then its changes are read.

Three things make it safe. The application works together with us: it does all its work on the one connection that it
has shown to `attach`, and asks `refuse` before it does what no transaction contains. The engine is watched: a statement
on another connection, a commit, a change that cannot be followed is refused. The process is guarded: see `guard`.
Whoever refuses, the run is inconclusive.

MariaDB: the transaction is one that the server itself refuses to commit; it never waits for a lock, so it can make no
client's transaction the victim of a deadlock; the server ends it when this process hangs. New rows get the ids that the
control's got, or negative ones, so that the counters of the tables do not move. SQLite: the connection is given a
private copy of the database, in memory; the database itself is only read.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Scope
from typing_extensions import override

from gateway.model import Backend, Observation, RowChange

from .guard import FILES, Guard, Peer, Refused, addresses, guarding, open_peers
from .rows import Catalog, Opaque, Place, Recorder, Row, read, recording
from .stage import Ids, MariaDb, Sqlite, Stage, Unlike

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

EXTENSION = "gateway.shadow"  # where the scope of a contained request has its `Run`
PROTOCOL = 1
GUARDS = frozenset({"database", "files", "http", "jobs", "mail"})  # what an application must say that it guards

GRACE_S = 1.0  # for an application that was told to stop
LOCKED_S = 2.0  # on MariaDB, for clients may wait for the same rows
MAX_ANSWER_BYTES = 16 * 1024 * 1024

_BUSY = {1205: "a row is locked by somebody else", 1969: "a statement took too long"}  # numbers of MariaDB's errors
_NO_ANSWER = Observation(Backend.FASTAPI, 0, error="NotRun")

log = logging.getLogger("gateway.shadow")

_mine: ContextVar[set["asyncio.Future[Any]"] | None] = ContextVar("gateway.tasks", default=None)


@dataclass(frozen=True, slots=True)
class Contained:
    """What a contained run showed. With `inconclusive` (a sentence why) it says nothing about the candidate.

    After `poisoned` the process must end: the run could not be stopped, and its transaction is perhaps still open.
    """

    observation: Observation
    rows: tuple[RowChange, ...] | None = None
    refused: tuple[str, ...] = ()
    inconclusive: str = ""
    timed_out: bool = False
    poisoned: bool = False


def supports(app: FastAPI) -> str:
    """Why writes of this application cannot be contained; empty when they can."""
    if not FILES.is_dir():
        return f"without {FILES} nobody knows whom this process is connected to"
    declared = getattr(app.state, "gateway_shadow", None)
    if not isinstance(declared, Mapping):
        return "the application does not declare app.state.gateway_shadow"
    if declared.get("version") != PROTOCOL:
        return f"the application speaks version {declared.get('version')} of the protocol, not {PROTOCOL}"
    if missing := sorted(GUARDS.difference(declared.get("guards", ()))):
        return f"the application does not guard {', '.join(missing)}"
    url = getattr(declared.get("engine"), "url", None)
    if url is None:
        return "the application does not declare its engine"
    if url.get_backend_name() == "sqlite":
        return "" if url.database and url.database != ":memory:" else "a database in memory cannot be copied"
    return "" if url.get_backend_name() in ("mysql", "mariadb") else f"{url.get_backend_name()} is not supported"


async def contained(
    app: FastAPI, scope: Scope, body: bytes, undo: tuple[RowChange, ...], timeout_s: float
) -> Contained:
    """One request to the candidate, alone in this process; `undo` is what the control changed.

    Never raises for what the candidate does. On MariaDB a client's write to one of the rows waits until the end, at
    most LOCKED_S.
    """
    if why := supports(app):
        return Contained(_NO_ANSWER, inconclusive=why)
    engine: Engine = getattr(app.state.gateway_shadow["engine"], "sync_engine", app.state.gateway_shadow["engine"])
    timeout_s = timeout_s if engine.dialect.name == "sqlite" else min(timeout_s, LOCKED_S)
    database = await asyncio.to_thread(_peers_of, engine)
    if peers := open_peers(database):
        told = ", ".join(peer if isinstance(peer, str) else f"{peer[0]}:{peer[1]}" for peer in peers)
        return Contained(_NO_ANSWER, inconclusive=f"there are open connections to {told}")
    run, answer = Run(undo, timeout_s, Guard(database)), _Answer(body)
    scope = {**scope, "extensions": {**scope.get("extensions", {}), EXTENSION: run}}
    with _watching(engine, run.guard), recording(run.record, alone=True), guarding(run.guard):
        timed_out, poisoned = await _drive(answer.ask(app, scope), timeout_s)
        poisoned = poisoned or run.attached
    why = "it took too long" if timed_out else run.why or answer.why
    if poisoned:
        why = "it could not be stopped"
    elif run.guard.refused:
        why = f"it wanted what must not be: {run.guard.refused[0]}"
    rows = None if why else run.record.changes()
    return Contained(answer.observation(), rows, tuple(run.guard.refused), why, timed_out, poisoned)


class Run:
    """What a contained request finds in its scope: the gateway's half of the protocol.

    `attach` and `detach` are for a synchronous connection: an asynchronous one has `run_sync`.
    """

    def __init__(self, undo: tuple[RowChange, ...], timeout_s: float, guard: Guard) -> None:
        self.guard = guard
        self.record = Record(self.guard, undo)
        self.why = ""
        self._undo, self._timeout_s = undo, timeout_s
        self._stage: Stage | None = None

    def refuse(self, kind: str, what: str) -> NoReturn:
        """To be called instead of doing what no transaction contains. Raises a PermissionError, always."""
        self.guard.refuse(kind, what)

    def attach(self, connection: "Connection") -> None:
        """Begin on a fresh connection, on which then everything must happen, with savepoints for transactions.

        Raises PermissionError when it cannot be contained; the request should fail then, in whatever way.
        """
        if self._stage is not None or connection.in_transaction():
            self.refuse("database", "a second connection, or one with a transaction of its own")
        self._stage = Sqlite() if connection.dialect.name == "sqlite" else MariaDb(self._timeout_s)
        try:
            with self.record.at_ease(connection):
                self._stage.begin(connection)
                self.record.catalog = Catalog.of(connection)
                self._stage.undo(connection, self.record.catalog, self._undo)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no containment
            self.why = str(error) if isinstance(error, Unlike) else f"it could not begin: {error}"
            _abandon(connection)
            raise Refused(self.why) from None
        self.record.connection = connection
        self.why = "the application did not come to its end"  # until it detaches

    @property
    def attached(self) -> bool:
        return self.record.connection is not None

    def detach(self) -> None:
        """Read what was changed and roll back. Never raises; the connection is to be closed afterwards."""
        connection, stage = self.record.connection, self._stage
        if connection is None or stage is None:
            self.why = self.record.why or self.why
            return
        self.record.connection = None
        try:
            with self.record.at_ease(connection):
                self.why = self._leave(connection, stage)
        except Exception as error:
            self.why = f"it could not be looked at: {error}"
            log.debug("a contained request", exc_info=True)
            _abandon(connection)

    def _leave(self, connection: "Connection", stage: Stage) -> str:
        if connection.closed or connection.invalidated or not connection.in_transaction():
            _abandon(connection)
            return "the connection or its transaction was lost"
        places = self.record.finish(connection)
        stage.roll_back(connection)
        why = self._verify(connection, places)
        stage.end(connection)
        return why

    def _verify(self, connection: "Connection", places: Mapping[Place, Row | None]) -> str:
        """Whether no row is as it was within the transaction. Somebody else may have changed it since: never mind."""
        undone = {(change.table, change.key): change for change in self._undo}
        before = {**places, **{place: change.after for place, change in undone.items()}}
        within = {place: change.before for place, change in undone.items()}
        within |= {(change.table, change.key): change.after for change in self.record.changes() or ()}
        found = read(connection, self.record.required_catalog(), before)
        connection.rollback()
        for place, row in within.items():
            if found.get(place) == row != before[place]:
                log.critical("shadow: row %s of %s was not rolled back", place[1], place[0])
                return f"row {place[1]} of {place[0]} was not rolled back"
        return self.record.why


def _abandon(connection: "Connection") -> None:
    """Roll back past SQLAlchemy, which may believe that there is nothing to roll back, and never use it again."""
    with suppress(Exception):
        connection.engine.dialect.do_rollback(connection.connection)
    with suppress(Exception):
        connection.invalidate()


class Record(Recorder):
    """Records the candidate, on its one connection, and refuses what the control's recorder would only give up on."""

    def __init__(self, guard: Guard, undone: tuple[RowChange, ...]) -> None:
        super().__init__()
        self.connection: Connection | None = None
        self.catalog: Catalog | None = None
        self._guard = guard
        self._ids = Ids(undone)
        self._ours: Connection | None = None

    @contextmanager
    def at_ease(self, connection: "Connection") -> Iterator[None]:
        """What happens on it inside is ours."""
        self._ours = connection
        try:
            yield
        finally:
            self._ours = None

    def required_catalog(self) -> Catalog:
        if self.catalog is None:
            raise Unlike("there is no connection")
        return self.catalog

    @override
    def changes(self) -> tuple[RowChange, ...] | None:
        """Nothing, for a candidate that never asked the database: it could not have, unseen."""
        return None if self.why else tuple(change for change in self._changes.values() if change.before != change.after)

    def finish(self, connection: "Connection") -> dict[Place, Row | None]:
        """Read what was changed. Returns all rows that were met, as they were then."""
        met = self._open.get(connection)
        places = met.befores() if met else {}
        super().commit(connection)
        return places

    # --- told by the listeners

    @override
    def before_statement(self, connection: "Connection", statement: str, context: Any) -> None:
        if connection is self._ours:
            return
        if connection is not self.connection:
            self._guard.refuse("database", f"a statement on another connection: {statement[:80]}")
        try:
            super().before_statement(connection, statement, context)
        except Opaque as error:
            self._guard.refuse("database", f"{error}: {statement[:80]}")

    @override
    def text(self, statement: str) -> None:
        if not statement.lstrip().lower().startswith("select"):
            raise Opaque("SQL text")
        super().text(statement)

    @override
    def rewrite(self, connection: "Connection", element: Any, many: Any, one: Any) -> tuple[Any, Any]:
        """An INSERT without an id is given one."""
        from sqlalchemy import Insert

        if connection is not self.connection or not isinstance(element, Insert):
            return many, one
        try:
            return self._ids.give(self.required_catalog(), element, many, one)
        except Exception as error:  # noqa: BLE001 - not knowing what it does is enough
            self._guard.refuse("database", str(error))

    @override
    def commit(self, connection: "Connection") -> None:
        if connection is self.connection:
            self._guard.refuse("database", "COMMIT of the whole")

    @override
    def rollback(self, connection: "Connection") -> None:
        if connection is self.connection:
            self._guard.refuse("database", "ROLLBACK of the whole")

    @override
    def failed(self, error: BaseException) -> None:
        number = error.args[0] if error.args else None
        if number in _BUSY:
            self.why = f"the database was busy: {_BUSY[number]}"


class _Answer:
    """Asks, and keeps what comes back."""

    why = ""

    def __init__(self, body: bytes) -> None:
        self._questions: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._left = MAX_ANSWER_BYTES
        self._complete = asyncio.Event()
        self._error = ""
        self._took_s = 0.0

    async def ask(self, app: ASGIApp, scope: Scope) -> None:
        began = perf_counter()
        try:
            await app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a view, too
            self._error = type(error).__name__
        finally:
            self._took_s = perf_counter() - began

    def observation(self) -> Observation:
        if not self._complete.is_set():
            return Observation(Backend.FASTAPI, 500, duration_s=self._took_s, error=self._error or "NoAnswer")
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers)
        return Observation(Backend.FASTAPI, self._status, headers, b"".join(self._parts), self._took_s)

    async def _receive(self) -> Message:
        if self._questions:
            return self._questions.pop()
        await self._complete.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            part = message.get("body", b"")
            self._left -= len(part)
            if self._left < 0:
                self.why = "the answer is too large"
                raise OSError(self.why)
            self._parts.append(part)
            if not message.get("more_body", False):
                self._complete.set()


# --- running alone ------------------------------------------------------------------------------------------------


def _peers_of(engine: "Engine") -> set[Peer]:
    """Where the database of an engine is."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        return {url.database or "", str(Path(url.database or "").absolute())}
    host, port = url.host or "localhost", url.port or 3306
    peers: set[Peer] = {(host, port), *filter(None, [str(url.query.get("unix_socket", ""))])}
    with suppress(OSError):
        peers |= addresses(host, port)
    return peers


@contextmanager
def _watching(engine: "Engine", guard: Guard) -> Iterator[None]:
    """Let the engine open connections, and nobody else."""
    from sqlalchemy import event

    def opens(*_: object) -> None:
        guard.connecting += 1

    def opened(*_: object) -> None:
        guard.connecting -= 1

    event.listen(engine, "do_connect", opens)
    event.listen(engine, "connect", opened, insert=True)
    try:
        yield
    finally:
        event.remove(engine, "do_connect", opens)
        event.remove(engine, "connect", opened)


async def _drive(asking: Coroutine[Any, Any, None], timeout_s: float) -> tuple[bool, bool]:
    """Run it, and all tasks that come of it, to the end. Returns whether that took too long, and whether it goes on."""
    with _tasks_of(asyncio.get_running_loop()) as tasks:
        ends = monotonic() + timeout_s
        tasks.add(asyncio.ensure_future(asking))
        while (running := {task for task in tasks if not task.done()}) and monotonic() < ends:
            await asyncio.wait(running, timeout=max(0.0, ends - monotonic()))
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=GRACE_S)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # it is nobody's business
        return bool(running), any(not task.done() for task in tasks)


@contextmanager
def _tasks_of(loop: asyncio.AbstractEventLoop) -> Iterator[set["asyncio.Future[Any]"]]:
    """Collects the tasks that are made in this context."""
    tasks: set[asyncio.Future[Any]] = set()
    usual = loop.get_task_factory()
    token = _mine.set(tasks)

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        task = usual(loop, coroutine, **options) if usual else asyncio.Task(coroutine, loop=loop, **options)
        if _mine.get() is tasks:
            tasks.add(task)
        return task

    loop.set_task_factory(make)
    try:
        yield tasks
    finally:
        loop.set_task_factory(usual)
        _mine.reset(token)
