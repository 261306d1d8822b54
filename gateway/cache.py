"""Things worth remembering for a while."""

import time
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The `size` last used entries, each for its own time. For one thread: the event loop's."""

    def __init__(self, size: int) -> None:
        self._size, self._entries = size, OrderedDict[K, tuple[V, float]]()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= time.monotonic():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, ttl_s: float) -> None:
        if ttl_s > 0:
            self._entries[key] = value, time.monotonic() + ttl_s
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
