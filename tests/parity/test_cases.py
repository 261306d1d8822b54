"""Every case, on every side: the same answer, and the same rows and files left behind."""

from collections.abc import Iterator

import pytest

from gateway.compare import compare
from tests.cases import CASES, MASK, Case
from tests.support.playing import play
from tests.support.world import ALONE, FASTAPI, LEGACY, World


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_all_sides_answer_alike_and_leave_the_same_behind(world: World, case: Case) -> None:
    expected, left = play(world, case, [ALONE] * (len(case.setup) + 1))
    assert expected.status == case.expect_status, expected.body.decode(errors="replace")

    for turns in ways(case):
        if world.on_mariadb and turns[-1] == LEGACY:
            continue  # what the gateway does to Flask's answer has nothing to do with the database
        answer, traces = play(world, case, turns)
        verdict = compare(expected, answer, (*MASK, *case.mask))
        assert verdict.differences == (), f"answered by {turns}"
        assert traces == left, f"left behind by {turns}"


def ways(case: Case) -> Iterator[list[str]]:
    """Who answers the requests of a case: always the port; both in turn, so that each meets the other's work."""
    length = len(case.setup) + 1
    yield [FASTAPI] * length
    yield alternating(length, LEGACY, FASTAPI)
    if case.setup:
        yield alternating(length, FASTAPI, LEGACY)


def alternating(length: int, last: str, other: str) -> list[str]:
    return [(last, other)[turn % 2] for turn in range(length)][::-1]
