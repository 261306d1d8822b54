"""What the name of a file says, and the name that it gets in the library. Nothing here touches the disk."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote
from xml.sax.saxutils import escape

from .files import safe_name
from .models import name_key, sort_name

VIDEO_TYPES = {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts"}
VIDEO_TYPES |= {".webm", ".wmv"}
UNFINISHED = re.compile(r"\.(part|te?mp|f\d+)$", re.IGNORECASE)  # in front of the type; what yt-dlp merges later
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
BRACKETS = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
NOISE = {"official", "music", "video", "videoclip", "clip", "mv"}
NOISE |= {"hd", "hq", "uhd", "4k", "480p", "720p", "1080p", "1440p", "2160p"}
YEAR = re.compile(r"(?:19|20)[0-9]{2}")
DASHES = "-\N{EN DASH}\N{EM DASH}"
DASH = re.compile(f" [{DASHES}] ")
LOOSE_DASH = re.compile(f"^[{DASHES}] | [{DASHES}]$")


@dataclass(frozen=True)
class Guess:
    artist: str | None
    title: str
    year: int | None
    youtube_id: str | None


def is_video(name: str) -> bool:
    """Whether a file of this name is a video that is complete and not hidden."""
    path = PurePosixPath(name)
    return not name.startswith(".") and path.suffix.lower() in VIDEO_TYPES and not UNFINISHED.search(path.stem)


def parse_name(path: str) -> Guess:
    """`Artist - Title (1997) [HD].mp4`; without an artist in the name, the folder is the artist."""
    whole = PurePosixPath(path)
    text = words(whole.stem if " " in whole.stem else whole.stem.replace("_", " "))
    text, year, youtube_id = without_noise(text)
    artist, title = DASH.split(text, maxsplit=1) if DASH.search(text) else ("", text)
    return Guess(artist or words(whole.parent.name) or None, title or words(whole.stem) or "_", year, youtube_id)


def words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_youtube_id(text: str) -> bool:
    """`[Alternative]` has eleven letters, too."""
    return YOUTUBE_ID.fullmatch(text) is not None and not (text.isalpha() and text[1:].islower())


def without_noise(text: str) -> tuple[str, int | None, str | None]:
    """Without brackets that only say "Official Video", the year, or at the end what YouTube calls it; and these two."""
    years = []
    ids = []

    def keep(bracket: re.Match) -> str:
        inner = (bracket[1] or bracket[2] or "").strip()
        if YEAR.fullmatch(inner):
            years.append(int(inner))
        elif bracket[2] and is_youtube_id(inner) and bracket.end() == len(bracket.string):
            ids.append(inner)
        elif not NOISE.issuperset(inner.casefold().split()):
            return bracket[0]
        return " "

    while (shorter := LOOSE_DASH.sub("", words(BRACKETS.sub(keep, text)))) != text:
        text = shorter
    return text, next(iter(years), None), next(iter(ids), None)


def problem(guess: Guess) -> str | None:
    """Why a file of this name cannot be entered."""
    if any("\ud800" <= char <= "\udfff" for char in f"{guess.artist}{guess.title}"):
        return "The name is not valid text"
    if guess.artist is None:
        return "The name says no artist"
    if len(guess.artist) > 255 or len(name_key(guess.artist)) > 255 or len(sort_name(guess.artist)) > 300:
        return "The name of the artist is too long"
    return None


def title_key(title: str) -> str:
    """What makes two titles the same: case and what no file name may have do not count."""
    return name_key(safe_name(title))


def target_path(folder: str, artist: str, title: str, suffix: str) -> str:
    """Where the file belongs, relative to the library: `folder/Artist - Title.mp4`."""
    return f"{folder}/{safe_name(f'{artist} - {title}')}{suffix.lower()}"


def numbered(path: str, number: int) -> str:
    """The path, or `path (1)`, `path (2)`."""
    target = PurePosixPath(path)
    return str(target.with_stem(f"{target.stem} ({number})")) if number else path


def leads_out(name: str) -> bool:
    """Whether some program might read this name as a way up, or as no path below a folder at all."""
    for _ in range(4):
        plain = unicodedata.normalize("NFKC", name).replace("\\", "/")
        parts = [part.partition(";")[0].strip() for part in plain.split("/")]
        if name.startswith(("/", "\\")) or any(char in name for char in "\0\ufffd"):
            return True
        if any(part.count(".") == len(part) > 1 for part in parts):
            return True
        name = unquote(name)
    return False


def nfo(title: str, artist: str, year: int | None, genres: list, directors: list, plot: str | None) -> str:
    """What Kodi and others read beside a video."""
    fields = [("title", title), ("artist", artist), ("year", year), ("plot", plot)]
    fields += [("genre", genre) for genre in genres] + [("director", director) for director in directors]
    lines = [f"  <{tag}>{xml_text(str(value))}</{tag}>\n" for tag, value in fields if value]
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<musicvideo>\n{"".join(lines)}</musicvideo>\n'


def xml_text(text: str) -> str:
    """Escaped, and without the characters that XML cannot have."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text))
