"""A pair of applications whose port misbehaves in every way that there is, for tests of what replays it.

Paths are relative to the working directory: what happened inside is appended to `events`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import jwt
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from flask import Flask, Response, jsonify, request, session
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.datastructures import CallbackDict

MIB = 1_048_576
SECRET = "b5d1f0a7c3e94826917fe0d2a4c6b8935e7d"
IDENTITY = {
    "GATEWAY_IDENTITY_CLAIMS": "user_id=sub",
    "GATEWAY_IDENTITY_ISSUER": "tests",
    "GATEWAY_IDENTITY_AUDIENCE": "tests",
}

_numbers = count()


class Line(JSONResponse):
    """JSON as Flask spells it."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


def note(event: str) -> None:
    with Path("events").open("a") as file:
        file.write(f"{event}\n")


def make_legacy() -> Flask:
    app = Flask("candidates", static_folder=None)
    app.secret_key = SECRET
    names = ["same", "other", "raises", "exits", "dies", "forever", "deaf", "sleeps", "endless"]
    for name in [*names, "huge", "memory", "leaks", "background", "task_exits"]:
        app.add_url_rule(f"/{name}", name, lambda: jsonify(value=1))

    @app.get("/clock")
    def clock() -> Response:
        return jsonify(value=next(_numbers))

    @app.get("/me")
    def me() -> Response:
        note("legacy was asked for me")
        return jsonify(me=session.get("user_id"))

    @app.get("/sign-in")
    def sign_in() -> Response:
        session["user_id"] = 7
        return jsonify(me=7)

    @app.get("/hangs")
    def hangs() -> Response:
        if "wait" in request.args:
            time.sleep(float(request.args["wait"]))
        return jsonify(value=1)

    @app.get("/stream")
    def stream() -> Response:
        def events() -> Iterator[bytes]:
            yield b"data: 1\n\n"

        return Response(events(), mimetype="text/event-stream")

    @app.post("/write")
    def write() -> Response:
        return jsonify(value=len(request.get_data()))

    @app.get("/large")
    def large() -> Response:
        return Response(b"x" * int(request.args["bytes"]), mimetype="application/octet-stream")

    return app


class StoredSessions(SessionInterface):
    """Sessions in a store, as an extension would keep them; every answer writes there and sets the cookie again."""

    class Session(CallbackDict[str, Any], SessionMixin):
        pass

    def open_session(self, app: Flask, request: Any) -> SessionMixin:
        return self.Session({"user_id": 7} if request.cookies.get("session") == "stored" else {})

    def save_session(self, app: Flask, session: SessionMixin, response: Any) -> None:
        note("store written")
        response.vary.add("Cookie")
        response.set_cookie("session", "stored")


def make_legacy_with_store() -> Flask:
    app = make_legacy()
    app.session_interface = StoredSessions()
    return app


def make_port() -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"greeting": "hello"}

    app = FastAPI(lifespan=lifespan, default_response_class=Line)
    kept: list[bytes] = []

    @app.get("/same", name="same")
    async def same(request: Request) -> dict[str, int]:
        note(f"{os.getpid()} same")
        assert request.state.greeting == "hello"
        assert request.scope["extensions"]["gateway"] == {"shadow": True}
        return {"value": 1}

    @app.api_route("/other", methods=["GET", "HEAD"], name="other")
    async def other() -> dict[str, int]:
        return {"value": 2}

    @app.get("/clock", name="clock")
    async def clock() -> dict[str, int]:
        return {"value": next(_numbers)}

    @app.get("/me", name="me")
    async def me(request: Request) -> dict[str, Any]:
        note("the port was asked for me")
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        claims = jwt.decode(token, SECRET, ["HS256"], audience="tests", issuer="tests") if kind else {}
        return {"me": int(claims["sub"]) if claims else None}

    @app.get("/raises", name="raises")
    async def raises() -> None:
        raise LookupError("a secret")

    @app.get("/exits", name="exits")
    async def exits() -> None:
        sys.exit(3)

    @app.get("/task_exits", name="task_exits")
    async def task_exits() -> None:
        async def leave() -> None:
            sys.exit(3)

        await asyncio.create_task(leave())

    @app.get("/dies", name="dies")
    async def dies() -> None:
        note(f"{os.getpid()} dies")
        os._exit(1)

    @app.get("/forever", name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    @app.get("/deaf", name="deaf")
    async def deaf() -> None:
        while not Path("enough").exists():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    @app.get("/sleeps", name="sleeps")
    async def sleeps() -> None:
        note(f"{os.getpid()} sleeps")
        time.sleep(60)

    @app.get("/endless", name="endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536
                await asyncio.sleep(0)

        return StreamingResponse(chunks(), media_type="application/json")

    @app.get("/huge", name="huge")
    async def huge() -> JSONResponse:
        return JSONResponse("x" * 3 * MIB)

    @app.get("/memory", name="memory")
    async def memory() -> dict[str, int]:
        return {"value": len(bytearray(1024 * MIB))}

    @app.get("/leaks", name="leaks")
    async def leaks() -> dict[str, int]:
        kept.append(bytes(200 * MIB))
        return {"value": 1}

    @app.get("/background", name="background")
    async def background() -> JSONResponse:
        from starlette.background import BackgroundTask

        async def fail() -> None:
            raise LookupError

        return Line({"value": 1}, background=BackgroundTask(fail))

    @app.get("/hangs", name="hangs")
    async def hangs() -> dict[str, int]:
        return {"value": 1}

    @app.get("/stream", name="stream")
    async def stream() -> dict[str, int]:
        return {"value": 1}

    @app.get("/large", name="large")
    async def large() -> dict[str, int]:
        return {"value": 1}

    @app.post("/write", name="write")
    async def write() -> dict[str, int]:
        note("written")
        return {"value": 1}

    return app
