"""Artists, songs and videos that all services agree on; everything follows from the name of the artist.

Any name is an artist. Those in ARTISTS keep their spelling, genres and ids whatever is asked; a slug that is none of
theirs is spelled with capitals: `the-foo-bar` is The Foo Bar.
"""

import base64
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

ARTISTS = {
    "Daft Punk": ("electronic", "house"),
    "Björk": ("electronic", "art pop"),
    "The Beatles": ("rock", "pop"),
    "AC/DC": ("rock", "hard rock"),
    "椎名林檎": ("j-pop", "rock"),
    "Кино": ("post-punk",),
    "Sigur Rós": ("post-rock",),
    "Beyoncé": ("pop", "r&b"),
    "A Tribe Called Quest": ("hip hop",),
    "ABBA": ("pop", "disco"),
    "deadmau5": ("house", "electronic"),
    "Massive Attack": ("trip hop", "electronic"),
    "Portishead": ("trip hop",),
    "Radiohead": ("alternative rock", "art rock"),
    "The Chemical Brothers": ("electronic", "big beat"),
    "Fatboy Slim": ("big beat", "house"),
    "Aphex Twin": ("idm", "ambient"),
    "Gorillaz": ("alternative rock", "hip hop"),
    "Kate Bush": ("art pop", "pop"),
    "Peter Gabriel": ("art rock", "pop"),
    "a-ha": ("synth-pop", "pop"),
    "Talking Heads": ("new wave",),
    "Queen": ("rock", "pop"),
    "Michael Jackson": ("pop", "soul"),
    "Missy Elliott": ("hip hop", "r&b"),
    "OK Go": ("indie rock", "power pop"),
    "Fever Ray": ("electronic", "synth-pop"),
    "Justice": ("electronic", "house"),
    "The White Stripes": ("garage rock", "rock"),
    "Beastie Boys": ("hip hop", "rock"),
    "FKA twigs": ("art pop", "electronic"),
    "Guns N' Roses": ("hard rock",),
    "Silent Nobody": (),  # without videos, picture and biography
}
WITHOUT_VIDEOS = "Silent Nobody"

_GENRES = ("rock", "pop", "electronic", "house", "techno", "indie", "folk", "metal", "jazz", "soul", "funk", "disco")
_TITLES = (
    "Around the Lake",
    "Night Train",
    "Paper Moon",
    "Hollow Crown",
    "Northern Lights",
    "Slow Motion",
    "Glass Houses",
    "Run, River",
    "Telephone Line",
    "Second Sun",
    "Velvet Morning",
    "Machine Heart",
    "Golden Hour",
    "Winter Garden",
    "Electric Sea",
    "Falling Upwards",
    "Static",
    "Kingdom of Rain",
    "Carousel",
    "One More Mile",
    "Blue Hotel",
    "Satellites",
    "Wild Geese",
    "Mirror, Mirror",
    "The Long Way Home",
    "Silver & Gold",
    "Don't Look Back",
    "Ocean Floor",
    "Hurricane Season",
    "Little Giants",
    "Midnight Sun",
    "Tomorrow's Ghost",
    "Déjà Vu",
    "Sleepwalking",
    "Stars Fell Down",
    "Concrete Jungle",
)
_DIRECTORS = (
    "Michel Gondry",
    "Spike Jonze",
    "Chris Cunningham",
    "Jonathan Glazer",
    "Mark Romanek",
    "Hype Williams",
    "Sophie Muller",
    "Anton Corbijn",
    "Floria Sigismondi",
    "Melina Matsoukas",
)
_OFFICIAL = ("(Official Video)", "(Official Music Video)", "[Official HD Video]", "(Official Video)", "")
_NOT_A_NAME = re.compile(r"\b(official|music|lyrics?|videos?|vevo|hd|4k|full|audio|mv)\b|[\"“”()\[\]]", re.IGNORECASE)
SONGS = 10  # of every artist but one
_FIXED: dict[str, dict[str, Any]] = {  # what the small library has already
    "bjork/0": {
        "title": "Jóga",
        "year": 1997,
        "seconds": 188,
        "director": "Michel Gondry",
        "youtube_id": "loB0kmz_0MM",
        "imvdb_id": "joga-1",
    },
    "the-beatles/0": {"youtube_id": "beatles-001"},
}
_SONGS: dict[str, "Song"] = {}


@dataclass(frozen=True)
class Song:
    """`number` counts from 0; `seconds` is how long its official video is."""

    artist: str
    number: int
    title: str
    year: int
    seconds: int
    director: str
    youtube_id: str
    imvdb_id: int | str

    @property
    def video_title(self) -> str:
        return f"{self.artist} - {self.title} {_OFFICIAL[self.number % len(_OFFICIAL)]}".strip()


def chance(text: str, below: int) -> int:
    """The same number for the same text, everywhere and always."""
    return int.from_bytes(sha256(text.encode(errors="replace")).digest()[:6]) % below


@lru_cache(16_384)
def slug(name: str) -> str:
    """`Sigur Rós` is `sigur-ros`; letters without a Latin form stay. Never empty."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "-", plain.replace("ß", "ss")).strip("-") or f"x{chance(name, 10**6)}"


_BY_SLUG = {slug(name): name for name in ARTISTS} | {"beatles": "The Beatles"}


def artist_named(text: str) -> str:
    """The artist that a slug or a name means."""
    return _BY_SLUG.get(slug(text)) or (text if re.search(r"[^\w-]|[A-Z]", text) else text.replace("-", " ").title())


def artist_in(query: str) -> tuple[str, str]:
    """The artist that somebody looks for, and what else is said: a title, or nothing. ("", "") for no name at all."""
    words = " ".join(_NOT_A_NAME.sub(" ", query).split()).strip(" -|")
    for name in sorted(ARTISTS, key=len, reverse=True):
        if slug(words) == slug(name) or slug(words).startswith(f"{slug(name)}-"):
            rest = slug(words).removeprefix(slug(name)).strip("-")
            return name, rest
    artist, _, title = words.partition(" - ")
    return artist.strip(), slug(title) if title else ""


@lru_cache(4096)
def songs(artist: str) -> tuple[Song, ...]:
    if artist == WITHOUT_VIDEOS:
        return ()
    made = tuple(_song(artist, number) for number in range(SONGS))
    _SONGS.update({song.youtube_id: song for song in made} | {str(song.imvdb_id): song for song in made})
    return made


def _song(artist: str, number: int) -> Song:
    text = f"{slug(artist)}/{number}"
    debut = 1975 + chance(f"{artist} debut", 35)
    usual: dict[str, Any] = {
        "title": _TITLES[(chance(artist, len(_TITLES)) + 5 * number) % len(_TITLES)],
        "year": min(debut + number * 3 // 2, 2025),
        "seconds": 150 + chance(f"{text} seconds", 180),
        "director": _DIRECTORS[chance(f"{text} director", len(_DIRECTORS))],
        "youtube_id": youtube_id(text),
        "imvdb_id": 10**11 + chance(f"{text} imvdb", 9 * 10**11),
    }
    return Song(artist, number, **(usual | _FIXED.get(text, {})))


def song_with(some_id: str) -> Song | None:
    """By its id on YouTube or IMVDb; of artists not in ARTISTS once somebody has asked for the artist."""
    return _SONGS.get(some_id)


def genres(artist: str) -> list[str]:
    if artist in ARTISTS:
        return list(ARTISTS[artist])
    start = chance(artist, len(_GENRES))
    return [_GENRES[start], _GENRES[(start + 5) % len(_GENRES)]]


def biography(artist: str) -> str:
    """An empty text for an artist whom nobody knows."""
    known = songs(artist)
    if not known:
        return ""
    kinds = " and ".join(genres(artist))
    return f"{artist} has made {kinds} since {known[0].year}. Best known for “{known[0].title}” ({known[0].year})."


def listeners(artist: str) -> int:
    return 1000 + chance(f"{artist} listeners", 4_000_000)


def all_songs() -> list[Song]:
    """Of the artists in ARTISTS: first songs first."""
    return sorted((song for artist in ARTISTS for song in songs(artist)), key=lambda song: song.number)


@lru_cache(16_384)
def youtube_id(text: str) -> str:
    """Eleven characters."""
    return base64.urlsafe_b64encode(sha256(text.encode(errors="replace")).digest())[:11].decode()


def hex_id(text: str, length: int = 22) -> str:
    """As Spotify and MusicBrainz like them."""
    return sha256(text.encode(errors="replace")).hexdigest()[:length]


all_songs()  # so that all ids of ARTISTS are known from the beginning
