"""Statistics, genres, the files that wait, and the index."""

from collections.abc import Sequence
from typing import Any

from .case import Case, read, write
from .outside import LISTENING, setting
from .variants import BROKEN_BODIES

WAITING = "/api/library/preview/"
JOGA = "Bj%C3%B6rk%20-%20J%C3%B3ga.mp4"
ABBA = "abba - abba SONG 18.MKV"
NFO_ON = setting("organize_nfo", "true")

TRAVERSALS = {
    "plain": "../../etc/passwd",
    "dots-encoded": "%2e%2e/%2e%2e/etc/passwd",
    "slashes-encoded": "..%2f..%2fetc%2fpasswd",
    "all-encoded": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "capitals": "%2E%2E%2Fetc%2Fpasswd",
    "mixed": ".%2e/x.mp4",
    "encoded-twice": "%252e%252e%252fetc%252fpasswd",
    "encoded-three-times": "%25252e%25252e%25252fetc",
    "backslashes": "..%5C..%5Cwindows",
    "overlong": "%c0%ae%c0%ae%c0%afetc",
    "full-width": "%EF%BC%8E%EF%BC%8E%EF%BC%8Fetc",
    "parameters": "..;/etc/passwd",
    "blanks": "%20..%20/etc",
    "more-dots": ".../etc",
    "from-below": f"x/../{JOGA}",
    "from-a-folder": f"%E6%A4%8E%E5%90%8D%E6%9E%97%E6%AA%8E/../{JOGA}",
    "to-a-sister": "../downloads-old/x.mp4",
    "null": "..%00/etc/passwd",
    "null-behind": f"{JOGA}%00.jpg",
    "no-utf8": "%ff.mp4",
    "only-dots": "..",
    "dots-and-slash": "../",
    "absolute-windows": "%5C%5Cserver%5Cshare",
    "absolute-encoded-twice": "%252Fetc%252Fpasswd",
}


def preview(name: str, path: str, status: int = 200, user: str = "user", **more: Any) -> Case:
    return read("library.preview_organize", name, f"{WAITING}{path}", status, user, **more)


def organize(name: str, files: Sequence[Any] | None = None, status: int = 200, **more: Any) -> Case:
    json = None if files is None else {"files": files}
    request = "POST /api/library/organize"
    return write("library.organize_all", name, request, status, "manager", **({"json": json} | more))


def index(name: str, status: int = 202, **more: Any) -> Case:
    return write("library.index_library", name, "POST /api/library/index", status, "manager", **more)


INDEXED = index("first", mask=("$.job_id",))


def job_row(status: str, updated_at: str) -> str:
    """A job that somebody else began."""
    return (
        "INSERT INTO jobs (id, type, status, progress, message, created_at, updated_at) "
        f"VALUES ('of the case', 'index', '{status}', 5, 'early', '2026-01-01 12:00:00', '{updated_at}')"
    )


def by_genre(name: str, genre: str, status: int = 200, **more: Any) -> Case:
    return read("library.videos_by_genre", name, f"/api/genres/{genre}/videos", status, wire="W36", **more)


CASES = [
    read("library.library_stats", "all", "/api/library/stats", mask=("$.disk",), wire="W22"),
    read("library.library_stats", "slash", "/api/library/stats/", 404, wire="W1"),
    read("library.list_genres", "all", "/api/genres"),
    read("library.list_genres", "slash", "/api/genres/", 404, wire="W1"),
    by_genre("plain", "rock"),
    by_genre("space", "hard%20rock"),
    by_genre("plus-stays", "a+b%20c"),
    by_genre("plus-encoded", "a%2Bb%20c"),
    by_genre("slash-encoded", "a%2Fb", 404),
    by_genre("emoji", "%F0%9F%8E%B8"),
    by_genre("ampersand", "r%26b"),
    by_genre("other-case", "Pop"),
    by_genre("quote", "%22"),
    by_genre("backslash", "%5C"),
    by_genre("unknown", "zzzz"),
    by_genre("no-utf8", "%ff"),
    by_genre("percent", "100%25"),
    by_genre("encoded-twice", "hard%2520rock"),
    by_genre("dot-segment", ".."),
    by_genre("semicolon", "rock;x=1"),
    read("library.scan_downloads", "all", "/api/library/scan", user="user", wire="W22"),
    read("library.scan_downloads", "slash", "/api/library/scan/", 404, user="user", wire="W1"),
    read(
        "library.scan_downloads",
        "after-organizing",
        "/api/library/scan",
        user="user",
        setup=(organize("scan", status=207),),
    ),
    preview("new-video", "Bj%C3%B6rk%20-%20Hyperballad%20(Official%20Video)%20(1996)%20%5B1080p%5D.mp4"),
    preview("conflict", JOGA),
    preview("wanted-video", "abba%20-%20abba%20SONG%2018.MKV"),
    preview("new-artist", "New%20Artist%20%E2%80%93%20Premi%C3%A8re%20%5BHD%5D.webm"),
    preview("underscores", "Daft_Punk_-_Around_the_World.mp4"),
    preview("forbidden-letters", "'Quote'%20_Double_%20-%20'Quote'%20_Double_%20song%2012.avi"),
    preview("decomposed", "Beyonce%CC%81%20-%20De%CC%81ja%CC%80%20Vu.mp4"),
    preview("composed", "Beyonc%C3%A9%20-%20D%C3%A9j%C3%A0%20Vu.mp4"),
    preview("decomposed-for-composed", "Bjo%CC%88rk%20-%20Jo%CC%81ga.mp4"),
    preview("percent-sign", "100%25%20Electronica%20-%20100%25%20Live.mp4"),
    preview(
        "below-a-folder",
        "%E6%A4%8E%E5%90%8D%E6%9E%97%E6%AA%8E/%E4%B8%B8%E3%83%8E%E5%86%85%E3%82%B5%E3%83%87%E3%82%A3%E3%82%B9%E3%83%86%E3%82%A3%E3%83%83%E3%82%AF%20%5BaB3-_xYz012%5D.webm",
    ),
    preview(
        "by-youtube-id",
        "%E6%A4%8E%E5%90%8D%E6%9E%97%E6%AA%8E%2F%E4%B8%B8%E3%83%8E%E5%86%85%E3%82%B5%E3%83%87%E3%82%A3%E3%82%B9%E3%83%86%E3%82%A3%E3%83%83%E3%82%AF%20%5BaB3-_xYz012%5D.webm",
        sql=("UPDATE videos SET youtube_id = 'aB3-_xYz012' WHERE id = 6",),
    ),
    preview("folder-of-the-artist", JOGA, sql=("UPDATE artists SET folder_path = 'ice/land' WHERE id = 1",)),
    preview("folder-leads-out", JOGA, 400, sql=("UPDATE artists SET folder_path = '../out' WHERE id = 1",)),
    preview("no-folder", JOGA, sql=("UPDATE artists SET folder_path = NULL WHERE id = 1",)),
    preview("no-artist", "no%20artist.mp4", 400),
    preview("unknown", "unknown%20-%20unknown.mp4", 404),
    preview("other-case", "ABBA%20-%20ABBA%20SONG%2018.mkv", 404),
    preview("hidden", ".hidden%20-%20file.mp4", 404),
    preview("hidden-folder", ".hidden/Kino%20-%20file.mp4", 404),
    preview("unfinished", "Kino%20-%20Unfinished.mp4.part", 404),
    preview("piece", "Daft%20Punk%20-%20Piece.f137.mp4", 404),
    preview("no-video", "notes.txt", 404),
    preview("folder", "%E6%A4%8E%E5%90%8D%E6%9E%97%E6%AA%8E", 404),
    preview("slash-behind", f"{JOGA}/", 404),
    preview("nothing", "", 404),
    preview("two-slashes", f"/{JOGA}", 308),
    preview("slash-encoded-in-front", "%2Fetc%2Fpasswd", 308),
    preview("line-break", f"{JOGA}%0A", 404),
    preview("line-break-within", "a%0Ab.mp4", 404),
    preview("very-long", "x" * 5000, 404),
    preview("semicolon", f"{JOGA};x=1", 404),
    preview("plus-is-no-space", "no+artist.mp4", 404),
    preview("emoji", "%F0%9F%8E%B8.mp4", 404),
    *(preview(f"traversal-{name}", path, 400) for name, path in TRAVERSALS.items()),
    organize("all", status=207),
    organize("nothing-left", setup=(organize("before", status=207),), files=[ABBA], status=207),
    organize("twice", setup=(organize("once", status=207),), status=207),
    organize("one", [ABBA]),
    organize("composed-name", ["Beyonc\u00e9 - D\u00e9j\u00e0 Vu.mp4"]),
    organize("named-twice", ["Beyonc\u00e9 - D\u00e9j\u00e0 Vu.mp4", "Beyonce\u0301 - De\u0301ja\u0300 Vu.mp4"]),
    organize("conflict", ["Björk - Jóga.mp4"]),
    organize(
        "conflict-has-no-file",
        ["Björk - Jóga.mp4"],
        sql=("UPDATE videos SET file_path = 'Björk/gone.mp4' WHERE id = 1",),
    ),
    organize("some-unknown", [ABBA, "unknown.mp4", "../../etc/passwd", ".hidden - file.mp4", "no artist.mp4"], 207),
    organize("numbers-are-names", [5, True, 1.5], 207),
    organize("folder-of-the-artist", [ABBA], sql=("UPDATE artists SET folder_path = 'se/abba' WHERE id = 18",)),
    organize("folder-leads-out", [ABBA], 207, sql=("UPDATE artists SET folder_path = '../out' WHERE id = 18",)),
    organize(
        "folder-is-a-file",
        [ABBA],
        207,
        sql=("UPDATE artists SET folder_path = 'Björk/Björk - Jóga.mp4' WHERE id = 18",),
    ),
    organize(
        "by-youtube-id",
        ["椎名林檎/丸ノ内サディスティック [aB3-_xYz012].webm"],
        sql=("UPDATE videos SET youtube_id = 'aB3-_xYz012' WHERE id = 6",),
    ),
    organize(
        "youtube-id-has-its-file",
        ["椎名林檎/丸ノ内サディスティック [aB3-_xYz012].webm"],
        sql=("UPDATE videos SET youtube_id = 'aB3-_xYz012' WHERE id = 2",),
    ),
    organize("with-nfo", status=207, sql=NFO_ON),
    organize(
        "with-nfo-of-a-known-video",
        ["Björk - Jóga.mp4"],
        sql=(*NFO_ON, "UPDATE videos SET file_path = NULL WHERE id = 1"),
    ),
    organize(
        "wanted-twice", [ABBA], sql=("UPDATE videos SET title = 'Abba Song 18', artist_id = 18 WHERE id IN (18, 24)",)
    ),
    organize("webhook-all", [ABBA, "no artist.mp4"], 207, sql=LISTENING),
    organize("webhook-nothing-moved", ["no artist.mp4"], 207, sql=LISTENING),
    organize("files-empty", [], 400),
    organize("files-null", status=400, json={"files": None}),
    organize("files-text", status=400, json={"files": ABBA}),
    organize("files-too-many", ["x"] * 1001, 400),
    organize("files-1000", [str(number) for number in range(1000)], 207),
    organize("files-blank", ["", "  "], 400),
    organize("file-too-long", ["x" * 1001], 400),
    organize("file-list", [[ABBA]], 400),
    organize("file-broken-surrogate", ["\ud800.mp4"], 400),
    organize("unknown-field", status=400, json={"file": ABBA}),
    organize("empty-body-of-type-json", status=207, headers={"Content-Type": "application/json"}, body=b""),
    *(
        organize(name, status=status, headers=headers, body=body, wire=row)
        for name, status, headers, body, row in BROKEN_BODIES
        if body
    ),
    INDEXED,
    index("twice", setup=(INDEXED,), mask=("$.job_id",)),
    index("after-organizing", setup=(organize("index", status=207),), mask=("$.job_id",)),
    index(
        "organized-without-rows",
        setup=(organize("rows", status=207),),
        sql=("DELETE FROM videos WHERE id > 60",),
        mask=("$.job_id",),
    ),
    index(
        "sizes-and-statuses",
        sql=("UPDATE videos SET file_size = 1, status = 'FAILED' WHERE id < 10",),
        mask=("$.job_id",),
    ),
    index("ignored-stays", sql=("UPDATE videos SET status = 'IGNORED' WHERE id = 1",), mask=("$.job_id",)),
    index(
        "rows-gone",
        sql=("UPDATE videos SET file_path = NULL WHERE id IN (1, 2, 3)", "DELETE FROM videos WHERE id = 20"),
        mask=("$.job_id",),
    ),
    index(
        "artist-gone",
        sql=(
            "DELETE FROM downloads WHERE video_id = 2",
            "DELETE FROM videos WHERE artist_id = 2",
            "DELETE FROM artists WHERE id = 2",
        ),
        mask=("$.job_id",),
    ),
    index("webhook-all", sql=LISTENING, mask=("$.job_id",)),
    index("running", 409, sql=(job_row("running", "2036-01-01 12:00:00"),)),
    index("queued", 409, sql=(job_row("queued", "2036-01-01 12:00:00"),)),
    index("forgotten", sql=(job_row("running", "2026-01-01 12:00:00"),), mask=("$.job_id",)),
    index("body-is-ignored", body=b"nonsense", headers={"Content-Type": "text/plain"}, mask=("$.job_id",)),
    write("library.index_library", "slash", "POST /api/library/index/", 404, "manager", wire="W1"),
    write("library.organize_all", "slash", "POST /api/library/organize/", 404, "manager", wire="W1"),
    write("library.organize_all", "get", "GET /api/library/organize", 405, "manager", wire="W3"),
    index("preview", 200, query="preview=true", wire="W22"),
    index("preview-no", query="preview=no", mask=("$.job_id",)),
    index(
        "preview-rows-gone",
        200,
        query="preview=1",
        sql=("UPDATE videos SET file_path = NULL WHERE id IN (1, 2, 3)",),
        wire="W22",
    ),
    index("preview-while-running", 200, query="preview=on", sql=(job_row("running", "2036-01-01 12:00:00"),)),
]
