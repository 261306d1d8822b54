"""What is there to see? One model of values for the command line, the control API and whoever draws a picture of it.

Everything comes from the flags in force, the state directory and, where somebody has loaded the applications, their
routes: a running gateway is not needed. Nothing here decides how it looks; weights and shares are percentages, times
seconds since the epoch unless they are text, which is ISO 8601.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .audit import Audit
from .errors import Blocked, NotPorted, NotShared, UnknownKey
from .flagfile import percent, printable
from .flags import FlagStore
from .hosts import Hosts
from .ledger import Ledger, Worker
from .metrics import Facts
from .model import FULL_BP, Flag, FlagSet, Outcome, Rollout, Route
from .rollout.states import Ramp, Ramps, status
from .settings import Settings
from .shadow.keeper import status as shadow_status
from .shadow.noise import noisy
from .shadow.verdicts import Verdicts

log = logging.getLogger(__name__)

SIDES = ("legacy", "split", "fastapi")
TOLERATED_BP = 10  # mismatches of a route without a plan

View = dict[str, Any]

_ROUTES = "routes.json"
_IMPLIED = frozenset({"HEAD", "OPTIONS"})  # Flask adds them, FastAPI does not: nobody misses them
_PARAMETER = re.compile(r"<(?:(\w+)(?:\(.*?\))?:)?(\w+)>", re.ASCII)


class Views:
    """Answers about one gateway. Reads files and SQLite: an event loop asks in a thread."""

    def __init__(
        self,
        settings: Settings,
        flags: FlagStore,
        routes: Mapping[str, Route] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self._state, self._hosts = settings.state_dir, hosts
        self._store, self._known = flags, routes
        self._ledger, self._trail, self._verdicts = Ledger(self._state), Audit(self._state), Verdicts(self._state)

    # --- routes and flags ---

    def route(self, key: str) -> Route:
        """The route of `key`; UnknownKey names the nearest."""
        routes = self._known or {}
        if key not in routes:
            raise UnknownKey(printable(key), *get_close_matches(key[:200], routes, 1))
        return routes[key]

    def routes(self) -> list[View]:
        """Every route: what it is, what is ported of it, and who answers it."""
        flags = self._store.current
        return [route_view(route, flags) for _, route in sorted((self._known or {}).items())]

    def flag(self, key: str) -> View:
        """One route, as in `routes`, and the version of the flags."""
        flags = self._store.current
        return {**route_view(self.route(key), flags), "version": flags.version}

    def flags(self) -> View:
        """The flags in force and what is wrong with those on disk."""
        flags = self._store.current
        return {
            "version": flags.version,
            "override": flags.override.value if flags.override else "none",
            "rejected": self._store.rejected,
            "held": sorted(flags.held),
            "routes": {key: flag_view(flag) for key, flag in sorted(flags.flags.items())},
            "rollouts": {name: plan_view(plan) for name, plan in sorted(flags.rollouts.items())},
        }

    def objection(self, key: str, weight_bp: int) -> NotPorted | Blocked | None:
        """What is in the way of a weight, if it is higher than the one in force."""
        flags = self._store.current
        if weight_bp <= flags[key].weight_bp:
            return None
        if self._known is not None and not is_ported(route := self.route(key)):
            return NotPorted(key, to_port(route))
        missing = tuple(self._missing(flags, key, weight_bp))
        return Blocked(key, missing) if missing else None

    def _missing(self, flags: FlagSet, key: str, weight_bp: int) -> Iterator[str]:
        """The evidence that was asked for and that does not allow this weight."""
        plan = flags.rollouts.get(flags[key].rollout)
        if plan:
            yield from _unearned(plan, status(self._state, key), weight_bp)
        tally = self._verdicts.tallies(fresh=True).get(key, {})
        differing = tally.get(Outcome.MISMATCHED, 0)
        compared = differing + tally.get(Outcome.MATCHED, 0)
        tolerated_bp = plan.max_mismatches_bp if plan else TOLERATED_BP
        if differing * FULL_BP > compared * tolerated_bp:
            yield f"{differing} of {compared} shadow comparisons differ, {percent(tolerated_bp)} % are tolerated"

    # --- what happened ---

    def verdicts(self, key: str = "") -> list[View]:
        """What the shadows showed of every route that was replayed, or of one: outcomes, causes, noise."""
        tallies, pairs, noise = self._verdicts.tallies(), self._verdicts.pairs(), self._verdicts.noise(key)
        groups: dict[str, list[View]] = {}
        for group in self._verdicts.groups(key):
            groups.setdefault(group.key, []).append({**asdict(group), "candidate": group.candidate.value})
        return [
            {
                "key": name,
                "outcomes": {outcome.value: count for outcome, count in tallies.get(name, {}).items()},
                "statuses": [
                    {"control": control, "candidate": candidate, "count": count}
                    for (control, candidate), count in sorted(pairs.get(name, {}).items())
                ],
                "groups": groups.get(name, []),
                "noise": noisy(noise.get(name, {})),
            }
            for name in sorted(tallies.keys() | groups.keys() | noise.keys())
            if key in ("", name)
        ]

    def rollouts(self, key: str = "") -> list[View]:
        """Every ramp and where it stands, or the one that moves `key`."""
        flags = self._store.current
        planned = {name for name, flag in flags.flags.items() if flag.rollout}
        _, ramps = Ramps(self._state).load()
        begun = {member for ramp in ramps.values() for member in ramp.members}
        views = [ramp_view(ramp, flags.rollouts.get(ramp.plan)) for _, ramp in sorted(ramps.items())]
        views += [planned_view(flags[name], flags.rollouts[flags[name].rollout]) for name in sorted(planned - begun)]
        return [view for view in views if key in ("", *view["keys"])]

    def workers(self) -> list[View]:
        """The live workers of all hosts, and the flags each of them runs."""
        return [asdict(worker) for worker in self.live_workers()]

    def live_workers(self) -> list[Worker]:
        """Those of all hosts, as far as they can be reached."""
        with suppress(NotShared):
            if self._hosts:
                return [Worker(**asdict(worker)) for worker in self._hosts.workers()]
        return self._ledger.workers()

    def audit(self, key: str = "", limit: int = 0) -> list[View]:
        """Who changed what, newest last: all, or the last `limit` of one key."""
        events = [asdict(event) for event in self._trail.events() if key in ("", event.key)]
        return events[-limit:]

    def verify(self, kept_head: str = "") -> View:
        """Whether the audit trail is as it was written, and its head, to be kept where nobody can write."""
        problems = [asdict(problem) for problem in self._trail.verify(kept_head)]
        return {"head": self._trail.head(), "problems": problems}

    def health(self) -> View:
        """One word, and what is wrong in sentences; the most urgent first."""
        workers = self.live_workers()
        problems = list(self._problems(workers))
        return {
            "status": "degraded" if problems else "ok",
            "problems": problems,
            "version": self._store.current.version,
            "workers": len(workers),
            "led": is_led(self._state),
        }

    def _problems(self, workers: Sequence[Worker]) -> Iterator[str]:
        flags = self._store.current
        for reason in dict.fromkeys(
            [*self._store.trouble, *(worker.rejected for worker in workers if worker.rejected)]
        ):
            yield f"the flags on disk are not in force everywhere: {reason}"
        if flags.override:
            yield f"the panic switch is thrown: {flags.override.value}"
        for key in sorted(flags.held):
            yield f"{key} is held on legacy by the breaker of a worker"
        for instrument, count in _dropped(self._ledger.workers()).items():
            if count:
                yield f"{instrument}: {count} writes failed since the workers began"
        for key, until in sorted(shadow_status(self._state).suspended.items()):
            yield f"{key} is not replayed until {_iso(until)}: it took the process that replays along"
        lagging = sum(worker.version != flags.version for worker in workers)
        if lagging:
            yield f"{lagging} of {len(workers)} workers run another version of the flags"

    def facts(self) -> Facts:
        """For `gateway.metrics`."""
        workers = self._ledger.workers()
        groups = Counter(group.key for group in self._verdicts.groups())
        return Facts(
            flags=self._store.current,
            counters=self._ledger.counters(),
            fallbacks=self._ledger.fallbacks(),
            shadows={
                key: {outcome.value: count for outcome, count in tally.items()}
                for key, tally in self._verdicts.tallies().items()
            },
            groups=groups,
            steps={key: view["step"] for view in self.rollouts() for key in view["keys"]},
            versions=[worker.version for worker in workers],
            rejecting=sum(bool(worker.rejected) for worker in workers),
            led=is_led(self._state),
            dropped=_dropped(workers),
        )


def dumps(value: object, indent: int | None = None) -> str:
    """`value` as JSON in ASCII, so that control characters are escaped; numbers that JSON has not are null."""
    try:
        return json.dumps(value, indent=indent, default=str, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, indent=indent)


def route_view(route: Route, flags: FlagSet) -> View:
    return {
        "key": route.key,
        "rules": list(route.rules),
        "methods": sorted(route.methods),
        "ported": sorted(route.ported),
        "side": side(route, flags),
        **flag_view(flags[route.key]),
    }


def flag_view(flag: Flag) -> View:
    return {
        "weight": percent(flag.weight_bp),
        "shadow": percent(flag.shadow_bp),
        "cohort": flag.cohort,
        "pins": sorted(flag.pins),
        "ignore": list(flag.ignore),
        "rollout": flag.rollout,
        "shadow_writes": flag.shadow_writes,
    }


def plan_view(plan: Rollout) -> View:
    return {
        "steps": [percent(step) for step in plan.steps_bp],
        "every_s": plan.every_s,
        "min_requests": plan.min_requests,
        "max_errors": percent(plan.max_errors_bp),
        "max_mismatches": percent(plan.max_mismatches_bp),
        "max_p95_ratio": plan.max_p95_ratio,
    }


def planned_view(flag: Flag, plan: Rollout) -> View:
    """A ramp that nobody has begun."""
    return {
        "name": flag.key,
        "keys": [flag.key],
        "plan": flag.rollout,
        "state": "not begun",
        "weight": percent(flag.weight_bp),
        "step": 0,
        "steps": len(plan.steps_bp),
        "why": "no worker has led since it was planned",
        "missing": [],
        "evidence": {},
        "since": "",
        "in_step_s": 0.0,
        "rollbacks": 0,
    }


def ramp_view(ramp: Ramp, plan: Rollout | None) -> View:
    steps = plan.steps_bp if plan else ()
    step = ramp.step
    return {
        "name": ramp.name,
        "keys": sorted(ramp.members),
        "plan": ramp.plan,
        "state": _ramp_state(ramp, steps),
        "weight": percent(ramp.weight_bp),
        "step": sum(step_bp <= ramp.weight_bp for step_bp in steps),
        "steps": len(steps),
        "why": ramp.paused or ramp.frozen or (step.why if step else ""),
        "missing": list(step.missing) if step else [],
        "evidence": dict(step.evidence) if step else {},
        "since": ramp.at,
        "in_step_s": round(ramp.in_step_s, 1),
        "rollbacks": ramp.rollbacks,
    }


def _ramp_state(ramp: Ramp, steps_bp: Sequence[int]) -> str:
    if ramp.drill_bp is not None:
        return "drilling"
    if ramp.move:
        return "moving"
    if ramp.paused:
        return "paused"
    if ramp.frozen:
        return "frozen"
    if steps_bp and ramp.weight_bp >= steps_bp[-1]:
        return "watching"
    return "rolled back" if ramp.rollbacks and not ramp.weight_bp else "ramping"


def _unearned(plan: Rollout, ramp: Ramp | None, weight_bp: int) -> Iterator[str]:
    """Why a rollout would not go to this weight now."""
    if ramp is None:
        first_bp = plan.steps_bp[0]
        if weight_bp > first_bp:
            yield f"the ramp has not begun, and the plan {plan.name} begins with {percent(first_bp)} %"
        return
    if ramp.step and ramp.step.missing:
        yield from ramp.step.missing
        return
    following_bp = next((step_bp for step_bp in plan.steps_bp if step_bp > ramp.weight_bp), FULL_BP)
    if weight_bp > following_bp:
        here, following = percent(ramp.weight_bp), percent(following_bp)
        yield f"the plan {plan.name} goes from {here} % to {following} % first"


def side(route: Route, flags: FlagSet) -> str:
    """Who answers what is ported of a route: one of SIDES."""
    if not is_ported(route):
        return "legacy"
    if flags.override:
        return flags.override.value
    flag = flags[route.key]
    if route.key in flags.held:
        return "legacy"
    if flag.needs_subject:
        return "split"
    return "fastapi" if flag.weight_bp else "legacy"


# --- what is ported -----------------------------------------------------------------------------------------------


def is_ported(route: Route) -> bool:
    """Whether FastAPI answers anything of it; a method may be ported for some of its rules only."""
    return bool(route.ported or route.paired)


def to_port(route: Route) -> tuple[str, ...]:
    """What is to be written in FastAPI, one line per rule and method: `@app.get("/items/{item_id}", name="item")`."""
    missing = sorted(route.methods - route.ported - _IMPLIED)
    return tuple(
        f'@app.{method.lower()}("{_template(rule)}", name="{route.key}")' for rule in route.rules for method in missing
    )


def _template(rule: str) -> str:
    """A rule of Flask as a path of FastAPI."""
    return _PARAMETER.sub(lambda m: f"{{{m[2]}:path}}" if m[1] == "path" else f"{{{m[2]}}}", rule)


# --- routes without the applications ------------------------------------------------------------------------------


def publish_routes(state: Path, routes: Mapping[str, Route]) -> None:
    """Let commands know the routes of a running worker. Where that fails they load the applications themselves."""
    rows = [[r.key, r.rules, sorted(r.methods), sorted(r.ported), dict(r.paired)] for r in routes.values()]
    fresh = state / f".{_ROUTES}.{os.getpid()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"at": time.time(), "routes": rows}))
        fresh.replace(state / _ROUTES)
    except OSError as error:
        log.warning("%s is not written: %s", state / _ROUTES, error.strerror)


def published_routes(state: Path, workers: Iterable[Worker]) -> dict[str, Route] | None:
    """The routes that live workers published; None when no such worker is known to have done so."""
    started = [worker.started_at for worker in workers]
    try:
        document = json.loads((state / _ROUTES).read_text())
        if not started or document["at"] < min(started):
            return None
        return {
            key: Route(key, tuple(rules), frozenset(methods), frozenset(ported), paired)
            for key, rules, methods, ported, paired in document["routes"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _dropped(workers: Iterable[Worker]) -> dict[str, int]:
    """What the instruments of the live workers could not write."""
    total: Counter[str] = Counter()
    for worker in workers:
        total.update(worker.dropped)
    return dict(total)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def is_led(state: Path) -> bool:
    """Whether a worker of this host holds the leader's lock."""
    try:
        descriptor = os.open(state / "leader.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for microseconds: who wants it asks again
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
