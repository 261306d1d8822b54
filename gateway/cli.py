"""The `gateway` command: serve, look, and change flags. Works beside a running server and without one.

Heavy imports stand inside the commands, so that `gateway --help` is quick. What comes from outside (keys, reasons,
error messages) reaches the terminal only with its control characters escaped.
"""

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from . import show
from .errors import Blocked, ConfigError, GatewayError, NotShared
from .settings import Settings

if TYPE_CHECKING:
    from .audit import Event
    from .flags import FlagStore
    from .hosts import Hosts
    from .ledger import Worker
    from .model import Route
    from .orders import Order, Orders
    from .routes import Pair
    from .views import Views
    from .why import Explanation

POLL_S = 0.02  # between looks at the acknowledgements of the workers
LATE, WRONG, BLOCKED = 1, 2, 3
_EXIT_CODES = {NotShared: LATE, Blocked: BLOCKED}

app = typer.Typer(
    name="gateway",
    help="Move a Flask application to FastAPI route by route.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 not every worker acknowledged in time, or the audit trail is not whole,
    2 wrong input or configuration, 3 blocked by the evidence.
    """
    try:
        app(args=arguments, prog_name="gateway")
    except GatewayError as error:
        for line in str(error).splitlines():
            show.complain(line)
        sys.exit(next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), WRONG))


# --- options ------------------------------------------------------------------------------------------------------

_OPTIONS = {  # settings that are options of `gateway serve`, with their help
    "legacy": "Flask or any WSGI application: package.module:app_or_factory",
    "fastapi": "FastAPI application: package.module:app_or_factory",
    "flags": "Flag file; without one everything is legacy",
    "state": "Directory of ledger and audit trail",
    "host": "Address to listen on",
    "port": "Port to listen on",
    "workers": "Processes",
    "threads": "Legacy threads per worker",
    "bridge": "native or a2wsgi",
    "served_by": "Say in headers which side answered",
    "route_once": "Hand Flask the match that the gateway already has",
    "trusted_hops": "Proxies in front whose X-Forwarded-* is believed",
    "stream_request": "Endpoint that reads its body while it arrives; may be repeated",
    "queue": "Requests that may wait for a legacy thread",
    "queue_wait_s": "Seconds that one may wait, then 503",
    "max_body_bytes": "Largest request body, then 413; 0: no limit",
    "spool_memory_bytes": "Request bodies held in memory per worker",
    "window_bytes": "Bytes of a streamed response in flight",
    "spool_response_bytes": "Bytes produced ahead of a slow reader",
    "send_timeout_s": "Seconds until a reader that takes nothing is cut off",
    "head_timeout_s": "Seconds for a request head",
    "body_timeout_s": "Seconds without one more byte of a body",
    "keep_alive_s": "Seconds an idle connection is kept",
    "drain_s": "Seconds for requests in flight after SIGTERM",
    "max_headers": "Header lines of a request, then 431",
    "max_header_bytes": "Bytes of a request head, then 431",
    "log_level": "critical, error, warning, info, debug or trace",
    "ledger": "Counters, journal, shadows and rollouts; without: routing alone",
    "port_timeout_s": "Seconds for the first byte of a ported route, then legacy answers a GET",
    "journal_bytes": "What `gateway why REQUEST-ID` can look back on; 0: nothing",
    "request_id_header": "Where a proxy in front puts its request id",
    "shadow_concurrency": "Replays at once",
    "shadow_queue": "Exchanges that wait for one, per worker",
    "shadow_body_bytes": "Largest request or answer that is replayed",
    "shadow_timeout_s": "Seconds for one replay",
    "shadow_cpu_share": "Of one core, for the process that replays",
    "shadow_memory_bytes": "That the process that replays may add to its size at start",
    "memory_budget_bytes": "That a worker may grow by while a rollout runs",
}
_APPLICATION = ("legacy", "fastapi", "flags", "state")

Command = Callable[..., None]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="An endpoint of the Flask application.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when every live worker runs the new version.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Reason, for the audit trail.")]
Percent = Annotated[str, typer.Argument(metavar="PERCENT", help="0 to 100, up to two decimals.")]
IfVersion = Annotated[str, typer.Option(metavar="VERSION", help="Only if the file is at this version.")]


def _with_settings(names: Iterable[str]) -> Callable[[Command], Command]:
    """Give a command options for these settings, and all settings, merged, as its first argument."""
    hints = get_type_hints(Settings)

    def option(name: str) -> inspect.Parameter:
        kind: Any = list[str] if hints[name] == tuple[str, ...] else hints[name]
        annotation: Any = Annotated[kind | None, typer.Option(help=_OPTIONS[name])]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            lists = {name: tuple(value) or None for name, value in given.items() if isinstance(value, list)}
            command(Settings.load(given | lists), **values)

        _, *own = inspect.signature(command).parameters.values()
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature([*own, *map(option, names)])  # type: ignore[attr-defined]
        return run

    return decorate


# --- commands -----------------------------------------------------------------------------------------------------


@app.command()
@_with_settings(_OPTIONS)
def serve(settings: Settings) -> None:
    """Serve both applications until SIGTERM or Ctrl-C."""
    from .server import serve as run

    raise typer.Exit(run(settings))


@app.command()
@_with_settings(_APPLICATION)
def check(settings: Settings, as_json: Json = False) -> None:
    """Show how routes were paired, what is new, and what stops running on the port; fail when something is wrong."""
    project = _Project(settings)
    report = {
        "pairs": [_pair(pair) for pair in project.table.pairs()],
        "new": sorted(project.table.new),
        "flags": project.flag_summary(),
        "warnings": project.warnings(),
    }
    if as_json:
        show.as_json(report)
    else:
        show.check(project.table.pairs(), report)


@app.command()
def lint(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Packages.")], as_json: Json = False
) -> None:
    """Find blocking calls in coroutines, through all functions of a package; fail when there are any."""
    from .lint import lint as read

    findings = [finding for folder in folders for finding in read(folder)]
    if as_json:
        show.as_json([asdict(finding) | {"path": str(finding.path)} for finding in findings])
    else:
        show.lint(findings)
    raise typer.Exit(LATE if findings else 0)


@app.command()
@_with_settings(_APPLICATION)
def routes(settings: Settings, as_json: Json = False) -> None:
    """List every route: who answers it, and what is ported."""
    views = _Project(settings).views.routes()
    (show.as_json if as_json else show.routes)(views)


@app.command("set", context_settings={"ignore_unknown_options": True})  # so that -1 is a number out of range
@_with_settings(_APPLICATION)
def set_(  # noqa: PLR0913  # options of a command
    settings: Settings,
    *,
    key: Key,
    percent: Percent,
    wait: Wait = False,
    timeout: Timeout = 10.0,
    why: Why = "",
    if_version: IfVersion = "",
    force: Annotated[bool, typer.Option("--force", help="Whatever the evidence says; takes --why.")] = False,
    as_json: Json = False,
) -> None:
    """Let FastAPI serve PERCENT of the subjects of a route."""
    desk = _desk(settings)
    (event,) = desk.orders.change(key, {"weight": percent}, _order(why, if_version, force=force))
    _report(desk, event, timeout if wait else None, as_json=as_json)


@app.command(context_settings={"ignore_unknown_options": True})
@_with_settings(_APPLICATION)
def shadow(  # noqa: PLR0913  # options of a command
    settings: Settings,
    *,
    key: Key,
    percent: Percent,
    wait: Wait = False,
    timeout: Timeout = 10.0,
    why: Why = "",
    if_version: IfVersion = "",
    as_json: Json = False,
) -> None:
    """Replay PERCENT of the requests of a route on the other side, after the client has its answer."""
    desk = _desk(settings)
    (event,) = desk.orders.change(key, {"shadow": percent}, _order(why, if_version))
    _report(desk, event, timeout if wait else None, as_json=as_json)


@app.command()
@_with_settings(_APPLICATION)
def override(  # options of a command
    settings: Settings,
    *,
    side: Annotated[str, typer.Argument(metavar="none|legacy|fastapi")],
    wait: Wait = False,
    timeout: Timeout = 10.0,
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Throw the panic switch: one side answers everything that is ported.

    Does not import the applications: it has to work when they do not.
    """
    desk = _Desk(settings)
    event = desk.orders.override(side, _order(why))
    _report(desk, event, timeout if wait else None, as_json=as_json)


@app.command()
@_with_settings(_APPLICATION)
def ramp(  # options of a command
    settings: Settings,
    *,
    key: Key,
    action: Annotated[str, typer.Argument(metavar="start|pause|resume")],
    plan: Annotated[str, typer.Option(metavar="NAME", help="For start: a rollout of the flag file.")] = "",
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Let the weight of a route follow a plan, wait, or go on. What is paused may still be rolled back."""
    event = _desk(settings).orders.ramp(key, action, _order(why), plan)
    if as_json:
        show.as_json(asdict(event))
    else:
        show.say(f"{event.key}: {event.action} {event.after}".rstrip() + show.number(event.id))


@app.command()
@_with_settings(_APPLICATION)
def drill(settings: Settings, *, key: Key, why: Why = "", as_json: Json = False) -> None:
    """Prove that a route can be rolled back: legacy answers everybody for a moment. Says how long each way took."""
    from .rollout.drill import drill as run

    desk = _desk(settings)
    route = desk.views.route(key)
    done = run(route.key, desk.store, desk.views.live_workers, settings.state_dir, by=_user(), why=why)
    if as_json:
        show.as_json(asdict(done))
    else:
        there, back = done.rolled_back_s * 1000, done.restored_s * 1000
        show.say(f"{key}: all {done.workers} workers on legacy after {there:.0f} ms, and back after {back:.0f} ms")


@app.command()
@_with_settings(_APPLICATION)
def rollouts(
    settings: Settings,
    *,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="One route only.")] = "",
    as_json: Json = False,
) -> None:
    """Show where every ramp stands, why, and which evidence it misses."""
    desk = _desk(settings) if key else _Desk(settings)
    views = desk.views.rollouts(key and desk.views.route(key).key)
    (show.as_json if as_json else show.rollouts)(views)


@app.command()
@_with_settings(_APPLICATION)
def verdicts(
    settings: Settings,
    *,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="One route only.")] = "",
    forget: Annotated[bool, typer.Option("--forget", help="Delete the causes of KEY, after a fix.")] = False,
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Show what the shadows showed: outcomes, causes with a sample, noise."""
    desk = _desk(settings) if key else _Desk(settings)
    if forget and not key:
        raise ConfigError("say which route's causes are to be forgotten")
    if forget:
        desk.orders.forget(key, _order(why))
    views = desk.views.verdicts(key and desk.views.route(key).key)
    (show.as_json if as_json else show.verdicts)(views)


@app.command()
@_with_settings(_APPLICATION)
def workers(settings: Settings, as_json: Json = False) -> None:
    """Show the live workers, the flags that each runs, and what is wrong with this host."""
    views = _Desk(settings, only_look=True).views
    if as_json:
        show.as_json({"workers": views.workers(), "health": views.health()})
    else:
        show.workers(views.workers(), views.health())


@app.command()
@_with_settings(_APPLICATION)
def why(  # options of a command
    settings: Settings,
    *,
    what: Annotated[str, typer.Argument(metavar="REQUEST-ID|KEY|PATH", help="A past request, or a route.")],
    subject: Annotated[str, typer.Option(help="user:7, key:3f…, anon:9c…")] = "",
    method: Annotated[str, typer.Option(help="HTTP method; GET if none is given.")] = "",
    at: Annotated[str, typer.Option(metavar="TIME", help="2026-03-01T03:00 (UTC), or 10m ago")] = "",
    as_json: Json = False,
) -> None:
    """Say which side answered a request or answers a subject, and why."""
    explanation = None if subject or method or at or what.startswith("/") else _past_request(settings, what)
    if explanation is None:
        explanation = _explain(settings, what, (method or "GET").upper(), subject, at)
    if as_json:
        show.as_json({**explanation.facts, "sentences": explanation.sentences})
    else:
        for sentence in explanation.sentences:
            show.say(sentence)


@app.command()
@_with_settings(["state"])
def log(  # options of a command
    settings: Settings,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="An endpoint, or override.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Newest events.")] = 20,
    verify: Annotated[bool, typer.Option("--verify", help="Check that every line is as it was written.")] = False,
    head: Annotated[str, typer.Option(metavar="EVENT:HASH", help="For --verify: a head that was kept elsewhere.")] = "",
    as_json: Json = False,
) -> None:
    """Show who changed what, newest last."""
    from .audit import Audit
    from .flagfile import nearest

    audit = Audit(settings.state_dir)
    problems = [asdict(problem) for problem in audit.verify(head)] if verify else []
    every = audit.events()
    if key and (hint := nearest(key, known := {event.key for event in every})) and key not in known:
        raise ConfigError(f"{key}: no events about it{hint}")
    events = [asdict(event) for event in every if key in ("", event.key)][-limit:]
    if as_json:
        show.as_json({"events": events, "head": audit.head(), "problems": problems} if verify else events)
    else:
        show.events(events)
        show.problems(problems)
        if verify and not problems:
            show.say(f"as it was written; head {audit.head() or 'of nothing'}")
    if problems:
        raise typer.Exit(LATE)


@app.command()
@_with_settings(_APPLICATION)
def undo(  # noqa: PLR0913  # options of a command
    settings: Settings,
    *,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Its number in `gateway log`.")],
    wait: Wait = False,
    timeout: Timeout = 10.0,
    why: Why = "",
    force: Annotated[bool, typer.Option("--force", help="Even if it was changed again since.")] = False,
    as_json: Json = False,
) -> None:
    """Put back what an event changed."""
    desk = _Desk(settings)
    done = desk.orders.undo(event, _order(why, force=force))
    _report(desk, done, timeout if wait else None, as_json=as_json)


@app.command()
@_with_settings(_APPLICATION)
def token(  # noqa: PLR0913  # options of a command
    settings: Settings,
    *,
    who: Annotated[str, typer.Option("--for", metavar="NAME", help="Who gets it.")],
    key: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A route; may be repeated; none: all.")] = None,
    side: Annotated[str, typer.Option(metavar="legacy|fastapi")] = "fastapi",
    expires: Annotated[str, typer.Option(metavar="TIME", help="30m, 8h or 7d; 30d at most.")] = "8h",
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Make a signed pass with which a tester chooses a side, in the header x-gateway-pass or the cookie gw_pass."""
    routes = {name: _desk(settings).views.route(name).key for name in key or ()}
    text, event = _Desk(settings).orders.token(side, who, list(routes), expires, _order(why))
    if as_json:
        show.as_json({"pass": text, **event.evidence})
    else:
        print(text)
        show.note(f"for {who}, {side} for {event.key}, until {show.clock(event.evidence['expires_at'])} UTC")


@app.command("version")
def version_(as_json: Json = False) -> None:
    """Show versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("strangler-gateway", "flask", "fastapi", "uvicorn"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            versions[package] = "not installed"
    if as_json:
        show.as_json(versions)
    else:
        show.say(", ".join(f"{name} {number}" for name, number in versions.items()))


# --- what commands know -------------------------------------------------------------------------------------------


class _Desk:
    """The flags of a project and, where a command needs them, its routes; without them any key will do.

    With `only_look` a wrong flag file turns nobody away.
    """

    def __init__(
        self, settings: Settings, routes: "Mapping[str, Route] | None" = None, *, only_look: bool = False
    ) -> None:
        self.settings, self.routes, self._only_look = settings, routes, only_look

    @cached_property
    def hosts(self) -> "Hosts | None":
        from .hosts import Hosts

        return Hosts.of(self.settings)

    @cached_property
    def store(self) -> "FlagStore":
        from .flags import FlagStore

        flags, known = self.settings.flags, None if self.routes is None else frozenset(self.routes)
        path = Path(flags) if flags else None
        return FlagStore(path, known, self.settings.state_dir, self.hosts, only_look=self._only_look)

    @cached_property
    def views(self) -> "Views":
        from .views import Views

        return Views(self.settings, self.store, self.routes, self.hosts)

    @cached_property
    def orders(self) -> "Orders":
        from .orders import Orders

        return Orders(self.settings, self.store, self.views)


class _Project(_Desk):
    """With both applications imported and joined."""

    def __init__(self, settings: Settings) -> None:
        from .loading import load_pair
        from .routes import RouteTable

        with redirect_stdout(sys.stderr):  # what the applications print is no output of ours
            _, flask_app, fastapi_app = load_pair(settings)
        self.table = RouteTable(flask_app, fastapi_app)
        super().__init__(settings, self.table.routes)

    def flag_summary(self) -> dict[str, Any]:
        from .views import SIDES, side

        flags = self.store.current
        sides = [side(route, flags) for route in self.table.routes.values()]
        override = flags.override.value if flags.override else "none"
        return {"version": flags.version, "override": override, **{side: sides.count(side) for side in SIDES}}

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant."""
        from .flagfile import percent
        from .views import is_ported

        flags = self.store.current.flags.values()
        active = (flag.key for flag in flags if flag.weight_bp or flag.pins)
        idle = (key for key in active if not is_ported(self.table.routes[key]))
        found = [*self.table.warnings, *(f"{key}: its flag has no effect, nothing of it is ported" for key in idle)]
        cohorts: dict[str, dict[int, list[str]]] = {}
        for flag in flags:
            if flag.cohort:
                cohorts.setdefault(flag.cohort, {}).setdefault(flag.weight_bp, []).append(flag.key)
        for cohort, weights in cohorts.items():
            if len(weights) > 1:
                parts = (f"{percent(bp)} % ({', '.join(keys)})" for bp, keys in sorted(weights.items()))
                found.append(f"cohort {cohort}: its routes have different weights: {', '.join(parts)}")
        return found


def _desk(settings: Settings) -> _Desk:
    """With the routes that a running worker has published, or else those of the applications."""
    from .ledger import Ledger
    from .views import published_routes

    routes = published_routes(settings.state_dir, Ledger(settings.state_dir).workers())
    return _Desk(settings, routes) if routes is not None else _Project(settings)


def _order(why: str, if_version: str = "", *, force: bool = False) -> "Order":
    from .orders import Order

    return Order(_user(), why, if_version, force)


def _user() -> str:
    import getpass
    import os
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _pair(pair: "Pair") -> dict[str, Any]:
    return {
        "key": pair.key,
        "rules": list(pair.rules),
        "methods": sorted(pair.methods),
        "ported": sorted(pair.ported),
        "how": pair.how,
        "fastapi": list(pair.fastapi_paths),
        "hooks": list(pair.hooks),
    }


# --- why ----------------------------------------------------------------------------------------------------------


def _past_request(settings: Settings, request_id: str) -> "Explanation | None":
    """None when the journal has no such request, so that it may be a route."""
    from .journal import Journal
    from .why import explain_request

    known = Journal.find(settings.state_dir, request_id) is not None
    return explain_request(settings.state_dir, request_id) if known else None


def _explain(settings: Settings, what: str, method: str, subject: str, at: str) -> "Explanation":
    from .why import explain_subject, flags_at, moment

    when = moment(at, time.time()) if at else None
    if what.startswith("/"):
        project = _Project(settings)
        desk: _Desk = project
        route = _by_path(project, what, method)
    else:
        desk = _desk(settings)
        route = _by_key(desk, what, method)
    flags = desk.store.current if when is None else flags_at(settings.state_dir, when)
    return explain_subject(settings.state_dir, flags, route, method, subject, at=when)


def _by_path(project: _Project, path: str, method: str) -> "Route":
    match = project.table.match(method, path)
    if match is None:
        raise ConfigError(f"{method} {path}: Flask's map has no such rule, and legacy says so in its own words")
    if match.route is None:
        raise ConfigError(f"{method} {path}: only FastAPI has it")
    return match.route


def _by_key(desk: _Desk, key: str, method: str) -> "Route":
    route = desk.views.route(key)
    if method not in route.methods:
        raise ConfigError(f"{key}: no method {method}; it has {', '.join(sorted(route.methods))}")
    if method in route.paired and method not in route.ported:
        raise ConfigError(f"{key}: {method} is ported for some of {' '.join(route.rules)} only; give a path instead")
    return route


# --- acknowledgement ----------------------------------------------------------------------------------------------


def _report(desk: _Desk, event: "Event", timeout_s: float | None, *, as_json: bool) -> None:
    """Say what an edit did and, with a timeout, wait for the workers. Exits with 1 when one does not follow."""
    answer = asdict(event)
    followers: list[Worker] = []
    laggards: list[Worker] = []
    started = time.monotonic()
    if timeout_s is not None:
        followers, laggards = _wait(desk, event.version, timeout_s)
        answer |= {"workers": len(followers) + len(laggards), "laggards": {_name(w): _excuse(w) for w in laggards}}
    if as_json:
        show.as_json(answer)
    else:
        unit = "" if isinstance(event.after, str) else " %"
        what = f"{event.key} shadow" if event.action == "shadow" else event.key
        change = f"from {event.before} to {event.after}{unit}" if event.id else f"is {event.after}{unit} already"
        show.say(f"{what}: {change}, version {event.version}{show.number(event.id)}")
        if timeout_s is not None:
            took_ms, total = (time.monotonic() - started) * 1000, len(followers) + len(laggards)
            nobody = f"no live worker in {desk.settings.state_dir} to wait for"
            show.say(f"{len(followers)} of {total} live workers run it after {took_ms:.0f} ms" if total else nobody)
        for worker in laggards:
            show.complain(f"worker {_name(worker)} {_excuse(worker)}")
    if laggards:
        raise typer.Exit(LATE)


def _wait(desk: _Desk, version: str, timeout_s: float) -> "tuple[list[Worker], list[Worker]]":
    """The live workers that run `version`, or what the file says by then, and those that do not."""
    from .disk import version_on_disk

    accepted, deadline = {version}, time.monotonic() + timeout_s
    while True:
        accepted.add(version_on_disk(Path(desk.settings.flags)))
        workers = desk.views.live_workers()
        laggards = [worker for worker in workers if worker.version not in accepted]
        if not (laggards and time.monotonic() < deadline):
            return [worker for worker in workers if worker not in laggards], laggards
        time.sleep(POLL_S)


def _name(worker: "Worker") -> str:
    import socket

    return str(worker.pid) if worker.host == socket.gethostname() else f"{worker.host}/{worker.pid}"


def _excuse(worker: "Worker") -> str:
    if worker.rejected:
        return f"rejects the flag file: {worker.rejected}"
    return f"still runs version {worker.version}" if worker.version else "runs without a flag file"
