"""Bearer tokens: HS256 and nothing else, whatever their header says."""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jwt
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from .cache import Cache
from .claims import ClaimMap, Claims
from .errors import ConfigError
from .keys import refuse_weak
from .settings import IdentitySettings

BELIEVED_S = 30.0  # for how long a verified token is believed without looking again
LEEWAY_S = 5  # for clocks that run behind ours; an expired token is expired
MAX_TOKEN_BYTES = 8192


class Tokens:
    """Access tokens, of others and of our own making. Raises ConfigError for a lifetime or key that makes none."""

    def __init__(self, settings: IdentitySettings, keys: Sequence[bytes], claims: ClaimMap) -> None:
        """The first of the `keys` signs; all verify."""
        self._settings, self._keys, self._claims = settings, keys, claims
        self._verified: Cache[str, Claims] = Cache(1024)
        self._minted: Cache[tuple[str | int, ...], bytes] = Cache(4096)
        self._options: Any = {"require": ["exp", *claims.names], "verify_aud": bool(settings.audience)}
        if settings.lifetime_s < 1:
            raise ConfigError(f"identity.lifetime_s: expected at least 1 second, not {settings.lifetime_s}")
        try:
            jwt.encode({}, keys[0], "HS256")
        except jwt.PyJWTError as error:
            raise ConfigError(f"the key of the tokens cannot be used for HS256: {error}") from None

    def mint(self, claims: Claims) -> bytes:
        """A token that is valid for at most `lifetime_s` and at least half of it."""
        key = tuple(claims.values())
        token = self._minted.get(key)
        if token is None:
            token = self._sign(claims).encode()
            self._minted.put(key, token, self._settings.lifetime_s / 2)
        return token

    def _sign(self, claims: Claims) -> str:
        now = int(time.time())
        about = {"iss": self._settings.issuer, "aud": self._settings.audience}
        payload = {**claims, **{name: value for name, value in about.items() if value}}
        payload |= {"iat": now, "exp": now + self._settings.lifetime_s, "jti": secrets.token_hex(16)}
        headers = {"typ": "at+jwt"} | ({"kid": self._settings.kid} if self._settings.kid else {})
        return jwt.encode(payload, self._keys[0], "HS256", headers)

    def verify(self, token: str) -> Claims | None:
        """What an access token says; None for anything that is not one, however odd."""
        if not token or len(token) > MAX_TOKEN_BYTES:
            return None
        claims = self._verified.get(token)
        if claims is None:
            try:
                claims, left_s = self._check(token)
            except Exception:  # noqa: BLE001  # whatever a hostile token provokes, it proves nothing
                return None
            self._verified.put(token, claims, min(BELIEVED_S, left_s))
        return claims

    def _check(self, token: str) -> tuple[Claims, float]:
        """Claims and seconds until expiry. Raises."""
        decoded, kid = self._decode(token), self._settings.kid
        header, payload = decoded["header"], decoded["payload"]
        claims, left_s = self._claims.of_token(payload), payload["exp"] - time.time()
        if claims is None or left_s <= 0 or not _is_access_token(header, payload):
            raise jwt.InvalidTokenError
        if kid and header.get("kid", kid) != kid:
            raise jwt.InvalidTokenError
        return claims, left_s

    def _decode(self, token: str) -> dict[str, Any]:
        about: Any = {"audience": self._settings.audience or None, "issuer": self._settings.issuer or None}
        for key in self._keys:
            with suppress(jwt.InvalidSignatureError):
                return jwt.decode_complete(token, key, ["HS256"], self._options, leeway=LEEWAY_S, **about)
        raise jwt.InvalidSignatureError


def _is_access_token(header: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """By RFC 9068's media type, and by the claims in which libraries tell refresh and other tokens apart."""
    if str(header.get("typ", "JWT")).lower() not in ("jwt", "at+jwt", "application/at+jwt"):
        return False
    kinds = (payload.get(name, "access") for name in ("type", "token_type", "token_use", "typ", "purpose"))
    return all(str(kind).lower() in ("access", "access_token", "bearer", "jwt", "at+jwt") for kind in kinds)


def signing_keys(app: Flask, configured: str) -> list[bytes]:
    """The key of the tokens: as configured, else the application's own, and after it those that it had before.

    Raises ConfigError when there is none, or when any key that signs sessions or tokens can be guessed.
    """
    fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or ()
    keys = [("GATEWAY_IDENTITY_KEY", configured), ("the Flask application's SECRET_KEY", app.secret_key)]
    keys += [("one of SECRET_KEY_FALLBACKS", key) for key in fallbacks]
    for name, key in keys:
        if key:
            refuse_weak(_bytes(key), name)
    signs_sessions = type(app.session_interface) is SecureCookieSessionInterface
    if not app.secret_key and (signs_sessions or not configured):
        raise ConfigError("the Flask application has no SECRET_KEY, so its sessions cannot be verified; set one")
    return [_bytes(key) for key in ((configured,) if configured else (app.secret_key or "", *fallbacks))]


def _bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def bearer_of(authorization: bytes | None) -> str:
    """The token in an Authorization header; empty when there is none."""
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""


def without_scheme(value: str) -> str:
    """Some ports keep `Bearer <token>` in their cookie."""
    return value.removeprefix("Bearer ")
