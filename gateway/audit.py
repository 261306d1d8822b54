"""Who changed what, when and why: the append-only trail of one host, and the texts of all flag versions.

`<state>/audit.jsonl` has a line of JSON per event, by people and robots alike. A line ends with its own SHA-256, and
has in `prev` the SHA-256 of every byte from the beginning of the hashed line before it: so each line seals the one
above, whatever a crash has torn in between, and, as the first one, all lines that are older than hashes. The last line
is named by `<state>/audit.head`. Any byte that is flipped, removed, added or moved is found by `Audit.verify`.

Limits: whoever may write to the directory can write a new chain and a new head. Against that, keep heads elsewhere:
each one is logged, and `verify` takes one that was kept. A machine that dies between a line and its head leaves a head
that is one event old, and a trail that is cut off right there is not noticed.

A full disk: `<state>/audit.reserve` is given up piece by piece for the lines (and flag files) that must be written.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

KEPT_VERSIONS = 10_000
LOCK_WAIT_S = 2.0
RESERVE_BYTES = 65_536
UNRECORDED = -1

log = logging.getLogger(__name__)

_BLOCK_BYTES = 65_536
_PIECE_BYTES = 8_192  # of the reserve, given up at a time
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL_BYTES = 75
_SEAL = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
_HEAD = re.compile(rb"([1-9][0-9]{0,14}):([0-9a-f]{64})\n *")
_HEAD_BYTES = 96  # padded, so that a shorter one overwrites a longer one
_VERSION = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit trail."""

    id: int  # counts from 1; 0: nothing had to be changed; UNRECORDED: done, but the trail could not be written
    at: str  # UTC, ISO 8601
    by: str
    why: str
    key: str  # an endpoint, or "override"
    before: float | str  # percent; for the override "none", "legacy" or "fastapi"
    after: float | str
    version_before: str
    version: str  # of the flags in force afterwards; empty: the event is not about flags
    evidence: Mapping[str, Any] = field(default_factory=dict)  # the numbers a robot acted on
    action: str = ""  # weight, override, undo, advance, rollback, hold, release, drill, file, pass; "": an old line
    prev: str = field(default="", compare=False)  # SHA-256 of what stands before it; empty: an old line
    hash: str = field(default="", compare=False)  # SHA-256 of the line itself


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written."""

    line: int  # of the file, from 1; 0: no line in particular
    what: str


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def epoch(at: str) -> float:
    """The time of an event in seconds since the epoch; 0 for what is no time."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def read_audit(path: Path) -> list[Event]:
    """The events of an audit file, newest last. Lines that were torn by a crash are passed over."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _event(line))]


class Audit:
    """The trail in the directory `state`, for any number of processes. Opens nothing before it is asked to."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path, self._head, self._reserve = (state / f"audit.{end}" for end in ("jsonl", "head", "reserve"))
        self._versions = state / "versions"

    def events(self) -> list[Event]:
        """Everything, newest last."""
        return read_audit(self._path)

    @contextmanager
    def writing(self, *, urgent: bool = False) -> "Iterator[Trail]":
        """The trail, locked against all other writers, with room for what will be written.

        Entering is the promise: nothing fails afterwards, so what happens inside is never lost for lack of a record.
        Raises OSError when the trail cannot be opened, locked within LOCK_WAIT_S, or written because the disk and
        the reserve are full; if `urgent`, what cannot be recorded is logged instead.
        """
        try:
            descriptor = self._open()
        except OSError as error:
            if not urgent:
                raise
            log.error("audit: %s: %s: what follows is not recorded there", self._path, error)  # noqa: TRY400
            yield Trail(self, None)
            return
        try:
            self._refill(urgent=urgent)
            yield Trail(self, descriptor)
        finally:
            os.close(descriptor)

    def append(self, event: Event, *, urgent: bool = False) -> Event:
        """Write down one event; returns it with its number. Raises OSError as `writing` does."""
        with self.writing(urgent=urgent) as trail:
            return trail.append(event)

    def with_room(self, action: Callable[[], T]) -> T:
        """Do something that needs space on the disk; when it is full, with some of the reserve. Raises OSError."""
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in _FULL or not self._give_up_piece():
                    raise

    def _open(self) -> int:
        """The trail, opened and locked; of a trail that was moved away meanwhile, the new one."""
        self._state.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _lock(descriptor, fcntl.LOCK_EX, deadline)
                with suppress(FileNotFoundError):
                    if os.fstat(descriptor).st_ino == self._path.stat().st_ino:
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    # --- the reserve

    def _refill(self, *, urgent: bool) -> None:
        """Make the reserve whole again, if the disk allows it. Raises OSError for a full disk without any reserve."""
        try:
            descriptor = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size < RESERVE_BYTES:
                    os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _FULL and not urgent and not self._left():
                raise OSError(error.errno, error.strerror, str(self._reserve)) from None

    def _left(self) -> int:
        try:
            return self._reserve.stat().st_size
        except OSError:
            return 0

    def _give_up_piece(self) -> bool:
        left = self._left()
        if left:
            os.truncate(self._reserve, max(0, left - _PIECE_BYTES))
        return left > 0

    # --- what was said when

    def keep_version(self, version: str, text: str) -> None:
        """Keep what a version of the flag file said. What fails is logged: nobody waits for it."""
        path = self._versions / f"{version}.yaml"
        try:
            if self.text_of(version) == text:
                os.utime(path)  # in use again: not the next one to be forgotten
                return
            self._versions.mkdir(parents=True, exist_ok=True)
            self.with_room(lambda: _write_whole(path, text.encode(errors="surrogatepass")))
            if sum(1 for _ in self._versions.iterdir()) > KEPT_VERSIONS:  # seldom: to sort them takes its time
                for old in sorted(self._versions.glob("*.yaml"), key=_written_at)[: -KEPT_VERSIONS * 9 // 10]:
                    if old != path:  # the clock may have been put back
                        old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("audit: %s is not kept: %s", path, error.strerror)

    def text_of(self, version: str) -> str | None:
        """What a version of the flag file said; None if it is not kept, or no longer as it was."""
        try:
            if not _VERSION.fullmatch(version):
                return None
            data = (self._versions / f"{version}.yaml").read_bytes()
        except OSError:
            return None
        return data.decode(errors="surrogatepass") if _is_version(data, version) else None

    def version_at(self, at: float) -> str:
        """The version in force at a time in seconds since the epoch; empty if nobody knows.

        The order of the trail counts, not its clock: after a clock was put back, the later event is the later one.
        """
        version = ""
        for event in self.events():
            if event.version and epoch(event.at) <= at:
                version = event.version
            elif event.version_before and not version:
                version = event.version_before
        return version or self._only_version()

    def _only_version(self) -> str:
        """The one that was never changed; empty if several are kept, or none."""
        kept = [path.stem for path in self._versions.glob("*.yaml")]
        return kept[0] if len(kept) == 1 else ""

    # --- verification

    def verify(self, kept_head: str = "") -> list[Problem]:
        """Everything that is not as it was written. `kept_head`: "event:hash" of an event, kept somewhere else."""
        data, head = self._read()
        chain, problems = _check_chain(data)
        problems += self._check_head(head, chain)
        if kept_head and not _names_one(kept_head.encode(), chain):
            problems.append(Problem(0, f"no event is {kept_head}"))
        for path in sorted(self._versions.glob("*.yaml")):
            if self.text_of(path.stem) is None and path.exists():
                problems.append(Problem(0, f"{path} is not the text of that version"))
        return problems

    def head(self) -> str:
        """The newest event and its hash, "17:3f…", to be kept where nobody can write; empty if there is none."""
        last = next((event for event in reversed(self.events()) if event.hash), None)
        return f"{last.id}:{last.hash}" if last else ""

    def _read(self) -> tuple[bytes, bytes | None]:
        """Trail and head, between two writes, unless one takes longer than any may."""
        try:
            with self._path.open("rb") as file:
                with suppress(BlockingIOError):
                    _lock(file.fileno(), fcntl.LOCK_SH, time.monotonic() + LOCK_WAIT_S)
                return file.read(), self._read_head()
        except FileNotFoundError:
            return b"", self._read_head()

    def _check_head(self, head: bytes | None, chain: Sequence[Event]) -> list[Problem]:
        if head is None:
            return [Problem(0, f"{self._head} is missing")] if chain else []
        match = _HEAD.fullmatch(head)
        if not match:
            return [Problem(0, f"{self._head} is damaged")]
        if _names_one(head[: match.end(2)], chain):
            return []
        return [Problem(0, f"event {int(match[1])} is missing or changed: {self._head} names it")]

    def _read_head(self) -> bytes | None:
        try:
            return self._head.read_bytes()
        except OSError:
            return None

    def last_known_id(self) -> int:
        """The number of the event that the head names: no later one is given twice, even if the trail was cut."""
        match = _HEAD.fullmatch(self._read_head() or b"")
        return int(match[1]) if match else 0

    def write_head(self, event: Event) -> None:
        """In place and of one size, so that it needs no room. Raises OSError."""
        descriptor = os.open(self._head, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, f"{event.id}:{event.hash}\n".encode().ljust(_HEAD_BYTES), 0)
        finally:
            os.close(descriptor)


class Trail:
    """An open and locked trail: what it ends with, and the way to go on."""

    def __init__(self, audit: Audit, descriptor: int | None) -> None:
        self._audit, self._descriptor = audit, descriptor

    @property
    def version(self) -> str:
        """The version of the flags that was in force after the newest event that is about flags."""
        if self._descriptor is None:
            return ""
        events = (_event(line) for _, line in _backwards(self._descriptor))
        return next((event.version for event in events if event and event.version), "")

    def append(self, event: Event) -> Event:
        """Number, chain and write an event; returns it as it was written. What fails is logged, with the event."""
        try:
            if self._descriptor is not None:
                return self._write(self._descriptor, event)
            reason = "it is not open"
        except OSError as error:
            reason = str(error)
        event = replace(event, id=UNRECORDED)
        log.error("audit: not recorded, %s: %s", reason, json.dumps(asdict(event), default=str))
        return event

    def _write(self, descriptor: int, event: Event) -> Event:
        end, last_id = _end_of(descriptor)
        torn = b"" if end.endswith(b"\n") or not end else b"\n"
        event = replace(event, id=1 + max(last_id, self._audit.last_known_id()), prev=_digest(end + torn))
        line, event = _seal(event)
        if torn:
            log.warning("audit: event %s follows a line that a crash has torn, and seals it", event.id)
        self._audit.with_room(lambda: _write_all(descriptor, torn + line + b"\n"))
        os.fsync(descriptor)
        try:
            self._audit.with_room(lambda: self._audit.write_head(event))
        except OSError as error:
            log.warning("audit: the head is old now: %s", error)
        log.info("audit: %s:%s", event.id, event.hash)
        return event


# --- lines ----------------------------------------------------------------------------------------------------------


def _event(line: bytes) -> Event | None:
    try:
        values: dict[str, Any] = json.loads(line)
        return Event(**{name: values[name] for name in _EVENT_FIELDS if name in values})
    except (ValueError, TypeError, KeyError):
        return None


_EVENT_FIELDS = [f.name for f in fields(Event)]


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _seal(event: Event) -> tuple[bytes, Event]:
    """The line of an event, and the event with its hash: that of the line without its last member."""
    values = asdict(event)
    del values["hash"]
    line = json.dumps(values, separators=(",", ":"), default=str).encode()
    event = replace(event, hash=_digest(line))
    return line[:-1] + f',"hash":"{event.hash}"}}'.encode(), event


def _sealed(line: bytes) -> Event | None:
    """The event of a line that is, to the byte, as it was sealed."""
    match = _SEAL.fullmatch(line, max(0, len(line) - _SEAL_BYTES))
    if not match or _digest(line[: match.start()] + b"}") != match[1].decode():
        return None
    return _event(line)


def _end_of(descriptor: int) -> tuple[bytes, int]:
    """What the next line seals, from the last hashed line on, and the number of the last event."""
    last_id = 0
    for start, line in _backwards(descriptor):
        if event := _sealed(line):
            return _bytes_from(descriptor, start), event.id
        last_id = max(last_id, event.id if (event := _event(line)) else 0)
    return _bytes_from(descriptor, 0), last_id


def _backwards(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, the last one first, and where they begin."""
    start, rest = os.fstat(descriptor).st_size, b""
    while start > 0:
        end, start = start, max(0, start - _BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start) + rest
        rest, *lines = block.split(b"\n")
        position = start + len(block)
        for line in reversed(lines):
            position -= len(line)
            yield position, line
            position -= 1
    yield 0, rest


def _bytes_from(descriptor: int, start: int) -> bytes:
    pieces = []
    while piece := os.pread(descriptor, 1 << 20, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _check_chain(data: bytes) -> tuple[list[Event], list[Problem]]:
    """All hashed events, and where the chain is broken."""
    chain: list[Event] = []
    problems: list[Problem] = []
    start = offset = 0  # of the hashed line before, and of this one
    odd: list[int] = []  # lines since then that are not hashed
    for number, line in enumerate(data.split(b"\n"), 1):
        event = _sealed(line)
        if event is None:
            odd += [number] if line else []
        else:
            if event.prev != _digest(data[start:offset]):
                where = odd[0] if odd else number - 1 or 1
                problems.append(Problem(where, f"changed, removed or added before event {event.id}"))
            elif chain and event.id != chain[-1].id + 1:
                problems.append(Problem(number, f"event {event.id} follows event {chain[-1].id}: some are missing"))
            chain.append(event)
            start, odd = offset, []
        offset += len(line) + 1
    if chain and (odd or not data.endswith(b"\n")):
        problems.append(
            Problem(odd[0] if odd else number, "changed, or torn by a crash after which nothing was written")
        )
    return chain, problems


def _names_one(head: bytes, chain: Sequence[Event]) -> bool:
    return any(head == f"{event.id}:{event.hash}".encode() for event in chain)


# --- files ----------------------------------------------------------------------------------------------------------


def _lock(descriptor: int, operation: int, deadline: float) -> None:
    """Raises BlockingIOError when another program has locked the file until `deadline`."""
    while True:
        try:
            return fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, f"locked by another program for {LOCK_WAIT_S:g} s") from None
        time.sleep(0.002)


def _write_all(descriptor: int, data: bytes) -> None:
    """Append all of `data` or nothing. Raises OSError."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # a short write does not say so
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _write_whole(path: Path, data: bytes) -> None:
    """A file that appears whole or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # forgotten by another process
        return 0.0


def _is_version(data: bytes, version: str) -> bool:
    """A version is the beginning of the SHA-256 of its text."""
    return bool(_VERSION.fullmatch(version)) and _digest(data).startswith(version)
