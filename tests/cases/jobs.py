"""Jobs, seen, begun and cancelled. Nobody works on those that a case has written into the table."""

from typing import Any

from .case import Case, read, write
from .outside import setting

JOBS = "/api/jobs/"
ACTIVE = "of the case"  # whoever waits for the end of all jobs does not wait for this one
ITS_PATH = "/api/jobs/of%20the%20case"
NOW, LONG_AGO = "2036-01-01 12:00:00", "2026-01-01 12:00:00"


def job(job_id: str, status: str, kind: str = "index", /, **columns: Any) -> str:
    """The statement that makes a row."""
    values = {"id": job_id, "type": kind, "status": status, "progress": 40, "message": "so far", "attempts": 1}
    values |= {"created_at": LONG_AGO, "updated_at": NOW, **columns}
    if status in ("queued", "running"):
        values["active_type"] = ":".join(filter(None, (kind, columns.get("target"))))
    shown = ", ".join("NULL" if value is None else repr(value) for value in values.values())
    return f"INSERT INTO jobs ({', '.join(values)}) VALUES ({shown})"


SEVERAL = (
    job(
        "a", "completed", created_at="2026-01-03 12:00:00", result='{"files": 3}', started_at=LONG_AGO, finished_at=NOW
    ),
    job("b", "failed", "discovery", created_at="2026-01-02 12:00:00", error="YouTube is not available"),
    job("c", "cancelled", "transcode", created_at="2026-01-04 12:00:00", target="video:3", created_by=1),
    job("same-time", "completed", created_at="2026-01-03 12:00:00"),
    job("part", "completed", "enrichment_part", parent_id="a"),
)
PLAYLIST = (
    (
        "INSERT INTO playlist_monitors (playlist_id, title, auto_download, video_count, created_at, updated_at) "
        f"VALUES ('PLgone', 'Gone', 0, 0, '{LONG_AGO}', '{LONG_AGO}')"
    ),
)


def listed(name: str, query: str = "", status: int = 200, **more: Any) -> Case:
    return read("jobs.list_jobs", name, JOBS, status, query=query, sql=SEVERAL, **more)


def shown(name: str, path: str, status: int = 200, **more: Any) -> Case:
    return read("jobs.get_job", name, f"{JOBS}{path}", status, **more)


def started(name: str, kind: Any, status: int = 202, **more: Any) -> Case:
    mask = ("$.job_id",) if status == 202 else ()
    json = {"json": {"type": kind}}
    return write("jobs.start_job", name, "POST /api/jobs/", status, "manager", mask=mask, **json | more)


def cancelled(name: str, status: int, path: str = ITS_PATH, **more: Any) -> Case:
    return write("jobs.cancel_job", name, f"POST {path}/cancel", status, "user", **more)


IN_REDIS = ("$.redis", "$.queues", "$.workers")  # only the port has one here; see tests/unit/test_system.py
CASES = [
    read("jobs.list_queues", "counted", "/api/jobs/queues", sql=SEVERAL, mask=IN_REDIS),
    read(
        "jobs.list_queues",
        "nothing",
        "/api/jobs/queues",
        sql=("DELETE FROM jobs", "DELETE FROM downloads"),
        mask=IN_REDIS,
    ),
    read("jobs.list_jobs", "none", JOBS, sql=("DELETE FROM jobs",)),
    listed("newest-first"),
    listed("one-type", "type=index"),
    listed("one-status", "status=completed"),
    listed("type-and-status", "type=index&status=failed"),
    listed("type-unknown", "type=bogus", wire="W13"),
    listed("status-empty", "status="),
    listed("status-twice", "status=failed&status=completed", wire="W14"),
    listed("second-page", "page=2&per_page=2"),
    listed("page-after-the-last", "page=9"),
    listed("page-zero", "page=0&per_page=0", wire="W12"),
    listed("page-abc", "page=abc", 400, wire="W10"),
    read("jobs.list_jobs", "no-slash", "/api/jobs", 308, wire="W1"),
    shown("completed", "a", sql=SEVERAL),
    shown("of-a-video", "c", sql=SEVERAL),
    shown("part", "part", sql=SEVERAL),
    shown("running", "of%20the%20case", sql=(job(ACTIVE, "running"),)),
    shown("unknown", "0" * 32, 404),
    shown("other-case", "A", 404, sql=SEVERAL),
    shown("blank-behind", "a%20", 404, sql=SEVERAL),
    shown("too-long", "a" * 65, 404),
    shown("letters", "%F0%9F%8E%B8", 404),
    shown("no-utf8", "%ff", 404),
    shown("null", "a%00", 404, sql=SEVERAL),
    shown("quote", "'%20OR%201=1", 404, sql=SEVERAL),
    shown("slash-behind", "a/", 404, wire="W3"),
    started("index", "index"),
    started("playlists", "playlists"),
    started("playlists-gone", "playlists", sql=PLAYLIST),
    started("discovery", "discovery", outside={"youtube": {"status": 500}}),
    started("discovery-without-a-key", "discovery", 400, sql=setting("youtube_api_key", "")),
    started("playlists-without-a-key", "playlists", 400, sql=setting("youtube_api_key", "")),
    started("enrichment-without-a-key", "enrichment", 400, sql=setting("imvdb_api_key", "")),
    started("running", "index", 409, sql=(job(ACTIVE, "running"),)),
    started("queued", "enrichment", 409, sql=(job(ACTIVE, "queued", "enrichment"),)),
    started("other-type-runs", "index", sql=(job(ACTIVE, "running", "discovery"),)),
    started("transcode", "transcode", 400),
    started("part", "enrichment_part", 400),
    started("unknown", "bogus", 400),
    started("capitals", "Index", 400),
    started("blanks-around", " index "),
    started("null", None, 400),
    started("number", 5, 400),
    started("list", ["index"], 400),
    started("too-long", "x" * 51, 400),
    started("other-field", None, 400, json={"kind": "index"}),
    cancelled("running", 200, sql=(job(ACTIVE, "running"),)),
    cancelled("queued", 200, sql=(job(ACTIVE, "queued", "transcode", target="video:3", retry_at=NOW),)),
    cancelled(
        "with-parts",
        200,
        sql=(
            job(ACTIVE, "running", "enrichment"),
            job("done", "completed", "enrichment_part", parent_id=ACTIVE),
            job("waits", "queued", "enrichment_part", parent_id=ACTIVE),
        ),
    ),
    cancelled("part-of-another", 200, sql=(job(ACTIVE, "queued", "enrichment_part", parent_id="whole"),)),
    cancelled("begun-by-another", 200, sql=(job(ACTIVE, "running", created_by=1),)),
    cancelled("id-of-a-download", 404, "/api/jobs/3"),
    cancelled("twice", 400, sql=(job(ACTIVE, "cancelled"),)),
    cancelled("completed", 400, sql=(job(ACTIVE, "completed"),)),
    cancelled("failed", 400, sql=(job(ACTIVE, "failed"),)),
    cancelled("forgotten", 200, sql=(job(ACTIVE, "running", updated_at=LONG_AGO),)),
    cancelled("unknown", 404),
    cancelled("malformed", 404, "/api/jobs/%F0%9F%8E%B8"),
    cancelled("body-is-ignored", 200, sql=(job(ACTIVE, "running"),), body=b"nonsense"),
    write("jobs.cancel_job", "get", f"GET {ITS_PATH}/cancel", 405, "user", wire="W3"),
]
