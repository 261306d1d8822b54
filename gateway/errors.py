"""Everything the gateway raises on purpose.

GatewayError
├── ConfigError       a setting, an import string, a factory, a secret: nothing can start
├── FlagFileError     the flag file is wrong: file, line, key, what was expected
├── FlagConflict      an edit was based on a version that is no longer current
├── FlagsReadOnly     the flag file cannot be written here (a mounted ConfigMap, say)
├── RouteError        the two applications disagree about a route
└── BodyTruncated     the client left before its request body was complete (also an OSError)
"""

from werkzeug.exceptions import ClientDisconnected


class GatewayError(Exception):
    """Base of all of them. `str(error)` is one complete sentence for a person."""


class ConfigError(GatewayError):
    """Raised before serving starts; the command line exits with 2."""


class FlagFileError(GatewayError):
    """Raised for a flag file that does not say what it must; fatal at start, ignored later."""

    def __init__(self, message: str, *, path: str = "", line: int | None = None, key: str = "") -> None:
        self.path, self.line, self.key = path, line, key
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(f"{where}{key}: {message}" if key else f"{where}{message}")


class FlagConflict(GatewayError):
    """Raised by an edit whose `if_version` is not the version on disk."""


class FlagsReadOnly(GatewayError):
    """Raised by an edit of a file that this process may not replace."""


class RouteError(GatewayError):
    """Raised when a Flask endpoint and its FastAPI twin contradict each other."""


class BodyTruncated(
    GatewayError, ClientDisconnected, OSError
):  # Flask turns it into a 400, plain WSGI code sees an OSError
    """Raised by `wsgi.input` when the client left before the end of the body it announced."""
