"""Who asks, and how does the other side get to know?

A caller is `user:<sub>` when a Flask session or a bearer token of theirs verifies, `key:<16 hex>` when they show an
API key or a token nobody here can verify, and `anon:<id>` by a signed cookie otherwise.

With `[tool.gateway.identity] claims` the two applications also accept each other's sign-in. Sessions are read and
written only through Flask's `SessionInterface`, tokens are HS256 JWTs; neither application is edited.

* To FastAPI, a verified session becomes a short-lived bearer, if the client sent no Authorization of its own.
* To Flask, a verified bearer becomes a session cookie that lives in the request only and never reaches the client.
* Credentials of two different people contradict each other: then nothing is minted or forged, the caller counts as
  anonymous, both credentials stay where they are and the application rejects what it would have rejected anyway.
* A session cookie or a token cookie is sent by browsers without being asked. It is therefore not turned into the
  other side's credential for an unsafe request that another site caused: that side may exempt bearers from its CSRF
  checks.
* Whatever fails (a store that is down, a hostile token) leaves the caller without a translated credential.
"""

import asyncio
import hmac
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import jwt
from flask import Flask
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionInterface, SessionMixin
from itsdangerous.encoding import base64_decode, bytes_to_int
from starlette.requests import cookie_parser
from starlette.types import Scope
from werkzeug.http import dump_cookie, parse_cookie, parse_date

from .decide import SAFE_METHODS
from .errors import ConfigError
from .model import Backend
from .settings import IdentitySettings, Settings

log = logging.getLogger("gateway")

Header = tuple[bytes, bytes]
Claims = dict[str, str | int]  # what a verified credential says, by claim name; always with "sub"
K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_UNREAD: Claims = {}
_READ_S = 30.0  # for how long a verified credential is believed without looking again
_FORGED_S = 300.0  # for how long one forged session serves the same token
_STORE_TIMEOUT_S = 2.0
_STORE_THREADS = 8
_STORE_QUEUE = 256
_YEAR_S = 31_536_000
_MAX_TOKEN_BYTES = 8192
_MIN_KEY_BYTES = 32
_LEEWAY_S = 5  # for clocks that run behind ours; an expired token is expired


class Identity:
    """Who asks in one request. Nothing is verified before somebody wants to know."""

    __slots__ = ("_subject", "_subject_of", "api_key", "authorization", "bearers", "blank", "cookie", "forged",
                 "fresh_cookie", "scope", "session")  # fmt: skip

    def __init__(self, scope: Scope, wanted: frozenset[bytes], subject_of: "Callable[[Identity], str]") -> None:
        self.scope = scope
        self.cookie = self.api_key = b""
        self.authorization: bytes | None = None
        for name, value in scope["headers"]:
            if name not in wanted:
                continue
            if name == b"cookie":
                self.cookie = self.cookie + b"; " + value if self.cookie else value
            elif name == b"authorization":  # repeated: joined into something that verifies as nothing
                self.authorization = value if self.authorization is None else self.authorization + b", " + value
            else:
                self.api_key = value
        self.blank = not self.cookie and self.authorization is None
        self.session: Claims | None = _UNREAD
        self.bearers: tuple[Claims | None, Claims | None] | None = None  # Authorization, token cookie
        self.forged: Claims | None = None  # whom the session shown to legacy names, when it is ours
        self.fresh_cookie: Header | None = None  # to be set when `subject` is an anonymous id that nobody had before
        self._subject, self._subject_of = "", subject_of

    @property
    def subject(self) -> str:
        """`user:<sub>`, `key:<16 hex>` or `anon:<id>`: what a split hashes and a pin names."""
        if not self._subject:
            self._subject = self._subject_of(self)
        return self._subject


class IdentityBridge:
    """Says who asks, shows it to the side that answers, and keeps the client's credentials of both sides in step.

    Raises ConfigError when claims are configured for something that is no Flask application, or with a secret key
    that others can guess.
    """

    def __init__(self, flask_app: Flask | None, settings: Settings, secret: bytes) -> None:
        identity = settings.identity
        self.active = bool(identity.claims)
        self._exchange = _Exchange(flask_app, identity) if self.active else None
        self._anonymous = _AnonymousCookie(secret)
        api_key = identity.api_key_header.lower().encode("latin-1")
        self._wanted = frozenset({b"cookie", b"authorization", api_key} - {b""})

    async def identify(self, scope: Scope, *, subject: bool = True) -> Identity:
        """The identity of one request; `subject=False` promises that nobody reads `subject`, which may cost I/O."""
        identity = Identity(scope, self._wanted, self._subject)
        if subject and self._exchange is not None and self._exchange.blocks:
            await self._exchange.session(identity)
        return identity

    async def present(self, scope: Scope, identity: Identity, backend: Backend) -> Scope:
        """A copy of `scope` with the credential that `backend` understands; the same scope when nothing is to do."""
        if self._exchange is None or identity.blank:
            return scope
        show = self._exchange.to_fastapi if backend is Backend.FASTAPI else self._exchange.to_legacy
        return await show(scope, identity)

    async def reconcile(self, identity: Identity, backend: Backend, status: int, headers: list[Header]) -> list[Header]:
        """The headers of an answer, edited so that sign-in, sign-out and refresh reach both sides.

        A forged session never leaves here. The same list when nothing is to do.
        """
        if self._exchange is None:
            return headers
        if backend is Backend.FASTAPI:
            return await self._exchange.after_fastapi(identity, status, headers)
        return headers if identity.blank else await self._exchange.after_legacy(identity, headers)

    def _subject(self, identity: Identity) -> str:
        if self._exchange is not None:
            proofs = self._exchange.proofs(identity)
            if len({proof["sub"] for proof in proofs}) > 1:
                return self._anonymous.subject(identity)
            if proofs:
                return f"user:{proofs[0]['sub']}"
        if key := identity.api_key or identity.authorization:
            return f"key:{sha256(key).hexdigest()[:16]}"
        return self._anonymous.subject(identity)


def own_secret(settings: Settings) -> bytes:
    """The key of the gateway's own cookie: as configured, else made once and kept in the state directory.

    Raises ConfigError when the configured key is weak, or when there is nowhere to keep one.
    """
    if settings.secret_key:
        key = settings.secret_key.encode()
        _refuse_weak(key, "GATEWAY_SECRET_KEY")
        return key
    path = Path(settings.state) / "secret_key"
    try:
        if not path.exists():
            _create_once(path, secrets.token_hex(32).encode())
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; set GATEWAY_SECRET_KEY, or make it writable") from None
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"{path}: shorter than {_MIN_KEY_BYTES} bytes; delete it and a new one is made")
    return key


def _create_once(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that appears whole; of several workers the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


class _Exchange:
    """Turns the credentials of one side into those of the other, in both directions."""

    def __init__(self, flask_app: Flask | None, settings: IdentitySettings) -> None:
        if not isinstance(flask_app, Flask):
            raise ConfigError("[tool.gateway.identity] needs a legacy application that is a Flask object")
        mapping = _read_mapping(settings.claims)
        self._tokens = _Tokens(settings, _signing_key(flask_app, settings), [mapped.claim for mapped in mapping])
        self._sessions = _Sessions(flask_app, mapping)
        self._token_cookie = settings.token_cookie
        if self._token_cookie == self._sessions.cookie_name:
            raise ConfigError(f"identity.token_cookie: {self._token_cookie} is the cookie of Flask's own session")
        self._forged: _Cache[str, str] = _Cache(1024)
        self._forging: dict[str, asyncio.Task[str | None]] = {}

    @property
    def blocks(self) -> bool:
        """Whether looking at a session means I/O."""
        return self._sessions.blocks

    # --- what the client proves

    async def session(self, identity: Identity) -> Claims | None:
        if identity.session is _UNREAD:
            if self.blocks and self._sends_session(identity):
                identity.session = await self._sessions.ask(self._sessions.read, identity.scope, identity.cookie)
            else:
                self._session_now(identity)
        return identity.session

    def _session_now(self, identity: Identity) -> None:
        sent = self._sends_session(identity)
        read = self._sessions.read
        identity.session = self._sessions.ask_now(read, identity.scope, identity.cookie) if sent else None

    def _sends_session(self, identity: Identity) -> bool:
        return self._sessions.cookie_name.encode("latin-1") in identity.cookie

    def bearers(self, identity: Identity) -> tuple[Claims | None, Claims | None]:
        """What the Authorization header and the token cookie prove."""
        if identity.bearers is None:
            header, cookie = _bearer(identity.authorization), self._token(identity)
            identity.bearers = (self._tokens.verify(header), self._tokens.verify(cookie))
        return identity.bearers

    def proofs(self, identity: Identity) -> list[Claims]:
        """All that verifies; the session only where that takes no I/O or has been done."""
        if identity.session is _UNREAD and not self.blocks:
            self._session_now(identity)
        return [proof for proof in (identity.session, *self.bearers(identity)) if proof]

    def _token(self, identity: Identity) -> str:
        """The port's own token cookie, read as Starlette reads it."""
        if not self._token_cookie or self._token_cookie.encode() not in identity.cookie:
            return ""
        return _without_scheme(cookie_parser(identity.cookie.decode("latin-1")).get(self._token_cookie, ""))

    # --- what the other side is shown

    async def to_fastapi(self, scope: Scope, identity: Identity) -> Scope:
        if identity.authorization is not None or any(self.bearers(identity)):
            return scope
        claims = await self.session(identity)
        if claims is None or _from_another_site(scope):
            return scope
        return {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + self._tokens.mint(claims))]}

    async def to_legacy(self, scope: Scope, identity: Identity) -> Scope:
        token = _bearer(identity.authorization) or self._token(identity)
        if not token:
            return scope
        from_header, from_cookie = self.bearers(identity)
        claims = from_header if _bearer(identity.authorization) else from_cookie
        if claims is None or (from_cookie and from_cookie["sub"] != claims["sub"]):
            return scope
        if await self.session(identity) is not None or (from_header is None and _from_another_site(scope)):
            return scope
        value = await self._forge(token, claims, scope)
        if value is None:
            return scope
        identity.forged = claims
        cookie = _with_cookie(identity.cookie, self._sessions.cookie_name, value)
        return {**scope, "headers": [h for h in scope["headers"] if h[0] != b"cookie"] + [(b"cookie", cookie)]}

    async def _forge(self, token: str, claims: Claims, scope: Scope) -> str | None:
        """A session cookie for the bearer of `token`; requests that come together share one."""
        known = self._forged.get(token)
        if not self.blocks:
            value = known or self._sessions.ask_now(self._sessions.forge, scope, claims)
        else:
            flight = self._forging.get(token)
            if flight is None:
                work = self._sessions.ask(self._sessions.forge, scope, claims, known or "")
                flight = self._forging[token] = asyncio.ensure_future(work)
                flight.add_done_callback(lambda _: self._forging.pop(token, None))
            value = await asyncio.shield(flight)
        if value is not None and value != known:
            self._forged.put(token, value, min(_FORGED_S, self._sessions.lifetime_s / 2))
        return value

    # --- what the client gets back

    async def after_fastapi(self, identity: Identity, status: int, headers: list[Header]) -> list[Header]:
        """Sign-in and sign-out on the port reach Flask's session; otherwise Flask's session slides as it always did."""
        answered = _set_cookies(headers)
        name = self._sessions.cookie_name
        if (not answered and identity.blank) or any(cookie.name == name for cookie in answered):
            return headers
        session = await self.session(identity)
        issued = [cookie for cookie in answered if cookie.name == self._token_cookie and status < 400]
        signed_out = bool(issued) and issued[-1].deleted
        signed_in = self._tokens.verify(_without_scheme(issued[-1].value)) if issued and not signed_out else None
        vary = b", ".join(value for key, value in headers if key.lower() == b"vary").decode("latin-1")
        if signed_out or (signed_in and signed_in != session):
            saved = await self._change_session(identity, signed_in, vary)
        elif session:
            saved = await self._sessions.ask(self._sessions.refresh, identity.scope, identity.cookie, vary)
        else:
            return headers
        return _saved(headers, saved) if saved else headers

    async def _change_session(self, identity: Identity, signed_in: Claims | None, vary: str) -> "Saved | None":
        """A new session or none. When the store fails, the client loses the old one all the same."""
        sessions, scope = self._sessions, identity.scope
        if signed_in:
            saved = await sessions.ask(sessions.begin, scope, signed_in, vary)
        else:
            saved = await sessions.ask(sessions.end, scope, identity.cookie, vary)
        return saved or (sessions.expire(vary) if self._sends_session(identity) else None)

    async def after_legacy(self, identity: Identity, headers: list[Header]) -> list[Header]:
        """Sign-in and sign-out on legacy reach the port's token cookie; a forged session stays here."""
        token = self._token(identity)
        if identity.forged is None and not token:
            return headers
        bearer = self.bearers(identity)[1]
        keep, stale = headers, False
        for cookie in _set_cookies(headers):
            if cookie.name != self._sessions.cookie_name:
                continue
            after = None if cookie.deleted else await self._named(identity, cookie)
            if identity.forged and not (after and after["sub"] != identity.forged["sub"]):
                keep = [header for header in keep if header is not cookie.header]
            if after is not _UNREAD and token:
                stale = cookie.deleted or (bearer is not None and (after is None or after["sub"] != bearer["sub"]))
        return [*keep, self._expired_token(identity)] if stale else keep

    async def _named(self, identity: Identity, cookie: "_SetCookie") -> Claims | None:
        """Whom a session cookie names that legacy has just set; `_UNREAD` when its store does not say."""
        sent = f"{cookie.name}={cookie.raw}".encode("latin-1")
        return await self._sessions.ask(self._sessions.read, identity.scope, sent, failed=_UNREAD)

    def _expired_token(self, identity: Identity) -> Header:
        name = self._token_cookie
        secure = _is_secure(identity.scope) or name.startswith(("__Host-", "__Secure-"))
        line = dump_cookie(name, max_age=0, expires=0, secure=secure, httponly=True, samesite="Lax")
        return (b"set-cookie", line.encode("latin-1"))


class _Sessions:
    """Flask's session interface, asked outside a request.

    Its work may block and raise: it is handed to `ask` or `ask_now`.
    """

    def __init__(self, app: Flask, mapping: "tuple[_Mapped, ...]") -> None:
        self._app, self._mapping = app, mapping
        self.cookie_name = app.session_interface.get_cookie_name(app)
        self.lifetime_s = app.permanent_session_lifetime.total_seconds()
        # The lifetime matters to permanent sessions only: who sets one makes sessions permanent.
        sliding = app.permanent_session_lifetime != timedelta(days=31)
        self._permanent = bool(app.config.get("SESSION_PERMANENT", sliding))
        self._known: _Cache[str, tuple[SessionMixin, Claims | None]] = _Cache(4096)
        self._slid: _Cache[tuple[str, str, int], Saved] = _Cache(1024)
        self._threads = _Threads(_STORE_THREADS, _STORE_QUEUE)
        self._reported: set[str] = set()

    @property
    def blocks(self) -> bool:
        """Anything but Flask's own signed cookies may talk to a store."""
        return type(self._app.session_interface) is not SecureCookieSessionInterface

    async def ask(self, work: Callable[..., T], *args: Any, failed: T | None = None) -> T | None:
        """`work(*args)`, in a thread where it may block; `failed` when it raises or takes too long."""
        if not self.blocks:
            return self.ask_now(work, *args, failed=failed)
        try:
            return await self._threads.call(self._in_app_context, work, args, timeout_s=_STORE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  # anybody's session store; without it nobody is signed in
            self._report(work, error)
            return failed

    def ask_now(self, work: Callable[..., T], *args: Any, failed: T | None = None) -> T | None:
        """`work(*args)` at once; `failed` when it raises."""
        try:
            return work(*args)
        except Exception as error:  # noqa: BLE001  # hostile cookies, anybody's serializer
            self._report(work, error)
            return failed

    def _in_app_context(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self._app.app_context():
            return work(*args)

    def _report(self, work: Callable[..., Any], error: Exception) -> None:
        kind = f"{work.__name__}: {type(error).__name__}"
        if kind not in self._reported:
            self._reported.add(kind)
            log.error("identity: a session could not be used (%s); told once", kind, exc_info=error)

    # --- work

    def read(self, scope: Scope, cookie: bytes) -> Claims | None:
        """Whom the session of a Cookie header names."""
        return self._open(scope, cookie)[1]

    def begin(self, scope: Scope, claims: Claims, vary: str) -> "Saved":
        """Sign in: a new session, whatever session there was before."""
        session, _ = self._load(scope, b"")
        for mapped in self._mapping:
            session[mapped.key] = mapped.restore(claims[mapped.claim])
        session.permanent = self._permanent
        return self._save(session, vary)

    def end(self, scope: Scope, cookie: bytes, vary: str) -> "Saved":
        """Sign out."""
        session, _ = self._load(scope, cookie)
        session.clear()
        return self._save(session, vary)

    def expire(self, vary: str) -> "Saved":
        """Take the cookie away without asking any store."""
        session = SecureCookieSession({"": 0})
        session.clear()
        return self._save(session, vary, SecureCookieSessionInterface())

    def refresh(self, scope: Scope, cookie: bytes, vary: str) -> "Saved | None":
        """What Flask adds to an answer whose view read the session; None when nobody is signed in any more."""
        key = (self._value(cookie), vary, int(time.time()))
        saved = None if self.blocks else self._slid.get(key)  # signature and Expires change with the second
        if saved is None:
            session, claims = self._open(scope, cookie)
            if claims is None:
                return None
            session.accessed = True
            saved = self._save(session, vary)
            if not self.blocks:
                self._slid.put(key, saved, 1.0)
        return saved

    def forge(self, scope: Scope, claims: Claims, known: str = "") -> str:
        """The value of a session cookie that names `claims`: `known` as long as its store agrees, else a new one."""
        if known and self.read(scope, f"{self.cookie_name}={known}".encode("latin-1")) == claims:
            return known
        for cookie in reversed(_set_cookies(self.begin(scope, claims, "").cookies)):
            if cookie.name == self.cookie_name:
                return cookie.raw
        raise LookupError("the session interface sets no session cookie")

    def _open(self, scope: Scope, cookie: bytes) -> "tuple[SessionMixin, Claims | None]":
        """The session of a Cookie header; Flask's own are remembered for a while, never beyond their expiry."""
        if self.blocks:
            return self._load(scope, cookie)
        value = self._value(cookie)
        known = self._known.get(value)
        if known is None:
            known = self._load(scope, cookie)
            if known[0]:  # empty: it did not verify
                signed_at = bytes_to_int(base64_decode(value.rsplit(".", 2)[1]))
                self._known.put(value, known, min(_READ_S, signed_at + int(self.lifetime_s) - time.time()))
        return known

    def _load(self, scope: Scope, cookie: bytes) -> "tuple[SessionMixin, Claims | None]":
        request = self._app.request_class(_environ(scope, cookie))
        session = self._app.session_interface.open_session(self._app, request)
        if session is None:
            raise LookupError("the session interface opens no session")
        return session, self._claims(session)

    def _save(self, session: SessionMixin, vary: str, interface: SessionInterface | None = None) -> "Saved":
        response = self._app.response_class()
        if vary:
            response.headers["Vary"] = vary
        (interface or self._app.session_interface).save_session(self._app, session, response)
        lines = [(b"set-cookie", line.encode("latin-1")) for line in response.headers.getlist("Set-Cookie")]
        return Saved(lines, response.headers.get("Vary", "").encode("latin-1"))

    def _value(self, cookie: bytes) -> str:
        """The session cookie, read as Flask reads it."""
        return parse_cookie(cookie.decode("latin-1")).get(self.cookie_name, "")

    def _claims(self, session: SessionMixin) -> Claims | None:
        claims: Claims = {}
        for mapped in self._mapping:
            value = _plain(session.get(mapped.key))
            if value is None:
                return None
            claims[mapped.claim] = str(value) if mapped.claim == "sub" else value
        return claims


@dataclass(frozen=True, slots=True)
class Saved:
    """What saving a session adds to an answer."""

    cookies: list[Header]
    vary: bytes


class _Tokens:
    """Bearer tokens: HS256 and nothing else, whatever their header says."""

    def __init__(self, settings: IdentitySettings, key: bytes, claims: list[str]) -> None:
        self._settings, self._key, self._claims = settings, key, claims
        self._verified: _Cache[str, Claims] = _Cache(1024)
        self._minted: _Cache[tuple[str | int, ...], bytes] = _Cache(4096)
        self._options: Any = {"require": ["exp", *claims], "verify_aud": bool(settings.audience)}

    def mint(self, claims: Claims) -> bytes:
        """A bearer of at most `lifetime_s` and at least half of it."""
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
        return jwt.encode(payload, self._key, "HS256", headers)

    def verify(self, token: str) -> Claims | None:
        """What an access token says; None for anything that is not one, however odd."""
        if not token or len(token) > _MAX_TOKEN_BYTES:
            return None
        claims = self._verified.get(token)
        if claims is None:
            try:
                claims, left_s = self._check(token)
            except Exception:  # noqa: BLE001  # whatever a hostile token provokes, it proves nothing
                return None
            self._verified.put(token, claims, min(_READ_S, left_s))
        return claims

    def _check(self, token: str) -> tuple[Claims, float]:
        """Claims and seconds until expiry. Raises."""
        issuer, audience = self._settings.issuer or None, self._settings.audience or None
        decoded = jwt.decode_complete(
            token, self._key, ["HS256"], self._options, audience=audience, issuer=issuer, leeway=_LEEWAY_S
        )
        header, payload = decoded["header"], decoded["payload"]
        left_s = payload["exp"] - time.time()
        if left_s <= 0 or not _is_access_token(header, payload):
            raise jwt.InvalidTokenError
        if self._settings.kid and header.get("kid", self._settings.kid) != self._settings.kid:
            raise jwt.InvalidTokenError
        claims = {name: value for name in self._claims if (value := _plain(payload[name])) is not None}
        if len(claims) < len(self._claims):
            raise jwt.InvalidTokenError
        return claims, left_s


def _is_access_token(header: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """By RFC 9068's media type, and by the claims in which libraries tell refresh and other tokens apart."""
    if str(header.get("typ", "JWT")).lower() not in ("jwt", "at+jwt", "application/at+jwt"):
        return False
    kinds = (payload.get(name, "access") for name in ("type", "token_type", "token_use", "typ", "purpose"))
    return all(str(kind).lower() in ("access", "access_token", "bearer", "jwt", "at+jwt") for kind in kinds)


class _AnonymousCookie:
    """`gw_id`: a random number that nobody else can choose, so that nobody can pick his bucket."""

    _PATTERN = re.compile(rb"(?:\A|;)[ \t]*gw_id=([0-9a-f]{32})\.([0-9a-f]{32})[ \t]*(?=;|\Z)")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def subject(self, identity: Identity) -> str:
        """`anon:<id>` of the cookie, or of a new one that is left in `identity.fresh_cookie`."""
        for match in islice(self._PATTERN.finditer(identity.cookie), 4):
            name, signature = match.groups()
            if hmac.compare_digest(signature, self._sign(name)):
                return f"anon:{name.decode()}"
        name = secrets.token_hex(16).encode()
        secure = b"; Secure" if _is_secure(identity.scope) else b""
        attributes = b"; HttpOnly; Max-Age=%d; Path=/; SameSite=Lax" % _YEAR_S + secure
        identity.fresh_cookie = (b"set-cookie", b"gw_id=" + name + b"." + self._sign(name) + attributes)
        return f"anon:{name.decode()}"

    def _sign(self, name: bytes) -> bytes:
        return hmac.digest(self._secret, b"gw_id=" + name, "sha256").hex()[:32].encode()


# --- which session key is which claim ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mapped:
    key: str  # in the session
    claim: str  # in the token
    restore: Callable[[str | int], Any]  # claim -> session value


def _integer_if_one(value: str | int) -> str | int:
    """RFC 7519 wants `sub` to be text; a number written as Python writes it was a number in the session."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value


_RESTORE: Mapping[str, Callable[[Any], Any]] = {"": lambda value: value, "int": int, "str": str, "uuid": UUID}


def _read_mapping(claims: Mapping[str, str]) -> tuple[_Mapped, ...]:
    """`{user_id = "sub", token = "sid"}`. `"sub:str"`, `"sub:int"`, `"sub:uuid"` say what the session holds.

    Without it `sub` becomes a number when it is the canonical decimal form of one; other claims are kept as they are.
    """
    mapping = []
    for key, spec in claims.items():
        claim, _, kind = spec.partition(":")
        if not claim or kind not in _RESTORE:
            raise ConfigError(f"identity.claims: {key}: expected a claim, or claim:int, :str or :uuid, not {spec!r}")
        if claim in ("iss", "aud", "exp", "iat", "nbf", "jti"):
            raise ConfigError(f"identity.claims: {key}: {claim} is written by the gateway itself")
        mapping.append(_Mapped(key, claim, _integer_if_one if (claim, kind) == ("sub", "") else _RESTORE[kind]))
    names = [mapped.claim for mapped in mapping]
    if "sub" not in names or len(set(names)) < len(names):
        raise ConfigError("identity.claims: one session key must be sub, and no two may be the same claim")
    return tuple(mapping)


def _plain(value: object) -> str | int | None:
    """The value as text or number; None for what cannot be a claim."""
    if isinstance(value, UUID):
        return str(value)
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None


# --- keys -------------------------------------------------------------------------------------------------------

_PHRASES = re.compile(
    rb"change[-_ ]?(me|this|it|in)|your[-_ ]?(\w{0,12}[-_ ]?)?(secret|key)|secret[-_ ]?key|default[-_ ]?(secret|key)|"
    rb"(my|super|top|very|dev|test|app|flask|jwt)[-_ ]?secret|not[-_ ]?(so[-_ ]?)?secret|a-string-secret|insecure|"
    rb"placeholder|password|example|012345678|123456789|abcdefgh|qwertyui|never-guess|hard[-_ ]to[-_ ]guess",
    re.IGNORECASE,
)
_PUBLISHED = (
    b"192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",  # Flask's documentation
    b"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",  # FastAPI's documentation
)


def _signing_key(app: Flask, settings: IdentitySettings) -> bytes:
    """The key of the tokens. Raises ConfigError when any key that signs sessions or tokens can be guessed."""
    keys = [("GATEWAY_IDENTITY_KEY", settings.key), ("the Flask application's SECRET_KEY", app.secret_key)]
    keys += [("one of SECRET_KEY_FALLBACKS", key) for key in app.config.get("SECRET_KEY_FALLBACKS") or ()]
    for name, key in keys:
        if key:
            _refuse_weak(_bytes(key), name)
    signed = type(app.session_interface) is SecureCookieSessionInterface
    if not (settings.key or app.secret_key) or (signed and not app.secret_key):
        raise ConfigError("the Flask application has no SECRET_KEY, so its sessions cannot be verified; set one")
    key = _bytes(settings.key or app.secret_key or "")
    if settings.lifetime_s < 1:
        raise ConfigError(f"identity.lifetime_s: expected at least 1 second, not {settings.lifetime_s}")
    try:
        jwt.encode({}, key, "HS256")
    except jwt.PyJWTError as error:
        raise ConfigError(f"the key of the tokens cannot be used for HS256: {error}") from None
    return key


def _refuse_weak(key: bytes, name: str) -> None:
    """Raises ConfigError, without the key, when it is short, published, or hardly random."""
    if len(key) < _MIN_KEY_BYTES:
        problem = f"is shorter than {_MIN_KEY_BYTES} bytes"
    elif key in _PUBLISHED or _PHRASES.search(key):
        problem = "is a well-known example"
    elif len(set(key)) < 8 or (key + key).find(key, 1) < len(key):
        problem = "is a repetition"
    else:
        return
    advice = "python3 -c 'import secrets; print(secrets.token_hex(32))' prints a good one"
    raise ConfigError(f"{name} {problem}: anybody could forge what it signs; {advice}")


def _bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


# --- headers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SetCookie:
    """One Set-Cookie line of an answer."""

    header: Header
    name: str
    raw: str  # as a browser sends it back
    value: str  # without quotes
    deleted: bool


def _set_cookies(headers: Iterable[Header]) -> list[_SetCookie]:
    return [_parse_set_cookie(header) for header in headers if header[0].lower() == b"set-cookie"]


def _parse_set_cookie(header: Header) -> _SetCookie:
    pair, *attributes = header[1].decode("latin-1").split(";")
    name, _, raw = (part.strip() for part in pair.partition("="))
    value = cookie_parser(pair).get(name, "")
    life = {key.strip().lower(): text.strip() for key, _, text in (item.partition("=") for item in attributes)}
    age, expires = life.get("max-age"), parse_date(life.get("expires"))
    if age is not None and re.fullmatch(r"-?[0-9]+", age):
        over = age.startswith("-") or not age.strip("0")
    else:
        over = expires is not None and expires <= datetime.now(UTC)
    return _SetCookie(header, name, raw, value, over or not value)


def _saved(headers: list[Header], saved: Saved) -> list[Header]:
    others = [header for header in headers if header[0].lower() != b"vary"] if saved.vary else headers
    return [*others, *([(b"vary", saved.vary)] if saved.vary else []), *saved.cookies]


def _with_cookie(cookie: bytes, name: str, value: str) -> bytes:
    """The Cookie header with one cookie replaced. It comes first: Flask believes the first of a name."""
    others = [part for part in cookie.split(b";") if part.partition(b"=")[0].strip() != name.encode("latin-1")]
    return b"; ".join([f"{name}={value}".encode("latin-1"), *(part.strip() for part in others if part.strip())])


def _without_scheme(value: str) -> str:
    """Some ports keep `Bearer <token>` in their cookie."""
    return value.removeprefix("Bearer ")


def _bearer(authorization: bytes | None) -> str:
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""


def _is_secure(scope: Scope) -> bool:
    return scope.get("scheme") in ("https", "wss")


def _from_another_site(scope: Scope) -> bool:
    """Whether a page of another site caused this unsafe request: Fetch Metadata, without it Origin against Host."""
    if scope.get("method") in SAFE_METHODS:
        return False
    sent: dict[bytes, str] = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _ORIGIN}
    if site := sent.get(b"sec-fetch-site"):
        return site.strip().lower() == "cross-site"
    if b"origin" not in sent:
        return False
    try:
        return urlsplit(sent[b"origin"]).hostname != urlsplit("//" + sent.get(b"host", "")).hostname
    except ValueError:
        return True


_ORIGIN = frozenset({b"sec-fetch-site", b"origin", b"host"})


def _environ(scope: Scope, cookie: bytes) -> dict[str, Any]:
    """What a session interface may want to know of a request: everything but its body."""
    host, port = scope.get("server") or ("localhost", 80)
    environ = {
        "REQUEST_METHOD": scope.get("method", "GET"),
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if _is_secure(scope) else "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" not in name and name not in (b"content-type", b"content-length"):
            key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ | {"HTTP_COOKIE": cookie.decode("latin-1")}


# --- small machines ---------------------------------------------------------------------------------------------


class _Cache(Generic[K, V]):
    """The `size` last used entries, each for its own time. Used on the event loop only."""

    def __init__(self, size: int) -> None:
        self._size, self._entries = size, OrderedDict[K, tuple[V, float]]()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= time.monotonic():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, ttl_s: float) -> None:
        if ttl_s > 0:
            self._entries[key] = value, time.monotonic() + ttl_s
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)


class _Threads:
    """A few threads for session stores that block. They are daemons: a store that hangs keeps no process alive."""

    def __init__(self, count: int, queue: int) -> None:
        self._count, self._queue, self._started = count, queue, 0
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()

    async def call(self, work: Callable[..., T], *args: Any, timeout_s: float) -> T:
        """`work(*args)` in a thread. Raises TimeoutError when it takes too long or too many are waiting."""
        if self._jobs.qsize() >= self._queue:
            raise TimeoutError("too many session look-ups are waiting")
        future: Future[T] = Future()
        self._jobs.put((future, work, args))
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"gateway-session-{self._started}", daemon=True).start()
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)

    def _run(self) -> None:
        while True:
            future, work, args = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(*args))
            except BaseException as error:  # noqa: BLE001  # belongs to whoever waits
                future.set_exception(error)
            del future, work, args
