"""Who changed what, when and why: the append-only trail of one host, `<state>/audit.jsonl`."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit trail."""

    id: int  # counts from 1; 0: nothing had to be changed
    at: str  # UTC, ISO 8601
    by: str
    why: str
    key: str  # an endpoint, or "override"
    before: float | str  # percent; for the override "none", "legacy" or "fastapi"
    after: float | str
    version_before: str
    version: str
    evidence: Mapping[str, Any] = field(default_factory=dict)  # the numbers a robot acted on


def read_audit(path: Path) -> list[Event]:
    """The events of an audit file, newest last. Lines that were torn by a crash are passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _event(line))]


def _event(line: bytes) -> Event | None:
    try:
        values: dict[str, Any] = json.loads(line)
        return Event(**{name: values[name] for name in _EVENT_FIELDS if name in values})
    except (ValueError, TypeError, KeyError):
        return None


_EVENT_FIELDS = [f.name for f in fields(Event)]


@contextmanager
def appending(path: Path) -> Iterator[Callable[[Event], Event]]:
    """A function that numbers an event and writes it down; opened first, so that nothing changes unrecorded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(event: Event) -> Event:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 65_536, max(0, size - 65_536))
        last = next((known for line in reversed(tail.splitlines()) if (known := _event(line))), None)
        event = replace(event, id=last.id + 1 if last else 1)
        torn = b"" if tail.endswith(b"\n") or not tail else b"\n"
        os.write(descriptor, torn + json.dumps(asdict(event)).encode() + b"\n")
        os.fsync(descriptor)
        return event

    try:
        yield append
    finally:
        os.close(descriptor)
