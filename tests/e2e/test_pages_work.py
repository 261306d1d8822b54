"""Downloads, discovery, playlists, settings and the system in a browser, wherever the routes are answered.

What the pages ask for is held against what `tests.support.ui_calls` reads in their sources.
"""

import json
import re
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Dialog, Locator, Page, Route, WebSocketRoute, expect

from legacy_flask.events import TYPES
from tests.cases import PASSWORDS
from tests.support.chromium import PHONE, Site, Watch, fits
from tests.support.media_server import MediaServer
from tests.support.processes import wait_until
from tests.support.ui_calls import unknown
from tests.support.worker import workers

PAGES = ("downloads", "discover", "playlists", "settings", "system")
DANGEROUS = (
    "Cancel",
    "Pause",
    "Retry",
    "Remove",
    "Sync",
    "Delete",
    "Restart",
    "Index now",
    "Organise",
    "Import",
    "Look now",
    "Follow",
)
SLOW = "slow.mp4?rate=30000&size=3000000"  # a hundred seconds, unless the site is in haste
numbers = count(1)
pytestmark = pytest.mark.timeout(300)  # the first one fills the library


@pytest.fixture(scope="module")
def demo_library(demo_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one of all tests, but nothing waits to be downloaded yet."""
    home = shutil.copytree(demo_library, tmp_path_factory.mktemp("quiet"), dirs_exist_ok=True)
    with closing(sqlite3.connect(home / "data/app.sqlite3")) as db, db:
        db.execute("DELETE FROM downloads WHERE status = 'pending'")
    return home


@pytest.fixture(scope="module", autouse=True)
def _workers(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Beside the port; Flask has threads of its own."""
    with ExitStack() as stack:
        if site.mode != "legacy":
            stack.enter_context(workers(tmp_path_factory.mktemp("workers"), site.env, "--workers=2"))
        yield


@pytest.fixture(autouse=True)
def _known_calls(watch: Watch) -> Iterator[None]:
    """A page asks for nothing that its sources do not say."""
    yield
    sent = {(request.method, urlsplit(request.url).path) for request in watch.requests}
    assert unknown(sorted(sent)) == []


class Visitor:
    """Somebody signed in, on a page."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page, self._url = page, site.url

    def sign_in(self, name: str) -> "Visitor":
        self.ask("POST", "/auth/login", {"username": name, "password": PASSWORDS[name]})
        return self

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """The API without the page."""
        answer = self.page.context.request.fetch(
            f"{self._url}{path}", method=method, data=body, headers={"Origin": self._url}
        )
        assert answer.status in (status, 201, 202), (answer.status, answer.text())
        return answer.json()

    def open(self, place: str) -> Page:
        self.page.goto(f"/{place}")
        return self.page

    def queue(self, address: str) -> int:
        """Begin to download a wanted video from there; the id of the download."""
        queued = {row["video_id"] for row in self.ask("GET", "/api/downloads/queue")["queue"]}
        wanted = self.ask("GET", "/api/videos/?status=WANTED")["videos"]
        video = next(row for row in wanted if row["id"] not in queued)
        self.ask("PUT", f"/api/videos/{video['id']}", {"url": address, "title": f"Film {next(numbers)}"})
        return int(self.ask("POST", f"/api/videos/{video['id']}/download")["download_id"])

    def row(self, download: int) -> Locator:
        return self.page.locator(f"[data-download='{download}']")


@pytest.fixture
def somebody(page: Page, site: Site) -> Visitor:
    return Visitor(page, site)


@pytest.fixture
def user(somebody: Visitor) -> Visitor:
    return somebody.sign_in("user")


@pytest.fixture
def admin(somebody: Visitor) -> Visitor:
    return somebody.sign_in("admin")


@pytest.fixture
def idle(somebody: Visitor) -> Iterator[None]:
    """What is queued stays there. Whoever uses the page signs in after this."""
    somebody.sign_in("admin").ask("PUT", "/api/settings/max_concurrent_downloads", {"value": "0"})
    yield
    somebody.sign_in("admin").ask("PUT", "/api/settings/max_concurrent_downloads", {"value": "3"})


@pytest.fixture
def silence(admin: Visitor) -> Iterator[None]:
    """YouTube takes questions and answers none, so that who looks for new videos does so until told to stop."""
    usual = admin.ask("GET", "/api/settings/")["settings"]["youtube_url"]["value"]
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        admin.ask("PUT", "/api/settings/youtube_url", {"value": address})
        yield
        admin.ask("PUT", "/api/settings/youtube_url", {"value": usual})


@pytest.fixture
def unhealthy(watch: Watch) -> None:
    """Flask alone has no worker, and the page shows what the 503 says."""
    watch.expected.add(503)


def yes(page: Page, label: str) -> None:
    """Answer the question that a button asks."""
    page.get_by_role("dialog").get_by_role("button", name=label).click()


# --- downloads ---------------------------------------------------------------------------------------------------


def test_a_download_moves_through_the_queue_into_the_history(user: Visitor, media: MediaServer) -> None:
    page = user.open("downloads")
    expect(page.get_by_role("status").filter(has_text="live")).to_be_visible()
    download = user.queue(f"{media.url}/{SLOW}")

    queued = page.locator("#queue").locator(user.row(download))
    expect(queued.locator(".badge")).to_have_text("downloading")
    expect(queued).to_contain_text(re.compile(r"[1-9]\d? % · .* of 3\.0 MB · .*/s"))
    media.in_haste = True
    ended = page.locator("#history").locator(user.row(download))
    expect(ended.locator(".badge")).to_have_text("completed")
    expect(ended).to_contain_text("3.0 MB")
    expect(page.locator("#queue").locator(user.row(download))).to_have_count(0)


def test_without_a_live_connection_the_queue_is_polled(user: Visitor, media: MediaServer, watch: Watch) -> None:
    user.page.route_web_socket("**/ws/jobs", lambda socket: socket.close())
    page = user.open("downloads")
    expect(page.get_by_role("status").filter(has_text="every 2 seconds")).to_be_visible()
    download = user.queue(f"{media.url}/{SLOW}")

    expect(page.locator("#queue").locator(user.row(download)).locator(".badge")).to_have_text("downloading")
    media.in_haste = True
    expect(page.locator("#history").locator(user.row(download)).locator(".badge")).to_have_text("completed")


def test_a_connection_that_is_lost_comes_back(user: Visitor) -> None:
    sockets: list[WebSocketRoute] = []

    def pass_on(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.connect_to_server()

    user.page.route_web_socket("**/ws/jobs", pass_on)
    page = user.open("downloads")
    expect(page.get_by_role("status").filter(has_text="live")).to_be_visible()
    sockets[0].close()

    wait_until(lambda: (page.wait_for_timeout(50), len(sockets))[1] > 1, "another connection", timeout_s=30)
    expect(page.get_by_role("status").filter(has_text="live")).to_be_visible()


def test_a_download_is_paused_resumed_and_cancelled(user: Visitor, media: MediaServer) -> None:
    page = user.open("downloads")
    download = user.queue(f"{media.url}/{SLOW}")
    row = page.locator("#queue").locator(user.row(download))

    expect(row.locator(".badge")).to_have_text("downloading")
    row.get_by_role("button", name="Pause").click()
    expect(row.locator(".badge")).to_have_text("paused")
    row.get_by_role("button", name="Resume").click()
    expect(row.locator(".badge")).to_have_text("downloading")
    row.get_by_role("button", name="Cancel").click()
    yes(page, "Stop it")

    expect(page.locator("#history").locator(user.row(download)).locator(".badge")).to_have_text("cancelled")


def test_the_keyboard_begins_and_cancels_a_download_whose_buttons_stay_while_it_moves(
    user: Visitor, media: MediaServer, watch: Watch
) -> None:
    download = user.queue(f"{media.url}/{SLOW}")
    video = next(row for row in user.ask("GET", "/api/downloads/queue")["queue"] if row["id"] == download)["video_id"]
    user.ask("POST", f"/api/downloads/{download}/cancel")
    page = user.open(f"video/{video}")
    panel = page.locator("#download")
    panel.get_by_role("button", name="Download").focus()
    page.keyboard.press("Enter")
    cancel = panel.get_by_role("button", name="Cancel")
    expect(panel.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(cancel).to_be_focused()
    pressed = cancel.element_handle()
    moved = panel.locator(".number").first.text_content()
    expect(panel.locator(".number").first).not_to_have_text(str(moved))
    assert pressed.evaluate("button => button.isConnected"), "what moves takes no button from under a finger"

    page.keyboard.press("Enter")
    expect(panel.get_by_role("button", name="Download")).to_be_visible()
    expect(panel).to_be_focused()


def test_what_was_just_queued_can_be_cancelled_although_nothing_is_told_of_it_yet(idle: None, user: Visitor) -> None:
    user.page.route_web_socket("**/ws/jobs", lambda socket: None)
    video = user.ask("GET", "/api/videos/?status=WANTED")["videos"][-1]["id"]
    panel = user.open(f"video/{video}").locator("#download")
    panel.get_by_role("button", name="Download").click()
    panel.get_by_role("button", name="Cancel").click()

    expect(user.page.get_by_text("Download cancelled")).to_be_visible()


def test_a_download_is_not_hidden_by_one_before_it_that_has_ended(user: Visitor) -> None:
    video = user.ask("GET", "/api/videos/?status=WANTED")["videos"][-1]["id"]
    about = {"type": "download", "target": f"video:{video}", "percent": 7, "message": ""}
    snapshot = [
        about | {"id": f"download:{n}", "status": status} for n, status in ((1002, "paused"), (1001, "cancelled"))
    ]

    def tell(socket: WebSocketRoute) -> None:
        socket.on_message(lambda _: socket.send(json.dumps({"snapshot": snapshot})))

    user.page.route_web_socket("**/ws/jobs", tell)
    page = user.open(f"video/{video}")
    expect(page.locator("#download").get_by_role("button", name="Resume")).to_be_visible()


def test_a_failure_is_told_and_can_be_retried(user: Visitor, media: MediaServer) -> None:
    page = user.open("downloads")
    missing = f"/missing/{next(numbers)}.mp4"
    download = user.queue(f"{media.url}{missing}")
    row = page.locator("#history").locator(user.row(download))

    expect(row.locator(".badge")).to_have_text("failed")
    expect(row.locator(".form-error")).to_be_visible()
    asked = media.count(missing)
    row.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Download queued again")).to_be_visible()
    wait_until(lambda: media.count(missing) > asked, "another attempt", timeout_s=30)
    expect(row.locator(".badge")).to_have_text("failed")


def test_what_waits_can_be_given_another_turn(admin: Visitor, media: MediaServer) -> None:
    admin.ask("PUT", "/api/settings/max_concurrent_downloads", {"value": "0"})
    page = admin.open("downloads")
    first, second = (admin.queue(f"{media.url}/direct.mp4") for _ in range(2))

    expect(page.locator("#queue").locator(admin.row(second))).to_contain_text("waits for its turn")
    admin.row(second).get_by_label("Priority").select_option("1")
    rows = page.locator("#queue [data-download]")
    expect(rows.first).to_have_attribute("data-download", str(second))
    admin.row(first).get_by_role("button", name="Cancel").click()
    yes(page, "Stop it")
    expect(page.locator("#queue").locator(admin.row(first))).to_have_count(0)

    admin.ask("PUT", "/api/settings/max_concurrent_downloads", {"value": "3"})
    admin.ask("POST", f"/api/downloads/{second}/cancel")
    expect(page.locator("#queue").locator(admin.row(second))).to_have_count(0)


def test_the_history_is_filtered(user: Visitor) -> None:
    page = user.open("downloads")
    page.get_by_label("History: status").select_option("failed")

    expect(page.locator("#history .badge.completed")).to_have_count(0)
    assert set(page.locator("#history .badge").all_text_contents()) == {"failed"}


def test_the_tools_tell_their_versions_and_cookies_are_uploaded(
    admin: Visitor, site: Site, tmp_path: Path, watch: Watch
) -> None:
    page = admin.open("downloads")
    expect(page.locator("#tools")).to_contain_text(re.compile(r"yt-dlp\s*20\d\d"))
    cookies = tmp_path / "cookies.txt"

    watch.expected.add(400)
    cookies.write_text("hello")
    page.get_by_label("cookies.txt").set_input_files(cookies)
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#tools").get_by_role("alert")).to_contain_text("Not a cookies file")

    cookies.write_text("# Netscape HTTP Cookie File\n.site.test\tTRUE\t/\tFALSE\t0\tname\tvalue\n")
    page.get_by_label("cookies.txt").set_input_files(cookies)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text("Cookies saved")).to_be_visible()
    assert Path(site.env["DATA_PATH"], "cookies.txt").read_text() == cookies.read_text()


def test_titles_are_text_whatever_they_say(user: Visitor, media: MediaServer) -> None:
    dialogs: list[Dialog] = []
    user.page.on("dialog", lambda dialog: dialogs.append(dialog))  # noqa: PLW0108  # Playwright needs a function
    download = user.queue(f"{media.url}/{SLOW}")
    title = '<img src=x onerror="alert(1)"> \u202e\u0627\u0633\u0645'
    video = next(row for row in user.ask("GET", "/api/downloads/queue")["queue"] if row["id"] == download)["video_id"]
    user.ask("PUT", f"/api/videos/{video}", {"title": title})

    page = user.open("downloads")

    expect(user.row(download)).to_contain_text(title)
    assert dialogs == []
    assert page.locator("main img").count() == 0
    user.ask("POST", f"/api/downloads/{download}/cancel")


# --- discovery ---------------------------------------------------------------------------------------------------


def find(page: Page, term: str) -> None:
    page.get_by_role("searchbox").fill(term)
    page.get_by_role("searchbox").press("Enter")


def test_a_video_is_found_and_imported_once(user: Visitor) -> None:
    page = user.open("discover")
    find(page, "Portishead")
    cards = page.locator("article")
    expect(cards.first).to_be_visible()
    assert cards.filter(has_text="in the library").count() > 0

    new = cards.filter(has=page.get_by_role("button", name="Import")).first
    title = new.get_by_role("heading").inner_text()
    new.get_by_role("button", name="Import").click()
    expect(page.get_by_text("Video imported")).to_be_visible()
    mine = cards.filter(has_text=title).filter(has_text="in the library").first
    mine.get_by_role("link", name="Open").click()
    page.wait_for_url("**/video/*")


def test_a_found_video_is_downloaded(idle: None, user: Visitor) -> None:
    page = user.open("discover")
    find(page, "Kate Bush")
    page.get_by_role("button", name="Download").first.click()

    expect(page.get_by_text("Imported, and queued for download")).to_be_visible()
    for row in user.ask("GET", "/api/downloads/queue")["queue"]:  # it leads out of here
        user.ask("POST", f"/api/downloads/{row['id']}/cancel")


def test_an_artist_is_looked_at_and_imported(user: Visitor) -> None:
    page = user.open("discover")
    page.get_by_role("tab", name="Artists").click()
    name = f"The {next(numbers)} Foos"
    find(page, name)
    card = page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True)).first
    card.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("dialog").get_by_role("listitem").first).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Import").click()

    expect(page.get_by_text("Artist imported")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(card).to_contain_text("in the library")


def test_artists_of_spotify_are_imported_alone_and_by_playlist(user: Visitor) -> None:
    page = user.open("discover#spotify")
    find(page, f"Bar {next(numbers)}")
    card = page.locator("article").filter(has=page.get_by_role("button", name="Import")).first
    name = card.get_by_role("heading").inner_text()
    card.get_by_role("button", name="Import").click()
    expect(page.locator("article").filter(has_text=name).first).to_contain_text("in the library")

    page.get_by_label("Address or id").fill("https://open.spotify.com/playlist/37i9dQZF1DXcBWIGoYBM5M")
    page.get_by_role("button", name="Import its artists").click()
    expect(page.get_by_text(re.compile(r"\d+ new, \d+ known"))).to_be_visible()


def test_the_tabs_obey_the_arrow_keys(user: Visitor) -> None:
    page = user.open("discover")
    page.get_by_role("tab", name="Videos").focus()
    page.keyboard.press("ArrowRight")

    expect(page.get_by_role("tab", name="Artists")).to_be_focused()
    expect(page.get_by_role("heading", name="Artists on IMVDb")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Videos on YouTube")).to_be_visible()


def test_a_missing_key_says_where_to_get_one(admin: Visitor, watch: Watch) -> None:
    watch.expected.add(400)
    admin.ask("PUT", "/api/settings/youtube_api_key", {"value": ""})
    try:
        page = admin.open("discover")
        find(page, "Portishead")
        expect(page.get_by_role("alert")).to_contain_text("No key of YouTube has been stored")
        expect(page.get_by_role("link", name="Where to get a key")).to_have_attribute("href", re.compile("^https://"))
        page.get_by_role("link", name="Store it in the settings").click()
        page.wait_for_url("**/settings#services")
        expect(page.get_by_label("YouTube key")).to_have_attribute("placeholder", "Nothing is stored")
    finally:
        admin.ask("PUT", "/api/settings/youtube_api_key", {"value": "demo-key"})


# --- playlists ---------------------------------------------------------------------------------------------------


def test_a_playlist_is_followed_synced_and_removed(user: Visitor, watch: Watch) -> None:
    watch.expected.add(400)
    page = user.open("playlists")
    page.get_by_label("Address or id").fill("https://example.org/no-playlist")
    page.get_by_role("button", name="Follow").click()
    expect(page.get_by_role("alert")).to_contain_text("Not a playlist on YouTube")

    page.get_by_label("Address or id").fill(f"PLbrowsertests{next(numbers)}")
    page.get_by_role("button", name="Follow").click()
    expect(page.get_by_text("Playlist added")).to_be_visible()
    row = page.get_by_role("listitem").last
    expect(row).to_contain_text("never synced")
    row.get_by_role("button", name="Sync").click()
    expect(page.get_by_text(re.compile(r"\d+ new, \d+ known"))).to_be_visible()
    expect(page.get_by_role("listitem").last).to_contain_text("synced just now")

    before = page.get_by_role("listitem").count()
    page.get_by_role("listitem").last.get_by_role("button", name="Remove").click()
    yes(page, "Remove")
    expect(page.get_by_role("listitem")).to_have_count(before - 1)


# --- settings ----------------------------------------------------------------------------------------------------


def sent(watch: Watch, method: str, path: str) -> list[Any]:
    """The bodies of these requests."""
    asked = [one for one in watch.requests if one.method == method and urlsplit(one.url).path == path]
    return [json.loads(one.post_data or "null") for one in asked]


def test_only_changed_settings_are_sent_and_secrets_never_come(admin: Visitor, watch: Watch) -> None:
    page = admin.open("settings")
    expect(page.get_by_label("YouTube key")).to_have_value("")
    assert "demo-key" not in page.content()
    expect(page.get_by_role("button", name="Save downloads")).to_be_disabled()

    page.get_by_label("Match score").fill("61")
    page.get_by_label("Longest video").fill("90")
    page.get_by_label("Write an .nfo file").check()
    page.get_by_role("button", name="Save downloads").click()
    expect(page.get_by_text("Settings updated")).to_be_visible()
    expect(page.get_by_label("Match score")).to_have_value("61")  # typed, and not saved yet
    page.get_by_label("Last.fm key").fill("another-key")
    page.get_by_role("button", name="Save services").click()
    expect(page.get_by_role("button", name="Save services")).to_be_disabled()

    assert sent(watch, "PUT", "/api/settings/bulk") == [
        {"download_max_minutes": "90", "organize_nfo": "true"},
        {"lastfm_api_key": "another-key"},
    ]
    page.reload()
    expect(page.get_by_label("Longest video")).to_have_value("90")
    expect(page.get_by_label("Write an .nfo file")).to_be_checked()
    assert "another-key" not in page.content()


def test_settings_that_are_stored_are_no_failure_because_nobody_tells_what_is_stored_now(admin: Visitor) -> None:
    page = admin.open("settings")
    page.get_by_label("Largest file").fill("9000")
    page.route("**/api/settings/", lambda route: route.abort())
    page.get_by_role("button", name="Save downloads").click()

    expect(page.get_by_text("Settings updated")).to_be_visible()
    page.unroute("**/api/settings/")
    page.reload()
    expect(page.get_by_label("Largest file")).to_have_value("9000")


def test_the_schedule_is_planned(admin: Visitor) -> None:
    page = admin.open("settings")
    page.get_by_label("Look for new videos of monitored artists").check()
    at = f"{datetime.now(UTC) + timedelta(hours=12):%H:%M}"  # not while these tests run
    page.get_by_label("Time", exact=True).fill(at)
    page.get_by_role("button", name="Save schedule").click()

    expect(page.locator("#looking").get_by_text(f"At {at} UTC, every day")).to_be_visible()
    expect(page.get_by_label("Time", exact=True)).to_have_value(at)


def test_webhooks_are_added_tested_turned_off_and_deleted(admin: Visitor, demo_library: Path, watch: Watch) -> None:
    with closing(sqlite3.connect(demo_library / "data/app.sqlite3")) as db:
        (hook,) = db.execute("SELECT url FROM webhooks").fetchone()
    address = hook.replace("/hooks/demo", f"/hooks/browser{next(numbers)}?a=b c".replace(" ", "%20"))
    watch.expected.add(400)
    page = admin.open("settings")
    form = page.locator("#webhooks")
    form.get_by_text("Add a webhook").click()
    form.get_by_label("Address").fill("http://10.0.0.1/")
    form.get_by_role("button", name="Add webhook").click()
    expect(form.get_by_role("alert")).to_contain_text("private network")

    form.get_by_label("Address").fill(address)
    form.get_by_label("Every event").uncheck()
    form.get_by_label("download.completed").check()
    form.get_by_role("button", name="Add webhook").click()
    expect(page.get_by_text("Webhook created")).to_be_visible()
    row = form.get_by_role("listitem").filter(has_text=address)
    expect(row).to_contain_text("download.completed")
    row.get_by_role("button", name="Test").click()
    expect(page.get_by_text(re.compile(r"status 20\d after \d+ ms"))).to_be_visible()
    row.get_by_role("button", name="Turn off").click()
    expect(row.locator(".badge").first).to_have_text("off")
    row.get_by_role("button", name="Delete").click()
    yes(page, "Delete")
    expect(row).to_have_count(0)


def test_every_event_can_be_chosen(admin: Visitor) -> None:
    page = admin.open("settings")
    page.get_by_text("Add a webhook").click()
    page.get_by_label("Every event").uncheck()

    assert page.locator("#webhooks fieldset label").all_text_contents() == list(TYPES)


def test_users_are_added_promoted_and_signed_out(admin: Visitor, watch: Watch) -> None:
    watch.expected |= {400, 409}
    page = admin.open("settings")
    name, users = f"guest{next(numbers)}", page.locator("#users")
    users.get_by_text("Add a user").click()
    users.get_by_label("Name").fill(name)
    users.get_by_label("Password").fill("short")
    users.get_by_role("button", name="Add user").click()
    expect(users.get_by_role("alert")).to_contain_text("The password is too weak")

    users.get_by_label("Password").fill("Correct-horse-1")
    users.get_by_role("button", name="Add user").click()
    expect(page.get_by_text("User created")).to_be_visible()
    page.get_by_label(f"Role of {name}").select_option("manager")
    expect(page.get_by_text("Role changed")).to_be_visible()
    users.get_by_role("button", name=f"Sign out everywhere {name}").click()
    yes(page, "Sign out everywhere")
    expect(page.get_by_text("Sessions revoked")).to_be_visible()
    page.get_by_label("Role of admin").select_option("user")
    expect(page.get_by_text("The last admin cannot be demoted")).to_be_visible()
    expect(page.get_by_label("Role of admin")).to_have_value("admin")


def test_the_own_password_is_changed(admin: Visitor, site: Site, watch: Watch) -> None:
    watch.expected.add(400)
    name = f"self{next(numbers)}"
    admin.ask("POST", "/api/users/", {"username": name, "password": "Correct-horse-1"})
    admin.ask("POST", "/auth/login", {"username": name, "password": "Correct-horse-1"})
    page = admin.open("settings")
    page.get_by_text("Change the password").click()
    page.get_by_label("Old password").fill("wrong")
    page.get_by_label("New password").fill("Battery-staple-2")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_role("alert")).to_contain_text("The old password is wrong")

    page.get_by_label("Old password").fill("Correct-horse-1")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("Password changed")).to_be_visible()
    page.get_by_role("button", name="Sign out everywhere").click()
    yes(page, "Sign out everywhere")
    page.wait_for_url("**/login")


# --- the system --------------------------------------------------------------------------------------------------


def test_a_job_is_started_and_its_end_is_seen(admin: Visitor, unhealthy: None) -> None:
    page = admin.open("system")
    jobs = page.locator("#jobs")
    jobs.get_by_role("button", name="Index the library").click()
    expect(jobs.get_by_role("listitem").first.locator(".badge")).to_have_text("completed")
    jobs.get_by_label("Jobs: status").select_option("failed")
    expect(jobs.get_by_text("No job is like that.")).to_be_visible()


def test_a_job_is_cancelled_and_started_again(admin: Visitor, silence: None, unhealthy: None) -> None:
    page = admin.open("system")
    jobs = page.locator("#jobs")
    jobs.get_by_role("button", name="Look for new videos").click()
    first = jobs.get_by_role("listitem").first
    first.get_by_role("button", name="Cancel").click()
    yes(page, "Stop it")
    expect(first.locator(".badge")).to_have_text("cancelled")

    first.get_by_role("button", name="Start again").click()
    expect(first.locator(".badge")).not_to_have_text("cancelled")
    first.get_by_role("button", name="Cancel").click()
    yes(page, "Stop it")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(first.locator(".badge")).to_have_text("cancelled")


def test_who_cancels_a_job_that_ended_meanwhile_is_told_so(
    admin: Visitor, silence: None, unhealthy: None, watch: Watch
) -> None:
    watch.expected.add(400)
    page = admin.open("system")
    page.get_by_role("button", name="Look for new videos").click()
    first = page.locator("#jobs").get_by_role("listitem").first
    first.get_by_role("button", name="Cancel").click()
    admin.ask("POST", f"/api/jobs/{first.get_attribute('data-job')}/cancel")
    yes(page, "Stop it")

    expect(page.get_by_text("The job cannot be cancelled: it is cancelled")).to_be_visible()
    expect(first.locator(".badge")).to_have_text("cancelled")


def test_a_button_is_not_drawn_anew_while_it_is_pressed(admin: Visitor, silence: None, unhealthy: None) -> None:
    page = admin.open("system")
    page.get_by_role("button", name="Look for new videos").click()
    badge = page.locator("#jobs").get_by_role("listitem").first.locator(".badge")
    expect(badge).to_have_text("running")
    settled(page)
    page.locator("#jobs").get_by_role("button", name="Cancel").hover()
    page.mouse.down()
    with page.expect_response("**/api/jobs/?**") as answer:
        admin.ask("POST", "/api/jobs/", {"type": "index"})
    answer.value.finished()
    drawn(page)
    page.mouse.up()

    yes(page, "Stop it")
    expect(page.locator("#jobs .badge.cancelled").first).to_be_visible()
    expect(page.locator("#jobs").get_by_role("button", name="Cancel")).to_have_count(0)


def test_waiting_files_are_shown_and_organised(admin: Visitor, site: Site, demo_library: Path, unhealthy: None) -> None:
    number = next(numbers)
    film = next((demo_library / "library").rglob("*.mp4"), None)
    waiting = Path(site.env["DOWNLOADS_PATH"], f"Film Makers - Reel {number}.mp4")
    waiting.parent.mkdir(exist_ok=True)
    waiting.write_bytes((film.read_bytes() if film else b"film") + str(number).encode())

    page = admin.open("system")
    page.get_by_role("button", name="Show waiting files").click()
    row = page.get_by_role("listitem").filter(has_text=waiting.name)
    row.get_by_role("button", name="Preview").click()
    expect(row).to_contain_text(f"becomes Film Makers/Film Makers - Reel {number}.mp4")
    row.get_by_role("checkbox").check()
    page.get_by_role("button", name="Organise the chosen").click()

    expect(page.get_by_text("1 of 1 files organized")).to_be_visible()
    assert Path(site.env["LIBRARY_PATH"], f"Film Makers/Film Makers - Reel {number}.mp4").exists()


def test_health_disk_and_log_are_shown(admin: Visitor, unhealthy: None) -> None:
    page = admin.open("system")

    expect(page.locator("#health")).to_contain_text("Database")
    expect(page.locator("#health dd").first).to_have_text("up")
    expect(page.locator("#disk")).to_contain_text("free of")
    expect(page.locator("#logs").get_by_role("heading")).to_have_text("Log")


# --- who may do what, and what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("place", PAGES)
def test_who_may_only_read_is_offered_nothing_else(somebody: Visitor, watch: Watch, place: str) -> None:
    watch.expected.add(503)
    page = somebody.sign_in("readonly").open(place)
    settled(page)

    for label in DANGEROUS:
        assert page.locator("main").get_by_role("button", name=label).count() == 0, label


@pytest.mark.parametrize("place", PAGES)
def test_a_server_that_cannot_be_reached_is_told_and_asked_again(admin: Visitor, watch: Watch, place: str) -> None:
    def off(route: Route) -> None:
        route.abort()

    watch.expected.add(503)
    admin.page.route(re.compile("/(api|admin)/"), off)
    page = admin.open(place)
    if place == "discover":
        find(page, "Portishead")
    error = page.locator("main .error").filter(has_text="The server cannot be reached")
    expect(error.first).to_be_visible()
    settled(page)
    page.unroute(re.compile("/(api|admin)/"), off)
    again = error.get_by_role("button", name="Try again")
    again.evaluate_all("found => found.forEach(one => one.click())")  # unless the page has tried again by itself
    expect(error).to_have_count(0)


def test_a_refusal_is_said_in_a_sentence(user: Visitor, watch: Watch) -> None:
    watch.expected.add(403)
    page = user.open("playlists")
    page.route("**/api/youtube/playlists/", forbid("POST"))
    page.get_by_label("Address or id").fill("PLbrowsertests")
    page.get_by_role("button", name="Follow").click()

    expect(page.get_by_role("alert")).to_have_text("Your account may not do this.")


def forbid(method: str) -> Callable[[Route], None]:
    """As if the role had been taken away since the page was opened."""
    answer = {"error": "Insufficient permissions", "code": "FORBIDDEN"}
    return lambda route: route.fulfill(status=403, json=answer) if route.request.method == method else route.fallback()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", PAGES)
def test_a_phone_never_scrolls_sideways(admin: Visitor, watch: Watch, place: str, scheme: str) -> None:
    watch.expected.add(503)
    admin.page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    admin.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page = admin.open(place)
    settled(page)
    for summary in page.locator("main summary").all():
        summary.click()

    assert fits(page)


def settled(page: Page) -> None:
    """Nothing is being loaded."""
    expect(page.locator("main section").first).not_to_be_empty()
    expect(page.locator("main [aria-busy=true]")).to_have_count(0)


def drawn(page: Page) -> None:
    """What the page has been told is shown by now."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
