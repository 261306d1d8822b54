"""httpx's transport over aiohttp's connections, each of which passes the guard."""

import ssl
from typing import Any, cast

import aiohttp
from httpx_aiohttp import AiohttpTransport
from typing_extensions import override
from yarl import URL

from .guard import Guard

IDLE_S = 15.0  # aiohttp cannot keep just so many connections; unused ones go after this time


class Http1Transport(AiohttpTransport):
    """No limit of its own, no cookies, no proxies of the environment."""

    def __init__(self, guard: Guard, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls)
        connector = aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=IDLE_S, socket_factory=guard.socket)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    @override
    def get_client(self) -> aiohttp.ClientSession:
        return cast(aiohttp.ClientSession, _Verbatim(self._session))

    @override
    async def aclose(self) -> None:
        await self._session.close()


class _Verbatim:
    """URLs as they are. aiohttp would write `%2F` as `/` in a query, and what was signed would be signed no more."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def request(self, *, url: str, **options: Any) -> Any:
        return self._session.request(url=URL(url, encoded=True), **options)
