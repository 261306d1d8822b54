"""What do all hosts together know? The sums of this one as they are now, and the last ones that the others have shared.

The same questions as a Ledger answers, so that a rollout on several hosts is judged like one on one host.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from .hosts import Hosts, add_up
from .ledger import Counter, Ledger, Split, Trial, Worker
from .model import Backend, Outcome

SHARE_S = 1.0  # between shares of this host's sums, and how old those of the others may be

Tallies = Mapping[str, Mapping[Outcome, int]]


class Census:
    """Shares the sums of one host and adds up those of all. Raises NotShared while Redis does not answer.

    `tallies`: outcomes of this host's shadow comparisons by key.
    """

    def __init__(self, hosts: Hosts, ledger: Ledger, tallies: Callable[[], Tallies]) -> None:
        self._hosts, self._ledger, self._own_tallies = hosts, ledger, tallies
        self._share_at = self._ask_at = 0.0
        self._others: list[dict[str, Any]] = []

    def share(self) -> None:
        """Give the others what this host knows: a job for its leader, several times a second."""
        if time.monotonic() >= self._share_at:
            self._share_at = time.monotonic() + SHARE_S
            self._hosts.share(self._own())

    def workers(self) -> list[Worker]:
        """The live workers of all hosts."""
        return [
            Worker(worker.pid, worker.host, worker.version, worker.rejected, worker.started_at, worker.seen_at)
            for worker in self._hosts.workers()
        ]

    def counters(self) -> list[Counter]:
        """All sums, by key, backend and status."""
        return [
            Counter(key, Backend(backend), int(status), int(count), sum_s, tuple(buckets))
            for (key, backend, status), (count, sum_s, *buckets) in _flat(self._all()["counters"])
        ]

    def trials(self) -> dict[tuple[str, Backend], Trial]:
        """All sums of what may be compared, by key and backend."""
        return {
            (key, Backend(backend)): Trial(values["count"], values["errors"], _by_number(values["latencies"]))
            for (key, backend), values in _flat(self._all()["trials"])
        }

    def splits(self) -> dict[str, Split]:
        """Whom each route has answered at its newest weight: on this host, which is as good a sample as any."""
        return self._ledger.splits()

    def tallies(self) -> Tallies:
        """Outcomes of all shadow comparisons, by key."""
        tallies: dict[str, dict[Outcome, int]] = {}
        for (key, outcome), count in _flat(self._all()["tallies"]):
            tallies.setdefault(key, {})[Outcome(outcome)] = count
        return tallies

    def _all(self) -> dict[str, Any]:
        if time.monotonic() >= self._ask_at:
            self._others = [sums for host, sums in self._hosts.sums().items() if host != self._hosts.host]
            self._ask_at = time.monotonic() + SHARE_S
        total: dict[str, Any] = add_up([self._own(), *self._others])
        return total

    def _own(self) -> dict[str, Any]:
        ledger = self._ledger
        counters = {_name(c.key, c.backend.value, c.status): [c.count, c.sum_s, *c.buckets] for c in ledger.counters()}
        trials = {
            _name(key, backend.value): {
                "count": trial.count,
                "errors": trial.errors,
                "latencies": {str(bucket): count for bucket, count in trial.latencies.items()},
            }
            for (key, backend), trial in ledger.trials().items()
        }
        tallies = {
            _name(key, outcome.value): count
            for key, outcomes in self._own_tallies().items()
            for outcome, count in outcomes.items()
        }
        return {"counters": counters, "trials": trials, "tallies": tallies}


def _name(*parts: object) -> str:
    """Names of JSON are texts; no endpoint or backend has a line break."""
    return "\n".join(map(str, parts))


def _flat(sums: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    return [(name.split("\n"), values) for name, values in sums.items()]


def _by_number(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(bucket): count for bucket, count in counts.items()}
