"""Which of the videos found is the official one of an artist: a score from 0 to 100, and names out of titles. Pure."""

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate, takewhile
from typing import NamedTuple

IN_TITLE = 40  # the artist's name is in the title
EXACT = 20  # before the dash is that name and nothing else; of a known title: behind it is that title
OTHER = -20  # before the dash is somebody else
OWN_CHANNEL = 15
OFFICIAL = 15
LIKE_A_SONG = 5  # from 1:30 to 10 minutes; of a known duration: within 5 seconds
UNLIKE_A_SONG = -20  # below a minute, above 20; of a known duration: half a minute off
RIGHT_YEAR = 5
LOWERED = (  # by a word that is neither in the artist's name nor in the title that is looked for; the worst one counts
    (-45, "cover covers karaoke reaction reacts tutorial lesson tribute parody mashup interview teaser trailer"),
    (-45, "lyric lyrics audio instrumental"),
    (-30, "live concert acoustic rehearsal session fan remix"),
)

WORST = {word: points for points, words in reversed(LOWERED) for word in words.split()}
DASH = re.compile(r"\s+[-–—]+\s+")  # all kinds of dashes
BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
TAIL = re.compile(r"\s+official(?:\s+(?:music|lyrics?|hd|4k|video|audio|clip))*\s*$", re.IGNORECASE)
GUEST = re.compile(r"\s+(?:feat\b|ft\b|featuring\s).*", re.IGNORECASE)
WORD = re.compile(r"\w+")
APOSTROPHES = re.compile("['’]")
SIGNS = "-–—|()[]:&+,."
OWNERS = ("vevo", "topic", "official", "officialchannel", "music", "tv")
SAYING_SO = {"official", "officiel", "oficial"}
NOISE = SAYING_SO | {"music", "video", "videos", "clip", "audio", "lyric", "lyrics", "visualizer", "visualiser"}
NOISE |= {"hd", "hq", "uhd", "4k", "1080p", "mv", "full"}


class Wanted(NamedTuple):
    """What is looked for; all but the artist may be unknown. `duration` is in seconds."""

    artist: str
    title: str | None = None
    year: int | None = None
    duration: int | None = None


def ranked(wanted: Wanted, found: list, threshold: float) -> list[tuple]:
    """Scores and candidates with `threshold` or more, the best first; these have `title`, `channel`, `year`, `duration`."""
    scored = [(score(wanted, candidate), candidate) for candidate in found]
    return sorted((match for match in scored if match[0] >= threshold), key=lambda match: -match[0])


def score(wanted: Wanted, found) -> int:
    """How likely the official video has been found, from 0 (somebody else's, or another title) to 100."""
    artist, title = without_article(words(wanted.artist)), words(found.title)
    named, own = contains(title, artist), owns(artist, found.channel)
    if not (named or own) or (wanted.title and not contains(title, words(wanted.title))):
        return 0
    points = IN_TITLE * named + OWN_CHANNEL * own + OFFICIAL * bool(SAYING_SO & set(title))
    points += (
        exactness(wanted, found.title, own) + length(wanted.duration, found.duration) + age(wanted.year, found.year)
    )
    innocent = {*artist, *words(wanted.title or "")}
    points += min((WORST.get(word, 0) for word in title if word not in innocent), default=0)
    return min(max(points, 0), 100)


def split_title(full: str, channel: str = "") -> tuple[str | None, str]:
    """Artist and title of `Artist - Title (Official Video)`. Without a dash the artist is who owns the channel."""
    plain = cleaned(full) or full.strip()
    parts = DASH.split(plain, maxsplit=1)
    artist, title = parts if len(parts) == 2 else (owner(channel), plain)
    artist = GUEST.sub("", f" {artist}").strip()
    return artist or None, title.strip().strip('"“”').strip() or plain


@lru_cache(4096)
def words(text: str) -> tuple[str, ...]:
    """In small letters without accents and apostrophes; signs are words only where they stand alone: `!!!`."""
    plain = APOSTROPHES.sub("", text).casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain)
        plain = "".join(char for char in plain if not unicodedata.combining(char)).casefold()
    found: list[str] = []
    for chunk in plain.split():
        found += WORD.findall(chunk) or ([chunk] if chunk.strip(SIGNS) else [])
    return tuple(found)


def contains(text: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether the words of `part` are in `text` one after the other; `AC/DC` is `ACDC`."""
    wanted = "".join(part)
    runs = (accumulate(text[at:]) for at in range(len(text)))
    return bool(wanted) and any(wanted in takewhile(lambda run: len(run) <= len(wanted), run) for run in runs)


def without_article(name: tuple[str, ...]) -> tuple[str, ...]:
    return name[1:] if len(name) > 1 and name[0] == "the" else name


def owns(artist: tuple[str, ...], channel: str) -> bool:
    name, owner = ("".join(some).removeprefix("the") for some in (artist, words(channel)))
    return bool(artist and owner) and owner in {name + suffix for suffix in ("", *OWNERS)}


def owner(channel: str) -> str:
    return re.sub(r"(?:\s+-\s+topic|vevo|\s+official)\s*$", "", channel, flags=re.IGNORECASE).strip()


def exactness(wanted: Wanted, full: str, own: bool) -> int:
    artist, title = split_title(full)
    if wanted.title:
        asked, given = words(wanted.title), words(title)
    elif artist is None:
        return EXACT if own else 0
    else:
        asked, given = without_article(words(wanted.artist)), without_article(words(artist))
    if "".join(asked) == "".join(given):
        return EXACT
    return 0 if contains(given, asked) else OTHER


def length(wanted: int | None, found: int | None) -> int:
    if found is None:
        return 0
    if wanted is not None:
        off = abs(wanted - found)
        return LIKE_A_SONG if off <= 5 else UNLIKE_A_SONG if off > 30 else 0
    return LIKE_A_SONG if 90 <= found <= 600 else UNLIKE_A_SONG if not 60 <= found <= 1200 else 0


def age(wanted: int | None, found: int | None) -> int:
    """A video is rarely older than its song, and often put online years later."""
    if found is None or (wanted is not None and abs(wanted - found) > 1):
        return 0
    return RIGHT_YEAR


def cleaned(title: str) -> str:
    """Without what says only that it is a video."""
    title = BRACKETS.sub(lambda match: "" if is_noise(match[1]) else match[0], title)
    first, *others = title.split("|")
    kept = [first, *(part for part in others if not is_noise(part))]
    return TAIL.sub("", " ".join("|".join(kept).split())).strip(" |-")


def is_noise(text: str) -> bool:
    found = set(words(text))
    return bool(found & SAYING_SO) or found <= NOISE
