"""Contained requests: replayed by the gateway to compare both applications, and of which nothing may remain.

Such a request has an object in its scope, at extensions, `gateway.shadow`. All its work in the database is done on one
connection, which that object prepares and rolls back; what no transaction contains is refused. The application says
that it takes part: `app.state.gateway_shadow`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.types import ASGIApp, Receive, Scope, Send

EXTENSION = "gateway.shadow"
GUARDS = ("database", "files", "http", "jobs", "mail")


class Shadow(Protocol):
    """The gateway's half."""

    def attach(self, connection: Connection) -> None:
        """Begin on a fresh connection. Raises PermissionError when it cannot be contained."""

    def detach(self) -> None:
        """Roll back; to be called at the end, however it came about."""

    def refuse(self, kind: str, what: str) -> NoReturn:
        """Raises PermissionError."""


class Contained:
    """One contained request and its only connection."""

    def __init__(self, shadow: Shadow) -> None:
        self.shadow = shadow
        self._connection: AsyncConnection | None = None

    async def connection(self, engine: AsyncEngine) -> AsyncConnection:
        if self._connection is None:
            self._connection = await engine.connect()
            await self._connection.run_sync(self.shadow.attach)
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            try:
                await self._connection.run_sync(lambda _: self.shadow.detach())
            finally:
                await self._connection.close()


_contained: ContextVar[Contained | None] = ContextVar("contained", default=None)


class Containment:
    """The outermost layer: tells everything below that a request is contained."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shadow = scope.get("extensions", {}).get(EXTENSION)
        if shadow is None:
            await self._app(scope, receive, send)
            return
        contained = Contained(shadow)
        _contained.set(contained)  # for ever: what outlives the request stays contained
        try:
            await self._app(scope, receive, send)
        finally:
            await contained.close()


def declaration(engine: AsyncEngine) -> dict[str, Any]:
    """What the gateway wants to know before it sends contained requests."""
    return {"version": 1, "guards": GUARDS, "engine": engine}


def current() -> Contained | None:
    """The contained request that this code works for, if it does."""
    return _contained.get()


def refuse(kind: str, what: object) -> None:
    """To be called before doing what no transaction contains. In a contained request it raises PermissionError.

    `kind` is one of GUARDS.
    """
    contained = _contained.get()
    if contained is not None:
        contained.shadow.refuse(kind, str(what))


@asynccontextmanager
async def transaction(connection: AsyncConnection) -> AsyncIterator[None]:
    """Commit at the end, roll back when the block raises; in a contained request only as far as a savepoint."""
    async with connection.begin_nested() if _contained.get() else connection.begin():
        yield
