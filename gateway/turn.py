"""One request: what is it, who answers, who may stand in, and what is written down about it."""

import asyncio
import logging
from dataclasses import dataclass
from random import randrange
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .decide import NEW, NOBODY, UNMATCHED, decide
from .flags import FlagStore
from .identity import Identity, IdentityBridge
from .ledger import Ledger
from .model import FULL_BP, Backend, Caller, Decision, FlagSet, Reason
from .routes import Match, RouteTable

log = logging.getLogger("gateway")

CLIENT_LEFT = 499  # nginx's word for it: nobody's fault
TIMED_OUT = 504

_BODY_HEADERS = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every request needs."""

    routes: RouteTable
    flags: FlagStore
    identity: IdentityBridge
    ledger: Ledger | None
    legacy: ASGIApp
    fastapi: ASGIApp
    port_timeout_s: float
    served_by: bool


class Turn:
    """One request, from its match to the client's last byte."""

    __slots__ = ("_decision", "_flags", "_match", "_parts", "_receive", "_scope", "_send", "_stand_in", "_who")

    def __init__(self, parts: Parts, scope: Scope, receive: Receive, send: Send) -> None:
        self._parts, self._scope, self._receive, self._send = parts, scope, receive, send
        self._flags: FlagSet = parts.flags.current  # for the whole request: a reload cannot split it
        self._match: Match | None = parts.routes.match(scope["method"], scope["path"])
        self._who: Identity | None = None
        self._stand_in: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer the request."""
        self._decision = await self._decide()
        if self._decision.backend is Backend.LEGACY or not await self._ask_port():
            await self._ask_legacy()

    @property
    def key(self) -> str:
        """The flag key; empty for what Flask's map does not know."""
        return self._match.route.key if self._match and self._match.route else ""

    async def _decide(self) -> Decision:
        """Who answers. Finds out who asks only when that matters."""
        identity, route = self._parts.identity, self._match.route if self._match else None
        method = self._scope["method"]
        flag = self._flags.flags.get(route.key) if route and method in route.ported else None
        if flag is not None and flag.needs_subject:
            self._who = await identity.identify(self._scope)
        elif identity.active:
            self._who = identity.look(self._scope)
        if route is None:
            return NEW if self._match else UNMATCHED
        caller = Caller(self._who.subject) if self._who and self._who.subject else NOBODY
        dice_bp = randrange(FULL_BP) if flag is not None and flag.shadow_bp else FULL_BP  # noqa: S311  # no secret
        return decide(self._flags, route, method, caller, dice_bp=dice_bp)

    # --- FastAPI

    async def _ask_port(self) -> bool:
        """Run FastAPI on a copy of the scope. False when nothing was sent and legacy has to answer instead."""
        probe = _Probe(self._send, self._editor(Backend.FASTAPI), hold=self._may_stand_in())
        scope: Scope = {**self._scope, "gateway.key": self.key}
        if self._who and not self._who.bare:
            scope = await self._parts.identity.present(scope, self._who, Backend.FASTAPI)
        started, task = perf_counter(), asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(self._parts.port_timeout_s, self._run_out, probe, task)
        try:
            await self._parts.fastapi(scope, self._receive, probe)
        except ClientDisconnect:
            probe.status = probe.status or CLIENT_LEFT
            raise
        except asyncio.CancelledError:
            if self._stand_in is None:
                raise
            if task:
                task.uncancel()
        except Exception as error:
            if not self._survives(probe, error):
                raise
        finally:
            timer.cancel()
            self._note(Backend.FASTAPI, probe.status, perf_counter() - started)
        if self._stand_in:
            await self._stand_in
            return True
        return not probe.failed

    def _may_stand_in(self) -> bool:
        """Whether legacy may answer after the port has failed: never for a write, nor where a body is gone."""
        if self._decision.reason is Reason.NEW or self._scope["method"] not in ("GET", "HEAD"):
            return False
        return not any(name in _BODY_HEADERS for name, _ in self._scope["headers"])

    def _survives(self, probe: "_Probe", error: Exception) -> bool:
        """Whether an exception of the port does no harm to the answer."""
        if probe.complete:  # a background task, or Starlette raising again what it has already answered
            log.error("%s: the port failed after its answer", self.key, exc_info=error)
        elif probe.hold and not probe.started and not probe.failed:
            log.error("%s: the port failed, legacy answers", self.key, exc_info=error)
            probe.failed = True
        return probe.complete or probe.failed

    def _run_out(self, probe: "_Probe", task: asyncio.Task[None] | None) -> None:
        """The port's time for a first byte is over. Legacy answers where it may, and the port is told to stop.

        In a task of its own, since a port that hangs in a thread, or swallows its cancellation, may never come back.
        """
        if probe.started or probe.failed:
            return
        log.error("%s: the port has not begun to answer within %g s", self.key, self._parts.port_timeout_s)
        probe.status = TIMED_OUT
        if probe.hold:
            probe.failed = True
            self._stand_in = asyncio.get_running_loop().create_task(self._ask_legacy())
            if task:
                task.cancel()

    # --- legacy

    async def _ask_legacy(self) -> None:
        scope = self._scope
        if self._decision.backend is Backend.FASTAPI and self._parts.ledger:
            self._parts.ledger.count_fallback(self.key)
        if self._match is not None and self._match.route is not None:
            scope["gateway.key"], scope["gateway.match"] = self.key, self._match
        if self._who and not self._who.bare:
            scope = await self._parts.identity.present(scope, self._who, Backend.LEGACY)
        probe = _Probe(self._send, self._editor(Backend.LEGACY), hold=False)
        started = perf_counter()
        try:
            await self._parts.legacy(scope, self._receive, probe)
        finally:
            self._note(Backend.LEGACY, probe.status, perf_counter() - started)

    # --- what both have

    def _note(self, backend: Backend, status: int, duration_s: float) -> None:
        if self._parts.ledger:
            self._parts.ledger.count(self.key, backend, status, duration_s)

    def _editor(self, backend: Backend) -> "_Editor | None":
        who = self._who
        untouched = who is None or (who.bare and backend is Backend.LEGACY and not who.fresh_cookie)
        if untouched and not self._parts.served_by:
            return None
        return _Editor(self._parts.identity, backend, self._decision.reason, who, tell=self._parts.served_by)


class _Editor:
    """Edits the headers of one answer on their way out."""

    __slots__ = ("_backend", "_identity", "_reason", "_started", "_tell", "_who")

    def __init__(
        self, identity: IdentityBridge, backend: Backend, reason: Reason, who: Identity | None, *, tell: bool
    ) -> None:
        self._identity, self._backend, self._reason, self._who, self._tell = identity, backend, reason, who, tell
        self._started = perf_counter()

    async def __call__(self, status: int, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        if self._who and (not self._who.bare or b"set-cookie" in [name.lower() for name, _ in headers]):
            headers = await self._identity.reconcile(self._who, self._backend, status, headers)
        if self._who and self._who.fresh_cookie and self._reason is Reason.SPLIT:
            headers = [*headers, self._who.fresh_cookie]
        if self._tell:
            took_ms = (perf_counter() - self._started) * 1000
            timing = f"{self._backend.value};dur={took_ms:.1f};desc={self._reason.value}"
            headers = [*headers, (b"server-timing", timing.encode()), (b"x-served-by", self._backend.value.encode())]
        return headers


class _Probe:
    """Stands in for `send`: notes the status, and can hold a failure back so that legacy may answer instead."""

    __slots__ = ("_edit", "_send", "complete", "failed", "hold", "started", "status")

    def __init__(self, send: Send, edit: _Editor | None, *, hold: bool) -> None:
        self._send, self._edit, self.hold = send, edit, hold
        self.status = 0
        self.started = self.failed = self.complete = False

    async def __call__(self, message: Message) -> None:
        if self.failed:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            if self.hold and self.status >= 500:
                self.failed = True
                return
            self.started = True
            if self._edit is not None:
                message["headers"] = await self._edit(self.status, list(message.get("headers", ())))
        elif kind == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)
