"""The process that runs `fetch.py`, with nothing of ours in its environment."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

COMMAND = [sys.executable, "-I", str(Path(__file__).with_name("fetch.py"))]  # alone: this package would bring Flask
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")  # no secrets, no proxies
PIECE = 64 * 1024


class Child:
    """At work on one order. As a context manager: at the end it is gone, and all that it has started.

    It also ends when this process does: it notices that nobody holds its stdin any more.
    """

    def __init__(self, order: dict) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.output = select.poll()
        self.output.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        self.unfinished = b""
        with suppress(BrokenPipeError):  # it says so itself, by saying nothing
            self.process.stdin.write(json.dumps(order).encode() + b"\n")

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def told(self, timeout_s: float) -> list[dict] | None:
        """What it says within so many seconds, perhaps nothing; None when it will say nothing more."""
        if not self.output.poll(timeout_s * 1000):
            return []
        piece = self.process.stdout.read(PIECE)
        *lines, self.unfinished = (self.unfinished + piece).split(b"\n")
        return [json.loads(line) for line in lines] if piece else None
