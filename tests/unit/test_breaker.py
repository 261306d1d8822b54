"""One worker stops asking a port that is broken, at once, and all others follow."""

import asyncio
import mmap
import os
import random
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from gateway.flags import FlagStore
from gateway.ledger import Ledger
from gateway.model import Backend
from gateway.rollout.breaker import Breaker
from gateway.rollout.memory import Memory, resident_bytes
from gateway.rollout.ramp import RampLoop
from gateway.rollout.states import Ramps
from tests.support.processes import wait_until

PORT, LEGACY = Backend.FASTAPI, Backend.LEGACY
FLAGS = """version: 1
rollouts:
  careful: {steps: [5, 50, 100], every: 1h}
routes:
  a: {weight: 50, rollout: careful}
  b: 50
  c: fastapi
"""
BUDGET = 100 << 20


@pytest.fixture
def flags(tmp_path: Path) -> FlagStore:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    return FlagStore(tmp_path / "flags.yaml", None, tmp_path / "state")


@pytest.fixture
def breaker(flags: FlagStore, tmp_path: Path) -> Iterator[Breaker]:
    breaker = Breaker(flags, tmp_path / "state", BUDGET)
    breaker.start()
    wait_until(lambda: breaker.watches("a"), "the watch")
    yield breaker
    breaker.close()
    settle()


def settle() -> None:
    """No thread that tells others is left."""
    wait_until(lambda: not {"gateway-hold", "gateway-tell"} & {t.name for t in threading.enumerate()}, "threads to end")


def is_off(flags: FlagStore, key: str) -> bool:
    return flags.current[key].weight_bp == 0


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_a_port_that_breaks_obviously_is_off_after_a_few_answers(flags: FlagStore, breaker: Breaker, key: str) -> None:
    for _ in range(5):
        breaker.note(key, LEGACY, False)
        breaker.note(key, PORT, True)
    wait_until(lambda: is_off(flags, key), "the weight to be 0")
    settle()
    (event,) = [event for event in flags.audit() if event.action == "rollback"]
    assert ("breaker", key, 0, 5) == (event.by, event.key, event.after, event.evidence["port_errors"])
    assert os.getpid() == event.evidence["worker"]
    assert {"a", "b", "c"} - {key} == {other for other in "abc" if flags.current[other].weight_bp}


def test_what_legacy_does_badly_too_never_trips(flags: FlagStore, breaker: Breaker) -> None:
    chance = random.Random(1)
    for _ in range(3000):
        for side in Backend:
            breaker.note("a", side, chance.random() < 0.4)
    for _ in range(50):
        breaker.note("c", PORT, True)
        breaker.note("c", LEGACY, True, trial=False)
    time.sleep(0.3)
    assert not flags.current.held
    assert not is_off(flags, "a")


def test_a_port_that_fails_more_often_than_legacy_is_off_before_it_is_obvious(
    flags: FlagStore, breaker: Breaker
) -> None:
    chance = random.Random(1)
    for _ in range(200):
        for _ in range(10):
            breaker.note("a", PORT, chance.random() < 0.15)
            breaker.note("a", LEGACY, chance.random() < 0.01)
        if flags.current.held or is_off(flags, "a"):
            break
        time.sleep(0.01)
    wait_until(lambda: is_off(flags, "a"), "the weight to be 0")
    settle()


def test_who_was_not_sent_by_the_weight_cannot_break_anything(flags: FlagStore, breaker: Breaker) -> None:
    for _ in range(100):
        breaker.note("a", PORT, True, trial=False)
    time.sleep(0.2)
    assert not flags.current.held


def test_where_the_file_cannot_be_changed_the_route_stays_held(
    flags: FlagStore, breaker: Breaker, tmp_path: Path
) -> None:
    (tmp_path / "flags.yaml").write_text("version: 2\n")
    for _ in range(5):
        breaker.note("b", PORT, True)
    wait_until(lambda: "b" in flags.current.held, "the hold")
    settle()
    assert 5000 == flags.current["b"].weight_bp


def test_a_route_that_somebody_raises_again_is_watched_anew(flags: FlagStore, breaker: Breaker) -> None:
    for _ in range(2):
        for _ in range(5):
            breaker.note("b", PORT, True)
        wait_until(lambda: is_off(flags, "b"), "the weight to be 0")
        settle()
        flags.set_weight("b", 50, by="ann")
        wait_until(lambda: breaker.watches("b") and not flags.current.held, "the watch")
        time.sleep(0.1)
        assert 5000 == flags.current["b"].weight_bp


def test_a_trip_starts_the_lock_out_of_the_ramp(flags: FlagStore, breaker: Breaker, tmp_path: Path) -> None:
    ramps = Ramps(tmp_path / "state")
    loop = RampLoop(flags, Ledger(tmp_path / "state"), dict, ramps)
    loop.tick()
    for _ in range(5):
        breaker.note("a", PORT, True)
    wait_until(lambda: is_off(flags, "a"), "the weight to be 0")
    settle()
    loop.tick()
    assert (1, 0, "") == (loop.ramps["a"].rollbacks, loop.ramps["a"].weight_bp, loop.ramps["a"].paused)
    ramps.close()


def test_noting_costs_less_than_a_microsecond(flags: FlagStore, tmp_path: Path) -> None:
    breaker = Breaker(flags, tmp_path, BUDGET)

    def note() -> None:
        breaker.watches("a")
        breaker.note("a", PORT, False, True)

    took_s = timeit.repeat(note, number=10_000, repeat=5, timer=time.process_time)
    assert min(took_s) / 10_000 < 1e-6


# --- four workers

ROUNDS = 3  # the machine may be busy with others in one of them


def work(directory: Path, number: int, barrier: Barrier, off: "list[Event]") -> None:
    """A worker that follows the flags, and says in each round when it asks the port no more."""

    async def run() -> None:
        flags = FlagStore(directory / "flags.yaml", None, directory / "state")
        breaker = Breaker(flags, directory / "state", BUDGET)
        breaker.start()
        watch = asyncio.create_task(flags.watch())

        def asks() -> bool:
            return bool(flags.current["b"].weight_bp) and "b" not in flags.current.held

        await asyncio.sleep(0.2)
        for _ in range(ROUNDS):
            while not (asks() and breaker.watches("b")):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(barrier.wait, 60)
            if number == 0:
                for _ in range(5):
                    breaker.note("b", PORT, True)
            while asks():
                await asyncio.sleep(0.001)
            off[number].set()
            await asyncio.to_thread(barrier.wait, 60)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        breaker.close()

    asyncio.run(run())


def test_all_workers_are_on_legacy_within_a_second_of_the_deciding_request(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    context = get_context("spawn")
    barrier, off = context.Barrier(5), [context.Event() for _ in range(4)]
    workers = [context.Process(target=work, args=(tmp_path, number, barrier, off)) for number in range(4)]
    for worker in workers:
        worker.start()
    took_s = []
    for _ in range(ROUNDS):
        barrier.wait(60)
        began = time.monotonic()
        assert all(event.wait(30) for event in off)
        took_s.append(time.monotonic() - began)
        for event in off:
            event.clear()
        barrier.wait(60)
        FlagStore(tmp_path / "flags.yaml", None, tmp_path / "state").set_weight("b", 50, by="ann")
    assert min(took_s) < 1
    for worker in workers:
        worker.join(30)
    assert [0] * 4 == [worker.exitcode for worker in workers]


# --- memory


def test_a_port_that_leaks_is_off_when_the_budget_is_spent_and_others_stay(flags: FlagStore, tmp_path: Path) -> None:
    size, chance = [100 << 20], random.Random(1)
    memory = Memory(50 << 20, lambda: size[0])
    for key in ("leaking", "busy", "quiet"):
        memory.watch(key)
    blamed: list[str] = []
    while not blamed and size[0] < 200 << 20:
        answers = {"leaking": chance.randrange(3), "busy": chance.randrange(30), "quiet": chance.randrange(2)}
        size[0] += answers["leaking"] * (1 << 20) // 2
        memory.slot(answers)
        blamed += [found[0] for found in [memory.culprit()] if found]
    assert ["leaking"] == blamed
    assert size[0] <= 152 << 20


@pytest.mark.parametrize("seed", range(20))
def test_bursts_that_reach_all_ports_at_once_bring_only_those_that_leak_under_suspicion(seed: int) -> None:
    size, chance = [0], random.Random(seed)
    memory = Memory(60_000_000, lambda: size[0])
    rates = {"item": 0.10, "order": 0.05, "other": 0.13, "always": 0.4}
    for key in rates:
        memory.watch(key)
    blamed: list[str] = []
    for _ in range(4000):
        burst = chance.choice([0, 0, 1, 2, 12])
        answers = {key: sum(chance.random() < rate for _ in range(burst)) for key, rate in rates.items()}
        off = dict.fromkeys(blamed, 0)
        size[0] += 2_000_000 * ((answers | off)["item"] + (answers | off)["order"]) + chance.randrange(20_000)
        memory.slot({key: count for key, count in (answers | off).items() if count})
        if found := memory.culprit():
            memory.forget(found[0])
            blamed.append(found[0])
    assert {"item", "order"} == set(blamed)


def test_of_a_port_that_is_asked_all_too_evenly_all_that_others_do_not_explain_is_said() -> None:
    size, chance = [0], random.Random(1)
    memory = Memory(50 << 20, lambda: size[0])
    for key in ("even", "uneven"):
        memory.watch(key)
    for _ in range(300):
        size[0] += 1 << 18
        memory.slot({"even": 2, "uneven": chance.randrange(5)})
    found = memory.culprit()
    assert found is not None
    assert "even" == found[0]


def test_growth_that_goes_with_no_port_is_nobodys_fault() -> None:
    size, chance = [0], random.Random(1)
    memory = Memory(50 << 20, lambda: size[0])
    for key in ("one", "other"):
        memory.watch(key)
    for _ in range(400):
        memory.slot({"one": chance.randrange(10), "other": chance.randrange(10)})
        size[0] += chance.randrange(1 << 20)
    assert memory.culprit() is None


def test_after_growth_that_was_nobodys_fault_and_has_gone_a_leak_is_found_as_soon_as_any() -> None:
    size, chance = [1 << 20], random.Random(1)
    memory = Memory(50 << 20, lambda: size[0])
    memory.watch("one")
    memory.watch("other")
    for _ in range(400):
        memory.slot({"one": chance.randrange(10), "other": chance.randrange(10)})
        size[0] += chance.randrange(1 << 20)
    assert memory.culprit() is None
    size[0] = 0
    memory.slot({})
    while size[0] < 200 << 20:
        answers = {"one": chance.randrange(10), "other": chance.randrange(10)}
        size[0] += answers["one"] << 20
        memory.slot(answers)
        if found := memory.culprit():
            break
    assert found is not None
    assert ("one", True) == (found[0], size[0] < 60 << 20)


def test_a_real_leak_in_a_real_process_trips(flags: FlagStore, tmp_path: Path) -> None:
    breaker = Breaker(flags, tmp_path / "state", 30 << 20)
    breaker.start()
    wait_until(lambda: breaker.watches("a"), "the watch")
    kept = []
    chance = random.Random(1)
    for _ in range(200):
        for _ in range(chance.randrange(3)):
            kept.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))  # malloc may have some left
            kept[-1].write(b"x" * (1 << 20))
            breaker.note("a", PORT, False)
        if flags.current.held or is_off(flags, "a"):
            break
        time.sleep(0.02)
    wait_until(lambda: is_off(flags, "a"), "the weight to be 0")
    settle_but_one = [event for event in flags.audit() if event.action == "rollback"]
    assert "MiB" in settle_but_one[0].why
    assert settle_but_one[0].evidence["grown_bytes"] > 30 << 20
    breaker.close()
    settle()


def test_the_size_of_this_process_is_read_quickly() -> None:
    read: Callable[[], int] = resident_bytes()
    assert read() > 1 << 20
    assert min(timeit.repeat(read, number=1000, repeat=5)) / 1000 < 50e-6
