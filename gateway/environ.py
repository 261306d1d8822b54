"""The request as a WSGI application sees it: what gunicorn would say, made from an ASGI scope."""

import io
import os
import stat
import sys
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from wsgiref.types import WSGIEnvironment

from starlette.types import Scope

CACHED_NAMES = 1024  # clients choose header names: a cache of them must not grow without limit
CACHED_NAME_BYTES = 64


class FileWrapper:
    """`wsgi.file_wrapper`: a file as a response body.

    It is its own iterator and can seek where the file can: Werkzeug takes `iter()` of it, then closes that or, for a
    Range, lets it seek.
    """

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike, self.blksize = filelike, blksize
        for name in ("close", "seekable", "seek", "tell"):
            if hasattr(filelike, name):
                setattr(self, name, getattr(filelike, name))

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        if chunk := self.filelike.read(self.blksize):
            return bytes(chunk)
        raise StopIteration

    def on_disk(self) -> tuple[int, int, int] | None:
        """Descriptor, position and end of a plain file; None for anything that makes its bytes as it is read."""
        if type(self.filelike) not in (io.BufferedReader, io.FileIO):
            return None
        try:
            fd = self.filelike.fileno()
            status = os.fstat(fd)
            return (fd, self.filelike.tell(), status.st_size) if stat.S_ISREG(status.st_mode) else None
        except (OSError, ValueError):
            return None


class _Keys(dict[bytes, str]):
    """Names in the environ of request headers; empty for those that pose as another: `X_Real_IP`."""

    def __missing__(self, name: bytes) -> str:
        key = "" if b"_" in name else name.decode("latin-1").upper().replace("-", "_")
        if key and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if len(self) < CACHED_NAMES and len(name) <= CACHED_NAME_BYTES:
            self[name] = key
        return key


class Environs:
    """Makes environs as gunicorn makes them."""

    def __init__(self, *, multiprocess: bool) -> None:
        self._keys = _Keys()
        self._base: WSGIEnvironment = {
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "gateway",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }

    def build(self, scope: Scope) -> WSGIEnvironment:
        """Everything but `wsgi.input`."""
        environ = self._base.copy()
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        query = scope["query_string"].decode("latin-1")
        uri = path.decode("latin-1")
        environ["REQUEST_METHOD"] = scope["method"]
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if b"%" in path else uri
        environ["QUERY_STRING"] = query
        environ["RAW_URI"] = environ["REQUEST_URI"] = f"{uri}?{query}" if query else uri
        environ["SERVER_PROTOCOL"] = "HTTP/" + scope["http_version"]
        environ["wsgi.url_scheme"] = scope["scheme"]
        keys = self._keys
        for name, value in scope["headers"]:
            key = keys[name]
            if key not in environ:
                environ[key] = value.strip().decode("latin-1")
            else:
                separator = "; " if key == "HTTP_COOKIE" else ","
                environ[key] += separator + value.strip().decode("latin-1")
        environ.pop("", None)
        _add_addresses(environ, scope)
        if scope.get("root_path"):
            _split_prefix(environ, scope["root_path"])
        if "gateway.match" in scope:
            environ["gateway.match"] = scope["gateway.match"]
        return environ


def _add_addresses(environ: WSGIEnvironment, scope: Scope) -> None:
    host, port = scope.get("server") or ("", None)
    if port is None:  # a unix socket: what the client says is all that is known
        host, _, port = environ.get("HTTP_HOST", "").partition(":")
        port = port or {"http": 80, "https": 443}.get(scope["scheme"], "")
    environ["SERVER_NAME"], environ["SERVER_PORT"] = host, str(port)
    client = scope.get("client")
    if client:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
    else:
        environ["REMOTE_ADDR"] = ""


def _split_prefix(environ: WSGIEnvironment, root_path: str) -> None:
    prefix = root_path.rstrip("/").encode().decode("latin-1")
    path = environ["PATH_INFO"]
    if path == prefix or path.startswith(prefix + "/"):
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, path[len(prefix) :]
