"""Requests that nobody thought of, on both sides. `./dev bench fuzz` asks many more."""

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.support.fuzzing import Steps, describe, differences, sequences
from tests.support.playing import play_all
from tests.support.world import ALONE, FASTAPI, World

SEQUENCES = 120  # per seed and database, of 2.7 requests


@pytest.mark.parametrize("number", range(4))
def test_both_sides_answer_alike_whatever_is_asked(world: World, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=SEQUENCES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def ask(steps: Steps) -> None:
        found = differences(steps, play_all(world, steps, ALONE), play_all(world, steps, FASTAPI))
        assert not found, "\n".join([describe(steps), *found])

    ask()
