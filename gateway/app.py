"""One ASGI app in front of two: what is this, who should answer, who may stand in?"""

import asyncio
import logging
from pathlib import Path
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .decide import NEW, NOBODY, UNMATCHED, decide
from .flags import FlagStore
from .identity import Identity, IdentityBridge, own_secret
from .ledger import Ledger
from .loading import load_pair
from .model import Backend, Caller, Decision, Reason
from .routes import Match, RouteTable, hand_over
from .settings import Settings
from .wsgi import WsgiBackend, a2wsgi_backend

log = logging.getLogger("gateway")

_BODY_HEADERS = (b"content-length", b"transfer-encoding")
_LAST_S = 3.0  # for legacy threads, after the server has waited `drain_s` for its requests


class Gateway:
    """The ASGI application. Everything it needs is built by `create_app` and handed in."""

    def __init__(  # noqa: PLR0913  # the one place where all parts meet
        self,
        settings: Settings,
        *,
        routes: RouteTable,
        flags: FlagStore,
        identity: IdentityBridge,
        ledger: Ledger,
        legacy: ASGIApp,
        fastapi: ASGIApp | None,
    ) -> None:
        self._routes, self._flags, self._identity, self._ledger = routes, flags, identity, ledger
        self._legacy = legacy
        self._fastapi = fastapi or legacy  # without a port no decision ever names it
        self._has_port = fastapi is not None
        self._served_by = settings.served_by
        self._hops = settings.trusted_hops
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hops:
            _believe_proxies(scope, self._hops)
        method = scope["method"]
        match = self._routes.match(method, scope["path"])
        key, decision, who = await self._decide(scope, method, match)
        fallback = (
            decision.backend is Backend.FASTAPI
            and decision.reason is not Reason.NEW
            and method in ("GET", "HEAD")
            and not any(name in _BODY_HEADERS for name, _ in scope["headers"])
        )
        probe = _Probe(send, self._editor(decision, who), hold=fallback)
        started = perf_counter()
        if decision.backend is Backend.FASTAPI:
            try:
                await self._ask_port(scope, receive, probe, key, who)
            finally:
                self._ledger.count(key, Backend.FASTAPI, probe.status, perf_counter() - started)
            if not probe.failed:
                return
            self._ledger.count_fallback(key)
            probe.restart(self._editor(Decision(Backend.LEGACY, decision.reason), who))
            started = perf_counter()
        try:
            await self._ask_legacy(scope, receive, probe, match, who)
        finally:
            self._ledger.count(key, Backend.LEGACY, probe.status, perf_counter() - started)

    async def _decide(self, scope: Scope, method: str, match: Match | None) -> tuple[str, Decision, Identity | None]:
        """Flag key, decision and identity; the identity only when somebody needs it."""
        route = match.route if match else None
        flags = self._flags.current
        split = route is not None and method in route.ported and flags[route.key].needs_subject
        who: Identity | None = None
        if split:
            who = await self._identity.identify(scope)
        elif self._identity.active:
            who = self._identity.look(scope)
        if route is None:
            return "", (NEW if match else UNMATCHED), who
        caller = Caller(who.subject) if split and who else NOBODY
        return route.key, decide(flags, route, method, caller), who

    async def _ask_port(self, scope: Scope, receive: Receive, probe: "_Probe", key: str, who: Identity | None) -> None:
        """Run FastAPI on a copy of the scope. Leaves `probe.failed` set when legacy has to stand in."""
        scope = {**scope, "gateway.key": key}
        if who and not who.bare:
            scope = await self._identity.present(scope, who, Backend.FASTAPI)
        try:
            await self._fastapi(scope, receive, probe)
        except Exception:
            if probe.complete:  # a background task, or Starlette raising again what it has already answered
                log.exception("%s: the port failed after its answer", key)
            elif probe.hold and not probe.started:
                log.exception("%s: the port failed, legacy answers", key)
                probe.failed = True
            else:
                raise

    async def _ask_legacy(
        self, scope: Scope, receive: Receive, probe: "_Probe", match: Match | None, who: Identity | None
    ) -> None:
        if match is not None and match.route is not None:
            scope["gateway.key"] = match.route.key
            scope["gateway.match"] = match
        if who and not who.bare:
            scope = await self._identity.present(scope, who, Backend.LEGACY)
        await self._legacy(scope, receive, probe)

    def _editor(self, decision: Decision, who: Identity | None) -> "_Editor | None":
        untouched = who is None or (who.bare and decision.backend is Backend.LEGACY and not who.fresh_cookie)
        if untouched and not self._served_by:
            return None
        return _Editor(self._identity, decision, who, tell=self._served_by)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's sockets go to FastAPI; anything else gets what Flask answers to an upgrade."""
        if not (self._has_port and self._routes.websocket(scope["path"])):
            await self._legacy(scope, receive, send)
            return
        if self._hops:
            _believe_proxies(scope, self._hops)
        if self._identity.active:
            scope = await self._identity.present(scope, self._identity.look(scope), Backend.FASTAPI)
        await self._fastapi(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own lifespan, with ours inside: it starts first and stops last."""

        async def between(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._start()
            elif message["type"] == "lifespan.startup.failed":
                lines = message.get("message", "").strip().splitlines() or ["the FastAPI application did not start"]
                message = {**message, "message": f"gateway: {lines[-1]}"}
            elif message["type"].startswith("lifespan.shutdown"):
                await self._stop()
            await send(message)

        await (self._fastapi if self._has_port else _empty_lifespan)(scope, receive, between)

    def _start(self) -> None:
        self._ledger.start()
        self._flags.subscribe(lambda flags: self._ledger.seen(flags.version, self._flags.rejected))
        self._ledger.seen(self._flags.current.version)
        self._watch = asyncio.create_task(self._flags.watch())

    async def _stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        if isinstance(self._legacy, WsgiBackend):
            await self._legacy.drain(_LAST_S)
        self._ledger.close()


class _Editor:
    """Edits the headers of one answer on their way out."""

    __slots__ = ("_decision", "_identity", "_started", "_tell", "_who")

    def __init__(self, identity: IdentityBridge, decision: Decision, who: Identity | None, *, tell: bool) -> None:
        self._identity, self._decision, self._who, self._tell = identity, decision, who, tell
        self._started = perf_counter()

    async def __call__(self, status: int, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        backend = self._decision.backend
        if self._who and (not self._who.bare or b"set-cookie" in [name.lower() for name, _ in headers]):
            headers = await self._identity.reconcile(self._who, backend, status, headers)
        if self._who and self._who.fresh_cookie and self._decision.reason is Reason.SPLIT:
            headers = [*headers, self._who.fresh_cookie]
        if self._tell:
            took_ms = (perf_counter() - self._started) * 1000
            timing = f"{backend.value};dur={took_ms:.1f};desc={self._decision.reason.value}"
            headers = [*headers, (b"server-timing", timing.encode()), (b"x-served-by", backend.value.encode())]
        return headers


class _Probe:
    """Stands in for `send`: notes the status, and can hold a failure back so that legacy may answer instead."""

    __slots__ = ("_edit", "_send", "complete", "failed", "hold", "started", "status")

    def __init__(self, send: Send, edit: _Editor | None, *, hold: bool) -> None:
        self._send, self._edit, self.hold = send, edit, hold
        self.status = 0
        self.started = self.failed = self.complete = False

    def restart(self, edit: _Editor | None) -> None:
        self._edit, self.hold, self.failed, self.status = edit, False, False, 0

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


async def _empty_lifespan(_scope: Scope, receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


def _believe_proxies(scope: Scope, hops: int) -> None:
    """Take client and scheme from what the outermost trusted proxy wrote: the `hops`-th entry from the right.

    The same rule as Werkzeug's ProxyFix; fewer entries than hops change nothing.
    """
    entries: dict[bytes, list[str]] = {b"x-forwarded-for": [], b"x-forwarded-proto": []}
    for name, value in scope["headers"]:
        if name in entries:
            entries[name] += [part.strip() for part in value.decode("latin-1").split(",")]
    client, proto = entries.values()
    if len(client) >= hops and client[-hops]:
        scope["client"] = (client[-hops], 0)
    if len(proto) >= hops and proto[-hops] in ("http", "https"):
        secure = proto[-hops] == "https"
        scope["scheme"] = ("ws" if scope["type"] == "websocket" else "http") + ("s" if secure else "")


# --- composition root -------------------------------------------------------------------------------------------


def create_app() -> Gateway:
    """Build the gateway of one worker process from `GATEWAY_*` and pyproject.toml.

    Raises a GatewayError with one sentence for whatever is wrong; a deploy must fail loudly.
    """
    settings = Settings.load()
    wsgi, flask_app, fastapi_app = load_pair(settings)
    routes = RouteTable(flask_app, fastapi_app)
    state = settings.state_dir
    ledger = Ledger(state)
    flags = FlagStore(Path(settings.flags) if settings.flags else None, routes.keys, state)
    if settings.route_once and flask_app is not None:
        hand_over(flask_app)
    build = a2wsgi_backend if settings.bridge == "a2wsgi" else WsgiBackend
    return Gateway(
        settings,
        routes=routes,
        flags=flags,
        identity=IdentityBridge(flask_app, settings, own_secret(settings)),
        ledger=ledger,
        legacy=build(wsgi, settings, multiprocess=settings.workers > 1),
        fastapi=fastapi_app,
    )
