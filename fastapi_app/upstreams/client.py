"""The one HTTP client of this process, for everything that is asked on the internet.

httpx's requests and responses, over aiohttp's connections: httpx's own pool searches all connections again and again
and is slower than threads from 30 calls at once on. Origins that need HTTP/2 get httpx's own transport.

Each call passes, in this order: the guard (guard.py), the breaker (breaker.py) and the limiter (limiter.py) of its
origin, and a gate of 100 calls at once. It may take `timeout_s` seconds with its body, half of them until it is
connected; its body is cut off at `max_bytes`. GET and HEAD, which change nothing, follow five redirects and are
repeated twice after 429, 5xx and broken connections, with back-off and jitter, or as `Retry-After` says.
"""

import asyncio
import base64
import errno
import logging
import random
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urljoin

import aiohttp
import httpcore
import httpx
import stamina

from fastapi_app.containment import refuse

from . import body, guard
from .breaker import REST_S, Breaker
from .failures import (
    AddressRefused,
    CircuitOpen,
    NoName,
    NoTrust,
    Refused,
    Timeout,
    TooBusy,
    TooLarge,
    Unavailable,
)
from .limiter import Limiter, Rate
from .wires import Wires

__all__ = ["AddressRefused", "CircuitOpen", "Rate", "Timeout", "TooBusy", "TooLarge", "Unavailable", "UpstreamClient"]

CONNECTIONS = 100
MAX_BYTES = 2_000_000
ATTEMPTS = 3
PATIENCE_S = 2.0  # longer than this `Retry-After` is for the caller to honour
MAX_BACKOFF_S = 5.0
REDIRECTS = 5
MAX_ORIGINS = 1000  # remembered; addresses that users enter are without number

HEADERS = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": "MusicVideos/1.0 (self-hosted video manager)"}
_SAFE = ("GET", "HEAD")
_REDIRECTS = (301, 302, 303, 307, 308)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None
    max_bytes: int
    timeout_s: float
    rate: Rate | None
    breaker: bool
    wires: Wires  # also for its repetitions: none of them goes on in a client that was closed meanwhile


@dataclass(slots=True)
class Origin:
    """What has been seen of one origin since the process began. Every attempt is a call."""

    breaker: Breaker
    calls: int = 0
    failures: int = 0  # no answer, 429 and 5xx
    retries: int = 0
    in_flight: int = 0
    seconds: float = 0.0  # of all calls that have ended
    slowest_s: float = 0.0

    def report(self) -> dict[str, Any]:
        ended = self.calls - self.in_flight
        return {
            "calls": self.calls,
            "failures": self.failures,
            "retries": self.retries,
            "in_flight": self.in_flight,
            "mean_ms": round(self.seconds / ended * 1000, 1) if ended else 0.0,
            "slowest_ms": round(self.slowest_s * 1000, 1),
            "breaker": self.breaker.state,
        }


class _Again(Exception):
    """An answer after which the call may be repeated. `wait_s`: as the answer says; True: as usual."""

    def __init__(self, response: httpx.Response, wait_s: float | bool) -> None:
        super().__init__(response.status_code)
        self.response, self.wait_s = response, wait_s


class UpstreamClient:
    """Make one per process, `aclose` it at the end; nothing is opened before the first call.

    `redis_url` shares the limiter's buckets; `http2`: origins, spoken to in HTTP/2 only. Raises ValueError for
    networks or a Redis URL that are none.
    """

    def __init__(  # noqa: PLR0913 - all have defaults
        self,
        *,
        timeout_s: float = 10.0,
        backoff_s: float = 0.5,
        connections: int = CONNECTIONS,
        allowed_networks: str = "",
        redis_url: str = "",
        http2: Iterable[str] = (),
        rest_s: float = REST_S,
    ) -> None:
        self._timeout_s, self._backoff_s, self._connections, self._rest_s = timeout_s, backoff_s, connections, rest_s
        self._guard, self._limiter = guard.Guard(allowed_networks), Limiter(redis_url)
        self._http2 = frozenset(http2)
        self._wires = self._new_wires()
        self._origins: dict[str, Origin] = {}  # the one used last is the last

    async def request(  # noqa: PLR0913 - as httpx has them
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        form: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        max_bytes: int = MAX_BYTES,
        timeout_s: float | None = None,
        repeat: bool | None = None,
        rate: Rate | None = None,
        breaker: bool = True,
    ) -> httpx.Response:
        """The answer, whatever its status, with its whole body. `max_bytes` 0: the body is not read at all.

        `repeat` says that a call which is not GET or HEAD may be repeated, or that one which is may not; without
        `breaker` the call neither minds the breaker nor counts for it. A header that the caller gives goes to the
        origin of `url` only. Raises Unavailable, or one of its subclasses; PermissionError in a contained request.
        """
        refuse("http", f"{method} {url.partition('?')[0]}")
        if params:
            url += ("&" if "?" in url else "?") + urlencode(params, errors="replace")
        own = {name.lower(): value for name, value in (headers or {}).items()}
        if form is not None:
            content = urlencode(form, errors="replace").encode()
            own["content-type"] = "application/x-www-form-urlencoded"
        if auth is not None:
            own["authorization"] = "Basic " + base64.b64encode(":".join(auth).encode(errors="replace")).decode()
        timeout_s = timeout_s or self._timeout_s
        call = _Call(method, url, HEADERS | own, content, max_bytes, timeout_s, rate, breaker, self._wires)
        repeat = method in _SAFE if repeat is None else repeat
        for _ in range(1 + REDIRECTS):
            response = await (self._repeated(call) if repeat else self._attempt(call))
            if (onward := _redirected(call, response)) is None:
                return response
            call = onward
        raise Unavailable

    def breaker(self, url: str) -> Breaker:
        """The one of the URL's origin."""
        return self._origin(guard.origin(url)).breaker

    def statistics(self) -> dict[str, Any]:
        """Per origin: calls, failures, retries, in_flight, mean_ms, slowest_ms and the state of its breaker."""
        return {
            "connections": self._connections,
            "in_flight": sum(origin.in_flight for origin in self._origins.values()),
            "origins": {name: origin.report() for name, origin in self._origins.items()},
        }

    def forget(self) -> None:
        """All that has been seen, as if the process had just begun. Buckets in Redis stay."""
        self._origins.clear()
        self._limiter.forget()

    async def aclose(self) -> None:
        """Close all connections; calls that are under way fail. The next one opens new ones, in any event loop."""
        wires, self._wires = self._wires, self._new_wires()
        await wires.aclose()
        await self._limiter.aclose()

    async def _repeated(self, call: _Call) -> httpx.Response:
        try:
            return await self._settled(call)
        except (Unavailable, _Again) as error:
            failure = error  # stamina takes longer than all the rest here, so it hears of failures only
        attempts = stamina.retry_context(
            on=_again,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=self._backoff_s,
            wait_jitter=self._backoff_s,
            wait_max=MAX_BACKOFF_S,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.num == 1:
                        raise failure
                    return await self._settled(call, again=True)
        except _Again as last:
            return last.response
        raise AssertionError("stamina gives up by raising")

    async def _settled(self, call: _Call, *, again: bool = False) -> httpx.Response:
        """An answer that is not worth another attempt. Raises _Again with one that is, and Unavailable."""
        response = await self._attempt(call, again=again)
        wait_s = self._wait_after(response)
        if wait_s is not False:
            raise _Again(response, wait_s)
        return response

    def _wait_after(self, response: httpx.Response) -> float | bool:
        """Seconds; True: back off as usual; False: do not repeat."""
        if not _failed(response):
            return False
        asked_s = retry_after(response)
        if asked_s is None:
            return True
        # Jitter, or all who were told the same come back together.
        return asked_s <= PATIENCE_S and asked_s + random.uniform(0, self._backoff_s)  # noqa: S311

    async def _attempt(self, call: _Call, *, again: bool = False) -> httpx.Response:
        name = guard.origin(call.url)
        origin = self._origin(name)
        breaker = origin.breaker if call.breaker else Breaker()
        breaker.check()
        origin.retries += again
        if call.rate is not None:
            await self._limiter.wait(name, call.rate)
        await call.wires.enter(self._timeout_s)
        try:
            return await self._observed(call, name, origin, breaker)
        finally:
            call.wires.leave()

    async def _observed(self, call: _Call, name: str, origin: Origin, breaker: Breaker) -> httpx.Response:
        pass_number, well, began = breaker.enter(), None, time.monotonic()
        origin.calls += 1
        origin.in_flight += 1
        try:
            response = await self._exchange(call, name)
            if not (well := not _failed(response)):
                logger.warning("%s: %d", name, response.status_code)
        except AddressRefused:
            raise
        except Unavailable as error:
            well = isinstance(error, TooLarge)  # it answers
            raise
        finally:
            took_s = time.monotonic() - began
            breaker.leave(pass_number, well)
            origin.in_flight -= 1
            origin.failures += well is False
            origin.seconds += took_s
            origin.slowest_s = max(origin.slowest_s, took_s)
        return response

    async def _exchange(self, call: _Call, origin: str) -> httpx.Response:
        transport = await call.wires.transport(origin)
        connect_s = call.timeout_s / 2
        limits = {"connect": connect_s, "pool": connect_s, "read": call.timeout_s, "write": call.timeout_s}
        try:
            async with asyncio.timeout(call.timeout_s):
                request = httpx.Request(
                    call.method, call.url, headers=call.headers, content=call.content, extensions={"timeout": limits}
                )
                response = await transport.handle_async_request(request)
                await body.read(response, call.max_bytes)
        except TimeoutError:
            logger.warning("%s: no answer within %g s", origin, call.timeout_s)
            raise Timeout from None
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            logger.warning("%s: %s", origin, type(error.__cause__ or error).__name__)
            raise _failure(error) from None
        return response

    def _new_wires(self) -> Wires:
        return Wires(self._guard, self._http2, self._connections)

    def _origin(self, name: str) -> Origin:
        origin = self._origins.pop(name, None) or Origin(Breaker(rest_s=self._rest_s))
        self._origins[name] = origin
        if len(self._origins) > MAX_ORIGINS:
            del self._origins[next(iter(self._origins))]
        return origin


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, 0 at least; None when the answer says nothing that could be understood."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:10])
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _again(error: Exception) -> bool | float:
    """Whether and when to repeat, for stamina."""
    if isinstance(error, _Again):
        return error.wait_s
    refused = (AddressRefused, CircuitOpen, TooBusy, TooLarge)
    return isinstance(error, Unavailable) and not isinstance(error, refused)


def _failed(response: httpx.Response) -> bool:
    """4xx other than 429 are answers: what is missing says nothing about the others."""
    return response.status_code >= 500 or response.status_code == 429


def _redirected(call: _Call, response: httpx.Response) -> _Call | None:
    """The call that a redirect asks for. Keys and other headers of the caller do not go to another origin."""
    if call.method not in _SAFE or response.status_code not in _REDIRECTS or "location" not in response.headers:
        return None
    try:
        url = urljoin(call.url, response.headers["location"])
    except ValueError:
        raise AddressRefused from None
    if guard.origin(url) == guard.origin(call.url):
        return replace(call, url=url)
    return replace(call, url=url, headers=HEADERS, rate=None)


def _failure(error: Exception) -> Unavailable:
    cause = error.__cause__ or error
    if isinstance(cause, TimeoutError | httpcore.TimeoutException):
        return Timeout()
    if getattr(cause, "errno", None) == errno.EACCES or isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return AddressRefused()
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        return NoName()
    if isinstance(cause, aiohttp.ClientSSLError):
        return NoTrust()
    return Refused() if getattr(cause, "errno", None) == errno.ECONNREFUSED else Unavailable()
