"""Discovery. In the small library artist 1 is Björk on IMVDb, 20 is Daft Punk without an id there; 22 is Nobody.

What the services answer is described in `tests.upstream`.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .case import Case, read, write
from .outside import LISTENING, SOME, failures, keys, recovers, setting

ARTISTS = "/api/discovery/artists"
VIDEOS = "/api/discovery/videos"
IMPORTED = ("$.artist.created_at", "$.artist.updated_at")
STORED = ("$.videos[*].created_at", "$.videos[*].updated_at")


# Artists


def entities(name: str, query: str, status: int = 200, **more: Any) -> Case:
    return read("discovery.discover_artists", name, ARTISTS, status, "user", query=query, **more)


def preview(name: str, imvdb_id: str, status: int = 200, **more: Any) -> Case:
    return read("discovery.preview_artist", name, f"{ARTISTS}/{imvdb_id}", status, "user", **more)


def imported(name: str, status: int, imvdb_id: Any, /, outside: Mapping[str, Any] | None = None, **more: Any) -> Case:
    case = {key: more.pop(key) for key in ("setup", "sql") if key in more}
    body = {"imvdb_id": imvdb_id, **more}
    request, mask = f"POST {ARTISTS}/import", IMPORTED if status == 201 else ()
    return write(
        "discovery.import_artist", name, request, status, "user", json=body, outside=outside or {}, mask=mask, **case
    )


def broken_picture(name: str, target: str) -> Case:
    """The picture is somewhere else."""
    return imported(f"picture-{name}", 201, "massive-attack", outside={"images": {"redirect": target}})


FIND_ARTISTS = [
    entities("found", "q=portishead"),
    entities("already-there-by-id", "q=bj%C3%B6rk"),
    entities("already-there-by-name", "q=daft+punk"),
    entities("japanese", f"q={quote('椎名林檎')}"),
    entities("slash", "q=AC%2FDC"),
    entities("markup", "q=%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
    entities("injection", "q=x%27%26key%3Dother%23%3Fq%3Dy"),
    entities("no-utf8", "q=%ff%fe"),
    entities("nul", "q=a%00b"),
    entities("twice", "q=portishead&q=", wire="W14"),
    entities("200-characters", f"q={'x' * 200}"),
    entities("201-characters", f"q={'x' * 201}", 400),
    entities("very-long", f"q={'x' * 6000}", 400),
    entities("nothing", "q=nothing"),
    entities("no-query", "", 400),
    entities("blank", "q=%20%20", 400),
    entities("wrong-types", "q=portishead", outside={"imvdb": {"wrong_types": True}}),
    entities("error-in-200", "q=portishead", 502, outside={"imvdb": {"error_in_200": True}}),
    entities("not-there", "q=portishead", 502, outside={"imvdb": {"status": 404}}),
    entities("address-refused", "q=portishead", 502, sql=setting("imvdb_url", "http://10.0.0.1/")),
    entities("address-nobody-there", "q=portishead", 502, sql=setting("imvdb_url", "http://127.0.0.1:1/x")),
    entities("address-nonsense", "q=portishead", 502, sql=setting("imvdb_url", "no address")),
    entities("address-of-a-file", "q=portishead", 502, sql=setting("imvdb_url", "file:///etc/")),
    entities("address-with-slash", "q=portishead", sql=setting("imvdb_url", "{upstream}/imvdb/")),
    entities("limiter-nonsense", "q=portishead", sql=setting("imvdb_per_second", "many")),
    entities("query-before-key", "", 400, sql=setting("imvdb_api_key", "")),
    *(entities(name, "q=portishead", status, outside=dials) for name, status, dials in failures("imvdb")),
    *(entities(name, "q=portishead", outside=dials) for name, dials in recovers("imvdb")),
    *(entities(name, "q=portishead", 400, sql=sql) for name, sql in keys("imvdb")),
    entities(
        "breaker-open",
        "q=portishead",
        502,
        setup=tuple(entities(f"fails-{number}", "q=x", 502, outside={"imvdb": {"down": True}}) for number in range(5)),
    ),
    entities(
        "404-opens-no-breaker",
        "q=portishead",
        setup=tuple(preview(f"fails-{number}", "none", 404) for number in range(6)),
    ),
    preview("found", "portishead"),
    preview("already-there", "bjork"),
    preview("already-there-by-name", "daft-punk"),
    preview("number", "634"),
    preview("without-videos", "silent-nobody"),
    preview("unknown", "none-of-them", 404),
    preview("leading-zeros", "00634"),
    preview("50-characters", "x" * 50),
    preview("51-characters", "x" * 51, 404),
    preview("dots", "..%2E", 404),
    preview("question-mark", "portishead%3Finclude=x", 404),
    preview("slash", "portishead%2F..%2F634", 404),
    preview("unicode", quote("椎名林檎")),
    preview("import-is-an-id-here", "import", wire="W34"),
    preview("wrong-types", "portishead", 502, outside={"imvdb": {"wrong_types": True}}),
    preview("error-in-200", "portishead", 502, outside={"imvdb": {"error_in_200": True}}),
    *(preview(name, "portishead", status, outside=dials) for name, status, dials in failures("imvdb", *SOME)),
    *(preview(name, "portishead", 400, sql=sql) for name, sql in keys("imvdb", "missing")),
]

IMPORT_ARTISTS = [
    imported("new", 201, "massive-attack"),
    imported("flags", 201, "massive-attack", monitored=False, auto_download="false"),
    imported("number", 201, 634),
    imported("number-as-text", 201, "634"),
    imported("without-picture", 201, "silent-nobody"),
    imported("unicode", 201, "sigur-r-s"),
    imported("told", 201, "massive-attack", sql=LISTENING),
    imported("unknown-field", 201, "massive-attack", name="Other"),
    imported("duplicate-id", 409, "bjork"),
    imported("duplicate-name", 409, "daft-punk"),
    imported("twice", 409, "massive-attack", setup=(imported("first", 201, "massive-attack"),)),
    imported("duplicate-without-asking", 409, "bjork", outside={"imvdb": {"down": True}}),
    imported("unknown", 404, "none-such"),
    imported("hostile", 404, "../634"),
    imported("null", 400, None),
    imported("blank", 400, "  "),
    imported("list", 400, ["massive-attack"]),
    imported("object", 400, {"id": 1}),
    imported("long", 400, "x" * 51),
    imported("surrogate", 400, "\ud83d"),
    imported("true", 201, True),
    imported("wrong-types", 502, "massive-attack", outside={"imvdb": {"wrong_types": True}}),
    imported("error-in-200", 502, "massive-attack", outside={"imvdb": {"error_in_200": True}}),
    *(imported(name, status, "massive-attack", outside=dials) for name, status, dials in failures("imvdb", *SOME)),
    *(imported(name, 400, "massive-attack", sql=sql) for name, sql in keys("imvdb", "missing")),
    *(
        broken_picture(name, f"/images/{name}.jpg")
        for name in ("not-a-picture", "empty", "broken", "bomb", "huge", "none", "redirect", "redirect-loop")
    ),
    *(broken_picture(name, f"/images/{name}.jpg") for name in ("redirect-private", "redirect-file")),
    imported("picture-down", 201, "massive-attack", outside={"images": {"down": True}}),
    imported("picture-500", 201, "massive-attack", outside={"images": {"status": 500}}),
    imported("picture-slow", 201, "massive-attack", outside={"images": {"slow_body_s": 0.1}}),
    imported("picture-endless", 201, "massive-attack", outside={"images": {"huge_body": True}}),
    imported("picture-json", 201, "massive-attack", outside={"images": {"error_in_200": True}}),
    read(
        "artists.artist_thumbnail_size",
        "imported",
        "/api/artists/23/thumbnail/small",
        setup=(imported("first", 201, "massive-attack"),),
        mask=("header.etag", "header.last-modified"),
    ),
]

# Videos


def found(name: str, query: str, status: int = 200, **more: Any) -> Case:
    return read("discovery.search_youtube", name, VIDEOS, status, "user", query=query, **more)


def discover(name: str, status: int = 200, artist_id: int | str = 20, **more: Any) -> Case:
    request, mask = f"POST /api/discovery/artist/{artist_id}", STORED if status == 200 else ()
    return write("discovery.discover_for_artist", name, request, status, "user", mask=mask, **more)


def discover_all(name: str, status: int = 202, **more: Any) -> Case:
    mask = ("$.job_id",) if status == 202 else ()
    return write("discovery.discover_all", name, "POST /api/discovery/all", status, "manager", mask=mask, **more)


FIND_VIDEOS = [
    found("found", "q=portishead"),
    found("one-song", "q=Daft+Punk+-+Static&max_results=5"),
    found("already-there", "q=bj%C3%B6rk+j%C3%B3ga"),
    found("max-results", "q=portishead&max_results=3"),
    found("max-results-0", "q=portishead&max_results=0", wire="W12"),
    found("max-results-negative", "q=portishead&max_results=-3"),
    found("max-results-many", "q=portishead&max_results=1000"),
    found("max-results-huge", "q=portishead&max_results=99999999999999999999"),
    found("max-results-abc", "q=portishead&max_results=abc", wire="W11"),
    found("max-results-twice", "q=portishead&max_results=2&max_results=3", wire="W14"),
    found("japanese", f"q={quote('椎名林檎')}"),
    found("markup", "q=%3Cb%3E&max_results=2"),
    found("injection", "q=x%26key%3Dother%26maxResults%3D1&max_results=2"),
    found("no-utf8", "q=%ff"),
    found("nothing", "q=nothing"),
    found("no-query", "max_results=5", 400),
    found("blank", "q=+", 400),
    found("long", f"q={'x' * 201}", 400),
    found("wrong-types", "q=portishead", outside={"youtube": {"wrong_types": True}}),
    found("videos-wrong-types", "q=portishead", outside={"youtube": {"wrong_types": True, "only": "/videos"}}),
    found("videos-down", "q=portishead", 502, outside={"youtube": {"down": True, "only": "/videos"}}),
    found("error-in-200", "q=portishead", 502, outside={"youtube": {"error_in_200": True}}),
    found("quota", "q=portishead", 429, outside={"youtube": {"quota": True}}),
    found("quota-between", "q=portishead", 429, outside={"youtube": {"quota": True, "only": "/videos"}}),
    *(found(name, "q=portishead", status, outside=dials) for name, status, dials in failures("youtube")),
    *(found(name, "q=portishead&max_results=2", outside=dials) for name, dials in recovers("youtube")),
    *(found(name, "q=portishead", 400, sql=sql) for name, sql in keys("youtube")),
]

DISCOVER = [
    discover("new"),
    discover("twice", setup=(discover("first"),)),
    discover("until-there-is-nothing", setup=(discover("first"), discover("second"), discover("third"))),
    discover("some-are-there", artist_id=1),
    discover("told", sql=LISTENING),
    discover("nothing-new-told", artist_id=22, sql=(*LISTENING, "UPDATE artists SET name = 'nothing' WHERE id = 22")),
    *(discover(f"artist-{number}", artist_id=number) for number in (3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 16, 17)),
    discover("leading-zeros", artist_id="0020"),
    discover("nothing-found", artist_id=22, sql=("UPDATE artists SET name = 'nothing' WHERE id = 22",)),
    discover("body-is-ignored", json={"limit": 1}),
    discover("threshold-0", sql=setting("discovery_threshold", "0")),
    discover("threshold-100", sql=setting("discovery_threshold", "100")),
    discover("threshold-above-all", sql=setting("discovery_threshold", "101")),
    discover("threshold-negative", sql=setting("discovery_threshold", "-1")),
    discover("threshold-words", sql=setting("discovery_threshold", "strict")),
    discover("threshold-nan", sql=setting("discovery_threshold", "nan")),
    discover("most-1", sql=setting("discovery_max_videos", "1")),
    discover("most-0", sql=setting("discovery_max_videos", "0")),
    discover("most-1e300", sql=setting("discovery_max_videos", "1e300")),
    discover("most-words", sql=setting("discovery_max_videos", "all")),
    discover("others-have-them", artist_id=22, sql=("UPDATE artists SET name = 'Jóga' WHERE id = 22",)),
    discover("unknown", 404, 999),
    discover("huge", 404, 10**20),
    discover("unknown-before-key", 404, 999, sql=setting("youtube_api_key", "")),
    discover("wrong-types", outside={"youtube": {"wrong_types": True}}),
    discover("error-in-200", 502, outside={"youtube": {"error_in_200": True}}),
    discover("quota", 429, outside={"youtube": {"quota": True}}),
    *(discover(name, status, outside=dials) for name, status, dials in failures("youtube", *SOME)),
    *(discover(name, 400, sql=sql) for name, sql in keys("youtube", "missing")),
    discover(
        "breaker-open",
        502,
        setup=tuple(discover(f"fails-{number}", 502, outside={"youtube": {"down": True}}) for number in range(5)),
    ),
    discover_all("all"),
    discover_all("twice", setup=(discover_all("first"),), sql=("DELETE FROM jobs",)),
    discover_all("few-of-each", sql=setting("discovery_max_videos", "1")),
    discover_all("told", sql=(*LISTENING, "UPDATE artists SET monitored = 0 WHERE id > 4")),
    discover_all("nobody-monitored", sql=("UPDATE artists SET monitored = 0",)),
    discover_all("quota", outside={"youtube": {"quota": True}}),
    discover_all("down", outside={"youtube": {"down": True}}),
    discover_all("wrong-types", outside={"youtube": {"wrong_types": True}}),
    discover_all("same-videos", sql=("UPDATE artists SET name = 'Daft  Punk' WHERE id = 19",)),
    discover_all("key-missing", 400, sql=setting("youtube_api_key", "")),
    discover_all(
        "running",
        409,
        sql=(
            (
                "INSERT INTO jobs (id, type, status, progress, message, created_at, updated_at)"
                " VALUES ('of the case', 'discovery', 'running', 0, '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
            ),
        ),
    ),
]

CASES = [*FIND_ARTISTS, *IMPORT_ARTISTS, *FIND_VIDEOS, *DISCOVER]
