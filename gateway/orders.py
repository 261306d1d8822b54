"""What people order, held against what is ported and what the evidence allows. The command line and the API obey alike.

A weight may fall at any time. It rises only for a route of which FastAPI answers something, and only as far as the
evidence goes that was asked for, unless somebody insists and says why: that, too, is written down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .audit import Audit, Event, utc_now
from .errors import GatewayError, NotPorted, WrongValue
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
from .model import Route
from .rollout.states import pause, resume
from .settings import Settings
from .shadow.verdicts import Verdicts
from .views import Views, is_ported, to_port

RAMP_ACTIONS = ("start", "pause", "resume")


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
        self._state, self._flags, self._views = settings.state_dir, flags, views

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
        Verdicts(self._state).forget(key)
        return self._note(key, "forget", order)

    def _note(self, key: str, action: str, order: Order) -> Event:
        """Write down what was done outside the flag file."""
        event = Event(0, utc_now(), printable(order.by), printable(order.why), key, "", "", "", "", action=action)
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
            raise GatewayError(f"{printable(key)}: who insists has to say why")
        return {"missing": list(objection.missing)}

    def _edit(self, change: Change, order: Order, evidence: Mapping[str, Any] | None = None) -> Event:
        return self._flags.edit(change, by=order.by, why=order.why, if_version=order.if_version, evidence=evidence)


_KINDS: Mapping[str, Callable[[str, int], SetWeight | SetShadow]] = {"weight": SetWeight, "shadow": SetShadow}


def _basis_points(key: str, percent: object) -> int:
    weight_bp = basis_points(str(percent))
    if weight_bp is None:
        raise WrongValue(printable(key), PERCENT, str(percent)[:100])
    return weight_bp
