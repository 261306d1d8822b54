"""A circuit breaker: who has failed again and again is left alone for a while, then asked once, carefully."""

import time
from collections.abc import Callable
from typing import Literal

from .failures import CircuitOpen

FAILURES, REST_S, SUCCESSES = 5, 60.0, 3

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Opens after `failures` in a row, half-opens after `rest_s` seconds, closes after `successes` in a row.

    While it is half open one call at a time is let through, and a single failure opens it again. It knows no I/O and
    no lock: whoever calls does `pass_number = enter()`, and `leave(pass_number, well)` however the call has ended.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        rest_s: float = REST_S,
        successes: int = SUCCESSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._rest_s, self._successes, self._clock = failures, rest_s, successes, clock
        self._closed, self._opened_at = True, 0.0
        self._in_a_row = 0  # failures while closed, successes since
        self._period = 0  # calls of an earlier one have nothing to say any more
        self._probing = False

    @property
    def state(self) -> State:
        if self._closed:
            return "closed"
        return "half_open" if self._clock() >= self._opened_at + self._rest_s else "open"

    def check(self) -> None:
        """Raises CircuitOpen when `enter` would. Takes nothing."""
        if not self._closed and (self._probing or self.state == "open"):
            raise CircuitOpen

    def enter(self) -> int:
        """The number to leave with. Raises CircuitOpen."""
        self.check()
        self._probing = not self._closed
        return self._period

    def leave(self, pass_number: int, well: bool | None) -> None:
        """How the call went; None for one that was cancelled, which says nothing."""
        if pass_number == self._period:
            self._probing = False
            if well is not None:
                self._count(well)

    def _count(self, well: bool) -> None:
        if not self._closed and not well:
            self._turn(closed=False)
            return
        self._in_a_row = 0 if self._closed and well else self._in_a_row + 1
        if self._in_a_row >= (self._failures if self._closed else self._successes):
            self._turn(closed=not self._closed)

    def _turn(self, *, closed: bool) -> None:
        self._closed, self._opened_at = closed, self._clock()
        self._in_a_row, self._period = 0, self._period + 1
