"""Which route's port eats the memory of this worker?

Nobody can see whose object a page belongs to. But a route that leaks makes the process grow when it is asked, and not
when it is not: its share is its answers times the bytes that each of them costs, by linear regression of the growth on
the answers of all routes over time slots. All together, because a burst brings answers of all of them at once: one
by one, a busy route would be blamed for what its neighbour leaks.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIN_SHARE = 0.25  # of the growth: with less, nobody is to blame
AGAIN = 0.05  # of the budget that a worker grows by before the question that had no answer is asked again

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> Callable[[], int]:
    """What reads the resident size of this process, in about 2 us; always 0 where there is no /proc."""
    if not _STATM.exists():
        return lambda: 0
    descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    return lambda: int(os.pread(descriptor, 128, 0).split()[1]) * _PAGE_BYTES


@dataclass(slots=True)
class _Watched:
    """Since a route was set to its weight."""

    before_bytes: int
    answers: int = 0


class _Sums:
    """Over the slots since any route was watched; a slot costs the square of the routes that answered in it."""

    def __init__(self) -> None:
        self.slots = self.growth = 0
        self.answers: Counter[str] = Counter()
        self.grown: Counter[str] = Counter()  # answers times growth
        self.both: Counter[tuple[str, str]] = Counter()  # answers of one times answers of the other

    def add(self, answers: Mapping[str, int], growth: int) -> None:
        self.slots += 1
        self.growth += growth
        for key, count in answers.items():
            self.answers[key] += count
            self.grown[key] += count * growth
            for other, more in answers.items():
                self.both[key, other] += count * more

    def costs(self) -> dict[str, float]:
        """Bytes of one answer of each route; of those that came too evenly to tell, all that is left."""
        rows = [self._covariances(key) for key in self.answers]
        spreads = [row[place] for place, row in enumerate(rows)]
        costs = dict(zip(self.answers, _solve(rows, spreads), strict=True))
        rest = self.growth - sum(cost * self.answers[key] for key, cost in costs.items())
        even = [key for key, spread in zip(costs, spreads, strict=True) if not spread]
        return costs | {key: rest / self.answers[key] for key in even}

    def _covariances(self, key: str) -> list[float]:
        """Of the answers of `key` with those of each route and, at the end, with the growth; times slots squared."""
        mine = self.answers[key]
        row = [self.slots * self.both[key, other] - mine * count for other, count in self.answers.items()]
        return [*map(float, row), float(self.slots * self.grown[key] - mine * self.growth)]


def _solve(rows: list[list[float]], spreads: Sequence[float]) -> list[float]:
    """Least squares by Gauss and Jordan; 0 for a column that those before it explain."""
    kept = []
    for place, spread in enumerate(spreads):
        pivot = rows[place]
        if pivot[place] <= 1e-9 * spread:
            continue
        kept.append(place)
        for row in rows:
            if row is not pivot and (factor := row[place] / pivot[place]):
                row[:] = [mine - factor * its for mine, its in zip(row, pivot, strict=True)]
    return [rows[place][-1] / rows[place][place] if place in kept else 0.0 for place in range(len(rows))]


class Memory:
    """Growth of one worker, split up among the routes that are under rollout."""

    def __init__(self, budget_bytes: int, size: Callable[[], int]) -> None:
        self._budget_bytes, self._again_bytes, self._size = budget_bytes, int(AGAIN * budget_bytes), size
        self._last = size()
        self._routes: dict[str, _Watched] = {}
        self._sums = _Sums()
        self._costs: Mapping[str, float] | None = None  # of an answer, until the next slot
        self._ask_at = 0  # bytes: below, nobody was to blame

    def watch(self, key: str) -> None:
        """Measure from here: the route has been given another weight."""
        if not self._routes:
            self._begin(self._size())
        self._routes[key] = _Watched(self._last)

    def forget(self, key: str) -> None:
        """It is no longer watched; what it has cost is its own, and not what others have grown by."""
        if (route := self._routes.pop(key, None)) and self._grown(route) > self._again_bytes:
            share = round(max(0.0, self._share(key, route)))
            for other in self._routes.values():
                other.before_bytes = min(other.before_bytes + share, self._last)

    def slot(self, answers: Mapping[str, int]) -> None:
        """Note how often each port was asked since the last slot."""
        if not self._routes:
            return
        now = self._size()
        if now < min(route.before_bytes for route in self._routes.values()):
            self._begin(now)  # what was given back would weigh more than what any leak has added
            return
        self._sums.add(answers, now - self._last)
        self._costs = None
        for key, route in self._routes.items():
            route.answers += answers.get(key, 0)
        self._last, self._ask_at = now, min(self._ask_at, now + self._again_bytes)

    def culprit(self) -> tuple[str, Mapping[str, int]] | None:
        """The route to blame for a budget that is spent, and the numbers."""
        over = {key: route for key, route in self._routes.items() if self._grown(route) > self._budget_bytes}
        if not over or self._last < self._ask_at:
            return None
        shares = {key: self._share(key, route) for key, route in over.items()}
        key = max(shares, key=shares.__getitem__)
        grown = self._grown(over[key])
        if shares[key] < MIN_SHARE * grown:
            self._ask_at = self._last + self._again_bytes
            return None
        numbers = {"grown_bytes": grown, "share_bytes": round(shares[key]), "answers": over[key].answers}
        return key, {**numbers, "budget_bytes": self._budget_bytes, "resident_bytes": self._last}

    def _begin(self, size_bytes: int) -> None:
        self._last, self._sums, self._costs, self._ask_at = size_bytes, _Sums(), None, 0
        self._routes = {key: _Watched(size_bytes) for key in self._routes}

    def _grown(self, route: _Watched) -> int:
        return self._last - route.before_bytes

    def _share(self, key: str, route: _Watched) -> float:
        if self._costs is None:
            self._costs = self._sums.costs()
        return self._costs.get(key, 0.0) * route.answers
