"""What became of one request? A line for each, in a bounded ring of files that all processes of a host share.

`<state>/journal/<n>-<pid>.log`: n counts over all processes and never goes back, so it says what is older without
asking a clock. Each process writes its own segments, and deletes the oldest of anyone's when all are too much. Subjects
are kept as they are; paths, query strings and cookies never get here.

A broken instrument must not touch what it measures: nothing here blocks a request or raises into one. One thread
writes; what cannot be written is counted in `dropped` and forgotten.
"""

import errno
import json
import logging
import os
import re
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import orjson

from .model import Backend, Reason

FLUSH_S = 0.2

log = logging.getLogger(__name__)

_CHUNK = 256  # lines written at once
_TRIM_S = 1.0  # between looks at the size of the ring
_MAX_PENDING = 50_000  # lines that wait for a thread that waits for the disk; the oldest go first
_SEGMENTS = 16  # that the ring is cut into, of at least and at most
_SEGMENT_BYTES = 4_096, 4_194_304
_MAX_SEGMENTS = 512  # processes that live for seconds leave small ones
_NAME = re.compile(r"[0-9]{1,15}-[0-9]+\.log")

Line = tuple[float, str, str, str, str, str, str, str, int | None, int, bool, bool]


@dataclass(frozen=True, slots=True)
class Entry:
    """One request."""

    at: float  # seconds since the epoch, when it was answered
    id: str
    key: str
    method: str
    subject: str  # empty: the decision did not need to know
    version: str  # of the flags
    backend: Backend  # that was chosen
    reason: Reason
    bucket_bp: int | None
    status: int
    fallback: bool  # legacy stood in for the chosen port
    shadow: bool  # chosen to be replayed


class Journal:
    """Writes, between `start` and `close`, what `note` is told. With `max_bytes` 0 it does nothing."""

    def __init__(self, state: Path, max_bytes: int) -> None:
        self.dropped = 0  # requests without a line
        self._off = max_bytes <= 0
        self._ring = _Ring(state / "journal", max_bytes)
        self._pending: deque[Line] = deque(maxlen=_MAX_PENDING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="gateway-journal", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        if not self._off:
            self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(2)

    def note(  # noqa: PLR0913, PLR0917  # a container for one call per request would cost as much as the call
        self,
        id: str,  # noqa: A002
        key: str,
        method: str,
        subject: str,
        version: str,
        backend: Backend,
        reason: Reason,
        bucket_bp: int | None,
        status: int,
        fallback: bool,
        shadow: bool,
    ) -> None:
        """Note one request. Takes less than a microsecond; on disk about FLUSH_S later."""
        if self._off:
            return
        if len(self._pending) == _MAX_PENDING:
            self.dropped += 1
        names = backend._value_, reason._value_  # twice as quick to write down as the words themselves
        self._pending.append(
            (time.time(), id, key, method, subject, version, *names, bucket_bp, status, fallback, shadow)
        )

    @staticmethod
    def find(state: Path, request_id: str) -> Entry | None:
        """The newest request of that id, from any process; None when the ring does not reach back so far."""
        for path in reversed(_segments(state / "journal")):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if entry := _last_of(data, request_id):
                return entry
        return None

    def _write(self) -> None:
        """Body of the thread."""
        while not self._closed.wait(FLUSH_S):
            self._flush()
        self._flush()
        self._ring.close()

    def _flush(self) -> None:
        """Write what is pending now, in chunks: none of them holds up the requests for long."""
        for _ in range(0, len(self._pending), _CHUNK):
            chunk = [self._pending.popleft() for _ in range(min(_CHUNK, len(self._pending)))]
            try:
                self._ring.write(b"".join(map(_line, chunk)))
            except Exception as error:  # noqa: BLE001  # disk full, read-only, or what nobody thought of
                log.log(logging.DEBUG if self.dropped else logging.WARNING, "journal: %s", error)
                self.dropped += len(chunk)


class _Ring:
    """The segments of all processes, of which one is ours. For one thread."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self._segment_bytes = min(max(max_bytes // _SEGMENTS, _SEGMENT_BYTES[0]), _SEGMENT_BYTES[1])
        self._descriptor = -1
        self._trim_at = 0.0

    def write(self, lines: bytes) -> None:
        """Append to our segment; to a new one when it is full or somebody deleted it. Raises OSError."""
        if self._descriptor < 0 or not self._fits(os.fstat(self._descriptor), len(lines)):
            self.close()
            self._descriptor = self._create()
            self._trim(len(lines))
        size = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, lines) < len(lines):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + _TRIM_S
            self._trim()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fits(self, stat: os.stat_result, count: int) -> bool:
        return stat.st_nlink > 0 and stat.st_size + count <= self._segment_bytes

    def _create(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        while True:
            number = max((_number(path) for path in _segments(self._directory)), default=0) + 1
            path = self._directory / f"{number:012}-{os.getpid()}.log"
            with suppress(FileExistsError):  # a process of that number in another container
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _trim(self, count: int = 0) -> None:
        """Delete the oldest segments of anyone until there is room for one more, and in it for so many bytes."""
        room = max(self._segment_bytes, count)
        sizes = [(path, size) for path in _segments(self._directory) if (size := _size(path)) is not None]
        total = sum(size for _, size in sizes)
        for surplus, (path, size) in enumerate(sizes[:-1]):
            if total + room <= self._max_bytes and len(sizes) - surplus <= _MAX_SEGMENTS:
                break
            path.unlink(missing_ok=True)
            total -= size


def _segments(directory: Path) -> list[Path]:
    """All segments, the oldest first."""
    return sorted((path for path in directory.glob("*.log") if _NAME.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _line(line: Line) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # half of a surrogate pair, say
        return json.dumps(line).encode() + b"\n"


def _last_of(data: bytes, request_id: str) -> Entry | None:
    """The last entry of that id in a segment. It may also stand in a line as something else."""
    needle, end = json.dumps(request_id).encode(), len(data)
    while (position := data.rfind(needle, 0, end)) >= 0:
        end = data.rfind(b"\n", 0, position) + 1
        entry = _entry(data[end : data.find(b"\n", position)])
        if entry and entry.id == request_id:
            return entry
    return None


def _entry(line: bytes) -> Entry | None:
    try:
        at, id_, key, method, subject, version, backend, reason, *rest = json.loads(line)
        return Entry(at, id_, key, method, subject, version, Backend(backend), Reason(reason), *rest)
    except (ValueError, TypeError):  # torn by a crash, or of another version
        return None


# --- request ids ------------------------------------------------------------------------------------------------------


_ID = re.compile(rb"[!-~]{1,128}")
_RENEW_S = 0.01
_count = count().__next__
_process = _prefix = ""
_renewed_at = _renew_at = 0.0


def new_id() -> str:
    """An id that no other process or host makes: milliseconds since the epoch, process, number."""
    if not _renewed_at <= time.time() < _renew_at:  # to write the time anew for each would take twice as long
        _renew_prefix(time.time())
    return _prefix + str(_count())


def _renew_prefix(now: float) -> None:
    global _prefix, _renewed_at, _renew_at
    _prefix, _renewed_at, _renew_at = f"{int(now * 1000):x}-{_process}-", now, now + _RENEW_S


def _name_process() -> None:
    global _process  # noqa: PLW0603  # a forked process must not go on with the name of its parent
    _process = secrets.token_hex(6)
    _renew_prefix(time.time())


_name_process()
os.register_at_fork(after_in_child=_name_process)


def accept(raw: bytes) -> str | None:
    """The id that a proxy has given to a request: 1 to 128 visible ASCII characters, or it is none."""
    return raw.decode("ascii") if _ID.fullmatch(raw) else None
