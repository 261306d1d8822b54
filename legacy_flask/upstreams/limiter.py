"""Calls per second and origin, counted once for all processes in Redis, or in memory where Redis is missing.

A token bucket as GCRA: one number per origin, the time from which on its bucket is full again.
"""

import time
from threading import Lock

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from .failures import TooBusy

LONGEST_WAIT_S = 10.0
ANSWER_S = 0.25  # Redis is near
ASK_AGAIN_S = 1.0  # whether Redis is back

# KEYS: the origin. ARGV, in microseconds: between two calls, burst, longest wait. Returns the wait; -1: too long.
# By Redis' own clock: those of its clients differ. A time that nobody can have set is that of a clock that went back.
SCRIPT = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local step, burst, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1])) or now
if full < now or full > now + burst + longest + step then full = now end
local wait = math.max(full + step - burst - now, 0)
if wait > longest then return -1 end
redis.call('SET', KEYS[1], string.format('%.0f', full + step), 'PX', math.ceil((full + step - now) / 1000) + 1000)
return math.ceil(wait)
"""


class Limiter:
    """Waits until a call's turn has come. Turns are given in the order of asking, and are not given back.

    Redis gets a quarter of a second for an answer. When it has given none, the memory of this process counts, and
    one call in a second asks Redis again: without Redis every process has the whole rate for itself.
    """

    def __init__(self, redis_url: str = "", *, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        """Raises ValueError for what is no URL of a Redis. Connects to nothing."""
        self._longest_s = longest_wait_s
        self._full: dict[str, float] = {}  # origin -> when its bucket is full again, monotonic
        self._lock = Lock()
        self._redis = connect(redis_url) if redis_url else None
        self._ask_at = 0.0  # when to ask Redis again; 0 while it answers

    def wait(self, origin: str, per_second: float) -> None:
        """Returns when it is this call's turn; raises TooBusy at once when that is too far away."""
        step_s = 1 / per_second
        wait_s = self._reserve(origin, step_s, max(1.0, step_s))
        if wait_s > 0:
            time.sleep(wait_s)

    def forget(self) -> None:
        """All buckets of this process are full."""
        self._full.clear()

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _reserve(self, origin: str, step_s: float, burst_s: float) -> float:
        now = time.monotonic()
        if self._redis is None or now < self._ask_at:
            return self._reserve_here(origin, step_s, burst_s)
        if self._ask_at:
            self._ask_at = now + ASK_AGAIN_S  # the others do not wait for it meanwhile
        arguments = [round(part * 1e6) for part in (step_s, burst_s, self._longest_s)]
        try:
            wait_us = self._redis.register_script(SCRIPT)([f"music:limiter:{origin}"], arguments)
        except (RedisError, OSError):
            self._ask_at = time.monotonic() + ASK_AGAIN_S
            return self._reserve_here(origin, step_s, burst_s)
        self._ask_at = 0.0
        if wait_us < 0:
            raise TooBusy
        return wait_us / 1e6

    def _reserve_here(self, origin: str, step_s: float, burst_s: float) -> float:
        with self._lock:
            now = time.monotonic()
            full = max(self._full.get(origin, now), now)
            wait_s = max(full + step_s - burst_s - now, 0.0)
            if wait_s > self._longest_s:
                raise TooBusy
            self._full[origin] = full + step_s
            return wait_s


def connect(url: str) -> Redis:
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),
    )
