"""Which routes are left out of shadowing, because their candidate keeps taking the process that replays along.

`<state>/shadow.strikes` is written by that process while it lives and by its keeper when it is dead, read by all.
"""

import os
import time
from collections.abc import Collection
from pathlib import Path

import orjson

NAME = "shadow.strikes"
LIMIT = 3  # strikes, and a route is left out
SUSPEND_S = 600.0  # for so long, and twice as long with every further strike
MAX_SUSPEND_S = 86_400.0
FORGET_S = 86_400.0  # without a further strike

_LOOK_S = 1.0


class Strikes:
    """The file, read again when it has changed, once a second at most."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._read_at = 0.0
        self._seen: tuple[int, int] | None = None  # inode and time of the file that was read
        self._strikes: dict[str, tuple[int, float]] = {}  # how many, and when the last one came

    def add(self, keys: Collection[str], count: int = 1) -> list[str]:
        """Note strikes. Returns those keys that are left out from now on."""
        self._read()
        now = time.time()
        kept = {key: strike for key, strike in self._strikes.items() if now - strike[1] < FORGET_S}
        self._strikes = kept | {key: (kept.get(key, (0, 0.0))[0] + count, now) for key in keys}
        fresh = self._path.with_name(f".{NAME}.{os.getpid()}")
        fresh.write_bytes(orjson.dumps(self._strikes))
        fresh.replace(self._path)
        return [key for key in keys if self._strikes[key][0] >= LIMIT]

    def suspects(self) -> frozenset[str]:
        """Keys with a fresh strike. They run alone: what runs beside the culprit would be blamed again."""
        self._look()
        now = time.time()
        return frozenset(key for key, (_, at) in self._strikes.items() if now - at < SUSPEND_S)

    def suspended(self) -> dict[str, float]:
        """Keys that are left out, and until when (epoch seconds)."""
        self._look()
        until = {key: at + _pause_s(count) for key, (count, at) in self._strikes.items() if count >= LIMIT}
        now = time.time()
        return {key: end for key, end in until.items() if end > now}

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._read_at:
            self._read_at = now + _LOOK_S
            self._read()

    def _read(self) -> None:
        try:
            stat = self._path.stat()
            if (seen := (stat.st_ino, stat.st_mtime_ns)) != self._seen:
                document = orjson.loads(self._path.read_bytes())
                self._strikes = {key: (int(count), float(at)) for key, (count, at) in document.items()}
                self._seen = seen
        except FileNotFoundError:
            self._strikes, self._seen = {}, None
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # what was read last is as good as anything


def _pause_s(count: int) -> float:
    return min(SUSPEND_S * 2.0 ** (count - LIMIT), MAX_SUSPEND_S)
