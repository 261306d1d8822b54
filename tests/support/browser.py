"""A browser in front of the identity bridge, with an application on either side and both kinds of sessions."""

import asyncio
import json
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import jwt
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from flask import Flask, jsonify, session
from flask.sessions import SessionInterface, SessionMixin

from gateway.identity import Identity, IdentityBridge
from gateway.model import Backend
from gateway.settings import IdentitySettings, Settings
from tests.support.asgi import Header, ask, http_scope

KEY = "6f1c7e0b9a5d4e2f8c3b7a1d0e9f5c4b2a8d6e3f"
OWN = b"\x13" * 7 + b"the gateway's own key, 32 bytes"
IDENTITY = IdentitySettings(
    claims={"user_id": "sub", "session_token": "sid"},
    issuer="music",
    audience="music-api",
    token_cookie="access_token",
)
SETTINGS = Settings(identity=IDENTITY)


class StoredSession(dict[str, Any], SessionMixin):
    sid = ""


class FileSessions(SessionInterface):
    """Sessions as one file each, on a slow disk; only the number travels in the cookie."""

    def __init__(self, directory: Path, delay_s: float = 0.002) -> None:
        self.directory, self.delay_s = directory, delay_s
        self.threads: set[int] = set()

    def _path(self, sid: str) -> Path:
        return self.directory / re.sub("[^0-9a-f]", "_", sid)

    def open_session(self, app: Flask, request: Any) -> StoredSession:
        assert app.config["STORE"] == "files"
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s)
        stored = StoredSession()
        sid = request.cookies.get(self.get_cookie_name(app), "")
        if sid and self._path(sid).exists():
            stored.update(json.loads(self._path(sid).read_text()))
            stored.sid = sid
        return stored

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        time.sleep(self.delay_s)
        name, path = self.get_cookie_name(app), self.get_cookie_path(app)
        if not session:
            if session.sid:
                self._path(session.sid).unlink(missing_ok=True)
                response.delete_cookie(name, path=path)
            return
        session.sid = session.sid or secrets.token_hex(16)
        self._path(session.sid).write_text(json.dumps(session))
        expires = self.get_expiration_time(app, session)
        response.set_cookie(name, session.sid, expires=expires, path=path, httponly=True)
        response.vary.add("Cookie")


def legacy_app(**config: Any) -> Flask:
    app = Flask("legacy")
    app.secret_key = KEY
    app.config.update(PERMANENT_SESSION_LIFETIME=3600, STORE="files", **config)

    @app.get("/login/<int:user>")
    def login(user: int) -> str:
        session.clear()
        session.permanent = True
        session["user_id"], session["session_token"] = user, f"token-{user}"
        return "in"

    @app.get("/logout")
    def logout() -> str:
        session.clear()
        return "out"

    @app.get("/forget")
    def forget() -> str:
        session.pop("user_id", None)
        session["flash"] = "bye"
        return "out"

    @app.get("/cart")
    def cart() -> str:
        session["cart"] = [1, 2]
        return "in the cart"

    @app.get("/me")
    def me() -> Any:
        return jsonify(user=session.get("user_id"), kind=type(session.get("user_id")).__name__, keys=sorted(session))

    return app


def port_app() -> FastAPI:
    app = FastAPI()

    @app.get("/me")
    async def me(request: Request) -> Any:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get("access_token", "")
        try:
            claims = jwt.decode(token, KEY, ["HS256"], issuer="music", audience="music-api")
        except jwt.PyJWTError:
            return JSONResponse({"user": None}, 401)
        return {"user": claims["sub"], "sid": claims["sid"]}

    @app.get("/login/{user}")
    async def login(user: int, response: Response) -> str:
        response.set_cookie("access_token", token_of(user), httponly=True)
        return "in"

    @app.get("/logout")
    async def logout(response: Response) -> str:
        response.delete_cookie("access_token")
        return "out"

    return app


def token_of(user: int | str, key: str | bytes = KEY, typ: str | None = "at+jwt", **claims: Any) -> str:
    now = int(time.time())
    payload = {"sub": str(user), "sid": f"token-{user}", "iss": "music", "aud": "music-api", "exp": now + 900}
    payload = {name: value for name, value in (payload | claims).items() if value is not None}
    return jwt.encode(payload, key, "HS256", {"typ": typ})


PORT = port_app()


class Browser:
    """Keeps cookies and goes through the bridge, to the side it is told to."""

    def __init__(self, legacy: Flask, identity: IdentitySettings = IDENTITY, scheme: str = "http") -> None:
        self.legacy, self.scheme = legacy, scheme
        self.bridge = IdentityBridge(legacy, Settings(identity=identity), OWN)
        self.jar: dict[str, str] = {}
        self.answered: list[Header] = []
        self.presented: dict[str, Any] = {}
        self.who: Identity | None = None

    async def get(self, side: Backend, path: str, *headers: Header, method: str = "GET") -> Any:
        cookie = [("cookie", "; ".join(f"{k}={v}" for k, v in self.jar.items()))] if self.jar else []
        scope = http_scope(method, path, [*cookie, *headers], scheme=self.scheme)
        self.who = who = await self.bridge.identify(scope)
        self.presented = presented = dict(await self.bridge.present(scope, who, side))
        sent = [(name.decode(), value.decode("latin-1")) for name, value in presented["headers"]]
        if side is Backend.LEGACY:
            client = self.legacy.test_client(use_cookies=False)
            got = await asyncio.to_thread(client.open, path, method=method, headers=sent)
            status, answered, body = got.status_code, list(got.headers), got.get_data()
        else:
            answer = await ask(PORT, method, path, sent[1:])
            status, answered, body = answer.status, answer.headers, answer.body
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in answered]
        out = await self.bridge.reconcile(who, side, status, raw)
        self.answered = [(name.decode(), value.decode("latin-1")) for name, value in out]
        for line in self.lines():
            self._keep(line)
        try:
            return json.loads(body)
        except ValueError:
            return body.decode()

    def _keep(self, line: str) -> None:
        name, _, value = line.partition(";")[0].partition("=")
        if "Max-Age=0" in line:
            self.jar.pop(name, None)
        else:
            self.jar[name] = value

    def lines(self, name: str = "") -> list[str]:
        return [value for key, value in self.answered if key == "set-cookie" and value.startswith(name)]

    async def users(self) -> tuple[Any, Any]:
        """Who the two sides think it is."""
        on_legacy = (await self.get(Backend.LEGACY, "/me"))["user"]
        return on_legacy, (await self.get(Backend.FASTAPI, "/me"))["user"]
