"""What is written down about requests, and what acts on it: ledger, journal, shadows and rollouts of one worker.

None of it may touch a request: each part counts and swallows its own failures.
"""

import asyncio
from collections.abc import Callable, Iterable

from starlette.types import Receive, Scope

from .census import Census
from .flags import FlagStore
from .hosts import Hosts
from .journal import Journal, accept, new_id
from .ledger import Ledger, is_error
from .model import Backend, Flag
from .rollout.breaker import Breaker
from .rollout.drill import Drills
from .rollout.leader import Job, Leader
from .rollout.ramp import RampLoop
from .rollout.states import Ramps
from .settings import Settings
from .shadow.client import Shadow
from .shadow.keeper import Keeper
from .shadow.tape import Tape
from .shadow.verdicts import Verdicts

CLIENT_LEFT = 499  # nginx's word for it: nobody's fault


class Instruments:
    """All of them, between `start` and `stop`."""

    def __init__(
        self,
        settings: Settings,
        flags: FlagStore,
        hosts: Hosts | None = None,
        ported: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`ported`: whether FastAPI answers anything of a route."""
        state = settings.state_dir
        self._settings, self._flags = settings, flags
        self._id_header = settings.request_id_header.lower().encode("latin-1")
        self.ledger = Ledger(state)
        self.journal = Journal(state, settings.journal_bytes)
        self._verdicts = Verdicts(state)
        self.shadow = Shadow(settings, state, self._verdicts)
        self.ledger.answer_for(journal=self.journal, verdicts=self._verdicts)
        self._keeper = Keeper(settings, state, self._verdicts)
        self._breaker = Breaker(flags, state, settings.memory_budget_bytes)
        census = Census(hosts, self.ledger, self._verdicts.tallies) if hosts else None
        sums, tallies = census or self.ledger, (census or self._verdicts).tallies
        self._ramps = RampLoop(flags, sums, tallies, Ramps(state), ported=ported, lease=hosts)
        jobs: list[Job] = [self._keep_shadow, self._ramps.tick, Drills(self._ramps, flags, sums.workers, state).tick]
        if hosts and census:
            jobs += [hosts.contend, census.share]
        self._leader = Leader(state, jobs)

    def id_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """What a request is called: as the proxy in front says, if it says anything, or else as we do."""
        for name, value in headers:
            if name == self._id_header:
                return accept(value) or new_id()
        return new_id()

    def note(  # once or twice per request: a container would cost as much as the note
        self, key: str, flag: Flag | None, place_bp: int | None, backend: Backend, status: int, duration_s: float
    ) -> None:
        """One side has answered. `flag`: only if its weight is what chose the side; `place_bp`: of a split."""
        self.ledger.count(key, backend, status, duration_s, trial=flag is not None and bool(flag.rollout))
        if flag is not None and place_bp is not None and flag.rollout:
            self.ledger.count_place(key, flag.weight_bp, place_bp)
        if status != CLIENT_LEFT and self._breaker.watches(key):
            self._breaker.note(key, backend, is_error(status), trial=flag is not None)

    def tape(self, key: str, scope: Scope, receive: Receive) -> Tape | None:
        """What records a request that is to be replayed; None while nothing can be."""
        if not self.shadow.wants(key):
            return None
        settings = self._settings
        return Tape(scope, receive, limit_bytes=settings.shadow_body_bytes, limit_s=settings.shadow_timeout_s)

    def start(self) -> None:
        """Begin, on the running loop."""
        flags, ledger = self._flags, self.ledger
        ledger.start()
        flags.subscribe(lambda current: ledger.seen(current.version, flags.rejected))
        ledger.seen(flags.current.version)
        self.journal.start()
        self._verdicts.start()
        self.shadow.start()
        self._breaker.start()
        self._leader.start()

    async def stop(self) -> None:
        """Write what is left, and end what was started."""
        await self.shadow.stop()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._leader.close()
        self._breaker.close()
        self._keeper.close()
        self._verdicts.close()
        self.journal.close()
        self.ledger.close()

    def _keep_shadow(self) -> None:
        """A job of the leader."""
        self._keeper.tick(any(flag.shadow_bp for flag in self._flags.current.flags.values()))
