"""In front of all services: the dials that make them misbehave, and the log of the calls they got."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Dials = Mapping[str, Any]
KEPT = 10_000  # calls
HUGE = 32 << 20  # bytes of a body without end; clients give up long before
_BLOCK = b" " * 65_536


class Service(NamedTuple):
    """`error` makes the body with which this service reports a status or a code of its own."""

    app: ASGIApp
    error: Callable[[int], Any]


class Control:
    """An ASGI application: `/<service>/…` goes to that service, `/_dials` and `/_calls` stay here."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self.dials: dict[str, dict[str, Any]] = {}
        self.calls: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def set_dials(self, dials: Mapping[str, Dials]) -> None:
        """Replace all dials. Raises ValueError for a service or a dial that does not exist."""
        unknown = [name for name in dials if name not in self._services]
        unknown += [f"{name}.{dial}" for name, given in dials.items() for dial in given if dial not in DIALS]
        if unknown:
            raise ValueError(f"no such dial: {', '.join(unknown)}")
        self.dials = {name: dict(given) for name, given in dials.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        name, _, rest = scope["path"].removeprefix("/").partition("/")
        if name in ("_dials", "_calls"):
            answer: ASGIApp = await self._controlled(name, request)
            await answer(scope, receive, send)
        elif name in self._services:
            await self._serve(name, f"/{rest}", request, send)
        else:
            await JSONResponse({"services": sorted(self._services)})(scope, receive, send)

    async def _controlled(self, name: str, request: Request) -> Response:
        if name == "_dials" and request.method == "PUT":
            try:
                self.set_dials(await request.json())
            except ValueError as error:
                return PlainTextResponse(f"{error}\n", 400)
        elif name == "_calls" and request.method == "DELETE":
            self.calls.clear()
        return JSONResponse(self.dials if name == "_dials" else list(self.calls))

    async def _serve(self, name: str, path: str, request: Request, send: Send) -> None:
        body = await request.body()
        self.calls.append(
            {
                "service": name,
                "method": request.method,
                "path": path,
                "query": dict(parse_qsl(request.url.query, keep_blank_values=True)),
                "headers": dict(request.headers),
                "body": body.decode(errors="replace"),
            }
        )
        service = self._services[name]
        dials = self.dials.get(name, {})
        if dials.get("only", "") not in f"{path}?{request.url.query}":
            dials = {}
        scope = {**request.scope, "path": path, "raw_path": path.encode(), "root_path": ""}
        if dials.get("latency_s"):
            await asyncio.sleep(dials["latency_s"])
        if dials.get("down"):
            await _hang_up(request.receive, send)
            return
        answer = _instead(service, dials) or _changed(await _asked(service.app, scope, body), dials)
        if dials.get("slow_body_s"):
            send = _slowly(send, dials["slow_body_s"])
        await answer(scope, request.receive, send)


def _instead(service: Service, dials: dict[str, Any]) -> Response | None:
    """What is answered without asking the service."""
    if dials.get("quota"):
        return JSONResponse(service.error(QUOTA), 403)
    if dials.get("fail_first", 1) > 0 and ("fail_first" in dials or "status" in dials):
        if "fail_first" in dials:
            dials["fail_first"] -= 1
        status = dials.get("status", 503)
        headers = {"Retry-After": str(dials["retry_after"])} if "retry_after" in dials else None
        return JSONResponse(service.error(status), status, headers)
    if dials.get("error_in_200"):
        code = dials["error_in_200"]
        return JSONResponse(service.error(500 if code is True else code))
    if dials.get("redirect"):
        return RedirectResponse(dials["redirect"], 302)
    if dials.get("malformed"):
        return Response(b'{"items": [{"id": "abc", <html>', media_type="application/json")
    if dials.get("empty"):
        return Response(b"", media_type="application/json")
    if dials.get("huge_body"):
        return StreamingResponse(_huge(), media_type="application/json")
    return None


QUOTA = -1  # the code of a used-up quota, for `Service.error`
DIALS = (
    *("latency_s", "down", "status", "retry_after", "fail_first", "quota", "error_in_200", "redirect", "malformed"),
    *("empty", "huge_body", "wrong_types", "wrong_shape", "slow_body_s", "only"),
)


async def _asked(app: ASGIApp, scope: Scope, body: bytes) -> Response:
    """The whole answer of a service."""
    start: Message = {}
    parts: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    answer = Response(b"".join(parts), start["status"])
    answer.raw_headers = list(start["headers"])
    return answer


def _changed(answer: Response, dials: Dials) -> Response:
    if answer.status_code != 200 or not (dials.get("wrong_types") or dials.get("wrong_shape")):
        return answer
    content = json.loads(bytes(answer.body))
    return JSONResponse([content] if dials.get("wrong_shape") else twisted(content))


def twisted(value: Any) -> Any:
    """The same shape; every leaf has another type."""
    match value:
        case dict():
            return {key: twisted(inner) for key, inner in value.items()}
        case list():
            return [twisted(inner) for inner in value]
        case str():
            return len(value)
        case bool() | int() | float():
            return {"value": value}
        case _:
            return []


async def _huge() -> AsyncIterator[bytes]:
    """JSON, in case somebody reads to its end."""
    for _ in range(HUGE // len(_BLOCK)):
        yield _BLOCK
    yield b"{}"


def _slowly(send: Send, seconds: float) -> Send:
    """Half of the body, and after `seconds` the other half."""

    async def slow(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and len(body) > 1:
            await send({**message, "body": body[: len(body) // 2], "more_body": True})
            await asyncio.sleep(seconds)
            message = {**message, "body": body[len(body) // 2 :]}
        await send(message)

    return slow


async def _hang_up(receive: Receive, send: Send) -> None:
    """ASGI has no word for closing a connection without an answer; uvicorn's transport has."""
    cycle: Any = getattr(send, "__self__", None)
    cycle.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
