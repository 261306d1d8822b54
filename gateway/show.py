"""How does it look in a terminal? Everything that the commands print.

What comes from outside (keys, reasons, error messages) is printed only with its control characters escaped.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lint import Finding
    from .routes import Pair
    from .views import View

Facts = Mapping[str, Any]


def say(text: str) -> None:
    from .flagfile import printable

    print(printable(text, 2000))


def complain(text: str) -> None:
    """One line on stderr."""
    from .flagfile import printable

    print(f"gateway: {printable(text, 2000)}", file=sys.stderr)


def note(text: str) -> None:
    """For a person, beside output for a program."""
    from .flagfile import printable

    print(printable(text, 2000), file=sys.stderr)


def as_json(value: object) -> None:
    from .views import dumps

    print(dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits a terminal; elsewhere one line per row, whatever its length."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .flagfile import printable

    terminal = sys.stdout.isatty()
    grid = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, no_wrap=not terminal)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if terminal else 10_000).print(grid)


# --- what there is to see -----------------------------------------------------------------------------------------


def number(event_id: int) -> str:
    """The end of a sentence about a change: which event of the audit trail it is, if it is one."""
    if event_id < 0:
        return ", which could not be recorded: the audit trail cannot be written"
    return f", event {event_id}" if event_id else ""


def routes(views: "Sequence[View]") -> None:
    columns = ("key", "rule", "methods", "side", "weight", "ported")
    table(columns, ((v["key"], _words(v["rules"]), _words(v["methods"]), *_standing(v)) for v in views))


def lint(findings: "Sequence[Finding]") -> None:
    for finding in findings:
        say(str(finding))
    if findings:
        note("run these in a thread, or say why not at the end of the line: # blocks: REASON")


def check(pairs: "Sequence[Pair]", report: Facts) -> None:
    paired = [pair for pair in pairs if pair.how]
    if paired:
        table(("key", "found by", "FastAPI path", "ported", "left to legacy"), (_pair(pair) for pair in paired))
        print()
    say(f"{len(pairs)} routes, {len(paired)} with a twin in FastAPI")
    if report["new"]:
        say(f"only in FastAPI: {', '.join(report['new'])}")
    hooks: dict[str, int] = {}
    for hook in (hook for pair in paired for hook in pair.hooks):
        hooks[hook] = hooks.get(hook, 0) + 1
    for hook, count in hooks.items():
        say(f"does not run where FastAPI answers: {hook} ({count} routes)")
    flags = report["flags"]
    counts = ", ".join(f"{flags[side]} {side}" for side in ("legacy", "split", "fastapi"))
    say(f"flags {flags['version'] or 'without a file'}: override {flags['override']}; {counts}")
    for warning in report["warnings"]:
        say(f"warning: {warning}")


def events(views: "Sequence[View]") -> None:
    columns = ("event", "at", "by", "what", "key", "before", "after", "why")
    table(columns, ([str(v[name]) for name in ("id", "at", "by", "action", *columns[4:])] for v in views))


def problems(problems: Sequence[Facts]) -> None:
    """On stderr: whoever reads the events from a pipe must not miss that they are not to be trusted."""
    for problem in problems:
        complain(f"line {problem['line']}: {problem['what']}" if problem["line"] else problem["what"])


def rollouts(views: "Sequence[View]") -> None:
    if not views:
        say("no route has a rollout")
        return
    columns = ("ramp", "plan", "state", "weight", "step", "since", "why")
    table(columns, (_ramp(view) for view in views))
    for view in views:
        for sentence in view["missing"]:
            say(f"{view['name']} misses: {sentence}")


def verdicts(views: "Sequence[View]") -> None:
    """Outcomes in a line per route, and below it the causes, the most frequent first."""
    if not views:
        say("nothing has been replayed")
    for view in views:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in view["outcomes"].items())
        say(f"{view['key']}: {outcomes or 'nothing yet'}")
        for group in view["groups"]:
            _group(group)
        if view["noise"]:
            say(f"  noise, left out: {', '.join(view['noise'])}")


def workers(views: "Sequence[View]", health: Facts) -> None:
    if views:
        columns = ("pid", "host", "flags", "since", "refuses")
        table(
            columns,
            ([str(v["pid"]), v["host"], v["version"] or "-", clock(v["started_at"]), v["rejected"]] for v in views),
        )
    else:
        say("no live worker")
    for problem in health["problems"]:
        say(f"{health['status']}: {problem}")


def clock(at: float) -> str:
    """Seconds since the epoch as UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def _standing(view: Facts) -> tuple[str, ...]:
    return view["side"], f"{view['weight']} %", _words(view["ported"])


def _pair(pair: "Pair") -> tuple[str, ...]:
    left = _words(sorted(pair.methods - pair.ported))
    return pair.key, pair.how, _words(pair.fastapi_paths), _words(sorted(pair.ported)), left


def _ramp(view: Facts) -> tuple[str, ...]:
    step = f"{view['step']} of {view['steps']}"
    return view["name"], view["plan"], view["state"], f"{view['weight']} %", step, view["since"], view["why"]


def _group(group: Facts) -> None:
    since = f"since {clock(group['first_at'])}, last {clock(group['last_at'])}"
    say(f"  {group['count']} x {'; '.join(group['places'])} ({group['method']}, {since})")
    for sample in group["samples"][:1]:
        say(f"    e.g. {sample['target']}, request {sample['id']}: {sample['control']} and {sample['candidate']}")
        for difference in sample["differences"][:5]:
            say(f"      {difference['where']}: {difference['control']}, candidate: {difference['candidate']}")


def _words(words: Iterable[str]) -> str:
    return " ".join(words) or "-"
