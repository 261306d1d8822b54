"""A cache is bounded in size and in time."""

import time

from gateway.cache import Cache


def test_what_was_used_longest_ago_makes_room() -> None:
    cache: Cache[str, int] = Cache(2)
    for number, key in enumerate("ab"):
        cache.put(key, number, 60)
    assert 0 == cache.get("a")
    cache.put("c", 2, 60)
    assert [0, None, 2] == [cache.get(key) for key in "abc"]


def test_everything_is_forgotten_in_its_time() -> None:
    cache: Cache[str, int] = Cache(9)
    cache.put("soon", 1, 0.01)
    cache.put("late", 2, 60)
    cache.put("never", 3, 0)
    while cache.get("soon"):
        time.sleep(0.002)
    assert [None, 2, None] == [cache.get(key) for key in ("soon", "late", "never")]
