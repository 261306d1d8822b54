"""Videos. In the small library 1 is an mp4, 2 a webm, 3 an mkv, 4 has lost its file, 5 points outside, 20 is empty."""

from typing import Any

from tests.upstream.catalogue import songs

from .case import Case, read, write
from .outside import LISTENING, SOME, failures, keys, recovers, setting

LIST = "/api/videos/"
SEARCH = "/api/videos/search"
STREAM = "/api/videos/1/stream"
CHANGED = ("$.updated_at",)


def listed(name: str, query: str, **more: Any) -> Case:
    return read("videos.list_videos", name, LIST, query=query, **more)


def found(name: str, query: str, **more: Any) -> Case:
    return read("videos.search_videos", name, SEARCH, query=query, **more)


def update(name: str, status: int, video_id: int = 6, /, **fields: Any) -> Case:
    more = {key: fields.pop(key) for key in ("setup", "wire") if key in fields}
    mask = CHANGED if status == 200 else ()
    return write(
        "videos.update_video", name, f"PUT /api/videos/{video_id}", status, "user", json=fields, mask=mask, **more
    )


def remove(name: str, status: int, video_id: int, query: str = "", **more: Any) -> Case:
    request = f"DELETE /api/videos/{video_id}"
    return write("videos.delete_video", name, request, status, "manager", query=query, wire="W30", **more)


def set_status(name: str, status: int, value: Any, video_id: int = 6) -> Case:
    request = f"PUT /api/videos/{video_id}/status"
    mask = ("$.video.updated_at",) if status == 200 else ()
    return write("videos.set_status", name, request, status, "user", json={"status": value}, mask=mask)


def bulk_status(name: str, status: int, ids: Any, value: Any = "IGNORED") -> Case:
    body = {"video_ids": ids, "status": value}
    return write("videos.bulk_status", name, "PUT /api/videos/bulk/status", status, "user", json=body, wire="W34")


def bulk_delete(name: str, status: int, ids: Any) -> Case:
    request = "POST /api/videos/bulk/delete"
    return write("videos.bulk_delete_videos", name, request, status, "manager", json={"video_ids": ids})


def streamed(name: str, status: int = 200, path: str = STREAM, method: str = "GET", **more: Any) -> Case:
    headers = {"Range": more.pop("range")} if "range" in more else {}
    headers |= more.pop("headers", {})
    return Case(
        f"videos.stream_video:{name}", "videos.stream_video", method, path, status, "readonly", headers=headers, **more
    )


def imported(name: str, status: int = 201, /, **fields: Any) -> Case:
    more = {key: fields.pop(key) for key in ("setup", "sql", "outside") if key in fields}
    request, mask = "POST /api/videos/import-from-youtube", ("$.video.created_at", "$.video.updated_at")
    mask = mask if status == 201 else ()
    return write("videos.import_youtube", name, request, status, "user", json=fields, mask=mask, **more)


def refresh(name: str, status: int = 200, video_id: int | str = 20, query: str = "", **more: Any) -> Case:
    request, mask = f"POST /api/videos/{video_id}/refresh-metadata", ("$.video.updated_at",) if status == 200 else ()
    return write("videos.refresh_video_metadata", name, request, status, "user", query=query, mask=mask, **more)


FIRST_BYTES = streamed("first", 206, range="bytes=0-99")

READING = [
    listed("all", ""),
    listed("limit", "limit=5"),
    listed("limit-and-offset", "limit=5&offset=57"),
    listed("offset-only", "offset=55"),
    listed("limit-0", "limit=0"),
    listed("limit-negative", "limit=-1&offset=-1"),
    listed("limit-abc", "limit=abc", wire="W11"),
    listed("offset-abc", "offset=abc&limit=2", wire="W11"),
    listed("limit-float", "limit=2.0", wire="W11"),
    listed("limit-huge", "limit=99999999999999999999&offset=59"),
    listed("offset-huge", "offset=99999999999999999999"),
    listed("limit-twice", "limit=2&limit=3", wire="W14"),
    listed("status", "status=WANTED"),
    listed("status-bogus", "status=BOGUS", wire="W13"),
    listed("status-lower", "status=wanted", wire="W13"),
    listed("artist", "artist_id=2"),
    listed("artist-unknown", "artist_id=999"),
    listed("artist-and-status", "artist_id=2&status=WANTED&limit=1"),
    listed("artist-and-status-limit-0", "artist_id=2&status=WANTED&limit=0"),
    listed("artist-abc", "artist_id=abc&limit=3", wire="W11"),
    listed("sort-title", "sort=title&limit=70"),
    listed("sort-title-desc", "sort=title&order=desc&limit=5"),
    listed("sort-artist", "sort=artist&limit=30"),
    listed("sort-year", "sort=year&limit=3"),
    listed("sort-status", "sort=status&order=desc"),
    listed("sort-created-asc", "sort=created_at&order=asc&limit=3"),
    listed("sort-bogus", "sort=bogus&limit=3", wire="W13"),
    listed("order-only", "order=asc&limit=3"),
    found("everything", ""),
    found("title", "q=song%201"),
    found("title-capitals", "q=SONG%202"),
    found("title-wildcards", "q=100%25"),
    found("title-underscore", "q=_"),
    found("title-backslash", "q=%5C"),
    found("title-markup", "q=%3Cb%3E"),
    found("title-no-utf8", "q=%ff%fe"),
    found("title-emoji", "q=%F0%9F%8E%B8"),
    found("title-nothing", "q=zzzz"),
    found("artist", "artist=the%20beatles"),
    found("artist-folded", "artist=BJ%C3%96RK"),
    found("genre", "genre=rock"),
    found("genre-other-case", "genre=Rock"),
    found("genre-quote", "genre=%22"),
    found("genre-unicode", "genre=%F0%9F%8E%B8"),
    found("years", "year_from=1990&year_to=1995"),
    found("year", "year=1999"),
    found("year-abc", "year=abc&limit=2", wire="W11"),
    found("durations", "duration_min=200&duration_max=300"),
    found("with-file", "has_file=true"),
    found("without-file", "has_file=false&limit=2"),
    found("has-file-empty", "has_file=&limit=1"),
    found(
        "all-filters",
        "q=song&artist=the&artist_id=2&status=WANTED&quality=480p&genre=rock"
        "&year=2004&year_from=2000&year_to=2010&duration_min=1&duration_max=9999&has_file=no",
    ),
    found("status-bogus", "status=BOGUS", wire="W13"),
    found("limit-and-offset", "limit=3&offset=2&sort=title"),
    found("unknown-filter", "colour=blue&limit=1"),
    found("quality", "quality=1080p&limit=4"),
    read("videos.get_video", "full", "/api/videos/1", wire="W21"),
    read("videos.get_video", "big-file", "/api/videos/4"),
    read("videos.get_video", "markup", "/api/videos/6", wire="W21"),
    read("videos.get_video", "unknown", "/api/videos/999", 404),
    read("videos.get_video", "huge", "/api/videos/99999999999999999999", 404),
]

CHANGING = [
    update("title", 200, title="New title"),
    update("title-is-a-number", 200, title=5, wire="W15"),
    update(
        "all-fields",
        200,
        title="All",
        year="2001",
        duration=100.9,
        quality="4k",
        genres=["x"],
        directors=["A", "B", "A"],
        description="text",
        youtube_id="abc",
        imvdb_id="all-1",
        url="https://video.test/1",
        thumbnail_url="http://images.test/1.jpg",
        artist_id=3,
    ),
    update("to-null", 200, 1, youtube_id=None, description="", year=None, directors=None),
    update("nothing-changes", 200, 1, title="Jóga"),
    update("unknown-field", 400, status="WANTED"),
    update("title-null", 400, title=None),
    update("title-long", 400, title="x" * 501),
    update("year-text", 400, year="soon"),
    update("year-true", 200, year=True, wire="W18"),
    update("year-large", 400, year=10_000),
    update("year-list", 400, year=[1999]),
    update("duration-negative", 400, duration=-1),
    update("duration-huge", 400, duration=10**30),
    update("genres-text", 400, genres="rock"),
    update("url-script", 400, url="javascript:alert(1)"),
    update("youtube-id-taken", 409, youtube_id="loB0kmz_0MM"),
    update("imvdb-id-taken", 409, imvdb_id="joga-1"),
    update("youtube-id-long", 400, youtube_id="x" * 21),
    update("artist-unknown", 400, artist_id=999),
    update("artist-null", 400, artist_id=None),
    update("unknown", 404, 999, title="x"),
    update("rename", 200, 1, title="Hunter", rename_file=True),
    update("rename-nothing-new", 200, 1, rename_file=True),
    update("rename-odd-name", 200, 2, title='a/b\\c:d*e?"f<g>h|i...', rename_file=True),
    update("rename-long-name", 200, 2, title="é🎸" * 120, rename_file=True),
    update("rename-to-other-artist", 200, 1, artist_id=3, rename_file=True),
    update("rename-as-text", 200, 1, title="Hunter", rename_file="false", wire="W16"),
    update(
        "rename-name-taken",
        200,
        2,
        artist_id=1,
        title="Hunter",
        rename_file=True,
        setup=(
            update("same-extension", 200, 20, artist_id=1, title="Hunter", rename_file=True),
            update("take-the-name", 200, 1, title="Hunter", rename_file=True),
        ),
    ),
    update(
        "rename-conflict",
        200,
        20,
        artist_id=1,
        title="Jóga",
        rename_file=True,
    ),
    update("rename-without-file", 409, 6, rename_file=True),
    update("rename-lost-file", 409, 4, rename_file=True),
    update("rename-outside", 409, 5, rename_file=True),
    remove("row-only", 200, 1),
    remove("with-file", 200, 1, "delete_file=true"),
    remove("with-file-yes", 200, 2, "delete_file=YES"),
    remove("file-kept", 200, 1, "delete_file=false"),
    remove("delete-files-is-another-word", 200, 1, "delete_files=true"),
    remove("lost-file", 200, 4, "delete_file=true"),
    remove("outside-file-stays", 200, 5, "delete_file=true"),
    remove("with-downloads", 200, 8),
    remove("unknown", 404, 999, "delete_file=true"),
    remove("twice", 404, 1, setup=(remove("first", 200, 1),)),
    set_status("downloaded", 200, "DOWNLOADED"),
    set_status("lower-case", 200, "ignored"),
    set_status("same", 200, "WANTED"),
    set_status("bogus", 400, "BOGUS"),
    set_status("null", 400, None),
    set_status("number", 400, 1),
    set_status("list", 400, ["WANTED"]),
    set_status("unknown", 404, "WANTED", 999),
    write(
        "videos.set_status", "no-status", "PUT /api/videos/6/status", 400, "user", json={"state": "WANTED"}, wire="W8"
    ),
    bulk_status("three", 200, [1, 2, 3]),
    bulk_status("some-unknown", 200, [3, 999, 1, 3]),
    bulk_status("all-unknown", 200, [998, 999]),
    bulk_status("ids-as-text", 200, ["1", " 2 "]),
    bulk_status("ids-true", 200, [True], "MONITORED"),
    bulk_status("ids-huge", 400, [10**20]),
    bulk_status("ids-words", 400, [1, "two"]),
    bulk_status("ids-null", 200, [None]),
    bulk_status("ids-empty", 400, []),
    bulk_status("ids-object", 400, {"1": 1}),
    bulk_status("ids-many", 400, list(range(1, 1002))),
    bulk_status("bogus-status", 400, [1], "BOGUS"),
    write("videos.bulk_status", "post", "POST /api/videos/bulk/status", 405, "user", json={"a": 1}, wire="W3"),
    bulk_delete("all-there", 200, [7, 8]),
    bulk_delete("files-stay", 200, [1, 2]),
    bulk_delete("some-unknown", 207, [999, 1, 1, 998]),
    bulk_delete("none-there", 207, [998, 999]),
    bulk_delete("ids-empty", 400, []),
    bulk_delete("ids-text", 400, "1,2"),
]

FILES = [
    read("videos.video_thumbnail", "jpeg", "/api/videos/1/thumbnail", wire="W29"),
    read("videos.video_thumbnail", "none", "/api/videos/2/thumbnail", 404, wire="W29"),
    read("videos.video_thumbnail", "unknown", "/api/videos/999/thumbnail", 404),
    read(
        "videos.video_thumbnail",
        "not-modified",
        "/api/videos/1/thumbnail",
        304,
        headers={"If-None-Match": "{etag}"},
        setup=(read("videos.video_thumbnail", "first", "/api/videos/1/thumbnail"),),
    ),
    streamed("mp4"),
    streamed("webm", path="/api/videos/2/stream"),
    streamed("empty-file", path="/api/videos/20/stream"),
    streamed("empty-file-range", path="/api/videos/20/stream", range="bytes=0-9"),
    streamed("range", 206, range="bytes=0-99", wire="W27"),
    streamed("range-tail", 206, range="bytes=-10", wire="W27"),
    streamed("range-open", 206, range="bytes=99990-", wire="W27"),
    streamed("range-whole", 206, range="bytes=0-", wire="W27"),
    streamed("range-beyond-the-end", 206, range="bytes=99990-200000", wire="W27"),
    streamed("range-one-byte", 206, range="bytes=0-0", wire="W27"),
    streamed("range-tail-too-long", 416, range="bytes=-200000", wire="W28"),
    streamed("range-after-the-end", 416, range="bytes=100000-", wire="W28"),
    streamed("range-backwards", 416, range="bytes=9-1", wire="W28"),
    streamed("range-no-numbers", 416, range="bytes=a-b", wire="W28"),
    streamed("range-other-unit", 416, range="lines=0-9", wire="W28"),
    streamed("ranges", range="bytes=0-9,20-29", wire="W28"),
    streamed("ranges-unsatisfiable", range="bytes=0-9,999999-", wire="W28"),
    streamed("head-range", 206, method="HEAD", range="bytes=0-99", wire="W5"),
    streamed("not-modified", 304, headers={"If-None-Match": "{etag}"}, setup=(FIRST_BYTES,)),
    streamed("if-range", 206, range="bytes=5-9", headers={"If-Range": "{etag}"}, setup=(FIRST_BYTES,)),
    streamed("if-range-date", 206, range="bytes=5-9", headers={"If-Range": "{last_modified}"}, setup=(FIRST_BYTES,)),
    streamed("if-range-other", 200, range="bytes=5-9", headers={"If-Range": '"other"'}),
    streamed("not-modified-weak", 304, headers={"If-None-Match": '"other", W/{etag}'}, setup=(FIRST_BYTES,)),
    streamed("not-modified-any", 304, headers={"If-None-Match": "*"}),
    streamed("not-modified-head", 304, method="HEAD", headers={"If-None-Match": "{etag}"}, setup=(FIRST_BYTES,)),
    streamed("not-modified-since", 304, headers={"If-Modified-Since": "{last_modified}"}, setup=(FIRST_BYTES,)),
    streamed("modified-since", headers={"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    streamed("modified-since-nonsense", headers={"If-Modified-Since": "yesterday"}),
    streamed("etag-other", headers={"If-None-Match": '"other"'}),
    streamed(
        "etag-other-though-not-modified-since",
        headers={"If-None-Match": '"other"', "If-Modified-Since": "{last_modified}"},
        setup=(FIRST_BYTES,),
    ),
    streamed("range-not-modified", 206, range="bytes=0-9", headers={"If-None-Match": "{etag}"}, setup=(FIRST_BYTES,)),
    streamed("if-range-old-date", range="bytes=5-9", headers={"If-Range": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    streamed("webm-range", 206, "/api/videos/2/stream", range="bytes=10-19", wire="W27"),
    streamed("if-match-same", headers={"If-Match": "{etag}"}, setup=(FIRST_BYTES,)),
    streamed("if-match-other", 412, headers={"If-Match": '"other"'}),
    streamed("ffmpeg-missing", 503, "/api/videos/3/stream"),
    streamed("lost-file", 404, "/api/videos/4/stream"),
    streamed("outside", 404, "/api/videos/5/stream"),
    streamed("no-file", 404, "/api/videos/7/stream"),
    streamed("unknown", 404, "/api/videos/999/stream"),
]

NEW = songs("Portishead")[0].youtube_id  # whose artist is new, too
OURS = songs("Daft Punk")[0].youtube_id

SPELLINGS = (
    f"  {NEW} ",
    f"https://www.youtube.com/watch?v={NEW}",
    f"http://youtube.com/watch?v={NEW}&t=42s&list=PLx#comments",
    f"HTTPS://M.YouTube.com/watch?app=desktop&v={NEW}",
    f"https://music.youtube.com/watch?v={NEW}&feature=share",
    f"youtube.com/watch?v={NEW}",
    f"https://youtu.be/{NEW}?si=abc",
    f"youtu.be/{NEW}/",
    f"https://www.youtube.com/shorts/{NEW}?feature=share",
    f"https://www.youtube.com/embed/{NEW}?autoplay=1",
    f"https://www.youtube-nocookie.com/embed/{NEW}",
    f"https://www.youtube.com/live/{NEW}",
    f"https://www.youtube.com/v/{NEW}",
    f"https://www.youtube.com:443/watch?v={NEW}",
)
HOSTILE = (
    "javascript:alert(1)",
    f"https://evil.test/watch?v={NEW}",
    f"https://youtube.com.evil.test/watch?v={NEW}",
    f"https://evil.test/https://youtube.com/watch?v={NEW}",
    f"https://youtube.com@evil.test/watch?v={NEW}",
    f"https://user:pass@youtube.com/watch?v={NEW}",
    f"https://youtube.com\\@evil.test/watch?v={NEW}",
    f"https://youtube.com:22/watch?v={NEW}",
    f"https://youtube.com:99999/watch?v={NEW}",
    f"https://youtube.com:x/watch?v={NEW}",
    f"file://youtube.com/watch?v={NEW}",
    f"//youtube.com/watch?v={NEW}",
    f"https://youtube.com/watch?v={NEW}x",
    f"https://youtube.com/watch?v={NEW[:-1]}",
    f"https://youtube.com/watch?list={NEW}",
    f"https://youtube.com/watch/{NEW}",
    f"https://youtube.com/playlist?list=PL{NEW}",
    f"https://youtube.com/@{NEW}",
    f"https://youtu.be/{NEW}/more",
    f"https://youtu.be/watch?v={NEW}",
    f"https://www.youtube.com/embed/../{NEW}",
    "https://youtube.com/",
    "https://[::1/watch?v=x",
    f"https://youtube.com/watch?v={NEW}\r\nHost: evil.test",
    f"{NEW[:5]}\u0000{NEW[6:]}",
    f"{NEW[:-1]}\uff11",
    "-" * 12,
)

IMPORTING = [
    imported("new", youtube_id=NEW),
    imported("known-artist", youtube_id=OURS),
    *(imported(f"spelling-{number}", url=spelling) for number, spelling in enumerate(SPELLINGS)),
    imported("url-in-the-field-of-the-id", youtube_id=f"https://youtu.be/{NEW}"),
    imported("both", youtube_id=NEW, url="nonsense"),
    imported("digits", youtube_id=12345678901),
    imported("live", youtube_id="live0000000"),
    imported("artist", youtube_id=NEW, artist_id=3),
    imported("artist-as-text", youtube_id=NEW, artist_id=" 3 "),
    imported("artist-null", youtube_id=NEW, artist_id=None),
    imported("download", youtube_id=NEW, artist_id=2, download=True),
    imported("download-as-text", youtube_id=NEW, download="false"),
    imported("download-0", youtube_id=NEW, download=0),
    imported("told", youtube_id=NEW, download=True, sql=LISTENING),
    *(imported(f"hostile-{number}", 400, url=spelling) for number, spelling in enumerate(HOSTILE)),
    imported("nothing", 400, download=True),
    imported("blank", 400, youtube_id=" ", url=""),
    imported("list", 400, youtube_id=[NEW]),
    imported("long", 400, url="https://youtu.be/" + "x" * 1000),
    imported("surrogate", 400, url="\ud83d"),
    imported("artist-unknown", 400, youtube_id=NEW, artist_id=999),
    imported("artist-0", 400, youtube_id=NEW, artist_id=0),
    imported("artist-huge", 400, youtube_id=NEW, artist_id=10**30),
    imported("artist-words", 400, youtube_id=NEW, artist_id="Portishead"),
    imported("duplicate", 409, url="https://youtu.be/loB0kmz_0MM"),
    imported("duplicate-before-key", 409, youtube_id="loB0kmz_0MM", sql=setting("youtube_api_key", "")),
    imported("twice", 409, youtube_id=NEW, setup=(imported("first", youtube_id=NEW),)),
    imported("of-one-artist", youtube_id=NEW, setup=(imported("first", youtube_id=songs("Portishead")[1].youtube_id),)),
    imported("unknown", 404, youtube_id="none0000000"),
    imported("private", 404, youtube_id="priv0000000"),
    imported("wrong-types", 404, youtube_id=NEW, outside={"youtube": {"wrong_types": True}}),
    imported("error-in-200", 502, youtube_id=NEW, outside={"youtube": {"error_in_200": True}}),
    imported("quota", 429, youtube_id=NEW, outside={"youtube": {"quota": True}}),
    *(imported(name, status, youtube_id=NEW, outside=dials) for name, status, dials in failures("youtube", *SOME)),
    *(imported(name, youtube_id=NEW, outside=dials) for name, dials in recovers("youtube")),
    *(imported(name, 400, youtube_id=NEW, sql=sql) for name, sql in keys("youtube")),
]

SONG = songs("Daft Punk")[3]
KNOWN = (f"UPDATE videos SET title = '{SONG.title}', year = NULL, duration = NULL WHERE id = 20",)
MINE = ("UPDATE videos SET year = 1900, directors = '[\"Me\"]', duration = NULL, url = 'http://my.test/' WHERE id = 1",)
WITHOUT_KEYS = (*setting("youtube_api_key", ""), *setting("imvdb_api_key", ""))

REFRESHING = [
    refresh("by-title", sql=KNOWN),
    refresh("by-id", video_id=1),
    refresh("by-youtube-id", video_id=2),
    refresh("what-is-there-stays", video_id=1, sql=MINE),
    refresh("what-is-there-goes", video_id=1, query="overwrite=true", sql=MINE),
    refresh("overwrite", video_id=1, query="overwrite=true"),
    refresh("overwrite-title-stays", query="overwrite=true", sql=KNOWN),
    refresh("twice", video_id=1, setup=(refresh("first", video_id=1),)),
    refresh("told", sql=(*KNOWN, *LISTENING)),
    refresh("body-is-ignored", video_id=1, headers={"Content-Type": "application/json"}, body=b"{"),
    refresh("only-youtube", sql=(*KNOWN, *setting("imvdb_api_key", ""))),
    refresh("only-imvdb", sql=(*KNOWN, *setting("youtube_api_key", ""))),
    refresh("no-key-at-all", 400, sql=(*KNOWN, *WITHOUT_KEYS)),
    refresh("no-match", 404),
    refresh("no-match-below-threshold", sql=(*KNOWN, *setting("discovery_threshold", "100"))),
    refresh("title-of-signs", 404, 6),
    refresh("other-video-has-it", 409, sql=("UPDATE videos SET title = 'Jóga', artist_id = 1 WHERE id = 20",)),
    refresh("unknown-ids", 404, sql=("UPDATE videos SET youtube_id = 'none0000000', imvdb_id = 'x' WHERE id = 20",)),
    refresh("hostile-id", video_id=1, sql=("UPDATE videos SET imvdb_id = '../entity/1' WHERE id = 1",)),
    refresh("unknown", 404, 999),
    refresh("huge", 404, 10**20),
    refresh("unknown-before-key", 404, 999, sql=WITHOUT_KEYS),
    refresh("both-down", 502, 1, outside={"imvdb": {"down": True}, "youtube": {"down": True}}),
    refresh("both-refuse", 429, 1, outside={"imvdb": {"status": 429, "retry_after": 9}, "youtube": {"quota": True}}),
    refresh("both-lie", 502, 1, outside={"imvdb": {"wrong_types": True}, "youtube": {"wrong_types": True}}),
    refresh("quota", video_id=1, outside={"youtube": {"quota": True}}),
    refresh(
        "quota-before-the-search", sql=KNOWN, outside={"imvdb": {"down": True}, "youtube": {"quota": True}}, status=502
    ),
    refresh("search-without-imvdb", sql=KNOWN, outside={"imvdb": {"down": True}}),
    *(refresh(name, video_id=1, outside=dials) for name, _, dials in failures("imvdb", *SOME)),
    *(refresh(name, video_id=1, outside=dials) for name, _, dials in failures("youtube", *SOME)),
    *(refresh(name, video_id=1, sql=sql) for name, sql in keys("imvdb")),
    *(refresh(name, video_id=1, sql=sql) for name, sql in keys("youtube")),
]

CASES = [*READING, *CHANGING, *FILES, *IMPORTING, *REFRESHING]
