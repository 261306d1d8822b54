"""What tests of several folders share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.databases import mariadb

settings.register_profile("reproducible", derandomize=True)  # the same examples everywhere: a failure can be repeated
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private server, one per test process: `mysql://root@127.0.0.1:PORT`."""
    with mariadb(tmp_path_factory.mktemp("mariadb")) as url:
        yield url
