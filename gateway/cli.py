"""The `gateway` command: serve, look, and change flags.

Heavy imports stand inside the commands, so that `gateway --help` is quick. What comes from outside (keys, reasons,
error messages) reaches the terminal only with its control characters escaped.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .errors import GatewayError
from .model import Caller, FlagSet, Reason, Route
from .settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .audit import Event
    from .flags import FlagStore
    from .ledger import Worker
    from .routes import Pair, RouteTable

POLL_S = 0.02  # between looks at the acknowledgements of the workers

app = typer.Typer(
    name="gateway",
    help="Move a Flask application to FastAPI route by route.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 not every worker acknowledged in time, 2 wrong input or configuration."""
    try:
        app(args=arguments, prog_name="gateway")
    except GatewayError as error:
        from .flagfile import printable

        for line in str(error).splitlines():
            print(f"gateway: {printable(line, 2000)}", file=sys.stderr)
        sys.exit(2)


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
}
_APPLICATION = ("legacy", "fastapi", "flags", "state")

Command = Callable[..., None]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="An endpoint of the Flask application.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when every live worker runs the new version.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Reason, for the audit trail.")]


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
    project = _Project.load(settings)
    report = {
        "pairs": [_pair(pair) for pair in project.table.pairs()],
        "new": project.new_routes(),
        "flags": project.flag_summary(),
        "warnings": project.warnings(),
    }
    if as_json:
        _print_json(report)
    else:
        _print_check(project.table.pairs(), report)


@app.command()
@_with_settings(_APPLICATION)
def routes(settings: Settings, as_json: Json = False) -> None:
    """List every route: who answers it, and what is ported."""
    project = _Project.load(settings)
    flags = project.store.current
    rows = [_route(route, flags) for _, route in sorted(project.table.routes.items())]
    if as_json:
        _print_json(rows)
        return
    columns = ("key", "rule", "methods", "side", "weight", "ported")
    cells = (
        (r["key"], " ".join(r["rules"]), " ".join(r["methods"]), r["side"], f"{r['weight']} %", _words(r["ported"]))
        for r in rows
    )
    _print_table(columns, cells)


@app.command("set", context_settings={"ignore_unknown_options": True})  # so that -1 is a number out of range
@_with_settings(_APPLICATION)
def set_(  # noqa: PLR0913  # options of a command
    settings: Settings,
    *,
    key: Key,
    percent: Annotated[str, typer.Argument(metavar="PERCENT", help="0 to 100, up to two decimals.")],
    wait: Wait = False,
    timeout: Timeout = 10.0,
    why: Why = "",
    if_version: Annotated[str, typer.Option(metavar="VERSION", help="Only if the file is at this version.")] = "",
    as_json: Json = False,
) -> None:
    """Let FastAPI serve PERCENT of the subjects of a route."""
    store = _store_for(settings, key)
    event = store.set_weight(key, percent, by=_user(), why=why, if_version=if_version)
    _report(settings, event, timeout if wait else None, as_json=as_json)


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
    event = _store(settings, None).set_override(side, by=_user(), why=why)
    _report(settings, event, timeout if wait else None, as_json=as_json)


@app.command()
@_with_settings(_APPLICATION)
def why(
    settings: Settings,
    *,
    key: Key,
    subject: Annotated[str, typer.Option(help="user:7, key:3f…, anon:9c…")] = "",
    method: Annotated[str, typer.Option(help="HTTP method.")] = "GET",
    as_json: Json = False,
) -> None:
    """Say which side answers a subject, and why."""
    from .decide import bucket, decide
    from .errors import ConfigError
    from .flagfile import no_such_route, percent

    project = _Project.load(settings)
    route, flags = project.table.routes.get(key), project.store.current
    if route is None:
        raise ConfigError(f"{key}: {no_such_route(key, project.table.keys)}")
    if method.upper() not in route.methods:
        raise ConfigError(f"{key}: no method {method.upper()}; it has {', '.join(sorted(route.methods))}")
    decision = decide(flags, route, method.upper(), Caller(subject))
    answer = {
        "key": key,
        "method": method.upper(),
        "subject": subject,
        "backend": decision.backend.value,
        "reason": decision.reason.value,
        "bucket": percent(bucket(flags[key].salt, subject)),
        "weight": percent(flags[key].weight_bp),
        "version": flags.version,
    }
    if as_json:
        _print_json(answer)
        return
    _say(f"{key} {answer['method']} for {subject or 'nobody in particular'}: {answer['backend']}")
    because = _REASONS[decision.reason].format_map(answer)
    _say(f"{answer['reason']}: {because} (flags {flags.version or 'without a file'})")


@app.command()
@_with_settings(["state"])
def log(
    settings: Settings,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="An endpoint, or override.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Newest events.")] = 20,
    as_json: Json = False,
) -> None:
    """Show who changed what, newest last."""
    from .audit import read_audit

    events = [e for e in read_audit(settings.state_dir / "audit.jsonl") if key in ("", e.key)][-limit:]
    if as_json:
        _print_json([asdict(event) for event in events])
        return
    columns = ("event", "at", "by", "key", "before", "after", "why")
    _print_table(columns, ((str(e.id), e.at, e.by, e.key, str(e.before), str(e.after), e.why) for e in events))


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
    done = _store(settings, None).undo(event, by=_user(), why=why, force=force)
    _report(settings, done, timeout if wait else None, as_json=as_json)


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
        _print_json(versions)
    else:
        _say(", ".join(f"{name} {number}" for name, number in versions.items()))


# --- what commands know -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Project:
    """Both applications, joined, and the flags for them."""

    table: "RouteTable"
    store: "FlagStore"
    fastapi: "FastAPI | None"

    @classmethod
    def load(cls, settings: Settings) -> "_Project":
        from .loading import load_pair
        from .routes import RouteTable

        with redirect_stdout(sys.stderr):  # what the applications print is no output of ours
            _, flask_app, fastapi_app = load_pair(settings)
        table = RouteTable(flask_app, fastapi_app)
        return cls(table, _store(settings, table.keys), fastapi_app)

    def new_routes(self) -> list[str]:
        """Paths that only FastAPI has."""
        from fastapi.routing import iter_route_contexts

        if self.fastapi is None:
            return []
        paired = {path for pair in self.table.pairs() for path in pair.fastapi_paths}
        paths = {context.path for context in iter_route_contexts(self.fastapi.router.routes) if context.path}
        return sorted(paths - paired)

    def flag_summary(self) -> dict[str, Any]:
        flags = self.store.current
        sides = [_side(route, flags) for route in self.table.routes.values()]
        override = flags.override.value if flags.override else "none"
        return {"version": flags.version, "override": override, **{side: sides.count(side) for side in _SIDES}}

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant."""
        from .flagfile import percent

        flags = self.store.current.flags.values()
        active = (flag.key for flag in flags if flag.weight_bp or flag.pins)
        idle = (key for key in active if not self.table.routes[key].ported)
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


def _store(settings: Settings, known: Collection[str] | None) -> "FlagStore":
    from .flags import FlagStore

    return FlagStore(Path(settings.flags) if settings.flags else None, known, settings.state_dir)


def _store_for(settings: Settings, key: str) -> "FlagStore":
    """The store for an edit of `key`. A worker that runs a file with that key has checked it: nothing is imported."""
    from .ledger import Ledger

    store = _store(settings, None)
    workers = Ledger(settings.state_dir).workers()
    vouched = any(worker.version == store.current.version and not worker.rejected for worker in workers)
    return store if vouched and key in store.current.flags else _Project.load(settings).store


def _user() -> str:
    import getpass
    import os
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


_SIDES = ("legacy", "split", "fastapi")
_REASONS = {
    Reason.UNPORTED: "FastAPI does not answer this method",
    Reason.OVERRIDE: "the panic switch is thrown",
    Reason.PINNED: "the flag names this subject",
    Reason.STATIC: "the weight is {weight} %, for everybody",
    Reason.SPLIT: "bucket {bucket} % against a weight of {weight} %",
}


def _side(route: Route, flags: FlagSet) -> str:
    """Who answers what is ported of a route."""
    if not route.ported:
        return "legacy"
    if flags.override:
        return flags.override.value
    flag = flags[route.key]
    if flag.needs_subject:
        return "split"
    return "fastapi" if flag.weight_bp else "legacy"


def _route(route: Route, flags: FlagSet) -> dict[str, Any]:
    from .flagfile import percent

    flag = flags[route.key]
    return {
        "key": route.key,
        "rules": list(route.rules),
        "methods": sorted(route.methods),
        "ported": sorted(route.ported),
        "side": _side(route, flags),
        "weight": percent(flag.weight_bp),
        "shadow": percent(flag.shadow_bp),
        "cohort": flag.cohort,
        "pins": sorted(flag.pins),
        "rollout": flag.rollout,
    }


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


# --- acknowledgement ----------------------------------------------------------------------------------------------


def _report(settings: Settings, event: "Event", timeout_s: float | None, *, as_json: bool) -> None:
    """Say what an edit did and, with a timeout, wait for the workers. Exits with 1 when one does not follow."""
    answer = asdict(event)
    followers: list[Worker] = []
    laggards: list[Worker] = []
    started = time.monotonic()
    if timeout_s is not None:
        followers, laggards = _wait(settings, event.version, timeout_s)
        answer |= {"workers": len(followers) + len(laggards), "laggards": {w.pid: _excuse(w) for w in laggards}}
    if as_json:
        _print_json(answer)
    else:
        unit = "" if isinstance(event.after, str) else " %"
        change = f"from {event.before} to {event.after}{unit}" if event.id else f"is {event.after}{unit} already"
        _say(f"{event.key}: {change}, version {event.version}" + (f", event {event.id}" if event.id else ""))
        if timeout_s is not None:
            took_ms, total = (time.monotonic() - started) * 1000, len(followers) + len(laggards)
            nobody = f"no live worker in {settings.state} to wait for"
            _say(f"{len(followers)} of {total} live workers run it after {took_ms:.0f} ms" if total else nobody)
        for worker in laggards:
            print(f"gateway: worker {worker.pid} {_excuse(worker)}", file=sys.stderr)
    if laggards:
        raise typer.Exit(1)


def _wait(settings: Settings, version: str, timeout_s: float) -> "tuple[list[Worker], list[Worker]]":
    """The live workers that run `version`, or what the file says by then, and those that do not."""
    from .flags import version_on_disk
    from .ledger import Ledger

    ledger, accepted = Ledger(settings.state_dir), {version}
    deadline = time.monotonic() + timeout_s
    while True:
        accepted.add(version_on_disk(Path(settings.flags)))
        workers = ledger.workers()
        laggards = [worker for worker in workers if worker.version not in accepted]
        if not (laggards and time.monotonic() < deadline):
            return [worker for worker in workers if worker not in laggards], laggards
        time.sleep(POLL_S)


def _excuse(worker: "Worker") -> str:
    if worker.rejected:
        return f"rejects the flag file: {worker.rejected}"
    return f"still runs version {worker.version}" if worker.version else "runs without a flag file"


# --- output -------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    from .flagfile import printable

    print(printable(text, 2000))


def _words(words: Iterable[str]) -> str:
    return " ".join(words) or "-"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))  # ASCII: control characters are escaped


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits a terminal; elsewhere one line per row, whatever its length."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .flagfile import printable

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=not terminal)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if terminal else 10_000).print(table)


def _print_check(pairs: "Sequence[Pair]", report: Mapping[str, Any]) -> None:
    paired = [pair for pair in pairs if pair.how]
    if paired:
        columns = ("key", "found by", "FastAPI path", "ported", "left to legacy")
        _print_table(columns, (_check_row(pair) for pair in paired))
        print()
    _say(f"{len(pairs)} routes, {len(paired)} with a twin in FastAPI")
    if report["new"]:
        _say(f"only in FastAPI: {', '.join(report['new'])}")
    hooks: dict[str, int] = {}
    for hook in (hook for pair in paired for hook in pair.hooks):
        hooks[hook] = hooks.get(hook, 0) + 1
    for hook, count in hooks.items():
        _say(f"does not run where FastAPI answers: {hook} ({count} routes)")
    flags = report["flags"]
    counts = ", ".join(f"{flags[side]} {side}" for side in _SIDES)
    _say(f"flags {flags['version'] or 'without a file'}: override {flags['override']}; {counts}")
    for warning in report["warnings"]:
        _say(f"warning: {warning}")


def _check_row(pair: "Pair") -> tuple[str, ...]:
    left = _words(sorted(pair.methods - pair.ported))
    return pair.key, pair.how, _words(pair.fastapi_paths), _words(sorted(pair.ported)), left
