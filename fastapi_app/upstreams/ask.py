"""Asking a service by its settings, fetching from an address that a user gave, and posting to one."""

import json
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx

from fastapi_app.settings import DEFAULTS, as_number

from . import errors
from .client import MAX_BYTES, Rate, TooLarge, Unavailable, UpstreamClient, retry_after
from .errors import Service
from .guard import origin

MAX_WAIT_S = 3600  # that a client is told
_QUOTA = {"quotaExceeded", "dailyLimitExceeded"}
_HIDDEN = {"playlistItemsNotAccessible"}
_BAD_KEY = {"keyInvalid", "API_KEY_INVALID", "invalid_client"}  # YouTube and Spotify say it with 400


class Unreachable(Exception):
    """What was asked for was not to be had; the text is a sentence for people and names no address."""


async def ask(  # noqa: PLR0913 - a call has all these
    client: UpstreamClient,
    service: Service,
    texts: Mapping[str, str],
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
    what: str = "",
) -> dict[str, Any]:
    """The JSON object that the service answers; a POST when there is a form, which may be repeated as a GET may.

    `path` follows the address in the settings, or is a whole address of the same origin. `what` names what a 404 means:
    "Artist". Without it a 404 means that the service is not there. Raises ApiError 400, 404, 429, 502.
    """
    headers = {name: value.strip() for name, value in (headers or {}).items()}
    if any(not value.isprintable() or not value.isascii() for value in headers.values()):
        raise errors.key_refused(service)  # no header can carry it
    try:
        response = await client.request(
            "GET" if form is None else "POST",
            _address(service, texts, path),
            params=params,
            headers=headers,
            form=form,
            auth=auth,
            repeat=True,
            rate=_rate(service, texts),
        )
    except TooLarge:
        raise errors.nonsense(service) from None
    except Unavailable:
        raise errors.unavailable(service) from None
    if response.status_code // 100 != 2:
        _refused(service, response, what)
    return _object(service, response.content)


async def fetch(client: UpstreamClient, url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The body of a 200, at most `max_bytes` long. Raises Unreachable."""
    try:
        response = await client.request("GET", url, max_bytes=max_bytes)
    except Unavailable as error:
        raise Unreachable(str(error)) from None
    if response.status_code != 200:
        raise Unreachable(f"It answered {response.status_code}")
    return response.content


async def post(
    client: UpstreamClient, url: str, content: bytes, headers: Mapping[str, str], timeout_s: float | None = None
) -> tuple[int, int]:
    """The status, whatever it is, and the milliseconds it took. Never repeated or redirected. Raises Unreachable.

    It does not count for the breaker: targets of many share one origin.
    """
    began = time.monotonic()
    try:
        response = await client.request(
            "POST", url, content=content, headers=headers, max_bytes=0, timeout_s=timeout_s, breaker=False
        )
    except Unavailable as error:
        raise Unreachable(str(error)) from None
    return response.status_code, round((time.monotonic() - began) * 1000)


def _address(service: Service, texts: Mapping[str, str], path: str) -> str:
    """Raises Unavailable for an address in the settings that is none, ApiError when the service leads elsewhere."""
    base = texts[f"{service.key}_url"].strip()
    if urlsplit(path).scheme not in ("http", "https"):
        return base if not path else f"{base.rstrip('/')}/{path.lstrip('/')}"
    own = [text.strip() for key, text in texts.items() if key.startswith(service.key) and key.endswith("_url")]
    if origin(path) not in map(origin, own):
        raise errors.nonsense(service)
    return path


def _rate(service: Service, texts: Mapping[str, str]) -> Rate | None:
    key = f"{service.key}_per_second"
    per_second = as_number(texts[key], float(DEFAULTS[key]))
    return Rate(max(per_second, 0.001)) if per_second else None


def _refused(service: Service, response: httpx.Response, what: str) -> NoReturn:
    status, reasons = response.status_code, _reasons(response.content)
    if status == 403 and reasons & _QUOTA:
        raise errors.quota_used_up(service)
    if what and (status == 404 or (status == 403 and reasons & _HIDDEN)):
        raise errors.not_found(service, what)
    if status in (401, 403) or (status == 400 and reasons & _BAD_KEY):
        raise errors.key_refused(service, status)
    if status == 429:
        wait_s = retry_after(response)
        raise errors.asked_to_wait(service, 1 if wait_s is None else min(max(round(wait_s), 1), MAX_WAIT_S))
    raise errors.unavailable(service)


def _object(service: Service, body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_no_number)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be stored
    except (ValueError, RecursionError):
        raise errors.nonsense(service) from None
    if not isinstance(value, dict):
        raise errors.nonsense(service)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _reasons(body: bytes) -> set[str]:
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
