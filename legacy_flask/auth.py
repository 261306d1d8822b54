"""Signing in and out. The cookie names a row of `user_sessions`; the row decides, and the role is read each time."""

import hashlib
import hmac
import re
import secrets
from datetime import timedelta
from functools import wraps
from urllib.parse import urlencode, urlsplit

from flask import Blueprint, current_app, g, jsonify, redirect, request, session
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import joinedload

from . import passwords
from .audit import audit
from .db import get_session, transaction
from .http import ApiError, json_body, success, text
from .models import ROLES, LoginAttempt, User, UserSession, utcnow

bp = Blueprint("auth", __name__, url_prefix="/auth")

SESSION_LIFETIME = timedelta(hours=24)
TOUCH_AFTER = timedelta(seconds=60)  # a sliding session is written this often at most
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CSRF_COOKIE = "csrf_token"
USERNAME = re.compile(r"[a-z0-9][a-z0-9_.-]{2,49}")
FIRST_ID = 1

MAX_FAILURES_PER_ACCOUNT, ACCOUNT_WINDOW = 5, timedelta(minutes=30)
MAX_FAILURES_PER_ADDRESS, ADDRESS_WINDOW = 20, timedelta(minutes=15)


# --- who is asking -----------------------------------------------------------------------------------------------


def current_user() -> User | None:
    """The signed-in user. A cookie that no longer stands for a session is dropped."""
    if "user" not in g:
        g.user_session = load_session()
        g.user = g.user_session.user if g.user_session else None
    return g.user


def load_session() -> UserSession | None:
    token, user_id = session.get("session_token"), session.get("user_id")
    if not session:
        return None
    row = find_session(token, user_id) if isinstance(token, str) and isinstance(user_id, int) else None
    if row is None:
        session.clear()
        return None
    touch(row)
    return row


def find_session(token: str, user_id: int) -> UserSession | None:
    row = get_session().scalar(
        select(UserSession).where(UserSession.token_hash == token_hash(token)).options(joinedload(UserSession.user))
    )
    valid = (
        row is not None
        and row.user_id == user_id
        and row.revoked_at is None
        and row.expires_at > utcnow()
        and row.user.is_active
    )
    return row if valid else None


def touch(row: UserSession) -> None:
    """Slide the expiry. A database too busy to note it is no reason to refuse the request."""
    now = utcnow()
    if now - row.last_activity_at < TOUCH_AFTER:
        return
    try:
        with transaction() as db:
            db.execute(
                update(UserSession)
                .where(UserSession.id == row.id)
                .values(last_activity_at=now, expires_at=now + SESSION_LIFETIME)
            )
    except OperationalError:
        current_app.logger.warning("the expiry of session %s was not moved", row.id)


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def login_required(view):
    """401 without a session; 403 for an unsafe request that may come from another site."""

    @wraps(view)
    def wrapper(*args, **kwargs):
        if current_user() is None:
            raise ApiError(401, "Authentication required", code="AUTH_REQUIRED", login_url="/login")
        if request.method not in SAFE_METHODS and not (same_origin() or csrf_token_given()):
            raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")
        return view(*args, **kwargs)

    return wrapper


def role_required(role: str):
    """Like `login_required`, for users of this role and the higher ones."""

    def decorator(view):
        @wraps(view)
        def wrapper(*args, **kwargs):
            if not has_role(g.user, role):
                forbid()
            return view(*args, **kwargs)

        return login_required(wrapper)

    return decorator


def has_role(user: User, role: str) -> bool:
    return user.role in ROLES and ROLES.index(user.role) >= ROLES.index(role)


def forbid():
    raise ApiError(403, "Insufficient permissions", code="FORBIDDEN")


def request_source() -> str | None:
    """Where a browser says the request comes from: None when it says nothing."""
    return request.headers.get("Origin") or request.headers.get("Referer")


def same_origin() -> bool:
    source = request_source()
    if source is None:
        return False
    try:
        scheme, host = urlsplit(source)[:2]
    except ValueError:
        return False
    if scheme not in ("http", "https") or (request.is_secure and scheme != "https"):
        return False
    default_port = ":443" if scheme == "https" else ":80"
    return host.lower().removesuffix(default_port) == request.host.lower()


def csrf_token_given() -> bool:
    given = request.headers.get("X-CSRF-Token", "").encode()
    keys = [current_app.config["SECRET_KEY"], *current_app.config["SECRET_KEY_FALLBACKS"]]
    return any(hmac.compare_digest(given, csrf_token(session["session_token"], key).encode()) for key in keys)


def csrf_token(session_token: str, key: str | None = None) -> str:
    key = key or current_app.config["SECRET_KEY"]
    return hmac.new(key.encode(), b"csrf:" + session_token.encode(), hashlib.sha256).hexdigest()


# --- routes ------------------------------------------------------------------------------------------------------


@bp.post("/login")
def login():
    """By JSON: 200 or 4xx. By form: 302 to where the user wanted to go, or back to the page with the error."""
    if request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return login_by_form()
    user, row = sign_in(json_body())
    return set_csrf_cookie(success("Signed in", user=user_json(user), expires_at=row.expires_at.isoformat()))


def login_by_form():
    target = local_path(request.values.get("next", ""))
    try:
        sign_in(request.form)
    except ApiError as error:
        query = {"error": error.message} | ({"next": target} if target else {})
        return redirect(f"/login?{urlencode(query)}")
    return set_csrf_cookie(redirect(target or "/"))


@bp.post("/first-run")
def first_run():
    """Make the first account, an administrator, and sign in with it. 403 as soon as anybody has an account."""
    data = json_body()
    refuse_elsewhere()
    refuse_second_run(get_session())
    username, password = (text(data, "username", 50) or "").lower(), password_field(data, "password")
    require_username(username)
    require_strength(password)
    password_hash = passwords.hash_password(password)
    try:
        with transaction() as db:
            refuse_second_run(db)
            db.add(User(id=FIRST_ID, username=username, password_hash=password_hash, role="admin"))
            db.flush()  # of two at once, one finds the id taken
            audit(db, "users.create", f"user:{FIRST_ID}", username=username, role="admin")
    except IntegrityError:
        refuse_second_run(get_session())
        raise
    user, row = start_session(FIRST_ID, password_hash)
    answer = success("Administrator created", 201, user=user_json(user), expires_at=row.expires_at.isoformat())
    return set_csrf_cookie(answer)


def refuse_second_run(db) -> None:
    if db.scalar(select(User.id).limit(1)) is not None:
        raise ApiError(403, "There is an account already: sign in", code="FORBIDDEN")


@bp.post("/logout")
@login_required
def logout():
    with transaction() as db:
        revoke(db, UserSession.id == g.user_session.id)
        audit(db, "auth.logout")
    session.clear()
    return drop_csrf_cookie(success("Signed out"))


@bp.get("/check")
def check():
    user = current_user()
    return jsonify(authenticated=user is not None, user=user_json(user) if user else None)


@bp.get("/session")
@login_required
def session_info():
    row = g.user_session
    return success(
        "Signed in",
        user=user_json(g.user),
        session={
            "created_at": row.created_at.isoformat(),
            "expires_at": row.expires_at.isoformat(),
            "last_activity_at": row.last_activity_at.isoformat(),
            "ip": row.ip,
            "user_agent": row.user_agent,
        },
        csrf_token=csrf_token(session["session_token"]),
    )


@bp.put("/password")
@login_required
def change_password():
    """Ends every other session of the user."""
    data = json_body()
    old, new = password_field(data, "old_password"), password_field(data, "new_password")
    if not old or not new:
        raise ApiError(400, "old_password and new_password are required")
    require_strength(new)
    count_attempt(g.user.username)
    if passwords.too_long(old) or not passwords.verify(old, g.user.password_hash):
        raise ApiError(400, "The old password is wrong")
    new_hash = passwords.hash_password(new)
    with transaction() as db:
        db.execute(update(User).where(User.id == g.user.id).values(password_hash=new_hash))
        ended = revoke(db, UserSession.user_id == g.user.id, UserSession.id != g.user_session.id)
        forget_attempts(db, g.user.username)
        audit(db, "auth.password_changed", f"user:{g.user.id}", sessions_revoked=ended)
    return success("Password changed", sessions_revoked=ended)


# --- signing in --------------------------------------------------------------------------------------------------


def sign_in(data) -> tuple[User, UserSession]:
    """Check the credentials and start a new session."""
    refuse_elsewhere()
    username = (text(data, "username", 50) or "").lower()
    password = password_field(data, "password")
    if not username or not password:
        raise ApiError(400, "Username and password are required")
    if passwords.too_long(password):
        raise ApiError(400, "The password is too long: at most 72 bytes")
    count_attempt(username)
    user = get_session().scalar(select(User).where(User.username == username))
    right = passwords.verify(password, user.password_hash if user else None)
    if not right or not user.is_active:
        with transaction() as db:
            audit(db, "auth.login_failed", f"user:{user.id}" if user else "", username=username)
        raise ApiError(401, "Invalid username or password")
    new_hash = passwords.hash_password(password) if passwords.is_old(user.password_hash) else user.password_hash
    return start_session(user.id, new_hash)


def refuse_elsewhere() -> None:
    """Nobody is signed in yet, so there is no token: what says that it comes from another site is refused."""
    if request_source() is not None and not same_origin():
        raise ApiError(403, "Cross-site request refused", code="CSRF_FAILED")


def start_session(user_id: int, password_hash: str) -> tuple[User, UserSession]:
    token, now = secrets.token_urlsafe(32), utcnow()
    with transaction() as db:
        user = db.get(User, user_id, with_for_update=True)
        user.password_hash, user.last_login_at = password_hash, now
        replaced = session.get("session_token")
        if isinstance(replaced, str):
            revoke(db, UserSession.token_hash == token_hash(replaced))
        row = UserSession(
            user_id=user.id,
            token_hash=token_hash(token),
            created_at=now,
            last_activity_at=now,
            expires_at=now + SESSION_LIFETIME,
            ip=client_address(),
            user_agent=request.headers.get("User-Agent", "")[:255],
        )
        db.add(row)
        forget_attempts(db, user.username)
        g.user = user
        audit(db, "auth.login", f"user:{user.id}")
    session.clear()
    session.permanent = True
    session["user_id"], session["session_token"] = user.id, token
    return user, row


def revoke(db, *which) -> int:
    """End the sessions that are still open; how many those were."""
    open_sessions = update(UserSession).where(
        *which, UserSession.revoked_at.is_(None), UserSession.expires_at > utcnow()
    )
    return db.execute(open_sessions.values(revoked_at=utcnow())).rowcount


def count_attempt(username: str) -> None:
    """Count a failure before the password is looked at, so that many guesses at once gain nothing. 429 beyond the limit."""
    while True:
        try:
            with transaction() as db:
                wait = reserve(db, f"ip:{client_address()}", MAX_FAILURES_PER_ADDRESS, ADDRESS_WINDOW) or reserve(
                    db, f"user:{username}", MAX_FAILURES_PER_ACCOUNT, ACCOUNT_WINDOW
                )
            break
        except IntegrityError:
            continue  # somebody else was the first under this name: going on with his row would end in a deadlock
    if wait:
        retry_after = str(int(wait.total_seconds()) + 1)
        raise ApiError(429, "Too many failed sign-ins. Try again later", {"Retry-After": retry_after})


def reserve(db, key: str, limit: int, window: timedelta) -> timedelta:
    """Count one attempt under this key, or say how long the key stays locked. The last one allowed starts the lock."""
    now = utcnow()
    row = locked_attempt(db, key)
    if now - row.window_start >= window:
        row.window_start, row.count = now, 0
    if row.count >= limit:
        return row.window_start + window - now
    row.count += 1
    if row.count == limit:
        row.window_start = now
    return timedelta(0)


def locked_attempt(db, key: str) -> LoginAttempt:
    row = db.get(LoginAttempt, key, with_for_update=True)
    if row is None:
        row = LoginAttempt(key=key, window_start=utcnow(), count=0)
        db.add(row)
        db.flush()
    return row


def forget_attempts(db, username: str) -> None:
    """The password was right: the account starts afresh, the address gets this attempt back."""
    address = LoginAttempt.key == f"ip:{client_address()}"  # locked in the order of `count_attempt`
    db.execute(update(LoginAttempt).where(address, LoginAttempt.count > 0).values(count=LoginAttempt.count - 1))
    db.execute(delete(LoginAttempt).where(LoginAttempt.key == f"user:{username}"))


# --- small things ------------------------------------------------------------------------------------------------


def user_json(user: User) -> dict:
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "role": user.role,
        "is_active": user.is_active,
        "created_at": user.created_at.isoformat(),
        "last_login_at": user.last_login_at.isoformat() if user.last_login_at else None,
    }


def password_field(data, field: str) -> str:
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


def client_address() -> str:
    return (request.remote_addr or "")[:45]


def local_path(target: str) -> str:
    """Where to go after signing in: a path of this site, never another host."""
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if safe else ""


def set_csrf_cookie(answer):
    response = current_app.make_response(answer)
    value = csrf_token(session["session_token"])
    response.set_cookie(CSRF_COOKIE, value, secure=current_app.config["SESSION_COOKIE_SECURE"], samesite="Lax")
    return response


def drop_csrf_cookie(answer):
    response = current_app.make_response(answer)
    response.delete_cookie(CSRF_COOKIE, secure=current_app.config["SESSION_COOKIE_SECURE"], samesite="Lax")
    return response
