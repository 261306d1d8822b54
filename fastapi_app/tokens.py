"""Tokens for programs: an extra credential beside the session, new in this application.

Every token names a sign-in (`user_sessions`) and is worth nothing once that has ended. A refresh token is good for one
use; using it a second time ends its whole family, and the sign-in with it. A row of `revoked_tokens` stands for one
token, or for a family when its `jti` is the family's name.
"""

import secrets
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from .audit import audit
from .auth import REFRESH_COOKIE, forget_cookies, revoke, sign_in, user_json
from .cookies import read_cookie, set_cookie
from .db import Db, DbDep
from .http import ApiError, is_json, json_body, json_response, success
from .identity import (
    ACCESS_COOKIE,
    SignIn,
    csrf_token_given,
    find_by_claims,
    login_required,
    same_origin,
    token_hash,
)
from .jwts import ACCESS, LIFETIME_S, REFRESH, Claims
from .models import revoked_tokens, user_sessions, utcnow

router = APIRouter(prefix="/auth/token", tags=["tokens"])

KEEP = timedelta(seconds=LIFETIME_S[REFRESH])
RACE = timedelta(seconds=10)  # two tabs may refresh at once; a thief comes later

_SPENT = select(revoked_tokens.c.expires_at).where(revoked_tokens.c.jti == bindparam("jti"))


@router.post("", name="token")
async def token(request: Request, db: DbDep) -> Response:
    """Tokens for `username` and `password`, or without them for the sign-in that the request already has.

    With `"cookies": true` they are put into cookies that scripts cannot read, and not into the body.
    """
    data = await json_body(request) if is_json(request) else {}
    if "username" in data or "password" in data:
        user, session_token, _ = await sign_in(request, db, data, replace=False)
    else:
        user, session_token = await login_required(request)
    return _answer(request, user, session_token, secrets.token_hex(16), cookies=bool(data.get("cookies")))


@router.post("/refresh", name="refresh_token")
async def refresh_token(request: Request, db: DbDep) -> Response:
    """A new pair for `refresh_token`, or for the cookie of that name; the old one is spent."""
    old, from_cookie = await _given(request)
    claims: Claims | None = request.app.state.signer.verify(old, REFRESH)
    who = await find_by_claims(db, claims) if claims else None
    if claims is None:
        raise _refused()
    if who is None:
        await _punish_reuse(request, db, claims)
        raise _refused()
    _refuse_other_sites(request, who, from_cookie=from_cookie)
    try:
        async with db.transaction() as connection:
            await _spend(connection, claims.jti, claims.family)
    except IntegrityError:
        raise _refused() from None  # spent by another request, a moment ago
    return _answer(request, who.user, who.token, claims.family, cookies=from_cookie)


@router.post("/revoke", name="revoke_token")
async def revoke_token(request: Request, db: DbDep) -> Response:
    """End `refresh_token`, or the cookie of that name, and its family. The answer never says whether it was valid."""
    given, from_cookie = await _given(request)
    claims: Claims | None = request.app.state.signer.verify(given, REFRESH)
    who = await find_by_claims(db, claims) if claims else None
    if claims and who:
        _refuse_other_sites(request, who, from_cookie=from_cookie)
        request.state.user = who.user
        try:
            async with db.transaction() as connection:
                await _spend(connection, claims.family, claims.family)
                await audit(connection, request, "auth.token_revoked", f"user:{who.user.id}")
        except IntegrityError:
            pass  # by another request, a moment ago
    return forget_cookies(request, success("Token revoked"))


async def _punish_reuse(request: Request, db: Db, claims: Claims) -> None:
    """A spent token that turns up later than `RACE` was stolen, or its successor was: end family and sign-in."""
    kept_until: datetime | None = await db.scalar(_SPENT, {"jti": claims.jti})
    if kept_until is None or utcnow() < kept_until - KEEP + RACE:
        return
    try:
        async with db.transaction() as connection:
            await _spend(connection, claims.family, claims.family)
            await revoke(connection, user_sessions.c.token_hash == token_hash(claims.session_token))
            await audit(connection, request, "auth.token_reused", f"user:{claims.user_id}")
    except IntegrityError:
        pass  # it has ended already


async def _spend(connection: AsyncConnection, jti: str, family: str) -> None:
    """Note it for as long as a token of that family can live. Raises IntegrityError when it was noted before."""
    now = utcnow()
    await connection.execute(delete(revoked_tokens).where(revoked_tokens.c.expires_at < now))
    await connection.execute(insert(revoked_tokens).values(jti=jti, family=family, expires_at=now + KEEP))


async def _given(request: Request) -> tuple[str, bool]:
    """The refresh token, and whether the browser added it on its own."""
    data = await json_body(request) if is_json(request) and request.headers.get("content-length") != "0" else {}
    given = data.get("refresh_token")
    return (given, False) if isinstance(given, str) else (read_cookie(request, REFRESH_COOKIE), True)


def _refuse_other_sites(request: Request, who: SignIn, *, from_cookie: bool) -> None:
    if from_cookie and not (same_origin(request) or csrf_token_given(request, who.token)):
        raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")


def _refused() -> ApiError:
    return ApiError(401, "The refresh token is not valid", code="AUTH_REQUIRED", login_url="/login")


def _answer(request: Request, user: Any, session_token: str, family: str, *, cookies: bool) -> Response:
    signer = request.app.state.signer
    access, refresh = (signer.mint(kind, user.id, session_token, family) for kind in (ACCESS, REFRESH))
    body = {
        "token_type": "Bearer",
        "expires_in": LIFETIME_S[ACCESS],
        "refresh_expires_in": LIFETIME_S[REFRESH],
        "user": user_json(user),
    }
    if not cookies:
        return json_response(body | {"access_token": access, "refresh_token": refresh}, 200, _NO_STORE)
    response = json_response(body, 200, _NO_STORE)
    secure = request.app.state.settings.secure_cookies
    for name, value, kind in ((ACCESS_COOKIE, access, ACCESS), (REFRESH_COOKIE, refresh, REFRESH)):
        cookie = set_cookie(name, value, max_age=LIFETIME_S[kind], secure=secure, http_only=True)
        response.headers.append("set-cookie", cookie)
    return response


_NO_STORE = {"cache-control": "no-store"}
