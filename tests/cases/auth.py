"""Signing in and out, sessions, CSRF."""

from typing import Any

from .case import ORIGIN, Case, read, write

PASSWORDS = {
    "admin": "Admin-pass-1",
    "manager": "Manager-pass-1",
    "user": "User-pass-1",
    "readonly": "Readonly-pass-1",
    "veteran": "Veteran-pass-1",  # a user whose password hash was made by Werkzeug
    "former": "Former-pass-1",  # cannot sign in: not active any more
}
SIGNED_IN = ("$.expires_at", "$.user.last_login_at")
LAST_LOGIN = ("$.user.last_login_at",)
EXPIRED = "UPDATE user_sessions SET expires_at = '2020-01-01 00:00:00.000000'"
IDLE = "UPDATE user_sessions SET last_activity_at = '2026-01-01 00:00:00.000000'"
INACTIVE = "UPDATE users SET is_active = 0 WHERE username = 'user'"
LONG_AGO = "UPDATE login_attempts SET window_start = '2020-01-01 00:00:00.000000'"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def login(name: str, status: int, username: Any = "user", password: Any = PASSWORDS["user"], **more: Any) -> Case:
    if status == 200:
        more = {"mask": SIGNED_IN} | more
    credentials = {"username": username, "password": password}
    return write(
        "auth.login", name, "POST /auth/login", status, more.pop("user", "anonymous"), json=credentials, **more
    )


def form_login(name: str, data: dict[str, str], **more: Any) -> Case:
    return write("auth.login", name, "POST /auth/login", 302, "anonymous", data=data, wire="W37", **more)


def wrong(number: int, username: str = "user") -> Case:
    return login(f"wrong-{number}", 401, username, "Wrong-pass-1")


def change(name: str, status: int, old: Any, new: Any, **more: Any) -> Case:
    passwords = {"old_password": old, "new_password": new}
    return write("auth.change_password", name, "PUT /auth/password", status, "user", json=passwords, **more)


def logout(name: str, status: int, user: str = "user", **more: Any) -> Case:
    return write("auth.logout", name, "POST /auth/logout", status, user, **more)


def first_run(name: str, status: int, username: Any = "Owner", password: Any = "Owner-pass-1", **more: Any) -> Case:
    """With an empty table of users, unless `sql` says otherwise."""
    if status == 201:
        more = {"mask": (*SIGNED_IN, "$.user.created_at")} | more
    credentials = {"username": username, "password": password}
    sql = more.pop("sql", ("DELETE FROM users",))
    user = more.pop("user", "anonymous")
    return write("auth.first_run", name, "POST /auth/first-run", status, user, json=credentials, sql=sql, **more)


NEW_PASSWORD = "Brand-new-pass-2"

LOGIN = [
    login("json", 200),
    login("admin", 200, "admin", PASSWORDS["admin"]),
    login("name-in-capitals", 200, " USER ", PASSWORDS["user"]),
    login("old-hash", 200, "veteran", PASSWORDS["veteran"]),
    login("old-hash-wrong", 401, "veteran", "Wrong-pass-1"),
    login(
        "old-hash-twice",
        200,
        "veteran",
        PASSWORDS["veteran"],
        setup=(login("old-hash-first", 200, "veteran", PASSWORDS["veteran"]),),
    ),
    login("wrong-password", 401, password="Wrong-pass-1"),
    login("password-with-spaces", 401, password=f" {PASSWORDS['user']} "),
    login("unknown-user", 401, "nobody", "Wrong-pass-1"),
    login("not-active", 401, "former", PASSWORDS["former"]),
    login("not-active-and-wrong", 401, "former", "Wrong-pass-1"),
    login("numbers", 401, 5, 5, wire="W15"),
    login("name-is-a-list", 400, ["user"]),
    login("password-is-an-object", 400, password={"a": 1}),
    login("no-password", 400, password=None),
    login("empty-name", 400, "", "x"),
    login("long-name", 400, "u" * 51),
    login("73-bytes", 400, password="é" * 36 + "x"),
    login("72-bytes", 401, password="é" * 36),
    login("broken-surrogate", 400, password="\ud800"),
    login("from-here", 200, headers={"Origin": ORIGIN}),
    login("from-elsewhere", 403, headers={"Origin": "https://evil.test"}),
    login("from-null", 403, headers={"Origin": "null"}),
    login("replaces-the-session", 200, user="user"),
    form_login("form", {"username": "user", "password": PASSWORDS["user"]}),
    form_login("form-next", {"username": "user", "password": PASSWORDS["user"], "next": "/videos?page=2"}),
    form_login("form-next-in-query", {"username": "user", "password": PASSWORDS["user"]}, query="next=/artist/1"),
    form_login("form-next-elsewhere", {"username": "user", "password": PASSWORDS["user"], "next": "//evil.test/"}),
    form_login("form-next-absolute", {"username": "user", "password": PASSWORDS["user"], "next": "https://evil.test"}),
    form_login("form-next-backslash", {"username": "user", "password": PASSWORDS["user"], "next": "/\\evil.test"}),
    form_login("form-wrong", {"username": "user", "password": "wrong"}),
    form_login("form-wrong-next", {"username": "user", "password": "wrong", "next": "/videos?a=b&c=d"}),
    form_login("form-empty", {"username": "", "password": ""}),
    form_login("form-from-elsewhere", {"username": "user", "password": "x"}, headers={"Origin": "https://evil.test"}),
    form_login("form-multipart", {"username": "user", "password": PASSWORDS["user"]}, files={}),
    form_login("form-without-fields", {}, headers=FORM),
]

LOCKOUT = [
    login("fifth-attempt", 200, setup=tuple(map(wrong, range(4)))),
    login("locked", 429, setup=tuple(map(wrong, range(5))), mask=("header.retry-after",)),
    login("locked-wrong", 429, password="x", setup=tuple(map(wrong, range(5))), mask=("header.retry-after",)),
    login("another-account", 200, "admin", PASSWORDS["admin"], setup=tuple(map(wrong, range(5)))),
    login("unlocked-after-a-while", 200, setup=tuple(map(wrong, range(5))), sql=(LONG_AGO,)),
    login(
        "unknown-user-locked",
        429,
        "nobody",
        "x",
        setup=tuple(wrong(number, "nobody") for number in range(5)),
        mask=("header.retry-after",),
    ),
    login(
        "success-forgives",
        401,
        password="x",
        setup=(*map(wrong, range(4)), login("right", 200), *map(wrong, range(4))),
    ),
    login(
        "address-limit",
        429,
        setup=tuple(wrong(number, f"nobody{number}") for number in range(20)),
        mask=("header.retry-after",),
    ),
    Case(
        "auth.login:form-locked",
        "auth.login",
        "POST",
        "/auth/login",
        302,
        data={"username": "user", "password": PASSWORDS["user"]},
        setup=tuple(map(wrong, range(5))),
        wire="W37",
    ),
]

FIRST_RUN = [
    first_run("nobody-has-an-account", 201),
    first_run("from-here", 201, headers={"Origin": ORIGIN}),
    first_run("with-a-cookie-of-a-lost-account", 201, user="user"),
    first_run("somebody-has-one", 403, sql=()),
    first_run("somebody-has-one-and-is-signed-in", 403, sql=(), user="admin"),
    first_run("somebody-had-one-and-is-not-active", 403, sql=("UPDATE users SET is_active = 0",)),
    first_run("from-elsewhere", 403, headers={"Origin": "https://evil.test"}),
    first_run("no-name", 400, None),
    first_run("name-with-a-slash", 400, "a/b"),
    first_run("name-is-a-list", 400, ["owner"]),
    first_run("no-password", 400, password=None),
    first_run("weak-password", 400, password="abcdefgh"),
    first_run("73-bytes", 400, password="Aa1!" + "é" * 35),
]

SESSIONS = [
    read("auth.check", "anonymous", "/auth/check", user="anonymous"),
    *(read("auth.check", user, "/auth/check", user=user, mask=LAST_LOGIN) for user in ("readonly", "admin")),
    read("auth.check", "slides", "/auth/check", user="user", sql=(IDLE,), mask=LAST_LOGIN, wire="W32"),
    read("auth.check", "expired", "/auth/check", user="user", sql=(EXPIRED,)),
    read("auth.check", "user-deactivated", "/auth/check", user="user", sql=(INACTIVE,)),
    read("auth.check", "signed-out", "/auth/check", user="user", setup=(logout("first", 200),)),
    read(
        "auth.check", "bearer-junk", "/auth/check", user="user", headers={"Authorization": "Bearer x"}, mask=LAST_LOGIN
    ),
    read("auth.check", "basic", "/auth/check", user="user", headers={"Authorization": "Basic eDp5"}, mask=LAST_LOGIN),
    read(
        "auth.check",
        "logged-out-everywhere",
        "/auth/check",
        user="user",
        setup=(write("users.revoke_sessions", "first", "DELETE /api/users/3/sessions", 200, "admin"),),
    ),
    read("auth.check", "cookie-tampered", "/auth/check", user="user", headers={"Cookie": "mv_session={session}x"}),
    read("auth.check", "cookie-garbage", "/auth/check", user="anonymous", headers={"Cookie": "mv_session=garbage"}),
    read("auth.check", "cookie-empty", "/auth/check", user="anonymous", headers={"Cookie": "mv_session="}),
    read(
        "auth.check",
        "cookie-twice",
        "/auth/check",
        user="user",
        headers={"Cookie": "mv_session={session}; mv_session=garbage"},
        mask=LAST_LOGIN,
    ),
    read(
        "auth.check",
        "cookie-twice-garbage-first",
        "/auth/check",
        user="user",
        headers={"Cookie": "mv_session=garbage; mv_session={session}"},
    ),
    read(
        "auth.session_info",
        "user",
        "/auth/session",
        user="user",
        mask=("$.session.*_at", "$.session.user_agent", "$.csrf_token", "$.user.last_login_at"),
        wire="W22",
    ),
    read("auth.session_info", "expired", "/auth/session", 401, user="user", sql=(EXPIRED,)),
    logout("json", 200),
    logout("twice", 401, setup=(logout("first", 200),)),
    logout("role-is-no-matter", 200, user="readonly"),
]

CSRF = [
    logout("no-origin", 403, headers={"Origin": ""}),
    logout("other-origin", 403, headers={"Origin": "https://evil.test"}),
    logout("other-port", 403, headers={"Origin": f"{ORIGIN}:8080"}),
    logout("default-port", 200, headers={"Origin": f"{ORIGIN}:80"}),
    logout("null-origin", 403, headers={"Origin": "null"}),
    logout("broken-origin", 403, headers={"Origin": "http://["}),
    logout("lookalike-origin", 403, headers={"Origin": f"{ORIGIN}.evil.test"}),
    logout("referer", 200, headers={"Origin": "", "Referer": f"{ORIGIN}/artists?page=2"}),
    logout("other-referer", 403, headers={"Origin": "", "Referer": f"https://evil.test/?{ORIGIN}"}),
    logout("token", 200, headers={"Origin": "", "X-CSRF-Token": "{csrf_token}"}),
    logout("token-and-other-origin", 200, headers={"Origin": "https://evil.test", "X-CSRF-Token": "{csrf_token}"}),
    logout("wrong-token", 403, headers={"Origin": "", "X-CSRF-Token": "0" * 64}),
    logout("token-that-is-no-ascii", 403, headers={"Origin": "", "X-CSRF-Token": "caf\xe9"}),
]

PASSWORD = [
    change("right", 200, PASSWORDS["user"], NEW_PASSWORD),
    login(
        "with-new-password", 200, password=NEW_PASSWORD, setup=(change("first", 200, PASSWORDS["user"], NEW_PASSWORD),)
    ),
    login("with-old-password", 401, setup=(change("first", 200, PASSWORDS["user"], NEW_PASSWORD),)),
    change(
        "ends-other-sessions",
        200,
        PASSWORDS["user"],
        NEW_PASSWORD,
        setup=(login("second-session", 200), login("third-session", 200)),
    ),
    read(
        "auth.check",
        "own-session-survives-a-new-password",
        "/auth/check",
        user="user",
        setup=(change("first", 200, PASSWORDS["user"], NEW_PASSWORD),),
        mask=LAST_LOGIN,
    ),
    change("wrong-old", 400, "Wrong-pass-1", NEW_PASSWORD),
    change("long-old", 400, "x" * 100, NEW_PASSWORD),
    change(
        "guessing",
        429,
        PASSWORDS["user"],
        NEW_PASSWORD,
        setup=tuple(change(f"guess-{number}", 400, "Wrong-pass-1", NEW_PASSWORD) for number in range(5)),
        mask=("header.retry-after",),
    ),
    change("missing-new", 400, PASSWORDS["user"], None),
    change("short", 400, PASSWORDS["user"], "Ab1!"),
    change("everything-missing", 400, PASSWORDS["user"], "       "),
    change("only-letters", 400, PASSWORDS["user"], "abcdefgh"),
    change("common", 400, PASSWORDS["user"], "Password1!"),
    change("73-bytes", 400, PASSWORDS["user"], "Aa1!" + "é" * 35),
    change("72-bytes", 200, PASSWORDS["user"], "Aa1!" + "é" * 34),
    change("unicode", 200, PASSWORDS["user"], "Ünïcode-१२३"),
]

CASES = [*LOGIN, *LOCKOUT, *FIRST_RUN, *SESSIONS, *CSRF, *PASSWORD]
