"""Writes of the reference application, replayed on its port: nothing of them remains, and a wrong one is found."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Table, Update, false, update

from tests.support.databases import create_database
from tests.support.shadowing import Write, bulk_status, differences, known_connections, prove, staged

WRITES = 300  # `./dev bench writes` has 10 000


@pytest.fixture(params=["sqlite", "mariadb"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Of two empty databases."""
    with known_connections():
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path}/without.sqlite3", f"sqlite:///{tmp_path}/shadowed.sqlite3"
        else:
            server = request.getfixturevalue("mariadb_server")
            yield create_database(server, "without"), create_database(server, "shadowed")


def test_replayed_writes_leave_the_database_as_it_is_without(urls: tuple[str, str], tmp_path: Path) -> None:
    proof = prove(*urls, tmp_path, WRITES)

    assert proof.examples == []
    assert proof.outcomes == {"matched": WRITES}
    assert proof.refused == []
    assert proof.equal


def test_a_missing_update_behind_the_same_answer_is_found_within_20_requests(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    found = []
    with staged(urls[0], tmp_path) as stage, patch("fastapi_app.videos.update", forgetful):
        for seed in range(5):
            chance = random.Random(seed)
            for number in range(1, 21):
                write = bulk_status(chance, number, [], stage.ids("videos"))
                control = stage.answer(write)
                result = stage.replay(write, control[1] or ())
                assert (result.inconclusive, result.observation.body) == ("", control[0].body)
                if differences(control, result):
                    found.append(number)
                    break

    assert len(found) == 5, found


def forgetful(table: Table) -> Update:
    """An update that meets no row."""
    return update(table).where(false())


@pytest.mark.parametrize(
    ("write", "refusal"),
    [
        (Write("DELETE", "/api/videos/{video}?delete_file=true"), "files: "),
        (
            Write("PUT", "/api/videos/{video}", {"title": "other", "rename_file": True}),
            "files: rename the file of video",
        ),
        (Write("DELETE", "/api/artists/1?force=true&delete_files=true"), "files: "),
    ],
    ids=["delete", "rename", "folder"],
)
def test_writes_that_change_files_too_are_refused(
    urls: tuple[str, str], tmp_path: Path, write: Write, refusal: str
) -> None:
    with staged(urls[0], tmp_path) as stage:
        with stage.engine.connect() as connection:
            query = "SELECT id FROM videos WHERE file_path IS NOT NULL ORDER BY id DESC LIMIT 1"
            video = connection.exec_driver_sql(query).scalar_one()
        there = Write(write.method, write.target.format(video=video), write.body)
        _, changes = stage.answer(there)
        before: Any = stage.checksums(), stage.files()
        result = stage.replay(there, changes or ())

        assert result.inconclusive.startswith(f"it wanted what must not be: {refusal}")
        assert (stage.checksums(), stage.files()) == before
