"""Artists. The ids are those of the small library: 1 Björk has a picture, 22 Nobody has no videos."""

import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

from .case import Case, File, read, write
from .outside import LISTENING, SOME, failures, keys, recovers, setting

LIST = "/api/artists/"
ADVANCED = "/api/artists/search/advanced"
SUGGESTIONS = "/api/artists/search/suggestions"
CHANGED = ("$.artist.updated_at",)
NOBODY = "q=nobody"


def listed(name: str, query: str, status: int = 200, **more: Any) -> Case:
    return read("artists.list_artists", name, LIST, status, query=query, **more)


def advanced(name: str, query: str, status: int = 200, **more: Any) -> Case:
    return read("artists.advanced_search", name, ADVANCED, status, query=query, **more)


def suggested(name: str, query: str) -> Case:
    return read("artists.suggestions", name, SUGGESTIONS, query=query)


def create(name: str, status: int, /, **fields: Any) -> Case:
    return write("artists.create_artist", name, f"POST {LIST}", status, "user", json=fields)


def raw(name: str, status: int, body: bytes, kind: str = "application/json") -> Case:
    headers = {"Content-Type": kind}
    return write("artists.create_artist", name, f"POST {LIST}", status, "user", headers=headers, body=body)


def update(name: str, status: int, artist_id: int = 2, /, **fields: Any) -> Case:
    path = f"/api/artists/{artist_id}"
    mask = CHANGED if status == 200 else ()
    return write("artists.update_artist", name, f"PUT {path}", status, "user", json=fields, mask=mask)


def remove(name: str, status: int, artist_id: int, query: str = "", **more: Any) -> Case:
    request = f"DELETE /api/artists/{artist_id}"
    return write("artists.delete_artist", name, request, status, "manager", query=query, **more)


def upload(name: str, status: int, file: File | None, artist_id: int = 22, **more: Any) -> Case:
    request = f"POST /api/artists/{artist_id}/thumbnail/upload"
    files = {"file": file} if file else {}
    return write("artists.upload_artist_thumbnail", name, request, status, "user", files=files, **more)


def refresh(name: str, status: int = 200, artist_id: int | str = 20, query: str = "", **more: Any) -> Case:
    request, mask = f"PUT /api/artists/{artist_id}/metadata/update", CHANGED if status == 200 else ()
    return write("artists.refresh_artist_metadata", name, request, status, "user", query=query, mask=mask, **more)


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (400, 200)) -> bytes:
    content = BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(content, kind)
    return content.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a large picture."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


PNG = ("cover.png", picture("PNG", "RGBA"), "image/png")
FORCE = "force=true"

READING = [
    listed("all", ""),
    listed("page-2", "page=2&per_page=5"),
    listed("page-beyond", "page=99"),
    listed("page-0", "page=0&per_page=0", wire="W12"),
    listed("page-negative", "page=-3&per_page=-3", wire="W12"),
    listed("per-page-too-many", "per_page=100000"),
    listed("page-huge", "page=99999999999999999999"),
    listed("page-abc", "page=abc", 400, wire="W10"),
    listed("page-empty", "page=", 400, wire="W10"),
    listed("per-page-float", "per_page=1.5", 400, wire="W10"),
    listed("page-spaces-and-digits-of-others", "page=%20%D9%A1%20"),
    listed("page-underscore", "page=1_0"),
    listed("page-twice", "page=2&page=abc&per_page=3", wire="W14"),
    listed("page-twice-wrong-first", "page=abc&page=2", 400, wire="W14"),
    listed("sort-name-desc", "sort=name&order=desc"),
    listed("sort-created", "sort=created_at&order=DESC"),
    listed("sort-updated", "sort=updated_at"),
    listed("sort-video-count", "sort=video_count&order=desc&per_page=7"),
    listed("sort-bogus", "sort=bogus&order=bogus", wire="W13"),
    listed("sort-injection", "sort=name;DROP%20TABLE%20artists", wire="W13"),
    listed("monitored", "monitored=true"),
    listed("monitored-1", "monitored=1"),
    listed("monitored-no", "monitored=false&auto_download=TRUE"),
    listed("monitored-word", "monitored=maybe"),
    listed("monitored-empty", "monitored="),
    listed("search", "search=the"),
    listed("search-capitals", "search=BJ%C3%96RK"),
    listed("search-composed", "search=beyonc%C3%A9"),
    listed("search-sharp-s", "search=STRASSE"),
    listed("search-percent", "search=100%25"),
    listed("search-underscore", "search=_"),
    listed("search-backslash", "search=%5C"),
    listed("search-quote", "search='"),
    listed("search-japanese", "search=%E6%A4%8E%E5%90%8D"),
    listed("search-plus-is-space", "search=daft+punk"),
    listed("search-blank", "search=%20%20"),
    listed("search-no-utf8", "search=%ff"),
    listed("search-nothing", "search=zzzz"),
    listed("search-nul", "search=a%00b"),
    listed("odd-query", "&&=&a&search=abba&"),
    advanced("all", ""),
    advanced("page-2", "page=2&per_page=5&sort=video_count&order=desc"),
    advanced("filters", "q=a&monitored=true&min_videos=1&max_videos=3"),
    advanced("genre", "genre=rock"),
    advanced("genre-capitals", "genre=Pop"),
    advanced("genre-part", "genre=roc"),
    advanced("genre-emoji", "genre=%F0%9F%8E%B8"),
    advanced("genre-plus", "genre=a%2Bb+c"),
    advanced("genre-quote", "genre=%22"),
    advanced("with-thumbnail", "has_thumbnail=true"),
    advanced("without-thumbnail", "has_thumbnail=no&auto_download=yes"),
    advanced("nothing-found", "q=zzzz"),
    advanced("min-videos-abc", "min_videos=abc", wire="W11"),
    advanced("min-videos-negative", "min_videos=-5"),
    advanced("page-abc", "page=abc", 400, wire="W10"),
    advanced("page-beyond", "page=50"),
    advanced("stale-for-300-seconds", NOBODY, setup=(advanced("first", NOBODY), remove("nobody", 200, 22)), wire="W26"),
    advanced(
        "fresh-after-300-seconds",
        NOBODY,
        setup=(advanced("first", NOBODY), remove("nobody", 200, 22)),
        sql=("UPDATE cache SET expires_at = '2020-01-01 00:00:00.000000'",),
        wire="W26",
    ),
    suggested("two-letters", "q=be"),
    suggested("one-letter", "q=b"),
    suggested("nothing", ""),
    suggested("blank", "q=%20%20%20"),
    suggested("unicode", "q=%E6%A4%8E%E5%90%8D"),
    suggested("wildcard", "q=%25%25"),
    suggested("many", "q=e%20"),
    read("artists.get_artist", "unicode", "/api/artists/1", wire="W21"),
    read("artists.get_artist", "markup", "/api/artists/13", wire="W21"),
    read("artists.get_artist", "leading-zeros", "/api/artists/0001"),
    read("artists.get_artist", "arabic-digit", "/api/artists/%D9%A1", wire="W2"),
    read("artists.get_artist", "unknown", "/api/artists/999", 404),
    read("artists.get_artist", "zero", "/api/artists/0", 404),
    read("artists.get_artist", "huge", "/api/artists/99999999999999999999", 404),
    read("artists.get_artist", "above-32-bits", "/api/artists/4294967297", 404),
    read("artists.get_artist_detailed", "with-videos", "/api/artists/2/detailed", wire="W25"),
    read("artists.get_artist_detailed", "with-downloads", "/api/artists/8/detailed", wire="W25"),
    read("artists.get_artist_detailed", "without-videos", "/api/artists/22/detailed", wire="W25"),
    read("artists.get_artist_detailed", "unknown", "/api/artists/999/detailed", 404),
]

CREATING = [
    create("name-only", 201, name="Portishead"),
    create(
        "all-fields",
        201,
        name="Massive Attack",
        imvdb_id="massive",
        spotify_id="6FXMGgJwohJLUSr5nVlf9X",
        bio="Bristol",
        genres=["trip hop", " trip hop ", "", "électro"],
        monitored=False,
        auto_download=True,
        quality="1080p",
        folder_path="M/Massive Attack",
        thumbnail_url="https://images.test/m.jpg",
        unknown="ignored",
    ),
    create("name-is-a-number", 201, name=5, wire="W15"),
    create("name-is-true", 201, name=True, wire="W15"),
    create("name-is-a-float", 201, name=1.50, wire="W15"),
    create("name-trimmed", 201, name="  Low \t"),
    create("name-of-slashes", 201, name="../../etc/passwd"),
    create("name-255", 201, name="x" * 255),
    create("name-unicode", 201, name="Ærø 🎻 \u202e"),
    create("monitored-as-text", 201, name="Text", monitored="false", auto_download="", wire="W16"),
    create("monitored-null", 201, name="Null", monitored=None, wire="W16"),
    create("name-missing", 400, bio="x"),
    create("name-blank", 400, name="   "),
    create("name-null", 400, name=None),
    create("name-is-a-list", 400, name=["a"]),
    create("name-256", 400, name="x" * 256),
    create("name-grows-when-folded", 400, name="ß" * 200),
    create("name-broken-surrogate", 400, name="\ud83d"),
    create("duplicate", 409, name="Björk"),
    create("duplicate-capitals-and-spaces", 409, name=" THE   BEATLES "),
    create("duplicate-decomposed", 409, name="Bjo\u0308rk"),
    create("duplicate-composed", 409, name="Beyoncé"),
    create("duplicate-sharp-s", 409, name="STRASSE"),
    create("duplicate-imvdb-id", 409, name="Other", imvdb_id="beatles"),
    create("genres-text", 400, name="A", genres="rock"),
    create("genres-numbers", 201, name="Numbers", genres=[1980, True]),
    create("genres-nested", 400, name="A", genres=[["rock"]]),
    create("genres-many", 400, name="A", genres=["x"] * 101),
    create("genre-long", 400, name="A", genres=["x" * 101]),
    create("folder-outside", 400, name="A", folder_path="../x"),
    create("folder-absolute", 400, name="A", folder_path="/etc"),
    create("folder-dots", 201, name="A dotted", folder_path="a//./b/"),
    create("folder-dot", 400, name="A", folder_path="."),
    create("url-script", 400, name="A", thumbnail_url="javascript:alert(1)"),
    create("bio-long", 400, name="A", bio="x" * 10_001),
    raw("utf-16", 201, '{"name": "Ünïcode"}'.encode("utf-16")),
    raw("byte-order-mark", 201, b'\xef\xbb\xbf{"name": "Marked"}'),
    raw("nan", 201, b'{"name": NaN}'),
    raw("key-twice", 201, b'{"name": "First", "name": "Second"}'),
    raw("other-json", 201, b'{"name": "Typed"}', "application/vnd.api+json; charset=latin-1"),
    raw("json-in-capitals", 201, b'{"name": "Typed"}', "APPLICATION/JSON"),
    raw("json-lines", 400, b'{"name": "A"}\n{"name": "B"}'),
]

CHANGING = [
    update("name", 200, 2, name="Beatles"),
    update("one-field", 200, 2, monitored=False),
    update("nothing-changes", 200, 2, name="The Beatles"),
    update("case-only", 200, 2, name="THE BEATLES"),
    update("monitored-as-text", 200, 3, monitored="false", wire="W16"),
    update("to-null", 200, 2, imvdb_id=None, bio=None, genres=None, quality="", folder_path=None),
    update("genres", 200, 2, genres=["a+b c", "Ünïcode", "a+b c"]),
    update("unknown-field", 400, 2, id=99),
    update("known-and-unknown", 200, 2, id=99, bio="x"),
    update("name-blank", 400, 2, name=""),
    update("name-taken", 409, 2, name="abba"),
    update("imvdb-id-taken", 409, 2, imvdb_id="bjork"),
    update("imvdb-id-own", 200, 2, imvdb_id="beatles"),
    update("unknown", 404, 999, name="A"),
    update("imvdb-id-long", 400, 2, imvdb_id="x" * 51),
    update("spotify-id", 200, 2, spotify_id="3WrFJ7ztbogyGnTHbHJFl2"),
    write(
        "artists.update_artist",
        "spotify-id-taken",
        "PUT /api/artists/2",
        409,
        "user",
        json={"spotify_id": "bjork"},
        sql=("UPDATE artists SET spotify_id = 'bjork' WHERE id = 1",),
    ),
    write(
        "artists.update_artist",
        "settings",
        "PUT /api/artists/2/settings",
        200,
        "user",
        json={"quality": "4k"},
        mask=CHANGED,
    ),
    write(
        "artists.update_artist",
        "settings-anonymous",
        "PUT /api/artists/2/settings",
        401,
        "anonymous",
        json={"bio": "x"},
    ),
    write("artists.update_artist", "settings-get", "GET /api/artists/2/settings", 405, "user", wire="W3"),
    remove("without-videos", 200, 22),
    remove("with-videos", 409, 1),
    remove("with-videos-force", 200, 1, FORCE),
    remove("with-videos-force-1", 200, 8, "force=1"),
    remove("with-videos-force-no", 409, 1, "force=no"),
    remove("with-files", 200, 2, f"{FORCE}&delete_files=true"),
    remove("files-kept", 200, 2, f"{FORCE}&delete_files=0"),
    remove(
        "shared-folder-stays",
        200,
        2,
        f"{FORCE}&delete_files=true",
        setup=(update("share", 200, 22, folder_path="The Beatles/sub"),),
    ),
    remove("unknown", 404, 999, FORCE),
    remove("twice", 404, 22, setup=(remove("first", 200, 22),)),
]

THUMBNAIL = "/api/artists/1/thumbnail"
PICTURES = [
    read("artists.artist_thumbnail", "jpeg", THUMBNAIL, wire="W29"),
    read("artists.artist_thumbnail", "placeholder", "/api/artists/2/thumbnail", wire="W29"),
    read("artists.artist_thumbnail", "unknown", "/api/artists/999/thumbnail", 404),
    read(
        "artists.artist_thumbnail",
        "not-modified",
        THUMBNAIL,
        304,
        headers={"If-None-Match": "{etag}"},
        setup=(read("artists.artist_thumbnail", "first", THUMBNAIL),),
    ),
    read(
        "artists.artist_thumbnail",
        "not-modified-since",
        THUMBNAIL,
        304,
        headers={"If-Modified-Since": "{last_modified}"},
        setup=(read("artists.artist_thumbnail", "first", THUMBNAIL),),
    ),
    read(
        "artists.artist_thumbnail",
        "placeholder-not-modified",
        "/api/artists/2/thumbnail",
        304,
        headers={"If-None-Match": "{etag}"},
        setup=(read("artists.artist_thumbnail", "first", "/api/artists/2/thumbnail"),),
    ),
    read("artists.artist_thumbnail", "other-etag", THUMBNAIL, headers={"If-None-Match": '"other"'}),
    read("artists.artist_thumbnail", "any-etag", THUMBNAIL, 304, headers={"If-None-Match": "*"}),
    read("artists.artist_thumbnail", "range", THUMBNAIL, 206, headers={"Range": "bytes=0-9"}, wire="W27"),
    *(
        read("artists.artist_thumbnail_size", size, f"{THUMBNAIL}/{size}")
        for size in ("small", "medium", "large", "original")
    ),
    read("artists.artist_thumbnail_size", "placeholder-small", "/api/artists/2/thumbnail/small", wire="W29"),
    read("artists.artist_thumbnail_size", "placeholder-original", "/api/artists/4/thumbnail/original", wire="W29"),
    read("artists.artist_thumbnail_size", "bad-size", f"{THUMBNAIL}/huge", 400),
    read("artists.artist_thumbnail_size", "bad-size-first", "/api/artists/999/thumbnail/huge", 400),
    read("artists.artist_thumbnail_size", "capitals", f"{THUMBNAIL}/Small", 400),
    read("artists.artist_thumbnail_size", "unknown", "/api/artists/999/thumbnail/small", 404),
    upload("png", 200, PNG),
    upload("jpg", 200, ("cover.jpg", picture("JPEG"), "image/jpeg")),
    upload("gif", 200, ("cover.gif", picture("GIF", "P"), "image/gif")),
    upload("webp", 200, ("cover.webp", picture("WEBP"), "image/webp")),
    upload("tall", 200, ("tall.png", picture("PNG", "L", (10, 900)), "image/png")),
    upload("name-with-path", 200, ("../../../x.png", picture("PNG"), "image/png")),
    upload("says-text", 200, ("cover.txt", picture("PNG"), "text/plain")),
    upload("replaces", 200, PNG, 1),
    upload("bmp", 400, ("cover.bmp", picture("BMP"), "image/png")),
    upload("text", 400, ("cover.png", b"not a picture", "image/png")),
    upload("truncated", 400, ("cover.png", PNG[1][:200], "image/png")),
    upload("empty", 400, ("cover.png", b"", "image/png")),
    upload("bomb", 400, ("bomb.png", claimed_png(8000, 8000), "image/png")),
    upload("great-bomb", 400, ("bomb.png", claimed_png(60_000, 60_000), "image/png")),
    upload("too-large", 413, ("cover.png", bytes(10 * 1024 * 1024 + 1), "image/png"), wire="W38"),
    upload("much-too-large", 413, ("cover.png", bytes(12 * 1024 * 1024), "image/png"), wire="W38"),
    upload("no-file", 400, None, data={"a": "b"}),
    upload("no-name", 400, ("", b"x", "image/png")),
    upload("unknown", 404, PNG, 999),
    write(
        "artists.upload_artist_thumbnail",
        "json",
        "POST /api/artists/22/thumbnail/upload",
        400,
        "user",
        json={"file": "x"},
    ),
    read(
        "artists.artist_thumbnail_size",
        "uploaded",
        "/api/artists/22/thumbnail/small",
        setup=(upload("first", 200, PNG),),
        mask=("header.etag", "header.last-modified"),
    ),
]

OVERWRITE = "overwrite=true"
SILENT = ("UPDATE artists SET name = 'Silent Nobody', name_key = 'silent nobody' WHERE id = 22",)
NOTHING = ("UPDATE artists SET name = 'nothing', name_key = 'nothing' WHERE id = 22",)
POOR = ("UPDATE artists SET genres = '[]' WHERE id = 20",)

REFRESHING = [
    refresh("by-name"),
    refresh("by-id", artist_id=1),
    refresh("what-a-person-wrote-stays", artist_id=2),
    refresh("overwrite", artist_id=2, query=OVERWRITE),
    refresh("overwrite-picture", artist_id=1, query="overwrite=1"),
    refresh("overwrite-no", artist_id=2, query="overwrite=no"),
    refresh("genres-are-missing", sql=POOR),
    refresh("twice", setup=(refresh("first"),)),
    refresh("nothing-to-add", artist_id=22, sql=SILENT),
    refresh("told", sql=(*LISTENING, *POOR)),
    refresh("nothing-new-told", setup=(refresh("first"),), sql=LISTENING),
    refresh("body-is-ignored", headers={"Content-Type": "application/json"}, body=b"{"),
    *(refresh(f"artist-{number}", artist_id=number) for number in (3, 4, 5, 6, 7, 8, 11, 14, 16, 17)),
    *(refresh(f"artist-{number}-has-another-name-there", 404, number) for number in (12, 13)),
    refresh("unknown-there", 404, 22, sql=NOTHING),
    refresh("unknown-id-there", 404, sql=("UPDATE artists SET imvdb_id = 'none-such' WHERE id = 20",)),
    refresh("hostile-id", 404, sql=("UPDATE artists SET imvdb_id = '../video/1' WHERE id = 20",)),
    refresh("id-of-another", 409, sql=("UPDATE artists SET imvdb_id = 'daft-punk' WHERE id = 3",)),
    refresh("unknown", 404, 999),
    refresh("huge", 404, 10**20),
    refresh("unknown-before-key", 404, 999, sql=setting("imvdb_api_key", "")),
    refresh("wrong-types", 404, outside={"imvdb": {"wrong_types": True}}),
    refresh("entity-wrong-types", 502, 1, outside={"imvdb": {"wrong_types": True}}),
    refresh("entity-down", 502, outside={"imvdb": {"down": True, "only": "/entity/"}}),
    *(refresh(name, status, outside=dials) for name, status, dials in failures("imvdb", "429", "500", *SOME)),
    *(refresh(name, outside=dials) for name, dials in recovers("imvdb")),
    *(refresh(name, 400, sql=sql) for name, sql in keys("imvdb")),
    *(refresh(name, outside=dials) for name, _, dials in failures("lastfm")),
    *(refresh(name, sql=sql) for name, sql in keys("lastfm")),
    *(
        refresh(f"lastfm-error-{code}", sql=POOR, outside={"lastfm": {"error_in_200": code}})
        for code in (6, 10, 11, 16, 26, 29, 99)
    ),
    refresh("lastfm-wrong-types", sql=POOR, outside={"lastfm": {"wrong_types": True}}),
    *(refresh(name, artist_id=22, sql=SILENT, outside=dials) for name, _, dials in failures("wikipedia", *SOME)),
    refresh("wikipedia-wrong-types", artist_id=22, sql=SILENT, outside={"wikipedia": {"wrong_types": True}}),
    refresh("wikipedia-error-in-200", artist_id=22, sql=SILENT, outside={"wikipedia": {"error_in_200": True}}),
    *(
        refresh(f"picture-{name}", outside={"images": {"redirect": f"/images/{name}.jpg"}})
        for name in ("not-a-picture", "bomb", "none", "redirect-metadata")
    ),
    refresh("picture-down", artist_id=1, query=OVERWRITE, outside={"images": {"down": True}}),
]

CASES = [*READING, *CREATING, *CHANGING, *PICTURES, *REFRESHING]
