"""The log file: warnings and errors of all processes, one line each, without secrets. The admin page shows its end.

A thread writes it: no disk is so busy that the loop would wait for it. Of a contained request nothing remains.
"""

import logging
import re
import time
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from typing_extensions import override

from . import containment

MAX_LINE = 2000  # characters

log = logging.getLogger("fastapi_app")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET = re.compile(
    r"([\w.-]*(?:key|token|secret|password|passwd|authorization|cookie|signature)[\w-]*[\"']?\s*[:=]\s*)"
    r"((?:bearer|basic)\s+)?(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)}\]]+)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"://[^/\s@]*@")


class LogFile:
    """What `fastapi_app` logs, from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self._handler = QueueHandler(self._queue)
        self._handler.setLevel(logging.WARNING)
        self._handler.setFormatter(Line())
        self._handler.addFilter(lambda _: containment.current() is None)
        self._listener: QueueListener | None = None

    def open(self) -> None:
        """Raises OSError when the file cannot be written."""
        file = _File(self._path, encoding="utf-8", errors="backslashreplace")
        self._listener = QueueListener(self._queue, file)
        self._listener.start()
        if not log.hasHandlers():
            log.addHandler(logging.StreamHandler())  # as it would be without a file
        log.addHandler(self._handler)

    def close(self) -> None:
        """Write what waits; a moment of blocking."""
        log.removeHandler(self._handler)
        if self._listener is not None:
            self._listener.stop()
            for file in self._listener.handlers:
                file.close()
            self._listener = None


class Line(logging.Formatter):
    """`2026-01-31T12:00:00Z ERROR fastapi_app: the message [ValueError in videos.py:12]`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        time_of_day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        message = without_secrets(record.getMessage()) + _cause(record)
        line = f"{time_of_day} {record.levelname} {record.name}: {message}"
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)[:MAX_LINE]


class _File(WatchedFileHandler):
    """Appends; opened anew when somebody moved or deleted the file."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the folder is gone, too: no reason to end the thread
            self.handleError(record)


def without_secrets(text: str) -> str:
    """Words that follow the name of a secret, and credentials in addresses, become three stars."""
    return _CREDENTIALS.sub("://***@", _SECRET.sub(r"\1***", text))


def _cause(record: logging.LogRecord) -> str:
    """Kind and place of the exception; its text may hold what was sent."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, frame = record.exc_info
    return f" [{kind.__name__}{_place(frame)}]"


def _place(frame: TracebackType | None) -> str:
    if frame is None:
        return ""
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f" in {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
