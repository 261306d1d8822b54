"""Everything the gateway raises on purpose.

GatewayError
├── ConfigError       a setting, an import string, a factory, a secret: nothing can start
├── FlagFileError     the flag file is wrong: file, line, key, what was expected
├── FlagConflict      an edit was based on a version that is no longer current
├── FlagsReadOnly     the flag file cannot be written here (a mounted ConfigMap, say)
├── NotShared         of several hosts only this one knows: Redis does not answer
├── UnknownKey        no such route
├── WrongValue        a value that is not what was expected
├── NotPorted         FastAPI answers nothing of a route that it is to serve
├── Blocked           the evidence does not allow a change that nobody forced
└── RouteError        the two applications disagree about a route

Elsewhere: spool.BodyTruncated, which needs Werkzeug; the command line starts without it.
"""


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


class NotShared(GatewayError):
    """Raised when Redis does not answer. An edit that raises it says what is in force on this host nevertheless."""


class RouteError(GatewayError):
    """Raised when a Flask endpoint and its FastAPI twin contradict each other."""


class UnknownKey(GatewayError):
    """Raised for a key that no route has; `nearest` is the most similar one that some route has."""

    def __init__(self, key: str, nearest: str = "") -> None:
        self.key, self.nearest = key, nearest
        super().__init__(f"{key}: no such route" + (f"; did you mean {nearest!r}?" if nearest else ""))


class WrongValue(GatewayError):
    """Raised for a value that is out of range or of the wrong kind."""

    def __init__(self, key: str, expected: str, value: object) -> None:
        self.key, self.expected = key, expected
        super().__init__(f"{key}: expected {expected}, not {value!r}")


class NotPorted(GatewayError):
    """Raised when FastAPI is to serve a route of which it answers nothing; `missing` says what to write."""

    def __init__(self, key: str, missing: tuple[str, ...]) -> None:
        self.key, self.missing = key, missing
        super().__init__(f"{key}: nothing of it is ported; to port it, write {' and '.join(missing)}")


class Blocked(GatewayError):
    """Raised when a weight is to rise further than the evidence allows; `missing` says what would allow it."""

    def __init__(self, key: str, missing: tuple[str, ...]) -> None:
        self.key, self.missing = key, missing
        super().__init__(f"{key}: blocked by its evidence: {'; '.join(missing)}")
