"""What does the operator want? Reads, keeps and edits `migration_flags.yaml`, the only file of intent.

A file is taken whole or not at all. Against half-written files stand four things: a program's edits and most editors
replace the file in one step; a file that is rewritten in place is read only once it stands still; a file whose last
line has no newline is refused; and so is one that was cut off in place, even where a line ends. Who means to delete the
last lines replaces the file in one step, or changes anything else.
"""

import asyncio
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os.path import samestat
from pathlib import Path
from typing import Any

from .audit import Audit, Event, Trail, utc_now
from .disk import POLL_S, Signature, file_errors, locked, read, replacing, signature, watch_directory
from .errors import FlagConflict, FlagFileError, FlagsReadOnly, GatewayError, NotShared, UnknownKey
from .flagfile import (
    OVERRIDES,
    PERCENT,
    Change,
    SetOverride,
    SetRollout,
    SetShadow,
    SetWeight,
    basis_points,
    differences,
    edit,
    parse_flags,
    percent,
    printable,
    version_of,
)
from .hosts import Copy, Course, Hosts, Overtaken, Revision, course
from .model import Backend, FlagSet

REREAD_S = 10.0  # between looks at the content, should time and size lie
SETTLE_S = 0.05  # how long a file that is rewritten in place must stand still
FOLLOW_WAIT_S = 1.0  # of a worker that follows the other hosts
OVERTAKEN_S = 1.5  # how long an edit tries again that other hosts come before

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

    Reads `path` at once; raises FlagFileError for whatever is wrong with it. Without a path everything is legacy. With
    `only_look` a wrong one is no error: `current` is what the trail says was in force last, and `rejected` says why.
    With `hosts` the file is this host's copy of what all hosts share: edits reach them all, and who is to `join` them
    follows them first. Others, like a command that only reads, leave file and hosts alone.
    """

    def __init__(
        self,
        path: Path | None,
        known: Collection[str] | None,
        state: Path,
        hosts: Hosts | None = None,
        *,
        join: bool = False,
        only_look: bool = False,
    ) -> None:
        self._path, self._known, self._audit = path, known, Audit(state)
        self._hosts = hosts if path else None
        self._mutex = threading.Lock()  # between the watch and edits of this process
        self._swap = threading.Lock()  # for what is in force: never held while waiting for anything
        self._holds: dict[str, Hold] = {}
        self._subscribers: list[Callable[[FlagSet], None]] = []
        self._seen: Signature | None = None
        self._in_force = ""  # the text of `current`
        self._file: list[int] = []  # the file that held it, kept open so that no other gets its inode
        weakref.finalize(self, _close, self._file)
        self._judged = ""  # version of the last text that was read, good or bad
        self._first = ""  # the version at the start: what was before the first event of the trail
        self._unrecorded = True  # somebody may have edited the file without telling
        self.current, self.rejected = FlagSet(), ""  # why the file on disk is not in force; empty: it is
        self.refused = ""  # which edit of this host's file lost against those of other hosts; empty: none lately
        if path:
            try:
                self._open(path, join=join)
            except FlagFileError as error:
                if not only_look:
                    raise
                self._recall(str(error))
        self._first = self.current.version

    def _open(self, path: Path, *, join: bool) -> None:
        if join:
            try:
                self.follow()
            except NotShared as error:
                log.error("flags: %s; starting with what %s says", error, path)  # noqa: TRY400
        if not self.current.version:
            text = read(path)
            self._seen, self._judged = signature(path), version_of(text)
            self._accept(text, parse_flags(text, self._known, str(path)))

    def _recall(self, reason: str) -> None:
        self.rejected = reason
        text = self._audit.text_of(self._audit.version_at(time.time()))
        if text is not None:
            self.current = parse_flags(text, None)

    def subscribe(self, callback: Callable[[FlagSet], None]) -> None:
        """Call `callback` after each change of `current` or `rejected`, in the thread that made it."""
        self._subscribers.append(callback)

    @property
    def trouble(self) -> list[str]:
        """What somebody should look at: a file that is not in force, an edit that was refused, hosts out of reach."""
        return [
            reason for reason in (self.rejected, self.refused, self._hosts.trouble if self._hosts else "") if reason
        ]

    def set_weight(self, key: str, percent: object, *, by: str, why: str = "", if_version: str = "") -> Event:
        """Let FastAPI serve `percent` (a number or its digits) of the subjects of one route."""
        if self._known is not None and key not in self._known:
            raise UnknownKey(printable(key), *get_close_matches(key[:200], self._known, 1))
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
            raise GatewayError(f"no event {str(event_id)!r} in the audit trail")
        return self.edit(_reverse(event), by=by, why=why or f"undo {event.id}", undone=None if force else event)

    def audit(self) -> list[Event]:
        """Everything that was done to the flags, newest last."""
        return self._audit.events()

    def edit(  # noqa: PLR0913  # all that an edit may depend on
        self,
        change: Change,
        *,
        by: str,
        why: str = "",
        if_version: str = "",
        undone: Event | None = None,
        evidence: Mapping[str, Any] | None = None,
        fence: int = 0,
    ) -> Event:
        """Make one change to the file, and leave every other character of it as it is.

        Under a lock: read, check, change, parse the result, replace in one step, write the audit line. Raises
        FlagFileError for a file that is wrong already, FlagConflict when the file is not at `if_version`, not where
        `undone` left it, or the leader with the token `fence` leads no longer, FlagsReadOnly where it cannot be
        replaced: then nothing has changed. Raises NotShared, with several hosts, for a change that is in force on this
        host alone; with `fence`, for one that is not made at all. Waits for locks, disks and Redis: an event loop calls
        it in a thread.
        """
        if self._path is None:
            raise FlagsReadOnly("no flag file is configured: give --flags FILE, or flags in [tool.gateway]")
        wanted = _Wanted(change, printable(by), printable(why), if_version, undone, evidence or {}, fence)
        turn = self._hosts.turn() if self._hosts else nullcontext()
        with self._mutex, file_errors(self._path), locked(self._path.resolve().parent), turn:
            give_up_at = time.monotonic() + OVERTAKEN_S
            while True:
                try:
                    return self._edit(self._path, wanted)
                except Overtaken:
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(random.uniform(0, 0.02))  # noqa: S311  # others are in a hurry, too

    def hold(self, key: str, why: str, evidence: Mapping[str, Any]) -> None:
        """Keep `key` on legacy in this worker, at once, until an accepted version of the file changes its weight.

        An edit about anything else leaves it held: it would put a broken route back. For event loops: waits
        for nothing; the audit line is written by a thread of its own.
        """
        with self._swap:
            if key in self._holds:
                return
            hold = Hold(key, self.current[key].weight_bp, utc_now(), printable(why), evidence)
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
        if self._hosts:
            self._hosts.start(self.follow)
            self._hosts.seen(self.current.version, self.rejected)
        loop, changed, stop = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        watcher = threading.Thread(
            target=watch_directory,
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
                try:
                    if loop.time() >= reread_at or signature(self._path) != self._seen:
                        reread_at = loop.time() + REREAD_S
                        await asyncio.to_thread(self.look)
                    if self._unrecorded:
                        await asyncio.to_thread(self.record)
                except Exception:
                    log.exception("flags: %s: a look at it failed", self._path)
        finally:
            stop.set()
            watcher.join(1)  # it must be out of the watch, which is foreign code, when the interpreter ends
            if self._hosts:
                self._hosts.close()

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
                    self._accept(text, parse_flags(text, self._known, str(self._path)))
                    self._unrecorded = True
                    if self._hosts:
                        self._hosts.stir()
                elif self._judged == self.current.version:
                    self._remember(text)
            except FlagFileError as error:
                self._reject(str(error))

    def record(self) -> None:
        """Write down what a person has done to the file, once per host; later, while somebody else edits it."""
        if self._path is None:
            return
        try:
            with file_errors(self._path), locked(self._path.resolve().parent, wait_s=0):
                text = self._text(self._path)
                flags = parse_flags(text, self._known, str(self._path))
                with self._audit.writing(urgent=True) as trail:
                    self._record_person(trail, text, flags)
            self._unrecorded = False
        except FlagFileError:
            self._unrecorded = False  # the next good file has its own turn
        except GatewayError as error:
            log.debug("flags: %s", error)

    def _settled_text(self, path: Path) -> str:
        """The content of a file that does not change while it is read, unless it never stops changing."""
        give_up_at = time.monotonic() + 20 * SETTLE_S
        while True:
            before = signature(path)
            if before and self._seen and before != self._seen and before.inode == self._seen.inode:
                time.sleep(SETTLE_S)  # rewritten in place, and the writer may not have finished
            self._seen = before
            try:
                text, wrong = self._text(path), None
            except FlagFileError as error:  # perhaps only for now
                text, wrong = "", error
            if signature(path) == before or time.monotonic() > give_up_at:
                break
        if wrong:
            raise wrong
        return text

    def _text(self, path: Path) -> str:
        """What the file says. Raises FlagFileError also for the beginning of the text in force, cut off in place."""
        text = read(path)
        shorter = len(text) < len(self._in_force) and self._in_force.startswith(text)
        if shorter and text.endswith("\n") and self._is_still(path):
            length = f"{len(text)} of the {len(self._in_force)} characters of version {self.current.version}"
            hint = "to mean it, replace the file in one step"
            raise FlagFileError(f"cut off: it has only the first {length}; {hint}", path=str(path))
        return text

    def _is_still(self, path: Path) -> bool:
        """Whether the file is the one that was accepted, and no other under its name."""
        with suppress(OSError):
            return bool(self._file) and samestat(os.fstat(self._file[0]), path.stat())
        return False

    def _accept(self, text: str, flags: FlagSet) -> None:
        self._remember(text)
        if flags.version == self.current.version and not self.rejected:
            return
        with self._swap:
            self._holds = {key: hold for key, hold in self._holds.items() if flags[key].weight_bp == hold.weight_bp}
            self.current = replace(flags, held=frozenset(self._holds))
            self.rejected = self.refused = ""
        log.info("flags: version %s is in force", flags.version)
        self._tell()

    def _remember(self, text: str) -> None:
        self._in_force = text
        _close(self._file)
        with suppress(OSError):
            if self._path:
                self._file.append(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))

    def _reject(self, reason: str) -> None:
        if reason == self.rejected:
            return
        self.rejected = reason
        log.error("flags: %s; version %s stays in force", reason, self.current.version)
        self._tell()

    # --- one edit

    def _edit(self, path: Path, wanted: "_Wanted") -> Event:
        """Make the change. The file is locked."""
        alone = self._catch_up(wanted.fence)
        text = self._text(path)
        old = parse_flags(text, self._known, str(path))
        new = wanted.checked(old)
        event = wanted.event(old, new)
        if new == old:
            self._accept(text, old)
            return event
        edited, new = edit(text, wanted.change, self._known, str(path))
        event = replace(event, version=new.version)
        with self._audit.writing(urgent=_is_way_back(wanted.change.key, old, new)) as trail:
            self._record_person(trail, text, old)
            with self._replacing(path, edited):
                if self._hosts and not alone:
                    alone = self._publish(self._hosts, edited, event, wanted.fence)
            event = trail.append(event)
        if self._hosts and not alone:
            self._hosts.keep(Copy(self._hosts.copy.number + 1, new.version))
        self._has_written(path, edited, new)
        if alone:
            raise NotShared(
                f"{event.key} is {event.after} on this host alone, with version {event.version}: {alone}; the other "
                f"hosts follow when Redis is back, unless the flags are changed there before"
            )
        return event

    @contextmanager
    def _replacing(self, path: Path, text: str) -> Iterator[None]:
        """Replace the file at the end of the block; on a full disk with some of the reserve."""
        with ExitStack() as stack:
            self._audit.with_room(lambda: stack.enter_context(replacing(path.resolve(), text.encode())))
            yield

    def _has_written(self, path: Path, text: str, flags: FlagSet) -> None:
        self._audit.keep_version(flags.version, text)
        self._seen, self._judged = signature(path), flags.version
        self._accept(text, flags)

    def _record_person(self, trail: Trail, text: str, flags: FlagSet) -> None:
        """If the trail does not end where the file is, somebody has edited it without telling. The file is locked."""
        self._audit.keep_version(flags.version, text)
        before = trail.version or self._first or flags.version
        if before != flags.version:
            for event in self._unsigned(before, flags, by="file"):
                trail.append(event)

    def _unsigned(self, before: str, flags: FlagSet, by: str, why: str = "") -> Iterator[Event]:
        """Events for all that differs between a version and `flags`, nobody knows through whom."""
        draft = Event(0, utc_now(), by, why, "", before, flags.version, before, flags.version, action="file")
        text = self._audit.text_of(before)
        if text is None:
            yield replace(draft, why=why or f"what version {before} said is not known")
            return
        changes = list(differences(parse_flags(text, None), flags))
        if not changes:
            yield replace(draft, why=why or "comments and spaces only")
        for action, key, was, now in changes:
            yield replace(draft, action=action, key=key, before=was, after=now)

    def _record_hold(self, hold: Hold, version: str) -> None:
        weight, why, evidence = percent(hold.weight_bp), hold.why, hold.evidence
        event = Event(0, hold.at, "breaker", why, hold.key, weight, "held", version, "", evidence, action="hold")
        self._audit.append(event, urgent=True)

    # --- several hosts

    def follow(self) -> None:
        """Bring this host's file together with what all hosts share. Raises NotShared if nobody knows what that is."""
        path, hosts = self._path, self._hosts
        if path is None or hosts is None:
            return
        with self._mutex:
            try:
                with file_errors(path), locked(path.resolve().parent, FOLLOW_WAIT_S):
                    self._meet(path, hosts)
            except NotShared:
                raise
            except FlagConflict as error:  # another host was faster, or another program has locked the file
                log.info("flags: %s; trying again", error)
                hosts.stir()
            except GatewayError as error:
                self._reject(str(error))

    def _catch_up(self, fence: int) -> str:
        """Before an edit: what the other hosts have done, first. Why that is not known; empty: it is, and was done."""
        if self._path is None or self._hosts is None:
            return ""
        try:
            self._meet(self._path, self._hosts)
        except NotShared as error:
            if fence:
                raise
            return str(error)
        return ""

    def _meet(self, path: Path, hosts: Hosts) -> None:
        shared = hosts.fetch()
        try:
            text = self._text(path)
        except FlagFileError:
            text = ""
        way = course(version_of(text), hosts.copy, shared)
        if shared is None or way is Course.PUBLISH:
            self._publish_file(path, hosts, shared)
        elif way is Course.KEEP:
            hosts.keep(Copy(shared.number, shared.version))
            self._put_in_force(path, text)
        else:
            self._take(path, hosts, shared, text, refused=way is Course.REFUSE and bool(text))

    def _put_in_force(self, path: Path, text: str) -> None:
        if version_of(text) != self.current.version or self.rejected:
            self._seen, self._judged = signature(path), version_of(text)
            self._accept(text, parse_flags(text, self._known, str(path)))

    def _publish_file(self, path: Path, hosts: Hosts, shared: Revision | None) -> None:
        """Share what a person has written into the file, and what was done here while Redis was away."""
        text = self._text(path)
        flags = parse_flags(text, self._known, str(path))
        with self._audit.writing(urgent=True) as trail:
            self._record_person(trail, text, flags)
        number, before = (shared.number, shared.version) if shared else (0, "")
        events = _since(self.audit(), before)
        copy = hosts.copy
        restored = flags.version == copy.version and copy.number > number  # what Redis has lost: nothing new
        fresh = copy.number if restored else 1 + max(number, copy.number)
        hosts.publish(Revision(fresh, flags.version, text, before, events, hosts.host), number)
        hosts.keep(Copy(fresh, flags.version))
        self._put_in_force(path, text)

    def _publish(self, hosts: Hosts, text: str, event: Event, fence: int) -> str:
        """Share an edit before it is made. Why it could not be; empty: it is shared."""
        number = hosts.copy.number
        revision = Revision(number + 1, event.version, text, event.version_before, (event,), hosts.host)
        try:
            hosts.publish(revision, number, fence)
        except NotShared as error:
            if fence:
                raise
            return str(error)
        return ""

    def _take(self, path: Path, hosts: Hosts, shared: Revision, text: str, *, refused: bool) -> None:
        """Make the revision this host's file. What was edited here on the basis of an older one is kept, and said."""
        flags = parse_flags(shared.text, self._known, f"revision {shared.number} of {shared.host}")
        own = version_of(text)
        refusal = ""
        if text:
            self._audit.keep_version(own, text)
        with self._audit.writing(urgent=True) as trail:
            try:
                with self._replacing(path, shared.text):
                    pass
            except OSError:  # a file that cannot be replaced keeps no host from following
                self._seen, self._judged = signature(path), own
                self._accept(shared.text, flags)
                raise
            for event in self._arrived(trail.version or own, shared, flags):
                trail.append(event)
            if refused:
                refusal = _refusal(own, hosts.copy, shared)
                draft = Event(0, utc_now(), "file", refusal, "", own, shared.version, shared.version, shared.version)
                trail.append(replace(draft, action="refused"))
        hosts.keep(Copy(shared.number, shared.version))
        self._has_written(path, shared.text, flags)
        if refusal:
            self.refused = refusal
            log.error("flags: %s: %s", path, refusal)

    def _arrived(self, before: str, shared: Revision, flags: FlagSet) -> Iterator[Event]:
        """What this host's trail says about a revision made elsewhere; about several at once, only the sum is known."""
        if before == shared.before:
            for event in shared.events:
                yield replace(event, by=event.by if "@" in event.by else f"{event.by}@{shared.host}")
        elif before != shared.version:
            yield from self._unsigned(before, flags, f"hosts@{shared.host}", f"revision {shared.number}")

    def _tell(self) -> None:
        if self._hosts:
            self._hosts.seen(self.current.version, self.rejected)
        for callback in self._subscribers:
            callback(self.current)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An edit that somebody asked for."""

    change: Change
    by: str
    why: str
    if_version: str
    undone: Event | None
    evidence: Mapping[str, Any]
    fence: int

    def checked(self, flags: FlagSet) -> FlagSet:
        """What shall be in force afterwards."""
        if self.if_version and self.if_version != flags.version:
            raise FlagConflict(f"the flag file is at version {flags.version}, not at {printable(self.if_version)}")
        now, undone = self.change.value(flags), self.undone
        if undone and now != undone.after:
            raise FlagConflict(f"{undone.key} is {now} by now; event {undone.id} had made it {undone.after}")
        return self.change.flags(flags)

    def event(self, old: FlagSet, new: FlagSet) -> Event:
        return Event(
            id=0,
            at=utc_now(),
            by=self.by,
            why=self.why,
            key=self.change.key,
            before=self.change.value(old),
            after=self.change.value(new),
            version_before=old.version,
            version=new.version,
            evidence=self.evidence,
            action=self.change.action,
        )


def _reverse(event: Event) -> Change:
    """What puts back what an event changed. Old events do not say which kind of change they are."""
    share_bp = basis_points(str(event.before))
    if event.action in ("", "override") and event.before in OVERRIDES:
        return SetOverride(str(event.before))
    if event.action == "shadow" and share_bp is not None:
        return SetShadow(event.key, share_bp)
    if event.action == "rollout" and event.before:
        return SetRollout(event.key, str(event.before))
    if event.action in ("", "weight") and share_bp is not None:
        return SetWeight(event.key, share_bp)
    kept = f"; the file as it was before is versions/{event.version_before}.yaml" if event.action == "file" else ""
    raise GatewayError(f"event {event.id} is nothing that can be put back{kept}")


def _is_way_back(key: str, old: FlagSet, new: FlagSet) -> bool:
    """Whether a change brings requests back to legacy: that must be possible even where nothing can be recorded."""
    return new[key].weight_bp < old[key].weight_bp or (new.override is Backend.LEGACY and new.override != old.override)


def _since(events: list[Event], before: str) -> tuple[Event, ...]:
    """What was done since the version `before`, if the trail knows."""
    found: list[Event] = []
    for event in reversed([event for event in events if event.version]):
        if event.version == before:
            return tuple(found[::-1])
        found.append(event)
    first = [event for event in found if event.version_before == before]
    return tuple(found[::-1]) if first and first[-1] is found[-1] else ()


def _refusal(own: str, copy: Copy, shared: Revision) -> str:
    by = f", by {shared.events[-1].by}" if shared.events else ""
    return (
        f"version {own} was made from {f'revision {copy.number}' if copy.number else 'no revision'} and is refused: "
        f"revision {shared.number} is in force, version {shared.version}{by}; the other is kept in versions/{own}.yaml"
    )


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
