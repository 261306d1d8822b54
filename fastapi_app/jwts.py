"""Access and refresh tokens: JWTs signed with SECRET_KEY by HS256 and nothing else.

The header `kid` says with which key, so that the key can be changed: the new one signs, those of SECRET_KEY_FALLBACKS
verify until their tokens have expired. The gateway's short-lived ones have no `kid`: they are of the present key.

`sub` is the user's id as text, `sid` the token of the sign-in (its row in `user_sessions` decides), `family` what a
refresh token and its successors have in common, `jti` names the token in `revoked_tokens`.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt

ISSUER, AUDIENCE = "music-videos", "music-videos-api"
ACCESS, REFRESH = "at+jwt", "rt+jwt"  # the header `typ`
LIFETIME_S = {ACCESS: 15 * 60, REFRESH: 7 * 24 * 3600}
MAX_LENGTH = 4096  # characters

_OPTIONS: Any = {"require": ["exp", "iat", "sub", "sid", "jti", "iss", "aud"]}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    user_id: int
    session_token: str
    jti: str
    family: str = ""


class Signer:
    """Mints with one key and verifies with it or an earlier one."""

    def __init__(self, key: str, fallbacks: Sequence[str] = ()) -> None:
        self._key, self._kid = key, key_id(key)
        self._keys = {key_id(one): one for one in (*fallbacks, key)}

    def mint(self, kind: str, user_id: int, session_token: str, family: str) -> str:
        now = int(time.time())
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "sid": session_token,
            "family": family,
            "jti": secrets.token_hex(16),
            "iat": now,
            "exp": now + LIFETIME_S[kind],
        }
        return jwt.encode(payload, self._key, "HS256", {"typ": kind, "kid": self._kid})

    def verify(self, token: str, kind: str) -> Claims | None:
        """None for anything that is not a token of that kind, signed here and still valid."""
        if not token or len(token) > MAX_LENGTH:
            return None
        try:
            key = self._keys[jwt.get_unverified_header(token).get("kid", self._kid)]
            decoded = jwt.decode_complete(token, key, ["HS256"], _OPTIONS, audience=AUDIENCE, issuer=ISSUER)
            return _read(decoded["header"], decoded["payload"], kind)
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, RecursionError):
            return None


def key_id(key: str) -> str:
    """What names a key and says nothing about it."""
    return hmac.new(key.encode(), b"kid", hashlib.sha256).hexdigest()[:16]


def _read(header: dict[str, Any], payload: dict[str, Any], kind: str) -> Claims | None:
    texts = [payload.get(name, "") for name in ("sub", "sid", "jti", "family")]
    if header.get("typ") != kind or not all(isinstance(text, str) and len(text) <= 100 for text in texts):
        return None
    subject, session_token, jti, family = texts
    if not (subject.isascii() and subject.isdigit() and session_token and jti):
        return None
    return Claims(int(subject), session_token, jti, family)
