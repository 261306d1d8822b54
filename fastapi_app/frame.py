"""What surrounds every request: the session cookie, security headers, the answer to errors and to unknown paths."""

import logging
import re
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .cookies import read_cookie
from .db import DatabaseUnavailable
from .http import ApiError, error_page, json_response, redirect
from .identity import host_of
from .sessions import COOKIE, SessionCookie

log = logging.getLogger("fastapi_app")

_SAFE = "!$&'()*+,/:;=@"  # in a path

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: https:; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")


class Frame:
    """The outermost layer: opens the session, completes the headers, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, cookie: SessionCookie, *, secure: bool) -> None:
        self._app, self._cookie, self._secure = app, cookie, secure
        self._headers = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _in_one_sentence(scope["app"], send))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        session = scope["session"] = self._cookie.read(read_cookie(Request(scope), COOKIE))
        headers_only = scope["method"] == "HEAD"
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name for name, _ in message["headers"]}
                extra = [header for header in self._headers if header[0] not in given]
                if self._secure or scope["scheme"] == "https":
                    extra.append(STRICT_TRANSPORT)
                message = {**message, "headers": [*message["headers"], *extra, *self._cookie.headers(session)]}
            elif headers_only and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            if started:
                raise
            log.exception("%s %s", scope["method"], scope["path"])
            await json_response({"error": "Internal server error"}, 500)(scope, receive, answer)


def _in_one_sentence(app: FastAPI, send: Send) -> Send:
    """Say why the application does not start without a traceback."""

    async def tell(message: Message) -> None:
        refusal = getattr(app.state, "refusal", "")
        await send({**message, "message": refusal} if refusal else message)

    return tell


def handle_errors(app: FastAPI) -> None:
    """Replace every handler that would answer in FastAPI's own words."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)
    for unavailable in (OperationalError, InterfaceError, PoolTimeout, DatabaseUnavailable):
        app.add_exception_handler(unavailable, _on_database_error)


async def _on_api_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error.response()


async def _on_database_error(_request: Request, error: Exception) -> Response:
    log.error("database: %s", type(error).__name__, exc_info=error)  # its text may hold values
    return json_response({"error": "The database is not available"}, 503)


async def _on_bad_parameter(_request: Request, _error: Exception) -> Response:
    return json_response({"error": "Bad request"}, 400)


async def _on_http_error(request: Request, _error: Exception) -> Response:
    """404, or 405 raised by the first route of that path."""
    return _miss(request)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The router's answer for a path that no route has."""
    await _miss(Request(scope))(scope, receive, send)


def _miss(request: Request) -> Response:
    """A redirect when a slash more, or fewer in a row, makes a route of it; else 405, 404, or the answer to OPTIONS.

    As in Flask, the method decides whether there is something to redirect to.
    """
    path, method = request.scope["path"], request.method
    merged = re.sub("/{2,}", "/", path)
    allowed = _methods(request, path)
    for other in (f"{path}/", merged, f"{merged}/"):
        if other != path and method not in allowed and method in _methods(request, other):
            return redirect(_same_query(request, other), 308)
    allowed = allowed or _methods(request, merged)
    if not allowed:
        return error_page(404)
    headers = {"allow": ", ".join(sorted(allowed))}
    if method == "OPTIONS":
        return Response(b"", 200, headers, media_type="text/html")
    return error_page(405, headers)


def _methods(request: Request, path: str) -> set[str]:
    """What may be done with this path; nothing when no route has it."""
    asked = {**request.scope, "path": path}
    found: set[str] = set()
    for context in iter_route_contexts(request.app.router.routes):
        if context.matches(asked)[0] is not Match.NONE:
            found |= {*(context.methods or ()), "OPTIONS"}
    return found


def _same_query(request: Request, path: str) -> str:
    asked = request.scope["query_string"].decode("latin-1")
    address = f"{request.scope['scheme']}://{host_of(request)}{quote(path, safe=_SAFE)}"
    return f"{address}?{asked}" if asked else address
