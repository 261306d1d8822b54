"""Files of the library: names that every file system takes, and paths that never leave their root.

Everything here blocks: it runs in a thread, by `off_loop`.
"""

import os
import re
import unicodedata
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from .containment import refuse

FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
MAX_CHARACTERS, MAX_BYTES = 100, 240

T = TypeVar("T")
_threads = CapacityLimiter(8)  # disks gain nothing from more


async def off_loop(function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function in a thread, and wait for its end even when the client has left."""
    return await to_thread.run_sync(function, *arguments, limiter=_threads)


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
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        source.rename(target)
    else:
        source.unlink()
