"""The worker's end: hands exchanges to the process that replays, once their clients have their last byte."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from gateway.model import Outcome
from gateway.settings import Settings

from .frames import pack
from .strikes import Strikes
from .tape import Exchange

NAME = "shadow.sock"
ROUND_S = 0.02  # between two rounds: a burst costs one wake-up, and the network gets the time to deliver
RETRY_S = 0.5  # between attempts to connect

_LARGE_ONES = 8  # bodies of the largest size that a queue holds
_MAX_ADDRESS_BYTES = 107  # of a unix socket

log = logging.getLogger(__name__)

Unsent = Callable[[], int]  # bytes that a client has not taken yet; negative when it never will


class Counts(Protocol):
    """Where outcomes are noted: `Verdicts`."""

    def count(self, key: str, outcome: Outcome) -> None: ...


class Shadow:
    """A bounded queue and one task. Whatever goes wrong here is an outcome, never an error of a request."""

    def __init__(self, settings: Settings, state: Path, verdicts: Counts) -> None:
        self._settings, self._state, self._verdicts = settings, state, verdicts
        self._strikes = Strikes(state)
        self._queue: deque[tuple[Exchange, Unsent]] = deque()
        self._bytes = 0  # of the bodies in it
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._connect_at = 0.0

    def start(self) -> None:
        """Begin to hand over, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Forget what has not been handed over."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._hang_up()
        while self._queue:
            self.skip(self._queue.popleft()[0].key, Outcome.SHED)

    def wants(self, key: str) -> bool:
        """Whether a request is worth recording; counts those that are not."""
        if not self._full() and key not in self._strikes.suspended():
            return True
        self.skip(key, Outcome.SHED)
        return False

    def skip(self, key: str, outcome: Outcome) -> None:
        """Note that a request is not replayed."""
        self._verdicts.count(key, outcome)

    def submit(self, exchange: Exchange, unsent: Unsent = int) -> None:
        """Hand over an exchange as soon as `unsent()` is 0. Never blocks, never raises."""
        try:
            left = unsent()
        except Exception:  # noqa: BLE001  # a connection in a state that nobody thought of
            self.skip(exchange.key, Outcome.BROKEN)
            return
        if left < 0:
            return  # its client has left without the answer
        if self._full():
            self.skip(exchange.key, Outcome.SHED)
            return
        self._put(exchange, unsent if left else int)  # once delivered is delivered: many clients hang up then
        self._bell.set()

    def _full(self) -> bool:
        most_bytes = _LARGE_ONES * self._settings.shadow_body_bytes
        return len(self._queue) >= self._settings.shadow_queue or self._bytes >= most_bytes

    async def _run(self) -> None:
        while True:
            await self._bell.wait()
            await asyncio.sleep(ROUND_S)
            for _ in range(len(self._queue)):
                exchange, unsent = self._queue.popleft()
                self._bytes -= _size(exchange)
                try:
                    await self._consider(exchange, unsent)
                except Exception as error:  # noqa: BLE001  # an exchange that cannot be written down, or our own fault
                    log.debug("shadow: %s: %s", exchange.key, error)
                    self.skip(exchange.key, Outcome.BROKEN)
                await asyncio.sleep(0)  # requests come first
            if not self._queue:
                self._bell.clear()

    async def _consider(self, exchange: Exchange, unsent: Unsent) -> None:
        """Hand over what has been delivered; wait for a slow reader, but not longer than an exchange is fresh."""
        left = unsent()
        if left == 0:
            await self._hand_over(exchange)
        elif left > 0 and time.time() - exchange.at < self._settings.shadow_timeout_s:
            self._put(exchange, unsent)
        elif left > 0:
            self.skip(exchange.key, Outcome.SHED)

    def _put(self, exchange: Exchange, unsent: Unsent) -> None:
        self._queue.append((exchange, unsent))
        self._bytes += _size(exchange)

    async def _hand_over(self, exchange: Exchange) -> None:
        try:
            writer = await self._connected()
            writer.writelines(pack(exchange))
            await writer.drain()
        except OSError:
            self._hang_up()
            self.skip(exchange.key, Outcome.SHED)

    async def _connected(self) -> asyncio.StreamWriter:
        """Raises OSError while there is nobody to talk to."""
        if self._link and (self._link[0].at_eof() or self._link[1].is_closing()):  # closed, or reset
            self._hang_up()
        if self._link is None:
            now = time.monotonic()
            if now < self._connect_at:
                raise ConnectionRefusedError
            self._connect_at = now + RETRY_S
            with address(self._state) as path:
                self._link = await asyncio.open_unix_connection(path)
        return self._link[1]

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link[1].close()
            self._link = None


def _size(exchange: Exchange) -> int:
    return len(exchange.body) + len(exchange.control.body)


@contextmanager
def address(state: Path) -> Iterator[str]:
    """The path of the socket, short enough for the kernel however deep `state` lies."""
    path = str(state / NAME)
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        yield path
        return
    directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)
