"""The log file: warnings and errors of all processes, one line each, without secrets. The admin page shows its end."""

import logging
import re
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

from flask import Flask

from .db import StartupError

MAX_LINE = 2000  # characters

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SECRET = re.compile(
    r"([\w.-]*(?:key|token|secret|password|passwd|authorization|cookie|signature)[\w-]*[\"']?\s*[:=]\s*)"
    r"((?:bearer|basic)\s+)?(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)}\]]+)",
    re.IGNORECASE,
)
CREDENTIALS = re.compile(r"://[^/\s@]*@")


class LogFile(WatchedFileHandler):
    """Appends; opened anew when somebody moved or deleted the file."""

    def emit(self, record):
        try:
            super().emit(record)
        except OSError:  # the folder is gone, too: no reason to fail the request
            self.handleError(record)


class Line(logging.Formatter):
    """`2026-01-31T12:00:00Z ERROR legacy_flask: the message [ValueError in videos.py:12]`."""

    def format(self, record):
        time_of_day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        message = without_secrets(record.getMessage()) + cause(record)
        line = f"{time_of_day} {record.levelname} {record.name}: {message}"
        return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)[:MAX_LINE]


def init_app(app: Flask) -> None:
    """The logger is one for all applications of a process: the last one made has the file."""
    path = Path(app.config["LOG_FILE"] or app.config["DATA_PATH"] / "app.log").resolve()
    app.config["LOG_FILE"] = path
    if app.config["SHADOW"]:
        return
    try:
        file = LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StartupError(f"The log file {path} cannot be written: {error.strerror}") from None
    file.setLevel(logging.WARNING)
    file.setFormatter(Line())
    for handler in [handler for handler in app.logger.handlers if isinstance(handler, LogFile)]:
        app.logger.removeHandler(handler)
        handler.close()
    app.logger.addHandler(file)


def without_secrets(text: str) -> str:
    return CREDENTIALS.sub("://***@", SECRET.sub(r"\1***", text))


def cause(record: logging.LogRecord) -> str:
    """Kind and place of the exception; its text may hold what was sent."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, frame = record.exc_info
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" in {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
    return f" [{kind.__name__}{place}]"
