"""The queue before the pool: nobody overtakes, nobody is forgotten, and more are let in only for those who wait."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from fastapi_app.gate import Gate


async def turns(times: int = 5) -> None:
    """Let the others go on for a while."""
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.fixture
async def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Awaitable[None]]:
    """Time stands still for the loop, until so many seconds have passed at once."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def passed(seconds: float) -> None:
        nonlocal now
        now += seconds
        await turns()

    return passed


async def test_nobody_overtakes() -> None:
    gate, order = Gate(1, 0, 60), []

    async def ask(number: int) -> None:
        await gate.enter()
        order.append(number)
        await asyncio.sleep(0)
        gate.leave()

    await asyncio.gather(*(ask(number) for number in range(50)))
    assert list(range(50)) == order
    assert (0, 0) == (gate.inside, gate.waiting)


async def test_short_stays_never_widen_it() -> None:
    gate, most = Gate(2, 8, 60, patience_s=60), 0

    async def ask() -> None:
        nonlocal most
        await gate.enter()
        most = max(most, gate.inside)
        await asyncio.sleep(0)
        gate.leave()

    await asyncio.gather(*(ask() for _ in range(200)))
    assert 2 == most


async def test_one_more_is_let_in_for_each_who_has_waited_and_none_beyond_the_most(
    later: Callable[[float], Awaitable[None]],
) -> None:
    gate = Gate(1, 2, 60, patience_s=1)
    asking = [asyncio.create_task(gate.enter()) for _ in range(5)]
    await turns()
    await later(0.9)
    assert 1 == gate.inside
    await later(0.2)
    assert (3, 2) == (gate.inside, gate.waiting)
    gate.leave()  # who has waited so long takes the place, though it was an extra one
    await turns()
    assert (3, 1) == (gate.inside, gate.waiting)
    gate.leave()
    await turns()
    assert all(task.done() for task in asking)
    for left in (2, 1, 0):
        gate.leave()
        assert left == gate.inside


async def test_an_extra_place_goes_when_nobody_waits_long(later: Callable[[float], Awaitable[None]]) -> None:
    gate = Gate(1, 1, 60, patience_s=1)
    await gate.enter()
    extra = asyncio.create_task(gate.enter())
    await turns()
    await later(1.1)
    assert (2, True) == (gate.inside, extra.done())
    late = asyncio.create_task(gate.enter())
    await turns()
    gate.leave()
    await turns()
    assert (1, False) == (gate.inside, late.done())
    gate.leave()
    await late


async def test_who_waits_too_long_is_told_and_counted() -> None:
    gate = Gate(1, 0, 0.01)
    await gate.enter()
    with pytest.raises(TimeoutError):
        await gate.enter()
    assert (1, 1, 0) == (gate.turned_away, gate.inside, gate.waiting)
    assert gate.waited_s >= 0.01


async def test_who_is_let_in_and_cancelled_in_the_same_moment_leaves_the_place_to_the_next() -> None:
    gate = Gate(1, 0, 60)
    await gate.enter()
    first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
    await turns()
    gate.leave()
    first.cancel()
    await second
    assert (True, 1, 0) == (first.cancelled(), gate.inside, gate.waiting)


async def test_who_was_cancelled_in_the_queue_is_passed_over() -> None:
    gate = Gate(1, 0, 60)
    await gate.enter()
    first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
    await turns()
    first.cancel()
    gate.leave()  # before the cancelled task has had its turn
    await second
    assert (True, 1) == (first.cancelled(), gate.inside)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_every_place_comes_back(seed: int) -> None:
    chance, gate = random.Random(seed), Gate(2, 2, 0.02, patience_s=0.005)

    async def ask() -> None:
        await gate.enter()
        try:
            assert gate.inside <= 4
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.03]))
        finally:
            gate.leave()

    asking = [asyncio.create_task(ask()) for _ in range(40)]
    for task in asking:
        await asyncio.sleep(chance.choice([0, 0, 0.002]))
        if chance.random() < 0.5:
            task.cancel()
    for task in asking:
        with suppress(asyncio.CancelledError, TimeoutError):
            await task
    assert (0, 0) == (gate.inside, gate.waiting)
