"""Spotify Web API with client credentials: artists, and the artists of a playlist.

An access token is good for an hour; all callers of this process share it.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from fastapi_app.containment import refuse

from . import errors
from .ask import ask
from .client import AddressRefused, UpstreamClient
from .errors import SPOTIFY
from .fields import address, dig, records, text, whole
from .guard import check

AT_ONCE = 50  # artists of a search; the service gives no more
PAGE, MAX_PAGES = 100, 100  # entries of a playlist per call, which is all the service gives; pages that are read
MAX_ENTRIES = PAGE * MAX_PAGES
PAGES_AT_ONCE = 8
FIELDS = "total,items(is_local,track(is_local,artists(id,name)))"
MARGIN_S = 60  # so shortly before its end a token is not used any more

_ID = re.compile(r"[\w-]{1,50}")
_TOKEN = re.compile(r"[!-~]{1,4000}")
_HOSTS = ("open.spotify.com", "play.spotify.com")

Texts = Mapping[str, str]


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


class Token(NamedTuple):
    """`expires_at` is by the monotonic clock, in seconds."""

    owner: Credentials
    text: str
    expires_at: float


class Spotify:
    """What asks raises ApiError 400, 429, 502, and 404 for an id. For any number of tasks in one loop."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._token: Token | None = None
        self._refreshing: dict[Credentials, asyncio.Task[Token]] = {}

    async def search_artists(self, texts: Texts, query: str, limit: int = AT_ONCE) -> list[FoundArtist]:
        """The best match first, each once, 50 at most."""
        answer = await self._ask(texts, "/search", {"type": "artist", "q": query, "limit": str(min(limit, AT_ONCE))})
        found = filter(None, map(_artist_of, records(SPOTIFY, dig(answer, "artists", "items"))))
        return list({artist.spotify_id: artist for artist in found}.values())[:limit]

    async def artist(self, texts: Texts, spotify_id: str) -> FoundArtist:
        """Under the id that was asked for."""
        found = _artist_of(await self._ask(texts, f"/artists/{quote(spotify_id)}", what="Artist"))
        if found is None:
            raise errors.nonsense(SPOTIFY)
        return found._replace(spotify_id=spotify_id)

    async def top_tracks(self, texts: Texts, spotify_id: str) -> list[FoundTrack]:
        answer = await self._ask(texts, f"/artists/{quote(spotify_id)}/top-tracks", {"market": "US"}, "Artist")
        return list(filter(None, map(_track_of, records(SPOTIFY, answer.get("tracks")))))

    async def playlist_artists(self, texts: Texts, playlist_id: str) -> Entries:
        """Of the first 10 000 entries; after the first page eight pages are asked for at the same time.

        Pages are found by counting. `next` is not followed: it would lead wherever the answer says.
        """
        first = await self._page(texts, playlist_id, 0)
        total, step = whole(first.get("total")), len(first["items"])
        if total is None:
            raise errors.nonsense(SPOTIFY)
        offsets = range(step, min(total, MAX_ENTRIES), step)[: MAX_PAGES - 1] if step else range(0)
        gate = asyncio.Semaphore(PAGES_AT_ONCE)

        async def page(offset: int) -> dict[str, Any]:
            async with gate:
                return await self._page(texts, playlist_id, offset)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(page(offset)) for offset in offsets]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return _entries([first, *(task.result() for task in tasks)], total)

    async def token(self, texts: Texts, refused: str = "") -> str:
        """A valid access token, which is not the `refused` one. Whoever needs a new one meanwhile gets the same."""
        owner = credentials(texts)
        refuse("http", owner.token_url)  # before a task is shared that would end in this for everybody
        known = self._token
        if known and known.owner == owner and known.text != refused and time.monotonic() < known.expires_at:
            return known.text
        task = self._refreshing.get(owner)
        if task is None:
            task = self._refreshing[owner] = asyncio.create_task(self._refresh(texts, owner))
            task.add_done_callback(lambda _: self._refreshing.pop(owner))
        return (await asyncio.shield(task)).text  # the first who asked may leave

    def breaker_state(self, texts: Texts) -> str:
        """closed, open or half_open, in this process."""
        try:
            check(texts["spotify_url"].strip())
        except AddressRefused:
            return "closed"  # nothing is asked there
        return self._client.breaker(texts["spotify_url"].strip()).state

    def forget(self) -> None:
        """The token: the next call asks for another."""
        self._token = None

    async def _refresh(self, texts: Texts, owner: Credentials) -> Token:
        began, form, auth = time.monotonic(), {"grant_type": "client_credentials"}, (owner.client_id, owner.secret)
        answer = await ask(self._client, SPOTIFY, texts, owner.token_url, form=form, auth=auth)
        self._token = _token_of(answer, owner, began)
        return self._token

    async def _page(self, texts: Texts, playlist_id: str, offset: int) -> dict[str, Any]:
        params = {"fields": FIELDS, "limit": str(PAGE), "offset": str(offset)}
        page = await self._ask(texts, f"/playlists/{quote(playlist_id)}/tracks", params, "Playlist")
        return page | {"items": records(SPOTIFY, page.get("items"))}

    async def _ask(
        self, texts: Texts, path: str, params: Mapping[str, str] | None = None, what: str = ""
    ) -> dict[str, Any]:
        token = await self.token(texts)
        try:
            return await self._ask_with(token, texts, path, params, what)
        except errors.KeyRefused as error:
            if error.was != 401:
                raise
        token = await self.token(texts, refused=token)
        return await self._ask_with(token, texts, path, params, what)

    async def _ask_with(
        self, token: str, texts: Texts, path: str, params: Mapping[str, str] | None, what: str
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        return await ask(self._client, SPOTIFY, texts, path, params=params, headers=headers, what=what)


def id_of(spelling: str, kind: str) -> str | None:
    """The id in an id, URI or address of an "artist" or a "playlist" on Spotify; None for everything else."""
    spelling = spelling.strip()
    parts = spelling.split(":") if spelling.startswith("spotify:") else _place(spelling)
    candidate = parts[-1] if parts[-2:-1] == [kind] else spelling
    return candidate if _ID.fullmatch(candidate) else None


def _place(spelling: str) -> list[str]:
    """The path of an address on Spotify; nothing for another host."""
    try:
        parts = urlsplit(spelling if "://" in spelling else f"https://{spelling}")
    except ValueError:
        return []
    known = parts.scheme in ("http", "https") and parts.netloc.lower() in _HOSTS
    return parts.path.rstrip("/").split("/") if known else []


def credentials(texts: Texts) -> Credentials:
    names = ("spotify_token_url", "spotify_client_id", "spotify_client_secret")
    found = Credentials(*(texts.get(name, "").strip() for name in names))
    if not (found.client_id and found.secret):
        raise errors.not_configured(SPOTIFY)
    return found


# Out of its answers


def _token_of(answer: Mapping[str, Any], owner: Credentials, began: float) -> Token:
    found, lifetime_s = answer.get("access_token"), whole(answer.get("expires_in"))
    if not (isinstance(found, str) and _TOKEN.fullmatch(found) and lifetime_s):
        raise errors.nonsense(SPOTIFY)
    return Token(owner, found, began + lifetime_s - MARGIN_S)


def _artist_of(item: Any) -> FoundArtist | None:
    spotify_id, name = dig(item, "id"), text(dig(item, "name"), 255)
    if not (isinstance(spotify_id, str) and _ID.fullmatch(spotify_id) and name):
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


def _track_of(item: Mapping[str, Any]) -> FoundTrack | None:
    spotify_id, title, length_ms = item.get("id"), text(item.get("name"), 500), whole(item.get("duration_ms"))
    if not (isinstance(spotify_id, str) and _ID.fullmatch(spotify_id) and title):
        return None
    return FoundTrack(spotify_id, title, length_ms // 1000 if length_ms else None)


def _entries(pages: Sequence[Mapping[str, Any]], total: int) -> Entries:
    """Entries may be gone (no track), files of somebody's computer, or episodes: these name no artist with an id."""
    items = [item for page in pages for item in page["items"]][:MAX_ENTRIES]
    found: dict[str, str] = {}
    for item in items:
        local = True in (item.get("is_local"), dig(item, "track", "is_local"))
        credited = dig(item, "track", "artists")
        for artist in map(_artist_of, credited if isinstance(credited, list) and not local else ()):
            if artist:
                found.setdefault(artist.spotify_id, artist.name)
    return Entries(found, len(items), total)
