"""Files of the library: names that every file system takes, paths that never leave their root, and work on files.

Everything here blocks: it runs in a thread, by `off_loop`, which counts. Usable alone, but for `refuse`.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import threading
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread

from .containment import refuse

FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
MAX_CHARACTERS, MAX_BYTES = 100, 240
MAX_TAIL = 1024 * 1024  # bytes
_BLOCK = 64 * 1024

T = TypeVar("T")
_threads = CapacityLimiter(8)  # disks gain nothing from more
_counts: Counter[str] = Counter()
_seconds = 0.0
_counting = threading.Lock()


async def off_loop(function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function in a thread, and wait for its end even when the client has left."""
    return await to_thread.run_sync(_counted, function, *arguments, limiter=_threads)


def _counted(function: Callable[..., T], *arguments: object) -> T:
    global _seconds  # noqa: PLW0603 - of this process
    began, outcome = monotonic(), "failed_total"
    try:
        result = function(*arguments)
        outcome = "done_total"
    finally:
        with _counting:
            _counts[outcome] += 1
            _seconds += monotonic() - began
    return result


def statistics() -> dict[str, float]:
    """Calls of `off_loop`: those that have ended, by returning or by an exception, and those under way."""
    now = _threads.statistics()
    return {
        "done_total": _counts["done_total"],
        "failed_total": _counts["failed_total"],
        "seconds_total": _seconds,
        "running": now.borrowed_tokens,
        "waiting": now.tasks_waiting,
    }


# Names and paths


def safe_name(name: str) -> str:
    """A name without what some file system forbids; at most 100 characters and 240 bytes."""
    name = FORBIDDEN.sub("_", unicodedata.normalize("NFC", name))[:MAX_CHARACTERS]
    name = name.encode(errors="ignore")[:MAX_BYTES].decode(errors="ignore")
    return name.strip(". ") or "_"


def inside(root: Path, relative: str | None) -> Path | None:
    """The path below the root; None when it would lead elsewhere, links included, or to the root itself."""
    if not relative or "\0" in relative:
        return None
    path = (root / relative).resolve()
    return path if root in path.parents else None


def existing_file(root: Path, relative: str | None) -> Path | None:
    path = inside(root, relative)
    return path if path is not None and path.is_file() else None


# Changes


def move(source: Path, target: Path) -> Path:
    """Rename to the target, or to `target (1)`, `target (2)` when that exists. Never overwrites; returns the new path.

    Raises OSError.
    """
    refuse("files", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        candidate = target.with_stem(f"{target.stem} ({number})") if number else target
        if candidate == source:
            break
        try:
            rename_new(source, candidate)
        except FileExistsError:
            continue
        return candidate
    return source


def rename_new(source: Path, target: Path) -> None:
    """Rename, unless the target exists: then FileExistsError. A plain rename would replace it."""
    refuse("files", target)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or two file systems
        if target.exists():
            raise FileExistsError(target) from None
        _rename_or_copy(source, target)
    else:
        source.unlink()


def _rename_or_copy(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        unfinished = _beside(target)
        try:
            shutil.copy2(source, unfinished)
            _to_disk(unfinished)
            rename_new(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        source.unlink()


def write_atomic(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace a file as a whole: whoever reads finds the old content or the new, after a power cut, too.

    `mode` is that of the file, 0o600 for a secret; None keeps that of the file which is replaced. A link is replaced,
    not followed. Raises OSError, and leaves everything as it was.
    """
    refuse("files", path)
    unfinished = _beside(path)
    if mode is None:
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
    first_mode = 0o666 if mode is None else 0o600
    try:
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, first_mode)) as file:
            file.write(content)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def _beside(path: Path) -> Path:
    """A new name in the same folder; not longer than file systems allow if the other is a `safe_name`."""
    return path.with_name(f".{path.name}.{token_hex(4)}")


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# Reading


class Found(NamedTuple):
    """A regular file."""

    path: Path
    size: int  # bytes
    modified: float  # seconds since 1970


async def walked(root: Path, batch: int = 500) -> AsyncIterator[list[Found]]:
    """The files of `walk`, so many at a time: a folder of any size blocks neither the loop nor a thread for long."""
    batches = walk(root, batch)  # blocks: not before the first is asked for
    while found := await off_loop(next, batches, []):
        yield found


def walk(root: Path, batch: int = 500) -> Iterator[list[Found]]:
    """The regular files below a folder, sorted by name within each; no list is empty.

    Links are neither followed nor given. What cannot be read, or has just gone, is left out.
    """
    found: list[Found] = []
    for entry in _entries(root):
        with suppress(OSError):
            if entry.is_file(follow_symlinks=False):
                known = entry.stat(follow_symlinks=False)
                found.append(Found(Path(entry.path), known.st_size, known.st_mtime))
        if len(found) == batch:
            yield found
            found = []
    if found:
        yield found


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, without following links."""
    folders = [os.fspath(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            continue
        yield from entries
        folders += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]


def tree_size(root: Path) -> int:
    """The bytes of all files and links below a folder; a file with several names counts once."""
    total, seen = 0, set()
    for entry in _entries(root):
        with suppress(OSError):
            known = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(known.st_mode) or (known.st_dev, known.st_ino) in seen:
                continue
            total += known.st_size
            if known.st_nlink > 1:
                seen.add((known.st_dev, known.st_ino))
    return total


def digest(path: Path) -> str:
    """The SHA-256 of a file in hex, read piece by piece. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tail(path: Path, lines: int, max_bytes: int = MAX_TAIL) -> list[str]:
    """The last lines of a file, oldest first, of which at most the last `max_bytes` are read.

    The first line is cut where that begins. Bytes that are no UTF-8 are replaced. Raises OSError, also for what is no
    regular file: to open a pipe would wait for its other end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        start, content = file.seek(0, os.SEEK_END), b""
        while start > 0 and content.count(b"\n") <= lines and len(content) < max_bytes:
            size = min(_BLOCK, start, max_bytes - len(content))
            start = file.seek(start - size)
            content = file.read(size) + content
    found = content.removesuffix(b"\n").split(b"\n") if content else []
    return [line.removesuffix(b"\r").decode(errors="replace") for line in found[-lines:]]


class Usage(NamedTuple):
    """Of a file system, in bytes. `free` is what we may use: less than `total - used`."""

    total: int
    used: int
    free: int


def usage(path: Path) -> Usage:
    """Raises OSError."""
    return Usage(*shutil.disk_usage(path))
