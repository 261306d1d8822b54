"""The same small application in Flask and in FastAPI, with as many routes as `BENCH_ROUTES` says."""

import os
from collections.abc import Iterator

from a2wsgi import WSGIMiddleware
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from flask import Flask, Response, jsonify, request

ROUTES = int(os.environ.get("BENCH_ROUTES", "200"))
THREADS = int(os.environ.get("BENCH_THREADS", "16"))
CHUNK = b"x" * 16_384


def path(number: int, parameter: str) -> str:
    """Half of the routes have a parameter, as in real applications."""
    return f"/api/resource{number}/items/{parameter}" if number % 2 else f"/api/resource{number}/items"


def make_flask() -> Flask:
    app = Flask("bench")

    def item(item_id: int = 0) -> Response:
        return jsonify(id=item_id, name="a name", tags=["one", "two"], active=True)

    for number in range(ROUTES):
        app.add_url_rule(path(number, "<int:item_id>"), f"resource{number}.get", item)

    @app.get("/breakable")
    def breakable() -> Response:
        return jsonify(well=True)

    @app.post("/echo")
    def echo() -> Response:
        return jsonify(length=len(request.get_data()))

    @app.get("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[bytes]:
            for _ in range(64):
                yield CHUNK

        return Response(chunks(), mimetype="application/octet-stream")

    @app.post("/upload")
    def upload() -> Response:
        length = 0
        while chunk := request.stream.read(65_536):
            length += len(chunk)
        return jsonify(length=length)

    return app


def make_fastapi() -> FastAPI:
    app = FastAPI()

    async def item(item_id: int = 0) -> JSONResponse:
        return JSONResponse({"id": item_id, "name": "a name", "tags": ["one", "two"], "active": True})

    async def items() -> JSONResponse:
        return await item()

    for number in range(ROUTES):
        app.get(path(number, "{item_id}"), name=f"resource{number}.get")(item if number % 2 else items)

    @app.get("/breakable", name="breakable")
    async def breakable() -> JSONResponse:
        return JSONResponse({"well": False}, 500)

    return app


def make_a2wsgi() -> WSGIMiddleware:
    """What a team has today when it mounts its Flask application on an ASGI server."""
    return WSGIMiddleware(make_flask(), workers=THREADS)
