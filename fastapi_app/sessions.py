"""The session cookie `mv_session`, exactly as Flask's `SecureCookieSessionInterface` reads, writes and refreshes it.

The cookie is compact JSON, compressed when that is shorter, signed with HMAC-SHA1 under SECRET_KEY. Flask tags values
that JSON does not know; they pass through here as they are.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from fastapi import Request
from itsdangerous import BadData, URLSafeTimedSerializer

from .cookies import drop_cookie, set_cookie

COOKIE = "mv_session"
LIFETIME = timedelta(hours=24)
REMEMBERED = 1024  # cookies that need not be verified or signed again: a page asks for many things at once


class Session:
    """What the cookie says. It names a sign-in; only the database knows whether that still stands."""

    __slots__ = ("accessed", "modified", "values")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.accessed = False  # the answer depends on the cookie
        self.modified = False

    def get(self, key: str) -> Any:
        self.accessed = True
        return self.values.get(key)

    def start(self, user_id: int, token: str) -> None:
        """Put a new sign-in in place of whatever was there."""
        self.accessed = self.modified = True
        self.values = {"_permanent": True, "user_id": user_id, "session_token": token}

    def clear(self) -> None:
        self.accessed = self.modified = True
        self.values = {}


def session_of(request: Request) -> Session:
    session: Session = request.scope["session"]
    return session


class SessionCookie:
    """Reads the cookie of a request and writes that of its answer."""

    def __init__(self, secret_key: str, fallbacks: Sequence[str] = (), *, secure: bool) -> None:
        """`secret_key` signs; what one of the `fallbacks` has signed is read as well."""
        self._secure = secure
        self._serializer = URLSafeTimedSerializer(
            [*fallbacks, secret_key],
            salt="cookie-session",
            serializer=_CompactJSON,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
        )
        self._opened = lru_cache(REMEMBERED)(self._open)
        self._signed = lru_cache(REMEMBERED)(self._sign)

    def read(self, value: str) -> Session:
        """An empty session for a value that is absent, forged, damaged or older than 24 hours."""
        if not value:
            return Session({})
        try:
            values, signed_at = self._opened(value)
        except BadData:
            return Session({})
        fresh = isinstance(values, dict) and 0 <= int(time.time()) - signed_at <= LIFETIME.total_seconds()
        return Session(dict(values) if fresh else {})

    def _open(self, value: str) -> tuple[Any, float]:
        """What was signed, and when. Raises BadData."""
        values, signed_at = self._serializer.loads(value, return_timestamp=True)
        return values, signed_at.timestamp()

    def headers(self, session: Session) -> list[tuple[bytes, bytes]]:
        """What an answer says about the session; a permanent one is refreshed with every answer."""
        headers = []
        if not session.values:
            if session.modified:
                headers.append((b"set-cookie", drop_cookie(COOKIE, secure=self._secure, http_only=True).encode()))
        elif session.modified or session.values.get("_permanent"):
            headers.append((b"set-cookie", self._write(session).encode()))
        if headers or session.accessed:
            headers.append((b"vary", b"Cookie"))
        return headers

    def _write(self, session: Session) -> str:
        return self._signed(_CompactJSON.dumps(session.values), int(time.time()))

    def _sign(self, text: str, now: int) -> str:
        """The whole header: the same for all answers of one second."""
        values = _CompactJSON.loads(text)
        expires = datetime.fromtimestamp(now, UTC) + LIFETIME if values.get("_permanent") else None
        value = self._serializer.dumps(values)
        return set_cookie(COOKIE, value, expires=expires, secure=self._secure, http_only=True)


class _CompactJSON:
    @staticmethod
    def dumps(values: Any) -> str:
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def loads(text: str | bytes) -> Any:
        return json.loads(text)
