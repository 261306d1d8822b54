"""Live progress of downloads and jobs: `WS /ws/jobs`, JSON texts in both directions.

A client says {"subscribe": "all" or [names]}, {"unsubscribe": the same}, {"ping": n}; a name is "download:7" or
"job:<id>". It is told {"snapshot": [documents]} after each subscription, {"update": document}, {"pong": n} and every 15
seconds {"heartbeat": time}. A client that is slow gets the last document of each name, and no other.
"""

import asyncio
from contextlib import suppress
from typing import Any, NoReturn

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from sqlalchemy.exc import DBAPIError
from starlette.types import Scope

from .cookies import read_cookie
from .db import DatabaseUnavailable
from .http import ApiError
from .hub import Hub, Known, is_name
from .identity import request_source, role_required, same_origin
from .json import decode
from .models import utcnow
from .sessions import COOKIE

router = APIRouter(tags=["jobs"])

MAX_SOCKETS = 2000  # of one process
MAX_NAMES = 500  # subscriptions of one socket
MAX_MESSAGE = 65_536  # characters
MAX_SNAPSHOT = 200  # documents; the others follow as updates
HEARTBEAT_S = 15.0
CHECK_EVERY = 4  # heartbeats: is the sign-in still good?
PACE_S = 0.2  # between two deliveries
STUCK_S = 60.0  # for the client to take a message
CLOSE_S = 1.0  # for the goodbye

GOING_AWAY, NOT_UNDERSTOOD, NOT_ALLOWED, TOO_LARGE, TRY_LATER = 1001, 1003, 1008, 1009, 1013
_READER = role_required("readonly")
_CLOSED = (WebSocketDisconnect, RuntimeError, OSError)  # what is said about sending to a socket that is closed by now


class End(Exception):
    """The conversation is over, with a code and a sentence for the client; 0 when there is nobody to tell."""

    def __init__(self, code: int = 0, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@router.websocket("/ws/jobs", name="live.jobs")
async def live_jobs(socket: WebSocket) -> None:
    """Refused like any request, before the handshake; who signs out later, or has expired, is closed with 4401."""
    live: Live = socket.app.state.live
    handshake = _as_request(socket)
    try:
        await _admit(handshake)
        live.make_room()
    except ApiError as error:
        await socket.send_denial_response(error.response())
        return
    await socket.accept()
    await live.serve(Client(socket, handshake, live.hub))


def _as_request(socket: WebSocket) -> Request:
    """The handshake as the GET that it was, for the rules of HTTP."""
    scheme = "https" if socket.scope["scheme"] == "wss" else "http"
    scope: Scope = {**socket.scope, "type": "http", "method": "GET", "scheme": scheme}
    return Request(scope)


async def _admit(request: Request) -> None:
    """Raises ApiError. A page of another site may open a socket, with our cookies, so its origin counts as for a POST;
    a program has none."""
    if request_source(request) is not None and not same_origin(request):
        raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")
    request.scope["session"] = request.app.state.session_cookie.read(read_cookie(request, COOKIE))
    try:
        await _READER(request)
    except (DBAPIError, DatabaseUnavailable) as error:
        raise ApiError(503, "The database is not available") from error


class Live:
    """All sockets of this process."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._clients: dict[Client, asyncio.Task[Any] | None] = {}
        self._sent = self._dropped = self._stuck = 0

    def make_room(self) -> None:
        if len(self._clients) >= MAX_SOCKETS:
            raise ApiError(503, "Too many connections for live progress", {"retry-after": "5"})

    async def serve(self, client: "Client") -> None:
        self._clients[client] = asyncio.current_task()
        self.hub.listeners.add(client)
        try:
            await client.converse()
        finally:
            self.hub.listeners.discard(client)
            del self._clients[client]
            self._sent += client.sent
            self._dropped += client.dropped
            self._stuck += client.stuck

    async def aclose(self) -> None:
        """Say goodbye to all. A server has usually done so itself, before it stops the application."""
        for client in self._clients:
            client.end(End(GOING_AWAY, "The server stops"))
        tasks = [task for task in self._clients.values() if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=2 * CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.hub.aclose()

    def statistics(self) -> dict[str, int]:
        return {
            "sockets": len(self._clients),
            "sent": self._sent + sum(client.sent for client in self._clients),
            "dropped": self._dropped + sum(client.dropped for client in self._clients),
            "stuck": self._stuck,
        }


class Client:
    """One socket: what it wants, and what it has not been told yet, which is never more than one document per name."""

    __slots__ = (
        "_end",
        "_everything",
        "_handshake",
        "_hub",
        "_names",
        "_news",
        "_pong",
        "_snapshot",
        "_socket",
        "_updates",
        "dropped",
        "sent",
        "stuck",
    )

    def __init__(self, socket: WebSocket, handshake: Request, hub: Hub) -> None:
        self._socket, self._handshake, self._hub = socket, handshake, hub
        self._everything = False
        self._names: set[str] = set()
        self._news = asyncio.Event()
        self._snapshot: dict[str, Known] | None = None  # to be told first
        self._updates: dict[str, Known] = {}
        self._pong: int | None = None
        self._end: End | None = None
        self.sent = self.dropped = self.stuck = 0  # documents; the last is 1 when it ended so

    @property
    def interested(self) -> bool:
        return self._everything or bool(self._names)

    def offer(self, name: str, known: Known) -> None:
        if not (self._everything or name in self._names):
            return
        first = self._snapshot if self._snapshot is not None and name in self._snapshot else self._updates
        self.dropped += name in first
        first[name] = known
        self._news.set()

    def end(self, end: End) -> None:
        self._end = self._end or end
        self._news.set()

    async def converse(self) -> None:
        """Until one of both has had enough."""
        end = End()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._write())
                await self._read()
        except* End as ends:
            end = next(one for one in ends.exceptions if isinstance(one, End))
        if end.code:
            with suppress(TimeoutError, *_CLOSED):
                async with asyncio.timeout(CLOSE_S):
                    await self._socket.close(end.code, end.reason)

    # In

    async def _read(self) -> NoReturn:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise End
            text = message.get("text")
            if text is None:
                raise End(NOT_UNDERSTOOD, "JSON texts only")
            if len(text) > MAX_MESSAGE:
                raise End(TOO_LARGE, "The message is too large")
            await self._do(_understood(text))

    async def _do(self, asked: dict[str, Any]) -> None:
        if "unsubscribe" in asked:
            self._unsubscribe(asked["unsubscribe"])
        if "subscribe" in asked:
            await self._check()  # as for any request
            await self._subscribe(asked["subscribe"])
        if "ping" in asked:
            self._pong = asked["ping"]
            self._news.set()

    async def _subscribe(self, wanted: str | list[str]) -> None:
        names = None if wanted == "all" else dict.fromkeys(wanted)
        if names and len(self._names | names.keys()) > MAX_NAMES:
            raise End(NOT_ALLOWED, f"More than {MAX_NAMES} subscriptions")
        try:
            found = await self._hub.known(names)
        except (DBAPIError, DatabaseUnavailable):
            raise End(TRY_LATER, "The database is not available") from None
        if names is None:
            self._everything = True
        else:
            self._names.update(names)
        for name in found:
            self._updates.pop(name, None)
        self._snapshot = (self._snapshot or {}) | found
        self._news.set()

    def _unsubscribe(self, unwanted: str | list[str]) -> None:
        if unwanted == "all":
            self._everything = False
            self._names.clear()
        else:
            self._names.difference_update(unwanted)
        for name in [name for name in self._updates if not (self._everything or name in self._names)]:
            del self._updates[name]

    async def _check(self) -> None:
        try:
            await _admit(self._handshake)
        except ApiError as error:
            code = TRY_LATER if error.status == 503 else 4000 + error.status
            raise End(code, error.message) from None

    # Out

    async def _write(self) -> NoReturn:
        loop, beats = asyncio.get_running_loop(), 0
        beat_at = loop.time() + HEARTBEAT_S
        while True:
            if not self._news.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(beat_at):
                        await self._news.wait()
            if loop.time() >= beat_at:
                beat_at, beats = loop.time() + HEARTBEAT_S, beats + 1
                if beats % CHECK_EVERY == 0:
                    await self._check()
                await self._send(f'{{"heartbeat":"{utcnow().isoformat()}"}}')
            if self._end is not None:
                raise self._end
            await self._hub.turn()
            if (text := self._next()) is not None:
                await self._send(text)
            else:
                self._news.clear()
                await asyncio.sleep(PACE_S)

    def _next(self) -> str | None:
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return f'{{"pong":{pong}}}'
        if self._snapshot is not None:
            snapshot, self._snapshot = list(self._snapshot.items()), None
            for name, known in snapshot[MAX_SNAPSHOT:]:
                self._updates.setdefault(name, known)
            told = [known.text for _, known in snapshot[:MAX_SNAPSHOT]]
            self.sent += len(told)
            return f'{{"snapshot":[{",".join(told)}]}}'
        if self._updates:
            self.sent += 1
            return f'{{"update":{self._updates.pop(next(iter(self._updates))).text}}}'
        return None

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(STUCK_S):
                await self._socket.send_text(text)
        except TimeoutError:
            self.stuck = 1
            raise End from None  # it would not take a goodbye either
        except _CLOSED:
            raise End from None


def _understood(text: str) -> dict[str, Any]:
    """A message of the protocol. Raises End for anything else."""
    try:
        asked = decode(text)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or not asked or not all(_means(word, value) for word, value in asked.items()):
        raise End(NOT_UNDERSTOOD, "The message is not understood")
    return asked


def _means(word: str, value: object) -> bool:
    if word == "ping":
        return type(value) is int and abs(value) <= 2**53
    if word not in ("subscribe", "unsubscribe"):
        return False
    return value == "all" or (isinstance(value, list) and all(map(is_name, value)))
