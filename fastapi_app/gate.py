"""A queue before something scarce: first come, first served, and few at once as long as that is quick enough."""

import asyncio
from collections import OrderedDict

PATIENCE_S = 0.1  # what the first in the queue waits before one more is let in


class Gate:
    """Lets `size` in at once, and `extra` more, one by one, while the first in the queue has waited for `patience_s`.

    Many short stays go fastest through few places; a long one must not hold up the others.
    """

    def __init__(self, size: int, extra: int, wait_s: float, patience_s: float = PATIENCE_S) -> None:
        self.inside = 0
        self.waited_s = 0.0  # by all who ever waited, together
        self.turned_away = 0
        self._size, self._most = size, size + extra
        self._wait_s, self._patience_s = wait_s, patience_s
        self._queue: OrderedDict[asyncio.Future[None], float] = OrderedDict()  # and since when

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self) -> None:
        """Raises TimeoutError when it is not our turn within `wait_s` seconds."""
        if self._queue or self.inside >= self._size:
            await self._wait()
        else:
            self.inside += 1

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        turn, since = loop.create_future(), loop.time()
        self._queue[turn] = since
        impatience = loop.call_later(self._patience_s, self._widen)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            self.turned_away += isinstance(error, TimeoutError)
            self._queue.pop(turn, None)
            if turn.done() and not turn.cancelled():
                self.leave()  # let in, and gone in the same moment
            raise
        finally:
            impatience.cancel()
            self.waited_s += loop.time() - since

    def leave(self) -> None:
        self.inside -= 1
        if self.inside < self._size or self._first_waits_long():
            self._widen()

    def _first_waits_long(self) -> bool:
        since = next(iter(self._queue.values()), None)
        return since is not None and asyncio.get_running_loop().time() - since >= self._patience_s

    def _widen(self) -> None:
        """Let the first in who is still there."""
        while self._queue and self.inside < self._most:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                self.inside += 1
                return
