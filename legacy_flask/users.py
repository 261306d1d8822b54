"""Accounts, for administrators mostly."""

from flask import Blueprint, g, jsonify, session
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from . import passwords
from .audit import audit
from .auth import (
    drop_csrf_cookie,
    forbid,
    has_role,
    login_required,
    password_field,
    require_strength,
    require_username,
    revoke,
    role_required,
    user_json,
)
from .db import get_session, transaction
from .http import ApiError, find_or_404, json_body, page_args, paged, success, text
from .models import ROLES, User, UserSession

bp = Blueprint("users", __name__, url_prefix="/api/users")


@bp.get("/")
@role_required("admin")
def list_users():
    page, per_page = page_args()
    db = get_session()
    total = db.scalar(select(func.count(User.id)))
    rows = db.scalars(select(User).order_by(User.username).offset((page - 1) * per_page).limit(per_page))
    return paged("users", [user_json(user) for user in rows], total, page, per_page)


@bp.post("/")
@role_required("admin")
def create_user():
    data = json_body()
    username = (text(data, "username", 50) or "").lower()
    password = password_field(data, "password")
    role = text(data, "role", 20) or "user"
    email = text(data, "email", 255)
    require_username(username)
    require_role_name(role)
    if email and "@" not in email:
        raise ApiError(400, "email is not an address")
    require_strength(password)
    refuse_taken(username)
    user = User(username=username, password_hash=passwords.hash_password(password), role=role, email=email)
    try:
        with transaction() as db:
            db.add(user)
            db.flush()
            audit(db, "users.create", f"user:{user.id}", username=username, role=role)
    except IntegrityError:
        refuse_taken(username)
        raise
    return success("User created", 201, user=user_json(user))


@bp.get("/me")
@login_required
def me():
    return jsonify(user_json(g.user) | {"preferences": g.user.preferences})


@bp.put("/<int:user_id>/role")
@role_required("admin")
def set_role(user_id):
    role = text(json_body(), "role", 20)
    require_role_name(role)
    with transaction() as db:
        admins = set(db.scalars(select(User.id).where(User.role == "admin", User.is_active).with_for_update()))
        user = find_or_404(db, User, user_id, lock=True)
        if role != "admin" and admins == {user.id}:
            raise ApiError(409, "The last admin cannot be demoted", user={"id": user.id, "username": user.username})
        audit(db, "users.set_role", f"user:{user.id}", before=user.role, after=role)
        user.role = role
    return success("Role changed", user=user_json(user))


@bp.delete("/<int:user_id>/sessions")
@login_required
def revoke_sessions(user_id):
    """Log out everywhere: oneself, or as an admin anybody."""
    if user_id != g.user.id and not has_role(g.user, "admin"):
        forbid()
    with transaction() as db:
        user = find_or_404(db, User, user_id)
        ended = revoke(db, UserSession.user_id == user.id)
        audit(db, "users.revoke_sessions", f"user:{user.id}", sessions_revoked=ended)
    answer = success("Sessions revoked", sessions_revoked=ended)
    if user_id != g.user.id:
        return answer
    session.clear()
    return drop_csrf_cookie(answer)


def require_role_name(role: str | None) -> None:
    if role not in ROLES:
        raise ApiError(400, f"Invalid role. Must be one of: {', '.join(ROLES)}")


def refuse_taken(username: str) -> None:
    user = get_session().scalar(select(User).where(User.username == username))
    if user is not None:
        existing = {"id": user.id, "username": user.username}
        raise ApiError(409, "A user with this name already exists", user=existing)
