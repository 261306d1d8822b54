"""One database, both reference applications on it, the gateway in front and the services they ask; in this process."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI
from flask import Flask
from sqlalchemy import insert, update
from werkzeug.test import EnvironBuilder, run_wsgi_app

import fastapi_app
import legacy_flask
from gateway.app import Gateway
from gateway.flags import FlagStore
from gateway.identity import IdentityBridge
from gateway.model import Backend, FlagSet, Observation
from gateway.routes import RouteTable, hand_over
from gateway.settings import Settings
from gateway.wsgi import WsgiBackend
from legacy_flask.models import Setting
from legacy_flask.seed import seed
from tests.cases import HOST, ORIGIN, PASSWORDS

from .asgi import Lifespan, ask
from .traces import Snapshot
from .upstreams import upstream
from .worker import LazyQueue

ROOT = Path(__file__).parents[2]
# Used long ago or now, a session slides: with the next request that comes a minute later, whichever that is.
_FRESH_FOR_EVER = (
    "UPDATE user_sessions SET"
    " last_activity_at = '2100-01-01 00:00:00.000000', expires_at = '2100-01-02 00:00:00.000000'"
)
ROLES = ("readonly", "user", "manager", "admin")  # and the names of those who have them
ALONE = "Flask alone"
LEGACY, FASTAPI = (backend.value for backend in Backend)  # behind the gateway
_UNFINISHED = (
    "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running') AND id <> 'of the case'",
    "SELECT count(*) FROM webhook_deliveries WHERE status IN ('pending', 'delivering')",
)


@dataclass(frozen=True)
class Request:
    """As on the wire: `target` is path and query with their percent signs; the length of the body is told for it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def decoded_path(self) -> bytes:
        return unquote_to_bytes(self.path)


class World:
    """`database_url` names an empty database, `home` an empty folder. Filled with the small library; services on the
    internet are the stub `upstream`."""

    def __init__(self, database_url: str, home: Path) -> None:
        self._rest = ExitStack()
        self.upstream = self._rest.enter_context(upstream())
        self.live = home / "live"
        env = {
            "DATABASE_URL": database_url,
            "SECRET_KEY": secrets.token_hex(32),
            "DATA_PATH": str(self.live / "data"),
            "LIBRARY_PATH": str(self.live / "library"),
            "BCRYPT_ROUNDS": "4",
            "FFMPEG": "no-such-program",
            "REDIS_URL": "",
            "LOG_FILE": str(home / "app.log"),
            "SERVICE_UNIT": "music-videos.service",
            "RESTART_COMMAND": "true --now 'or never'",
            "ALLOWED_NETWORKS": "127.0.0.1/32",
            "UPSTREAM_BACKOFF_S": "0.01",
        }
        with patch.dict(os.environ, env):
            self._alone, behind, port = legacy_flask.create_app(), legacy_flask.create_app(), fastapi_app.create_app()
        port.state.queue.close()
        port.state.queue = LazyQueue(home, {**env, "LOG_FILE": str(home / "workers-app.log")})
        seed(self._alone, "small", demo=True)
        self._schedulers = [app.extensions["scheduler"] for app in (self._alone, behind)]
        self._engines = [app.extensions["engine"] for app in (self._alone, behind)]
        self._set(self.upstream.settings)
        self.cookies = {"anonymous": {}, **{user: self._sign_in(user) for user in ROLES}}
        self.execute([_FRESH_FOR_EVER])
        self.on_mariadb = self._engines[0].dialect.name != "sqlite"
        self.snapshot = Snapshot(self._engines[0], self.live, home / "keep")
        self._log_file = home / "app.log"
        known = [app.extensions for app in (self._alone, behind)] + [port.state]
        self._database = port.state.database
        self._forgetful = [here[name] for here in known for name in ("upstream", "spotify")]
        self._gateway, self._flags = _compose(behind, port, home / "state")
        self._runner = asyncio.Runner()
        self._lifespan = Lifespan(self._gateway)
        self._runner.run(self._lifespan.__aenter__())
        assert not self._lifespan.failed

    def close(self) -> None:
        self._runner.run(self._lifespan.__aexit__())
        self._runner.close()
        for scheduler in self._schedulers:
            scheduler.stop()
        self.snapshot.close()
        for engine in self._engines:
            engine.dispose()
        self._rest.close()

    def restore(self) -> None:
        """As it was in the beginning: rows, files, and what the applications know of the services."""
        self.snapshot.restore()
        self.upstream.reset()
        for client in self._forgetful:
            client.forget()

    def log(self, content: bytes | None) -> None:
        """What the log file holds from now on; None: there is none."""
        if content is None:
            self._log_file.unlink(missing_ok=True)
        else:
            self._log_file.write_bytes(content)

    @contextmanager
    def outside(self, dials: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
        """Meanwhile the services misbehave like this, until all that was begun is done."""
        self.upstream.dial(dials)
        try:
            yield
            self.settle()
        finally:
            self.upstream.dial({})

    def settle(self) -> None:
        """Until no job runs and nothing waits to be delivered: what goes on after an answer belongs to the case."""
        deadline = time.monotonic() + 60
        while self._busy():
            assert time.monotonic() < deadline, "jobs or deliveries that never end"
            self._runner.run(asyncio.sleep(0.005))  # the port's tasks live in this loop

    def _busy(self) -> bool:
        """The port must not hold a connection either: with a lock, which it would keep while its loop stands still."""
        with self._engines[0].connect() as connection:
            unfinished = any(connection.exec_driver_sql(query).scalar() for query in _UNFINISHED)
        return unfinished or bool(self._database.statistics()["checked_out"])

    def _set(self, settings: Mapping[str, str]) -> None:
        with self._engines[0].execution_options(write=True).begin() as connection:
            for key, value in settings.items():
                if not connection.execute(update(Setting).where(Setting.key == key).values(value=value)).rowcount:
                    connection.execute(insert(Setting).values(key=key, value=value))

    def execute(self, statements: Iterable[str]) -> None:
        with self._engines[0].execution_options(write=True).begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def ask(self, side: str, request: Request) -> Observation:
        """One request: to Flask alone, or through the gateway to one of the two."""
        if side == ALONE:
            return self._ask_alone(request)
        self._flags.current = FlagSet(override=Backend(side))
        paths = {"path": request.decoded_path.decode(errors="replace"), "raw_path": request.path.encode()}
        headers = request.headers
        if not request.body and request.method not in ("GET", "HEAD", "OPTIONS"):
            headers = (*headers, ("Content-Length", "0"))
        answer = self._runner.run(ask(self._gateway, request.method, request.target, headers, request.body, **paths))
        assert answer.complete
        return Observation(Backend(side), answer.status, tuple(answer.headers), answer.body)

    def _sign_in(self, user: str) -> dict[str, str]:
        """The cookies of a browser in which this user has signed in to Flask."""
        body = json.dumps({"username": user, "password": PASSWORDS[user]}).encode()
        headers = (("Host", HOST), ("Origin", ORIGIN), ("Content-Type", "application/json"))
        answer = self._ask_alone(Request("POST", "/auth/login", headers, body))
        assert answer.status == 200, answer.body
        pairs = [value.partition(";")[0] for name, value in answer.headers if name.lower() == "set-cookie"]
        return dict(pair.split("=", 1) for pair in pairs)

    def _ask_alone(self, request: Request) -> Observation:
        builder = EnvironBuilder(method=request.method, headers=list(request.headers), data=request.body)
        environ = builder.get_environ()
        environ |= {
            "PATH_INFO": request.decoded_path.decode("latin-1"),
            "QUERY_STRING": request.target.partition("?")[2],
            "RAW_URI": request.target,
            "REQUEST_URI": request.target,
            "REMOTE_ADDR": "127.0.0.1",
        }
        chunks, status, headers = run_wsgi_app(self._alone, environ, buffered=True)
        return Observation(Backend.LEGACY, int(status.split()[0]), tuple(headers.to_wsgi_list()), b"".join(chunks))


def _compose(flask_app: Flask, port: FastAPI, state: Path) -> tuple[Gateway, FlagStore]:
    """The gateway as this repository configures it, with flags that the test sets."""
    settings = Settings.load({"state": str(state), "flags": ""}, env={}, root=ROOT)
    routes, flags = RouteTable(flask_app, port), FlagStore(None, frozenset(), state)
    hand_over(flask_app)
    gateway = Gateway(
        settings,
        routes=routes,
        flags=flags,
        identity=IdentityBridge(flask_app, settings, secrets.token_bytes(32)),
        legacy=WsgiBackend(flask_app, settings, multiprocess=False),
        fastapi=port,
    )
    return gateway, flags
