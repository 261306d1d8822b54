"""Accounts, for administrators mostly."""

from fastapi import APIRouter, Request
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from starlette.responses import Response

from . import passwords
from .audit import audit
from .auth import (
    CSRF_COOKIE,
    forget_cookies,
    password_field,
    require_strength,
    require_username,
    revoke,
    user_json,
)
from .db import Db, DbDep, find_or_404, insert_row
from .http import ApiError, json_body, json_response, page_args, paged, query, read, success, text
from .identity import Admin, LoggedIn, forbid, has_role
from .models import ROLES, user_sessions, users
from .sessions import session_of

router = APIRouter(prefix="/api/users", tags=["users"])

_COUNT = select(func.count(users.c.id))
_PAGE = select(users).order_by(users.c.username).offset(bindparam("skip")).limit(bindparam("size"))
_TAKEN = select(users.c.id, users.c.username).where(users.c.username == bindparam("name"))
_ADMINS = select(users.c.id).where(users.c.role == "admin", users.c.is_active).with_for_update()


@read(router, "/", name="users.list_users")
async def list_users(request: Request, db: DbDep, _: Admin) -> Response:
    page, per_page = page_args(query(request))
    total = await db.scalar(_COUNT)
    rows = await db.execute(_PAGE, {"skip": (page - 1) * per_page, "size": per_page})
    return paged("users", [user_json(user) for user in rows], total, page, per_page)


@router.post("/", name="users.create_user")
async def create_user(request: Request, db: DbDep, _: Admin) -> Response:
    data = await json_body(request)
    username = (text(data, "username", 50) or "").lower()
    password = password_field(data, "password")
    role = text(data, "role", 20) or "user"
    email = text(data, "email", 255)
    require_username(username)
    require_role_name(role)
    if email and "@" not in email:
        raise ApiError(400, "email is not an address")
    require_strength(password)
    await refuse_taken(db, username)
    password_hash = await passwords.hash_password(password, request.app.state.settings.bcrypt_rounds)
    new = {"username": username, "password_hash": password_hash, "role": role, "email": email}
    try:
        async with db.transaction() as connection:
            user = await find_or_404(connection, users, await insert_row(connection, users, new))
            await audit(connection, request, "users.create", f"user:{user.id}", username=username, role=role)
    except IntegrityError:
        await refuse_taken(db, username)
        raise
    return success("User created", 201, user=user_json(user))


@read(router, "/me", name="users.me")
async def me(who: LoggedIn) -> Response:
    return json_response(user_json(who.user) | {"preferences": who.user.preferences})


@router.put("/{user_id:digits}/role", name="users.set_role")
async def set_role(request: Request, user_id: int, db: DbDep, _: Admin) -> Response:
    role = text(await json_body(request), "role", 20)
    require_role_name(role)
    async with db.transaction() as connection:
        admins = set((await connection.execute(_ADMINS)).scalars())
        user = await find_or_404(connection, users, user_id, lock=True)
        if role != "admin" and admins == {user.id}:
            last = {"id": user.id, "username": user.username}
            raise ApiError(409, "The last admin cannot be demoted", user=last)
        await audit(connection, request, "users.set_role", f"user:{user.id}", before=user.role, after=role)
        if role != user.role:
            await connection.execute(update(users).where(users.c.id == user.id).values(role=role))
    return success("Role changed", user=user_json(user) | {"role": role})


@router.delete("/{user_id:digits}/sessions", name="users.revoke_sessions")
async def revoke_sessions(request: Request, user_id: int, db: DbDep, who: LoggedIn) -> Response:
    """Log out everywhere: oneself, or as an admin anybody."""
    if user_id != who.user.id and not has_role(who, "admin"):
        forbid()
    async with db.transaction() as connection:
        user = await find_or_404(connection, users, user_id)
        ended = await revoke(connection, user_sessions.c.user_id == user.id)
        await audit(connection, request, "users.revoke_sessions", f"user:{user.id}", sessions_revoked=ended)
    answer = success("Sessions revoked", sessions_revoked=ended)
    if user_id != who.user.id:
        return answer
    session_of(request).clear()
    return forget_cookies(request, answer, CSRF_COOKIE)


def require_role_name(role: str | None) -> None:
    if role not in ROLES:
        raise ApiError(400, f"Invalid role. Must be one of: {', '.join(ROLES)}")


async def refuse_taken(db: Db, username: str) -> None:
    user = await db.row(_TAKEN, {"name": username})
    if user is not None:
        existing = {"id": user.id, "username": user.username}
        raise ApiError(409, "A user with this name already exists", user=existing)
