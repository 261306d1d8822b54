"""The connections of a client: what belongs to one event loop and must be closed in it."""

import asyncio
import ssl

import httpx

from .failures import TooBusy, Unavailable
from .guard import Guard
from .http1 import Http1Transport
from .http2 import Http2Transport


class Wires:
    """So many calls at once, over transports that are opened when they are first needed, and once closed stay so."""

    def __init__(self, guard: Guard, http2: frozenset[str], connections: int) -> None:
        self._guard, self._http2, self._gate = guard, http2, asyncio.Semaphore(connections)
        self._opening, self._closed = asyncio.Lock(), False
        self._transports: dict[bool, Http1Transport | Http2Transport] = {}  # by whether they speak HTTP/2

    async def enter(self, timeout_s: float) -> None:
        """Waits for a turn; first come, first served. Raises TooBusy when it does not come in time."""
        try:
            if self._gate.locked():
                async with asyncio.timeout(timeout_s):
                    await self._gate.acquire()
            else:
                await self._gate.acquire()
        except TimeoutError:
            raise TooBusy from None

    def leave(self) -> None:
        self._gate.release()

    async def transport(self, origin: str) -> httpx.AsyncBaseTransport:
        """Raises Unavailable when all is closed."""
        http2 = origin in self._http2
        if (known := self._transports.get(http2)) and not self._closed:
            return known
        async with self._opening:
            if http2 not in self._transports and not self._closed:
                # One context for each: httpx changes it. To read all certificates takes 20 ms.
                tls = await asyncio.to_thread(httpx.create_ssl_context)
                self._transports[http2] = self._made(http2, tls)
            if self._closed:
                raise Unavailable
            return self._transports[http2]

    async def aclose(self) -> None:
        self._closed = True
        async with self._opening:
            for transport in self._transports.values():
                await transport.aclose()

    def _made(self, http2: bool, tls: ssl.SSLContext) -> Http1Transport | Http2Transport:
        return Http2Transport(self._guard, tls) if http2 else Http1Transport(self._guard, tls)
