"""Both applications on SQLite and on MariaDB."""

from collections.abc import Iterator

import pytest

from tests.support.databases import create_database
from tests.support.world import World


@pytest.fixture(scope="session", params=["sqlite", "mariadb"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        url = f"sqlite:///{home}/app.sqlite3"
    else:
        url = create_database(request.getfixturevalue("mariadb_server"), "parity")
    world = World(url, home)
    yield world
    world.close()
