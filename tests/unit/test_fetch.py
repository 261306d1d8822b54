"""The child that downloads one video: real yt-dlp against a real server, in both applications."""

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests.adapters

from tests.support.fetching import Nursery, nursery
from tests.support.media_server import MediaServer, video
from tests.support.processes import free_port, session_members

_select_proxy = requests.adapters.select_proxy
from yt_dlp.utils import DownloadError  # noqa: E402

requests.adapters.select_proxy = _select_proxy  # which yt-dlp replaces for everybody in its process

ROOT = Path(__file__).parents[2]
MODULES = ["legacy_flask.fetch", "fastapi_app.fetch"]
NOWHERE = "192.0.2.1"  # of no network
Lines = list[dict[str, Any]]

EITHER = pytest.mark.parametrize("module", MODULES)


def order(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    usual = {"quality": "1080", "format": "mp4", "cookies": None, "proxy": "", "ffmpeg": shutil.which("ffmpeg")}
    limits = {"max_bytes": 10**8, "max_seconds": 3600, "allowed_networks": "127.0.0.1"}
    return {"url": url, "folder": str(folder), **usual, **limits, **more}


@pytest.fixture(scope="module")
def nurseries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Nursery]]:
    with ExitStack() as stack:
        sides = {module: module.partition(".")[0] for module in MODULES}
        yield {name: stack.enter_context(nursery(side, tmp_path_factory.mktemp(side))) for name, side in sides.items()}


@pytest.fixture(params=MODULES)
def side(request: pytest.FixtureRequest, nurseries: dict[str, Nursery]) -> Nursery:
    return nurseries[request.param]


def told(side: Nursery, what: dict[str, Any]) -> Lines:
    """All that it says."""
    with side.child(what) as lines:
        return list(lines)


def until_some(side: Nursery, what: dict[str, Any]) -> None:
    """Begin, and kill it when a quarter of the bytes is there, long before the rest is."""
    with side.child(what) as lines:
        for line in lines:
            if line["event"] == "progress" and line["done"] * 4 > line["total"]:
                return
    raise AssertionError("it was ready before a quarter of it was told")


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def expected(size: int = 0) -> str:
    return hashlib.sha256(video(size)).hexdigest()


@pytest.mark.parametrize("path", ["/direct.mp4?size=700000", "/norange.mp4?size=700000"])
def test_a_file_arrives_byte_for_byte(side: Nursery, path: str, media: MediaServer, tmp_path: Path) -> None:
    found, *progress, done = told(side, order(tmp_path, media.url + path))

    assert (found["event"], done["event"]) == ("found", "done")
    assert {line["event"] for line in progress} == {"progress"}
    assert (progress[-1]["done"], progress[-1]["total"]) == (700_000, 700_000)
    assert Path(done["path"]).parent == tmp_path
    assert digest(done["path"]) == expected(700_000)


def test_the_video_of_a_page_is_found(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    found, *_, done = told(side, order(tmp_path, f"{media.url}/page.html"))

    assert found["title"].startswith("A page")
    assert digest(done["path"]) == expected()


def test_segments_become_one_mp4(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    found, *_, done = told(side, order(tmp_path, f"{media.url}/hls/index.m3u8"))

    probe = ["ffprobe", "-v", "error", "-show_entries", "format=format_name,duration", "-of", "json", done["path"]]
    about = json.loads(subprocess.check_output(probe))["format"]
    assert (found["duration"], round(float(about["duration"]))) == (2, 2)
    assert "mp4" in about["format_name"]
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith("video")] == [".mp4"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing", "unavailable"),
        ("/forbidden", "unavailable"),
        ("/sign-in", "sign_in"),
        ("/broken", "network"),
        ("/empty.html", "unsupported"),
        ("/live.m3u8", "live"),
        ("/hls/sample-aes.m3u8", "unsupported"),
        ("/to-private", "address_refused"),
        ("/hls/inside.m3u8", "address_refused"),
    ],
)
def test_what_goes_wrong_has_a_code(side: Nursery, path: str, code: str, media: MediaServer, tmp_path: Path) -> None:
    *_, last = told(side, order(tmp_path, media.url + path))

    assert (last["event"], last["code"]) == ("error", code)
    assert not [request for request in media.requests if request.path.startswith("private:")]


@pytest.mark.parametrize(
    "url",
    [
        "{media}/direct.mp4",
        "http://2130706433:{port}/direct.mp4",
        "http://0x7f.1:{port}/direct.mp4",
        "http://localhost:{port}/direct.mp4",
        "http://127\u30020\u30020\u30021:{port}/direct.mp4",
        "http://[::ffff:127.0.0.1]:{port}/direct.mp4",
        "http://user:secret@127.0.0.1:{port}/direct.mp4",
        "file:///etc/passwd",
        "ftp://127.0.0.1/video.mp4",
        "--exec=id",
        "ytsearch1:anything",
        "{media}/direct.mp4#__youtubedl_smuggle=%7B%7D",
        "{media}/direct.mp4#%5F_youtubedl_smuggle=%7B%7D",
    ],
)
def test_nobody_is_sent_where_he_must_not_go(side: Nursery, url: str, media: MediaServer, tmp_path: Path) -> None:
    address = url.format(media=media.url, port=media.url.rpartition(":")[2])

    *_, last = told(side, order(tmp_path, address, allowed_networks=""))

    assert (last["event"], last["code"]) == ("error", "address_refused")
    assert media.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "limit", "code"),
    [
        ("/direct.mp4?size=500000", {"max_bytes": 499_999}, "too_large"),
        ("/hls/index.m3u8", {"max_bytes": 30_000}, "too_large"),
        ("/endless.mp4", {"max_bytes": 3_000_000}, "too_large"),
        ("/hls/index.m3u8", {"max_seconds": 1}, "too_long"),
    ],
)
def test_limits_hold(
    side: Nursery, path: str, limit: dict[str, int], code: str, media: MediaServer, tmp_path: Path
) -> None:
    *_, last = told(side, order(tmp_path, media.url + path, **limit))

    assert (last["event"], last["code"]) == ("error", code)


def test_a_limit_may_be_beyond_all_numbers(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    *_, done = told(side, order(tmp_path, f"{media.url}/direct.mp4", max_bytes=10**30))

    assert digest(done["path"]) == expected()


@pytest.mark.parametrize("path", ["/many.html", "/many.xml"])
def test_of_ten_thousand_videos_at_an_address_the_first_is_downloaded(
    side: Nursery, path: str, media: MediaServer, tmp_path: Path
) -> None:
    *_, done = told(side, order(tmp_path, media.url + path))

    assert digest(done["path"]) == expected()
    assert media.count(path) == 1
    assert media.count("/direct.mp4") <= 2  # the second time to see what it is
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same", "video.mp4"]


@EITHER
@pytest.mark.parametrize("kind", ["playlist", "multi_video"])
def test_of_the_playlist_of_a_site_nothing_is_even_looked_at(module: str, kind: str) -> None:
    fetch = importlib.import_module(module)

    def entries() -> Iterator[dict[str, Any]]:
        raise AssertionError("somebody looks at the entries")
        yield

    found = {"_type": kind, "id": "PL", "extractor": "youtube:tab", "extractor_key": "YoutubeTab", "entries": entries()}
    with fetch.Downloader({"quiet": True}) as ydl, pytest.raises(fetch.Refused, match="unsupported"):
        ydl.process_ie_result(found, download=True)


def test_a_cut_connection_is_taken_up_where_it_ended(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    *_, done = told(side, order(tmp_path, f"{media.url}/cut.mp4?size=2000000"))

    assert digest(done["path"]) == expected(2_000_000)
    assert media.ranges("/cut.mp4")


def test_who_is_killed_half_way_is_continued_by_the_next(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    slow = order(tmp_path, f"{media.url}/slow.mp4?size=400000&rate=80000")
    until_some(side, slow)
    some = (tmp_path / "video.mp4.part").stat().st_size
    media.in_haste = True

    *_, done = told(side, slow)

    assert digest(done["path"]) == expected(400_000)
    assert media.ranges("/slow.mp4") == [f"bytes={some}-"]


def test_the_rest_of_another_video_is_not_continued(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    until_some(side, order(tmp_path, f"{media.url}/slow.mp4?size=400000&rate=80000"))

    *_, done = told(side, order(tmp_path, f"{media.url}/direct.mp4?size=500000"))

    assert digest(done["path"]) == expected(500_000)
    assert media.ranges("/direct.mp4") == []


@EITHER
def test_it_dies_with_the_one_who_gave_the_order(module: str, media: MediaServer, tmp_path: Path) -> None:
    """As a program, which nobody else watches."""
    what = order(tmp_path, f"{media.url}/slow.mp4?size=9000000&rate=100000")
    program = [sys.executable, "-I", str(ROOT / f"{module.replace('.', '/')}.py")]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(what).encode() + b"\n")
        process.stdin.flush()
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["found", "progress"]

        process.stdin.close()

        assert process.wait(15) == -signal.SIGKILL
        assert session_members(process.pid) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_full_disk_is_said(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    slow = order(tmp_path, f"{media.url}/slow.mp4?size=400000&rate=80000")
    until_some(side, slow)
    (tmp_path / "video.mp4.part").unlink()
    (tmp_path / "video.mp4.part").symlink_to("/dev/full")

    *_, last = told(side, slow)

    assert (last["event"], last["code"]) == ("error", "disk_full")


def test_cookies_are_sent_and_their_file_is_only_read(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tmine\n")
    before = (cookies.read_bytes(), cookies.stat().st_mtime_ns)
    (tmp_path / "work").mkdir()

    *_, done = told(side, order(tmp_path / "work", f"{media.url}/direct.mp4", cookies=str(cookies)))

    assert digest(done["path"]) == expected()
    assert {request.cookie for request in media.requests} == {"session=mine"}
    assert (cookies.read_bytes(), cookies.stat().st_mtime_ns) == before


def test_with_a_proxy_everything_goes_there(side: Nursery, media: MediaServer, tmp_path: Path) -> None:
    url = f"http://{NOWHERE}/direct.mp4"

    *_, done = told(side, order(tmp_path, url, proxy=media.private, allowed_networks=""))

    assert digest(done["path"]) == expected()
    assert {request.path for request in media.requests} == {"private:/direct.mp4"}


def test_a_search_that_reaches_nobody_says_so(side: Nursery) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"

    lines = told(side, {"search": "anything", "proxy": nobody, "max_bytes": 0, "allowed_networks": ""})

    assert [(line["event"], line["code"]) for line in lines] == [("error", "network")]


@pytest.mark.parametrize("proxy", ["http://host:port", "http://[::1", "http://", "ftp://127.0.0.1:21", "a..b:3128"])
def test_a_proxy_that_cannot_be_one_is_named_and_nothing_is_asked(
    side: Nursery, media: MediaServer, tmp_path: Path, proxy: str
) -> None:
    lines = told(side, order(tmp_path, f"{media.url}/direct.mp4", proxy=proxy))

    assert [(line["event"], line["code"]) for line in lines] == [("error", "proxy")]
    assert not media.requests


@EITHER
def test_it_knows_nothing_of_the_application(module: str) -> None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    script = f"import runpy, sys; runpy.run_path({str(path)!r}); print(*sys.modules)"

    loaded = subprocess.check_output([sys.executable, "-I", "-c", script], text=True).split()

    assert not {"flask", "fastapi", "sqlalchemy", module.partition(".")[0]} & set(loaded)


@EITHER
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("[youtube] x: Sign in to confirm you're not a bot. Use --cookies-from-browser or --cookies", "sign_in"),
        ("[youtube] x: Private video. Sign in if you've been granted access to this video", "sign_in"),
        ("[youtube] x: Video unavailable. This video has been removed by the uploader", "unavailable"),
        ("[youtube] x: The uploader has not made this video available in your country", "geo_blocked"),
        ("[youtube] x: This live event will begin in 3 hours.", "live"),
        ("Postprocessing: av_interleaved_write_frame(): No space left on device", "disk_full"),
        ("[site] x: This video is DRM protected", "unsupported"),
        ("something that nobody has seen before", "unexpected"),
    ],
)
def test_sentences_of_sites_have_codes(module: str, said: str, code: str) -> None:
    assert importlib.import_module(module).code_of(DownloadError(f"ERROR: {said}")) == code


def test_children_are_spared_what_their_parent_has_done_and_ask_the_same_sites(media: MediaServer) -> None:
    script = """
import sys
from fastapi_app import fetch, nursery
begun = []  # what could stand still, and keep all downloads waiting
sys.addaudithook(lambda event, words: event in ("subprocess.Popen", "socket.getaddrinfo") and begun.append(words))
nursery.warm()
print(begun)
import yt_dlp
from yt_dlp.networking import common
options = fetch.options({"proxy": ""})
with yt_dlp.YoutubeDL(options) as usual, fetch.Downloader(options) as ours:
    ours.urlopen(sys.argv[1]).read()
    print([*usual._ies] == [*ours._ies], len(ours._ies) > 1000, [*ours._ies][-1])
    print(common.make_ssl_context.cache_info().misses)
"""
    command = [sys.executable, "-c", script, f"{media.url}/direct.mp4"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "[]\nTrue True Generic\n1\n" == said
