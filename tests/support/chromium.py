"""A headless Chromium in front of a real gateway on the demo library."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, sync_playwright

from tests.cases import PASSWORDS
from tests.support.redis_server import redis_server
from tests.support.serving import ROOT, Server, environment, gateway, serving

MODES = ("legacy", "fastapi", "split")  # every route; every ported one; each of them for half of the users
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
WAIT_MS = 30_000  # for anything on a page: this machine may be busy
LEGACY, FASTAPI = "legacy_flask:create_app", "fastapi_app:create_app"


@dataclass(frozen=True)
class Site:
    server: Server
    mode: str
    env: dict[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        return self.server.url


def seeded(home: Path, services: str) -> Path:
    """A folder with the demo library, which `site` copies."""
    command = [sys.executable, "-m", "legacy_flask.seed", "--services", services]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(variables(home)), stdout=subprocess.DEVNULL)
    return home


def variables(home: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": f"sqlite:///{home}/data/app.sqlite3",
        "DATA_PATH": f"{home}/data",
        "LIBRARY_PATH": f"{home}/library",
        "DOWNLOADS_PATH": f"{home}/downloads",
        "SECRET_KEY": "of the browser tests, and of nothing else",
        "BCRYPT_ROUNDS": "4",
        "UPSTREAM_TIMEOUT_S": "300",  # who is to be seen at work does not give up, and this machine may be busy
        "ALLOWED_NETWORKS": "127.0.0.1/32",
        "REDIS_URL": "",
        "FFMPEG": shutil.which("ffmpeg") or "ffmpeg",
    }


@contextmanager
def site(home: Path, mode: str, library: Path | None = None) -> Iterator[Site]:
    """A gateway in one of the MODES, with a Redis of its own, on a copy of `library` or on an empty one."""
    if library:
        shutil.copytree(library, home, dirs_exist_ok=True)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(home))
        env = variables(home) | {"REDIS_URL": redis.url}
        running = stack.enter_context(serving(home, legacy=LEGACY, fastapi=FASTAPI, env=env, cwd=ROOT, served_by=True))
        if mode == "split":
            running.put(*(f"{key}: 50" for key in ported(running)))
        else:
            running.put(override=mode)
        yield Site(running, mode, env)


def ported(server: Server) -> list[str]:
    """The endpoints that both sides have."""
    routes = json.loads(gateway("routes", "--json", env=server.env).stdout)
    return [route["key"] for route in routes if route["ported"] and route["side"] == "legacy"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Open for one module at most: Playwright leaves an event loop behind in its thread while it runs."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert path, "there is no Chromium: ./dev test installs chromium-headless-shell"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=4 * WAIT_MS
        )
        yield browser
        browser.close()


class Watch:
    """What a page must never do: complain, or ask another host. Statuses in `expected` are part of the story."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self._host = urlsplit(url).netloc
        self.expected: set[int] = set()
        self.problems: list[str] = []
        self.requests: list[Request] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self.problems.append(f"error: {error.error}"))
        context.on("request", self._request)
        context.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        self.requests.append(request)
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != self._host:
            self.problems.append(f"asked {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.problems.append(f"{response.status} for {response.request.method} {response.url}")


@contextmanager
def visit(browser: Browser, site: Site, **options: object) -> Iterator[tuple[Page, Watch]]:
    """A page of a fresh profile, on which nothing may go wrong; `options` are those of `Browser.new_context`."""
    settings = {"viewport": DESKTOP, "locale": "en-GB", "timezone_id": "Europe/Berlin", "reduced_motion": "reduce"}
    context = browser.new_context(**{"base_url": site.url, **settings, **options})  # type: ignore[arg-type]
    context.set_default_timeout(WAIT_MS)
    watch = Watch(context, site.url)
    try:
        yield context.new_page(), watch
        assert not watch.problems, watch.problems
    finally:
        context.close()


def sign_in(page: Page, name: str = "user") -> None:
    """By the form, as a person does; ends on the dashboard."""
    page.goto("/login")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORDS[name])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")


def fits(page: Page) -> bool:
    """Whether nothing must be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))
