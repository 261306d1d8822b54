"""What Flask does before any view runs: unknown paths, missing slashes, wrong methods, odd requests."""

from .case import Case, read


def unmatched(
    name: str, method: str, path: str, status: int, user: str = "readonly", wire: str = "", query: str = ""
) -> Case:
    return Case(f"unmatched:{name}", "", method, path, status, user, query=query, wire=wire)


CASES = [
    *(
        unmatched(f"no-slash-{path.rsplit('/', 1)[1]}", "GET", path, 308, wire="W1")
        for path in ("/api/artists", "/api/videos", "/api/users", "/api/settings")
    ),
    unmatched("no-slash-query", "GET", "/api/artists", 308, wire="W1", query="page=2&search=a%20b"),
    unmatched("no-slash-head", "HEAD", "/api/artists", 308, wire="W1"),
    unmatched("no-slash-post", "POST", "/api/artists", 308, "user", wire="W1"),
    unmatched("no-slash-delete", "DELETE", "/api/artists", 404, "user", wire="W1"),
    unmatched("no-slash-anonymous", "GET", "/api/artists", 308, "anonymous", wire="W1"),
    unmatched("extra-slash", "GET", "/api/artists/1/", 404, wire="W1"),
    unmatched("two-slashes", "GET", "/api//artists/1", 308, wire="W1"),
    unmatched("artist-abc", "GET", "/api/artists/abc", 404, wire="W2"),
    unmatched("artist-negative", "GET", "/api/artists/-1", 404, wire="W2"),
    unmatched("artist-float", "GET", "/api/artists/1.0", 404, wire="W2"),
    unmatched("artist-space", "GET", "/api/artists/%201", 404, wire="W2"),
    unmatched("artist-plus", "GET", "/api/artists/+1", 404, wire="W2"),
    unmatched("video-abc", "GET", "/api/videos/abc", 404, wire="W2"),
    unmatched("video-negative-delete", "DELETE", "/api/videos/-1", 404, "manager", wire="W2"),
    unmatched("user-abc", "PUT", "/api/users/abc/role", 404, "admin", wire="W2"),
    unmatched("unknown", "GET", "/api/nothing", 404, wire="W3"),
    unmatched("unknown-anonymous", "GET", "/api/nothing", 404, "anonymous", wire="W3"),
    unmatched("unknown-post", "POST", "/api/nothing", 404, "user", wire="W3"),
    unmatched("unknown-unicode", "GET", "/api/%E6%A4%8E%ff", 404, wire="W3"),
    unmatched("unknown-markup", "GET", "/%3Cscript%3E", 404, wire="W3"),
    unmatched("capitals", "GET", "/API/artists/", 404, wire="W3"),
    unmatched("wrong-method", "PATCH", "/api/artists/1", 405, "user", wire="W3"),
    unmatched("wrong-method-collection", "DELETE", "/api/videos/", 405, "manager", wire="W3"),
    unmatched("wrong-method-anonymous", "POST", "/api/health", 405, "anonymous", wire="W3"),
    unmatched("wrong-method-login", "GET", "/auth/login", 405, "anonymous", wire="W3"),
    unmatched("wrong-method-static-segment", "POST", "/api/videos/search", 405, "user", wire="W34"),
    unmatched("options-unknown", "OPTIONS", "/api/nothing", 404, "anonymous", wire="W4"),
    unmatched("options-no-slash", "OPTIONS", "/api/artists", 308, "anonymous", wire="W4"),
    unmatched("head-unknown", "HEAD", "/api/nothing", 404, wire="W5"),
    read("artists.list_artists", "form-body-on-get", "/api/artists/", data={"page": "abc"}),
    read("artists.get_artist", "accept-html", "/api/artists/1", headers={"Accept": "text/html"}),
    read("artists.get_artist", "encoded-path", "/api/%61rtists/1"),
    read("artists.get_artist", "error-accept-html", "/api/artists/999", 404, headers={"Accept": "text/html"}),
]
