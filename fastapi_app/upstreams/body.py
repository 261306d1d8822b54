"""The body of an answer, read up to a limit. What httpx unpacks by itself has none: 16 KB may become 16 MB."""

import zlib
from collections.abc import AsyncIterator
from typing import cast

import httpx
from typing_extensions import override

from .failures import TooLarge


async def read(response: httpx.Response, max_bytes: int) -> None:
    """Read it and close the response, whatever happens; 0 reads nothing at all.

    Raises TooLarge, httpx.HTTPError and zlib.error.
    """
    coding = response.headers.pop("content-encoding", "").strip().lower()  # httpx unpacks nothing then
    response.stream = _Bounded(cast("httpx.AsyncByteStream", response.stream), coding, max_bytes)
    try:
        await response.aread()
    finally:
        await response.aclose()


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, packed: httpx.AsyncByteStream, coding: str, max_bytes: int) -> None:
        self._packed, self._coding, self._left = packed, coding, max_bytes

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._left:
            return
        if self._coding not in ("", "identity", "gzip", "x-gzip"):
            raise httpx.DecodingError("not asked for")
        unpacked = None
        async for chunk in self._packed:
            if "gzip" in self._coding:
                unpacked = unpacked or zlib.decompressobj(zlib.MAX_WBITS | 16)
            part = unpacked.decompress(chunk, self._left + 1) if unpacked else chunk
            self._left -= len(part)
            if self._left < 0:
                raise TooLarge
            yield part
        if unpacked and not unpacked.eof:
            raise httpx.DecodingError("cut off")

    @override
    async def aclose(self) -> None:
        await self._packed.aclose()
