"""Which route's port eats the memory of this worker?

Nobody can see whose object a page belongs to. But a route that leaks makes the process grow when it is asked, and not
when it is not: its share is the covariance of growth and answers over time slots, which those of its neighbours do
not have. Answers of different routes are taken to come independently.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MIN_SHARE = 0.25  # of the growth: with less, nobody is to blame

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> Callable[[], int]:
    """What reads the resident size of this process, in about 2 us; always 0 where there is no /proc."""
    if not _STATM.exists():
        return lambda: 0
    descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    return lambda: int(os.pread(descriptor, 128, 0).split()[1]) * _PAGE_BYTES


@dataclass(slots=True)
class _Sums:
    """Over the slots since a route was set to its weight."""

    before_bytes: int
    slots: int = 0
    answers: int = 0
    squares: int = 0
    growth: int = 0
    products: int = 0

    def add(self, answers: int, growth: int) -> None:
        self.slots += 1
        self.answers += answers
        self.squares += answers * answers
        self.growth += growth
        self.products += answers * growth

    @property
    def share_bytes(self) -> float:
        """The growth that goes with the answers; all of it where they came too evenly to tell."""
        spread = self.slots * self.squares - self.answers**2
        if not spread:
            return float(self.growth if self.answers else 0)
        return (self.slots * self.products - self.answers * self.growth) / spread * self.answers


class Memory:
    """Growth of one worker, split up among the routes that are under rollout."""

    def __init__(self, budget_bytes: int, size: Callable[[], int]) -> None:
        self._budget_bytes, self._size = budget_bytes, size
        self._last = size()
        self._routes: dict[str, _Sums] = {}

    def watch(self, key: str) -> None:
        """Measure from here: the route has been given another weight."""
        if not self._routes:
            self._last = self._size()
        self._routes[key] = _Sums(self._last)

    def forget(self, key: str) -> None:
        self._routes.pop(key, None)

    def slot(self, answers: Mapping[str, int]) -> None:
        """Note how often each port was asked since the last slot."""
        if not self._routes:
            return
        now = self._size()
        for key, sums in self._routes.items():
            sums.add(answers.get(key, 0), now - self._last)
        self._last = now

    def culprit(self) -> tuple[str, Mapping[str, int]] | None:
        """The route to blame for a budget that is spent, and the numbers."""
        over = {key: sums for key, sums in self._routes.items() if self._last - sums.before_bytes > self._budget_bytes}
        if not over:
            return None
        key, sums = max(over.items(), key=lambda item: item[1].share_bytes)
        grown = self._last - sums.before_bytes
        if sums.share_bytes < MIN_SHARE * grown:
            return None
        numbers = {"grown_bytes": grown, "share_bytes": round(sums.share_bytes), "answers": sums.answers}
        return key, {**numbers, "budget_bytes": self._budget_bytes, "resident_bytes": self._last}
