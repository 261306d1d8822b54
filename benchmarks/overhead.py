"""What the gateway itself adds to a request, in process: with it in front of an empty application, minus without it."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import Gateway
from gateway.flags import FlagStore
from gateway.identity import IdentityBridge
from gateway.instruments import Instruments
from gateway.routes import RouteTable
from gateway.settings import IdentitySettings, Settings
from tests.support.asgi import Lifespan

from .apps import make_fastapi, make_flask
from .harness import Plan, save, spread, table

TARGET_US = 15.0
REQUESTS = 5_000
HEADERS = {"host": "localhost", "user-agent": "bench", "accept": "*/*", "accept-encoding": "gzip"}
ROUTES = "version: 1\nroutes:\n  resource1.get: {resource1}\n"
FLAGS = {side: ROUTES.format(resource1=side) for side in ("legacy", "fastapi", "50")}
CASES: dict[str, tuple[str, Mapping[str, str]]] = {
    "legacy": ("legacy", {}),
    "ported": ("fastapi", {}),
    "legacy, without instruments": ("legacy", {}),
    "ported, without instruments": ("fastapi", {}),
    "split by API key": ("50", {"x-api-key": "a-key"}),
    "split by session": ("50", {"cookie": "session=SESSION"}),
}


async def empty(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def build(state: Path, side: str, *, identity: bool, ledger: bool = True) -> tuple[Gateway, str]:
    """A gateway in front of two empty applications, and a session cookie that its Flask would accept.

    With `ledger` it counts, keeps a journal and leads, once its lifespan has begun.
    """
    flask_app, fastapi_app = make_flask(), make_fastapi()
    flask_app.secret_key = secrets.token_hex(32)
    claims = IdentitySettings(claims={"user_id": "sub", "session_token": "sid"}) if identity else IdentitySettings()
    settings = Settings(state=str(state), identity=claims)
    flags = state / f"{side}.yaml"
    flags.write_text(FLAGS[side])
    routes = RouteTable(flask_app, fastapi_app)
    store = FlagStore(flags, routes.keys, state)
    gateway = Gateway(
        settings,
        routes=routes,
        flags=store,
        identity=IdentityBridge(flask_app, settings, secrets.token_bytes(32)),
        legacy=empty,
        fastapi=empty,
        instruments=Instruments(settings, store) if ledger else None,
    )
    serializer = flask_app.session_interface.get_signing_serializer(flask_app)
    return gateway, str(serializer.dumps({"user_id": 7, "session_token": "token"}))


def scope(headers: Mapping[str, str]) -> dict[str, Any]:
    path = "/api/resource1/items/7"
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in {**HEADERS, **headers}.items()],
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8000),
    }


async def per_request_us(app: ASGIApp, request: dict[str, Any]) -> float:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None:
        pass

    began = perf_counter()
    for _ in range(REQUESTS):
        await app(dict(request), receive, send)
    return (perf_counter() - began) / REQUESTS * 1e6


async def compare(plan: Plan, gateway: Gateway, request: dict[str, Any]) -> list[float]:
    """Added microseconds, one value per round; the first is not kept."""
    added = []
    async with Lifespan(gateway):
        for _ in range(plan.rounds * 3 + 1):
            without = await per_request_us(empty, request)
            added.append(await per_request_us(gateway, request) - without)
    return added[1:]


def main(plan: Plan) -> None:
    results, rows = {}, []
    with TemporaryDirectory() as directory:
        for name, (side, headers) in CASES.items():
            bare = "without instruments" in name
            gateway, cookie = build(Path(directory), side, identity="session" in name, ledger=not bare)
            filled = {header: value.replace("SESSION", cookie) for header, value in headers.items()}
            results[name] = added = uvloop.run(compare(plan, gateway, scope(filled)))
            rows.append([name, spread(added, 1), f"{TARGET_US:.0f}"])
    table("Time the gateway itself adds to one request", ["request", "added, us", "target, at most"], rows)
    save("overhead", plan, results)
