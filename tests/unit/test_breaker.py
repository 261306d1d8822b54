"""Obvious breakage: one worker sees it, acts at once, and takes the others along."""

import ctypes
import threading
from pathlib import Path

import pytest

from gateway.flags import FlagStore
from gateway.model import Backend, Flag
from gateway.rollout.breaker import Breaker
from tests.support.processes import wait_until

FLAGS = """version: 1
rollouts:
  careful: {steps: [50, 100], every: 1h}
routes:
  shop.item: {weight: 50, rollout: careful}
  shop.other: 50
"""
BUDGET_BYTES = 50_000_000


@pytest.fixture
def flags(tmp_path: Path) -> FlagStore:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    return FlagStore(tmp_path / "flags.yaml", None, tmp_path / "state")


@pytest.fixture
def breaker(flags: FlagStore) -> Breaker:
    return Breaker(flags, BUDGET_BYTES)


def item(flags: FlagStore) -> Flag:
    return flags.current["shop.item"]


def answers(breaker: Breaker, flags: FlagStore, backend: Backend, count: int, *, failed: bool = False) -> None:
    for _ in range(count):
        breaker.note(item(flags), backend, failed=failed)


def test_a_port_that_answers_stays(breaker: Breaker, flags: FlagStore) -> None:
    answers(breaker, flags, Backend.LEGACY, 100)
    answers(breaker, flags, Backend.FASTAPI, 100)
    answers(breaker, flags, Backend.FASTAPI, 3, failed=True)
    assert frozenset() == flags.current.held


def test_a_port_that_fails_is_held_at_once_and_then_taken_back_for_all(breaker: Breaker, flags: FlagStore) -> None:
    answers(breaker, flags, Backend.LEGACY, 20)
    answers(breaker, flags, Backend.FASTAPI, 4, failed=True)
    assert frozenset() == flags.current.held
    answers(breaker, flags, Backend.FASTAPI, 1, failed=True)

    assert frozenset({"shop.item"}) == flags.current.held
    wait_until(lambda: item(flags).weight_bp == 0, "the flag file to be edited")
    event = next(event for event in flags.audit() if event.action == "rollback")
    assert ("breaker", "shop.item", 50, 0) == (event.by, event.key, event.before, event.after)
    assert (5, 5) == (event.evidence["answers"], event.evidence["errors"])
    assert 5000 == flags.current["shop.other"].weight_bp


def test_where_legacy_fails_too_nobody_is_rolled_back(breaker: Breaker, flags: FlagStore) -> None:
    answers(breaker, flags, Backend.LEGACY, 20, failed=True)
    answers(breaker, flags, Backend.FASTAPI, 200, failed=True)
    assert frozenset() == flags.current.held


def test_a_weight_that_somebody_sets_again_is_a_new_start(breaker: Breaker, flags: FlagStore) -> None:
    answers(breaker, flags, Backend.FASTAPI, 4, failed=True)
    flags.set_weight("shop.item", 20, by="somebody")
    answers(breaker, flags, Backend.FASTAPI, 4, failed=True)
    assert frozenset() == flags.current.held


def test_a_port_that_eats_memory_is_taken_back(breaker: Breaker, flags: FlagStore) -> None:
    kept = []
    for _ in range(100):
        kept.append(ctypes.create_string_buffer(2_000_000))
        ctypes.memset(kept[-1], 1, len(kept[-1]))
        answers(breaker, flags, Backend.FASTAPI, 1)
        if flags.current.held:
            break
    assert 20 < len(kept) < 60
    wait_until(lambda: item(flags).weight_bp == 0, "the flag file to be edited")
    assert "memory" in next(event for event in flags.audit() if event.action == "rollback").why


def test_memory_that_legacy_takes_is_not_the_fault_of_the_port(breaker: Breaker, flags: FlagStore) -> None:
    kept = []
    for _ in range(50):
        answers(breaker, flags, Backend.FASTAPI, 1)
        kept.append(ctypes.create_string_buffer(2_000_000))
        ctypes.memset(kept[-1], 1, len(kept[-1]))
        answers(breaker, flags, Backend.LEGACY, 1)
    assert frozenset() == flags.current.held


def test_where_the_file_cannot_be_edited_this_worker_holds_the_route_all_the_same(
    breaker: Breaker, flags: FlagStore, tmp_path: Path
) -> None:
    (tmp_path / "flags.yaml").unlink()
    answers(breaker, flags, Backend.FASTAPI, 5, failed=True)
    assert frozenset({"shop.item"}) == flags.current.held
    wait_until(lambda: "gateway-breaker" not in {thread.name for thread in threading.enumerate()}, "the attempt")
    assert frozenset({"shop.item"}) == flags.current.held
