"""Files of the library: names that every file system takes, and paths that never leave their root."""

import os
import re
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
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        source.rename(target)
    else:
        source.unlink()
