"""Both applications as a replay sees them: asked once, for one answer, within bounds of time and size."""

import asyncio
from asyncio import Event, Task
from contextlib import AsyncExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from starlette.types import ASGIApp, Message, Scope

from gateway.identity import Identity, IdentityBridge, own_secret
from gateway.loading import load_pair
from gateway.model import Backend, Observation
from gateway.routes import RouteTable, hand_over
from gateway.settings import Settings
from gateway.wsgi import WsgiBackend

from .tape import Exchange, Headers, is_stream, text_headers

GRACE_S = 1.0  # for an application that was told to stop; then it is stuck

_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Sides:
    """Builds both applications as a worker does, and asks them with the rights of the user who had asked.

    Raises a GatewayError with one sentence for whatever is wrong with them.
    """

    def __init__(self, settings: Settings) -> None:
        wsgi, flask_app, self.fastapi = load_pair(settings)
        self._routes = RouteTable(flask_app, self.fastapi)
        if settings.route_once and flask_app is not None:
            hand_over(flask_app)
        # Twice as many threads as are asked at once: the process ends before those that hang are so many.
        few = replace(settings, threads=2 * settings.shadow_concurrency, queue=0)
        self._legacy = WsgiBackend(wsgi, few, multiprocess=True)
        self._identity = IdentityBridge(flask_app, settings, own_secret(settings))
        self._stored = _stored_sessions(flask_app) if self._identity.active else ""
        self._limit_s, self._limit_bytes = settings.shadow_timeout_s, settings.shadow_body_bytes
        self._asking_legacy = 0
        self._stuck: set[Task[None]] = set()
        self._state: dict[str, Any] = {}  # of FastAPI's lifespan

    async def begin(self, stack: AsyncExitStack) -> None:
        """Run FastAPI's lifespan until the stack is left. Raises what it raises."""
        if self.fastapi is not None:
            state = await stack.enter_async_context(self.fastapi.router.lifespan_context(self.fastapi))
            self._state = dict(state or {})

    @property
    def stuck(self) -> int:
        """Requests that were given up and still run: in threads, or deaf to their cancellation."""
        return len(self._stuck) + max(0, self._legacy.pool.unfinished - self._asking_legacy)

    async def ask(self, exchange: Exchange, backend: Backend) -> Observation:
        """What one side answers now. Raises TimeoutError after `shadow_timeout_s`."""
        scope, who = await self.shown(exchange, backend)
        legacy = backend is Backend.LEGACY
        app: ASGIApp = self._legacy if legacy or self.fastapi is None else self.fastapi
        run = _Run(backend, exchange.body, self._limit_bytes)
        self._asking_legacy += legacy
        try:
            await self._finish(asyncio.create_task(run(app, scope)))
        finally:
            self._asking_legacy -= legacy
        return await self.settled(scope, who, run.answer())

    async def shown(self, exchange: Exchange, backend: Backend) -> tuple[Scope, Identity]:
        """The request with the credential that `backend` understands, marked as a shadow; and whose it is."""
        scope: Scope = {
            **exchange.scope,
            "type": "http",
            "asgi": _ASGI,
            "headers": list(exchange.scope["headers"]),
            "state": self._state.copy(),
            "extensions": {"gateway": {"shadow": True}},
            "gateway.key": exchange.key,
        }
        if backend is Backend.LEGACY:
            scope["gateway.match"] = self._routes.match(scope["method"], scope["path"])
        who = self._identity.look(scope)
        return await self._identity.present(scope, who, backend), who

    async def settled(self, scope: Scope, who: Identity, answer: Observation) -> Observation:
        """The answer as its client would have got it.

        That is a matter of the identity bridge, which may ask and write a session store. A shadow must not: then
        the session's cookie is left out of the comparison, on both sides.
        """
        if not self._stored:
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
            edited = await self._identity.reconcile(who, answer.backend, answer.status, headers)
            answer = answer if edited is headers else replace(answer, headers=text_headers(edited))
        return self.comparable(scope["method"], answer)

    def comparable(self, method: str, answer: Observation) -> Observation:
        """The answer without what is not to be compared, or was never sent."""
        if method == "HEAD" or answer.status in (204, 304):
            answer = replace(answer, body=b"")
        return replace(answer, headers=_without_session(answer.headers, self._stored)) if self._stored else answer

    async def _finish(self, task: Task[None]) -> None:
        try:
            done, _ = await asyncio.wait({task}, timeout=self._limit_s)
            if done:
                return
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=GRACE_S)
            if not task.done():
                self._stuck.add(task)
                task.add_done_callback(self._stuck.discard)
        raise TimeoutError


class _Enough(Exception):
    """Raised into an application whose answer differs already, by its length or by having no end."""


class _Run:
    """One request to one application, and what it answers."""

    def __init__(self, backend: Backend, body: bytes, limit_bytes: int) -> None:
        self._backend, self._request, self._left = backend, [body], limit_bytes
        self._status = 0
        self._headers: Headers = ()
        self._parts: list[bytes] = []
        self._ended = Event()  # nobody waits for more of the answer
        self._error = "NoAnswer"
        self._began, self._took_s = perf_counter(), 0.0

    async def __call__(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # sys.exit() in a view, too
            if not self._ended.is_set():
                self._error = type(error).__name__
        self._took_s = self._took_s or perf_counter() - self._began

    def answer(self) -> Observation:
        """What came back; an answer that did not come to its end is a failure with the name of the exception."""
        if not self._ended.is_set():
            return Observation(self._backend, 500, duration_s=self._took_s, error=self._error)
        headers = text_headers(self._headers)
        return Observation(self._backend, self._status, headers, b"".join(self._parts), self._took_s)

    async def _receive(self) -> Message:
        if self._request:
            return {"type": "http.request", "body": self._request.pop(), "more_body": False}
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._ended.is_set():
            raise _Enough
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], message.get("headers", ())
            if is_stream(self._status, self._headers):
                self._end()
                raise _Enough
        elif message["type"] == "http.response.body":
            self._keep(message.get("body", b""))
            if not message.get("more_body", False):
                self._end()

    def _keep(self, part: bytes) -> None:
        """One byte above the limit is kept: the control's answer was not that long."""
        self._parts.append(part[: self._left + 1])
        self._left -= len(part)
        if self._left < 0:
            self._end()
            raise _Enough

    def _end(self) -> None:
        self._took_s = perf_counter() - self._began
        self._ended.set()


def _stored_sessions(app: Flask | None) -> str:
    """The name of Flask's session cookie, when sessions live in a store; empty when they are in the cookie itself."""
    if app is None or type(app.session_interface) is SecureCookieSessionInterface:
        return ""
    return app.session_interface.get_cookie_name(app)


def _without_session(headers: tuple[tuple[str, str], ...], cookie: str) -> tuple[tuple[str, str], ...]:
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower == "set-cookie" and value.partition("=")[0].strip() == cookie:
            continue
        if lower == "vary":
            value = ", ".join(part for item in value.split(",") if (part := item.strip()).lower() != "cookie")  # noqa: PLW2901
            if not value:
                continue
        kept.append((name, value))
    return tuple(kept)
