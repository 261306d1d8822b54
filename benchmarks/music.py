"""The reference application with one route more: it shows 50 artists that were read long ago, and asks no database."""

from typing import Any

from fastapi import FastAPI
from flask import Flask
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

import fastapi_app
import fastapi_app.artists
import fastapi_app.db
import fastapi_app.http
import fastapi_app.models
import legacy_flask
import legacy_flask.artists
import legacy_flask.db
import legacy_flask.http
import legacy_flask.models

ROWS = 50


def make_flask() -> Flask:
    app = legacy_flask.create_app()
    with app.app_context():
        artists = legacy_flask.db.get_session().scalars(select(legacy_flask.models.Artist).limit(ROWS)).all()

    @app.get("/page")
    def page() -> Any:
        rows = [legacy_flask.artists.artist_json(artist, 3) for artist in artists]
        return legacy_flask.http.paged("artists", rows, 2000, 1, ROWS)

    return app


def make_port() -> FastAPI:
    app = fastapi_app.create_app()
    kept: list[Any] = []

    @app.get("/page")
    async def page(request: Request) -> Response:
        if not kept:
            found = fastapi_app.artists.filtered("", None, None).limit(ROWS)
            kept[:] = (await fastapi_app.db.Db(request.app.state.database).execute(found)).all()
        return fastapi_app.http.paged("artists", fastapi_app.artists.artists_json(kept), 2000, 1, ROWS)

    return app
