"""Files and live output as answers. Conditions, ranges and headers are those of Werkzeug's `send_file`."""

import re
import unicodedata
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from zlib import adler32

import anyio
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from .files import off_loop
from .http import error_page

CHUNK = 256 * 1024  # bytes read at once: each read costs a trip to a thread
_TOKEN = re.compile(r"[\w!#$%&'*+\-.^`|~]+", re.ASCII)
_ETAG = re.compile(r"""[ \t]* ([Ww]/)? (?: "([^"]*)" | ([^" \t,]+) ) [ \t]* (?:,|\Z)""", re.ASCII | re.VERBOSE)
_RANGE = re.compile(
    r"[ \t]* bytes [ \t]* = [ \t]* (?: ([0-9]+) [ \t]* - [ \t]* ([0-9]*) | - ([0-9]+) ) [ \t]*",
    re.ASCII | re.VERBOSE | re.IGNORECASE,
)
_ANY = "\0"  # no tag can be this


class Stream(Response):
    """A body that is sent while it is made. The making is cancelled as soon as the client has left.

    Whoever makes it shields what has to be awaited while cleaning up.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], status: int, headers: Mapping[str, str]) -> None:
        self._chunks = chunks
        self.status_code = status
        self.background = None
        self.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with aclosing(self._chunks) as chunks, anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            if scope["method"] != "HEAD":
                tasks.start_soon(watch)
                chunk = await anext(chunks, b"")  # what fails before the first byte is still an error page
                await send(start)
                while chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = await anext(chunks, b"")
            else:
                await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


async def send_file(request: Request, path: Path, media_type: str, *, ranges: bool = True) -> Response:
    """A file of the disk. Without `ranges` a Range header counts for nothing. Raises OSError when it has just gone."""
    stat = await off_loop(path.stat)
    headers = {
        "content-disposition": _inline(path.name),
        "content-type": media_type,
        "last-modified": formatdate(stat.st_mtime, usegmt=True),
        "cache-control": "no-cache",
        "etag": f'"{stat.st_mtime}-{stat.st_size}-{adler32(str(path).encode())}"',
    }
    status, part = plan(_asked(request, ranges=ranges), headers, stat.st_size)
    if status in (200, 206, 412):
        headers["content-length"] = str(len(part))
        return Stream(_read(path, part), status, headers)
    return _without_body(status, headers, stat.st_size)


def send_bytes(request: Request, content: bytes, media_type: str, etag: str) -> Response:
    """A file that was made in memory."""
    headers = {"content-type": media_type, "cache-control": "no-cache", "etag": f'"{etag}"'}
    status, part = plan(_asked(request, ranges=True), headers, len(content))
    if status in (200, 206, 412):
        return Response(content[part.start : part.stop], status, headers)
    return _without_body(status, headers, len(content))


def plan(asked: Mapping[str, str], headers: dict[str, str], size: int) -> tuple[int, range]:
    """What to answer: 200, 206, 304, 412 or 416, and which bytes of the file.

    `asked` are the request's headers by lower-case name. Adds Accept-Ranges and Content-Range to `headers`.
    """
    etag, changed = headers["etag"][1:-1], _date(headers.get("last-modified"))
    headers["accept-ranges"] = "bytes"
    wanted, condition = asked.get("range"), asked.get("if-range")
    if size and wanted is not None and (condition is None or _unmodified(asked, etag, changed, condition)):
        part = _range(wanted, size)
        if part is None:
            return 416, range(0)
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        return 206, part
    if _unmodified(asked, etag, changed, ""):
        return (412 if _etags(asked.get("if-match")) else 304), range(size)
    return 200, range(size)


def _asked(request: Request, *, ranges: bool) -> dict[str, str]:
    asked = dict(request.headers)
    if not ranges:
        asked.pop("range", None)
    return asked


def _without_body(status: int, headers: dict[str, str], size: int) -> Response:
    if status == 416:
        return error_page(416, {"content-range": f"bytes */{size}"})
    for name in ("content-type", "last-modified"):
        headers.pop(name, None)
    return Response(None, status, headers)


async def _read(path: Path, part: range) -> AsyncGenerator[bytes, None]:
    """These bytes of the file."""
    with await off_loop(_open, path) as file:
        await off_loop(file.seek, part.start)
        left = len(part)
        while left > 0 and (chunk := await off_loop(file.read, min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _inline(name: str) -> str:
    """`Content-Disposition` for a file shown in place; a name beyond ASCII in the form of RFC 5987 as well."""
    simple = name if name.isascii() else unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    if not _TOKEN.fullmatch(simple):
        escaped = simple.replace("\\", "\\\\").replace('"', '\\"')
        simple = f'"{escaped}"'
    extended = "" if name.isascii() else f"; filename*=UTF-8''{quote(name, safe='!#$&+-.^_`|~')}"
    return f"inline; filename={simple}{extended}"


# Conditions


def _unmodified(asked: Mapping[str, str], etag: str, changed: datetime | None, if_range: str) -> bool:
    """Whether the client has this very file. `if_range` replaces the other conditions by its own."""
    condition_date = _date(if_range)
    since = condition_date or _date(asked.get("if-modified-since"))
    unmodified = bool(since and changed and changed <= since)
    if if_range and not condition_date:
        return _unquote(if_range) == etag
    if none_match := _etags(asked.get("if-none-match")):
        unmodified = bool({_ANY, etag, f"W/{etag}"} & none_match)
    if match := _etags(asked.get("if-match")):
        unmodified = etag not in match
    return unmodified


def _etags(header: str | None) -> set[str]:
    """The tags without quotes, weak ones marked with `W/`."""
    if header == "*":
        return {_ANY}
    tags, position = set(), 0
    while header:
        match = _ETAG.match(header, position)
        if match is None:  # no tag up to the next comma
            position = header.find(",", position) + 1
            if position == 0:
                break
            continue
        position = match.end()
        tags.add(("W/" if match[1] else "") + (match[2] or match[3] or ""))
    return tags


def _unquote(etag: str) -> str:
    etag = etag.removeprefix("W/").removeprefix("w/")
    return etag[1:-1] if len(etag) > 1 and etag[0] == etag[-1] == '"' else etag


def _date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _range(header: str, size: int) -> range | None:
    """The bytes of one satisfiable range; None for several, for other units and for what is no range."""
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    start = size - int(suffix) if suffix else int(first)
    stop = min(int(last) + 1, size) if last else size
    return range(start, stop) if 0 <= start < stop else None
