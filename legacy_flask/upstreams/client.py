"""Asking the internet: a service by its settings, an address that a user gave, the target of a webhook.

Each call passes the guard, the breaker and the limiter of its origin. It may take about `timeout_s` seconds, half of
them until it is connected; its body is cut off at `max_bytes`. GET follows five redirects and is repeated twice after
429, 5xx and broken connections, with back-off and jitter, or as `Retry-After` says.
"""

import json
import logging
import os
import random
import socket
import ssl
import time
import zlib
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from flask import current_app
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError

from ..settings import DEFAULTS, as_number
from . import errors
from .breaker import REST_S, Breaker
from .errors import Service
from .failures import AddressRefused, CircuitOpen, NoName, NoTrust, Refused, Timeout, TooBusy, TooLarge, Unavailable
from .guard import Guard, origin
from .limiter import Limiter

MAX_BYTES = 2_000_000
ATTEMPTS = 3
PATIENCE_S = 2.0  # longer than this `Retry-After` is for the caller to honour
MAX_BACKOFF_S = 5.0
REDIRECTS = 5
MAX_ORIGINS = 1000  # remembered; addresses that users enter are without number
MAX_WAIT_S = 3600  # that a client is told
CHUNK = 65_536

HEADERS = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "MusicVideos/1.0 (self-hosted video manager)"}
QUOTA = {"quotaExceeded", "dailyLimitExceeded"}
HIDDEN = {"playlistItemsNotAccessible"}
BAD_KEY = {"keyInvalid", "API_KEY_INVALID", "invalid_client"}  # YouTube and Spotify say it with 400

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """What was asked for was not to be had; the text is a sentence for people and names no address."""


class Answer(NamedTuple):
    """`headers` may be asked for in any case; `body` is whole."""

    status: int
    headers: dict
    body: bytes

    @property
    def failed(self) -> bool:
        """4xx other than 429 are answers: what is missing says nothing about the others."""
        return self.status >= 500 or self.status == 429


class Call(NamedTuple):
    method: str
    url: str
    headers: dict
    content: bytes | dict | None
    auth: tuple | None
    max_bytes: int
    timeout_s: float
    per_second: float
    breaker: bool


class Upstream:
    """What a process knows of the internet; used by all its threads."""

    def __init__(
        self,
        *,
        timeout_s: float = 10.0,
        backoff_s: float = 0.5,
        allowed_networks: str = "",
        redis_url: str = "",
        rest_s: float = REST_S,
    ) -> None:
        """Raises ValueError for networks or a Redis URL that are none."""
        self.timeout_s, self.backoff_s, self.rest_s = timeout_s, backoff_s, rest_s
        self.limiter = Limiter(redis_url)
        self.adapter = GuardedAdapter(Guard(allowed_networks))
        self.breakers: dict[str, Breaker] = {}  # the one used last is the last
        self.lock = Lock()

    def request(
        self,
        method: str,
        url: str,
        *,
        params: dict | None = None,
        headers: dict | None = None,
        content: bytes | dict | None = None,
        auth: tuple | None = None,
        max_bytes: int = MAX_BYTES,
        timeout_s: float | None = None,
        repeat: bool | None = None,
        per_second: float = 0,
        breaker: bool = True,
    ) -> Answer:
        """The answer, whatever its status. A dict as `content` is a form; `max_bytes` 0: the body is not read.

        `repeat` says that a call other than GET may be repeated; without `breaker` the call neither minds the breaker
        nor counts for it. A header that the caller gives goes to the origin of `url` only. Raises Unavailable, or one
        of its subclasses.
        """
        if params:
            url += ("&" if "?" in url else "?") + urlencode(params, errors="replace")
        timeout_s = timeout_s or self.timeout_s
        call = Call(method, url, HEADERS | (headers or {}), content, auth, max_bytes, timeout_s, per_second, breaker)
        attempts = ATTEMPTS if (method == "GET" if repeat is None else repeat) else 1
        for _ in range(1 + REDIRECTS):
            answer = self.repeated(call, attempts)
            location = answer.headers.get("Location")
            if method != "GET" or answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            call = redirected(call, location)
        raise Unavailable

    def repeated(self, call: Call, attempts: int) -> Answer:
        for number in range(1, attempts + 1):
            pause_s = min(MAX_BACKOFF_S, self.backoff_s * 2 ** (number - 1) + random.uniform(0, self.backoff_s))
            try:
                answer = self.attempt(call)
            except (AddressRefused, CircuitOpen, TooBusy, TooLarge):
                raise
            except Unavailable:
                if number == attempts:
                    raise
            else:
                wait_s = retry_after(answer)
                if not answer.failed or number == attempts or (wait_s or 0) > PATIENCE_S:
                    return answer
                if wait_s is not None:  # jitter, or all who were told the same come back together
                    pause_s = wait_s + random.uniform(0, self.backoff_s)
            time.sleep(pause_s)

    def attempt(self, call: Call) -> Answer:
        name = origin(call.url)
        breaker = self.breaker(call.url) if call.breaker else Breaker()
        breaker.check()
        if call.per_second:
            self.limiter.wait(name, call.per_second)
        pass_number, well = breaker.enter(), None
        try:
            answer = self.exchange(call, name)
            well = not answer.failed
            if not well:
                logger.warning("%s: %d", name, answer.status)
        except AddressRefused:
            raise
        except Unavailable as error:
            well = isinstance(error, TooLarge)  # it answers
            raise
        finally:
            breaker.leave(pass_number, well)
        return answer

    def exchange(self, call: Call, name: str) -> Answer:
        deadline = time.monotonic() + call.timeout_s
        auth = HTTPBasicAuth(*(part.encode(errors="replace") for part in call.auth)) if call.auth else None
        try:
            request = requests.Request(call.method, call.url, call.headers, data=call.content, auth=auth).prepare()
            limits = (call.timeout_s / 2, call.timeout_s)
            verify = os.environ.get("SSL_CERT_FILE") or True
            response = self.adapter.send(request, stream=True, timeout=limits, verify=verify)
            try:
                body = read(response.raw, call.max_bytes, deadline)
            finally:
                response.close()
        except Unavailable as error:
            logger.warning("%s: %s", name, error)
            raise
        except (requests.Timeout, ReadTimeoutError, TimeoutError):
            logger.warning("%s: no answer within %g s", name, call.timeout_s)
            raise Timeout from None
        except requests.exceptions.InvalidURL:
            raise AddressRefused from None
        except (requests.RequestException, HTTPError, OSError, ValueError, zlib.error) as error:
            logger.warning("%s: %s", name, type(error).__name__)
            raise failure(error) from None
        return Answer(response.status_code, response.headers, body)

    def breaker(self, url: str) -> Breaker:
        """The one of the URL's origin."""
        name = origin(url)
        with self.lock:
            breaker = self.breakers[name] = self.breakers.pop(name, None) or Breaker(rest_s=self.rest_s)
            if len(self.breakers) > MAX_ORIGINS:
                del self.breakers[next(iter(self.breakers))]
        return breaker

    def forget(self) -> None:
        """All that has been seen, as if the process had just begun. Buckets in Redis stay."""
        with self.lock:
            self.breakers.clear()
        self.limiter.forget()

    def close(self) -> None:
        self.adapter.close()
        self.limiter.close()


class GuardedAdapter(HTTPAdapter):
    """Connects only to addresses that the guard has checked, and to no other of the same name."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        super().__init__(pool_connections=20, pool_maxsize=100)

    def init_poolmanager(self, *args, **kwargs) -> None:
        super().init_poolmanager(*args, **kwargs)
        pools = {"http": (HTTPConnectionPool, HTTPConnection), "https": (HTTPSConnectionPool, HTTPSConnection)}
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": guarded(connection, self.guard)})
            for scheme, (pool, connection) in pools.items()
        }


def guarded(connection: type, guard: Guard) -> type:
    class GuardedConnection(connection):
        def _new_conn(self):
            name, failure = self._dns_host, None
            try:
                for address in guard.addresses(name, self.port):
                    self._dns_host = address
                    try:
                        return super()._new_conn()
                    except NewConnectionError as error:
                        failure = error
            finally:
                self._dns_host = name
            raise failure

    return GuardedConnection


def failure(error: BaseException) -> Unavailable:
    """What is behind an error that has been wrapped again and again."""
    while error is not None:
        for kind, meaning in ((socket.gaierror, NoName), (ssl.SSLError, NoTrust), (ConnectionRefusedError, Refused)):
            if isinstance(error, kind):
                return meaning()
        error = error.__cause__ or error.__context__
    return Unavailable()


def redirected(call: Call, location: str) -> Call:
    """Keys and other headers of the caller do not go to another origin."""
    try:
        url = urljoin(call.url, location)
    except ValueError:
        raise AddressRefused from None
    if origin(url) == origin(call.url):
        return call._replace(url=url)
    return call._replace(url=url, headers=HEADERS, auth=None, per_second=0)


def read(raw, max_bytes: int, deadline: float) -> bytes:
    """The body as it was before its transport; never unpacks more than `max_bytes`. Raises Unavailable."""
    body = b""
    if not max_bytes:
        return body
    coding = raw.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip", ""):
        raise Unavailable
    unpacked = None
    while chunk := raw.read1(CHUNK, decode_content=False):
        if "gzip" in coding:
            unpacked = unpacked or zlib.decompressobj(zlib.MAX_WBITS | 16)
            chunk = unpacked.decompress(chunk, max_bytes + 1 - len(body))
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge
        if time.monotonic() > deadline:
            raise Timeout
    if unpacked and not unpacked.eof:
        raise Unavailable
    return body


def retry_after(answer: Answer) -> float | None:
    """Seconds, 0 at least; None when the answer says nothing that could be understood."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:10])
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


# --- what the rest of the application calls


def request(method: str, url: str, **options) -> Answer:
    """As `Upstream.request`."""
    return current_app.extensions["upstream"].request(method, url, **options)


def ask(
    service: Service,
    texts: dict[str, str],
    path: str,
    *,
    params: dict | None = None,
    headers: dict | None = None,
    form: dict | None = None,
    auth: tuple | None = None,
    what: str = "",
) -> dict:
    """The JSON object that the service answers; a POST when there is a form, which may be repeated as a GET may.

    `path` follows the address in the settings, or is a whole address of the same origin. `what` names what a 404 means:
    "Artist". Without it a 404 means that the service is not there. Raises ApiError 400, 404, 429, 502.
    """
    headers = {name: value.strip() for name, value in (headers or {}).items()}
    if any(not value.isprintable() or not value.isascii() for value in headers.values()):
        raise errors.key_refused(service)  # no header can carry it
    try:
        answer = request(
            "GET" if form is None else "POST",
            address(service, texts, path),
            params=params,
            headers=headers,
            content=form,
            auth=auth,
            repeat=True,
            per_second=rate(service, texts),
        )
    except TooLarge:
        raise errors.nonsense(service) from None
    except Unavailable:
        raise errors.unavailable(service) from None
    if answer.status // 100 != 2:
        raise refusal(service, answer, what)
    return parsed(service, answer.body)


def fetch(url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The body of a 200, at most `max_bytes` long. Raises Unreachable."""
    try:
        answer = request("GET", url, max_bytes=max_bytes)
    except Unavailable as error:
        raise Unreachable(str(error)) from None
    if answer.status != 200:
        raise Unreachable(f"It answered {answer.status}")
    return answer.body


def post(url: str, content: bytes, headers: dict, timeout_s: float | None = None) -> tuple[int, int]:
    """The status, whatever it is, and the milliseconds it took. Never repeated or redirected. Raises Unreachable.

    It does not count for the breaker: targets of many share one origin.
    """
    began = time.monotonic()
    try:
        answer = request("POST", url, content=content, headers=headers, max_bytes=0, timeout_s=timeout_s, breaker=False)
    except Unavailable as error:
        raise Unreachable(str(error)) from None
    return answer.status, round((time.monotonic() - began) * 1000)


def address(service: Service, texts: dict[str, str], path: str) -> str:
    """Raises Unavailable for an address in the settings that is none, ApiError when the service leads elsewhere."""
    base = texts[f"{service.key}_url"].strip()
    if urlsplit(path).scheme not in ("http", "https"):
        return base if not path else f"{base.rstrip('/')}/{path.lstrip('/')}"
    own = [text.strip() for key, text in texts.items() if key.startswith(service.key) and key.endswith("_url")]
    if origin(path) not in map(origin, own):
        raise errors.nonsense(service)
    return path


def rate(service: Service, texts: dict[str, str]) -> float:
    key = f"{service.key}_per_second"
    per_second = as_number(texts[key], float(DEFAULTS[key]))
    return max(per_second, 0.001) if per_second else 0


def refusal(service: Service, answer: Answer, what: str) -> Exception:
    status, reasons = answer.status, reasons_in(answer.body)
    if status == 403 and reasons & QUOTA:
        return errors.quota_used_up(service)
    if what and (status == 404 or (status == 403 and reasons & HIDDEN)):
        return errors.not_found(service, what)
    if status in (401, 403) or (status == 400 and reasons & BAD_KEY):
        return errors.key_refused(service, status)
    if status == 429:
        wait_s = retry_after(answer)
        return errors.asked_to_wait(service, 1 if wait_s is None else min(max(round(wait_s), 1), MAX_WAIT_S))
    return errors.unavailable(service)


def parsed(service: Service, body: bytes) -> dict:
    try:
        value = json.loads(body, parse_constant=no_number)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be stored
    except (ValueError, RecursionError):
        raise errors.nonsense(service) from None
    if not isinstance(value, dict):
        raise errors.nonsense(service)
    return value


def no_number(name: str):
    raise ValueError(name)


def reasons_in(body: bytes) -> set[str]:
    """Of an error in Google's words: `{"error": {"errors": [{"reason": …}], "details": [{"reason": …}]}}`, or in
    OAuth's: `{"error": …}`."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, str):
            return {error}
        found = [*error.get("errors", []), *error.get("details", [])]
        return {str(entry.get("reason")) for entry in found}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return set()
