"""Playlists of YouTube. What they hold is described in `tests.upstream`; the small library has no monitors."""

from typing import Any

from .case import Case, read, write
from .discovery import LISTENING, failures, keys, recovers, setting

PATH = "/api/youtube/playlists/"
CREATED = ("$.monitor.created_at", "$.monitor.updated_at")
SYNCED = (*CREATED, "$.monitor.last_synced_at")
ID = "PLvideosworthwatching"


def create(name: str, code: int, spelling: Any = ID, field: str = "playlist_id", **case: Any) -> Case:
    body = {field: spelling, **case.pop("more", {})}
    mask = CREATED if code == 201 else ()
    return write("playlists.create_monitor", name, f"POST {PATH}", code, "user", json=body, mask=mask, **case)


def delete(name: str, code: int, monitor_id: str = "1", **case: Any) -> Case:
    return write("playlists.delete_monitor", name, f"DELETE {PATH}{monitor_id}", code, "user", **case)


def monitor(playlist_id: str, number: int = 1, auto_download: bool = False) -> str:
    times = "'2026-01-01 00:00:00', '2026-01-02 03:04:05.678900'"
    columns = "id, playlist_id, title, auto_download, video_count, created_at, updated_at"
    values = f"{number}, '{playlist_id}', 'Added by hand', {int(auto_download)}, 0, {times}"
    return f"INSERT INTO playlist_monitors ({columns}) VALUES ({values})"


def sync(name: str, code: int, playlist_id: str = ID, monitor_id: str = "1", **case: Any) -> Case:
    mask = SYNCED if code == 200 else ()
    sql = (monitor(playlist_id, auto_download=case.pop("auto_download", False)), *case.pop("sql", ()))
    return write(
        "playlists.sync_monitor", name, f"POST {PATH}{monitor_id}/sync", code, "user", mask=mask, sql=sql, **case
    )


FIRST = create("first", 201)
ADDRESSES = {
    "address": f"https://www.youtube.com/playlist?list={ID}",
    "address-plain": f"http://youtube.com/playlist?list={ID}&si=abc",
    "address-without-scheme": f"youtube.com/playlist?list={ID}",
    "address-mobile": f"https://m.youtube.com/playlist?list={ID}",
    "address-music": f"https://music.youtube.com/playlist?list={ID}",
    "address-of-a-video": f"https://www.youtube.com/watch?v=loB0kmz_0MM&list={ID}&index=2",
    "address-short": f"https://youtu.be/loB0kmz_0MM?list={ID}",
    "address-embedded": f"https://www.youtube-nocookie.com/embed/videoseries?list={ID}",
    "address-in-capitals": f"HTTPS://WWW.YOUTUBE.COM/playlist?list={ID}",
    "address-with-spaces": f"  https://www.youtube.com/playlist?list={ID}\n",
}
HOSTILE = {
    "elsewhere": f"https://evil.test/playlist?list={ID}",
    "elsewhere-looking-alike": f"https://youtube.com.evil.test/playlist?list={ID}",
    "elsewhere-signed-in": f"https://www.youtube.com@evil.test/playlist?list={ID}",
    "signed-in": f"https://me:secret@www.youtube.com/playlist?list={ID}",
    "private-network": f"http://169.254.169.254/playlist?list={ID}",
    "other-port": f"https://www.youtube.com:8080/playlist?list={ID}",
    "script": f"javascript://www.youtube.com/playlist?list={ID}",
    "file": f"file://www.youtube.com/playlist?list={ID}",
    "backslash": f"https://evil.test\\@www.youtube.com/playlist?list={ID}",
    "lines": f"https://www.youtube.com/\r\nplaylist?list={ID}",
    "broken": "https://[/playlist?list=PLabcdefghijkl",
    "without-list": "https://www.youtube.com/playlist",
    "list-of-two-words": "https://www.youtube.com/playlist?list=PLabc+defghijkl",
    "list-with-markup": "https://www.youtube.com/playlist?list=%3Cscript%3E",
    "video": "https://www.youtube.com/watch?v=loB0kmz_0MM",
    "short": "PLabc",
    "long": "PL" + "x" * 63,
    "very-long": "PL" + "x" * 1000,
    "traversal": "../../etc/passwd",
    "surrogate": "PL\ud800abcdefghijkl",
}

CREATE = [
    create("id", 201),
    create("auto-download", 201, more={"auto_download": True}),
    create("auto-download-as-text", 201, more={"auto_download": "false"}, wire="W16"),
    create("url", 201, f"https://www.youtube.com/playlist?list={ID}", "url"),
    *(create(name, 201, spelling) for name, spelling in ADDRESSES.items()),
    *(create(name, 400, spelling) for name, spelling in HOSTILE.items()),
    create("empty-playlist", 201, "PLemptyplaylist"),
    create("duplicate", 409, setup=(FIRST,)),
    create("duplicate-by-address", 409, ADDRESSES["address"], setup=(FIRST,)),
    create("other-case-is-another", 201, ID.upper(), setup=(FIRST,)),
    create("duplicate-without-key", 409, setup=(FIRST,), sql=setting("youtube_api_key", "")),
    create("unknown", 404, "PLnonesuchplaylist"),
    create("private", 404, "PLprivateplaylist"),
    create("missing", 400, None),
    create("blank", 400, " "),
    create("list", 400, [ID]),
    create("number", 400, 5),
    *(create(name, 400, sql=sql) for name, sql in keys("youtube")),
    *(create(name, code, outside=dials) for name, code, dials in failures("youtube")),
    *(create(name, 201, outside=dials) for name, dials in recovers("youtube")),
    create("quota", 429, outside={"youtube": {"quota": True}}),
    create("wrong-types", 404, outside={"youtube": {"wrong_types": True}}),
    create("error-in-200", 502, outside={"youtube": {"error_in_200": True}}),
]

LIST = [
    read("playlists.list_monitors", "none", PATH),
    read(
        "playlists.list_monitors",
        "several",
        PATH,
        sql=(
            monitor("PLzzzzzzzzzzzz", 3, auto_download=True),
            monitor(ID, 2),
            "UPDATE playlist_monitors SET last_synced_at = '2026-02-03 04:05:06', video_count = 7 WHERE id = 2",
            "UPDATE playlist_monitors SET channel = 'Čas 🎵' WHERE id = 2",
        ),
        wire="W22",
    ),
]

DELETE = [
    delete("one", 200, sql=(monitor(ID),)),
    delete(
        "after-a-sync",
        200,
        setup=(create("first", 201), write("playlists.sync_monitor", "then", f"POST {PATH}1/sync", 200, "user")),
    ),
    delete("twice", 404, setup=(create("first", 201), delete("then", 200))),
    delete("unknown", 404, "999"),
    delete("zero", 404, "0"),
    delete("huge", 404, "99999999999999999999"),
    delete("no-number", 404, "abc", wire="W2"),
]

SYNC = [
    sync("new-videos", 200),
    sync("pages", 200, "PLlongplaylist"),
    sync("empty", 200, "PLemptyplaylist"),
    sync("auto-download", 200, auto_download=True),
    sync("auto-download-pages", 200, "PLlongplaylist", auto_download=True),
    sync("listening", 200, auto_download=True, sql=LISTENING),
    sync("some-are-there", 200, sql=("UPDATE videos SET youtube_id = 'dQw4w9WgXcQ' WHERE id = 7",)),
    sync("unknown", 404, monitor_id="999"),
    sync("huge", 404, monitor_id="99999999999999999999"),
    sync("no-longer-there", 404, "PLnonesuchplaylist"),
    sync("private-by-now", 404, "PLprivateplaylist"),
    *(sync(name, 400, sql=sql) for name, sql in keys("youtube")),
    *(sync(name, code, outside=dials) for name, code, dials in failures("youtube")),
    *(sync(name, 200, outside=dials) for name, dials in recovers("youtube")),
    sync("quota", 429, outside={"youtube": {"quota": True}}),
    sync("quota-on-the-second-page", 429, "PLlongplaylist", outside={"youtube": {"quota": True, "only": "pageToken"}}),
    sync("second-page-down", 502, "PLlongplaylist", outside={"youtube": {"down": True, "only": "pageToken"}}),
    sync(
        "second-page-of-wrong-types",
        200,
        "PLlongplaylist",
        outside={"youtube": {"wrong_types": True, "only": "pageToken"}},
    ),
    sync("wrong-types", 200, outside={"youtube": {"wrong_types": True}}),
    sync("error-in-200", 502, outside={"youtube": {"error_in_200": True}}),
    write(
        "playlists.sync_monitor",
        "again",
        f"POST {PATH}1/sync",
        200,
        "user",
        setup=(FIRST, write("playlists.sync_monitor", "before", f"POST {PATH}1/sync", 200, "user")),
        mask=SYNCED,
    ),
    write(
        "playlists.sync_monitor",
        "another-with-the-same-videos",
        f"POST {PATH}2/sync",
        200,
        "user",
        setup=(
            FIRST,
            create("second", 201, "PLlongplaylist", more={"auto_download": True}),
            write("playlists.sync_monitor", "before", f"POST {PATH}1/sync", 200, "user"),
        ),
        mask=SYNCED,
    ),
]

CASES = [*LIST, *CREATE, *DELETE, *SYNC]
