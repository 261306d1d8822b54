"""Why was that request answered by that side, and who answers whom? From journal, audit trail and kept flags alone.

Nothing has to run for it. A decision is a function of what was written down, so it is made again, and has to agree.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .audit import Audit, Event, epoch
from .decide import NEW, UNMATCHED, bucket, decide
from .errors import ConfigError, GatewayError
from .flagfile import parse_flags, percent, printable
from .journal import Entry, Journal
from .model import Caller, Decision, FlagSet, Reason, Route

_BECAUSE = {
    Reason.UNMATCHED: "Flask's map has no such rule, and legacy says so in its own words",
    Reason.NEW: "only FastAPI has it",
    Reason.UNPORTED: "FastAPI does not answer this method",
    Reason.OVERRIDE: "the panic switch is thrown",
    Reason.HELD: "the breaker of that worker holds the route on legacy",
    Reason.ASKED: "the caller showed a pass for that side",
    Reason.PINNED: "the flag names this subject",
    Reason.STATIC: "the weight is {weight} %, for everybody",
    Reason.SPLIT: "bucket {bucket} % against a weight of {weight} %",
}
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Explanation:
    """The same for a person and for a program."""

    sentences: tuple[str, ...]
    facts: Mapping[str, Any]
    agrees: bool | None = None  # whether deciding again gives what was written down; None: nothing to compare


def explain_request(state: Path, request_id: str) -> Explanation:
    """One past request of this host. Raises GatewayError when the journal has none of that id (any more)."""
    entry = Journal.find(state, request_id)
    if entry is None:
        reasons = "another host, longer ago than the journal reaches, or within the last second"
        raise GatewayError(f"no request '{printable(request_id, 200)}' in {state / 'journal'}: {reasons}")
    events, text = Audit(state).events(), Audit(state).text_of(entry.version)
    flags = parse_flags(text, None) if text is not None else None if entry.version else FlagSet()
    again = _decide_again(entry, flags) if flags is not None else None
    agrees = again == _recorded(entry) if again else None
    said = [_answer(entry), _because(_recorded(entry), entry.key, entry.subject, flags)]
    if entry.shadow:
        said.append("It was also chosen to be replayed on the other side.")
    if again is None:
        said.append(f"The text of version {entry.version} is not kept, so it cannot be decided again.")
    elif agrees:
        said.append("Decided again from what was written down: the same.")
    else:
        said.append(f"Decided again from what was written down: {again.backend.value} ({again.reason.value})!")
    past = [event for event in events if epoch(event.at) <= entry.at]
    said += _history(
        "override" if entry.reason is Reason.OVERRIDE else entry.key, past, held=entry.reason is Reason.HELD
    )
    facts = {**asdict(entry), "backend": entry.backend.value, "reason": entry.reason.value, "agrees": agrees}
    return Explanation(tuple(said), facts, agrees)


def explain_subject(
    state: Path, flags: FlagSet, route: Route, method: str, subject: str, *, at: float | None = None
) -> Explanation:
    """Who answers a subject under `flags`: those of now or, with their time `at`, those of `flags_at`."""
    key, decision = route.key, decide(flags, route, method, Caller(subject))
    was, when = ("was", f" at {_iso(at)}") if at is not None else ("is", "")
    who = printable(subject) or "nobody in particular"
    said = [f"{method} {key} for {who} {was} for {decision.backend.value}{when}."]
    said.append(_because(decision, key, subject, flags))
    past = [event for event in Audit(state).events() if at is None or epoch(event.at) <= at]
    hold = _hold(key, past, flags)
    said += _history("override" if decision.reason is Reason.OVERRIDE else key, past, held=False)
    if hold:
        said.append(f"In a worker whose breaker held it, legacy answered: {_event(hold)}.")
    facts = {
        "key": key,
        "method": method,
        "subject": subject,
        "at": at,
        "backend": decision.backend.value,
        "reason": decision.reason.value,
        "bucket": percent(bucket(flags[key].salt, subject)),
        "weight": percent(flags[key].weight_bp),
        "version": flags.version,
        "held_by_event": hold.id if hold else None,
    }
    return Explanation(tuple(said), facts)


def flags_at(state: Path, at: float) -> FlagSet:
    """The flags in force on this host at a time. Raises GatewayError when nobody knows, or their text is not kept."""
    audit = Audit(state)
    version = audit.version_at(at)
    if not version:
        raise GatewayError(f"which flags were in force at {_iso(at)} is not known: the audit trail names none")
    text = audit.text_of(version)
    if text is None:
        raise GatewayError(f"version {version} was in force at {_iso(at)}, but its text is not kept")
    return parse_flags(text, None)


def moment(text: str, now: float) -> float:
    """A time as people write it, in seconds since the epoch: `2026-03-01T03:00` (UTC), `10m ago`, `1767225600`."""
    if match := re.fullmatch(r"(\d{1,9})([smhd])( ago)?", text.strip(), re.ASCII):
        return now - int(match[1]) * _UNITS_S[match[2]]
    if re.fullmatch(r"\d{9,11}(\.\d+)?", text.strip(), re.ASCII):
        return float(text)
    try:
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        expected = "a time like 2026-03-01T03:00 (UTC), 10m ago, or seconds since 1970"
        raise ConfigError(f"expected {expected}, not '{printable(text, 60)}'") from None


# --- decisions --------------------------------------------------------------------------------------------------------


def _recorded(entry: Entry) -> Decision:
    return Decision(entry.backend, entry.reason, entry.shadow, entry.bucket_bp)


def _decide_again(entry: Entry, flags: FlagSet) -> Decision:
    """What follows from the flags, and from what only the worker knew: its holds, passes, ported methods and dice."""
    if entry.reason is Reason.UNMATCHED:
        return UNMATCHED
    if entry.reason is Reason.NEW:
        return NEW
    ported = frozenset() if entry.reason is Reason.UNPORTED else frozenset({entry.method})
    route = Route(entry.key, (), frozenset({entry.method}), ported)
    held = frozenset({entry.key}) if entry.reason is Reason.HELD else frozenset[str]()
    caller = Caller(entry.subject, entry.backend if entry.reason is Reason.ASKED else None)
    again = decide(replace(flags, held=held), route, entry.method, caller)
    return replace(again, shadow=entry.shadow and flags[entry.key].shadow_bp > 0)


def _because(decision: Decision, key: str, subject: str, flags: FlagSet | None) -> str:
    flag = flags[key] if flags else None
    weight = percent(flag.weight_bp) if flag else "?"
    place = bucket(flag.salt, subject) if flag else decision.bucket_bp or 0
    because = _BECAUSE[decision.reason].format(weight=weight, bucket=percent(place))
    version = f"flags {flags.version}" if flags and flags.version else "no flag file" if flags else "flags not kept"
    return f"{decision.reason.value}: {because} ({version})."


# --- sentences --------------------------------------------------------------------------------------------------------


def _answer(entry: Entry) -> str:
    who, what = printable(entry.subject) or "nobody in particular", printable(entry.key) or "a path without a rule"
    request = f"{printable(entry.method)} {what} for {who} at {_iso(entry.at)}"
    if entry.fallback:
        return f"{request}: {entry.backend.value} was chosen and failed, legacy answered {entry.status} in its place."
    return f"{request}: {entry.backend.value} answered {entry.status}."


def _history(key: str, past: Sequence[Event], *, held: bool) -> list[str]:
    """Who made it so: the last event about `key`, and before it the last one of its holds, if that is the reason."""
    about = [event for event in past if event.key == key]
    last = next((event for event in reversed(about) if _is_hold(event) == held), None)
    return [f"Made so by {_event(last)}."] if last else []


def _event(event: Event) -> str:
    why = f": {event.why}" if event.why else ""
    return f"event {event.id} of {event.by} at {event.at}, from {event.before} to {event.after}{why}"


def _hold(key: str, past: Sequence[Event], flags: FlagSet) -> Event | None:
    """A hold of the route that was still on: none of the flags since then gave it another weight."""
    about = [event for event in past if event.key == key]
    last = about[-1] if about else None
    on = last is not None and _is_hold(last) and last.before == percent(flags[key].weight_bp)
    return last if on else None


def _is_hold(event: Event) -> bool:
    return event.after == "held"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
