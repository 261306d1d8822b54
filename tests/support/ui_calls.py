"""What the web pages call: every address in their scripts and templates, and who answers it.

    python -m tests.support.ui_calls            the table
    python -m tests.support.ui_calls --write    docs/ui-calls.md

A call is a string literal that begins with a slash and a letter. Its method is that of the `api("POST", …)` or the form
around it, else GET. `${…}` stands for one value, or for the constant of that name. Fails when Flask has no rule for a
call, or when a call cannot be read.
"""

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fastapi_app
import legacy_flask
from gateway.routes import NEW, RouteTable

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "legacy_flask"
REPORT = ROOT / "docs/ui-calls.md"
WEBSOCKET = "WS"
NONE = "none"

_OPENING = re.compile(r"""(?:\bapi\(\s*"(?P<method>[A-Z]+)"\s*,\s*)?(?P<quote>["'`])(?=/[a-z])""")
_CONSTANT = re.compile(r"^const (\w+) = [\"`](/[^\"`]*)[\"`];", re.MULTILINE)
_UNREADABLE = re.compile(r"""(?<!function )\bapi\((?!\s*"[A-Z]+"\s*,\s*["`]/)[^\n]*""")
_SOCKET = re.compile(r"/ws/[a-z]+")
_FORM = re.compile(r"""<form\b(?=[^>]*method="post")[^>]*\baction="(/[^"#]*)""", re.IGNORECASE)
_ADDRESS = re.compile(r'"(/(?:[a-z][^"#]*)?)(?:#[^"]*)?"')
_JINJA = re.compile(r"{{.*?}}|{%-? (?:if|else|elif|endif|block|endblock|for|endfor).*?%}", re.DOTALL)
_COMMENT = re.compile(r"^\s*(?://|\*|/\*).*$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Call:
    """`path` has `{}` where a value stands, and no query."""

    path: str
    method: str

    @property
    def sample(self) -> str:
        return self.path.replace("{}", "1")

    def fits(self, method: str, path: str) -> bool:
        """Whether a request can be this call."""
        pattern = "[^/]+".join(map(re.escape, self.path.split("{}")))
        return method == self.method and re.fullmatch(pattern, path) is not None


@dataclass(frozen=True)
class Answered:
    """Who answers a call. `key` is empty where Flask has no rule, `port` where FastAPI has no twin."""

    call: Call
    pages: tuple[str, ...]
    rule: str
    key: str
    port: str


# --- what the pages say ------------------------------------------------------------------------------------------


def calls() -> dict[Call, list[str]]:
    """All calls, each with the files that make it."""
    found: dict[Call, list[str]] = {}
    for path in sorted([*PAGES.glob("static/**/*.js"), *PAGES.glob("templates/**/*.html")]):
        read = of_script if path.suffix == ".js" else of_template
        for call in set(read(path.read_text())):
            found.setdefault(call, []).append(path.name)
    return dict(sorted(found.items()))


def of_script(source: str) -> Iterator[Call]:
    """Raises ValueError for a call whose address is no literal."""
    source = _COMMENT.sub("", source)
    for name, path in _CONSTANT.findall(source):
        source = source.replace(f"${{{name}}}", path)
        source = re.sub(rf'(\bapi\("[A-Z]+", ){name}\b', lambda call, path=path: f"{call[1]}`{path}`", source)
    if unreadable := _UNREADABLE.search(source):
        raise ValueError(f"a call that cannot be read: {unreadable[0]}")
    for opening in _OPENING.finditer(source):
        path = literal(source, opening.end())
        yield Call(path.partition("?")[0].partition("#")[0], opening["method"] or "GET")
    for address in _SOCKET.findall(source):
        yield Call(address, WEBSOCKET)


def literal(source: str, start: int) -> str:
    """The text that begins there, up to the quote before it or to the query, with `{}` for each expression."""
    quote, text, at = source[start - 1], "", start
    while source[at] != quote:
        if quote == "`" and source.startswith("${", at):
            depth, begin, at = 1, at + 2, at + 2
            while depth:
                depth += {"{": 1, "}": -1}.get(source[at], 0)
                at += 1
            if '"?' in source[begin:at]:
                return text
            text += "{}"
        else:
            text, at = text + source[at], at + 1
    return text


def of_template(source: str) -> Iterator[Call]:
    """Also what a list in a template names, like the entries of the menu."""
    source = _JINJA.sub("{}", source)
    forms = {form[1] for form in _FORM.finditer(source)}
    for path in _ADDRESS.findall(source):
        yield Call(path.partition("?")[0], "POST" if path in forms else "GET")


# --- who answers -------------------------------------------------------------------------------------------------


@cache
def table() -> RouteTable:
    """Both applications as they are, with folders of their own."""
    with tempfile.TemporaryDirectory() as home:
        paths = {name: f"{home}/{name}" for name in ("DATA_PATH", "LIBRARY_PATH", "DOWNLOADS_PATH")}
        app = legacy_flask.create_app({**paths, "DATABASE_URL": f"sqlite:///{home}/db", "LOG_FILE": ""})
        app.extensions["engine"].dispose()
        return RouteTable(app, fastapi_app.create_app())


def report() -> list[Answered]:
    return [answered(call, pages) for call, pages in calls().items()]


def answered(call: Call, pages: Iterable[str]) -> Answered:
    pages = tuple(pages)
    if call.method == WEBSOCKET:
        there = table().websocket(call.sample)
        return Answered(call, pages, "new" if there else "", "new" if there else "", call.path if there else "")
    match = table().match(call.method, call.sample)
    if match is NEW:
        return Answered(call, pages, "new", "new", call.path)
    if match is None or match.route is None or match.rule is None:
        return Answered(call, pages, "", "", "")
    twins = {pair.key: pair.fastapi_paths for pair in table().pairs()}[match.route.key]
    port = ", ".join(twins) if call.method in match.route.ported else ""
    return Answered(call, pages, match.rule.rule, match.route.key, port)


def unknown(sent: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the requests (method, path without query) that no page is known to make."""
    known = calls()
    return [request for request in sent if not any(call.fits(*request) for call in known)]


# --- telling -----------------------------------------------------------------------------------------------------


def markdown(rows: Iterable[Answered]) -> str:
    rows = list(rows)
    calls = [row for row in rows if not row.key.startswith("pages.")]
    ours = [row for row in rows if row.key.startswith("pages.")]
    waiting = sorted({row.key for row in calls if not row.port})
    return "\n".join(
        [
            "# What the web pages call",
            "",
            "Each call of a script or template, Flask's rule for it, FastAPI's twin, and the flag key that splits it.",
            "Made by `python -m tests.support.ui_calls --write`, held to the sources by `tests/unit/test_ui_calls.py`.",
            "",
            f"{len(calls)} calls; " + (f"without a twin yet: {', '.join(waiting)}." if waiting else "each has a twin."),
            "",
            "| call | from | rule of Flask | FastAPI | flag key |",
            "|---|---|---|---|---|",
            *(line(row) for row in calls),
            "",
            "## Pages and files",
            "",
            "Served by Flask; a port of them needs nothing but the templates.",
            "",
            "| address | from | rule of Flask | flag key |",
            "|---|---|---|---|",
            *(
                f"| `{row.call.path}` | {', '.join(row.pages)} | `{row.rule}` | `{row.key}` |"
                for row in ours
                if not row.call.path.startswith("/static/")
            ),
            "",
        ]
    )


def line(row: Answered) -> str:
    rule = f"`{row.rule}`" if row.key not in ("", "new") else row.rule or f"**{NONE}**"
    port, key = f"`{row.port}`" if row.port else NONE, f"`{row.key}`" if row.key else NONE
    return f"| `{row.call.method} {row.call.path}` | {', '.join(row.pages)} | {rule} | {port} | {key} |"


def main() -> int:
    rows = report()
    if "--write" in sys.argv[1:]:
        REPORT.write_text(markdown(rows))
    else:
        print(markdown(rows))
    lost = [row.call for row in rows if not row.rule]
    for call in lost:
        print(f"no rule for {call.method} {call.path}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
