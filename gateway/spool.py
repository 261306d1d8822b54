"""Where bytes wait for a slower side: in memory while there is room, then in a file without a name."""

import asyncio
import io
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, BinaryIO

from starlette.types import Message, Receive
from typing_extensions import override
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from .errors import GatewayError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

KIB, MIB = 1024, 1024 * 1024
CHUNK_BYTES = 64  # what a bytes object costs besides its content: a body of single bytes must not cost forty bodies
BORROW_BYTES = 256 * KIB  # at once
DISK_READ_BYTES = 256 * KIB
DISK_WRITE_BYTES = 1 * MIB
BODY_FREE_BYTES = 256 * KIB  # of one request body in memory, always
BODY_MEMORY_BYTES = 16 * MIB  # of one request body in memory, at most

log = logging.getLogger(__name__)


class BodyTruncated(GatewayError, ClientDisconnected, OSError):  # Flask answers 400, plain WSGI code sees an OSError
    """Raised by `wsgi.input` when the client left before the end of the body it announced."""


class Gate:
    """Where one thread waits for the loop: an Event that costs nothing until somebody waits."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: Lock | None = None

    def wait(self, ready: Callable[[], object], timeout_s: float | None = None) -> bool:
        """Until it is `ready` or opened; false when that takes too long."""
        waiter = self._waiter = Lock()
        waiter.acquire()
        return bool(ready()) or waiter.acquire(timeout=-1 if timeout_s is None else timeout_s)

    def open(self) -> None:
        """To be called after what `ready` looks at has changed: who begins to wait now will see it."""
        waiter = self._waiter
        if waiter is not None and waiter.locked():
            with suppress(RuntimeError):  # somebody else has opened it at the same moment
                waiter.release()


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
        self._emptied = Gate()  # where the writer waits for the reader
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
            if self._start < self._end:
                return False
            cost = self.memory_bytes + len(chunk) + CHUNK_BYTES * (len(self._chunks) + 1)
            if cost > self._free + self._borrowed and self._chunks and not self._borrow(cost):
                return False
            self._chunks.append(chunk)
            self.memory_bytes += len(chunk)
            return True

    def _borrow(self, cost: int) -> bool:
        granted = self._free + self._borrowed
        count = min(max(cost - granted, BORROW_BYTES), self._most - granted)
        if cost > self._most or not self._store.lend(count):
            return False
        self._borrowed += count
        return True

    def append(self, chunk: bytes) -> None:
        """Add to memory whatever it costs, for a writer who has an eye on `memory_bytes` himself."""
        with self._lock:
            self._chunks.append(chunk)
            self.memory_bytes += len(chunk)

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
        if self.on_disk:
            data = os.pread(self._fd, min(self._end - self._start, DISK_READ_BYTES), self._start)
            if not data:
                raise OSError("the file became shorter while it was read")
            self._start += len(data)
        else:
            with self._lock:
                data = self._pop(most_bytes)
        if not self.size:
            self._emptied.open()
        return data

    def _pop(self, most_bytes: int) -> bytes:
        chunks = self._chunks
        allowed = self._older if self._start < self._end else len(chunks)
        if not allowed:
            return b""
        data = chunks.popleft()
        count, taken = len(data), 1
        if allowed > 1 and count + len(chunks[0]) <= most_bytes:
            parts = [data]
            while taken < allowed and count + len(chunks[0]) <= most_bytes:
                parts.append(chunks.popleft())
                count += len(parts[-1])
                taken += 1
            data = b"".join(parts)
        self._older = max(0, self._older - taken)
        self.memory_bytes -= count
        if self._borrowed and not chunks:
            self._store.take_back(self._borrowed)
            self._borrowed = 0
        return data

    def wait_until_empty(self, timeout_s: float | None = None) -> bool:
        """For the writer. Also ends when the spool is abandoned; false when it takes too long."""
        return self._emptied.wait(lambda: not self.size or self._abandoned, timeout_s)

    def abandon(self) -> None:
        """Nobody reads any more."""
        self._abandoned = True
        self._emptied.open()

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
        self._arrived = Gate()  # where the reader waits for the loop
        self._rest = memoryview(b"")  # of the chunk that is being read

    # On the loop

    async def receive_all(self, message: Message) -> BinaryIO:
        """The body that begins with `message`, when all of it has come: a slow client holds no thread.

        A disk that refuses ends the waiting: then the body is not `complete`, and `pump` must run while it is read.
        Raises BodyTruncated when the client left, RequestEntityTooLarge when it sent too much.
        """
        chunk, last = self._count(message)
        while not chunk or self._spool.keep(chunk):
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
                if chunk:
                    self._spool.append(chunk)
                self.complete = last
                self._arrived.open()
        except (BodyTruncated, RequestEntityTooLarge) as error:
            self._error = error
        finally:
            self.abort()
        return not isinstance(self._error, BodyTruncated)

    def abort(self) -> None:
        """Nothing more will come: who reads on gets BodyTruncated, unless the body is complete."""
        if not self.complete and self._error is None:
            self._error = BodyTruncated(f"the request ended after {self._received} bytes of its body")
        self._arrived.open()

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
            self._arrived.wait(lambda: self._spool.size or self.complete or self._error)

    def _make_room(self) -> None:
        room = self._room
        if room is not None and self._spool.memory_bytes <= self._window_bytes // 2:
            self._room = None
            self._wake(room)
