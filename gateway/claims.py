"""What a credential says of its owner, and how the keys of a session and the claims of a token say the same."""

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any
from uuid import UUID

from .errors import ConfigError

Claims = dict[str, str | int]  # what a verified credential says, by claim name; always with "sub", which is text

_OURS = ("iss", "aud", "exp", "iat", "nbf", "jti")  # written into every token, whoever it is for


def _integer_if_one(value: str | int) -> str | int:
    """RFC 7519 wants `sub` to be text; a number written as Python writes it was a number in the session."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value


_RESTORE: Mapping[str, Callable[[Any], Any]] = {"": lambda value: value, "int": int, "str": str, "uuid": UUID}


class ClaimMap:
    """`{user_id = "sub", token = "sid"}`. `"sub:str"`, `"sub:int"`, `"sub:uuid"` say what the session holds.

    Without it `sub` becomes a number when it is the canonical decimal form of one; other claims are kept as they are.
    Raises ConfigError for anything else.
    """

    def __init__(self, spec: Mapping[str, str]) -> None:
        self._mapped = [(key, *_parse(key, text)) for key, text in spec.items()]
        self.names = [claim for _, claim, _ in self._mapped]
        if "sub" not in self.names or len(set(self.names)) < len(self.names):
            raise ConfigError("identity.claims: one session key must be sub, and no two may be the same claim")

    def of_session(self, session: Mapping[str, Any]) -> Claims | None:
        """None when one is missing or cannot be a claim."""
        return _claims((claim, session.get(key)) for key, claim, _ in self._mapped)

    def of_token(self, payload: Mapping[str, Any]) -> Claims | None:
        """None when one is missing or cannot be kept in a session."""
        return _claims((claim, payload.get(claim)) for claim in self.names)

    def put(self, claims: Claims, session: MutableMapping[str, Any]) -> None:
        """Raises ValueError for a claim that is not what the session holds."""
        for key, claim, restore in self._mapped:
            session[key] = restore(claims[claim])


def _parse(key: str, text: str) -> tuple[str, Callable[[Any], Any]]:
    """The claim, and what makes the value in the session of it again."""
    claim, _, kind = text.partition(":")
    if not claim or kind not in _RESTORE:
        raise ConfigError(f"identity.claims: {key}: expected a claim, or claim:int, :str or :uuid, not {text!r}")
    if claim in _OURS:
        raise ConfigError(f"identity.claims: {key}: {claim} is written by the gateway itself")
    return claim, _integer_if_one if (claim, kind) == ("sub", "") else _RESTORE[kind]


def _claims(values: Iterable[tuple[str, object]]) -> Claims | None:
    """The values as text and numbers; None when one is neither."""
    claims: Claims = {}
    for name, value in values:
        plain = str(value) if isinstance(value, UUID) else value
        if not isinstance(plain, (str, int)) or isinstance(plain, bool) or plain == "":
            return None
        claims[name] = str(plain) if name == "sub" else plain
    return claims
