"""One request: what is it, who answers, who may stand in, and what is written down about it."""

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from random import randrange
from time import perf_counter, time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import passes
from .decide import NEW, NOBODY, SAFE_METHODS, UNMATCHED, decide
from .flags import FlagStore
from .identity import Identity, IdentityBridge
from .instruments import CLIENT_LEFT, Instruments
from .model import FULL_BP, Backend, Caller, Decision, Flag, FlagSet, Reason
from .routes import Match, RouteTable
from .settings import Settings
from .shadow.client import Shadow
from .shadow.rows import Recorder, recording
from .shadow.tape import Tape

log = logging.getLogger("gateway")

TIMED_OUT = 504

Headers = list[tuple[bytes, bytes]]

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_BY_WEIGHT = frozenset({Reason.STATIC, Reason.SPLIT})


@dataclass(frozen=True, slots=True)
class Parts:
    """What every request needs."""

    settings: Settings
    routes: RouteTable
    flags: FlagStore
    identity: IdentityBridge
    legacy: ASGIApp
    fastapi: ASGIApp
    secret: bytes  # signs passes
    instruments: Instruments | None = None


class Turn:
    """One request, from its match to the client's last byte."""

    __slots__ = (
        "_decision",
        "_fell_back",
        "_flag",
        "_flags",
        "_match",
        "_parts",
        "_receive",
        "_recorder",
        "_scope",
        "_send",
        "_stand_in",
        "_tape",
        "_who",
        "id",
        "status",
    )

    _decision: Decision

    def __init__(self, parts: Parts, scope: Scope, receive: Receive, send: Send) -> None:
        self._parts, self._scope, self._receive, self._send = parts, scope, receive, send
        self._flags: FlagSet = parts.flags.current  # for the whole request: a reload cannot split it
        self._match: Match | None = parts.routes.match(scope["method"], scope["path"])
        self._flag: Flag | None = None
        self._who: Identity | None = None
        self._tape: Tape | None = None
        self._recorder: Recorder | None = None
        self._stand_in: asyncio.Task[None] | None = None
        self._fell_back = False
        self.status = 0  # that the client got; 0: none
        self.id = ""

    async def run(self) -> None:
        """Answer the request, and write down what became of it."""
        self._decision = await self._decide()
        instruments = self._parts.instruments
        if instruments is None:
            await self._answer()
            return
        self.id = instruments.id_of(self._scope["headers"])
        if self._decision.shadow:
            self._tape = instruments.tape(self.key, self._scope, self._receive)
            self._receive = self._tape.receive if self._tape else self._receive
        try:
            await self._answer()
        finally:
            self._write_down(instruments)

    @property
    def key(self) -> str:
        """The flag key; empty for what Flask's map does not know."""
        return self._match.route.key if self._match and self._match.route else ""

    async def _decide(self) -> Decision:
        """Who answers. Finds out who asks only when that matters."""
        identity, route = self._parts.identity, self._match.route if self._match else None
        ported = route is not None and self._scope["method"] in route.ported
        flag = self._flag = self._flags.flags.get(route.key) if route and ported else None
        if flag is not None and flag.needs_subject:
            self._who = await identity.identify(self._scope)
        elif identity.active:
            self._who = identity.look(self._scope)
        if route is None:
            return NEW if self._match else UNMATCHED
        asked = self._asked_side(route.key) if ported else None
        subject = self._who.subject if self._who else ""
        caller = Caller(subject, asked) if subject or asked else NOBODY
        dice_bp = randrange(FULL_BP) if flag is not None and flag.shadow_bp else FULL_BP  # noqa: S311  # no secret
        return decide(self._flags, route, self._scope["method"], caller, dice_bp=dice_bp)

    def _asked_side(self, key: str) -> Backend | None:
        """The side that a valid pass asks for. No application gets to see a pass, valid or not."""
        text = passes.find(self._scope)
        if not text:
            return None
        self._scope = passes.without(self._scope)
        found = passes.check(self._parts.secret, text, time())
        return found.side if found and found.covers(key) else None

    async def _answer(self) -> None:
        if self._decision.backend is Backend.LEGACY or not await self._ask_port():
            await self._ask_legacy()

    # --- FastAPI

    async def _ask_port(self) -> bool:
        """Run FastAPI on a copy of the scope. False when nothing was sent and legacy has to answer instead."""
        scope: Scope = {**self._scope, "gateway.key": self.key}
        if self._who and not self._who.bare:
            scope = await self._parts.identity.present(scope, self._who, Backend.FASTAPI)
        probe = _Probe(self, Backend.FASTAPI, self._send, self._tape, hold=self._may_stand_in())
        task, limit_s = asyncio.current_task(), self._parts.settings.port_timeout_s
        timer = asyncio.get_running_loop().call_later(limit_s, self._run_out, probe, task)
        try:
            await self._parts.fastapi(scope, self._receive, probe)
        except ClientDisconnect:
            probe.status = probe.status or CLIENT_LEFT
            self.status = self.status or CLIENT_LEFT
            raise
        except asyncio.CancelledError:
            if self._stand_in is None:  # the drain is over
                probe.status = probe.status or CLIENT_LEFT
                raise
            if task:
                task.uncancel()
        except Exception as error:
            if not self._survives(probe, error):
                raise
        finally:
            timer.cancel()
            self._note(Backend.FASTAPI, probe)
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
        log.error("%s: the port has not begun to answer within %g s", self.key, self._parts.settings.port_timeout_s)
        probe.status = TIMED_OUT
        self._note(Backend.FASTAPI, probe)
        if probe.hold:
            probe.failed = True
            self._stand_in = asyncio.get_running_loop().create_task(self._ask_legacy())
            if task:
                task.cancel()

    # --- legacy

    async def _ask_legacy(self) -> None:
        scope = self._scope
        self._fell_back = self._decision.backend is Backend.FASTAPI
        if self._match is not None and self._match.route is not None:
            scope["gateway.key"], scope["gateway.match"] = self.key, self._match
        if self._who and not self._who.bare:
            scope = await self._parts.identity.present(scope, self._who, Backend.LEGACY)
        probe = _Probe(self, Backend.LEGACY, self._send, self._tape, hold=False)
        writes = self._tape is not None and scope["method"] not in SAFE_METHODS
        try:
            with recording() if writes else nullcontext() as self._recorder:
                await self._parts.legacy(scope, self._receive, probe)
        finally:
            self._note(Backend.LEGACY, probe)

    # --- what is written down

    def _note(self, backend: Backend, probe: "_Probe") -> None:
        """One side is done, or has taken too long: whichever comes first counts."""
        if probe.noted:
            return
        probe.noted = True
        if instruments := self._parts.instruments:
            by_weight = self._decision.backend is backend and self._decision.reason in _BY_WEIGHT
            flag = self._flag if by_weight else None
            place_bp = self._decision.bucket_bp
            instruments.note(self.key, flag, place_bp, backend, probe.status, perf_counter() - probe.began)

    def _write_down(self, instruments: Instruments) -> None:
        """The client has what it gets."""
        key, decision, subject = self.key, self._decision, self._who.subject if self._who else ""
        if self._fell_back:
            instruments.ledger.count_fallback(key)
        instruments.journal.note(
            self.id,
            key,
            self._scope["method"],
            subject,
            self._flags.version,
            decision.backend,
            decision.reason,
            decision.bucket_bp,
            self.status,
            self._fell_back,
            self._tape is not None,
        )
        if self._tape is not None and self._flag is not None and not self._fell_back:
            self._hand_over(instruments.shadow, self._tape, self._flag, subject)

    def _hand_over(self, shadow: Shadow, tape: Tape, flag: Flag, subject: str) -> None:
        """Let the other side be asked, too, as soon as the client has its last byte."""
        rows = self._recorder.changes() if self._recorder else None
        exchange = tape.exchange(
            self.id, flag.key, version=self._flags.version, subject=subject, ignore=flag.ignore, rows=rows
        )
        if exchange is not None:
            shadow.submit(exchange, self._scope.get("gateway.unsent", int))
        elif tape.skip is not None:
            shadow.skip(flag.key, tape.skip)

    # --- what the client gets to see

    def edits(self, backend: Backend) -> bool:
        """Whether the headers of an answer may have to be changed."""
        who = self._who
        untouched = who is None or (who.bare and backend is Backend.LEGACY and not who.fresh_cookie)
        return self._parts.settings.served_by or not untouched

    async def reconcile(self, backend: Backend, status: int, headers: Headers) -> Headers:
        """The headers of an answer as a client of both sides has to get them."""
        who = self._who
        if who and (not who.bare or b"set-cookie" in [name.lower() for name, _ in headers]):
            headers = await self._parts.identity.reconcile(who, backend, status, headers)
        return headers

    def own_headers(self, backend: Backend, took_s: float) -> Headers:
        """Those that no application sends."""
        headers: Headers = []
        if self._who and self._who.fresh_cookie and self._decision.reason is Reason.SPLIT:
            headers.append(self._who.fresh_cookie)
        if self._parts.settings.served_by:
            timing = f"{backend.value};dur={took_s * 1000:.1f};desc={self._decision.reason.value}"
            headers += [(b"server-timing", timing.encode()), (b"x-served-by", backend.value.encode())]
            headers += [(b"x-request-id", self.id.encode())] if self.id else []
        return headers


class _Probe:
    """Stands in for `send`: sees the answer of one side, and can hold a failure back so that legacy may answer."""

    __slots__ = (
        "_backend",
        "_edits",
        "_send",
        "_tape",
        "_turn",
        "began",
        "complete",
        "failed",
        "hold",
        "noted",
        "started",
        "status",
    )

    def __init__(self, turn: Turn, backend: Backend, send: Send, tape: Tape | None, *, hold: bool) -> None:
        self._turn, self._backend, self._send, self._tape = turn, backend, send, tape
        self._edits = turn.edits(backend)
        self.hold = hold
        self.status = 0
        self.started = self.failed = self.complete = self.noted = False
        self.began = perf_counter()

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
            self._turn.status = self.status
            if self._edits or self._tape:
                message["headers"] = await self._see(list(message.get("headers", ())))
        elif kind == "http.response.body":
            self.complete = not message.get("more_body", False)
            if self._tape:
                self._tape.add(message.get("body", b""), more=not self.complete)
        await self._send(message)

    async def _see(self, headers: Headers) -> Headers:
        headers = await self._turn.reconcile(self._backend, self.status, headers)
        if self._tape:
            self._tape.begin(self._backend, self.status, headers)
        return [*headers, *self._turn.own_headers(self._backend, perf_counter() - self.began)]
