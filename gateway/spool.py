"""Where bytes wait for a slower side: in memory while there is room, then in a file without a name."""

import asyncio
import io
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock, RLock
from typing import TYPE_CHECKING, BinaryIO

from starlette.types import Message, Receive
from typing_extensions import override
from werkzeug.exceptions import RequestEntityTooLarge

from .errors import BodyTruncated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

KIB, MIB = 1024, 1024 * 1024
CHUNK_BYTES = 64  # what a bytes object costs besides its content: a body of single bytes must not cost forty bodies
DISK_READ_BYTES = 256 * KIB
DISK_WRITE_BYTES = 1 * MIB
BODY_FREE_BYTES = 256 * KIB  # of one request body in memory, always
BODY_MEMORY_BYTES = 16 * MIB  # of one request body in memory, at most

log = logging.getLogger(__name__)


class Store:
    """What all spools of one worker share: the memory they may borrow and the threads that wait for the disk."""

    def __init__(self, memory_bytes: int) -> None:
        self.free_bytes = memory_bytes
        self._lock = RLock()  # a spool that is collected while another one borrows gives back in between
        self._disk = ThreadPoolExecutor(2, "gateway-disk")

    def lend(self, count: int) -> bool:
        with self._lock:
            if count > self.free_bytes:
                return False
            self.free_bytes -= count
            return True

    def take_back(self, count: int) -> None:
        with self._lock:
            self.free_bytes += count

    async def read(self, spool: "Spool", most_bytes: int) -> bytes:
        """`spool.take` that never blocks the loop."""
        if not spool.on_disk:
            return spool.take(most_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._disk, spool.take, most_bytes)

    async def write(self, spool: "Spool", data: "ReadableBuffer") -> None:
        """`spool.write` that never blocks the loop."""
        await asyncio.get_running_loop().run_in_executor(self._disk, spool.write, data)


class Spool:
    """A queue of bytes from one writer to one reader, in different threads.

    `free_bytes` in memory are always granted, up to `most_bytes` are borrowed from the store, the rest goes to disk.
    The file is closed with the last reference, so that neither side can pull it away under the other.
    """

    def __init__(self, store: Store, free_bytes: int, most_bytes: int) -> None:
        self._store, self._free, self._most = store, free_bytes, most_bytes
        self._lock = Lock()
        self._chunks: deque[bytes] = deque()
        self._older = 0  # how many of them come before what is on disk
        self.memory_bytes = 0
        self._borrowed = 0
        self._fd = -1
        self._start = self._end = 0  # of what is unread on disk
        self._emptied = Event()  # where the writer waits for the reader
        self._abandoned = False

    @property
    def size(self) -> int:
        return self.memory_bytes + self._end - self._start

    @property
    def file_bytes(self) -> int:
        """Length of the file. It starts anew when everything in it was read."""
        return self._end

    @property
    def spilled(self) -> bool:
        """Whether anything is on disk."""
        return self._start < self._end

    @property
    def on_disk(self) -> bool:
        """Whether the next bytes are on disk."""
        return self._start < self._end and not self._older

    def keep(self, chunk: bytes) -> bool:
        """Add to memory if that is allowed and nothing is on disk. An empty spool takes any chunk."""
        with self._lock:
            if self._start < self._end or not self._afford(len(chunk)):
                return False
            self._add(chunk)
            return True

    def append(self, chunk: bytes) -> None:
        """Add to memory whatever it costs, for a writer who has an eye on `memory_bytes` himself."""
        with self._lock:
            self._add(chunk)

    def _add(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.append(chunk)
            self.memory_bytes += len(chunk)

    def _cost(self) -> int:
        return self.memory_bytes + CHUNK_BYTES * len(self._chunks)

    def _afford(self, count: int) -> bool:
        cost = self._cost() + count + CHUNK_BYTES
        needed = cost - self._free - self._borrowed
        if needed <= 0 or not self._chunks:
            return True
        if cost > self._most or not self._store.lend(needed):
            return False
        self._borrowed += needed
        return True

    def write(self, data: "ReadableBuffer") -> None:
        """Add to disk (blocks). Raises OSError when that fails; then nothing was added. Must not follow `append`."""
        with self._lock:
            if self._fd < 0:
                self._fd = _unnamed_file()
            if self._start == self._end:
                self._start = self._end = 0
                self._older = len(self._chunks)
            end = self._end
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], end + done)
        self._end = end + done

    def adopt(self, fd: int, start: int, end: int) -> None:
        """Add a part of a file that is open already; the descriptor belongs to the spool from now on."""
        with self._lock:
            self._older = len(self._chunks)
            self._fd, self._start, self._end = fd, start, end

    def take(self, most_bytes: int = 0) -> bytes:
        """The next bytes, none if there are none: one chunk, or several as far as `most_bytes` go.

        Blocks when `on_disk`. Raises OSError when the file cannot be read or has become shorter.
        """
        with self._lock:
            on_disk = self.on_disk
            data = b"" if on_disk else self._pop(most_bytes)
        if on_disk:
            data = os.pread(self._fd, min(self._end - self._start, DISK_READ_BYTES), self._start)
            if not data:
                raise OSError("the file became shorter while it was read")
            self._start += len(data)
        if not self.size and not self._emptied.is_set():
            self._emptied.set()
        return data

    def _pop(self, most_bytes: int) -> bytes:
        chunks = self._chunks
        allowed = self._older if self._start < self._end else len(chunks)
        if not allowed:
            return b""
        parts = [chunks.popleft()]
        count = len(parts[0])
        while len(parts) < allowed and count + len(chunks[0]) <= most_bytes:
            parts.append(chunks.popleft())
            count += len(parts[-1])
        self._older = max(0, self._older - len(parts))
        self.memory_bytes -= count
        if self._borrowed:
            self._repay()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _repay(self) -> None:
        surplus = self._borrowed - max(0, self._cost() - self._free)
        if surplus > 0:
            self._borrowed -= surplus
            self._store.take_back(surplus)

    def wait_until_empty(self, timeout_s: float | None = None) -> bool:
        """For the writer. Also ends when the spool is abandoned; false when it takes too long."""
        self._emptied.clear()
        return not self.size or self._abandoned or self._emptied.wait(timeout_s)

    def abandon(self) -> None:
        """Nobody reads any more."""
        self._abandoned = True
        self._emptied.set()

    def close(self) -> None:
        """Give everything back; only for a side that knows that the other one has finished."""
        with self._lock:
            self._chunks.clear()
            self.memory_bytes = self._start = self._end = self._older = 0
            self._store.take_back(self._borrowed)
            self._borrowed = 0
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    __del__ = close


def _unnamed_file() -> int:
    fd, name = tempfile.mkstemp(prefix="gateway-")
    Path(name).unlink()
    return fd


class Upload(io.RawIOBase):
    """One request body: received on the loop, read in a thread as `wsgi.input`.

    `wake` resolves a future of the loop from any thread.
    """

    def __init__(
        self,
        receive: Receive,
        store: Store,
        wake: Callable[[asyncio.Future[None]], None],
        *,
        max_bytes: int,
        window_bytes: int,
    ) -> None:
        self._receive, self._store, self._wake = receive, store, wake
        self._max_bytes, self._window_bytes = max_bytes, window_bytes
        self._spool = Spool(store, BODY_FREE_BYTES, BODY_MEMORY_BYTES)
        self._received = 0
        self.complete = False  # all of it is in the spool
        self._error: Exception | None = None  # why the rest will never come
        self._room: asyncio.Future[None] | None = None  # where the loop waits for the reader
        self._arrived = Event()  # where the reader waits for the loop
        self._rest = memoryview(b"")  # of the chunk that is being read

    # On the loop

    async def receive_all(self) -> BinaryIO:
        """The body, when all of it has come: a slow client holds no thread.

        A disk that refuses ends the waiting: then the body is not `complete`, and `pump` must run while it is read.
        Raises BodyTruncated when the client left, RequestEntityTooLarge when it sent too much.
        """
        chunk, last = self._count(await self._receive())
        while self._spool.keep(chunk):
            if last:
                self.complete = True
                small = self._received <= BODY_FREE_BYTES
                return io.BytesIO(self._spool.take(BODY_FREE_BYTES)) if small else self.stream()
            chunk, last = self._count(await self._receive())
        await self._receive_to_disk(chunk, last)
        return self.stream()

    async def _receive_to_disk(self, chunk: bytes, last: bool) -> None:
        batch = bytearray(chunk)
        while True:
            while not last and len(batch) < DISK_WRITE_BYTES:
                chunk, last = self._count(await self._receive())
                batch += chunk
            try:
                await self._store.write(self._spool, batch)
            except OSError as error:
                log.warning("A request body is read while it arrives, for it cannot be spooled: %s", error)
                self._spool.append(bytes(batch))
                break
            if last:
                break
            batch = bytearray()
        self.complete = last

    def stream(self) -> BinaryIO:
        """The body as a file. Unless it is `complete`, `pump` must run while it is read."""
        return io.BufferedReader(self, 64 * KIB)

    async def pump(self) -> bool:
        """Receive the rest, about `window_bytes` ahead of the reader. False when the client left before the end."""
        try:
            while not self.complete:
                await self._wait_for_room()
                chunk, last = self._count(await self._receive())
                self._spool.append(chunk)
                self.complete = last
                self._arrived.set()
        except (BodyTruncated, RequestEntityTooLarge) as error:
            self._error = error
        finally:
            self.abort()
        return not isinstance(self._error, BodyTruncated)

    def abort(self) -> None:
        """Nothing more will come: who reads on gets BodyTruncated, unless the body is complete."""
        if not self.complete and self._error is None:
            self._error = BodyTruncated(f"the request ended after {self._received} bytes of its body")
        self._arrived.set()

    async def _wait_for_room(self) -> None:
        while self._spool.memory_bytes >= self._window_bytes:
            room = self._room = asyncio.get_running_loop().create_future()
            if self._spool.memory_bytes >= self._window_bytes:
                await room

    def _count(self, message: Message) -> tuple[bytes, bool]:
        """The bytes of a message and whether they are the last ones."""
        if message["type"] != "http.request":
            raise BodyTruncated(f"the client left after {self._received} bytes of its request body")
        chunk: bytes = message.get("body", b"")
        self._received += len(chunk)
        if 0 < self._max_bytes < self._received:
            raise RequestEntityTooLarge
        return chunk, not message.get("more_body", False)

    # In the thread

    def release(self) -> None:
        """Nobody reads any more."""
        self.close()
        self._spool.close()

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: "WriteableBuffer") -> int:
        rest = self._rest or memoryview(self._take())
        with memoryview(buffer).cast("B") as view:
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
        self._rest = rest[count:]
        return count

    @override
    def readall(self) -> bytes:
        parts: list[bytes | memoryview] = [self._rest]
        self._rest = memoryview(b"")
        while chunk := self._take():
            parts.append(chunk)
        return b"".join(parts)

    def _take(self) -> bytes:
        while True:
            complete, error = self.complete, self._error  # before looking: afterwards nothing is added any more
            if chunk := self._spool.take():
                self._make_room()
                return chunk
            if error is not None:
                raise error
            if complete:
                return b""
            self._arrived.clear()
            if not (self._spool.size or self.complete or self._error):
                self._arrived.wait()

    def _make_room(self) -> None:
        room = self._room
        if room is not None and self._spool.memory_bytes <= self._window_bytes // 2:
            self._room = None
            self._wake(room)
