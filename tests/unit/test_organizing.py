"""What names say, and the names that files get: no name leads out of the library."""

import re
import unicodedata
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastapi_app.organizing
import legacy_flask.organizing
from fastapi_app.files import inside

SIDES = (legacy_flask.organizing, fastapi_app.organizing)
LIBRARY = Path("/srv/library")
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine

# Pieces of which awkward names are made, and any text at all.
PIECES = [
    *'/\\.-_()[]~:*?"<>|é\u2013\u2014\u0301\u200b\u202eß🎸x ',
    " - ",
    "../",
    ". .",
    "(1999)",
    "[HD]",
    "(Official Video)",
]
PIECES += ["[aB3-_xYz012]", "[Alternative]", "CON", "NUL", "%2e%2e%2f", "e\u0301", "Björk", "AC/DC", ".mp4", ".part"]
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
NAMES = TEXTS.filter(lambda name: "\0" not in name)
PERSONS = TEXTS.filter(lambda name: name.strip())


@pytest.fixture(params=SIDES, ids=lambda side: side.__name__.split(".")[0])
def side(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


@pytest.mark.parametrize(
    ("path", "artist", "title", "year", "youtube_id"),
    [
        ("Björk - Jóga.mp4", "Björk", "Jóga", None, None),
        ("Björk - Jóga (Official Video) [1080p] (1997) [loB0kmz_0MM].mp4", "Björk", "Jóga", 1997, "loB0kmz_0MM"),
        ("Björk \u2013 Jóga [HD].mp4", "Björk", "Jóga", None, None),
        ("Björk - Jóga - Live.mp4", "Björk", "Jóga - Live", None, None),
        ("Björk - Jóga (Live Video).mp4", "Björk", "Jóga (Live Video)", None, None),
        ("Björk - Jóga [Alternative].mp4", "Björk", "Jóga [Alternative]", None, None),
        ("Daft_Punk_-_Around_the_World.mkv", "Daft Punk", "Around the World", None, None),
        ("under_score - my_song.mkv", "under_score", "my_song", None, None),
        ("AC-DC - TNT.mkv", "AC-DC", "TNT", None, None),
        ("Prince - 1999.mkv", "Prince", "1999", None, None),
        ("Kino/Gruppa krovi.mkv", "Kino", "Gruppa krovi", None, None),
        ("a/b/Kino/Nautilus - Gudbay.mkv", "Nautilus", "Gudbay", None, None),
        ("clip.mp4", None, "clip", None, None),
        ("(Official Video).mp4", None, "(Official Video)", None, None),
        ("Bjo\u0308rk  -   Jo\u0301ga .mp4", "Björk", "Jóga", None, None),
        (" - .mp4", None, "-", None, None),
    ],
)
def test_a_name_says(
    side: ModuleType, path: str, artist: str | None, title: str, year: int | None, youtube_id: str | None
) -> None:
    guess = side.parse_name(path)

    assert (artist, title, year, youtube_id) == (guess.artist, guess.title, guess.year, guess.youtube_id)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.mp4", True),
        ("x.MKV", True),
        ("x.y.webm", True),
        (".x.mp4", False),
        (".mp4", False),
        ("x", False),
        ("x.txt", False),
        ("x.mp4.part", False),
        ("x.mp4.ytdl", False),
        ("x.tmp", False),
        ("x.tmp.mp4", False),
        ("x.temp.mp4", False),
        ("x.part.mp4", False),
        ("x.f137.mp4", False),
        ("x.F137.MP4", False),
        ("part.mp4", True),
    ],
)
def test_only_complete_videos_that_are_not_hidden_wait(side: ModuleType, name: str, expected: bool) -> None:
    assert expected is side.is_video(name)


@PATIENT
@given(PERSONS, NAMES, st.sampled_from((".mp4", ".MKV")))
def test_no_artist_and_no_title_leads_out_of_the_library(artist: str, title: str, suffix: str) -> None:
    folder = fastapi_app.organizing.safe_name(artist)
    target = fastapi_app.organizing.target_path(folder, artist, title, suffix)
    numbered = fastapi_app.organizing.numbered(target, 999)

    for path in (target, numbered):
        found = inside(LIBRARY, path)
        assert found is not None
        assert LIBRARY == found.parent.parent
        assert suffix.lower() == found.suffix
        assert not found.name.startswith(".")
        assert all(len(part.encode()) <= 255 for part in found.parts)
        assert len(path) <= 500
        assert unicodedata.normalize("NFC", path) == path
        assert not re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', path)


@PATIENT
@given(st.lists(NAMES, min_size=1, max_size=3).map("/".join))
def test_both_sides_read_a_name_alike(name: str) -> None:
    legacy, port = (
        (vars(side.parse_name(name)), side.problem(side.parse_name(name)), side.leads_out(name), side.is_video(name))
        for side in SIDES
    )

    assert legacy == port


@PATIENT
@given(NAMES, NAMES)
def test_a_file_that_was_organized_is_organized_already(artist: str, title: str) -> None:
    organizing: ModuleType = fastapi_app.organizing

    def organized(name: str) -> str:
        guess = organizing.parse_name(name)
        assume(guess.artist)
        return organizing.target_path(organizing.safe_name(guess.artist), guess.artist, guess.title, ".mp4")

    name = f"{artist} - {title}".translate({ord("/"): "_", ord("."): None})  # names lose dots at their ends
    once = organized(f"{name}.mp4")
    assume(len(PurePosixPath(once).stem) < 99)  # nothing was cut off

    assert once == organized(PurePosixPath(once).name)


@PATIENT
@given(NAMES)
def test_a_name_always_has_a_title_and_never_an_empty_artist(name: str) -> None:
    guess = fastapi_app.organizing.parse_name(name)

    assert guess.title.strip() == guess.title != ""
    assert guess.artist is None or guess.artist.strip() == guess.artist != ""
    assert guess.year is None or 1900 <= guess.year <= 2099


@PATIENT
@given(st.lists(st.sampled_from(["..", "...", ". .", "a"]), min_size=1, max_size=5), st.integers(0, 3))
def test_a_way_up_is_seen_however_often_it_is_encoded(parts: list[str], times: int) -> None:
    up, name = any(set(part) == {"."} for part in parts), "/".join(parts)
    for _ in range(times):
        name = quote(name, safe="")

    assert up is fastapi_app.organizing.leads_out(name)


@PATIENT
@given(NAMES, NAMES, st.integers(1900, 2099), st.lists(NAMES, max_size=3))
def test_an_nfo_is_xml_whatever_the_names(title: str, artist: str, year: int, genres: list[str]) -> None:
    for side in SIDES:
        root = ElementTree.fromstring(side.nfo(title, artist, year, genres, [], None))

        assert "musicvideo" == root.tag
        assert str(year) == root.findtext("year")
        assert {"title", "artist", "year", "genre"} >= {child.tag for child in root}


def test_an_nfo_says_what_is_known_of_the_video(side: ModuleType) -> None:
    text = side.nfo("Jóga & <more>", "Björk", 1997, ["electronic"], ["Michel Gondry"], None)

    assert (
        '<?xml version="1.0" encoding="UTF-8"?>\n<musicvideo>\n  <title>Jóga &amp; &lt;more&gt;</title>\n'
        "  <artist>Björk</artist>\n  <year>1997</year>\n  <genre>electronic</genre>\n"
        "  <director>Michel Gondry</director>\n</musicvideo>\n"
    ) == text


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("Björk - Jóga.mp4", None),
        ("clip.mp4", "The name says no artist"),
        ("a\udcff - b.mp4", "The name is not valid text"),
        ("a - b\udcff.mp4", "The name is not valid text"),
        (f"{'x' * 256} - b.mp4", "The name of the artist is too long"),
        (
            "ß" * 200 + " - b.mp4",
            "The name of the artist is too long",
        ),
    ],
)
def test_what_no_row_can_hold_is_said(side: ModuleType, path: str, sentence: str | None) -> None:
    assert sentence == side.problem(side.parse_name(path))


def test_titles_are_the_same_whatever_a_file_name_may_hold(side: ModuleType) -> None:
    assert side.title_key("What? / Why") == side.title_key("what_ _ WHY")
    assert side.title_key("Jóga") == side.title_key("Jo\u0301ga")
    assert side.title_key("Jóga") != side.title_key("Joga")
