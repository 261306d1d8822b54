"""One database, both reference applications on it, and the gateway in front; all in this process.

A `World` answers a request on one side, says what it left behind, and puts everything back.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

from gateway.ledger import Ledger
from gateway.wsgi import WsgiBackend
from werkzeug.test import EnvironBuilder, run_wsgi_app

import fastapi_app
import legacy_flask
from gateway.app import Gateway
from gateway.flags import FlagStore
from gateway.identity import IdentityBridge
from gateway.model import Backend, FlagSet, Observation
from gateway.routes import RouteTable, hand_over
from gateway.settings import Settings
from legacy_flask.seed import DEMO_USERS, seed

from .asgi import Lifespan, ask
from .traces import Snapshot

ROOT = Path(__file__).parents[2]
ORIGIN = "http://testserver"
SIDES = ("flask", "fastapi", "mixed")


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # path and query, percent-encoded as on the wire
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class World:
    """`database_url` names an empty database, `home` an empty folder."""

    def __init__(self, database_url: str, home: Path) -> None:
        env = {
            "DATABASE_URL": database_url,
            "SECRET_KEY": "parity-" * 8,
            "DATA_PATH": str(home / "live/data"),
            "LIBRARY_PATH": str(home / "live/library"),
            "BCRYPT_ROUNDS": "4",
        }
        with patch.dict(os.environ, env):
            self._flask = legacy_flask.create_app()
            seed(self._flask, "small", demo=True)
            port = fastapi_app.create_app()
        self._runner = asyncio.Runner()
        self._gateway, self._flags = self._compose(port, home / "state")
        self._runner.run(self._open())
        self._cookies = {username: self._sign_in(username, password) for username, password, _ in DEMO_USERS[:4]}
        self.snapshot = Snapshot(self._flask.extensions["engine"], home / "live", home / "keep")

    def _compose(self, port: Any, state: Path) -> tuple[Gateway, FlagStore]:
        settings = Settings.load({"state": str(state), "flags": ""}, env={}, root=ROOT)
        routes, flags = RouteTable(self._flask, port), FlagStore(None, frozenset(), state)
        hand_over(self._flask)
        gateway = Gateway(
            settings,
            routes=routes,
            flags=flags,
            identity=IdentityBridge(self._flask, settings, b"parity" * 8),
            ledger=Ledger(state),
            legacy=WsgiBackend(self._flask, settings, multiprocess=False),
            fastapi=port,
        )
        return gateway, flags

    async def _open(self) -> None:
        self._lifespan = await Lifespan(self._gateway).__aenter__()

    def close(self) -> None:
        self._runner.run(self._lifespan.__aexit__())
        self._runner.close()
        self._flask.extensions["engine"].dispose()

    # --- asking

    def credentials(self, username: str) -> tuple[tuple[str, str], ...]:
        """Headers of a signed-in browser; none for the anonymous."""
        return (("Cookie", self._cookies[username]), ("Origin", ORIGIN)) if username else ()

    def turns(self, side: str) -> Iterator[str]:
        """Who answers the first, the second, … request of a case."""
        return cycle(["legacy", "fastapi"] if side == "mixed" else [side])

    def ask(self, turn: str, request: Request) -> Observation:
        """One request: to Flask alone, or through the gateway to the side whose turn it is."""
        if turn == "flask":
            return self._ask_flask(request)
        self._flags.current = FlagSet(override=Backend(turn))
        path = request.target.partition("?")[0]
        answer = self._runner.run(
            ask(
                self._gateway,
                request.method,
                request.target,
                request.headers,
                request.body,
                path=unquote_to_bytes(path).decode(errors="replace"),
                raw_path=path.encode(),
            )
        )
        assert answer.complete
        return Observation(Backend(turn), answer.status, tuple(answer.headers), answer.body)

    def _ask_flask(self, request: Request) -> Observation:
        path, _, query = request.target.partition("?")
        builder = EnvironBuilder(
            method=request.method,
            base_url=ORIGIN,
            query_string=query,
            headers=list(request.headers),
            input_stream=None,
            data=request.body,
        )
        environ = builder.get_environ()
        environ.update(
            PATH_INFO=unquote_to_bytes(path).decode("latin-1"),
            RAW_URI=request.target,
            REQUEST_URI=request.target,
            REMOTE_ADDR="127.0.0.1",
        )
        chunks, status, headers = run_wsgi_app(self._flask, environ, buffered=True)
        return Observation(Backend.LEGACY, int(status.split()[0]), tuple(headers.to_wsgi_list()), b"".join(chunks))

    def _sign_in(self, username: str, password: str) -> str:
        body = f'{{"username": "{username}", "password": "{password}"}}'.encode()
        headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
        answer = self._ask_flask(Request("POST", "/auth/login", headers, body))
        assert answer.status == 200, answer.body
        return next(value for name, value in answer.headers if name == "Set-Cookie").partition(";")[0]
