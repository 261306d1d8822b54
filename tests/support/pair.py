"""Two small applications that say which one answered, for tests of a running gateway.

Paths are relative to the working directory of the server: what happened inside is appended to `events`.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from flask import Flask, Response, jsonify, request


def note(event: str) -> None:
    with Path("events").open("a") as file:
        file.write(f"{event}\n")


def make_legacy() -> Flask:
    app = Flask("pair")

    @app.get("/who")
    def who() -> Response:
        return jsonify(by="legacy", pid=os.getpid())

    @app.get("/only-legacy")
    def only_legacy() -> Response:
        return jsonify(by="legacy", pid=os.getpid())

    @app.get("/slow")
    def slow() -> Response:
        note("slow began")
        time.sleep(float(request.args["s"]))
        return jsonify(by="legacy", pid=os.getpid())

    @app.get("/held")
    def held() -> Response:
        note("held began")
        while not Path("release").exists():
            time.sleep(0.01)
        return jsonify(by="legacy", pid=os.getpid())

    @app.get("/endless")
    def endless() -> Response:
        def chunks() -> Iterator[bytes]:
            note("stream opened")
            try:
                while True:
                    time.sleep(0.01)
                    yield b"x" * 1000
            finally:
                note("stream closed")

        return Response(chunks(), mimetype="application/octet-stream")

    @app.post("/digest")
    def digest() -> Response:
        seen, length = hashlib.sha256(), 0
        try:
            while chunk := request.stream.read(1_048_576):
                seen.update(chunk)
                length += len(chunk)
        except Exception as error:
            note(f"upload failed: {type(error).__name__}")
            raise
        note(f"upload complete: {length}")
        return jsonify(sha256=seen.hexdigest(), length=length)

    return app


def make_port() -> FastAPI:
    app = FastAPI()

    @app.get("/who", name="who")
    async def who() -> JSONResponse:
        return JSONResponse({"by": "fastapi", "pid": os.getpid()})

    return app


def make_mismatched_port() -> FastAPI:
    """Names a route of legacy and gives it another path."""
    app = FastAPI()

    @app.get("/who/{name}", name="who")
    async def who(name: str) -> str:
        return name

    return app


def raising_factory() -> Flask:
    raise RuntimeError("no licence file")
