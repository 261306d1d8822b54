"""The pages and their files."""

from .case import Case, read

ADDRESSES = {
    "dashboard": "/",
    "artists": "/artists",
    "artist": "/artist/1",
    "videos": "/videos",
    "video": "/video/1",
    "downloads": "/downloads",
    "discover": "/discover",
    "playlists": "/playlists",
    "settings": "/settings",
    "system": "/system",
}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
FILE_TIME = ("header.etag", "header.last-modified", "header.date")


def login(name: str, status: int = 200, user: str = "anonymous", **more: str) -> Case:
    return read("pages.login", name, "/login", status, user, **more)


def static(name: str, path: str, status: int = 200, **more: dict[str, str]) -> Case:
    return read("pages.static", name, f"/static/{path}", status, "anonymous", mask=FILE_TIME, **more)


CASES: list[Case] = [
    *(read(f"pages.{page}", "signed-in", path) for page, path in ADDRESSES.items()),
    *(read(f"pages.{page}", "not-signed-in", path, 302, "anonymous", wire="W33") for page, path in ADDRESSES.items()),
    read("pages.videos", "query-is-not-kept", "/videos", 302, "anonymous", query="next=//evil.test", wire="W33"),
    read("pages.artist", "name-instead-of-number", "/artist/bjork", 404, wire="W2"),
    read("pages.artist", "nobody-there", "/artist/999999"),  # the page says so: it asks the API
    read("pages.artists", "slash-too-many", "/artists/", 404),
    read("pages.dashboard", "unknown-page", "/nowhere", 404, wire="W3"),
    read("pages.dashboard", "unknown-page-not-signed-in", "/nowhere", 404, "anonymous", wire="W3"),
    read("pages.dashboard", "unknown-page-in-a-browser", "/nowhere", 404, "anonymous", headers={"Accept": BROWSER}),
    read("pages.dashboard", "unknown-file-in-a-browser", "/static/nothing.js", 404, headers={"Accept": BROWSER}),
    login("not-signed-in"),
    login("signed-in", 302, "readonly"),
    login("next", query="next=/videos%3Fpage=2"),
    login("next-elsewhere", query="next=//evil.test/"),
    login("error-is-text", query="error=%3Cscript%3Ealert(1)%3C/script%3E"),
    login("first-run", sql=("DELETE FROM users",)),
    static("script", "app.js"),
    static("unknown", "nothing.js", 404),
    static("leads-out", "../pages.py", 404),
    static("leads-out-encoded", "..%2Fpages.py", 404),
    static("range", "app.css", 206, headers={"Range": "bytes=0-9"}),
]
