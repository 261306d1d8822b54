"""Downloads in processes of their own: orders to them, and what they tell. What they do is in `fetch`."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import CancelScope

from .files import off_loop

CHUNK = 64 * 1024  # bytes read at once

_PROGRAM = [sys.executable, "-P", str(Path(__file__).with_name("nursery.py"))]
_INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")  # no secrets


class Fetchers:
    """The children of one nursery, which begins with the first of them or before, and serves those who forked, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nursery: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def begin(self) -> None:
        """Have a nursery, which ends with the last process that knows it. Raises OSError."""
        with self._lock:
            if self._orders is None:
                self._begin()

    def end(self) -> None:
        """Kill what is there. Blocks."""
        with self._lock:
            self._end()

    async def fetch(self, order: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """What a child tells about this order; it ends when no process of the child is left.

        Closing the generator kills them. Raises OSError when no child can be had, ValueError for what is not JSON.
        """
        order_read, order_write = os.pipe()
        told_read, told_write = os.pipe()
        os.set_blocking(told_read, False)
        try:
            forking = asyncio.create_task(off_loop(self._fork, order_read, told_write))
            try:
                await asyncio.shield(forking)
            finally:
                await asyncio.wait([forking])  # also when nobody wants it any more: it sends what is closed here
                os.close(order_read)
                os.close(told_write)
            with suppress(BrokenPipeError):  # then nothing will be told
                os.write(order_write, json.dumps(dict(order)).encode() + b"\n")  # blocks: no, a pipe takes 64 KB
            rest = b""
            while chunk := await _read(told_read):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
        finally:
            os.close(order_write)
            with CancelScope(shield=True):
                while await _read(told_read):
                    pass
            os.close(told_read)

    def _fork(self, order: int, told: int) -> None:
        with self._lock:
            if self._orders is None:
                self._begin()
            try:
                self._send(order, told)
            except OSError:  # somebody killed it
                self._begin()
                self._send(order, told)

    def _send(self, *pipes: int) -> None:
        if self._orders is not None:
            socket.send_fds(self._orders, [b"+"], pipes)

    def _begin(self) -> None:
        """In a session of its own: who kills our group does not kill it before its children."""
        self._end()
        self._orders, theirs = socket.socketpair()
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        with theirs:
            self._nursery = subprocess.Popen(_PROGRAM, stdin=theirs.fileno(), env=env, start_new_session=True)

    def _end(self) -> None:
        if self._orders is not None and self._nursery is not None:
            self._orders.close()
            self._nursery.wait()  # at once when it is the child of another process
        self._orders = self._nursery = None


async def _read(pipe: int) -> bytes:
    """The loop's own transports are not used, see `commands`."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
    return os.read(pipe, CHUNK)  # blocks: no, it is readable


shared = Fetchers()  # of this process and those that it forks
