"""What does the operator want? Reads, keeps and edits `migration_flags.yaml`, the only file of intent.

A file is taken whole or not at all. Against half-written files stand three things: a program's edits and most editors
replace the file in one step; a file that is rewritten in place is read only once it stands still; and a file whose
last line has no newline is refused. A shorter file that ends with a complete line is an edit like any other.
"""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import Any

import watchfiles

from .audit import Event, appending, read_audit
from .errors import FlagConflict, FlagFileError, FlagsReadOnly, GatewayError
from .flagfile import (
    OVERRIDES,
    PERCENT,
    Change,
    SetOverride,
    SetShadow,
    SetWeight,
    basis_points,
    edit,
    no_such_route,
    parse_flags,
    percent,
    printable,
    version_of,
)
from .model import FlagSet

MAX_FILE_BYTES = 1_048_576
POLL_S = 0.5  # between looks at the file, should the file watch be blind (NFS, a swapped symlink)
REREAD_S = 10.0  # between looks at the content, should time and size lie
SETTLE_S = 0.05  # how long a file that is rewritten in place must stand still
LOCK_WAIT_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hold:
    """A route that this worker's breaker keeps on legacy, until the flag file gives it another weight."""

    key: str
    weight_bp: int  # when it was held
    at: str  # UTC, ISO 8601
    why: str
    evidence: Mapping[str, Any]


class FlagStore:
    """Keeps the flags in force, follows the file, and edits it for programs.

    Reads `path` at once; raises FlagFileError for whatever is wrong with it. Without a path everything is legacy.
    """

    def __init__(self, path: Path | None, known: Collection[str] | None, state: Path) -> None:
        self._path, self._known, self._audit = path, known, state / "audit.jsonl"
        self._mutex = threading.Lock()  # between the watch and edits of this process
        self._swap = threading.Lock()  # for what is in force: never held while waiting for anything
        self._holds: dict[str, Hold] = {}
        self._subscribers: list[Callable[[FlagSet], None]] = []
        self._seen = _signature(path) if path else None
        self.rejected = ""  # why the file on disk is not in force; empty: it is
        self.current = parse_flags(_read(path), known, str(path)) if path else FlagSet()
        self._judged = self.current.version  # of the last text that was read, good or bad

    def subscribe(self, callback: Callable[[FlagSet], None]) -> None:
        """Call `callback` after each change of `current` or `rejected`, in the thread that made it."""
        self._subscribers.append(callback)

    def set_weight(self, key: str, percent: object, *, by: str, why: str = "", if_version: str = "") -> Event:
        """Let FastAPI serve `percent` (a number or its digits) of the subjects of one route."""
        if self._known is not None and key not in self._known:
            raise FlagFileError(no_such_route(key, self._known), key=printable(key))
        weight_bp = basis_points(str(percent))
        if weight_bp is None:
            raise FlagFileError(f"expected {PERCENT}, not {str(percent)!r}", key=printable(key))
        return self.edit(SetWeight(key, weight_bp), by=by, why=why, if_version=if_version)

    def set_override(self, value: str, *, by: str, why: str = "", if_version: str = "") -> Event:
        """Throw the panic switch: `none`, `legacy` or `fastapi`."""
        if value not in OVERRIDES:
            raise FlagFileError(f"expected none, legacy or fastapi, not {value!r}", key="override")
        return self.edit(SetOverride(value), by=by, why=why, if_version=if_version)

    def undo(self, event_id: int | str, *, by: str, why: str = "", force: bool = False) -> Event:
        """Put back what an event changed. Raises FlagConflict if it was changed again since, unless forced."""
        event = next((event for event in self.audit() if str(event.id) == str(event_id)), None)
        if event is None:
            raise GatewayError(f"no event {str(event_id)!r} in {self._audit}")
        why = why or f"undo {event.id}"
        undone = None if force else event
        return self.edit(_reverse(event), by=by, why=why, undone=undone)

    def audit(self) -> list[Event]:
        """Every edit made by a program, newest last."""
        return read_audit(self._audit)

    def edit(
        self,
        change: Change,
        *,
        by: str,
        why: str = "",
        if_version: str = "",
        undone: Event | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Event:
        """Make one change to the file, and leave every other character of it as it is.

        Under a lock: read, check, change, parse the result, replace in one step, write the audit line. Raises
        FlagFileError for a file that is wrong already, FlagConflict when the file is not at `if_version` or not
        where `undone` left it, FlagsReadOnly where it cannot be replaced. After an error nothing has changed.
        Waits for locks and disks: an event loop calls it in a thread.
        """
        if self._path is None:
            raise FlagsReadOnly("no flag file is configured: give --flags FILE, or flags in [tool.gateway]")
        with self._mutex:
            with _file_errors(self._path), _locked(self._path.resolve().parent):
                text = _read(self._path)
                old = parse_flags(text, self._known, str(self._path))
                _check_unchanged(change, old, if_version, undone)
                new = change.flags(old)
                if new != old:
                    text, new = edit(text, change, self._known, str(self._path))
                event = replace(_describe(change, old, new, by, why), evidence=evidence or {})
                if new != old:
                    with appending(self._audit) as append:
                        _replace_file(self._path.resolve(), text.encode())
                        event = append(event)
                self._seen, self._judged = _signature(self._path), new.version
            self._accept(new)
        return event

    def hold(self, key: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Keep `key` on legacy in this worker, at once, until an accepted version of the file changes its weight.

        An edit about anything else leaves it held: it would put a broken route back. For event loops: takes
        microseconds; the audit line is written by a thread of its own.
        """
        with self._swap:
            if key in self._holds:
                return
            hold = Hold(key, self.current[key].weight_bp, _now(), printable(why), evidence)
            self._holds[key] = hold
            self.current = replace(self.current, held=frozenset(self._holds))
        log.error("flags: %s is held on legacy in this worker: %s", key, hold.why)
        threading.Thread(target=self._record_hold, args=(hold, self.current.version), name="gateway-hold").start()
        self._tell()

    @property
    def holds(self) -> list[Hold]:
        """What this worker's breaker keeps on legacy."""
        return list(self._holds.values())

    async def watch(self) -> None:
        """Follow the file until cancelled. A file watch sees a change within tens of ms, polling what it misses."""
        if self._path is None:
            return
        loop, changed, stop = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        watcher = threading.Thread(
            target=_watch_directory,
            args=(self._path, stop, lambda: loop.call_soon_threadsafe(changed.set)),
            name="gateway-flags",
            daemon=True,
        )
        watcher.start()
        reread_at = loop.time() + REREAD_S
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
                changed.clear()
                if loop.time() >= reread_at or _signature(self._path) != self._seen:
                    reread_at = loop.time() + REREAD_S
                    try:
                        await asyncio.to_thread(self.look)
                    except Exception:
                        log.exception("flags: %s: a look at it failed", self._path)
        finally:
            stop.set()
            watcher.join(1)  # it must be out of the watch, which is foreign code, when the interpreter ends

    def look(self) -> None:
        """Put the file in force if it is new and right; otherwise keep what is in force and raise the alarm."""
        if self._path is None:
            return
        with self._mutex:
            judged, self._judged = self._judged, ""
            try:
                text = self._settled_text(self._path)
                self._judged = version_of(text)
                if self._judged != judged:
                    self._accept(parse_flags(text, self._known, str(self._path)))
            except FlagFileError as error:
                self._reject(str(error))

    def _settled_text(self, path: Path) -> str:
        """The content of a file that does not change while it is read, unless it never stops changing."""
        give_up_at = time.monotonic() + 20 * SETTLE_S
        while True:
            before = _signature(path)
            if before and self._seen and before != self._seen and before.inode == self._seen.inode:
                time.sleep(SETTLE_S)  # rewritten in place, and the writer may not have finished
            self._seen = before
            text = _read(path)
            if _signature(path) == before or time.monotonic() > give_up_at:
                return text

    def _accept(self, flags: FlagSet) -> None:
        if flags.version == self.current.version and not self.rejected:
            return
        with self._swap:
            self._holds = {key: hold for key, hold in self._holds.items() if flags[key].weight_bp == hold.weight_bp}
            self.current, self.rejected = replace(flags, held=frozenset(self._holds)), ""
        log.info("flags: version %s is in force", flags.version)
        self._tell()

    def _reject(self, reason: str) -> None:
        if reason == self.rejected:
            return
        self.rejected = reason
        log.error("flags: %s; version %s stays in force", reason, self.current.version)
        self._tell()

    def _record_hold(self, hold: Hold, version: str) -> None:
        """Hold or no hold, requests are served: an audit that cannot be written costs a line in the log."""
        before = percent(hold.weight_bp)
        event = Event(0, hold.at, "breaker", hold.why, hold.key, before, "held", version, version, hold.evidence)
        try:
            with appending(self._audit) as append:
                append(event)
        except OSError as error:
            log.warning("flags: %s: the hold of %s is not recorded: %s", self._audit, hold.key, error.strerror)

    def _tell(self) -> None:
        for callback in self._subscribers:
            callback(self.current)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _describe(change: Change, old: FlagSet, new: FlagSet, by: str, why: str) -> Event:
    return Event(
        id=0,
        at=_now(),
        by=printable(by),
        why=printable(why),
        key=change.key,
        before=change.value(old),
        after=change.value(new),
        version_before=old.version,
        version=new.version,
        action=change.action,
    )


def _reverse(event: Event) -> Change:
    if event.before in OVERRIDES:
        return SetOverride(str(event.before))
    weight_bp = basis_points(str(event.before))
    if weight_bp is None:
        raise GatewayError(f"event {event.id} does not say what was before")
    return SetShadow(event.key, weight_bp) if event.action == SetShadow.action else SetWeight(event.key, weight_bp)


def _check_unchanged(change: Change, flags: FlagSet, if_version: str, undone: Event | None) -> None:
    if if_version and if_version != flags.version:
        raise FlagConflict(f"the flag file is at version {flags.version}, not at {printable(if_version)}")
    if undone and change.value(flags) != undone.after:
        now = change.value(flags)
        raise FlagConflict(f"{undone.key} is {now} by now; event {undone.id} had made it {undone.after}")


# --- the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Signature:
    """What changes when a file changes; `changed_ns` sees even what keeps size and modification time."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return _Signature(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _read(path: Path) -> str:
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
        return version_of(_read(path))
    except FlagFileError:
        return ""


def _watch_directory(path: Path, stop: threading.Event, changed: Callable[[], object]) -> None:
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
                debounce=100,
                step=20,
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
def _file_errors(path: Path) -> Iterator[None]:
    """Failures to lock, write or replace as FlagsReadOnly, naming the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        culprit = printable(str(error.filename)) if isinstance(error.filename, str) else str(path)
        raise FlagsReadOnly(f"{path} cannot be changed here: {reason} ({culprit})") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The lock of all writers of a flag file is its directory: no litter, and no two writers with different locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FlagConflict(f"another program has locked {directory} for {LOCK_WAIT_S:g} s") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)


def _replace_file(target: Path, data: bytes) -> None:
    """Replace `target` in one step, keeping mode and, where allowed, owner. The caller holds the lock."""
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    stat = target.stat()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            with suppress(PermissionError):
                os.fchown(descriptor, stat.st_uid, stat.st_gid)
            os.fchmod(descriptor, S_IMODE(stat.st_mode))
            file.flush()
            os.fsync(descriptor)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
