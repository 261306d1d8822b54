"""A small shop on both sides whose port can be broken while it runs: the file `fault` says how.

Paths are relative to the working directory of the server.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from flask import Flask, Response, jsonify, request

FAULTS = ("fail", "slow", "field", "leak", "hang")
WORK_S = 0.01  # what an answer takes on either side

_kept: list[bytearray] = []


def break_port(directory: Path, fault: str) -> None:
    """Let the port of `item` and `order` misbehave from now on; an empty fault heals it."""
    fresh = directory / "fault.new"
    fresh.write_text(fault)
    fresh.replace(directory / "fault")


def fault() -> str:
    try:
        return Path("fault").read_text()
    except FileNotFoundError:
        return ""


def item(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"item {number}", "price": "1.10", "seen_at": time.time_ns()}


def make_legacy() -> Flask:
    app = Flask("shop")

    @app.get("/items/<int:number>", endpoint="item")
    def read_item(number: int) -> Response:
        time.sleep(WORK_S)
        return jsonify(item(number))

    @app.post("/orders", endpoint="order")
    def order() -> Response:
        time.sleep(WORK_S)
        return jsonify(ordered=request.get_json()["item"])

    @app.get("/others/<int:number>", endpoint="other")
    def other(number: int) -> Response:
        return jsonify(item(number))

    return app


def make_port() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{number}", name="item")
    async def read_item(number: int) -> JSONResponse:
        await misbehave()
        return JSONResponse(item(number) | ({"price": 1.1} if fault() == "field" else {}))

    @app.post("/orders", name="order")
    async def order(request: Request) -> JSONResponse:
        await misbehave()
        return JSONResponse({"ordered": (await request.json())["item"]})

    @app.get("/others/{number}", name="other")
    async def other(number: int) -> JSONResponse:
        return JSONResponse(item(number))

    return app


async def misbehave() -> None:
    now = fault()
    await asyncio.sleep(3 * WORK_S if now == "slow" else WORK_S)
    if now == "fail" and random.random() < 0.2:
        raise HTTPException(500)
    if now == "leak":
        _kept.append(bytearray(2_000_000))
    if now == "hang":
        await asyncio.sleep(3600)
