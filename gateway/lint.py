"""Async-readiness: blocking calls in coroutines, found by reading the source.

A coroutine that blocks stops every other request of its process. The obvious calls (`time.sleep`, `requests.get`) are
easily seen; those in a helper three modules away are not. So functions are followed: one that blocks, or calls one that
does, makes every coroutine that calls it a finding. Handing such a function to a thread is no call.

What cannot be seen: methods of objects whose class is not evident, and what libraries do inside. A line that ends in
`# blocks: REASON` is left alone.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from typing_extensions import override

from .errors import ConfigError

MARK = "# blocks:"

BLOCKING = frozenset(
    """
    open io.open input time.sleep
    os.chmod os.fsync os.link os.listdir os.lstat os.makedirs os.mkdir os.open os.popen os.read os.remove os.rename
    os.replace os.rmdir os.scandir os.stat os.symlink os.system os.unlink os.wait os.waitpid os.walk os.write
    os.path.exists os.path.getmtime os.path.getsize os.path.isdir os.path.isfile os.path.islink os.path.realpath
    glob.glob tarfile.open zipfile.ZipFile tempfile.mkdtemp tempfile.mkstemp tempfile.NamedTemporaryFile
    tempfile.TemporaryDirectory
    subprocess.run subprocess.call subprocess.check_call subprocess.check_output subprocess.getoutput subprocess.Popen
    socket.create_connection socket.getaddrinfo socket.gethostbyaddr socket.gethostbyname urllib.request.urlopen
    http.client.HTTPConnection http.client.HTTPSConnection smtplib.SMTP smtplib.SMTP_SSL ftplib.FTP
    httpx.Client httpx.get httpx.post httpx.put httpx.patch httpx.delete httpx.head httpx.options httpx.request
    httpx.stream
    sqlite3.connect pymysql.connect MySQLdb.connect psycopg.connect psycopg2.connect pymongo.MongoClient
    sqlalchemy.create_engine sqlalchemy.orm.Session sqlalchemy.orm.sessionmaker sqlalchemy.orm.scoped_session
    redis.Redis redis.StrictRedis redis.from_url
    bcrypt.hashpw bcrypt.checkpw hashlib.scrypt hashlib.pbkdf2_hmac PIL.Image.open
    """.split()  # noqa: SIM905 - a list of them would fill two pages
)
BLOCKING_MODULES = ("requests", "shutil", "pexpect", "paramiko", "boto3")  # whatever is called in them
BLOCKING_METHODS = frozenset(  # of paths and files, named like nothing else
    """
    read_text write_text read_bytes write_bytes iterdir rglob hardlink_to symlink_to is_file is_dir is_symlink mkdir
    rmdir unlink touch lstat
    """.split()  # noqa: SIM905
)

Name: TypeAlias = str  # dotted: "package.module.Class.function"


@dataclass(frozen=True, slots=True)
class Finding:
    """`coroutine` calls something that blocks; `chain` are the calls that lead there, "files.move", "os.link"."""

    path: Path
    line: int
    coroutine: str
    chain: tuple[str, ...]

    @override
    def __str__(self) -> str:
        first, *rest = self.chain
        calls = "".join(f", which calls {name}" for name in rest)
        return f"{self.path}:{self.line}: {self.coroutine} calls {first}{calls}"


def lint(folder: Path) -> list[Finding]:
    """Findings in the package at `folder`, in the order of the files. Raises ConfigError for what is no package or no
    Python.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected that of a package")
    modules = [_parse(path, folder) for path in sorted(folder.rglob("*.py"))]
    functions = {function.name: function for module in modules for function in module.functions}
    blocking = _follow(functions)
    return [
        Finding(function.path, line, function.label, chain)
        for function in functions.values()
        if function.is_async
        for line, name in function.calls
        if (chain := _chain(name, functions, blocking))
    ]


@dataclass
class _Function:
    name: Name
    label: str  # within its module
    path: Path
    is_async: bool
    calls: list[tuple[int, Name]] = field(default_factory=list)  # those made while it runs, not by functions inside it


def _follow(functions: Mapping[Name, _Function]) -> dict[Name, Name]:
    """For every ordinary function that blocks, the call by which it does; found by going round until nothing is new."""
    blocking: dict[Name, Name] = {}
    found = True
    while found:
        found = False
        for name, function in functions.items():
            if function.is_async or name in blocking:
                continue
            call = next((call for _, call in function.calls if is_blocking(call) or call in blocking), None)
            if call is not None:
                blocking[name] = call
                found = True
    return blocking


def _chain(name: Name, functions: Mapping[Name, _Function], blocking: Mapping[Name, Name]) -> tuple[str, ...]:
    """From this call to the one that blocks; empty when none does."""
    if is_blocking(name):
        return (name,)
    chain: list[str] = []
    while name in blocking:
        chain.append(f"{functions[name].path.stem}.{functions[name].label}")
        name = blocking[name]
    return (*chain, name) if chain else ()


def is_blocking(name: Name) -> bool:
    """Whether a call of that name blocks by itself; `.name` is a method of something unknown."""
    module = name.partition(".")[0]
    return name in BLOCKING or module in BLOCKING_MODULES or (name[:1] == "." and name[1:] in BLOCKING_METHODS)


# --- reading one module


@dataclass
class _Module:
    name: Name
    path: Path
    tree: ast.Module
    excused: frozenset[int]  # lines

    @cached_property
    def functions(self) -> list[_Function]:
        return list(self._functions(self.tree.body, ""))

    @cached_property
    def _known(self) -> dict[str, Name]:
        """What the names of this module stand for: what it imports and what it defines."""
        known: dict[str, Name] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                known |= {alias.asname or alias.name.partition(".")[0]: _imported(alias) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                known |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
        defined = (node.name for node in self.tree.body if isinstance(node, _Definition))
        return known | {name: f"{self.name}.{name}" for name in defined}

    def _origin(self, node: ast.ImportFrom) -> Name:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.path.stem == "__init__" else self.name.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])

    def _functions(self, body: Sequence[ast.AST], inside: str) -> Iterator[_Function]:
        """Every function, however deep; methods with the name of their class."""
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from self._functions(node.body, f"{inside}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                label = f"{inside}{node.name}"
                function = _Function(f"{self.name}.{label}", label, self.path, isinstance(node, ast.AsyncFunctionDef))
                function.calls = [
                    (call.lineno, self._resolve(call.func, inside))
                    for call in _calls(node.body)
                    if not self.excused & set(range(call.lineno, (call.end_lineno or call.lineno) + 1))
                ]
                yield function
                yield from self._functions(node.body, f"{label}.")
            else:
                yield from self._functions([child for child in ast.iter_child_nodes(node) if _holds(child)], inside)

    def _resolve(self, node: ast.expr, inside: str) -> Name:
        """The dotted name of what is called; `.method` where one can only see how it is called."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id, node.id)
        if not isinstance(node, ast.Attribute):
            return ""
        if isinstance(node.value, ast.Name):
            if node.value.id in ("self", "cls"):
                return f"{self.name}.{inside}{node.attr}"
            if node.value.id in self._known:
                return f"{self._known[node.value.id]}.{node.attr}"
        owner = self._resolve(node.value, inside) if isinstance(node.value, ast.Attribute) else ""
        return f".{node.attr}" if owner[:1] in ("", ".") else f"{owner}.{node.attr}"


_Definition = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _parse(path: Path, package: Path) -> _Module:
    parts = [package.resolve().name, *path.relative_to(package).with_suffix("").parts]
    text = path.read_text()
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: no Python: {error.msg}") from None
    excused = frozenset(number for number, line in enumerate(text.splitlines(), 1) if MARK in line)
    return _Module(".".join(part for part in parts if part != "__init__"), path, tree, excused)


def _imported(alias: ast.alias) -> Name:
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _holds(node: ast.AST) -> bool:
    """Whether functions may stand in it: branches, loops, handlers, with blocks."""
    return isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case)


def _calls(body: Sequence[ast.AST]) -> Iterator[ast.Call]:
    """The calls made when the body runs. What is awaited does not block."""
    for node in body:
        if isinstance(node, (*_Definition, ast.Lambda)):
            continue
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            yield from _calls(list(ast.iter_child_nodes(node.value)))
            continue
        if isinstance(node, ast.Call):
            yield node
        yield from _calls(list(ast.iter_child_nodes(node)))
