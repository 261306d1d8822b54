"""Who answers: one pure function, read top to bottom."""

from dataclasses import replace
from hashlib import sha256

from .model import FULL_BP, Backend, Caller, Decision, Flag, FlagSet, Reason, Route

NOBODY = Caller()
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def bucket(salt: str, subject: str) -> int:
    """The subject's place on the line from 0 to 9 999 basis points; a weight serves all places below it.

    Stable over restarts, workers and machines; salts are independent of each other (a CRC is not: it is linear, so
    two routes would move the same people or exactly the others). Raising a weight moves nobody back.
    The first 32 bits of SHA-256 of `salt NUL subject` in UTF-8, big-endian, scaled: `(hash * 10 000) >> 32`.
    Source of the scaling: flagd `fractional.go`. Vectors: `tests/unit/bucket_vectors.json`.
    """
    digest = sha256(f"{salt}\0{subject}".encode()).digest()
    return (int.from_bytes(digest[:4], "big") * FULL_BP) >> 32


def decide(flags: FlagSet, route: Route, method: str, caller: Caller = NOBODY, *, dice_bp: int = FULL_BP) -> Decision:
    """Choose the backend of one request. The caller throws the dice (0 to 9 999) for the shadow."""
    flag = flags[route.key]
    choice = _choose(flags, flag, route, method, caller)
    if dice_bp >= flag.shadow_bp or method not in route.ported:
        return choice
    contained = flag.shadow_writes and choice.backend is Backend.LEGACY  # only a port can be made to roll back
    return replace(choice, shadow=method in SAFE_METHODS or contained)


def _choose(flags: FlagSet, flag: Flag, route: Route, method: str, caller: Caller) -> Decision:
    if method not in route.ported:
        return Decision(Backend.LEGACY, Reason.UNPORTED)
    if flags.override is not None:
        return Decision(flags.override, Reason.OVERRIDE)
    if route.key in flags.held:
        return Decision(Backend.LEGACY, Reason.HELD)
    if caller.asked is not None:
        return Decision(caller.asked, Reason.ASKED)
    if caller.subject in flag.pins:
        return Decision(Backend.FASTAPI, Reason.PINNED)

    if flag.weight_bp in (0, FULL_BP):
        return Decision(Backend.FASTAPI if flag.weight_bp else Backend.LEGACY, Reason.STATIC)

    place = bucket(flag.salt, caller.subject)
    return Decision(Backend.FASTAPI if place < flag.weight_bp else Backend.LEGACY, Reason.SPLIT, bucket_bp=place)


UNMATCHED = Decision(Backend.LEGACY, Reason.UNMATCHED)
NEW = Decision(Backend.FASTAPI, Reason.NEW)
