"""An older database becomes as a new one when the application starts, and loses nothing."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from legacy_flask.db import StartupError, create_tables, open_engine
from tests.support.databases import being_made, create_database

# As the first version made it.
ARTISTS = """
CREATE TABLE artists (
    id INTEGER NOT NULL {auto}, name VARCHAR(255) NOT NULL, name_key VARCHAR(255) NOT NULL,
    sort_name VARCHAR(300) NOT NULL, imvdb_id VARCHAR(50), bio TEXT, genres JSON NOT NULL,
    monitored BOOLEAN DEFAULT 1 NOT NULL, auto_download BOOLEAN DEFAULT 0 NOT NULL, quality VARCHAR(20),
    folder_path VARCHAR(500), thumbnail_url VARCHAR(1000), thumbnail_path VARCHAR(500),
    created_at {time} NOT NULL, updated_at {time} NOT NULL,
    CONSTRAINT pk_artists PRIMARY KEY (id), CONSTRAINT uq_artists_name_key UNIQUE (name_key),
    CONSTRAINT uq_artists_imvdb_id UNIQUE (imvdb_id)
) {engine}
"""
SQLITE = {"auto": "", "time": "DATETIME", "engine": ""}
MARIADB = {
    "auto": "AUTO_INCREMENT",
    "time": "DATETIME(6)",
    "engine": "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE utf8mb4_bin",
}
ADD = text(
    "INSERT INTO artists (name, name_key, sort_name, genres, created_at, updated_at)"
    " VALUES (:name, :name, :name, '[]', '2026-01-01', '2026-01-01')"
)
ON_BOTH = pytest.mark.parametrize("made", ["sqlite", "mariadb"], indirect=True)

Make = Callable[[str], Engine]


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens an empty database by its name."""
    engines: list[Engine] = []

    def make(name: str) -> Engine:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path}/{name}.sqlite3"
        else:
            url = create_database(request.getfixturevalue("mariadb_server"), name)
        engines.append(open_engine(url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def make_old(engine: Engine) -> None:
    dialect = SQLITE if engine.dialect.name == "sqlite" else MARIADB
    with engine.execution_options(write=True).begin() as connection:
        connection.exec_driver_sql(ARTISTS.format(**dialect))
        connection.exec_driver_sql("CREATE INDEX ix_artists_sort_name ON artists (sort_name)")
        connection.execute(ADD, {"name": "old"})


def shape(engine: Engine) -> dict[str, Any]:
    """Columns and indexes of each table, in no order: what is added comes last."""
    found = inspect(engine)
    return {
        table: (
            {(c["name"], str(c["type"]), c["nullable"], c.get("default")) for c in found.get_columns(table)},
            {(i["name"], *i["column_names"]) for i in found.get_indexes(table) + found.get_unique_constraints(table)},
        )
        for table in found.get_table_names()
    }


@ON_BOTH
def test_an_old_database_becomes_as_a_new_one_and_keeps_its_rows(made: Make) -> None:
    old, new = made("old"), made("new")
    make_old(old)
    create_tables(old)
    create_tables(new)
    assert shape(new) == shape(old)
    with old.connect() as connection:
        assert [("old", None)] == list(connection.execute(text("SELECT name, spotify_id FROM artists")))


@ON_BOTH
def test_what_was_added_is_unique(made: Make) -> None:
    old = made("old")
    make_old(old)
    create_tables(old)
    with old.execution_options(write=True).begin() as connection:
        connection.execute(text("UPDATE artists SET spotify_id = 'same'"))
        connection.execute(ADD, {"name": "second"})
        with pytest.raises(IntegrityError):
            connection.execute(text("UPDATE artists SET spotify_id = 'same'"))


@ON_BOTH
def test_a_database_that_is_up_to_date_is_left_alone(made: Make) -> None:
    database = made("new")
    create_tables(database)
    before = shape(database)
    create_tables(database)
    assert before == shape(database)


@ON_BOTH
def test_workers_that_start_together_add_it_once(made: Make) -> None:
    old = made("old")
    make_old(old)
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(create_tables, [old] * 4))
    assert "spotify_id" in {column["name"] for column in inspect(old).get_columns("artists")}


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/new.sqlite3")
    with being_made(tmp_path / "new.sqlite3"):
        create_tables(engine)
    engine.dispose()


@ON_BOTH
def test_what_no_old_row_could_have_is_not_made_up(made: Make) -> None:
    old = made("old")
    with old.execution_options(write=True).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE settings (id INTEGER NOT NULL PRIMARY KEY)")
    with pytest.raises(StartupError, match=r"^The database is too old: settings\.\w+ is missing$"):
        create_tables(old)
