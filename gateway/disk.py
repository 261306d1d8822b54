"""The flag file on disk: read whole, watched, locked, and replaced in one step."""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE, S_ISREG

import watchfiles

from .errors import FlagConflict, FlagFileError, FlagsReadOnly
from .flagfile import printable, version_of

MAX_FILE_BYTES = 1_048_576
POLL_S = 0.5  # between looks at the file, should the file watch be blind (NFS, a swapped symlink)
LOCK_WAIT_S = 10.0  # of an edit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Signature:
    """What changes when a file changes; `changed_ns` sees even what keeps size and modification time."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def signature(path: Path) -> Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return Signature(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def read(path: Path) -> str:
    """The text of the flag file. Raises FlagFileError for a file that is missing, unreadable, huge or no UTF-8."""
    where = str(path)
    try:
        if not S_ISREG(path.stat().st_mode):
            raise FlagFileError("not a regular file", path=where)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FlagFileError(f"cannot be read: {error.strerror}", path=where) from None
    if len(data) > MAX_FILE_BYTES:
        raise FlagFileError(f"larger than {MAX_FILE_BYTES:,} bytes", path=where)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FlagFileError("not UTF-8", path=where, line=line) from None


def version_on_disk(path: Path) -> str:
    """The version of the file as it is now, right or wrong; empty if it cannot be read."""
    try:
        return version_of(read(path))
    except FlagFileError:
        return ""


def watch_directory(path: Path, stop: threading.Event, changed: Callable[[], object]) -> None:
    """Call `changed` whenever something happens next to the file: a watch on the file itself would miss renames."""
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    warned = False
    while not stop.is_set():
        try:
            directories = {path.absolute().parent, path.resolve().parent}
            inodes = {directory.stat().st_ino for directory in directories}
            for _ in watchfiles.watch(
                *directories,
                watch_filter=None,
                debounce=20,
                step=5,
                stop_event=stop,
                yield_on_timeout=True,
                raise_interrupt=False,
                recursive=False,
            ):
                changed()
                if inodes != {directory.stat().st_ino for directory in directories}:
                    break
        except Exception as error:  # noqa: BLE001  # no more inotify instances, directory gone, event loop closed
            if not (warned or stop.is_set()):
                log.warning("flags: file watch failed, polling every %s s: %s", POLL_S, error)
            warned = True
            stop.wait(5)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Failures to lock, write or replace as FlagsReadOnly, naming the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        culprit = printable(str(error.filename)) if isinstance(error.filename, str) else str(path)
        raise FlagsReadOnly(f"{path} cannot be changed here: {reason} ({culprit})") from None


@contextmanager
def locked(directory: Path, wait_s: float | None = None) -> Iterator[None]:
    """The lock of all writers of a flag file is its directory: no litter, and no two writers with different locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wait_s = LOCK_WAIT_S if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FlagConflict(f"another program has locked {directory} for {wait_s:g} s") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing(target: Path, data: bytes) -> Iterator[None]:
    """Replace `target` in one step at the end of the block, if it ends well, keeping mode and, where allowed, owner.

    What can fail for lack of rights or room has been done when the block begins. The caller holds the lock.
    """
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    stat = target.stat() if target.exists() else None
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if stat:
                with suppress(PermissionError):
                    os.fchown(descriptor, stat.st_uid, stat.st_gid)
            os.fchmod(descriptor, S_IMODE(stat.st_mode) if stat else 0o644)
            file.flush()
            os.fsync(descriptor)
        yield
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
