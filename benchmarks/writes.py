"""Do shadowed writes leave anything behind, and what do they cost? 10 000 of the reference application, per database.

The same writes run twice, on two empty databases, with the same clock and the same chance: once answered by Flask
alone, once replayed on the port as well. Afterwards the databases are compared by checksum, the folders file by file.
"""

import random
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from sqlalchemy import Table, Update, false, update

from tests.support.databases import create_database, mariadb
from tests.support.shadowing import Proof, bulk_status, differences, prove, staged

from .harness import Plan, save, table

WRITES = 10_000
BUGS = 100  # tries to find the missing update


def main(plan: Plan) -> None:
    count = WRITES if plan.keep else 100
    results: dict[str, Any] = {}
    with TemporaryDirectory() as directory:
        home = Path(directory)
        files = [f"sqlite:///{home}/{name}.sqlite3" for name in "abc"]
        results["sqlite"] = examine(files, home / "sqlite", count)
        with mariadb(home / "server") as server:
            results["mariadb"] = examine([create_database(server, name) for name in "abc"], home / "mariadb", count)
    header = ["", "writes", "matched", "mismatched", "inconclusive", "refused", "equal", "found after"]
    table("Shadowed writes", header, [row(name, result) for name, result in results.items()])
    times = [[name, *map(spread, result["ms"].values())] for name, result in results.items()]
    table("ms, median and p99", ["", "answer", "answer, rows recorded", "replay"], times)
    save("writes", plan, results)


def examine(databases: list[str], home: Path, count: int) -> dict[str, Any]:
    """Of three empty databases."""
    without, shadowed, faulty = databases
    proof = prove(without, shadowed, home, count)
    return {
        "writes": count,
        **{name: proof.outcomes[name] for name in ("matched", "mismatched", "inconclusive", "not recorded")},
        "refused": len(proof.refused),
        "equal": proof.equal,
        "examples": proof.examples[:10],
        "found after": found_after(faulty, home / "bug"),
        "ms": milliseconds(proof),
    }


def found_after(url: str, home: Path) -> list[int]:
    """How many requests it takes to find a bulk update that is answered and noted, but not done."""
    tries = []
    with staged(url, home) as stage, patch("fastapi_app.videos.update", _forgetful):
        videos = stage.ids("videos")
        for seed in range(BUGS):
            chance, number, found = random.Random(seed), 0, False
            while not found and number < 1000:
                number += 1
                write = bulk_status(chance, number, [], videos)
                control = stage.answer(write)
                result = stage.replay(write, control[1] or ())
                found = not result.inconclusive and bool(differences(control, result))
            tries.append(number)
    return tries


def _forgetful(of: Table) -> Update:
    return update(of).where(false())


def milliseconds(proof: Proof) -> dict[str, tuple[float, float]]:
    measured = {"answer": proof.alone_ms, "recorded": proof.recorded_ms, "replay": proof.replay_ms}
    return {name: (statistics.median(ms), sorted(ms)[int(0.99 * len(ms))]) for name, ms in measured.items()}


def row(name: str, result: dict[str, Any]) -> list[str]:
    counts = [str(result[column]) for column in ("writes", "matched", "mismatched", "inconclusive", "refused")]
    return [name, *counts, "yes" if result["equal"] else "NO", f"at most {max(result['found after'])}"]


def spread(measured: tuple[float, float]) -> str:
    return f"{measured[0]:.1f}, {measured[1]:.1f}"
