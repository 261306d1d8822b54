"""Spotify Web API with client credentials: artists, and the artists of a playlist.

An access token is good for an hour; all threads of this process share it.
"""

import re
import time
from threading import Lock
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from flask import current_app

from . import client, errors
from .errors import SPOTIFY
from .failures import AddressRefused
from .fields import address, dig, records, text, whole
from .guard import check

AT_ONCE = 50  # artists of a search; the service gives no more
PAGE, MAX_PAGES = 100, 100  # entries of a playlist per call, which is all the service gives; pages that are read
MAX_ENTRIES = PAGE * MAX_PAGES
FIELDS = "total,items(is_local,track(is_local,artists(id,name)))"
MARGIN_S = 60  # so shortly before its end a token is not used any more

ID = re.compile(r"[\w-]{1,50}")
TOKEN = re.compile(r"[!-~]{1,4000}")
HOSTS = ("open.spotify.com", "play.spotify.com")


class FoundArtist(NamedTuple):
    spotify_id: str
    name: str
    genres: list[str]
    followers: int | None
    image_url: str | None


class FoundTrack(NamedTuple):
    """`duration` is in seconds."""

    spotify_id: str
    title: str
    duration: int | None


class Entries(NamedTuple):
    """Of a playlist: names of artists by id, in their order, and how many of all its entries were read."""

    artists: dict[str, str]
    read: int
    total: int


class Credentials(NamedTuple):
    token_url: str
    client_id: str
    secret: str


class Tokens:
    """The access token of this process. One thread asks for it, the others wait."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.forget()

    def forget(self) -> None:
        self.owner, self.text, self.expires_at = None, "", 0.0

    def get(self, texts: dict, refused: str = "") -> str:
        """One that is valid and not the `refused` one. Raises ApiError 400, 429, 502."""
        owner = credentials(texts)
        with self.lock:
            if self.owner != owner or self.text == refused or time.monotonic() >= self.expires_at:
                self.text, self.expires_at = ask_for_token(texts, owner)
                self.owner = owner
            return self.text


def search_artists(texts: dict, query: str, limit: int = AT_ONCE) -> list[FoundArtist]:
    """The best match first, each once, 50 at most. Raises ApiError 400, 429, 502."""
    answer = ask(texts, "/search", {"type": "artist", "q": query, "limit": str(min(limit, AT_ONCE))})
    found = filter(None, map(artist_of, records(SPOTIFY, dig(answer, "artists", "items"))))
    return list({artist.spotify_id: artist for artist in found}.values())[:limit]


def artist(texts: dict, spotify_id: str) -> FoundArtist:
    """Under the id that was asked for. Raises ApiError 400, 404, 429, 502."""
    found = artist_of(ask(texts, f"/artists/{quote(spotify_id)}", what="Artist"))
    if found is None:
        raise errors.nonsense(SPOTIFY)
    return found._replace(spotify_id=spotify_id)


def top_tracks(texts: dict, spotify_id: str) -> list[FoundTrack]:
    """Raises ApiError 400, 404, 429, 502."""
    answer = ask(texts, f"/artists/{quote(spotify_id)}/top-tracks", {"market": "US"}, "Artist")
    return list(filter(None, map(track_of, records(SPOTIFY, answer.get("tracks")))))


def playlist_artists(texts: dict, playlist_id: str) -> Entries:
    """Of the first 10 000 entries. Raises ApiError 400, 404, 429, 502.

    Pages are found by counting. `next` is not followed: it would lead wherever the answer says.
    """
    first = page(texts, playlist_id, 0)
    total, step = whole(first.get("total")), len(first["items"])
    if total is None:
        raise errors.nonsense(SPOTIFY)
    offsets = range(step, min(total, MAX_ENTRIES), step)[: MAX_PAGES - 1] if step else range(0)
    return entries([first, *(page(texts, playlist_id, offset) for offset in offsets)], total)


def page(texts: dict, playlist_id: str, offset: int) -> dict:
    params = {"fields": FIELDS, "limit": str(PAGE), "offset": str(offset)}
    found = ask(texts, f"/playlists/{quote(playlist_id)}/tracks", params, "Playlist")
    return found | {"items": records(SPOTIFY, found.get("items"))}


def token(texts: dict) -> str:
    """A valid access token. Raises ApiError 400, 429, 502."""
    return current_app.extensions["spotify"].get(texts)


def breaker_state(texts: dict) -> str:
    """closed, open or half_open, in this process."""
    try:
        check(texts["spotify_url"].strip())
    except AddressRefused:
        return "closed"  # nothing is asked there
    return current_app.extensions["upstream"].breaker(texts["spotify_url"].strip()).state


def ask(texts: dict, path: str, params: dict | None = None, what: str = "") -> dict:
    known = token(texts)
    try:
        return ask_with(known, texts, path, params, what)
    except errors.KeyRefused as error:
        if error.was != 401:
            raise
    fresh = current_app.extensions["spotify"].get(texts, refused=known)
    return ask_with(fresh, texts, path, params, what)


def ask_with(known: str, texts: dict, path: str, params: dict | None, what: str) -> dict:
    headers = {"Authorization": f"Bearer {known}"}
    return client.ask(SPOTIFY, texts, path, params=params, headers=headers, what=what)


def ask_for_token(texts: dict, owner: Credentials) -> tuple[str, float]:
    """The token, and until when by the monotonic clock."""
    began, form, auth = time.monotonic(), {"grant_type": "client_credentials"}, (owner.client_id, owner.secret)
    answer = client.ask(SPOTIFY, texts, owner.token_url, form=form, auth=auth)
    found, lifetime_s = answer.get("access_token"), whole(answer.get("expires_in"))
    if not (isinstance(found, str) and TOKEN.fullmatch(found) and lifetime_s):
        raise errors.nonsense(SPOTIFY)
    return found, began + lifetime_s - MARGIN_S


def credentials(texts: dict) -> Credentials:
    names = ("spotify_token_url", "spotify_client_id", "spotify_client_secret")
    found = Credentials(*(texts.get(name, "").strip() for name in names))
    if not (found.client_id and found.secret):
        raise errors.not_configured(SPOTIFY)
    return found


def id_of(spelling: str, kind: str) -> str | None:
    """The id in an id, URI or address of an "artist" or a "playlist" on Spotify; None for everything else."""
    spelling = spelling.strip()
    parts = spelling.split(":") if spelling.startswith("spotify:") else place(spelling)
    candidate = parts[-1] if parts[-2:-1] == [kind] else spelling
    return candidate if ID.fullmatch(candidate) else None


def place(spelling: str) -> list[str]:
    """The path of an address on Spotify; nothing for another host."""
    try:
        parts = urlsplit(spelling if "://" in spelling else f"https://{spelling}")
    except ValueError:
        return []
    known = parts.scheme in ("http", "https") and parts.netloc.lower() in HOSTS
    return parts.path.rstrip("/").split("/") if known else []


# --- out of its answers ----------------------------------------------------------------------------------------------


def artist_of(item) -> FoundArtist | None:
    spotify_id, name = dig(item, "id"), text(dig(item, "name"), 255)
    if not (isinstance(spotify_id, str) and ID.fullmatch(spotify_id) and name):
        return None
    genres, images = dig(item, "genres"), dig(item, "images")
    named = (text(genre, 100) for genre in genres[:100]) if isinstance(genres, list) else ()
    shown = (address(dig(image, "url")) for image in images) if isinstance(images, list) else ()
    return FoundArtist(
        spotify_id=spotify_id,
        name=name,
        genres=list(dict.fromkeys(genre for genre in named if genre)),
        followers=whole(dig(item, "followers", "total")),
        image_url=next(filter(None, shown), None),
    )


def track_of(item: dict) -> FoundTrack | None:
    spotify_id, title, length_ms = item.get("id"), text(item.get("name"), 500), whole(item.get("duration_ms"))
    if not (isinstance(spotify_id, str) and ID.fullmatch(spotify_id) and title):
        return None
    return FoundTrack(spotify_id, title, length_ms // 1000 if length_ms else None)


def entries(pages: list[dict], total: int) -> Entries:
    """Entries may be gone (no track), files of somebody's computer, or episodes: these name no artist with an id."""
    items = [item for page in pages for item in page["items"]][:MAX_ENTRIES]
    found = {}
    for item in items:
        local = True in (item.get("is_local"), dig(item, "track", "is_local"))
        credited = dig(item, "track", "artists")
        for artist in map(artist_of, credited if isinstance(credited, list) and not local else ()):
            if artist:
                found.setdefault(artist.spotify_id, artist.name)
    return Entries(found, len(items), total)
