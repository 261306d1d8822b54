"""Who is asking. Cookies and tokens only name a row of `user_sessions`; the row decides.

The role is read with it each time, so that a change is seen by the next request.
"""

import hashlib
import hmac
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Annotated, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from fastapi import Depends, Request
from sqlalchemy import bindparam, exists, or_, select, update
from sqlalchemy.exc import OperationalError

from .cookies import read_cookie
from .db import DatabaseUnavailable, Db
from .http import ApiError
from .jwts import ACCESS, Claims
from .models import ROLES, revoked_tokens, user_sessions, users, utcnow
from .sessions import LIFETIME, session_of

log = logging.getLogger("fastapi_app")

TOUCH_AFTER = timedelta(seconds=60)  # a sliding session is written this often at most
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ACCESS_COOKIE = "access_token"

_SIGN_IN = (
    select(users, *(column.label(f"session_{column.name}") for column in user_sessions.c))
    .join_from(user_sessions, users)
    .where(user_sessions.c.token_hash == bindparam("token_hash"))
)
_REVOKED = exists().where(or_(revoked_tokens.c.jti == bindparam("jti"), revoked_tokens.c.jti == bindparam("family")))
_BEARER = _SIGN_IN.where(~_REVOKED)
_TOUCH = (
    update(user_sessions)
    .where(user_sessions.c.id == bindparam("session_id"))
    .values(last_activity_at=bindparam("now"), expires_at=bindparam("until"))
)


class SignIn(NamedTuple):
    """A sign-in that stands: its user, with the row of `user_sessions` in columns named `session_*`, and its token."""

    user: Any
    token: str


async def current_user(request: Request) -> SignIn | None:
    """Who is signed in: by session cookie, and only without one by token, for tokens are new and cookies are not.

    A cookie that no longer stands for a session is dropped; a bearer that is not valid is not made good by a cookie.
    """
    db = Db(request.app.state.database)
    who = await _by_session(request, db)
    if who is None:
        claims = request.app.state.signer.verify(bearer_of(request) or read_cookie(request, ACCESS_COOKIE), ACCESS)
        who = await find_by_claims(db, claims) if claims else None
    request.state.user = who.user if who else None
    return who


async def login_required(request: Request) -> SignIn:
    """401 without a sign-in; 403 for an unsafe request that may come from another site."""
    who = await current_user(request)
    if who is None:
        raise ApiError(401, "Authentication required", code="AUTH_REQUIRED", login_url="/login")
    safe = request.method in SAFE_METHODS or not sent_unasked(request)
    if not (safe or same_origin(request) or csrf_token_given(request, who.token)):
        raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")
    return who


def role_required(role: str) -> Callable[[Request], Coroutine[Any, Any, SignIn]]:
    """Like `login_required`, for users of this role and the higher ones."""

    async def check(request: Request) -> SignIn:
        who = await login_required(request)
        if not has_role(who, role):
            forbid()
        return who

    return check


Anybody = Annotated[SignIn | None, Depends(current_user)]
LoggedIn = Annotated[SignIn, Depends(login_required)]
Reader = Annotated[SignIn, Depends(role_required("readonly"))]
Member = Annotated[SignIn, Depends(role_required("user"))]
Manager = Annotated[SignIn, Depends(role_required("manager"))]
Admin = Annotated[SignIn, Depends(role_required("admin"))]


def has_role(who: SignIn, role: str) -> bool:
    return who.user.role in ROLES and ROLES.index(who.user.role) >= ROLES.index(role)


def forbid() -> NoReturn:
    raise ApiError(403, "Insufficient permissions", code="FORBIDDEN")


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


# The credentials


async def _by_session(request: Request, db: Db) -> SignIn | None:
    session = session_of(request)
    token, user_id = session.get("session_token"), session.get("user_id")
    if not session.values:
        return None
    row = None
    if isinstance(token, str) and isinstance(user_id, int):
        row = _standing(await db.row(_SIGN_IN, {"token_hash": token_hash(token)}), user_id)
    if row is None:
        session.clear()
        return None
    await _touch(db, row)
    return SignIn(row, str(token))


async def find_by_claims(db: Db, claims: Claims) -> SignIn | None:
    """The sign-in of a token that has not been revoked."""
    values = {"token_hash": token_hash(claims.session_token), "jti": claims.jti, "family": claims.family}
    row = _standing(await db.row(_BEARER, values), claims.user_id)
    return SignIn(row, claims.session_token) if row else None


def _standing(row: Any, user_id: int) -> Any:
    """The row, if the sign-in is this user's and neither ended nor expired."""
    valid = (
        row is not None
        and row.id == user_id
        and row.session_revoked_at is None
        and row.session_expires_at > utcnow()
        and row.is_active
    )
    return row if valid else None


async def _touch(db: Db, row: Any) -> None:
    """Slide the expiry. A database too busy to note it is no reason to refuse the request."""
    now = utcnow()
    if now - row.session_last_activity_at < TOUCH_AFTER:
        return
    try:
        async with db.transaction() as connection:
            await connection.execute(_TOUCH, {"session_id": row.session_id, "now": now, "until": now + LIFETIME})
    except (OperationalError, DatabaseUnavailable):
        log.warning("the expiry of session %s was not moved", row.session_id)


def bearer_of(request: Request) -> str:
    """The token of an `Authorization: Bearer` header; empty when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


# Requests that another site may have caused


def sent_unasked(request: Request) -> bool:
    """Whether a browser adds the credential on its own, so that another site can cause the request."""
    return bool(session_of(request).values) or not bearer_of(request)


def request_source(request: Request) -> str | None:
    """Where a browser says the request comes from: None when it says nothing."""
    return request.headers.get("origin") or request.headers.get("referer")


def same_origin(request: Request) -> bool:
    source = request_source(request)
    if source is None:
        return False
    try:
        scheme, host = urlsplit(source)[:2]
    except ValueError:
        return False
    if scheme not in ("http", "https") or (request.scope["scheme"] == "https" and scheme != "https"):
        return False
    default_port = ":443" if scheme == "https" else ":80"
    return host.lower().removesuffix(default_port) == host_of(request).lower()


def host_of(request: Request) -> str:
    """The host and, unless it is the usual one, the port that were asked."""
    server = request.scope.get("server") or ("", None)
    host = request.headers.get("host", f"{server[0]}:{server[1]}" if server[1] else "")
    return host.removesuffix(":443" if request.scope["scheme"] == "https" else ":80")


def csrf_token_given(request: Request, session_token: str) -> bool:
    settings = request.app.state.settings
    given = request.headers.get("x-csrf-token", "").encode()
    keys = (settings.secret_key, *settings.secret_key_fallbacks)
    return any(hmac.compare_digest(given, _csrf_token(key, session_token).encode()) for key in keys)


def csrf_token(request: Request, session_token: str) -> str:
    return _csrf_token(request.app.state.settings.secret_key, session_token)


def _csrf_token(key: str, session_token: str) -> str:
    return hmac.new(key.encode(), b"csrf:" + session_token.encode(), hashlib.sha256).hexdigest()
