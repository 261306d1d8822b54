"""Accounts."""

from typing import Any

from .case import Case, read, write

CREATED = ("$.user.created_at",)
STRONG = "Strong-pass-1"


def listed(name: str, query: str, status: int = 200, **more: Any) -> Case:
    mask = ("$.users[*].last_login_at",)
    return read("users.list_users", name, "/api/users/", status, "admin", query=query, mask=mask, **more)


def create(name: str, status: int, username: Any = "newcomer", password: Any = STRONG, **more: Any) -> Case:
    fields = {"username": username, "password": password} | more.pop("fields", {})
    mask = CREATED if status == 201 else ()
    return write("users.create_user", name, "POST /api/users/", status, "admin", json=fields, mask=mask, **more)


def set_role(name: str, status: int, user_id: int, role: Any, **more: Any) -> Case:
    user = more.pop("user", "admin")
    return write("users.set_role", name, f"PUT /api/users/{user_id}/role", status, user, json={"role": role}, **more)


CASES = [
    listed("all", ""),
    listed("page-2", "page=2&per_page=4"),
    listed("page-9", "page=9"),
    listed("page-0", "page=0&per_page=0", wire="W12"),
    listed("page-abc", "page=abc", 400, wire="W10"),
    create("plain", 201),
    create("all-fields", 201, fields={"role": "manager", "email": "new@music.test", "extra": 1}),
    create("capitals", 201, "NewComer"),
    create("name-is-a-number", 201, 12345, wire="W15"),
    create("taken", 409, "user"),
    create("taken-in-capitals", 409, "USER"),
    create("taken-just-now", 409, setup=(create("first", 201),)),
    create("short-name", 400, "ab"),
    create("name-with-space", 400, "new comer"),
    create("name-is-null", 400, None),
    create("weak-password", 400, password="password"),
    create("no-password", 400, password=None),
    create("unknown-role", 400, fields={"role": "root"}),
    create("no-address", 400, fields={"email": "nobody"}),
    read("users.me", "user", "/api/users/me", user="user", mask=("$.last_login_at",), wire="W34"),
    read("users.me", "readonly", "/api/users/me", mask=("$.last_login_at",)),
    set_role("up", 200, 4, "user", mask=("$.user.last_login_at",)),
    set_role("same", 200, 4, "readonly", mask=("$.user.last_login_at",)),
    set_role("second-admin-goes", 200, 3, "user", setup=(set_role("first", 200, 3, "admin"),)),
    set_role("last-admin", 409, 1, "user"),
    set_role("unknown-role", 400, 4, "root"),
    set_role("role-is-null", 400, 4, None),
    set_role("role-is-a-list", 400, 4, ["admin"]),
    set_role("unknown-user", 404, 999, "user"),
    set_role("huge-id", 404, 10**20, "user"),
    read(
        "users.list_users",
        "demoted-meanwhile",
        "/api/users/",
        403,
        "admin",
        setup=(set_role("other-admin", 200, 3, "admin"), set_role("demote", 200, 1, "user", user="user")),
    ),
    write("users.revoke_sessions", "other", "DELETE /api/users/3/sessions", 200, "admin"),
    write("users.revoke_sessions", "own", "DELETE /api/users/3/sessions", 200, "user"),
    write("users.revoke_sessions", "others-as-manager", "DELETE /api/users/3/sessions", 403, "manager"),
    write("users.revoke_sessions", "unknown-as-user", "DELETE /api/users/999/sessions", 403, "user"),
    write("users.revoke_sessions", "unknown", "DELETE /api/users/999/sessions", 404, "admin"),
    write("users.revoke_sessions", "none-left", "DELETE /api/users/5/sessions", 200, "admin"),
]
