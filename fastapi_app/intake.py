"""Files that wait in the downloads folder, and their way into the library.

A file is never lost and never without its row: it gets a second name in the library first, then the row is committed,
and only then the first name goes. Whatever ends this in between, doing it again finishes it.
"""

import filecmp
import logging
import os
import re
import shutil
import time
import unicodedata
import uuid
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import Request
from sqlalchemy.exc import IntegrityError

from . import events
from .audit import audit
from .config import Settings
from .containment import refuse
from .db import Db
from .files import inside, off_loop, rename_new, safe_name
from .http import ApiError
from .indexing import File, Match, enter, match, new_artist, shown, video_files
from .organizing import Guess, nfo, numbered, parse_name, problem, target_path

log = logging.getLogger("fastapi_app")

STAGED = re.compile(r"\.([0-9]+)-[0-9a-f]{32}\.part")  # the second name, which begins with its time
FORGOTTEN_S = 24 * 3600

Identity = tuple[int, int, int, int]


class Unfit(Exception):
    """A file that cannot be organized; `str(error)` is one sentence for a person."""


# Looking


async def waiting(config: Settings) -> list[File]:
    """Raises ApiError 503 when the folder cannot be read."""
    try:
        return await off_loop(video_files, config.downloads_path)
    except OSError:
        raise ApiError(503, "The downloads folder cannot be read") from None


def find(files: Sequence[File], names: Sequence[str]) -> dict[str, File | None]:
    """The files of these names, however their letters are composed. Takes a while for thousands."""
    named = {file.path: file for file in files}
    composed = {unicodedata.normalize("NFC", file.path): file for file in files}
    return {name: named.get(name) or composed.get(unicodedata.normalize("NFC", name)) for name in names}


def file_json(file: File) -> dict[str, Any]:
    return {"name": shown(file.path), "size": file.size, "modified": file.modified} | _guess_json(file.path)


def _guess_json(path: str) -> dict[str, Any]:
    guess = parse_name(shown(path))
    return {"artist": guess.artist, "title": guess.title, "year": guess.year, "youtube_id": guess.youtube_id}


async def preview(db: Db, library: Path, file: File) -> dict[str, Any]:
    """What organizing this file would do. Raises Unfit."""
    guess = _fit(file)
    found = await match(db, library, guess)
    wanted, free = await off_loop(_free_path, library, found, guess, file)
    return {
        "file": shown(file.path),
        "target": free,
        "conflict": free != wanted,
        "artist": found.artist and {"id": found.artist.id, "name": found.artist.name},
        "video": found.video and {"id": found.video.id, "title": found.video.title},
        "parsed": _guess_json(file.path),
    }


def _fit(file: File) -> Guess:
    guess = parse_name(file.path)
    if sentence := problem(guess):
        raise Unfit(sentence)
    return guess


def _free_path(library: Path, found: Match, guess: Guess, file: File) -> tuple[str, str]:
    """The path that the name asks for, and the first like it that is free."""
    wanted = _target(library, found, guess, file)
    names = (numbered(wanted, number) for number in count())
    return wanted, next(name for name in names if not os.path.lexists(library / name))


def _target(library: Path, found: Match, guess: Guess, file: File) -> str:
    """The path below the library that the name asks for. Raises Unfit."""
    artist, folder = (found.artist.name, found.artist.folder_path) if found.artist else (str(guess.artist), None)
    wanted = target_path(folder or safe_name(artist), artist, found.title, PurePosixPath(file.path).suffix)
    if inside(library, wanted) is None:
        raise Unfit("The folder of the artist leads out of the library")
    return wanted


# Moving


async def organize(
    request: Request, db: Db, files: Sequence[File], *, with_nfo: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was moved; and what was not, and why. Every file is a transaction of its own."""
    moved: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    await off_loop(tidy, request.app.state.settings.library_path)
    for file in files:  # one after the other: who comes first gets the name without a number
        try:
            moved.append(await _bring_in(request, db, file, with_nfo=with_nfo))
        except Unfit as error:
            failed.append({"file": shown(file.path), "error": str(error)})
    if moved:
        videos = [{"id": one["video_id"], "title": one["title"]} for one in moved]
        told = {"count": len(moved), "failed": len(failed), "videos": videos}
        async with db.transaction() as connection:
            await events.emit(connection, request, "library.organized", told)
    return moved, failed


async def _bring_in(request: Request, db: Db, file: File, *, with_nfo: bool) -> dict[str, Any]:
    config: Settings = request.app.state.settings
    guess = _fit(file)
    source, staged = config.downloads_path / file.path, staged_path(config.library_path)
    try:
        before = await off_loop(stage, source, staged)
        entry, about = await _settle(request, db, staged, file, guess)
    except FileNotFoundError:
        raise Unfit("The file is no longer there") from None
    except OSError:
        log.exception("a file could not be organized")
        raise Unfit("The file could not be moved") from None
    finally:
        await off_loop(forget, staged)
    await off_loop(_remove, source, before)
    written = with_nfo and await off_loop(write_nfo, config.library_path, entry["target"], about)
    return {"file": shown(file.path), **entry, "nfo": written}


async def _settle(request: Request, db: Db, staged: Path, file: File, guess: Guess) -> tuple[dict[str, Any], str]:
    """The name and the row, both or none. Raises OSError and Unfit."""
    try:
        return await _settle_once(request, db, staged, file, guess)
    except IntegrityError:  # somebody else has just entered the same artist
        return await _settle_once(request, db, staged, file, guess)


async def _settle_once(request: Request, db: Db, staged: Path, file: File, guess: Guess) -> tuple[dict[str, Any], str]:
    library: Path = request.app.state.settings.library_path
    placed: Path | None = None
    try:
        async with db.transaction() as connection:
            found = await match(connection, library, guess, lock=True)
            artist = found.artist or await new_artist(connection, str(guess.artist))
            wanted = await off_loop(_target, library, found, guess, file)
            path, size, placed = await off_loop(place, library, staged, wanted)
            fields = {"file_path": path, "file_size": size, "status": "DOWNLOADED"}
            video, created = await enter(connection, found, artist, guess, fields)
            detail = {"file": shown(file.path), "file_path": path}
            await audit(connection, request, "library.organize", f"video:{video.id}", **detail)
    except BaseException:
        if placed:
            placed.replace(staged)
        raise
    about = nfo(video.title, artist.name, video.year, video.genres, video.directors, video.description)
    return {"target": path, "video_id": video.id, "title": video.title, "created": created}, about


# In a thread


def staged_path(library: Path) -> Path:
    return library / f".{int(time.time())}-{uuid.uuid4().hex}.part"


def tidy(library: Path) -> None:
    """Remove what was left behind when somebody was cut off, long ago."""
    refuse("files", library)
    with suppress(OSError):
        for path in library.iterdir():
            found = STAGED.fullmatch(path.name)
            if found and int(found[1]) < time.time() - FORGOTTEN_S:
                path.unlink(missing_ok=True)


def _identity(path: Path) -> Identity:
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def stage(source: Path, staged: Path) -> Identity:
    """Give the file a second, hidden name in the library: a link, or a copy when the library is on another disk."""
    refuse("files", staged)
    before = _identity(source)
    try:
        os.link(source, staged)
    except OSError:
        shutil.copy2(source, staged)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
    return before


def place(library: Path, staged: Path, wanted: str) -> tuple[str, int, Path | None]:
    """The path that the file got, ` (1)`, ` (2)` … added when it is taken; its size; and where it is now, if moved."""
    refuse("files", wanted)
    (library / wanted).parent.mkdir(parents=True, exist_ok=True)
    size = staged.stat().st_size
    for path in (numbered(wanted, number) for number in count()):
        try:
            rename_new(staged, library / path)
        except FileExistsError:
            if _same_content(staged, library / path):
                return path, size, None
        else:
            return path, size, library / path
    raise FileExistsError(wanted)


def _same_content(one: Path, other: Path) -> bool:
    """As after an attempt that was cut off."""
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def forget(staged: Path) -> None:
    staged.unlink(missing_ok=True)


def _remove(source: Path, before: Identity) -> None:
    """The first name, unless another file has it by now."""
    refuse("files", source)
    try:
        if _identity(source) == before:
            source.unlink()
    except FileNotFoundError:
        pass
    except OSError:
        log.exception("an organized file is still in the downloads folder")


def write_nfo(library: Path, video_path: str, content: str) -> bool:
    """Beside the video; one that is there already stays."""
    target, staged = (library / video_path).with_suffix(".nfo"), staged_path(library)
    refuse("files", target)
    try:
        staged.write_text(content, encoding="utf-8")
        rename_new(staged, target)
    except FileExistsError:
        return False
    except OSError:
        log.exception("an nfo file could not be written")
        return False
    finally:
        staged.unlink(missing_ok=True)
    return True
