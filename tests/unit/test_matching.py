"""Scores of found videos, and names out of titles: the same on both sides."""

from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_app import matching as port
from legacy_flask import matching as legacy

SIDES = pytest.mark.parametrize("matching", [port, legacy], ids=["port", "legacy"])
THRESHOLD = 60  # the usual one


class Found(NamedTuple):
    title: str
    channel: str = ""
    year: int | None = None
    duration: int | None = None


SCORES = (
    # score, artist, what was found
    (100, "Daft Punk", Found("Daft Punk - Around the Lake (Official Video)", "DaftPunkVEVO", 1999, 240)),
    (100, "Daft Punk", Found("DAFT PUNK – Around the Lake [OFFICIEL]", "Daft Punk - Topic", 1999, 240)),  # noqa: RUF001
    (85, "Daft Punk", Found("Daft Punk - Around the Lake", "Daft Punk", 1999, 240)),
    (85, "Daft Punk", Found("Daft Punk - Around the Lake (Official Video)", "Some Label", 1999, 240)),
    (80, "Daft Punk", Found("Daft Punk feat. Somebody - Around the Lake (Official Video)", "", None, 240)),
    (60, "Daft Punk", Found("Daft Punk & Somebody - Around the Lake (Official Video)", "", 2001, None)),
    (60, "Daft Punk", Found("Around the Lake (Official Video)", "Daft Punk", 1999, 240)),
    (55, "Daft Punk", Found("Daft Punk - Around the Lake (Official Lyric Video)", "DaftPunkVEVO", 1999, 240)),
    (55, "Daft Punk", Found("Daft Punk - Around the Lake (Official Audio)", "Daft Punk - Topic", 1999, 240)),
    (55, "Daft Punk", Found("Daft Punk - Around the Lake (Live)", "Daft Punk", 1999, 240)),
    (45, "Daft Punk", Found("Somebody - Far Away ft. Daft Punk (Official Video)", "Somebody", 1999, 240)),
    (25, "Daft Punk", Found("Daft Punk - Around the Lake (Cover)", "The Garage Six", 1999, 240)),
    (0, "Daft Punk", Found("Around the Lake - Daft Punk | Guitar lesson", "Six Strings", 1999, 900)),
    (0, "Daft Punk", Found("Justice - Genesis (Official Video)", "Justice", 1999, 240)),
    (25, "Daft Punk", Found("Daft Punk full album", "Album Hoarder", 1999, 4000)),
    (85, "The Beatles", Found("Beatles - Help!", "TheBeatlesVEVO", 1965, 140)),
    (85, "Beatles", Found("The Beatles - Help!", "The Beatles", 1965, 140)),
    (85, "AC/DC", Found("ACDC - Thunder", "acdc", 1990, 292)),
    (85, "ACDC", Found("AC/DC - Thunder", "AC/DC", 1990, 292)),
    (85, "Beyonce\u0301", Found("BEYONCE - Halo", "beyoncé", 2009, 225)),
    (85, "Guns N' Roses", Found("Guns N’ Roses - Patience", "GunsNRosesVEVO", 1989, 355)),  # noqa: RUF001
    (85, "椎名林檎", Found("椎名林檎 - 罪と罰", "椎名林檎VEVO", 2000, 300)),
    (80, "!!!", Found("!!! - Must Be the Moon (Official Video)", "Label", None, 240)),
    (85, "Live", Found("Live - Selling the Drama", "LiveVEVO", 1994, 210)),
    (60, "The", Found("The - Song")),
    (0, "", Found("Song (Official Video)", "VEVO")),
    (0, "Live", Found("Oasis - Forever", "Oasis", 1994, 210)),
)
KNOWN_SONGS = (
    # score, what is wanted, what was found
    (100, ("Oasis", "Live Forever", 1994, 276), Found("Oasis - Live Forever (Official Video)", "OasisVEVO", 1994, 277)),
    (70, ("Oasis", "Live Forever", 1994, 276), Found("Oasis - Live Forever (Official Video)", "OasisVEVO", 2010, 330)),
    (80, ("Oasis", "Live Forever"), Found("Oasis - Live Forever Again (Official Video)", "OasisVEVO", 2010, 250)),
    (0, ("Oasis", "Live Forever"), Found("Oasis - Supersonic (Official Video)", "OasisVEVO", 1994, 276)),
    (20, ("Oasis", "Live Forever"), Found("Oasis - Live Forever (Karaoke)", "Oasis", 1994, 276)),
)
TITLES = (
    # title, channel, artist and title
    ("Daft Punk - Around the Lake (Official Video)", "", ("Daft Punk", "Around the Lake")),
    ("Daft Punk — Around the Lake [Official HD Video] (4K)", "", ("Daft Punk", "Around the Lake")),
    ("Daft Punk ft. Pharrell - Lucky (Official Music Video)", "", ("Daft Punk", "Lucky")),
    ("Daft Punk - Lucky (feat. Pharrell) | Official Video", "", ("Daft Punk", "Lucky (feat. Pharrell)")),
    ("Lana - Video Games", "", ("Lana", "Video Games")),
    ("Lana - Video Games Official Music Video", "", ("Lana", "Video Games")),
    ('Lana - "Games" (Official Video)', "", ("Lana", "Games")),
    ("A-ha - Take On Me - Live", "", ("A-ha", "Take On Me - Live")),
    ("Ne-Yo", "Ne-Yo", ("Ne-Yo", "Ne-Yo")),
    ("Around the Lake", "Daft Punk - Topic", ("Daft Punk", "Around the Lake")),
    ("Around the Lake", "AbbaVEVO", ("Abba", "Around the Lake")),
    ("Around the Lake", "", (None, "Around the Lake")),
    ("(Official Video)", "", (None, "(Official Video)")),
    ("椎名林檎 - 罪と罰", "", ("椎名林檎", "罪と罰")),
    ("Somebody - Song (Live at the Video Club)", "", ("Somebody", "Song (Live at the Video Club)")),
)


@SIDES
@pytest.mark.parametrize(("score", "artist", "found"), SCORES)
def test_official_videos_of_the_artist_score_high(matching: ModuleType, score: int, artist: str, found: Found) -> None:
    assert score == matching.score(matching.Wanted(artist), found)


@SIDES
@pytest.mark.parametrize(("score", "wanted", "found"), KNOWN_SONGS)
def test_of_a_known_song_title_year_and_duration_count(
    matching: ModuleType, score: int, wanted: tuple[str, str], found: Found
) -> None:
    assert score == matching.score(matching.Wanted(*wanted), found)


@SIDES
@pytest.mark.parametrize(("title", "channel", "names"), TITLES)
def test_artist_and_song_come_out_of_a_title(
    matching: ModuleType, title: str, channel: str, names: tuple[str | None, str]
) -> None:
    assert names == matching.split_title(title, channel)


@SIDES
def test_the_best_come_first_and_equals_stay_in_order(matching: ModuleType) -> None:
    good, better = Found("Daft Punk - A"), Found("Daft Punk - B (Official Video)")
    other, bad = Found("Daft Punk - C"), Found("Justice - D")
    ranked = matching.ranked(matching.Wanted("Daft Punk"), [good, better, other, bad], THRESHOLD)
    assert [(75, better), (60, good), (60, other)] == ranked


names = st.text("abcdeghiklmnoprstuvyABEÉÖÑßæøłжЖя漢09", min_size=1, max_size=8)
artists = st.lists(names, min_size=1, max_size=3).map(" ".join)
anything = st.builds(
    Found,
    st.text(max_size=60),
    st.text(max_size=20),
    st.none() | st.integers(0, 9999),
    st.none() | st.integers(0, 10**6),
)
wanted = st.tuples(
    st.text(max_size=20), st.none() | st.text(max_size=20), st.none() | st.integers(0, 9999), st.none() | st.integers(0)
)


@given(wanted, anything)
def test_both_sides_score_alike_and_within_the_limits(
    wanted: tuple[str, str | None, int | None, int | None], found: Found
) -> None:
    score = port.score(port.Wanted(*wanted), found)
    assert 0 <= score <= 100
    assert score == legacy.score(legacy.Wanted(*wanted), found)


@given(st.text(max_size=80), st.text(max_size=30))
def test_both_sides_split_alike_and_never_leave_a_title_empty(title: str, channel: str) -> None:
    artist, song = port.split_title(title, channel)
    assert (artist, song) == legacy.split_title(title, channel)
    assert artist is None or artist == artist.strip() != ""
    assert song.strip() or not title.strip()
    assert len(song) <= len(title)


@given(artists, artists)
def test_what_is_added_by_others_never_raises_the_score(artist: str, song: str) -> None:
    wanted, plain = port.Wanted(artist), Found(f"{artist} - {song}", artist, 2000, 240)
    score = port.score(wanted, plain)
    assert score >= port.score(wanted, plain._replace(channel="Somebody Quite Different"))
    for word in ("cover", "karaoke", "lyrics", "live", "audio", "reaction"):
        assert score >= port.score(wanted, plain._replace(title=f"{plain.title} ({word})"))


@given(artists, artists)
def test_the_official_video_on_the_own_channel_is_always_taken(artist: str, song: str) -> None:
    found = Found(f"{artist} - {song} (Official Video)", artist, 2000, 240)
    known = {*port.words(artist), *port.words(song)}
    unspoiled = not known & {word for _, words in port.LOWERED for word in words.split()}
    assert port.score(port.Wanted(artist), found) >= THRESHOLD or not unspoiled


@given(artists, artists)
def test_case_makes_no_difference(artist: str, song: str) -> None:
    found = Found(f"{artist} - {song}", "", 2000, 240)
    assert port.score(port.Wanted(artist), found) == port.score(port.Wanted(artist.upper()), found)
