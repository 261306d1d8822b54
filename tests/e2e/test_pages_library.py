"""The pages of the library as people use them: the same with every route on either side, and with half of each."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Response, Route, expect

from tests.cases import PASSWORDS
from tests.support.chromium import DESKTOP, MODES, PHONE, Site, Watch, fits, sign_in, visit
from tests.support.chromium import site as serve_site
from tests.support.processes import wait_until

PAGES = ("/", "/artists", "/artist/1", "/videos", "/video/1")
UNWELL = 503  # of /api/health/status: there is no worker here
pytestmark = pytest.mark.timeout(300)  # the first one fills the library


@pytest.fixture
def user(page: Page, watch: Watch) -> Page:
    watch.expected.add(UNWELL)
    sign_in(page, "user")
    return page


@pytest.fixture
def manager(page: Page, watch: Watch) -> Page:
    watch.expected.add(UNWELL)
    sign_in(page, "manager")
    return page


def test_an_address_that_does_not_exist_leads_back(user: Page, watch: Watch) -> None:
    watch.expected.add(404)
    user.goto("/artsits")
    expect(user.get_by_role("heading")).to_have_text("There is no such page")
    user.get_by_role("link", name="To the dashboard").click()
    expect(user).to_have_url(re.compile(r"/$"))


# Signing in and out


def test_who_signs_in_comes_to_the_page_that_was_asked_for_and_signing_out_closes_it(page: Page, watch: Watch) -> None:
    watch.expected |= {401, UNWELL}
    page.goto("/artists?sort=name")
    expect(page).to_have_url(re.compile(r"/login\?next=/artists$"))
    page.get_by_label("User name").fill("user")
    page.get_by_label("Password").fill("Wrong-pass-1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Invalid username or password")
    expect(page.get_by_label("User name")).to_have_value("user")

    page.get_by_label("Password").fill(PASSWORDS["user"])
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"\d/artists(\?|$)"))  # it soon says how it is sorted
    page.goto("/login")
    expect(page).to_have_url(re.compile(r"/$"))
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(re.compile(r"/login(\?next=(/|%2F))?$"))  # what the page asked while it left may lead there, too
    page.goto("/videos")
    expect(page).to_have_url(re.compile(r"/login\?next=/videos$"))


def test_the_sign_in_form_works_without_javascript(browser: Browser, site: Site) -> None:
    with visit(browser, site, java_script_enabled=False) as (page, _):
        page.goto("/login?next=/videos")
        page.get_by_label("User name").fill("user")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("Invalid username or password")
        page.get_by_label("User name").fill("user")
        page.get_by_label("Password").fill(PASSWORDS["user"])
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile(r"/videos$"))


def test_the_keyboard_alone_signs_in_and_reaches_the_content(page: Page, watch: Watch) -> None:
    watch.expected.add(UNWELL)
    page.goto("/login?next=/artists")
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type("user")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORDS["user"])
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"\d/artists(\?|$)"))  # it soon says how it is sorted

    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    assert skip.evaluate("link => link.getBoundingClientRect().top") >= 0, "seen when it has the focus"
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()

    page.get_by_role("button", name="Add artist").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Name")).to_be_focused()
    for _ in range(8):  # more often than it has controls
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Add artist")).to_be_focused()


@pytest.mark.parametrize("mode", MODES[:2])
def test_the_first_visitor_makes_the_administrator_and_the_second_does_not(
    browser: Browser, mode: str, tmp_path: Path
) -> None:
    with serve_site(tmp_path, mode) as empty, visit(browser, empty) as (page, watch):
        watch.expected |= {UNWELL, 400}
        page.goto("/")
        expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
        page.get_by_label("User name").fill("owner")
        page.get_by_label("Password", exact=True).fill("abcdefgh")
        page.get_by_label("Password again").fill("abcdefgh")
        page.get_by_role("button", name="Create the administrator").click()
        expect(page.get_by_role("alert")).to_contain_text("The password is too weak")
        page.get_by_label("Password", exact=True).fill("Owner-pass-1")
        page.get_by_role("button", name="Create the administrator").click()
        expect(page.get_by_role("alert")).to_have_text("The two passwords differ")
        page.get_by_label("Password again").fill("Owner-pass-1")
        page.get_by_role("button", name="Create the administrator").click()
        page.wait_for_url(f"{empty.url}/")
        expect(page.get_by_text("No videos yet")).to_be_visible()
        assert page.request.get("/api/users/me").json()["role"] == "admin"

        page.goto("about:blank")  # which asks for nothing
        page.context.clear_cookies()
        page.goto("/login")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


# The dashboard


def test_the_dashboard_counts_what_the_library_holds(user: Page) -> None:
    stats = user.request.get("/api/library/stats").json()
    counts = user.get_by_role("region", name="Counts")
    expect(counts.get_by_role("link", name="Artists")).to_contain_text(str(stats["artists"]["total"]))
    expect(counts.get_by_role("link", name="Videos")).to_contain_text(str(stats["videos"]["total"]))
    expect(user.get_by_role("region", name="Health")).to_contain_text("Database")
    expect(user.locator("#newest .tile")).to_have_count(8)


# Artists


def test_an_artist_is_added_found_edited_and_deleted(manager: Page, watch: Watch) -> None:
    watch.expected.add(409)
    name = '<b>"Łąki" & 100%</b>'
    manager.goto("/artists")
    manager.get_by_role("button", name="Add artist").click()
    dialog = manager.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Björk")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("alert")).to_have_text("An artist with this name already exists")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_role("button", name="Add").click()
    expect(manager.get_by_role("heading", level=1)).to_have_text(name)
    expect(manager.get_by_text("No videos of this artist yet.")).to_be_visible()

    manager.goto("/artists")
    manager.get_by_label("Search").fill("łąki")
    expect(manager.locator("#artists .tile")).to_have_count(1)
    expect(manager).to_have_url(re.compile(r"search="))
    manager.reload()
    expect(manager.get_by_label("Search")).to_have_value("łąki")
    monitored = manager.get_by_role("switch", name=f"Monitor {name}")
    expect(monitored).to_be_checked()
    with manager.expect_response(lambda answer: answer.request.method == "PUT" and answer.ok):
        monitored.click()
    manager.get_by_label("Show").select_option("true")
    expect(manager.get_by_text("No artist matches.")).to_be_visible()
    manager.get_by_label("Show").select_option("false")
    manager.locator("#artists .tile a").click()

    manager.get_by_role("button", name="Edit").click()
    dialog.get_by_label("Genres").fill("funk, R&B")
    dialog.get_by_label("Biography").fill("Since 1999.")
    dialog.get_by_role("button", name="Save").click()
    expect(manager.get_by_text("Since 1999.")).to_be_visible()
    expect(manager.get_by_role("link", name="R&B")).to_be_visible()

    manager.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    manager.wait_for_url(re.compile(r"\d/artists(\?|$)"))  # it soon says how it is sorted
    manager.get_by_label("Search").fill("łąki")
    expect(manager.get_by_text("No artist matches.")).to_be_visible()


def test_many_artists_are_changed_at_once(user: Page) -> None:
    user.goto("/artists?sort=-created_at")
    boxes = user.get_by_role("checkbox", name="Select ")
    for number in range(3):
        boxes.nth(number).check()
    expect(user.get_by_text("3 selected")).to_be_visible()
    user.get_by_role("button", name="Monitor", exact=True).click()
    expect(user.get_by_text("3 artists monitored")).to_be_visible()
    expect(user.locator("#bulk")).to_be_hidden()
    for number in range(3):
        expect(user.get_by_role("switch").nth(number)).to_be_checked()


def test_new_videos_of_an_artist_are_found_and_a_picture_is_uploaded(user: Page, tmp_path: Path) -> None:
    user.goto("/artist/2")
    before = user.locator("#videos .tile")
    expect(before).to_have_count(6)
    user.get_by_role("button", name="Find videos").click()
    expect(user.get_by_text(re.compile(r"\d+ new videos found"))).to_be_visible()
    expect(before).not_to_have_count(6)

    picture = tmp_path / "picture.png"
    user.screenshot(path=picture)
    user.get_by_role("button", name="Upload picture").click()
    user.get_by_label("Picture", exact=True).set_input_files(picture)
    with user.expect_response(re.compile("/thumbnail/large")):
        user.get_by_role("button", name="Upload", exact=True).click()
        expect(user.get_by_text("Thumbnail saved")).to_be_visible()


# Videos


def test_videos_are_filtered_and_many_get_another_status(user: Page) -> None:
    user.goto("/videos")
    user.get_by_label("Status", exact=True).select_option("FAILED")
    expect(user).to_have_url(re.compile("status=FAILED"))
    tiles = user.locator("#videos .tile")
    expect(user.locator("#videos .badge:not(.failed)")).to_have_count(0)
    title = tiles.first.locator(".tile-title").inner_text()
    tiles.first.get_by_role("checkbox").check()
    user.get_by_label("Set status").select_option("IGNORED")
    expect(user.get_by_text("Status of 1 videos updated")).to_be_visible()
    user.get_by_label("Status", exact=True).select_option("IGNORED")
    expect(user.get_by_role("link", name=title).first).to_be_visible()

    user.get_by_label("Search").fill("no such title")
    expect(user.get_by_text("No video matches.")).to_be_visible()
    user.get_by_role("link", name="Show all").click()
    user.get_by_role("button", name="Next").click()
    expect(user.get_by_text(re.compile(r"Page 2 of \d"))).to_be_visible()
    user.reload()
    expect(user.get_by_text(re.compile(r"Page 2 of \d"))).to_be_visible()


def test_a_late_answer_is_not_shown_in_place_of_a_newer_one(user: Page) -> None:
    late: list[Route] = []
    user.route("**/api/videos/search?**", lambda route: route.fallback() if late else late.append(route))
    user.goto("/videos")
    user.get_by_label("Status", exact=True).select_option("FAILED")
    expect(user.locator("#videos .badge.failed").first).to_be_visible()
    total = user.locator("#total").inner_text()
    with user.expect_response(lambda answer: answer.request == late[0].request) as answer:
        late[0].continue_()
    answer.value.finished()
    user.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    expect(user.locator("#videos .badge:not(.failed)")).to_have_count(0)
    expect(user.locator("#total")).to_have_text(total)


def test_the_details_of_a_video_are_edited(user: Page) -> None:
    user.goto("/video/3")
    user.get_by_role("button", name="Edit").click()
    dialog = user.get_by_role("dialog")
    dialog.get_by_label("Title").fill('100% <i>"Live"</i> 🎸')
    dialog.get_by_label("Year").fill("")
    dialog.get_by_label("Directors").fill("Michel Gondry, Spike Jonze")
    dialog.get_by_role("button", name="Save").click()
    expect(user.get_by_role("heading", level=1)).to_have_text('100% <i>"Live"</i> 🎸')
    expect(user.get_by_text("Michel Gondry, Spike Jonze")).to_be_visible()
    stored = user.request.get("/api/videos/3").json()
    assert (stored["year"], stored["directors"]) == (None, ["Michel Gondry", "Spike Jonze"])


def test_a_video_leaves_the_library_and_its_file_only_when_that_is_wanted(manager: Page, site: Site) -> None:
    found = manager.request.get("/api/videos/search?status=DOWNLOADED&has_file=true&sort=title").json()["videos"]
    library = Path(site.env["LIBRARY_PATH"])
    for video, with_file in ((found[-1], False), (found[-2], True)):
        manager.goto(f"/video/{video['id']}")
        manager.get_by_role("button", name="Delete").click()
        dialog = manager.get_by_role("dialog")
        if with_file:
            dialog.get_by_label("Delete the file, too").check()
        dialog.get_by_role("button", name="Delete").click()
        manager.wait_for_url(re.compile(r"\d/videos(\?|$)"))
        assert (library / video["file_path"]).exists() is not with_file


def test_the_player_plays_and_seeks_by_ranges(user: Page) -> None:
    video = user.request.get("/api/videos/search?status=DOWNLOADED&has_file=true&sort=title&limit=1").json()["videos"][
        0
    ]
    parts: list[Response] = []
    user.on("response", lambda answer: parts.append(answer) if answer.url.endswith("/stream") else None)
    user.goto(f"/video/{video['id']}")
    player = user.locator("video")
    player.evaluate("video => { video.muted = true; return video.play(); }")
    wait_until(lambda: player.evaluate("video => video.currentTime > 0.2"), "the video to play", timeout_s=60)
    player.evaluate("video => { video.currentTime = 8; }")
    wait_until(
        lambda: player.evaluate("video => video.currentTime > 8 && !video.seeking"),
        "the video to go on there",
        timeout_s=60,
    )
    assert {answer.status for answer in parts} == {206}
    assert all(ranged(answer.request) for answer in parts)


def ranged(request: Request) -> bool:
    return request.all_headers().get("range", "").startswith("bytes=")


# How it looks


@pytest.mark.parametrize("path", PAGES)
def test_on_a_phone_nothing_must_be_scrolled_sideways(browser: Browser, site: Site, path: str) -> None:
    with visit(browser, site, viewport=PHONE, is_mobile=True, has_touch=True) as (page, watch):
        watch.expected.add(UNWELL)
        sign_in(page, "manager")
        page.goto(path)
        expect(page.locator("main [aria-busy=false]").first).to_be_visible()
        expect(page.locator("main .skeleton")).to_have_count(0)
        assert fits(page)
        expect(page.get_by_role("link", name="Playlists")).to_be_hidden()
        page.get_by_role("button", name="Menu").click()
        expect(page.get_by_role("link", name="Playlists")).to_be_visible()
        assert fits(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("link", name="Playlists")).to_be_hidden()
        expect(page.get_by_role("button", name="Menu")).to_be_focused()


def test_the_theme_follows_the_system_until_one_is_chosen_and_then_stays(browser: Browser, site: Site) -> None:
    dark, light = "rgb(15, 17, 21)", "rgb(246, 247, 249)"

    def expect_background(page: Page, colour: str) -> None:
        expect(page.locator("body")).to_have_css("background-color", colour)

    with visit(browser, site, color_scheme="dark", viewport=DESKTOP) as (page, watch):
        watch.expected.add(UNWELL)
        page.goto("/login")
        expect_background(page, dark)
        page.emulate_media(color_scheme="light")
        expect_background(page, light)
        page.get_by_role("button", name="Dark or light").click()
        expect_background(page, dark)
        sign_in(page, "user")
        expect_background(page, dark)


def test_who_may_only_read_is_offered_nothing_else(page: Page, watch: Watch) -> None:
    watch.expected.add(UNWELL)
    sign_in(page, "readonly")
    for path in PAGES[1:]:
        page.goto(path)
        expect(page.locator("main [aria-busy=false]").first).to_be_visible()
        expect(page.locator("main .skeleton")).to_have_count(0)
        for name in ("Add artist", "Edit", "Delete", "Find videos", "Download", "Refresh metadata"):
            expect(page.locator("main").get_by_role("button", name=name, exact=True)).to_have_count(0)


def test_a_page_of_nothing_and_an_unreachable_server_are_said_and_tried_again(user: Page, watch: Watch) -> None:
    watch.expected.add(404)
    user.goto("/video/999999")
    expect(user.get_by_role("alert")).to_contain_text("Video not found")
    expect(user.get_by_role("button", name="Try again")).to_have_count(0)

    user.route("**/api/artists/**", lambda route: route.abort())
    user.goto("/artists")
    expect(user.get_by_role("alert")).to_contain_text("The server cannot be reached")
    user.unroute("**/api/artists/**")
    user.get_by_role("button", name="Try again").click()
    expect(user.locator("#artists .tile").first).to_be_visible()

    user.route_web_socket("**/ws/jobs", lambda socket: socket.close())  # it would tell what the queue holds
    user.route("**/api/downloads/queue", lambda route: route.abort())
    user.goto("/")
    expect(user.locator("#active").get_by_role("alert")).to_contain_text("The server cannot be reached")
    user.unroute("**/api/downloads/queue")
    again = user.locator("#active").get_by_role("button", name="Try again")
    again.evaluate_all("found => found.forEach(one => one.click())")  # unless the page has tried again by itself
    expect(user.locator("#active").get_by_role("alert")).to_have_count(0)


def test_what_was_pressed_has_the_focus_again_also_after_a_question_and_when_it_was_drawn_anew(manager: Page) -> None:
    manager.goto("/video/1")
    for label in ("Delete", "Edit"):
        button = manager.get_by_role("button", name=label, exact=True)
        button.focus()
        manager.keyboard.press("Enter")
        expect(manager.get_by_role("dialog")).to_be_visible()
        manager.keyboard.press("Escape")
        expect(button).to_be_focused()
    manager.keyboard.press("Enter")
    manager.keyboard.press("Enter")  # in the first field: it is saved
    expect(manager.get_by_text("Video saved")).to_be_visible()
    expect(manager.get_by_role("button", name="Edit")).to_be_focused()


def test_no_page_offers_what_the_server_refuses(user: Page) -> None:
    user.goto("/video/1")
    panel = user.locator("#download")
    expect(panel).to_contain_text("To download it again, set the status to Wanted.")
    expect(panel.get_by_role("button")).to_have_count(0)
    user.get_by_label("Status").select_option("WANTED")
    expect(panel.get_by_role("button", name="Download again")).to_be_visible()
    user.get_by_label("Status").select_option("DOWNLOADED")
    expect(panel.get_by_role("button")).to_have_count(0)

    user.goto("/videos?status=NOPE&sort=none")
    expect(user.get_by_label("Status")).to_have_value("")
    expect(user.get_by_label("Sort by")).to_have_value("-created_at")
