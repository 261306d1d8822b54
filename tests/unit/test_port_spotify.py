"""Spotify, as the port asks it: one token for all, renewed when it must be, and answers that may lie."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

import pytest
from sqlalchemy.engine import Connection

from fastapi_app import containment
from fastapi_app.http import ApiError
from fastapi_app.settings import DEFAULTS
from fastapi_app.upstreams import spotify as module
from fastapi_app.upstreams.client import UpstreamClient
from fastapi_app.upstreams.spotify import Spotify, id_of
from tests.support.upstreams import Upstream


@pytest.fixture
async def spotify(upstream: Upstream) -> AsyncIterator[Spotify]:
    client = UpstreamClient(backoff_s=0.01, allowed_networks="127.0.0.1/32")
    yield Spotify(client)
    await client.aclose()


@pytest.fixture
def texts(upstream: Upstream) -> dict[str, str]:
    return DEFAULTS | upstream.settings


def tokens(upstream: Upstream) -> int:
    return len(upstream.calls("spotify-token"))


class Refusing:
    """The gateway's half of a replay."""

    def attach(self, connection: Connection) -> None: ...
    def detach(self) -> None: ...
    def refuse(self, kind: str, what: str) -> NoReturn:
        raise PermissionError(f"{kind}: {what}")


async def refusal(spotify: Spotify, texts: Mapping[str, str]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        await spotify.artist(texts, "daft-punk")
    return caught.value.status, caught.value.message


# The token


async def test_fifty_callers_at_once_cause_one_request_for_a_token(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    upstream.dial({"spotify-token": {"latency_s": 0.1}})
    found = await asyncio.gather(*(spotify.artist(texts, "daft-punk") for _ in range(50)))
    assert {"Daft Punk"} == {artist.name for artist in found}
    assert (1, 50) == (tokens(upstream), len(upstream.calls("spotify")))


async def test_a_token_is_kept_for_the_next_call(spotify: Spotify, texts: dict[str, str], upstream: Upstream) -> None:
    first, second = await spotify.token(texts), await spotify.token(texts)
    assert (first, 1) == (second, tokens(upstream))


async def test_a_token_is_asked_for_with_the_credentials_as_basic_auth(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    await spotify.token(texts)
    (call,) = upstream.calls("spotify-token")
    assert ("POST", "grant_type=client_credentials") == (call["method"], call["body"])
    assert "Basic ZGVtby1pZDpkZW1vLXNlY3JldA==" == call["headers"]["authorization"]


async def test_a_token_is_renewed_before_it_expires(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN_S", 3600)
    first, second = await spotify.token(texts), await spotify.token(texts)
    assert first != second


async def test_other_credentials_get_another_token_at_once(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    token = await spotify.token(texts)
    with pytest.raises(ApiError, match="Spotify refused the key"):
        await spotify.token(texts | {"spotify_client_secret": "changed"})
    assert token == await spotify.token(texts)


async def test_fifty_refused_calls_renew_the_token_once_and_are_repeated(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    await spotify.token(texts)
    spotify._token = spotify._token and spotify._token._replace(text="expired")
    await asyncio.gather(*(spotify.artist(texts, "daft-punk") for _ in range(50)))
    assert (2, 100) == (tokens(upstream), len(upstream.calls("spotify")))


async def test_a_token_that_is_refused_again_is_the_fault_of_the_credentials(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    upstream.dial({"spotify": {"status": 401}})
    assert (400, "Spotify refused the key") == await refusal(spotify, texts)
    assert (2, 2) == (tokens(upstream), len(upstream.calls("spotify")))


async def test_what_is_forbidden_is_asked_once(spotify: Spotify, texts: dict[str, str], upstream: Upstream) -> None:
    upstream.dial({"spotify": {"status": 403}})
    assert (400, "Spotify refused the key") == await refusal(spotify, texts)
    assert (1, 1) == (tokens(upstream), len(upstream.calls("spotify")))


async def test_whoever_asked_first_may_leave_and_the_others_get_their_token(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    upstream.dial({"spotify-token": {"latency_s": 0.1}})
    first, second = (asyncio.create_task(spotify.token(texts)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert (True, 1) == (first.cancelled(), tokens(upstream))


async def test_a_replayed_request_neither_asks_for_a_token_nor_waits_for_one(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    async def replay() -> None:
        containment._contained.set(containment.Contained(Refusing()))
        await spotify.token(texts)

    with pytest.raises(PermissionError):
        await asyncio.create_task(replay())  # in a context of its own
    assert [] == upstream.calls()
    assert await spotify.token(texts)


async def test_a_token_that_could_not_be_had_is_asked_for_again(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    upstream.dial({"spotify-token": {"malformed": True}})
    outcomes = await asyncio.gather(*(spotify.token(texts) for _ in range(20)), return_exceptions=True)
    assert {"Spotify gave an answer that makes no sense"} == {str(outcome) for outcome in outcomes}
    assert 1 == tokens(upstream)
    upstream.dial({})
    assert await spotify.token(texts)


@pytest.mark.parametrize("missing", ["spotify_client_id", "spotify_client_secret"])
async def test_nothing_is_asked_without_credentials(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream, missing: str
) -> None:
    assert (400, "Spotify is not configured") == await refusal(spotify, texts | {missing: " "})
    assert [] == upstream.calls()


@pytest.mark.parametrize(
    ("dials", "expected"),
    [
        ({"down": True}, (502, "Spotify is not available")),
        ({"status": 500}, (502, "Spotify is not available")),
        ({"status": 429, "retry_after": 7}, (429, "Spotify asks to wait")),
        ({"wrong_types": True}, (502, "Spotify gave an answer that makes no sense")),
        ({"wrong_shape": True}, (502, "Spotify gave an answer that makes no sense")),
        ({"empty": True}, (502, "Spotify gave an answer that makes no sense")),
        ({"huge_body": True}, (502, "Spotify gave an answer that makes no sense")),
    ],
)
@pytest.mark.parametrize("where", ["spotify", "spotify-token"])
async def test_what_goes_wrong_is_told_in_one_sentence(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream, where: str, dials: dict[str, Any], expected: object
) -> None:
    upstream.dial({where: dials})
    assert expected == await refusal(spotify, texts)


# What is asked for


async def test_artists_are_found_with_genres_followers_and_the_widest_picture(
    spotify: Spotify, texts: dict[str, str]
) -> None:
    found = await spotify.search_artists(texts, "daft punk", 3)
    assert 3 == len(found)
    best = found[0]
    assert ("daft-punk", "Daft Punk", ["electronic", "house"]) == (best.spotify_id, best.name, best.genres)
    assert best.followers
    assert str(best.image_url).endswith("-640x640.jpg")


async def test_top_tracks_have_their_length_in_seconds(spotify: Spotify, texts: dict[str, str]) -> None:
    tracks = await spotify.top_tracks(texts, "daft-punk")
    assert tracks
    assert all(track.title and 60 < (track.duration or 0) < 600 for track in tracks)


async def test_a_playlist_names_each_artist_once_whatever_else_is_in_it(
    spotify: Spotify, texts: dict[str, str]
) -> None:
    entries = await spotify.playlist_artists(texts, "mix")
    assert (12, 12) == (entries.read, entries.total)
    assert "Home Recorder" not in entries.artists.values()
    assert len(set(entries.artists.values())) == len(entries.artists)


async def test_the_pages_of_a_playlist_are_asked_for_at_the_same_time(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 10)
    entries = await spotify.playlist_artists(texts, "long")
    offsets = [int(call["query"]["offset"]) for call in upstream.calls("spotify")]
    assert list(range(0, 120, 10)) == sorted(offsets)
    assert (120, 120) == (entries.read, entries.total)


async def test_no_more_than_the_first_ten_thousand_entries_are_read(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 10)
    monkeypatch.setattr(module, "MAX_ENTRIES", 50)
    entries = await spotify.playlist_artists(texts, "long")
    assert (50, 120) == (entries.read, entries.total)
    assert 5 == len(upstream.calls("spotify"))


async def test_a_page_that_fails_fails_the_playlist(
    spotify: Spotify, texts: dict[str, str], upstream: Upstream
) -> None:
    upstream.dial({"spotify": {"status": 429, "retry_after": 9, "only": "offset=100"}})
    with pytest.raises(ApiError, match="Spotify asks to wait"):
        await spotify.playlist_artists(texts, "long")


# Spellings


@pytest.mark.parametrize(
    "spelling",
    [
        "37i9dQZF1DX",
        " 37i9dQZF1DX ",
        "spotify:playlist:37i9dQZF1DX",
        "spotify:user:fan:playlist:37i9dQZF1DX",
        "https://open.spotify.com/playlist/37i9dQZF1DX?si=abc",
        "http://open.spotify.com/playlist/37i9dQZF1DX/",
        "open.spotify.com/playlist/37i9dQZF1DX#here",
        "https://open.spotify.com/intl-de/playlist/37i9dQZF1DX",
        "https://open.spotify.com/embed/playlist/37i9dQZF1DX",
        "https://OPEN.spotify.com/user/fan/playlist/37i9dQZF1DX",
    ],
)
def test_an_id_is_found_in_all_spellings(spelling: str) -> None:
    assert "37i9dQZF1DX" == id_of(spelling, "playlist")


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "a/b",
        "../me",
        "x" * 51,
        "spotify:artist:37i9dQZF1DX",
        "spotify:playlist:",
        "spotify:playlist:a/b",
        "https://open.spotify.com/artist/37i9dQZF1DX",
        "https://open.spotify.com/playlist/",
        "https://open.spotify.com/playlist/..%2Fme",
        "https://open.spotify.com.evil.test/playlist/37i9dQZF1DX",
        "https://open.spotify.com@evil.test/playlist/37i9dQZF1DX",
        "https://evil.test/playlist/37i9dQZF1DX",
        "javascript://open.spotify.com/playlist/37i9dQZF1DX",
        "https://[/playlist/37i9dQZF1DX",
    ],
)
def test_what_is_no_playlist_of_spotify_has_no_id(spelling: str) -> None:
    assert id_of(spelling, "playlist") is None
