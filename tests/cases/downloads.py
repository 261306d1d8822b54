"""The queue of downloads. In the small library 1 is completed, 2 has failed, 3 is downloading, 4 is cancelled; of what
is queued nothing is downloaded, since the setting `max_concurrent_downloads` is 0."""

from typing import Any

from .case import Case, File, read, write
from .outside import LISTENING, setting
from .variants import BROKEN_BODIES

PATH = "/api/downloads/"
QUEUED = ("$.download.created_at", "$.download.updated_at")
CHANGED = ("$.download.updated_at",)
ENDED = (*CHANGED, "$.download.finished_at")

SMUGGLED = "http://videos.test/a.mp4#__youtubedl_smuggle=%7B%22referer%22%3A%22http%3A%2F%2Fx%22%7D"
HOSTILE_URLS = {
    "script": "javascript:alert(1)",
    "file": "file:///etc/passwd",
    "ftp": "ftp://videos.test/a.mp4",
    "data": "data:video/mp4;base64,AAAA",
    "option": "--exec=touch /tmp/x",
    "option-like-address": "-http://videos.test/a.mp4",
    "search": "ytsearch10:anything",
    "stream": "rtmp://videos.test/live",
    "without-scheme": "videos.test/a.mp4",
    "scheme-of-the-page": "//videos.test/a.mp4",
    "two-schemes": "http:https://videos.test/a.mp4",
    "smuggled": SMUGGLED,
    "smuggled-quoted": "http://videos.test/a.mp4#%5F_youtubedl_smuggle=%7B%7D",
    "smuggled-in-the-query": "http://videos.test/a.mp4?b=__youtubedl_smuggle",
    "private": "http://10.0.0.1/a.mp4",
    "private-and-a-dot": "http://10.0.0.1./a.mp4",
    "private-192": "http://192.168.1.1:8080/a.mp4",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "loopback-other": "http://127.0.0.2/a.mp4",
    "ipv6-loopback": "http://[::1]/a.mp4",
    "ipv6-mapped": "http://[::ffff:10.0.0.1]/a.mp4",
    "ipv6-nat64": "http://[64:ff9b::10.0.0.1]/a.mp4",
    "ipv6-6to4": "http://[2002:a00:1::1]/a.mp4",
    "ipv6-unique-local": "http://[fd00::1]/a.mp4",
    "ipv6-local": "http://[fe80::1%25eth0]/a.mp4",
    "short-number": "http://127.1/a.mp4",
    "octal": "http://0177.0.0.1/a.mp4",
    "wide-digits": "http://127.0.0.\uff11/a.mp4",
    "hexadecimal": "http://0x7f000001/a.mp4",
    "number": "http://2130706433/a.mp4",
    "unspecified": "http://0.0.0.0/a.mp4",
    "multicast": "http://224.0.0.1/a.mp4",
    "password": "http://me:secret@videos.test/a.mp4",
    "spaces": "http://videos.test/a b.mp4",
    "lines": "http://videos.test/a.mp4\n--exec x",
    "tabulator": "http://videos.test/a\t.mp4",
    "null": "http://videos.test/a.mp4\0.jpg",
    "backslash": "http://videos.test\\@10.0.0.1/a.mp4",
    "no-host": "http:///a.mp4",
    "port-0": "http://videos.test:0/a.mp4",
    "port-too-high": "http://videos.test:65536/a.mp4",
    "broken-brackets": "http://[::1/a.mp4",
}
GOOD_URLS = {
    "http": "http://videos.test/a.mp4",
    "https-port": "https://videos.test:8443/a.mp4?b=c&d=%20e#f",
    "capitals": "HTTPS://VIDEOS.TEST/A.mp4",
    "allowed-network": "http://127.0.0.1:9/a.mp4",
    "public-address": "http://93.184.216.34/a.mp4",
    "of-other-letters": "https://bücher.test/ä.mp4",
    "name-that-may-be-local": "http://localhost/a.mp4",
}
HOSTILE_TITLES = {
    "way-up": "../../../etc/passwd",
    "300-letters": "Ж" * 300,
    "emoji": "🎵👩‍👩‍👧‍👦 \U0001f1ee\U0001f1f8",
    "right-to-left": "\u202eأغنية\u202c 1",
    "markup": "<img src=x onerror=alert(1)>",
}
HOSTILE_IDS = (("unknown", "999"), ("id-0", "0"), ("id-above-32-bits", "2147483648"), ("id-huge", "9" * 30))
NO_IDS = (("id-word", "abc"), ("id-negative", "-1"), ("id-float", "1.0"), ("id-way-up", "..%2F1"))


def address(video_id: int, url: str) -> tuple[str, ...]:
    return (f"UPDATE videos SET url = {literal(url)} WHERE id = {video_id}",)


def literal(text: str) -> str:
    """SQL that both databases read alike, whatever is in the text."""
    return f"CAST(x'{text.encode().hex()}' AS CHAR)"


def row(number: int, video_id: int, status: str, **columns: Any) -> str:
    active = video_id if status in ("pending", "downloading", "paused") else "NULL"
    values = {"id": number, "video_id": video_id, "active_video_id": active, "status": f"'{status}'"}
    values |= {
        "created_at": f"'2026-01-03 00:00:{number % 60:02d}.000000'",
        "updated_at": "'2100-01-01 00:00:00.000000'",  # or it would be put back
    }
    values |= {name: value if isinstance(value, int) else f"'{value}'" for name, value in columns.items()}
    return f"INSERT INTO downloads ({', '.join(values)}) VALUES ({', '.join(map(str, values.values()))})"


def state(status: str, **columns: Any) -> tuple[str, ...]:
    """A download of video 6 with the id 9."""
    return (row(9, 6, status, **columns),)


# Reading

FULL = (
    row(10, 10, "pending", priority=9),
    row(11, 11, "pending", priority=1, quality="720p", format="webm"),
    row(12, 12, "paused", priority=5, progress=40, bytes_done=400, bytes_total=1000, speed=7, eta=9),
    row(13, 13, "pending", priority=3, attempts=1, retry_at="2026-01-03 02:00:00.500000", error_code="network"),
    row(14, 14, "downloading", progress=10, bytes_done=5_000_000_000, bytes_total=50_000_000_000, speed=1_000_000),
    row(15, 15, "downloading", progress=99, bytes_done=1001, bytes_total=1000, speed=1),
    row(16, 16, "downloading", bytes_done=10, bytes_total=1000, speed=0, eta=5),
    row(17, 17, "queued", priority=10),
    row(18, 18, "failed", error_code="sign_in", error_message="Sign in", finished_at="2026-01-04 00:00:00.000000"),
    row(19, 19, "cancelled", finished_at="2026-01-05 00:00:00.123456", started_at="2026-01-04 00:00:00.000000"),
    row(20, 20, "completed", progress=100, file_path="Daft Punk/empty.mp4", finished_at="2026-01-05 00:00:00.123456"),
)


def queue(name: str, status: int = 200, query: str = "", **case: Any) -> Case:
    return read("downloads.download_queue", name, f"{PATH}queue", status, query=query, **case)


def history(name: str, status: int = 200, query: str = "", **case: Any) -> Case:
    return read("downloads.download_history", name, f"{PATH}history", status, query=query, sql=FULL, **case)


QUEUE = [
    queue("small", wire="W22"),
    queue("several", sql=FULL),
    queue("none", sql=("DELETE FROM downloads",)),
    queue("limit", query="limit=3", sql=FULL),
    queue("limit-twice", query="limit=1&limit=x", sql=FULL, wire="W14"),
    queue("limit-0", query="limit=0", sql=FULL, wire="W12"),
    queue("limit-negative", query="limit=-5", sql=FULL),
    queue("limit-huge", query=f"limit={10**30}", sql=FULL),
    queue("limit-many-digits", 400, f"limit={'9' * 5000}"),
    queue("limit-x", 400, "limit=x", wire="W10"),
    queue("limit-empty", 400, "limit=", wire="W10"),
    queue("limit-float", 400, "limit=1.5", wire="W10"),
    read("downloads.download_queue", "slash", f"{PATH}queue/", 404, wire="W1"),
    *(
        queue(
            f"title-{name}",
            sql=(*state("pending"), f"UPDATE videos SET title = {literal(title)} WHERE id = 6"),
        )
        for name, title in HOSTILE_TITLES.items()
    ),
    write("downloads.download_queue", "post", f"POST {PATH}queue", 405, "user", wire="W3"),
]

HISTORY = [
    history("several"),
    *(history(f"status-{status}", query=f"status={status}") for status in ("completed", "failed", "cancelled")),
    history("status-of-the-queue", query="status=pending", wire="W13"),
    history("status-bogus", query="status=BOGUS", wire="W13"),
    history("status-other-case", query="status=Failed", wire="W13"),
    history("status-empty", query="status="),
    history("page-2", query="page=2&per_page=2"),
    history("page-beyond", query="page=99&per_page=2"),
    history("page-0", query="page=0&per_page=0", wire="W12"),
    history("page-abc", 400, "page=abc", wire="W10"),
    history("per-page-empty", 400, "per_page=", wire="W10"),
    history("page-huge", query=f"page={10**30}"),
]

# Changing


def change(action: str, name: str, status: int, sql: tuple[str, ...] = (), download_id: str = "9", **case: Any) -> Case:
    key = f"downloads.{action}_download"
    mask = {200: ENDED if action == "cancel" else CHANGED}.get(status, ())
    request = f"POST {PATH}{download_id}/{action}"
    return write(key, name, request, status, "user", sql=sql, **{"mask": mask, **case})


def priority(name: str, status: int, value: Any = 2, sql: tuple[str, ...] = state("pending"), **case: Any) -> Case:
    request = f"PUT {PATH}{case.pop('download_id', '9')}/priority"
    mask = CHANGED if status == 200 else ()
    return write(
        "downloads.set_priority", name, request, status, "user", json={"priority": value}, mask=mask, sql=sql, **case
    )


def refusals(action: str, *states: str) -> list[Case]:
    """Ids that name nothing, and downloads in these states."""
    return [
        *(change(action, name, 404, download_id=download_id) for name, download_id in HOSTILE_IDS),
        *(change(action, name, 404, download_id=download_id, wire="W2") for name, download_id in NO_IDS),
        *(change(action, f"one-that-is-{status}", 400, state(status)) for status in states),
    ]


PRIORITY = [
    priority("pending", 200),
    priority("first", 200, 1),
    priority("last", 200, 10),
    priority("same", 200, 5),
    priority("true", 200, True, wire="W18"),
    priority("text", 200, " 7 ", wire="W18"),
    priority("float", 200, 7.9, wire="W18"),
    priority("waiting-to-be-tried-again", 200, sql=state("pending", attempts=1, retry_at="2026-01-04 00:00:00.000000")),
    priority("false", 400, False, wire="W18"),
    priority("zero", 400, 0),
    priority("eleven", 400, 11),
    priority("negative", 400, -1),
    priority("huge", 400, 10**30),
    priority("word", 400, "high"),
    priority("null", 400, None),
    priority("list", 400, [1]),
    priority("object", 400, {"priority": 1}),
    priority("infinite", 400, float("inf")),
    *(priority(name, 404, download_id=download_id) for name, download_id in HOSTILE_IDS),
    *(priority(name, 404, download_id=download_id, wire="W2") for name, download_id in NO_IDS),
    *(
        priority(f"one-that-is-{status}", 400, sql=state(status))
        for status in ("queued", "downloading", "paused", "completed", "failed", "cancelled")
    ),
    write("downloads.set_priority", "missing", f"PUT {PATH}9/priority", 400, "user", json={"Priority": 1}),
    write("downloads.set_priority", "post", f"POST {PATH}9/priority", 405, "user", json={"priority": 1}, wire="W3"),
]

PAUSE = [
    change("pause", "downloading", 200, state("downloading", progress=40, speed=10, eta=20, attempts=1)),
    change("pause", "of-the-small-library", 200, download_id="3"),
    change("pause", "twice", 400, download_id="3", setup=(change("pause", "before", 200, download_id="3"),)),
    change(
        "pause", "with-a-body", 200, state("downloading"), body=b"\xff{", headers={"Content-Type": "application/json"}
    ),
    *refusals("pause", "pending", "queued", "paused", "completed", "failed", "cancelled"),
]

RESUME = [
    change("resume", "paused", 200, state("paused", attempts=3, progress=40, bytes_done=4, bytes_total=10)),
    change(
        "resume",
        "what-the-other-has-paused",
        200,
        download_id="3",
        setup=(change("pause", "before", 200, download_id="3"),),
    ),
    *refusals("resume", "pending", "queued", "downloading", "completed", "failed", "cancelled"),
]

WORKING = "UPDATE videos SET status = 'DOWNLOADING' WHERE id = 6"

CANCEL = [
    change("cancel", "pending", 200, state("pending")),
    change("cancel", "paused", 200, (*state("paused", speed=1, eta=1), WORKING)),
    change("cancel", "downloading", 200, (*state("downloading", speed=1, eta=1), WORKING)),
    change("cancel", "queued", 200, state("queued")),
    change("cancel", "waiting-to-be-tried-again", 200, state("pending", retry_at="2026-01-04 00:00:00.000000")),
    change("cancel", "of-the-small-library", 200, download_id="3"),
    change("cancel", "twice", 400, download_id="3", setup=(change("cancel", "before", 200, download_id="3"),)),
    *refusals("cancel", "completed", "failed", "cancelled"),
]

FAILED = state(
    "failed",
    attempts=3,
    progress=40,
    bytes_done=4,
    bytes_total=10,
    error_code="network",
    error_message="Gone",
    finished_at="2026-01-04 00:00:00.000000",
    quality="720p",
    format="webm",
    priority=2,
)

RETRY = [
    change("retry", "failed", 200, FAILED),
    change("retry", "listening", 200, (*FAILED, *LISTENING)),
    change("retry", "of-the-small-library", 200, download_id="2"),
    change("retry", "twice", 400, download_id="2", setup=(change("retry", "before", 200, download_id="2"),)),
    change("retry", "while-another-is-active", 409, (*FAILED, row(10, 6, "pending"))),
    change("retry", "while-another-is-paused", 409, (*FAILED, row(10, 6, "paused"))),
    change("retry", "downloaded-meanwhile", 409, (*FAILED, "UPDATE videos SET status = 'DOWNLOADED' WHERE id = 6")),
    change("retry", "address-no-longer-allowed", 400, (*FAILED, *address(6, "http://10.0.0.1/"))),
    change(
        "retry",
        "then-cancelled-and-downloaded-anew",
        400,
        download_id="2",
        setup=(
            change("retry", "before", 200, download_id="2"),
            change("cancel", "then", 200, download_id="2"),
            write("videos.download_video", "at-last", "POST /api/videos/7/download", 200, "user"),
        ),
    ),
    *refusals("retry", "pending", "queued", "downloading", "paused", "completed", "cancelled"),
]

# Queueing


def get(name: str, status: int, sql: tuple[str, ...] = (), video_id: str = "6", **case: Any) -> Case:
    mask = QUEUED if status == 200 else ()
    request = f"POST /api/videos/{video_id}/download"
    return write("videos.download_video", name, request, status, "user", sql=sql, **{"mask": mask, **case})


HERE = address(6, GOOD_URLS["http"])
BY_ID = ("UPDATE videos SET youtube_id = 'dQw4w9WgXcQ' WHERE id = 6",)

GET = [
    get("without-body", 200, HERE),
    get("wishes", 200, HERE, json={"quality": "720p", "format": "webm", "priority": 1}),
    get("quality-best", 200, HERE, json={"quality": "best"}),
    get("quality-number", 200, HERE, json={"quality": 2160}, wire="W15"),
    get("quality-blank", 200, HERE, json={"quality": " "}),
    get("priority-true", 200, HERE, json={"priority": True}, wire="W18"),
    get("unknown-field", 200, HERE, json={"speed": "fast"}),
    get("quality-of-the-artist", 200, video_id="23", sql=(*address(23, GOOD_URLS["http"]),)),
    get("youtube-id", 200, BY_ID),
    get("listening", 200, (*HERE, *LISTENING)),
    get("failed-before", 200, address(7, GOOD_URLS["http"]), video_id="7"),
    get("cancelled-before", 200, (*HERE, row(9, 6, "cancelled"))),
    get("has-a-file-but-is-wanted-again", 200, ("UPDATE videos SET status = 'WANTED' WHERE id = 1",), video_id="1"),
    *(get(f"url-{name}", 200, address(6, url)) for name, url in GOOD_URLS.items()),
    *(get(f"url-{name}", 400, address(6, url)) for name, url in HOSTILE_URLS.items()),
    get("youtube-id-that-is-smuggled", 400, ("UPDATE videos SET youtube_id = '#__youtubedl_smuggle' WHERE id = 6",)),
    *(
        get(f"title-{name}", 200, (*HERE, f"UPDATE videos SET title = {literal(title)} WHERE id = 6"))
        for name, title in HOSTILE_TITLES.items()
    ),
    get("active", 409, (*HERE, *state("pending"))),
    get("paused", 409, (*HERE, *state("paused"))),
    get("of-the-small-library-active", 409, video_id="8"),
    get("twice", 409, setup=(get("before", 200),)),
    get("downloaded", 409, video_id="2"),
    get("downloaded-by-hand", 409, video_id="3"),
    get("quality-word", 400, HERE, json={"quality": "high"}),
    get("quality-option", 400, HERE, json={"quality": "--exec"}),
    get("quality-list", 400, HERE, json={"quality": ["720"]}),
    get("quality-long", 400, HERE, json={"quality": "7" * 21}),
    get("format-unknown", 400, HERE, json={"format": "exe"}),
    get("format-way-up", 400, HERE, json={"format": "../mp4"}),
    get("format-other-case", 400, HERE, json={"format": "MP4"}),
    get("priority-0", 400, HERE, json={"priority": 0}),
    get("priority-11", 400, HERE, json={"priority": 11}),
    get("priority-word", 400, HERE, json={"priority": "first"}),
    *(get(name, 404, video_id=video_id) for name, video_id in HOSTILE_IDS),
    *(get(name, 404, video_id=video_id, wire="W2") for name, video_id in NO_IDS),
    *(
        get(name, status, HERE, headers=headers, body=body, wire=wire)
        for name, status, headers, body, wire in BROKEN_BODIES
        if body
    ),
    get("nothing-of-type-json", 200, HERE, headers={"Content-Type": "application/json"}, body=b""),
    get("nothing-alike-anywhere", 200, setting("youtube_api_key", "wrong")),
    get("service-down", 200, outside={"youtube": {"down": True}}),
    get("service-wrong-shape", 200, outside={"youtube": {"wrong_shape": True}}),
    write("videos.download_video", "get", "GET /api/videos/6/download", 405, "user", wire="W3"),
]


def several(name: str, status: int, ids: Any, sql: tuple[str, ...] = (), **case: Any) -> Case:
    body = {"video_ids": ids, **case.pop("more", {})}
    return write(
        "videos.bulk_download", name, "POST /api/videos/bulk/download", status, "user", json=body, sql=sql, **case
    )


SOME = tuple(statement for number in (6, 9, 10) for statement in address(number, f"http://videos.test/{number}.mp4"))

SEVERAL = [
    several("all", 200, [10, 6, 9], SOME),
    several("wishes", 200, [6, 9], SOME, more={"quality": "480", "format": "mkv", "priority": 10}),
    several("listening", 200, [10, 6], (*SOME, *LISTENING)),
    several("repeated", 200, [6, "6", 6.5, 6], SOME),
    several("some", 207, [6, 999, 8, 2, 9, 10], (*SOME, *address(9, "file:///etc/passwd"))),
    several("none", 207, [2, 8, 999], LISTENING),
    several("null-and-huge", 400, [None, 10**30], SOME),
    several("null", 207, [None, 6], SOME),
    several("empty", 400, []),
    several("no-list", 400, "6"),
    several("objects", 400, [{"id": 6}]),
    several("words", 400, ["six"]),
    several("too-many", 400, list(range(1, 1002))),
    several("quality-word", 400, [6], SOME, more={"quality": "high"}),
    several("priority-11", 400, [6], SOME, more={"priority": 11}),
    several("again", 207, [6, 9, 10], SOME, setup=(several("before", 207, [6, 999]),)),
    write("videos.bulk_download", "missing", "POST /api/videos/bulk/download", 400, "user", json={"ids": [6]}),
    write("videos.bulk_download", "put", "PUT /api/videos/bulk/download", 405, "user", json={"video_ids": [6]}),
]

# Tools

COOKIE = b".videos.test\tTRUE\t/\tTRUE\t1900000000\tsession\tsecret"
NETSCAPE = b"# Netscape HTTP Cookie File\n# made by hand\n\n" + COOKIE + b"\n#HttpOnly_" + COOKIE + b"\n"


def upload(
    name: str, status: int, content: bytes | None = NETSCAPE, filename: str = "cookies.txt", **case: Any
) -> Case:
    file: File | None = None if content is None else (filename, content, "text/plain")
    files = {"file": file} if file else None
    return write("downloads.upload_cookies", name, f"POST {PATH}cookies", status, "manager", files=files, **case)


COOKIES = [
    upload("netscape", 200),
    upload("other-name", 200, filename="../../secret_key"),
    upload("other-first-line", 200, b"# HTTP Cookie File\n" + COOKIE),
    upload("windows", 200, NETSCAPE.replace(b"\n", b"\r\n")),
    upload("of-the-session", 200, b"# HTTP Cookie File\na.test\tFALSE\t/\tFALSE\t\tname\t"),
    upload("replaces", 200, b"# HTTP Cookie File\n" + COOKIE, setup=(upload("before", 200),)),
    upload("refused-keeps-the-old", 400, b"nonsense", setup=(upload("before", 200),)),
    upload("many", 200, b"# HTTP Cookie File\n" + (COOKIE + b"\n") * 10_000),
    upload("too-large", 413, NETSCAPE + b"#" * 1024 * 1024),
    upload("much-too-large", 413, bytes(12 * 1024 * 1024), wire="W38"),
    upload("empty", 400, b""),
    upload("without-first-line", 400, COOKIE),
    upload("without-cookies", 400, b"# Netscape HTTP Cookie File\n"),
    upload("json", 400, b'[{"domain": "videos.test", "name": "session"}]'),
    upload("spaces-for-tabs", 400, NETSCAPE.replace(b"\t", b" ")),
    upload("fields-missing", 400, b"# HTTP Cookie File\na.test\tTRUE\t/\n"),
    upload("flags-in-lower-case", 400, NETSCAPE.replace(b"TRUE", b"true")),
    upload("expires-word", 400, NETSCAPE.replace(b"1900000000", b"never")),
    upload("path-missing", 400, NETSCAPE.replace(b"\t/\t", b"\t\t")),
    upload("no-utf8", 400, NETSCAPE + b"\xff"),
    upload("byte-order-mark", 400, b"\xef\xbb\xbf" + NETSCAPE),
    upload("program", 400, b"\x7fELF\0\0\0"),
    upload("no-file", 400, None, data={"file": "text"}),
    upload("without-name", 400, filename=""),
    write("downloads.upload_cookies", "as-json", f"POST {PATH}cookies", 400, "manager", json={"file": "x"}),
]

TOOL = [
    read("downloads.ytdlp_status", "without-ffmpeg", f"{PATH}tool", 503),
    read("downloads.ytdlp_status", "nobody-signed-in", f"{PATH}tool", 401, user="anonymous"),
    read("downloads.ytdlp_status", "other-program", f"{PATH}tool", 503, query="ffmpeg=/bin/sh&command=id"),
    read("downloads.ytdlp_status", "slash", f"{PATH}tool/", 404, wire="W1"),
]

CASES = [*QUEUE, *HISTORY, *PRIORITY, *PAUSE, *RESUME, *CANCEL, *RETRY, *GET, *SEVERAL, *COOKIES, *TOOL]
