"""Spotify, as the Flask application asks it: one token for all threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask

from legacy_flask import create_app
from legacy_flask.http import ApiError
from legacy_flask.settings import DEFAULTS
from legacy_flask.upstreams import spotify
from tests.support.upstreams import Upstream


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    paths = {"DATA_PATH": tmp_path / "data", "LIBRARY_PATH": tmp_path / "library", "DATABASE_URL": "", "REDIS_URL": ""}
    app = create_app({**paths, "ALLOWED_NETWORKS": "127.0.0.1/32", "UPSTREAM_BACKOFF_S": 0.01})
    yield app
    app.extensions["upstream"].close()
    app.extensions["engine"].dispose()


@pytest.fixture
def artist(app: Flask, upstream: Upstream) -> Callable[[int], str]:
    """Ask for an artist; the argument is ignored."""
    texts = DEFAULTS | upstream.settings

    def ask(_: int = 0) -> str:
        with app.app_context():
            return str(spotify.artist(texts, "daft-punk").name)

    return ask


def fifty(artist: Callable[[int], str]) -> set[str]:
    with ThreadPoolExecutor(50) as pool:
        return set(pool.map(artist, range(50)))


def test_fifty_threads_at_once_cause_one_request_for_a_token(artist: Callable[[int], str], upstream: Upstream) -> None:
    upstream.dial({"spotify-token": {"latency_s": 0.1}})
    assert {"Daft Punk"} == fifty(artist)
    assert (1, 50) == (len(upstream.calls("spotify-token")), len(upstream.calls("spotify")))


def test_fifty_refused_threads_renew_the_token_once(
    app: Flask, artist: Callable[[int], str], upstream: Upstream
) -> None:
    artist(0)
    upstream.reset()
    app.extensions["spotify"].text = "expired"
    assert {"Daft Punk"} == fifty(artist)
    assert 1 == len(upstream.calls("spotify-token"))


def test_other_credentials_get_another_token_at_once(app: Flask, upstream: Upstream) -> None:
    texts = DEFAULTS | upstream.settings
    with app.app_context():
        spotify.token(texts)
        with pytest.raises(ApiError, match="Spotify refused the key"):
            spotify.token(texts | {"spotify_client_secret": "changed"})
        spotify.token(texts)
    assert 2 == len(upstream.calls("spotify-token"))


def test_top_tracks_have_their_length_in_seconds(app: Flask, upstream: Upstream) -> None:
    with app.app_context():
        tracks = spotify.top_tracks(DEFAULTS | upstream.settings, "daft-punk")
    assert tracks
    assert all(track.title and 60 < track.duration < 600 for track in tracks)
