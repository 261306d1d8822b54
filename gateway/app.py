"""One ASGI app in front of two, and the composition root of a worker."""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .control import Control
from .flags import FlagStore
from .hosts import Hosts
from .identity import IdentityBridge, own_secret
from .instruments import Instruments
from .loading import load_pair
from .model import Backend
from .routes import RouteTable, hand_over
from .settings import Settings
from .turn import Parts, Turn
from .views import publish_routes
from .wsgi import WsgiBackend, a2wsgi_backend

log = logging.getLogger("gateway")

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
        legacy: ASGIApp,
        fastapi: ASGIApp | None,
        instruments: Instruments | None = None,
        control: Control | None = None,
    ) -> None:
        self._flags, self._legacy, self._port = flags, legacy, fastapi
        self._instruments, self._control = instruments, control
        self._parts = Parts(
            settings=settings,
            routes=routes,
            flags=flags,
            identity=identity,
            legacy=legacy,
            fastapi=fastapi or legacy,  # without a port no decision ever names it
            secret=own_secret(settings),
            instruments=instruments,
        )
        self._hops = settings.trusted_hops
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if self._hops:
            _believe_proxies(scope, self._hops)
        if self._control is not None and self._control.owns(scope):
            await self._control(scope, receive, send)
        elif kind == "http":
            await Turn(self._parts, scope, receive, send).run()
        else:
            await self._websocket(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's sockets go to FastAPI; anything else gets what Flask answers to an upgrade."""
        if self._port is None or not self._parts.routes.websocket(scope["path"]):
            await self._legacy(scope, receive, send)
            return
        identity = self._parts.identity
        if identity.active:
            scope = await identity.present(scope, identity.look(scope), Backend.FASTAPI)
        await self._port(scope, receive, send)

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

        await (self._port or _empty_lifespan)(scope, receive, between)

    def _start(self) -> None:
        if self._instruments:
            self._instruments.start()
        self._watch = asyncio.create_task(self._flags.watch())

    async def _stop(self) -> None:
        if self._watch:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        if isinstance(self._legacy, WsgiBackend):
            await self._legacy.drain(_LAST_S)
        if self._instruments:
            await self._instruments.stop()


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
    hosts = Hosts.of(settings)
    path = Path(settings.flags) if settings.flags else None
    flags = FlagStore(path, routes.keys, settings.state_dir, hosts, join=True)
    if settings.route_once and flask_app is not None:
        hand_over(flask_app)
    build = a2wsgi_backend if settings.bridge == "a2wsgi" else WsgiBackend
    instruments = Instruments(settings, flags, hosts, routes.is_ported) if settings.ledger else None
    publish_routes(settings.state_dir, routes.routes)  # last: what is older than the workers is not theirs
    return Gateway(
        settings,
        routes=routes,
        flags=flags,
        identity=IdentityBridge(flask_app, settings, own_secret(settings)),
        legacy=build(wsgi, settings, multiprocess=settings.workers > 1),
        fastapi=fastapi_app,
        instruments=instruments,
        control=Control(settings, flags, routes.routes, hosts),
    )
