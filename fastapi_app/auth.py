"""Signing in and out."""

import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from . import passwords
from .audit import audit, client_address
from .cookies import drop_cookie, read_cookie, set_cookie
from .db import Db, DbDep
from .http import (
    ApiError,
    form_fields,
    json_body,
    json_response,
    mime_type,
    query,
    read,
    redirect,
    success,
    text,
)
from .identity import ACCESS_COOKIE, Anybody, LoggedIn, csrf_token, request_source, same_origin, token_hash
from .models import login_attempts, user_sessions, users, utcnow
from .sessions import LIFETIME, session_of

router = APIRouter(prefix="/auth", tags=["sign-in"])

CSRF_COOKIE, REFRESH_COOKIE = "csrf_token", "refresh_token"
USERNAME = re.compile(r"[a-z0-9][a-z0-9_.-]{2,49}")
FIRST_ID = 1

MAX_FAILURES_PER_ACCOUNT, ACCOUNT_WINDOW = 5, timedelta(minutes=30)
MAX_FAILURES_PER_ADDRESS, ADDRESS_WINDOW = 20, timedelta(minutes=15)

_ANYBODY = select(users.c.id).limit(1)
_BY_NAME = select(users).where(users.c.username == bindparam("name"))
_BY_ID_LOCKED = select(users).where(users.c.id == bindparam("user_id")).with_for_update()
_ATTEMPT = (
    select(login_attempts.c.window_start, login_attempts.c.count)
    .where(login_attempts.c.key == bindparam("name"))
    .with_for_update()
)


# Routes


@router.post("/login", name="auth.login")
async def login(request: Request, db: DbDep) -> Response:
    """By JSON: 200 or 4xx. By form: 302 to where the user wanted to go, or back to the page with the error."""
    if mime_type(request) in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await _login_by_form(request, db)
    user, token, expires_at = await sign_in(request, db, await json_body(request), replace=True)
    session_of(request).start(user.id, token)
    answer = success("Signed in", user=user_json(user), expires_at=expires_at.isoformat())
    return _with_csrf_cookie(request, answer, token)


async def _login_by_form(request: Request, db: Db) -> Response:
    form = await form_fields(request)
    target = local_path(query(request).get("next", form.get("next", "")))
    try:
        user, token, _ = await sign_in(request, db, form, replace=True)
    except ApiError as error:
        fields = {"error": error.message} | ({"next": target} if target else {})
        return redirect(f"/login?{urlencode(fields)}")
    session_of(request).start(user.id, token)
    return _with_csrf_cookie(request, redirect(target or "/"), token)


@router.post("/first-run", name="auth.first_run")
async def first_run(request: Request, db: DbDep) -> Response:
    """Make the first account, an administrator, and sign in with it. 403 as soon as anybody has an account."""
    data = await json_body(request)
    _refuse_elsewhere(request)
    _refuse_second_run(await db.scalar(_ANYBODY))
    username, password = (text(data, "username", 50) or "").lower(), password_field(data, "password")
    require_username(username)
    require_strength(password)
    password_hash = await passwords.hash_password(password, request.app.state.settings.bcrypt_rounds)
    new = {"id": FIRST_ID, "username": username, "password_hash": password_hash, "role": "admin"}
    try:
        async with db.transaction() as connection:
            _refuse_second_run(await connection.scalar(_ANYBODY))
            await connection.execute(insert(users), new)  # of two at once, one finds the id taken
            await audit(connection, request, "users.create", f"user:{FIRST_ID}", username=username, role="admin")
    except IntegrityError:
        _refuse_second_run(await db.scalar(_ANYBODY))
        raise
    replaced = session_of(request).get("session_token")
    user, token, expires_at = await _start_session(request, db, FIRST_ID, password_hash, replaced)
    session_of(request).start(user.id, token)
    answer = success("Administrator created", 201, user=user_json(user), expires_at=expires_at.isoformat())
    return _with_csrf_cookie(request, answer, token)


def _refuse_second_run(anybody: int | None) -> None:
    if anybody is not None:
        raise ApiError(403, "There is an account already: sign in", code="FORBIDDEN")


@router.post("/logout", name="auth.logout")
async def logout(request: Request, db: DbDep, who: LoggedIn) -> Response:
    async with db.transaction() as connection:
        await revoke(connection, user_sessions.c.id == who.user.session_id)
        await audit(connection, request, "auth.logout")
    session_of(request).clear()
    return forget_cookies(request, success("Signed out"), CSRF_COOKIE)


@read(router, "/check", name="auth.check")
async def check(who: Anybody) -> Response:
    return json_response({"authenticated": who is not None, "user": user_json(who.user) if who else None})


@read(router, "/session", name="auth.session_info")
async def session_info(request: Request, who: LoggedIn) -> Response:
    row = who.user
    return success(
        "Signed in",
        user=user_json(row),
        session={
            "created_at": row.session_created_at.isoformat(),
            "expires_at": row.session_expires_at.isoformat(),
            "last_activity_at": row.session_last_activity_at.isoformat(),
            "ip": row.session_ip,
            "user_agent": row.session_user_agent,
        },
        csrf_token=csrf_token(request, who.token),
    )


@router.put("/password", name="auth.change_password")
async def change_password(request: Request, db: DbDep, who: LoggedIn) -> Response:
    """Ends every other session of the user."""
    rounds = request.app.state.settings.bcrypt_rounds
    data = await json_body(request)
    old, new = password_field(data, "old_password"), password_field(data, "new_password")
    if not old or not new:
        raise ApiError(400, "old_password and new_password are required")
    require_strength(new)
    await count_attempt(request, db, who.user.username)
    if passwords.too_long(old) or not await passwords.verify(old, who.user.password_hash, rounds):
        raise ApiError(400, "The old password is wrong")
    new_hash = await passwords.hash_password(new, rounds)
    async with db.transaction() as connection:
        changed = update(users).where(users.c.id == who.user.id).values(password_hash=new_hash)
        await connection.execute(changed)
        others = (user_sessions.c.user_id == who.user.id, user_sessions.c.id != who.user.session_id)
        ended = await revoke(connection, *others)
        await forget_attempts(connection, request, who.user.username)
        await audit(connection, request, "auth.password_changed", f"user:{who.user.id}", sessions_revoked=ended)
    return success("Password changed", sessions_revoked=ended)


# Signing in


async def sign_in(request: Request, db: Db, data: Mapping[str, Any], *, replace: bool) -> tuple[Any, str, datetime]:
    """Check the credentials and start a session: the user's row, the session's token and expiry.

    With `replace` it takes the place of the one that the client's cookie names.
    Raises ApiError: 400, 401, 403 for another site's form, 429 after too many failures.
    """
    rounds = request.app.state.settings.bcrypt_rounds
    _refuse_elsewhere(request)
    username = (text(data, "username", 50) or "").lower()
    password = password_field(data, "password")
    if not username or not password:
        raise ApiError(400, "Username and password are required")
    if passwords.too_long(password):
        raise ApiError(400, "The password is too long: at most 72 bytes")
    await count_attempt(request, db, username)
    user = await db.row(_BY_NAME, {"name": username})
    right = await passwords.verify(password, user.password_hash if user else None, rounds)
    if user is None or not right or not user.is_active:
        async with db.transaction() as connection:
            target = f"user:{user.id}" if user else ""
            await audit(connection, request, "auth.login_failed", target, username=username)
        raise ApiError(401, "Invalid username or password")
    old = passwords.is_old(user.password_hash)
    new_hash = await passwords.hash_password(password, rounds) if old else user.password_hash
    replaced = session_of(request).get("session_token") if replace else None
    return await _start_session(request, db, user.id, new_hash, replaced)


def _refuse_elsewhere(request: Request) -> None:
    """Nobody is signed in yet, so there is no token: what says that it comes from another site is refused."""
    if request_source(request) is not None and not same_origin(request):
        raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")


async def _start_session(
    request: Request, db: Db, user_id: int, password_hash: str, replaced: object
) -> tuple[Any, str, datetime]:
    token, now = secrets.token_urlsafe(32), utcnow()
    expires_at = now + LIFETIME
    async with db.transaction() as connection:
        await connection.execute(_BY_ID_LOCKED, {"user_id": user_id})
        changed = update(users).where(users.c.id == user_id)
        await connection.execute(changed.values(password_hash=password_hash, last_login_at=now))
        if isinstance(replaced, str):
            await revoke(connection, user_sessions.c.token_hash == token_hash(replaced))
        row = {
            "user_id": user_id,
            "token_hash": token_hash(token),
            "created_at": now,
            "last_activity_at": now,
            "expires_at": expires_at,
            "ip": client_address(request),
            "user_agent": request.headers.get("user-agent", "")[:255],
        }
        await connection.execute(insert(user_sessions), row)
        user = request.state.user = (await connection.execute(_BY_ID_LOCKED, {"user_id": user_id})).one()
        await forget_attempts(connection, request, user.username)
        await audit(connection, request, "auth.login", f"user:{user_id}")
    return user, token, expires_at


async def revoke(connection: AsyncConnection, *which: ColumnElement[bool]) -> int:
    """End the sessions that are still open; how many those were."""
    now = utcnow()
    still_open = (user_sessions.c.revoked_at.is_(None), user_sessions.c.expires_at > now)
    result = await connection.execute(update(user_sessions).where(*which, *still_open).values(revoked_at=now))
    return result.rowcount


async def count_attempt(request: Request, db: Db, username: str) -> None:
    """Count a failure before the password is looked at, so that many guesses at once gain nothing.

    Raises ApiError 429 beyond the limit.
    """
    address, account = f"ip:{client_address(request)}", f"user:{username}"
    while True:
        try:
            async with db.transaction() as connection:
                wait = await _reserve(connection, address, MAX_FAILURES_PER_ADDRESS, ADDRESS_WINDOW)
                wait = wait or await _reserve(connection, account, MAX_FAILURES_PER_ACCOUNT, ACCOUNT_WINDOW)
            break
        except IntegrityError:
            continue  # somebody else was the first under this name: going on with his row would end in a deadlock
    if wait:
        retry_after = str(int(wait.total_seconds()) + 1)
        raise ApiError(429, "Too many failed sign-ins. Try again later", {"retry-after": retry_after})


async def _reserve(connection: AsyncConnection, key: str, limit: int, window: timedelta) -> timedelta:
    """Count one attempt under this key, or say how long the key stays locked. The last one allowed starts the lock."""
    now = utcnow()
    window_start, count = await _locked_attempt(connection, key)
    if now - window_start >= window:
        window_start, count = now, 0
    if count >= limit:
        return window_start + window - now
    count += 1
    if count == limit:
        window_start = now
    counted = update(login_attempts).where(login_attempts.c.key == key)
    await connection.execute(counted.values(window_start=window_start, count=count))
    return timedelta(0)


async def _locked_attempt(connection: AsyncConnection, key: str) -> tuple[datetime, int]:
    """Window and count of the row, which is made when it is missing. Raises IntegrityError when somebody else does."""
    row = (await connection.execute(_ATTEMPT, {"name": key})).first()
    if row is not None:
        window_start, count = row
        return window_start, count
    window_start = utcnow()
    await connection.execute(insert(login_attempts).values(key=key, window_start=window_start, count=0))
    return window_start, 0


async def forget_attempts(connection: AsyncConnection, request: Request, username: str) -> None:
    """The password was right: the account starts afresh, the address gets this attempt back."""
    address = login_attempts.c.key == f"ip:{client_address(request)}"  # locked in the order of `count_attempt`
    counted = update(login_attempts).where(address, login_attempts.c.count > 0)
    await connection.execute(counted.values(count=login_attempts.c.count - 1))
    await connection.execute(delete(login_attempts).where(login_attempts.c.key == f"user:{username}"))


# Small things


def user_json(user: Any) -> dict[str, Any]:
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "role": user.role,
        "is_active": user.is_active,
        "created_at": user.created_at.isoformat(),
        "last_login_at": user.last_login_at.isoformat() if user.last_login_at else None,
    }


def password_field(data: Mapping[str, Any], field: str) -> str:
    """Passwords keep their white space."""
    text(data, field, 1000)
    value = data.get(field)
    return "" if value is None else str(value)


def require_username(username: str) -> None:
    if not USERNAME.fullmatch(username):
        raise ApiError(400, "username needs 3 to 50 letters, digits, dots, dashes or underscores")


def require_strength(password: str) -> None:
    missing = passwords.problems(password)
    if missing:
        raise ApiError(400, "The password is too weak", requirements=missing)


def local_path(target: str) -> str:
    """Where to go after signing in: a path of this site, never another host."""
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if safe else ""


def _with_csrf_cookie(request: Request, response: Response, session_token: str) -> Response:
    secure = request.app.state.settings.secure_cookies
    cookie = set_cookie(CSRF_COOKIE, csrf_token(request, session_token), secure=secure, http_only=False)
    response.headers.append("set-cookie", cookie)
    return response


def forget_cookies(request: Request, response: Response, *names: str) -> Response:
    """Drop these cookies, and those of the tokens where the client has any."""
    secure = request.app.state.settings.secure_cookies
    for name in names:
        response.headers.append("set-cookie", drop_cookie(name, secure=secure, http_only=False))
    for name in (ACCESS_COOKIE, REFRESH_COOKIE):
        if read_cookie(request, name):
            response.headers.append("set-cookie", drop_cookie(name, secure=secure, http_only=True))
    return response
