"""Health, the process, the disk and the log."""

from typing import Any

from .case import Case, read, write

NOW = ("$.timestamp",)
BY_NATURE = ("$.pid", "$.started_at", "$.uptime_seconds", "$.memory_bytes")
IN_MOTION = ("$.roots[*].used", "$.roots[*].free")

LOG = b"".join(b"2026-01-31T12:00:00Z WARNING app: line %d\n" % n for n in range(1, 1201))


def logs(name: str, query: str = "", content: bytes | None = LOG, **more: Any) -> Case:
    return read("system.recent_logs", name, "/admin/system/logs/recent", user="admin", query=query, log=content, **more)


def restart(name: str, status: int, user: str = "admin", **more: Any) -> Case:
    return write("system.restart", name, "POST /admin/system/restart", status, user, **more)


CASES = [
    read("system.health", "anonymous", "/api/health", user="anonymous", mask=NOW),
    read("system.health", "signed-in", "/api/health", user="user", mask=NOW, wire="W32"),
    read("system.health", "slash", "/api/health/", 404, user="anonymous", wire="W1"),
    read("system.health_status", "anonymous", "/api/health/status", user="anonymous", mask=NOW),
    read("system.health_status", "signed-in", "/api/health/status", user="readonly", mask=NOW, wire="W32"),
    read("system.health_status", "slash", "/api/health/status/", 404, user="anonymous", wire="W1"),
    write("system.health_status", "post", "POST /api/health/status", 405, "admin", wire="W3"),
    read("system.service_status", "admin", "/admin/system/status/service", user="admin", mask=BY_NATURE),
    read(
        "system.service_status",
        "other-unit",
        "/admin/system/status/service",
        user="admin",
        query="unit=ssh.service&unit=-H",
        mask=BY_NATURE,
    ),
    read("system.service_status", "slash", "/admin/system/status/service/", 404, "admin", wire="W1"),
    read("system.disk_usage", "all", "/admin/system/disk", user="admin", mask=IN_MOTION),
    read(
        "system.disk_usage", "other-root", "/admin/system/disk", user="admin", query="root=/&path=/etc", mask=IN_MOTION
    ),
    logs("default-100"),
    logs("lines-1", "lines=1"),
    logs("lines-250", "lines=250"),
    logs("lines-0", "lines=0"),
    logs("lines-negative", "lines=-1"),
    logs("lines-above-1000", "lines=1001"),
    logs("lines-huge", f"lines={10**30}"),
    logs("lines-abc", "lines=abc", wire="W11"),
    logs("lines-empty", "lines="),
    logs("lines-float", "lines=1.5"),
    logs("lines-twice", "lines=2&lines=5", wire="W14"),
    logs("lines-digits-of-others", "lines=%D9%A3"),
    logs("lines-many-digits", f"lines={'9' * 5000}"),
    logs("no-file", content=None),
    logs("empty-file", content=b""),
    logs("one-newline", content=b"\n"),
    logs("without-end-of-line", "lines=2", content=b"one\ntwo\nthree"),
    logs("windows", content=b"one\r\ntwo\r\n\r\n"),
    logs("garbage", content=bytes(range(256)) * 20),
    logs("no-utf8", content="čas 🎵\n".encode() + b"\xff\xfe\xed\xa0\x80 end\n"),
    logs("zeros", content=b"\0" * 5000 + b"\n"),
    logs("separators-of-unicode", content="a\u2028b\u0085c\x0bd\x1ce\n".encode()),
    logs("line-of-3-mb", content=b"first\n" + b"x" * 3_000_000 + b"\nlast\n"),
    logs("cut-within-a-character", content="🎵".encode() * 700_000),
    logs("1000-lines-of-2-kb", "lines=1000", content=(b"y" * 2047 + b"\n") * 1100),
    logs("other-file", "file=/etc/passwd&path=../secret_key&name=app.sqlite3&lines=3"),
    read("system.recent_logs", "path", "/admin/system/logs/recent/..%2f..%2fsecret_key", 404, "admin", wire="W3"),
    read("system.recent_logs", "other-log", "/admin/system/logs/passwd", 404, "admin"),
    restart("requested", 202),
    restart("twice", 202, setup=(restart("first", 202),)),
    restart("with-another-command", 202, json={"command": ["rm", "-rf", "/"]}),
    restart("query", 202, query="command=reboot"),
    restart("csrf-token", 202, headers={"Origin": "", "X-CSRF-Token": "{csrf_token}"}),
    write("system.restart", "put", "PUT /admin/system/restart", 405, "admin", wire="W3"),
    read("system.restart", "get", "/admin/system/restart", 405, "admin", wire="W3"),
]
