"""httpx's own transport, HTTP/2 only, for origins that need it; its connections pass the guard, too."""

import asyncio
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx
from typing_extensions import override

from .failures import AddressRefused
from .guard import Guard

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=15)


class Http2Transport(httpx.AsyncHTTPTransport):
    """HTTP/2 over TLS, or with prior knowledge where the URL says http."""

    def __init__(self, guard: Guard, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=LIMITS.max_connections,
            max_keepalive_connections=LIMITS.max_keepalive_connections,
            keepalive_expiry=LIMITS.keepalive_expiry,
            http1=False,
            http2=True,
            network_backend=_GuardedNetwork(guard),
        )


class _GuardedNetwork(httpcore.AnyIOBackend):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to the first address that answers, of those that are allowed."""
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = [address for answer in answers if self._guard.allows(address := str(answer[4][0]))]
        if not addresses:
            raise AddressRefused
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
