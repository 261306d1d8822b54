"""Which differences are noise? Learned from what the control does when it is asked twice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..compare import compare
from ..model import Backend, Observation, RowChange, Verdict


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one side and, for a write, the rows that it changed (None: unknown)."""

    answer: Observation
    rows: tuple[RowChange, ...] | None = None


class NoiseBook:
    """What has been learned about each route. For one thread; no clock, no chance."""

    def trial(
        self, key: str, control: Run, candidate: Run, ignore: Collection[str] = (), *, again: bool = True
    ) -> "Trial":
        """Begin to judge one pair of answers. Without `again` the control cannot be asked twice (it was a write)."""
        return Trial(control, candidate, ignore, again=again)

    def dump(self, key: str) -> dict[str, Any]:
        """What was learned about `key`, for JSON."""
        return {}

    def load(self, key: str, dumped: Mapping[str, Any]) -> None:
        """Take up what an earlier process learned. What cannot be understood is left out."""


class Trial:
    """One pair of answers, and as many more runs of either side as it takes to judge them.

        trial = book.trial(key, control, candidate, ignore)
        while backend := trial.wants():
            trial.see(Run(await ask(backend)))
        verdict = trial.verdict()

    Asking less than it wants is allowed; then what was not explained counts as a difference.
    """

    def __init__(self, control: Run, candidate: Run, ignore: Collection[str], *, again: bool) -> None:
        self._runs, self._ignore, self._again = [control, candidate], ignore, again

    def wants(self) -> Backend | None:
        """Who is to be asked once more, at most some ten times in all; None: nobody, the verdict is ready."""
        first, second, *rest = self._runs
        if rest or not self._again or compare(first.answer, second.answer, self._ignore).matched:
            return None
        return first.answer.backend

    def see(self, run: Run) -> None:
        """One more answer, of the side that was wanted."""
        self._runs.append(run)

    def verdict(self) -> Verdict:
        """The differences that count and, ignored, those that are noise. To be called once."""
        return compare(self._runs[0].answer, self._runs[1].answer, self._ignore)
