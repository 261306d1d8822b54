"""May this request choose its side? A signed, expiring pass for testers, made by `gateway token`.

A pass names a side, the routes it is for, and who got it. It comes in the header `x-gateway-pass` or the cookie
`gw_pass`, and goes no further: applications never see it. It is signed with a key that is derived from the gateway's
own secret and used for nothing else. There is no list of revoked passes: they expire, after 30 days at most, and a
new GATEWAY_SECRET_KEY ends all of them at once (and the cookies of anonymous callers).
"""

import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.utils import base64url_decode, base64url_encode
from starlette.types import Scope

from .errors import ConfigError
from .model import Backend

ANY = "*"
COOKIE = "gw_pass"
HEADER = "x-gateway-pass"
MAX_LIFETIME_S = 30 * 86_400
MAX_PASS_BYTES = 4096

_AUDIENCE = "gateway-pass"
_COOKIE, _HEADER = COOKIE.encode(), HEADER.encode()
_OPTIONS: Any = {"require": ["aud", "exp", "iat", "jti"], "verify_exp": False, "verify_iat": False}  # by `now` instead


@dataclass(frozen=True, slots=True)
class Pass:
    """What a valid pass says."""

    id: str  # stands in the audit trail, too
    side: Backend
    keys: frozenset[str]  # of routes; ANY for all
    who: str
    expires_at: int  # seconds since the epoch

    def covers(self, key: str) -> bool:
        return key in self.keys or ANY in self.keys


def mint(
    secret: bytes, *, side: Backend, keys: Collection[str], who: str, expires_in_s: int, now: float
) -> tuple[str, Pass]:
    """A pass in writing, and what it says. Raises ConfigError for a lifetime, keys or a name that make none."""
    if not 1 <= expires_in_s <= MAX_LIFETIME_S:
        raise ConfigError(f"a pass is good for 1 second to 30 days, not for {expires_in_s} seconds")
    if not keys or not who:
        raise ConfigError("a pass is for somebody, and for a route or *")
    made = Pass(secrets.token_hex(8), side, frozenset(keys), who, int(now) + expires_in_s)
    claims = {
        "aud": _AUDIENCE,
        "iat": int(now),
        "exp": made.expires_at,
        "jti": made.id,
        "side": side.value,
        "keys": sorted(keys),
        "who": who,
    }
    text = jwt.encode(claims, _signing_key(secret), "HS256", {"typ": "gw-pass+jwt"})
    if len(text) > MAX_PASS_BYTES:
        raise ConfigError(f"a pass of {len(text)} bytes is too long for a header: name fewer routes, or *")
    return text, made


def check(secret: bytes, text: str, now: float) -> Pass | None:
    """What a pass says that is ours, whole and in time; None for anything else, however odd."""
    if not text or len(text) > MAX_PASS_BYTES:
        return None
    try:
        claims = jwt.decode(text, _signing_key(secret), ["HS256"], _OPTIONS, audience=_AUDIENCE)
        return _pass_of(claims) if _is_canonical(text) and _in_time(claims, now) else None
    except Exception:  # noqa: BLE001  # whatever a hostile pass provokes, it proves nothing
        return None


def _pass_of(claims: Mapping[str, Any]) -> Pass:
    """Raises for claims that nobody here writes."""
    id_, side, keys, who, expires_at = (claims[name] for name in ("jti", "side", "keys", "who", "exp"))
    if not (isinstance(keys, list) and all(isinstance(word, str) for word in (id_, who, *keys))):
        raise TypeError
    return Pass(id_, Backend(side), frozenset(keys), who, expires_at)


def _in_time(claims: Mapping[str, Any], now: float) -> bool:
    """Whether it has not expired. When it was made does not count: the clock may have been put back since."""
    made_at, expires_at = claims["iat"], claims["exp"]
    return type(expires_at) is int and now < expires_at <= made_at + MAX_LIFETIME_S


def _is_canonical(text: str) -> bool:
    """The last character of a signature has bits that no decoder reads: one of its spellings is ours."""
    signature = text.rpartition(".")[2].encode()
    return base64url_encode(base64url_decode(signature)) == signature


def _signing_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"the key that signs passes", "sha256")


# --- in a request -----------------------------------------------------------------------------------------------------


def find(scope: Scope) -> str:
    """The pass that a request carries, unchecked; empty when there is none. The header goes before the cookie."""
    found = b""
    for name, value in scope["headers"]:
        if name == _HEADER:
            return str(value, "latin-1")
        if name == b"cookie" and _COOKIE in value:
            found = found or _from_cookie(value)
    return found.decode("latin-1")


def without(scope: Scope) -> Scope:
    """A copy of the scope of a request that carries a pass, for applications: there is none in it."""
    headers = [(name, _strip(value) if name == b"cookie" else value) for name, value in scope["headers"]]
    return {
        **scope,
        "headers": [(name, value) for name, value in headers if name != _HEADER and (value or name != b"cookie")],
    }


def _from_cookie(cookie: bytes) -> bytes:
    pairs = (part.strip().partition(b"=") for part in cookie.split(b";"))
    return next((value.strip() for name, _, value in pairs if name.rstrip() == _COOKIE), b"")


def _strip(cookie: bytes) -> bytes:
    """A Cookie header without our cookie; the others stay as they are."""
    if _COOKIE not in cookie:
        return cookie
    return b";".join(part for part in cookie.split(b";") if part.partition(b"=")[0].strip() != _COOKIE).strip()
