"""Multipart forms, read as leniently as Werkzeug reads them: any kind of line break, any way to write a file name."""

import re
from email.message import Message
from typing import NamedTuple

MAX_PARTS, MAX_FIELD = 1000, 500_000  # of a form; a field in bytes

_BLANK_LINE = re.compile(rb"\r\n\r\n|\r\r|\n\n")
_AFTER = re.compile(rb"(--)|[^\S\n\r]*(?:\r\n|\n|\r)")
_BREAK = re.compile(rb"\r\n|\n|\r")
_CHARSETS = ("ascii", "us-ascii", "utf-8", "iso-8859-1")


class FormTooLarge(Exception):
    """More than MAX_PARTS parts, or a field of more than MAX_FIELD bytes."""


class Part(NamedTuple):
    """A field, or a file when it has a name, be it empty."""

    name: str
    filename: str | None
    content: bytes
    charset: str

    @property
    def text(self) -> str:
        return self.content.decode(self.charset, "replace")


def parse_multipart(body: bytes, content_type: str) -> list[Part]:
    """The parts in their order; none at all of a body that is damaged. Raises FormTooLarge."""
    boundary = _header("content-type", content_type).get_boundary()
    if not boundary:
        return []
    try:
        return _parts(body, b"--" + boundary.encode("ascii"))
    except ValueError:
        return []


def _parts(body: bytes, delimiter: bytes) -> list[Part]:
    """Raises ValueError where there is no delimiter any more, or no Content-Disposition."""
    parts: list[Part] = []
    _, position, last = _find(body, delimiter, 0, first=True)
    while not last:
        blank = _BLANK_LINE.search(body, position)
        if blank is None:
            raise ValueError("a part without content")
        headers = body[position : blank.start()].decode()
        start = (blank.start() + blank.end()) // 2  # before the break that ends the blank line: it may serve twice
        end, position, last = _find(body, delimiter, start)
        line_break = _BREAK.match(body, start)
        content = body[line_break.end() if line_break else start : end]
        parts.append(_part(headers, content))
        if len(parts) > MAX_PARTS:
            raise FormTooLarge
    return parts


def _find(body: bytes, delimiter: bytes, start: int, *, first: bool = False) -> tuple[int, int, bool]:
    """Where the content before the next delimiter line ends, where that line ends, and whether it is the last."""
    position = body.find(delimiter, start)
    while position >= 0:
        before = body[max(position - 2, 0) : position]
        after = _AFTER.match(body, position + len(delimiter))
        if after and (first or before[-1:] in (b"\r", b"\n")):
            return position - (2 if before == b"\r\n" else 1), after.end(), after[1] is not None
        position = body.find(delimiter, position + 1)
    raise ValueError("a form without end")


def _part(headers: str, content: bytes) -> Part:
    lines = re.sub(r"(?:\r\n|\n|\r)[ \t]", " ", headers).splitlines()
    named = (line.partition(":") for line in reversed(lines))  # of a repeated field the first counts
    fields = {name.strip().lower(): value.strip() for name, _, value in named}
    if "content-disposition" not in fields:
        raise ValueError("a part without name")
    disposition = _header("content-disposition", fields["content-disposition"])
    name, filename = disposition.get_param("name", header="content-disposition"), disposition.get_filename()
    charset = _header("content-type", fields.get("content-type", "")).get_content_charset() or ""
    if filename is None and len(content) > MAX_FIELD:
        raise FormTooLarge
    return Part(str(name), filename, content, charset if charset in _CHARSETS else "utf-8")


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value
    return message
