"""Spotify. In the small library artist 1 is Björk, 2 The Beatles, 20 Daft Punk; none has an id of Spotify.

What the service answers is described in `tests.upstream`; its ids of artists are slugs.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .case import Case, read, write
from .discovery import IMPORTED, LISTENING, failures, recovers, setting

ARTISTS = "/api/spotify/artists"
DAFT_PUNK_IS = "UPDATE artists SET spotify_id = '{}' WHERE id = 20"
SECRETS = {"clé": "non-ascii", "a\r\nb: c": "lines", "wrong": "wrong"}


def status(name: str, code: int = 200, **more: Any) -> Case:
    return read("spotify.status", name, "/api/spotify/status", code, mask=("$.breaker",), **more)


def search(name: str, query: str, code: int = 200, **more: Any) -> Case:
    return read("spotify.search_artists", name, ARTISTS, code, "user", query=query, **more)


def artist(name: str, code: int, spotify_id: Any, /, more: Mapping[str, Any] | None = None, **case: Any) -> Case:
    body, mask = {"spotify_id": spotify_id, **(more or {})}, IMPORTED if code == 201 else ()
    request = f"POST {ARTISTS}/import"
    return write("spotify.import_artist", name, request, code, "user", json=body, mask=mask, **case)


def playlist(name: str, code: int, spelling: Any, field: str = "playlist_id", **case: Any) -> Case:
    request = "POST /api/spotify/playlists/import"
    return write("spotify.import_playlist", name, request, code, "user", json={field: spelling}, **case)


def everywhere(name: str, sql: tuple[str, ...], code: int = 400) -> list[Case]:
    """The same on every route that asks."""
    return [
        search(name, "q=portishead", code, sql=sql),
        artist(name, code, "portishead", sql=sql),
        playlist(name, code, "mix", sql=sql),
    ]


STATUS = [
    status("valid"),
    status("client-id-missing", 400, sql=setting("spotify_client_id", "")),
    status("client-id-blank", 400, sql=setting("spotify_client_id", "  ")),
    status("secret-missing", 400, sql=setting("spotify_client_secret", "")),
    *(status(f"secret-{name}", sql=setting("spotify_client_secret", text)) for text, name in SECRETS.items()),
    status("nobody-there", sql=setting("spotify_token_url", "http://127.0.0.1:1/")),
    status("address-refused", sql=setting("spotify_token_url", "http://10.0.0.1/")),
    status("address-nonsense", sql=setting("spotify_token_url", "no address")),
    status("api-address-nonsense", sql=setting("spotify_url", "no address")),
    *(status(name, outside=dials) for name, _, dials in failures("spotify-token")),
    status("wrong-types", outside={"spotify-token": {"wrong_types": True}}),
    status("error-in-200", outside={"spotify-token": {"error_in_200": True}}),
    status("api-down", outside={"spotify": {"down": True}}),
    status(
        "secret-changed",
        setup=(status("first"),),
        sql=setting("spotify_client_secret", "changed"),
    ),
]

SEARCH = [
    search("found", "q=portishead"),
    search("already-there-by-name", "q=daft+punk"),
    search("already-there-by-id", "q=portishead", sql=(DAFT_PUNK_IS.format("portishead"),)),
    search("japanese", f"q={quote('椎名林檎')}"),
    search("slash", "q=AC%2FDC"),
    search("markup", "q=%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
    search("injection", "q=x%27%26type%3Dtrack%23%3Flimit%3D0"),
    search("no-utf8", "q=%ff%fe"),
    search("nul", "q=a%00b"),
    search("twice", "q=portishead&q=", wire="W14"),
    search("limit", "q=portishead&limit=2"),
    search("limit-0", "q=portishead&limit=0", wire="W12"),
    search("limit-negative", "q=portishead&limit=-3"),
    search("limit-huge", "q=portishead&limit=99999999999999999999"),
    search("limit-abc", "q=portishead&limit=abc", wire="W11"),
    search("200-characters", f"q={'x' * 200}"),
    search("201-characters", f"q={'x' * 201}", 400),
    search("nothing", "q=nothing"),
    search("no-query", "", 400),
    search("blank", "q=%20%20", 400),
    *(search(name, "q=portishead", code, outside=dials) for name, code, dials in failures("spotify")),
    *(search(name, "q=portishead", code, outside=dials) for name, code, dials in failures("spotify-token")),
    *(search(name, "q=portishead", outside=dials) for name, dials in recovers("spotify")),
    *(search(name, "q=portishead", outside=dials) for name, dials in recovers("spotify-token")),
    search("token-expired", "q=portishead", outside={"spotify": {"fail_first": 1, "status": 401}}),
    search("token-expired-twice", "q=portishead", 400, outside={"spotify": {"fail_first": 2, "status": 401}}),
    search("wrong-types", "q=portishead", outside={"spotify": {"wrong_types": True}}),
    search("token-of-wrong-type", "q=portishead", 502, outside={"spotify-token": {"wrong_types": True}}),
    search("error-in-200", "q=portishead", 502, outside={"spotify": {"error_in_200": True}}),
    search("not-there", "q=portishead", 502, outside={"spotify": {"status": 404}}),
    search("address-refused", "q=portishead", 502, sql=setting("spotify_url", "http://10.0.0.1/")),
    search("address-nonsense", "q=portishead", 502, sql=setting("spotify_url", "no address")),
    search("token-address-of-a-file", "q=portishead", 502, sql=setting("spotify_token_url", "file:///etc/passwd")),
    search("limiter-nonsense", "q=portishead", sql=setting("spotify_per_second", "many")),
]

IMPORT = [
    artist("id", 201, "portishead"),
    artist("uri", 201, "spotify:artist:portishead"),
    artist("address", 201, "https://open.spotify.com/artist/portishead?si=1"),
    artist("address-of-a-country", 201, " open.spotify.com/intl-de/artist/portishead/ "),
    write(
        "spotify.import_artist",
        "url",
        f"POST {ARTISTS}/import",
        201,
        "user",
        json={"url": "spotify:artist:queen"},
        mask=IMPORTED,
    ),
    artist("japanese", 201, "宇多田ヒカル"),
    artist("without-picture", 201, "silent-nobody"),
    artist("flags", 201, "portishead", more={"monitored": False, "auto_download": "yes"}, wire="W16"),
    artist("listening", 201, "portishead", sql=LISTENING),
    artist("picture-missing", 201, "portishead", outside={"images": {"status": 404}}),
    artist("picture-down", 201, "portishead", outside={"images": {"down": True}}),
    artist("picture-is-none", 201, "portishead", outside={"images": {"malformed": True}}),
    artist("picture-private", 201, "portishead", outside={"images": {"redirect": "http://10.0.0.1/x.jpg"}}),
    artist("duplicate-id", 409, "spotify:artist:portishead", sql=(DAFT_PUNK_IS.format("portishead"),)),
    artist("duplicate-name", 409, "daft-punk"),
    artist("duplicate-twice", 409, "portishead", setup=(artist("first", 201, "portishead"),)),
    artist("unknown", 404, "none-such"),
    artist("missing", 400, None),
    artist("blank", 400, "  "),
    artist("list", 400, ["portishead"]),
    artist("number", 201, 634),
    artist("long", 400, "x" * 51),
    artist("very-long", 400, "x" * 1001),
    artist("surrogate", 400, "\ud800"),
    artist("path", 400, "../me"),
    artist("path-quoted", 400, "..%2Fme"),
    artist("query", 400, "portishead?market=US"),
    artist("lines", 400, "port\r\nishead"),
    artist("of-a-playlist", 400, "spotify:playlist:mix"),
    artist("elsewhere", 400, "https://open.spotify.com.evil.test/artist/portishead"),
    artist("elsewhere-signed-in", 400, "https://open.spotify.com@evil.test/artist/portishead"),
    artist("script", 400, "javascript://open.spotify.com/artist/portishead"),
    artist("broken-address", 400, "https://[/artist/portishead"),
    *(artist(name, code, "portishead", outside=dials) for name, code, dials in failures("spotify")),
    *(artist(name, 201, "portishead", outside=dials) for name, dials in recovers("spotify")),
    artist("token-expired", 201, "portishead", outside={"spotify": {"fail_first": 1, "status": 401}}),
    artist("wrong-types", 502, "portishead", outside={"spotify": {"wrong_types": True}}),
    artist("error-in-200", 502, "portishead", outside={"spotify": {"error_in_200": True}}),
]

PLAYLIST = [
    playlist("new-artists", 201, "long"),
    playlist("uri", 201, "spotify:playlist:mix"),
    playlist("address", 201, "https://open.spotify.com/playlist/mix?si=1", "url"),
    playlist("of-a-user", 201, "https://open.spotify.com/user/fan/playlist/mix"),
    playlist("again", 200, "long", setup=(playlist("first", 201, "long"),)),
    playlist("some-are-there", 201, "long", setup=(artist("one", 201, "massive-attack"),)),
    playlist("namesake", 207, "mix", sql=(DAFT_PUNK_IS.format("another"),)),
    playlist("namesake-and-new-artists", 207, "long", sql=(DAFT_PUNK_IS.format("another"),)),
    playlist(
        "known-by-another-name",
        201,
        "mix",
        sql=(
            DAFT_PUNK_IS.format("daft-punk"),
            "UPDATE artists SET name = 'Robots', name_key = 'robots', sort_name = 'robots' WHERE id = 20",
        ),
    ),
    playlist("listening", 201, "long", sql=LISTENING),
    playlist("empty", 200, "empty"),
    playlist("unknown", 404, "none-such"),
    playlist("private", 404, "private"),
    playlist("missing", 400, None),
    playlist("number", 201, 12),
    playlist("object", 400, {"id": "mix"}),
    playlist("of-an-artist", 400, "spotify:artist:mix"),
    playlist("path", 400, "../artists/queen"),
    playlist("elsewhere", 400, "https://evil.test/playlist/mix"),
    playlist("private-network", 400, "http://169.254.169.254/playlist/mix"),
    *(playlist(name, code, "mix", outside=dials) for name, code, dials in failures("spotify")),
    *(playlist(name, 201, "mix", outside=dials) for name, dials in recovers("spotify")),
    playlist("second-page-fails", 502, "long", outside={"spotify": {"status": 500, "only": "offset=100"}}),
    playlist(
        "second-page-to-wait", 429, "long", outside={"spotify": {"status": 429, "retry_after": 9, "only": "offset=100"}}
    ),
    playlist("second-page-nonsense", 502, "long", outside={"spotify": {"wrong_shape": True, "only": "offset=100"}}),
    playlist(
        "second-page-of-wrong-types", 201, "long", outside={"spotify": {"wrong_types": True, "only": "offset=100"}}
    ),
    playlist(
        "second-page-expired", 201, "long", outside={"spotify": {"fail_first": 1, "status": 401, "only": "offset=100"}}
    ),
    playlist("wrong-types", 502, "mix", outside={"spotify": {"wrong_types": True}}),
    playlist("error-in-200", 502, "mix", outside={"spotify": {"error_in_200": True}}),
]

CASES = [
    *STATUS,
    *SEARCH,
    *IMPORT,
    *PLAYLIST,
    *everywhere("client-id-missing", setting("spotify_client_id", "")),
    *everywhere("client-id-wrong", setting("spotify_client_id", "wrong")),
    *(
        case
        for text, name in SECRETS.items()
        for case in everywhere(f"secret-{name}", setting("spotify_client_secret", text))
    ),
]
