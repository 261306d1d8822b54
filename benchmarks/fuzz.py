"""Do both sides answer alike, whatever is asked? At least 20 000 requests that nobody wrote, half of them per database.

No benchmark of speed: the last result is kept like one, so that everybody sees when it was and what it found.
"""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.databases import create_database, mariadb
from tests.support.fuzzing import Steps, Tally, describe, differences, sequences
from tests.support.playing import play_all
from tests.support.world import ALONE, FASTAPI, World

from .harness import Plan, save, table

REQUESTS = 20_000
BATCH = 200  # sequences of one seed
DATABASES = ("sqlite", "mariadb")
FIRST_SEED = 1000  # the tests have those below


def main(plan: Plan) -> None:
    wanted = (REQUESTS if plan.keep else 200) // 2
    with ProcessPoolExecutor() as processes:
        results = dict(zip(DATABASES, processes.map(ask_both, DATABASES, repeat(wanted)), strict=True))
    rows = [[name, *(str(result[part]) for part in ("requests", "sequences", "endpoints", "different", "seconds"))]
            for name, result in results.items()]  # fmt: skip
    table("Both sides asked the same", ["", "requests", "sequences", "endpoints", "different", "seconds"], rows)
    for result in results.values():
        print("\n\n".join(result["examples"]))
    save("fuzz", plan, results)


def ask_both(database: str, wanted: int) -> dict[str, Any]:
    with world(database) as here:
        return examine(here, wanted)


@contextmanager
def world(database: str) -> Iterator[World]:
    """Both applications on an empty database of that kind."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        if database == "sqlite":
            url = f"sqlite:///{home}/app.sqlite3"
        else:
            (home / "server").mkdir()
            url = create_database(stack.enter_context(mariadb(home / "server")), "fuzz")
        yield stack.enter_context(closing(World(url, home)))


def examine(here: World, wanted: int) -> dict[str, Any]:
    """Ask until enough was asked. What a seed finds is shrunk to its simplest example, and the next seed goes on."""
    tally, examples, began, number = Tally(), [], time.monotonic(), FIRST_SEED
    while tally.requests < wanted:
        try:
            ask(here, tally, number)
        except AssertionError as error:
            examples.append(f"seed {number}\n{error}")
        number += 1
    statuses = Counter[int]()
    for (_, status), times in tally.answers.items():
        statuses[status] += times
    return {
        "requests": tally.requests,
        "sequences": tally.sequences,
        "endpoints": len({key for key, _ in tally.answers}),
        "different": len(examples),
        "seconds": round(time.monotonic() - began),
        "statuses": {str(status): times for status, times in sorted(statuses.items())},
        "examples": examples,
    }


def ask(here: World, tally: Tally, number: int) -> None:
    """Raises AssertionError with the simplest sequence on which the sides differ."""

    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def play(steps: Steps) -> None:
        control, candidate = play_all(here, steps, ALONE), play_all(here, steps, FASTAPI)
        tally.count(steps, control[0])
        found = differences(steps, control, candidate)
        assert not found, "\n".join([describe(steps), *found])

    play()
