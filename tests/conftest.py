"""What tests of several folders share."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from legacy_flask.downloader import stop_all
from legacy_flask.scheduler import schedulers
from tests.support.databases import mariadb
from tests.support.media_server import MediaServer, media_server
from tests.support.upstreams import Upstream
from tests.support.upstreams import upstream as serve_upstream

# The same examples everywhere: a failure can be repeated. And no time for each: the machine may be busy with others.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-modes", action="store_true", help="every browser test with every split of the routes")


_BEFORE = pytest.StashKey[dict[str, str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEFORE] = _environment()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Whoever leaves other variables behind has failed itself, not one of those that come after it."""
    yield
    assert item.stash[_BEFORE] == _environment()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def _threads_of_flask_end_with_their_test() -> Iterator[None]:
    """They download, and look what is planned, as long as the process lives."""
    yield
    stop_all()
    for scheduler in list(schedulers):
        scheduler.stop()


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private server, one per test process: `mysql://root@127.0.0.1:PORT`."""
    with mariadb(tmp_path_factory.mktemp("mariadb")) as url:
        yield url


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    with serve_upstream() as running:
        yield running


@pytest.fixture
def upstream(_upstream: Upstream) -> Iterator[Upstream]:
    """The services of the internet, well and without calls; one per test process."""
    _upstream.reset()
    yield _upstream
    _upstream.reset()


@pytest.fixture(scope="session")
def _media() -> Iterator[MediaServer]:
    with media_server() as running:
        yield running


@pytest.fixture
def media(_media: MediaServer) -> Iterator[MediaServer]:
    """A site with videos that nobody has asked for anything yet; one per test process."""
    _media.reset()
    yield _media
    _media.reset()
