"""Files that wait in the downloads folder, and their way into the library.

A file is never lost and never without its row: it gets a second name in the library first, then the row is committed,
and only then the first name goes. Whatever ends this in between, doing it again finishes it.
"""

import filecmp
import os
import re
import shutil
import time
import unicodedata
import uuid
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

from flask import current_app
from sqlalchemy.exc import IntegrityError

from . import events
from .audit import audit
from .db import get_session, transaction
from .files import inside, rename_new, safe_name
from .http import ApiError
from .indexing import File, Match, enter, match, new_artist, shown, video_files
from .organizing import Guess, nfo, numbered, parse_name, problem, target_path

STAGED = re.compile(r"\.([0-9]+)-[0-9a-f]{32}\.part")  # the second name, which begins with its time
FORGOTTEN_S = 24 * 3600


class Unfit(Exception):
    """A file that cannot be organized; the text is one sentence for a person."""


# --- looking -----------------------------------------------------------------------------------------------------


def waiting() -> list[File]:
    try:
        return video_files(current_app.config["DOWNLOADS_PATH"])
    except OSError:
        raise ApiError(503, "The downloads folder cannot be read") from None


def find(files: list[File], names: list[str]) -> dict:
    """The files of these names, however their letters are composed."""
    named = {file.path: file for file in files}
    composed = {unicodedata.normalize("NFC", file.path): file for file in files}
    return {name: named.get(name) or composed.get(unicodedata.normalize("NFC", name)) for name in names}


def file_json(file: File) -> dict:
    return {"name": shown(file.path), "size": file.size, "modified": file.modified} | guess_json(file.path)


def guess_json(path: str) -> dict:
    guess = parse_name(shown(path))
    return {"artist": guess.artist, "title": guess.title, "year": guess.year, "youtube_id": guess.youtube_id}


def preview(file: File) -> dict:
    """What organizing this file would do. Raises Unfit."""
    guess = fit(file)
    found = match(get_session(), guess)
    wanted = target(found, guess, file)
    library = current_app.config["LIBRARY_PATH"]
    names = (numbered(wanted, number) for number in count())
    free = next(name for name in names if not os.path.lexists(library / name))
    return {
        "file": shown(file.path),
        "target": free,
        "conflict": free != wanted,
        "artist": found.artist and {"id": found.artist.id, "name": found.artist.name},
        "video": found.video and {"id": found.video.id, "title": found.video.title},
        "parsed": guess_json(file.path),
    }


def fit(file: File) -> Guess:
    guess = parse_name(file.path)
    if sentence := problem(guess):
        raise Unfit(sentence)
    return guess


def target(found: Match, guess: Guess, file: File) -> str:
    """The path below the library that the name asks for."""
    artist, folder = (found.artist.name, found.artist.folder_path) if found.artist else (guess.artist, None)
    wanted = target_path(folder or safe_name(artist), artist, found.title, PurePosixPath(file.path).suffix)
    if inside(current_app.config["LIBRARY_PATH"], wanted) is None:
        raise Unfit("The folder of the artist leads out of the library")
    return wanted


# --- moving ------------------------------------------------------------------------------------------------------


def organize(files: list[File], with_nfo: bool) -> tuple[list, list]:
    """What was moved; and what was not, and why. Every file is a transaction of its own."""
    moved, failed = [], []
    tidy()
    for file in files:
        try:
            moved.append(bring_in(file, with_nfo))
        except Unfit as error:
            failed.append({"file": shown(file.path), "error": str(error)})
    if moved:
        videos = [{"id": one["video_id"], "title": one["title"]} for one in moved]
        with transaction() as db:
            events.emit(db, "library.organized", {"count": len(moved), "failed": len(failed), "videos": videos})
    return moved, failed


def bring_in(file: File, with_nfo: bool) -> dict:
    """Raises Unfit."""
    guess = fit(file)
    source = current_app.config["DOWNLOADS_PATH"] / file.path
    staged = staged_path()
    try:
        before = identity(source)
        stage(source, staged)
        entry, about = settle(staged, file, guess)
    except FileNotFoundError:
        raise Unfit("The file is no longer there") from None
    except OSError:
        current_app.logger.exception("a file could not be organized")
        raise Unfit("The file could not be moved") from None
    finally:
        staged.unlink(missing_ok=True)
    remove(source, before)
    return {"file": shown(file.path), **entry, "nfo": with_nfo and write_nfo(entry["target"], about)}


def staged_path() -> Path:
    return current_app.config["LIBRARY_PATH"] / f".{int(time.time())}-{uuid.uuid4().hex}.part"


def tidy() -> None:
    """Remove what was left behind when somebody was cut off, long ago."""
    with suppress(OSError):
        for path in current_app.config["LIBRARY_PATH"].iterdir():
            found = STAGED.fullmatch(path.name)
            if found and int(found[1]) < time.time() - FORGOTTEN_S:
                path.unlink(missing_ok=True)


def identity(path: Path) -> tuple:
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def stage(source: Path, staged: Path) -> None:
    """Give the file a second, hidden name in the library: a link, or a copy when the library is on another disk."""
    try:
        os.link(source, staged)
    except OSError:
        shutil.copy2(source, staged)
        with staged.open("rb") as file:
            os.fsync(file.fileno())


def settle(staged: Path, file: File, guess: Guess) -> tuple[dict, str]:
    """The name and the row, both or none."""
    try:
        return settle_once(staged, file, guess)
    except IntegrityError:  # somebody else has just entered the same artist
        return settle_once(staged, file, guess)


def settle_once(staged: Path, file: File, guess: Guess) -> tuple[dict, str]:
    library, placed = current_app.config["LIBRARY_PATH"], None
    try:
        with transaction() as db:
            found = match(db, guess, lock=True)
            artist = found.artist or new_artist(db, guess.artist)
            path, placed = place(library, staged, target(found, guess, file))
            fields = {"file_path": path, "file_size": (library / path).stat().st_size, "status": "DOWNLOADED"}
            video, created = enter(db, found, artist, guess, fields)
            audit(db, "library.organize", f"video:{video.id}", file=shown(file.path), file_path=path)
            about = nfo(video.title, artist.name, video.year, video.genres, video.directors, video.description)
            entry = {"target": path, "video_id": video.id, "title": video.title, "created": created}
    except BaseException:
        if placed:
            placed.replace(staged)
        raise
    return entry, about


def place(library: Path, staged: Path, wanted: str) -> tuple[str, Path | None]:
    """The path that the file got, ` (1)`, ` (2)` … added when it is taken; and where it is now, if moved."""
    (library / wanted).parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        path = numbered(wanted, number)
        try:
            rename_new(staged, library / path)
        except FileExistsError:
            if not same_content(staged, library / path):
                continue
            return path, None
        return path, library / path


def same_content(one: Path, other: Path) -> bool:
    """As after an attempt that was cut off."""
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def remove(source: Path, before: tuple) -> None:
    """The first name, unless another file has it by now."""
    try:
        if identity(source) == before:
            source.unlink()
    except FileNotFoundError:
        pass
    except OSError:
        current_app.logger.exception("an organized file is still in the downloads folder")


def write_nfo(video_path: str, content: str) -> bool:
    """Beside the video; one that is there already stays."""
    target = (current_app.config["LIBRARY_PATH"] / video_path).with_suffix(".nfo")
    staged = staged_path()
    try:
        staged.write_text(content, encoding="utf-8")
        rename_new(staged, target)
    except FileExistsError:
        return False
    except OSError:
        current_app.logger.exception("an nfo file could not be written")
        return False
    finally:
        staged.unlink(missing_ok=True)
    return True
