"""Statistics and genres."""

from typing import Any

from .case import Case, read


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
]
