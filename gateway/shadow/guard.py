"""Nothing leaves the process while a contained request runs: no connection, file, message or process.

An audit hook of the interpreter sees what any code of any thread is about to do, whoever wrote it. It is installed with
the first contained request, in the process that replays; it cannot be taken out again, but asks for little when idle.

What it cannot see is a connection that is open already: `open_peers` tells, and nothing is run then. Nor can it see C
code that does not tell the interpreter.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

OWN_THREADS = "gateway-"  # what their names begin with: they keep the evidence, meanwhile

_FILE_EVENTS = (
    "os.chflags os.chmod os.chown os.lchflags os.link os.lockf os.mkdir os.remove os.removexattr os.rename os.rmdir "
    "os.setxattr os.symlink os.truncate os.utime shutil.chown shutil.copyfile shutil.copymode shutil.copystat "
    "shutil.copytree shutil.make_archive shutil.move shutil.rmtree shutil.unpack_archive tempfile.mkdtemp "
    "tempfile.mkstemp"
)
_PROCESS_EVENTS = (
    "os.exec os.fork os.forkpty os.kill os.killpg os.posix_spawn os.spawn os.startfile os.system pty.spawn "
    "signal.pthread_kill subprocess.Popen"
)
_NETWORK_EVENTS = (
    "ftplib.connect ftplib.sendcmd http.client.connect http.client.send imaplib.open imaplib.send nntplib.connect "
    "nntplib.putline poplib.connect poplib.putline socket.bind socket.connect socket.getaddrinfo socket.gethostbyaddr "
    "socket.gethostbyname socket.sendmsg socket.sendto sqlite3.connect syslog.openlog syslog.syslog "
    "telnetlib.Telnet.open telnetlib.Telnet.write urllib.Request webbrowser.open"
)
_KINDS: dict[str, str] = {
    "open": "files",
    **dict.fromkeys(_FILE_EVENTS.split(), "files"),
    **dict.fromkeys(_PROCESS_EVENTS.split(), "processes"),
    **dict.fromkeys(_NETWORK_EVENTS.split(), "network"),
    "smtplib.connect": "mail",
    "smtplib.send": "mail",
}
_CONNECTS: dict[str, Callable[[Sequence[Any]], object]] = {  # what a database driver does first, and with whom
    "socket.connect": lambda it: tuple(it[1][:2]) if isinstance(it[1], tuple) else it[1],
    "socket.getaddrinfo": lambda it: (it[0], it[1]),
    "sqlite3.connect": lambda it: it[0],
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
_UNNAMED = getattr(os, "O_TMPFILE", 0)  # a temporary file that nobody else can see


class Refused(PermissionError):
    """Raised in the candidate where it wants to do what would remain."""


class Guard:
    """Refuses, and remembers what it has refused."""

    def __init__(self, database: set["Peer"]) -> None:
        self._database = database
        self.refused: list[str] = []
        self.connecting = 0  # connections that the application's engine is about to open

    def refuse(self, kind: str, what: str) -> NoReturn:
        self.refused.append(f"{kind}: {what}"[:300])
        raise Refused(f"refused in a contained request: {self.refused[-1]}")

    def check(self, event: str, arguments: Sequence[Any]) -> None:
        """Raises Refused for what must not happen."""
        if event == "open" and not _writes(arguments):
            return
        if self.connecting and event in _CONNECTS and _CONNECTS[event](arguments) in self._database:
            return
        if threading.current_thread().name.startswith(OWN_THREADS):
            return
        self.refuse(_KINDS[event], f"{event} {_told(arguments)}".rstrip())


def _writes(arguments: Sequence[Any]) -> bool:
    path, _, flags = arguments
    if isinstance(path, int) or path == os.devnull or not isinstance(flags, int):
        return False
    return bool(flags & _WRITES) and not (_UNNAMED and flags & _UNNAMED == _UNNAMED)


def _told(arguments: Sequence[Any]) -> str:
    """Of the arguments what names a place; a message or a password may be among the others."""
    named = [argument for argument in arguments if isinstance(argument, str | tuple | os.PathLike)]
    return " ".join(map(str, named[:2]))


# --- one per process ----------------------------------------------------------------------------------------------

_on: Guard | None = None
_mine: ContextVar[Guard | None] = ContextVar("gateway.guard", default=None)
_installed = False


@contextmanager
def guarding(guard: Guard) -> Iterator[None]:
    """Refuse everything in every thread; and for ever what still runs in this context afterwards."""
    global _on, _installed  # noqa: PLW0603 - as the hook, one per process
    if _on is not None:
        raise RuntimeError("contained requests run one at a time")
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    token = _mine.set(guard)
    _on = guard
    try:
        yield
    finally:
        _on = None
        _mine.reset(token)
        sys.dont_write_bytecode = bytecode


def _hook(event: str, arguments: Sequence[Any]) -> None:
    if event in _KINDS:
        guard = _on or _mine.get(None)
        if guard is not None:
            guard.check(event, arguments)


# --- connections that are open already ----------------------------------------------------------------------------

FILES = Path("/proc/self/fd")  # what this process has open, on Linux
Peer = tuple[str, int] | str  # host and port, or the path of a unix socket

_trusted: set[Peer] = set()


def trust(peers: Iterable[Peer]) -> None:
    """The gateway's own connections, to its Redis for one."""
    _trusted.update(peers)


def open_peers(allowed: set[Peer]) -> list[Peer]:
    """Whom this process is connected to, besides these and those that it trusts."""
    peers: list[Peer] = []
    for name in os.listdir(FILES):  # noqa: PTH208 - a Path for each takes longer than all the rest
        try:
            if not os.readlink(FILES / name).startswith("socket:"):  # noqa: PTH115
                continue
            with socket.socket(fileno=os.dup(int(name))) as known:
                peer = known.getpeername()
        except OSError:
            continue  # closed meanwhile, or not connected: it listens
        whom: Peer = tuple(peer[:2]) if isinstance(peer, tuple) else os.fsdecode(peer)
        if whom and whom not in allowed | _trusted:
            peers.append(whom)
    return peers


def addresses(host: str, port: int) -> set[Peer]:
    """All that the name of a server stands for. Raises OSError."""
    found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(str(address[4][0]), port) for address in found}
