"""Flask's sessions outside a request, through the application's own `SessionInterface`.

That is anybody's code, and often a client of a store: it may block, raise or hang. Then nobody is signed in.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from io import BytesIO
from queue import SimpleQueue
from typing import Any, TypeVar

from flask import Flask
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionInterface, SessionMixin
from itsdangerous.encoding import base64_decode, bytes_to_int
from starlette.types import Scope
from werkzeug.http import parse_cookie

from .cache import Cache
from .claims import ClaimMap, Claims
from .cookies import Header, is_secure, set_cookies

log = logging.getLogger("gateway")

T = TypeVar("T")

BELIEVED_S = 30.0  # for how long a verified session of Flask's own is believed without looking again
FORGED_S = 300.0  # for how long one forged session serves the same token
STORE_TIMEOUT_S = 2.0
STORE_THREADS = 8
STORE_QUEUE = 256


class Sessions:
    """The sessions of one Flask application. What is below `work` may block and raise: it is handed to `ask`."""

    def __init__(self, app: Flask, claims: ClaimMap) -> None:
        self._app, self._claims = app, claims
        # Anything but Flask's own signed cookies may talk to a store.
        self.blocks = type(app.session_interface) is not SecureCookieSessionInterface
        self.cookie_name = app.session_interface.get_cookie_name(app)
        self._lifetime_s = app.permanent_session_lifetime.total_seconds()
        # The lifetime matters to permanent sessions only: who sets one makes sessions permanent.
        sliding = app.permanent_session_lifetime != timedelta(days=31)
        self._permanent = bool(app.config.get("SESSION_PERMANENT", sliding))
        self._known: Cache[str, tuple[SessionMixin, Claims | None]] = Cache(4096)
        self._slid: Cache[tuple[str, str, int], list[Header]] = Cache(1024)
        self._forged: Cache[str, str] = Cache(1024)
        self._forging: dict[str, asyncio.Task[str | None]] = {}
        self._threads = _Threads(STORE_THREADS, STORE_QUEUE)
        self._reported: set[str] = set()

    async def ask(self, work: Callable[..., T], *args: Any, failed: T | None = None) -> T | None:
        """`work(*args)`, in a thread where it may block; `failed` when it raises or takes too long."""
        try:
            if not self.blocks:
                return work(*args)
            return await self._threads.call(self._in_app_context, work, args, timeout_s=STORE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  # hostile cookies, anybody's store; then nobody is signed in
            self._report(work, error)
            return failed

    def _in_app_context(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self._app.app_context():
            return work(*args)

    def _report(self, work: Callable[..., Any], error: Exception) -> None:
        kind = f"{work.__name__}: {type(error).__name__}"
        if kind not in self._reported:
            self._reported.add(kind)
            log.error("identity: a session could not be used (%s); told once", kind, exc_info=error)

    async def cookie_for(self, token: str, claims: Claims, scope: Scope) -> str | None:
        """The value of a session cookie for the bearer of `token`; requests that come together share one."""
        known = self._forged.get(token)
        if known and not self.blocks:
            return known
        flight = self._forging.get(token)
        if flight is None:
            work = self.ask(self.forge, scope, claims, known or "")
            flight = self._forging[token] = asyncio.ensure_future(work)
            flight.add_done_callback(lambda _: self._forging.pop(token, None))
        value = await asyncio.shield(flight)
        if value is not None and value != known:
            self._forged.put(token, value, min(FORGED_S, self._lifetime_s / 2))
        return value

    # --- work

    def read(self, scope: Scope, cookie: bytes) -> Claims | None:
        """Whom the session of a Cookie header names."""
        return self._open(scope, cookie)[1]

    def begin(self, scope: Scope, claims: Claims, vary: str) -> list[Header]:
        """Sign in: a new session, whatever session there was before."""
        session, _ = self._load(scope, b"")
        self._claims.put(claims, session)
        session.permanent = self._permanent
        return self._save(session, vary)

    def end(self, scope: Scope, cookie: bytes, vary: str) -> list[Header]:
        """Sign out."""
        session, _ = self._load(scope, cookie)
        session.clear()
        return self._save(session, vary)

    def expire(self, vary: str) -> list[Header]:
        """Take the cookie away without asking any store."""
        session = SecureCookieSession({"": 0})
        session.clear()
        return self._save(session, vary, SecureCookieSessionInterface())

    def refresh(self, scope: Scope, cookie: bytes, vary: str) -> list[Header] | None:
        """What Flask adds to an answer whose view read the session; None when nobody is signed in any more."""
        key = (self._value(cookie), vary, int(time.time()))
        saved = None if self.blocks else self._slid.get(key)  # signature and Expires change with the second
        if saved is None:
            session, claims = self._open(scope, cookie)
            if claims is None:
                return None
            session.accessed = True
            saved = self._save(session, vary)
            if not self.blocks:
                self._slid.put(key, saved, 1.0)
        return saved

    def forge(self, scope: Scope, claims: Claims, known: str) -> str:
        """The value of a session cookie that names `claims`: `known` as long as its store agrees, else a new one."""
        if known and self.read(scope, f"{self.cookie_name}={known}".encode("latin-1")) == claims:
            return known
        for cookie in reversed(set_cookies(self.begin(scope, claims, ""))):
            if cookie.name == self.cookie_name:
                return cookie.raw
        raise LookupError("the session interface sets no session cookie")

    def _open(self, scope: Scope, cookie: bytes) -> tuple[SessionMixin, Claims | None]:
        """The session of a Cookie header; Flask's own are remembered for a while, never beyond their expiry."""
        if self.blocks:
            return self._load(scope, cookie)
        value = self._value(cookie)
        known = self._known.get(value)
        if known is None:
            known = self._load(scope, cookie)
            if known[0]:  # empty: it did not verify
                signed_at = bytes_to_int(base64_decode(value.rsplit(".", 2)[1]))
                self._known.put(value, known, min(BELIEVED_S, signed_at + int(self._lifetime_s) - time.time()))
        return known

    def _load(self, scope: Scope, cookie: bytes) -> tuple[SessionMixin, Claims | None]:
        request = self._app.request_class(_environ(scope, cookie))
        session = self._app.session_interface.open_session(self._app, request)
        if session is None:
            raise LookupError("the session interface opens no session")
        return session, self._claims.of_session(session)

    def _save(self, session: SessionMixin, vary: str, interface: SessionInterface | None = None) -> list[Header]:
        """Set-Cookie and Vary of an answer that had this Vary before."""
        response = self._app.response_class()
        if vary:
            response.headers["Vary"] = vary
        (interface or self._app.session_interface).save_session(self._app, session, response)
        names = ("vary", "set-cookie")
        return [(name.encode(), line.encode("latin-1")) for name in names for line in response.headers.getlist(name)]

    def _value(self, cookie: bytes) -> str:
        """The session cookie, read as Flask reads it."""
        return parse_cookie(cookie.decode("latin-1")).get(self.cookie_name, "")


def _environ(scope: Scope, cookie: bytes) -> dict[str, Any]:
    """What a session interface may want to know of a request: everything but its body."""
    host, port = scope.get("server") or ("localhost", 80)
    environ = {
        "REQUEST_METHOD": scope.get("method", "GET"),
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if is_secure(scope) else "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" not in name and name not in (b"content-type", b"content-length"):
            key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ | {"HTTP_COOKIE": cookie.decode("latin-1")}


class _Threads:
    """A few threads for session stores that block. They are daemons: a store that hangs keeps no process alive."""

    def __init__(self, count: int, queue: int) -> None:
        self._count, self._queue, self._started = count, queue, 0
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()

    async def call(self, work: Callable[..., T], *args: Any, timeout_s: float) -> T:
        """`work(*args)` in a thread. Raises TimeoutError when it takes too long or too many are waiting."""
        if self._jobs.qsize() >= self._queue:
            raise TimeoutError("too many session look-ups are waiting")
        future: Future[T] = Future()
        self._jobs.put((future, work, args))
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"gateway-session-{self._started}", daemon=True).start()
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)

    def _run(self) -> None:
        while True:
            future, work, args = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(*args))
            except BaseException as error:  # noqa: BLE001  # belongs to whoever waits
                future.set_exception(error)
            del future, work, args
