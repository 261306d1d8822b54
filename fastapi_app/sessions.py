"""The session cookie `mv_session`, exactly as Flask's `SecureCookieSessionInterface` reads, writes and refreshes it.

The cookie is compact JSON, compressed when that is shorter, signed with HMAC-SHA1 under SECRET_KEY. Flask tags values
that JSON does not know; they pass through here as they are.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import Request
from itsdangerous import BadData, URLSafeTimedSerializer

from .cookies import drop_cookie, set_cookie

COOKIE = "mv_session"
LIFETIME = timedelta(hours=24)


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

    def __init__(self, secret_key: str, *, secure: bool) -> None:
        self._secure = secure
        self._serializer = URLSafeTimedSerializer(
            secret_key,
            salt="cookie-session",
            serializer=_CompactJSON,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
        )

    def read(self, value: str) -> Session:
        """An empty session for a value that is absent, forged, damaged or older than 24 hours."""
        if not value:
            return Session({})
        try:
            values = self._serializer.loads(value, max_age=int(LIFETIME.total_seconds()))
        except BadData:
            return Session({})
        return Session(values if isinstance(values, dict) else {})

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
        expires = datetime.now(UTC) + LIFETIME if session.values.get("_permanent") else None
        value = self._serializer.dumps(session.values)
        return set_cookie(COOKIE, value, expires=expires, secure=self._secure, http_only=True)


class _CompactJSON:
    @staticmethod
    def dumps(values: Any) -> str:
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def loads(text: str | bytes) -> Any:
        return json.loads(text)
