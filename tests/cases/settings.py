"""Settings."""

from typing import Any

from .case import Case, read, write

CHANGED = ("$.updated_at",)


def put(name: str, status: int, value: Any, key: str = "schedule_time", **more: Any) -> Case:
    mask = CHANGED if status == 200 else ()
    request = f"PUT /api/settings/{key}"
    return write("settings.put_setting", name, request, status, "admin", json={"value": value}, mask=mask, **more)


def bulk(name: str, status: int, values: Any) -> Case:
    return write("settings.put_bulk", name, "PUT /api/settings/bulk", status, "admin", json=values, wire="W19")


SECRET = "youtube_api_key"

CASES = [
    read("settings.get_settings", "all", "/api/settings/", user="admin", wire="W21"),
    read(
        "settings.get_settings",
        "secrets-masked",
        "/api/settings/",
        user="admin",
        setup=(put("secret-first", 200, "s3cret", SECRET),),
        mask=(f"$.settings.{SECRET}.updated_at",),
    ),
    read("settings.get_setting", "one", "/api/settings/schedule_time", user="admin"),
    read("settings.get_setting", "secret-empty", f"/api/settings/{SECRET}", user="admin"),
    read(
        "settings.get_setting",
        "after-a-change",
        "/api/settings/schedule_time",
        user="admin",
        setup=(put("change-first", 200, "05:00"),),
        mask=CHANGED,
        wire="W20",
    ),
    read("settings.get_setting", "unknown", "/api/settings/nothing", 404, "admin"),
    read("settings.get_setting", "other-case", "/api/settings/Schedule_Time", 404, "admin"),
    read("settings.get_setting", "bulk-is-no-key", "/api/settings/bulk", 404, "admin", wire="W34"),
    put("text", 200, "04:30"),
    put("same", 200, "03:00"),
    put("empty", 200, ""),
    put("spaces-stay", 200, "  a  "),
    put("true", 200, True, wire="W19"),
    put("null", 200, None, wire="W19"),
    put("number", 200, 5),
    put("float", 200, 0.10),
    put("exponent", 200, 1e30),
    put("unicode", 200, "čas 🎵"),
    put("new-key", 200, "x", "my_own"),
    put("new-key-unicode", 200, "x", "%C3%A9t%C3%A9%20"),
    put("secret", 200, "s3cret", SECRET),
    put("secret-mask-comes-back", 200, "********", SECRET, setup=(put("secret-first", 200, "s3cret", SECRET),)),
    put("secret-emptied", 200, "", SECRET, setup=(put("secret-first", 200, "s3cret", SECRET),)),
    put("list", 400, ["a"]),
    put("object", 400, {"a": 1}),
    put("long", 400, "x" * 10_001),
    put("long-key", 400, "x", "k" * 101),
    put("blank-key", 400, "x", "%20"),
    put("broken-surrogate", 400, "\udfff"),
    write(
        "settings.put_setting", "no-value", "PUT /api/settings/schedule_time", 400, "admin", json={"val": 1}, wire="W8"
    ),
    bulk("texts", 200, {"schedule_time": "06:00", "preferred_quality": "720p"}),
    bulk("true-and-null", 200, {"schedule_enabled": True, "schedule_time": None, "max_concurrent_downloads": 4}),
    bulk("new-keys", 200, {"b": "2", "a": "1", "ä": "3"}),
    bulk("all-or-nothing", 400, {"schedule_time": "06:00", "zzz": [1]}),
    bulk("secret-mask", 200, {SECRET: "********"}),
    bulk("empty-key", 400, {"": "x"}),
]
