"""Files of the library: names that every file system takes, and paths that never leave their root."""

import errno
import os
import re
import secrets
import shutil
import stat
import unicodedata
from itertools import count
from pathlib import Path

FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
MAX_CHARACTERS, MAX_BYTES = 100, 240


def safe_name(name: str) -> str:
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


def move(source: Path, target: Path) -> Path:
    """Rename to the target, or to `target (1)`, `target (2)` when that exists. Never overwrites; returns the new path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        candidate = target.with_stem(f"{target.stem} ({number})") if number else target
        if candidate == source:
            return source
        try:
            rename_new(source, candidate)
        except FileExistsError:
            continue
        return candidate


def rename_new(source: Path, target: Path) -> None:
    """Rename, unless the target exists. A plain rename would replace it."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or two file systems
        if target.exists():
            raise FileExistsError(target) from None
        rename_or_copy(source, target)
    else:
        source.unlink()


def rename_or_copy(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            shutil.copy2(source, unfinished)
            rename_new(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        source.unlink()


def tail(path: Path, lines: int, max_bytes: int = 1024 * 1024) -> list[str]:
    """The last lines of a regular file, of which at most the last `max_bytes` are read; the first may be cut there."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(end - max_bytes, 0))
        content = file.read(end - start)
    found = content.removesuffix(b"\n").split(b"\n") if content else []
    return [line.removesuffix(b"\r").decode(errors="replace") for line in found[-lines:]]
