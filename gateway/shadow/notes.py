"""What the process that replays is doing, where it can be read after its death: a small file in memory.

`<state>/shadow.notes` begins with the process id and its last heartbeat; then come slots, one per replay that runs.
"""

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAME = "shadow.notes"

_HEAD = struct.Struct("<qd")
_SLOT = struct.Struct("<dH")
_SLOT_BYTES = 256
_KEY_BYTES = _SLOT_BYTES - _SLOT.size


@dataclass(frozen=True, slots=True)
class Doing:
    """One look at the notes."""

    pid: int = 0
    beat: float = 0.0  # by the monotonic clock, which all processes of a host share; 0.0: it is still loading
    keys: tuple[str, ...] = ()  # of the replays that run, or ran when it died


class Notes:
    """Kept by the process itself, in as many `slots` as it may run replays."""

    def __init__(self, state: Path, slots: int) -> None:
        path = state / NAME
        path.unlink(missing_ok=True)  # a new file: the notes of a dead process belong to who reads them
        with path.open("xb+") as file:
            file.truncate(_HEAD.size + slots * _SLOT_BYTES)
            self._map = mmap.mmap(file.fileno(), 0)
        self._free = list(range(_HEAD.size, len(self._map), _SLOT_BYTES))

    def beat(self) -> None:
        _HEAD.pack_into(self._map, 0, os.getpid(), time.monotonic())

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        """Name a route as long as the block runs."""
        at = self._free.pop()
        name = key.encode()[:_KEY_BYTES]
        self._map[at + _SLOT.size : at + _SLOT.size + len(name)] = name
        _SLOT.pack_into(self._map, at, time.monotonic(), len(name))
        try:
            yield
        finally:
            _SLOT.pack_into(self._map, at, 0.0, 0)
            self._free.append(at)


def look(state: Path) -> Doing:
    """What the notes say; nothing where there are none."""
    try:
        data = (state / NAME).read_bytes()
        pid, beat = _HEAD.unpack_from(data)
        slots = [(at, *_SLOT.unpack_from(data, at)) for at in range(_HEAD.size, len(data), _SLOT_BYTES)]
    except (OSError, struct.error):
        return Doing()
    names = [data[at + _SLOT.size : at + _SLOT.size + size] for at, began, size in slots if began]
    return Doing(pid, beat, tuple(name.decode("utf-8", "replace") for name in names))


def waited_s(pid: int) -> float:
    """How long the main thread of a process could have run and did not get a CPU; 0.0 where nobody counts that."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
