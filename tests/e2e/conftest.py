"""What the tests in a browser share."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.chromium import MODES, WAIT_MS, Site, Watch, chromium, seeded, visit
from tests.support.chromium import site as serve_site
from tests.support.upstreams import Upstream

expect.set_options(timeout=WAIT_MS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Browser tests of one module and mode share their site. Each runs in one of the modes unless all are wanted."""
    left = []
    for item in list(items):
        mode = getattr(item, "callspec", None) and item.callspec.params.get("site")  # type: ignore[attr-defined]
        if mode is None:
            continue
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {mode}"))
        name = item.nodeid.replace(mode, "")
        if not config.getoption("--all-modes") and MODES[zlib.crc32(name.encode()) % len(MODES)] != mode:
            items.remove(item)
            left.append(item)
    config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def demo_library(_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeded(tmp_path_factory.mktemp("demo"), _upstream.url)


@pytest.fixture(scope="module", params=MODES)
def site(
    request: pytest.FixtureRequest, demo_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The demo library behind a gateway, once for each way to split the routes."""
    with serve_site(tmp_path_factory.mktemp(request.param), request.param, demo_library) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[tuple[Page, Watch]]:
    """A page of a fresh profile and what it asked for; the test fails when the page complains or asks elsewhere."""
    with visit(browser, site) as visiting:
        yield visiting


@pytest.fixture
def page(visitor: tuple[Page, Watch]) -> Page:
    return visitor[0]


@pytest.fixture
def watch(visitor: tuple[Page, Watch]) -> Watch:
    return visitor[1]
