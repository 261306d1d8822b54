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

from hashlib import sha256
from urllib.parse import urlsplit

from flask import Flask
from starlette.types import Scope
from werkzeug.http import dump_cookie

from .claims import ClaimMap, Claims
from .cookies import AnonymousCookie, Header, SetCookie, is_secure, read_cookie, replace_cookie, set_cookies
from .decide import SAFE_METHODS
from .errors import ConfigError
from .keys import own_secret
from .model import Backend
from .sessions import Sessions
from .settings import IdentitySettings, Settings
from .tokens import Tokens, bearer_of, signing_keys, without_scheme

__all__ = ["Identity", "IdentityBridge", "own_secret"]

_UNREAD: Claims = {}
_ORIGIN = frozenset({b"sec-fetch-site", b"origin", b"host"})


class Identity:
    """The credentials of one request, and what has been found out about them."""

    cookie = b""
    authorization: bytes | None = None
    api_key = b""
    subject = ""  # `user:<sub>`, `key:<16 hex>` or `anon:<id>`: what a split hashes and a pin names
    fresh_cookie: Header | None = None  # to be set when `subject` is an anonymous id that nobody had before
    session: Claims | None = _UNREAD
    bearers: tuple[Claims | None, Claims | None] | None = None  # Authorization, token cookie
    forged: Claims | None = None  # whom the session shown to legacy names, when it is ours

    def __init__(self, scope: Scope, wanted: frozenset[bytes]) -> None:
        self.scope = scope
        for name, value in scope["headers"]:
            if name not in wanted:
                continue
            if name == b"cookie":
                self.cookie = self.cookie + b"; " + value if self.cookie else value
            elif name == b"authorization":  # repeated: joined into something that verifies as nothing
                self.authorization = value if self.authorization is None else self.authorization + b", " + value
            else:
                self.api_key = value
        self.bare = not self.cookie and self.authorization is None  # nothing to translate


class IdentityBridge:
    """Says who asks, shows it to the side that answers, and keeps the client's credentials of both sides in step.

    Raises ConfigError when claims are configured for something that is no Flask application, or with a secret key
    that others can guess.
    """

    def __init__(self, flask_app: Flask | None, settings: Settings, secret: bytes) -> None:
        identity = settings.identity
        self.active = bool(identity.claims)
        self._exchange = _Exchange(flask_app, identity) if self.active else None
        self._anonymous = AnonymousCookie(secret)
        api_key = identity.api_key_header.lower().encode("latin-1")
        self._wanted = frozenset({b"cookie", b"authorization", api_key} - {b""})

    def look(self, scope: Scope) -> Identity:
        """What a request carries. Nothing is verified before somebody wants to know; the subject stays empty."""
        return Identity(scope, self._wanted)

    async def identify(self, scope: Scope) -> Identity:
        """Who asks: with the subject, which may cost a look into a session store."""
        identity = self.look(scope)
        people = await self._exchange.people(identity) if self._exchange else set()
        if len(people) == 1:
            identity.subject = f"user:{people.pop()}"
        elif not people and (key := identity.api_key or identity.authorization):
            identity.subject = f"key:{sha256(key).hexdigest()[:16]}"
        else:
            number = self._anonymous.read(identity.cookie)
            if not number:
                number, identity.fresh_cookie = self._anonymous.make(secure=is_secure(scope))
            identity.subject = f"anon:{number}"
        return identity

    async def present(self, scope: Scope, identity: Identity, backend: Backend) -> Scope:
        """A copy of `scope` with the credential that `backend` understands; the same scope when nothing is to do."""
        if self._exchange is None or identity.bare:
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
        return headers if identity.bare else await self._exchange.after_legacy(identity, headers)


class _Exchange:
    """Turns the credentials of one side into those of the other, in both directions."""

    def __init__(self, flask_app: Flask | None, settings: IdentitySettings) -> None:
        if not isinstance(flask_app, Flask):
            raise ConfigError("[tool.gateway.identity] needs a legacy application that is a Flask object")
        claims = ClaimMap(settings.claims)
        self._tokens = Tokens(settings, signing_keys(flask_app, settings.key), claims)
        self._sessions = Sessions(flask_app, claims)
        self._token_cookie = settings.token_cookie
        if self._token_cookie == self._sessions.cookie_name:
            raise ConfigError(f"identity.token_cookie: {self._token_cookie} is the cookie of Flask's own session")

    # --- what the client proves

    async def people(self, identity: Identity) -> set[str | int]:
        """Whom the credentials name that verify: one, nobody, or several who contradict each other."""
        proofs = (await self.session(identity), *self.bearers(identity))
        return {proof["sub"] for proof in proofs if proof}

    async def session(self, identity: Identity) -> Claims | None:
        if identity.session is _UNREAD:
            sent = self._sends_session(identity)
            read = self._sessions.read
            identity.session = await self._sessions.ask(read, identity.scope, identity.cookie) if sent else None
        return identity.session

    def _sends_session(self, identity: Identity) -> bool:
        return self._sessions.cookie_name.encode("latin-1") in identity.cookie

    def bearers(self, identity: Identity) -> tuple[Claims | None, Claims | None]:
        """What the Authorization header and the token cookie prove."""
        if identity.bearers is None:
            header, cookie = bearer_of(identity.authorization), self._token(identity)
            identity.bearers = (self._tokens.verify(header), self._tokens.verify(cookie))
        return identity.bearers

    def _token(self, identity: Identity) -> str:
        """The port's own token cookie."""
        if not self._token_cookie or self._token_cookie.encode() not in identity.cookie:
            return ""
        return without_scheme(read_cookie(identity.cookie, self._token_cookie))

    # --- what the other side is shown

    async def to_fastapi(self, scope: Scope, identity: Identity) -> Scope:
        if identity.authorization is not None or any(self.bearers(identity)):
            return scope
        claims = await self.session(identity)
        if claims is None or _from_another_site(scope):
            return scope
        return {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + self._tokens.mint(claims))]}

    async def to_legacy(self, scope: Scope, identity: Identity) -> Scope:
        bearer = bearer_of(identity.authorization)
        from_header, from_cookie = self.bearers(identity)
        claims = from_header if bearer else from_cookie
        if claims is None or (from_cookie and from_cookie["sub"] != claims["sub"]):
            return scope
        if await self.session(identity) is not None or (not bearer and _from_another_site(scope)):
            return scope
        value = await self._sessions.cookie_for(bearer or self._token(identity), claims, scope)
        if value is None:
            return scope
        identity.forged = claims
        cookie = replace_cookie(identity.cookie, self._sessions.cookie_name, value)
        headers = [header for header in scope["headers"] if header[0] != b"cookie"] + [(b"cookie", cookie)]
        if bearer and not any(name in (b"origin", b"referer") for name, _ in headers):
            headers += _own_origin(scope)
        return {**scope, "headers": headers}

    # --- what the client gets back

    async def after_fastapi(self, identity: Identity, status: int, headers: list[Header]) -> list[Header]:
        """Sign-in and sign-out on the port reach Flask's session; otherwise Flask's session slides as it always did."""
        answered = set_cookies(headers)
        name = self._sessions.cookie_name
        if (not answered and identity.bare) or any(cookie.name == name for cookie in answered):
            return headers
        session = await self.session(identity)
        issued = [cookie for cookie in answered if cookie.name == self._token_cookie and status < 400]
        signed_out = bool(issued) and issued[-1].deleted
        signed_in = self._tokens.verify(without_scheme(issued[-1].value)) if issued and not signed_out else None
        vary = b", ".join(value for key, value in headers if key.lower() == b"vary").decode("latin-1")
        saved: list[Header] | None
        if signed_out or (signed_in and signed_in != session):
            saved = await self._change_session(identity, signed_in, vary)
        elif session:
            saved = await self._sessions.ask(self._sessions.refresh, identity.scope, identity.cookie, vary)
        else:
            return headers
        return _saved(headers, saved) if saved else headers

    async def _change_session(self, identity: Identity, signed_in: Claims | None, vary: str) -> list[Header]:
        """A new session or none. When the store fails, the client loses the old one all the same."""
        sessions, scope = self._sessions, identity.scope
        if signed_in:
            saved = await sessions.ask(sessions.begin, scope, signed_in, vary)
        else:
            saved = await sessions.ask(sessions.end, scope, identity.cookie, vary)
        if saved is None:
            return sessions.expire(vary) if self._sends_session(identity) else []
        return saved

    async def after_legacy(self, identity: Identity, headers: list[Header]) -> list[Header]:
        """Sign-in and sign-out on legacy reach the port's token cookie; a forged session stays here."""
        token = self._token(identity)
        if identity.forged is None and not token:
            return headers
        bearer = self.bearers(identity)[1]
        keep, stale = headers, False
        for cookie in set_cookies(headers):
            if cookie.name != self._sessions.cookie_name:
                continue
            after = None if cookie.deleted else await self._named(identity, cookie)
            if identity.forged and not (after and after["sub"] != identity.forged["sub"]):
                keep = [header for header in keep if header is not cookie.header]
            if after is not _UNREAD and token:
                stale = cookie.deleted or (bearer is not None and (after is None or after["sub"] != bearer["sub"]))
        return [*keep, self._expired_token(identity)] if stale else keep

    async def _named(self, identity: Identity, cookie: SetCookie) -> Claims | None:
        """Whom a session cookie names that legacy has just set; `_UNREAD` when its store does not say."""
        sent = f"{cookie.name}={cookie.raw}".encode("latin-1")
        return await self._sessions.ask(self._sessions.read, identity.scope, sent, failed=_UNREAD)

    def _expired_token(self, identity: Identity) -> Header:
        name = self._token_cookie
        secure = is_secure(identity.scope) or name.startswith(("__Host-", "__Secure-"))
        line = dump_cookie(name, max_age=0, expires=0, secure=secure, httponly=True, samesite="Lax")
        return (b"set-cookie", line.encode("latin-1"))


def _saved(headers: list[Header], saved: list[Header]) -> list[Header]:
    """An answer with what saving a session adds; where that is a Vary, the answer's own is in it."""
    names = {name for name, _ in saved}
    others = [header for header in headers if header[0].lower() != b"vary"] if b"vary" in names else headers
    return [*others, *saved]


def _own_origin(scope: Scope) -> list[Header]:
    """What a page of ours would send: no browser adds an Authorization unasked, so a CSRF check may let it through."""
    scheme = b"https" if is_secure(scope) else b"http"
    return [(b"origin", scheme + b"://" + host) for name, host in scope["headers"] if name == b"host"][:1]


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
