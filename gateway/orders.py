"""What people order, held against what is ported and what the evidence allows. The command line and the API obey alike.

A weight may fall at any time. It rises only for a route of which FastAPI answers something, and only as far as the
evidence goes that was asked for, unless somebody insists and says why: that, too, is written down.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .audit import Audit, Event, utc_now
from .errors import ConfigError, GatewayError, NotPorted, WrongValue
from .flagfile import (
    OVERRIDES,
    PERCENT,
    Change,
    SetOverride,
    SetRollout,
    SetShadow,
    SetWeight,
    basis_points,
    printable,
)
from .flags import FlagStore
from .keys import own_secret
from .model import Backend, Route
from .rollout.states import pause, resume
from .settings import Settings
from .shadow.verdicts import Verdicts
from .views import Views, is_ported, to_port

RAMP_ACTIONS = ("start", "pause", "resume")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants it, why, and how much."""

    by: str
    why: str = ""
    if_version: str = ""  # only if the flag file is at this version
    force: bool = False  # whatever the evidence says; takes a reason


class Orders:
    """Carries out what is ordered. Raises a GatewayError that says what is in the way; then nothing has changed."""

    def __init__(self, settings: Settings, flags: FlagStore, views: Views) -> None:
        self._settings, self._state = settings, settings.state_dir
        self._flags, self._views = flags, views

    def change(self, key: str, wanted: Mapping[str, object], order: Order) -> list[Event]:
        """Give a route another `weight`, `shadow` or both, in percent: numbers or their digits."""
        route = self._views.route(key)
        changes = [_KINDS[name](key, _basis_points(key, percent)) for name, percent in wanted.items()]
        evidence = [self._allowed(route, change, order) for change in changes]
        events: list[Event] = []
        for change, insisted in zip(changes, evidence, strict=True):
            event = self._edit(change, order, insisted)
            order = replace(order, if_version=event.version if order.if_version else "")
            events.append(event)
        return events

    def override(self, word: str, order: Order) -> Event:
        """Throw the panic switch. Nothing stands in its way."""
        if word not in OVERRIDES:
            raise WrongValue("override", "none, legacy or fastapi", word)
        return self._edit(SetOverride(word), order)

    def undo(self, event_id: int | str, order: Order) -> Event:
        """Put back what an event changed; a weight that was lowered on evidence rises again only as any other."""
        event = next((event for event in self._flags.audit() if str(event.id) == str(event_id)), None)
        weight_bp = basis_points(str(event.before)) if event and event.action != SetShadow.action else None
        if event and weight_bp is not None:
            self._insisted(event.key, weight_bp, order)
        return self._flags.undo(event_id, by=order.by, why=order.why, force=order.force)

    def ramp(self, key: str, action: str, order: Order, plan: str = "") -> Event:
        """Let a rollout wait, go on, or follow a plan of the flag file: one of RAMP_ACTIONS."""
        self._views.route(key)
        if action not in RAMP_ACTIONS:
            raise WrongValue("action", ", ".join(RAMP_ACTIONS), action)
        if action == "start":
            return self._edit(SetRollout(key, plan), order)
        if action == "pause":
            pause(self._state, key, by=order.by, why=order.why)
        elif action == "resume":
            resume(self._state, key)
        return self._note(key, action, order)

    def forget(self, key: str, order: Order) -> Event:
        """Delete what the shadows showed of a route, for a new start after a fix; the sums stay."""
        self._views.route(key)
        try:
            Verdicts(self._state).forget(key)
        except OSError as error:
            raise GatewayError(str(error)) from None
        return self._note(key, "forget", order)

    def token(self, side: str, who: str, keys: Sequence[str], lifetime: str, order: Order) -> tuple[str, Event]:
        """A pass with which a tester chooses a side for these routes; without any: for all. Only its id is recorded."""
        from .passes import ANY, mint  # brings in cryptography

        sides = [backend.value for backend in Backend]
        if side not in sides:
            raise WrongValue("side", " or ".join(sides), side)
        secret, expires_in_s = self._secret(), _seconds(lifetime)
        text, made = mint(
            secret, side=Backend(side), keys=keys or [ANY], who=who, expires_in_s=expires_in_s, now=time.time()
        )
        evidence = {"id": made.id, "who": made.who, "keys": sorted(made.keys), "expires_at": made.expires_at}
        return text, self._note(", ".join(sorted(made.keys)), "pass", order, after=side, evidence=evidence)

    def _secret(self) -> bytes:
        """What the workers sign with. Raises ConfigError where they could not know it."""
        secret = own_secret(self._settings)
        if not self._settings.secret_key and not (self._state / "secret_key").exists():
            raise ConfigError(f"no key can be kept in {self._state}: set GATEWAY_SECRET_KEY, for the workers as well")
        return secret

    def _note(
        self, key: str, action: str, order: Order, *, after: str = "", evidence: Mapping[str, Any] | None = None
    ) -> Event:
        """Write down what was done outside the flag file."""
        by, why = printable(order.by), printable(order.why)
        event = Event(0, utc_now(), by, why, printable(key), "", after, "", "", evidence or {}, action)
        return Audit(self._state).append(event, urgent=True)

    def _allowed(self, route: Route, change: SetWeight | SetShadow, order: Order) -> Mapping[str, Any]:
        """What the audit trail keeps beside a change. Raises what is in its way."""
        if isinstance(change, SetWeight):
            return self._insisted(route.key, change.weight_bp, order)
        if change.shadow_bp and not is_ported(route):
            raise NotPorted(route.key, to_port(route))
        return {}

    def _insisted(self, key: str, weight_bp: int, order: Order) -> Mapping[str, Any]:
        """What the audit trail keeps when somebody insists on a weight. Raises what is in its way otherwise."""
        objection = self._views.objection(key, weight_bp)
        if objection is None:
            return {}
        if not order.force:
            raise objection
        if not order.why:
            raise GatewayError(f"{printable(key)}: force needs a reason: say why")
        return {"missing": list(objection.missing)}

    def _edit(self, change: Change, order: Order, evidence: Mapping[str, Any] | None = None) -> Event:
        return self._flags.edit(change, by=order.by, why=order.why, if_version=order.if_version, evidence=evidence)


_KINDS: Mapping[str, Callable[[str, int], SetWeight | SetShadow]] = {"weight": SetWeight, "shadow": SetShadow}


def _basis_points(key: str, percent: object) -> int:
    weight_bp = basis_points(str(percent))
    if weight_bp is None:
        raise WrongValue(printable(key), PERCENT, str(percent)[:100])
    return weight_bp


def _seconds(lifetime: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([smhd])", lifetime, re.ASCII)
    if not match:
        raise WrongValue("expires", "a time like 30m, 8h or 7d", lifetime)
    return int(match[1]) * _UNITS_S[match[2]]
