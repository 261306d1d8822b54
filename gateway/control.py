"""The control API under `/_gateway/`: what there is to see, and what an operator may change, for programs.

There only with a token; without one the prefix is a path like any other. The one credential is `Authorization: Bearer`:
no cookie is read, so no other site can make a browser act. What blocks (files, SQLite, locks) runs in threads.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from hmac import compare_digest
from pathlib import Path
from threading import Lock
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import metrics, model
from .audit import Event
from .disk import version_on_disk
from .errors import (
    Blocked,
    ConfigError,
    FlagConflict,
    FlagsReadOnly,
    GatewayError,
    NotPorted,
    NotShared,
    UnknownKey,
)
from .flagfile import PERCENT, printable
from .flags import FlagStore
from .hosts import Hosts
from .orders import Order, Orders
from .settings import Settings
from .views import Views, dumps
from .why import explain_request

PREFIX = b"/_gateway/"
MAX_BODY_BYTES = 65_536
MIN_TOKEN_CHARS = 16
THREADS = 4  # per worker, that read files at once, and as many that wait for locks to change them
METRICS_S = 1.0  # how old an answer of /metrics may be

log = logging.getLogger(__name__)

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_STATUS = {  # of what may go wrong on purpose; the first that fits
    UnknownKey: 404,
    FlagConflict: 409,
    FlagsReadOnly: 409,
    NotShared: 503,
    NotPorted: 422,
    Blocked: 422,
    GatewayError: 400,
}


class Refused(Exception):
    """An answer of 4xx: one sentence, and the values it is about."""

    def __init__(self, status: int, error: str, **details: object) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **details}


@dataclass(frozen=True, slots=True)
class Call:
    """One request, whole."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Headers
    address: str
    body: bytes

    @property
    def who(self) -> str:
        """For the audit trail. Names are claims: the token is everybody's."""
        claim = self.headers.get("x-gateway-user", "")
        return f"api:{self.address}" + (f" who claims to be {printable(claim, 100)!r}" if claim else "")

    @property
    def if_version(self) -> str:
        """The version that `If-Match` names; empty: any."""
        tag = self.headers.get("if-match")
        if tag is None:
            raise Refused(428, 'If-Match is missing: give the version that you have seen, or "*"')
        version = tag.strip().strip('"')
        if not version:
            raise Refused(400, 'If-Match: expected a version, or "*"')
        return "" if tag.strip() == "*" else version

    def asked(self, *names: str) -> Mapping[str, str]:
        """The parameters of the query, which may be no others than `names`."""
        _only(names, self.query, "parameter")
        return self.query

    def values(self, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
        """The members of the body, which may be no others than `kinds`, `why` and `force`."""
        known = {**kinds, "why": str, "force": bool}
        values = _parsed(self.body)
        _only(known, values, "member")
        for name, value in values.items():
            if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool):
                raise Refused(
                    400, f"{name}: expected {_EXPECTED[known[name]]}", key=name, expected=_EXPECTED[known[name]]
                )
        return values

    def order(self, values: Mapping[str, Any], if_version: str = "") -> Order:
        return Order(self.who, values.get("why", ""), if_version, force=values.get("force", False))


class Control:
    """An ASGI application for what it `owns`. `routes` are those of the applications that this worker serves."""

    def __init__(
        self, settings: Settings, flags: FlagStore, routes: Mapping[str, model.Route], hosts: Hosts | None = None
    ) -> None:
        if 0 < len(settings.token) < MIN_TOKEN_CHARS:
            raise ConfigError(f"token: expected at least {MIN_TOKEN_CHARS} characters, not {len(settings.token)}")
        self._token = settings.token.encode()
        self._flags, self._file, self._state = flags, settings.flags, settings.state_dir
        self._views = Views(settings, flags, routes, hosts)
        self._orders = Orders(settings, flags, self._views)
        self._reading, self._changing = CapacityLimiter(THREADS), CapacityLimiter(THREADS)
        self._metrics, self._metrics_at, self._metrics_lock = b"", -METRICS_S, Lock()
        errors: dict[Any, Any] = {HTTPException: _unrouted, Exception: _broken}
        paths = [self._route(path, handlers) for path, handlers in PATHS.items()]
        self._app = Starlette(routes=paths, exception_handlers=errors)
        self._app.router.redirect_slashes = False

    def owns(self, scope: Scope) -> bool:
        """Whether this request is for the API: by the very bytes of its path, so that no other spelling leads here."""
        return bool(self._token) and scope["type"] == "http" and scope.get("raw_path", b"").startswith(PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._admits(scope):
            log.warning("control: no or a wrong token from %s", _address(scope))
            refusal = _answer({"error": "a valid token is needed: Authorization: Bearer …"}, 401)
            refusal.headers["www-authenticate"] = 'Bearer realm="gateway"'
            await refusal(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception:
            log.exception("control: %s %s", scope["method"], printable(scope["path"], 200))

    def _admits(self, scope: Scope) -> bool:
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, token = credentials[0].partition(b" ") if len(credentials) == 1 else (b"", b"", b"")
        return compare_digest(token.strip(), self._token) and kind.lower() == b"bearer"

    def _route(self, path: str, handlers: "Mapping[str, Handler]") -> Route:
        """One path, whose methods are answered in threads."""

        async def endpoint(request: Request) -> Response:
            reads = request.method in ("GET", "HEAD")
            handler = handlers["GET" if reads else request.method]
            try:
                call = Call(
                    path=request.path_params,
                    query=request.query_params,
                    headers=request.headers,
                    address=_address(request.scope),
                    body=await _body(request),
                )
                limiter = self._reading if reads else self._changing
                answer = await to_thread.run_sync(handler, self, call, limiter=limiter)
            except Refused as refused:
                return _answer(refused.body, refused.status)
            except GatewayError as error:
                return self._refusal(error)
            return answer if isinstance(answer, Response) else _answer(answer)

        return Route(path, endpoint, methods=list(handlers))

    def _refusal(self, error: GatewayError) -> Response:
        """A deliberate error as an answer: its sentence, and what a program can do about it."""
        body: dict[str, object] = {"error": printable(str(error), 2000)}
        for name in ("key", "nearest", "expected", "missing", "line"):
            if value := getattr(error, name, None):
                body[name] = value
        if isinstance(error, FlagConflict):
            body["version"] = version_on_disk(Path(self._file))
        return _answer(body, next(status for kind, status in _STATUS.items() if isinstance(error, kind)))

    # --- what there is to see ---

    def get_routes(self, _call: Call) -> object:
        return self._views.routes()

    def get_flags(self, _call: Call) -> Response:
        return self._tagged(self._views.flags())

    def get_flag(self, call: Call) -> Response:
        return self._tagged(self._views.flag(call.path["key"]))

    def get_rollouts(self, _call: Call) -> object:
        return self._views.rollouts()

    def get_rollout(self, call: Call) -> object:
        return self._views.rollouts(self._views.route(call.path["key"]).key)

    def get_verdicts(self, _call: Call) -> object:
        return self._views.verdicts()

    def get_verdict(self, call: Call) -> object:
        return self._views.verdicts(self._views.route(call.path["key"]).key)

    def get_workers(self, _call: Call) -> object:
        return self._views.workers()

    def get_health(self, _call: Call) -> object:
        return self._views.health()

    def get_audit(self, call: Call) -> object:
        query = call.asked("key", "limit", "verify")
        limit, verify = query.get("limit", "100"), query.get("verify", "false")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
            raise Refused(400, "limit: expected a whole number; 0: all", key="limit", expected="a whole number")
        if verify not in ("true", "false"):
            raise Refused(400, "verify: expected true or false", key="verify", expected="true or false")
        events = self._views.audit(query.get("key", ""), int(limit))
        return {"events": events, **(self._views.verify() if verify == "true" else {})}

    def get_request(self, call: Call) -> object:
        try:
            explanation = explain_request(self._state, call.path["request"])
        except GatewayError as error:
            raise Refused(404, printable(str(error))) from None
        return {**explanation.facts, "sentences": explanation.sentences}

    def get_metrics(self, _call: Call) -> Response:
        """At most METRICS_S old: whoever asks more often, or from several places, does not make us read more."""
        with self._metrics_lock:
            if time.monotonic() - self._metrics_at > METRICS_S:
                self._metrics = metrics.render(self._views.facts()).encode()
                self._metrics_at = time.monotonic()
            return Response(self._metrics, headers=_HEADERS, media_type=metrics.CONTENT_TYPE)

    # --- what can be changed ---

    def put_flag(self, call: Call) -> Response:
        key, version = call.path["key"], call.if_version
        values = call.values(weight=_NUMBER, shadow=_NUMBER)
        wanted: dict[str, object] = {name: values[name] for name in ("weight", "shadow") if name in values}
        if not wanted:
            raise Refused(400, "expected weight, shadow or both", key=key, expected="weight, shadow or both")
        events = self._orders.change(key, wanted, call.order(values, version))
        return self._done(*events)

    def put_override(self, call: Call) -> Response:
        """Without If-Match, too: who throws the panic switch does not care what was before."""
        version = call.if_version if "if-match" in call.headers else ""
        values = call.values(override=str)
        return self._done(self._orders.override(values.get("override", ""), call.order(values, version)))

    def undo(self, call: Call) -> Response:
        return self._done(self._orders.undo(call.path["event"], call.order(call.values())))

    def post_rollout(self, call: Call) -> Response:
        values = call.values(action=str, plan=str)
        action, plan = values.get("action", ""), values.get("plan", "")
        return self._done(self._orders.ramp(call.path["key"], action, call.order(values), plan))

    def forget(self, call: Call) -> Response:
        """Delete what the shadows showed of a route, after a fix."""
        return self._done(self._orders.forget(call.path["key"], call.order({})))

    def _done(self, *events: Event) -> Response:
        version = events[-1].version or self._flags.current.version
        return self._tagged({"events": [asdict(event) for event in events], "version": version})

    def _tagged(self, view: Mapping[str, Any]) -> Response:
        answer = _answer(view)
        answer.headers["etag"] = f'"{view.get("version", self._flags.current.version)}"'
        return answer


Handler = Callable[[Control, Call], object]
PATHS: Mapping[str, Mapping[str, Handler]] = {
    "/_gateway/routes": {"GET": Control.get_routes},
    "/_gateway/flags": {"GET": Control.get_flags},
    "/_gateway/flags/{key:path}": {"GET": Control.get_flag, "PUT": Control.put_flag},
    "/_gateway/override": {"PUT": Control.put_override},
    "/_gateway/undo/{event}": {"POST": Control.undo},
    "/_gateway/rollouts": {"GET": Control.get_rollouts},
    "/_gateway/rollouts/{key:path}": {"GET": Control.get_rollout, "POST": Control.post_rollout},
    "/_gateway/verdicts": {"GET": Control.get_verdicts},
    "/_gateway/verdicts/{key:path}": {"GET": Control.get_verdict, "DELETE": Control.forget},
    "/_gateway/audit": {"GET": Control.get_audit},
    "/_gateway/workers": {"GET": Control.get_workers},
    "/_gateway/why/{request:path}": {"GET": Control.get_request},
    "/_gateway/health": {"GET": Control.get_health},
    "/_gateway/metrics": {"GET": Control.get_metrics},
}
_NUMBER = (int, float)
_EXPECTED: Mapping[Any, str] = {str: "a text", bool: "true or false", _NUMBER: PERCENT}


def _answer(value: object, status: int = 200) -> Response:
    return Response(dumps(value) + "\n", status, _HEADERS, "application/json")


def _unrouted(_request: Request, error: HTTPException) -> Response:
    """404 and 405."""
    answer = _answer({"error": "no such thing in the control API" if error.status_code == 404 else error.detail})
    answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer


def _broken(_request: Request, _error: Exception) -> Response:
    return _answer({"error": "the gateway failed; its log says why"}, 500)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"


async def _body(request: Request) -> bytes:
    """The whole body, if it is not too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    return body


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; none is an empty one."""
    try:
        value = json.loads(body.decode() or "{}", object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {printable(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a member is given twice")
    return values


def _only(known: Collection[str], given: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name[:200], known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            details = {"nearest": near[0]} if near else {}
            raise Refused(400, f"unknown {what} {printable(name, 100)!r}{hint}", key=printable(name, 100), **details)
