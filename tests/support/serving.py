"""A real `gateway serve` for a test: own port, own state, own flag file, own processes."""

import http.client
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.flags import parse_flags
from gateway.ledger import Ledger

from .processes import child, free_port, session_members, wait_until

ROOT = Path(__file__).parents[2]
GATEWAY = [sys.executable, "-m", "gateway"]
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would read all certificates for every client


@dataclass(frozen=True)
class Server:
    """A running gateway."""

    process: subprocess.Popen[bytes]
    port: int
    flags: Path
    state: Path
    log: Path
    env: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        """A browser: one connection kept, cookies remembered."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=_NO_TLS, **options)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON at `path`, over a connection of its own, so that any worker may answer."""
        with closing(self.connection()) as connection:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            return json.load(response)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`gateway ARGUMENTS` beside the running one, with the same settings."""
        return gateway(*arguments, env=self.env)

    def say(self, *routes: str, override: str = "none") -> None:
        """Replace the flag file in one step; routes are lines like `who: 50`."""
        text = flag_file(*routes, override=override)
        fresh = self.flags.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.flags)

    def put(self, *routes: str, override: str = "none") -> None:
        """Like `say`, and wait until every worker has followed."""
        self.say(*routes, override=override)
        version = parse_flags(self.flags.read_text(), None).version
        every = [version] * int(self.env["GATEWAY_WORKERS"])  # also those that were not heard of lately
        wait_until(lambda: [*self.workers().values()] == every, "the workers to follow the flag file")

    def workers(self) -> dict[int, str]:
        """The flag version that every live worker runs, by process id."""
        return {worker.pid: worker.version for worker in Ledger(self.state).workers()}

    def events(self) -> list[str]:
        """What the applications of `tests.support.pair` have noted."""
        path = self.flags.parent / "events"
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> list[int]:
        return session_members(self.process.pid)


def flag_file(*routes: str, override: str = "none") -> str:
    return "\n".join(["version: 1", f"override: {override}", "routes:", *(f"  {line}" for line in routes), ""])


def gateway(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    command = [*GATEWAY, *arguments]
    return subprocess.run(
        command, check=False, cwd=cwd, env=environment(env or {}), capture_output=True, text=True, timeout=60
    )


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without those of a gateway, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


@contextmanager
def serving(
    directory: Path,
    *routes: str,
    legacy: str,
    fastapi: str = "",
    workers: int = 2,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **settings: object,
) -> Iterator[Server]:
    """`gateway serve` until the block ends; every worker answers before it begins.

    `settings` become `GATEWAY_*` variables; `routes` are the first lines of the flag file.
    """
    port, flags, log = free_port(), directory / "flags.yaml", directory / "gateway.log"
    state = directory / (".gateway" if "state" in settings else "state")  # several hosts: settings name their Redis
    if not flags.exists():
        flags.write_text(flag_file(*routes))
    values = {"legacy": legacy, "fastapi": fastapi, "flags": flags, "state": state, "port": port, "workers": workers}
    variables = {f"GATEWAY_{name.upper()}": str(value) for name, value in {**values, **settings}.items()}
    env = {**(env or {}), **variables}
    directory.mkdir(exist_ok=True)
    with child([*GATEWAY, "serve"], log, cwd=cwd or directory, env=environment(env)) as process:
        server = Server(process, port, flags, state, log, env)
        wait_until(lambda: _ready(server, workers), f"{workers} workers; see {log}", timeout_s=60)
        yield server


def _ready(server: Server, workers: int) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    return server.state.exists() and len(server.workers()) >= workers


def audit(server: Server) -> list[dict[str, Any]]:
    path = server.state / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ordered(server: Server) -> list[dict[str, Any]]:
    """The changes by commands and the API; what was written into the file is noted when a worker gets to it."""
    return [event for event in audit(server) if event["by"] != "file"]
