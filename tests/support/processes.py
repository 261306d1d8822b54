"""Child processes that never outlive the tests, and waiting for a condition instead of sleeping."""

import ctypes
import os
import resource
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_ports: set[int] = set()  # that were given away


def free_port() -> int:
    """A port for a server that starts soon.

    By chance, and below those that the system hands out: nobody else's connection gets it in between. Nor does another
    server of the tests that has not started yet: each of the processes that test has ports of its own.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = 10_240 + number + count * secrets.randbelow(22_528 // count)
        if port in _ports:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _ports.add(port)
            return port


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """The first true value of `condition`; an AssertionError naming `what` when it never comes."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)
    return value


@contextmanager
def many_open_files() -> Iterator[None]:
    """So many in this process that those that come have numbers which `select` cannot take."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 4096), before[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        yield
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def child(command: list[str], log: Path, *, stop_s: float = 20.0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a session of its own, output to `log`. Afterwards the whole session is gone, however it went.

    It is also told to stop when the test process dies, even by SIGKILL.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_prepare,  # noqa: PLW1509 - system calls only, no lock
            **options,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in session_members(process.pid):
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)


def _prepare() -> None:
    """Die with the tests, and hear Ctrl-C even if they run in the background of a script, which is deaf to it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def session_members(session: int) -> list[int]:
    """The living processes of a session."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()  # state ppid pgrp session …
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            pids.append(int(entry.parent.name))
    return pids


def resident_mb(pid: int) -> float:
    """Memory in use by a process, shared pages included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1_048_576


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
