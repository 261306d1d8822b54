"""Settings."""

from typing import Any

from .case import Case, read, write
from .discovery import setting

CHANGED = ("$.updated_at",)


def put(name: str, status: int, value: Any, key: str = "schedule_time", **more: Any) -> Case:
    mask = CHANGED if status == 200 else ()
    request = f"PUT /api/settings/{key}"
    return write("settings.put_setting", name, request, status, "admin", json={"value": value}, mask=mask, **more)


def bulk(name: str, status: int, values: Any) -> Case:
    return write("settings.put_bulk", name, "PUT /api/settings/bulk", status, "admin", json=values, wire="W19")


def planned(name: str, user: str = "readonly", sql: tuple[str, ...] = (), **texts: str) -> Case:
    """The schedule with these settings; when it runs next depends on when it is asked."""
    told = tuple(statement for key, text in texts.items() for statement in setting(f"schedule_{key}", text))
    path, mask = "/api/settings/scheduler/status", ("$.next_run",)
    return read("settings.scheduler_status", name, path, user=user, sql=(*told, *sql), mask=mask)


def trigger(name: str, status: int, **more: Any) -> Case:
    request = "POST /api/settings/scheduler/trigger"
    return write("settings.scheduler_trigger", name, request, status, "manager", mask=("$.job_id",), **more)


def job(
    status: str, finished_at: str = "NULL", updated_at: str = "'2026-01-01 00:00:00'", kind: str = "discovery"
) -> str:
    return (
        "INSERT INTO jobs (id, type, status, created_at, updated_at, finished_at)"
        f" VALUES ('of the case', '{kind}', '{status}', '2026-01-01 00:00:00', {updated_at}, {finished_at})"
    )


SECRET = "youtube_api_key"
LATER = "'2099-01-01 00:00:00'"  # of a job that gives signs of life

SCHEDULER = [
    planned("usual"),
    planned("enabled", enabled="true"),
    planned("enabled-in-words", enabled=" Yes "),
    planned("enabled-nonsense", enabled="maybe"),
    planned("days", enabled="true", time="7:05", days="mon, Weekends", max_videos="3"),
    planned("time-nonsense", enabled="true", time="quarter past"),
    planned("time-25", enabled="true", time="25:00"),
    planned("time-of-twelve-hours", enabled="true", time="03:00 pm"),
    planned("days-nonsense", enabled="true", days="[1, 2, {]"),
    planned("days-emptied", enabled="true", days=""),
    planned("max-videos-nonsense", max_videos="many"),
    planned("max-videos-0", max_videos="0"),
    planned("max-videos-negative", max_videos="-5"),
    planned("max-videos-huge", max_videos="1e300"),
    planned("max-videos-infinite", max_videos="inf"),
    planned("max-videos-half", max_videos="2.5"),
    planned("as-admin", user="admin"),
    planned("has-run", sql=(job("completed", "'2026-02-03 04:05:06.700000'"),), enabled="true"),
    planned("has-failed", sql=(job("failed", "'2026-02-03 04:05:06'"),)),
    planned("something-else-has-run", sql=(job("completed", "'2026-02-03 04:05:06'", kind="index"),)),
    planned("is-running", sql=(job("running", updated_at=LATER),)),
    planned("is-queued", sql=(job("queued", updated_at=LATER),)),
    planned("running-without-a-sign-of-life", sql=(job("running"),)),
    trigger("now", 202),
    trigger("few", 202, sql=setting("schedule_max_videos", "1")),
    trigger(
        "nonsense-in-the-settings", 202, sql=(*setting("schedule_max_videos", "x"), *setting("schedule_days", "x"))
    ),
    trigger("running", 409, sql=(job("running", updated_at=LATER),)),
    trigger("running-without-a-sign-of-life", 202, sql=(job("running"),)),
    trigger("nobody-monitored", 202, sql=("UPDATE artists SET monitored = 0",)),
    trigger("key-missing", 400, sql=setting("youtube_api_key", "")),
    trigger("key-wrong", 202, sql=setting("youtube_api_key", "wrong")),
    trigger("quota", 202, outside={"youtube": {"quota": True}}),
]

CASES = [
    *SCHEDULER,
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
    put("secret-that-has-no-row", 200, "s3cret", SECRET, sql=(f"DELETE FROM settings WHERE `key` = '{SECRET}'",)),
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
