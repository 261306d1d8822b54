"""Ask an ASGI application one question, in process: no server, no client library in between."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Header = tuple[str, str]


@dataclass
class Answer:
    """What came back; `complete` is False when the application stopped in the middle."""

    status: int = 0
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    def get(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k == name), None)

    def get_all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k == name]


def http_scope(method: str = "GET", target: str = "/", headers: Iterable[Header] = (), **extra: Any) -> dict[str, Any]:
    path, _, query = target.partition("?")
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if b"host" not in dict(raw):
        raw.insert(0, (b"host", b"testserver"))
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": raw, "client": ("127.0.0.1", 5000), "server": ("testserver", 80),
        "state": {}, "extensions": {}, **extra,
    }  # fmt: skip


async def ask(
    app: Any, method: str = "GET", target: str = "/", headers: Iterable[Header] = (), body: bytes = b"", **extra: Any
) -> Answer:
    """One request, the whole answer. Exceptions of the application pass through."""
    answer = Answer()
    headers = [*headers, ("content-length", str(len(body)))] if body else headers
    questions = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if questions:
            return questions.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in message["headers"]]
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
            answer.complete = not message.get("more_body", False)

    await app(http_scope(method, target, headers, **extra), receive, send)
    return answer


class Lifespan:
    """`async with Lifespan(app)`: startup before, shutdown after; `failed` holds the message of a refused start."""

    def __init__(self, app: Any) -> None:
        self._app, self.state, self.failed = app, {}, ""
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> "Lifespan":
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        self._task = asyncio.create_task(self._app(scope, self._inbox.get, self._outbox.put))
        await self._turn("startup")
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.failed:
            await self._turn("shutdown")
        await asyncio.gather(self._task, return_exceptions=bool(self.failed))

    async def _turn(self, phase: str) -> None:
        await self._inbox.put({"type": f"lifespan.{phase}"})
        message = await self._outbox.get()
        if message["type"].endswith("failed"):
            self.failed = message.get("message", "failed")
