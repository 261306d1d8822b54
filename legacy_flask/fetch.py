"""One video by yt-dlp, in a process of its own that trusts neither the address nor the site.

`python -I fetch.py` reads its order, one JSON object in a line, and works as long as stdin stays open:

    url               http or https; or, instead of it, `search`: words to look for on YouTube, nothing is downloaded
    folder            where the file is made; what an earlier attempt has left there is continued
    quality, format   "1080", "mp4", as far as the site has it; empty: the best
    cookies           the path of a Netscape file, which is only read; or null
    proxy             an address; empty: none. It is the proxy, then, that decides what is reached
    max_bytes, max_seconds
    allowed_networks  private ones that may be connected to, by commas
    ffmpeg            a path; null: without it, nothing is merged

It tells JSON objects, each in a line of stdout; the last one is `done` or `error`:

    {"event": "found", "title", "duration", "height"}        or, of a search: {"event": "found", "videos": […]}
    {"event": "progress", "done", "total", "speed", "eta"}   bytes, bytes a second, seconds; four times a second at most
    {"event": "done", "path"}
    {"event": "error", "code", "detail"}                     `detail` is for a log

When stdin ends, whoever gave the order is gone: the process group is killed, and with it any ffmpeg.
"""

import errno
import fcntl
import io
import json
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yt_dlp
import yt_dlp.globals
from yt_dlp.downloader.external import FFmpegFD
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, UnsupportedError, UserNotLive

Tell = Callable[[dict[str, Any]], None]

TOLD_EVERY_S = 0.25
ANSWER_WITHIN_S = 20  # between two pieces of an answer
REPETITIONS = 4
CANDIDATES = 5  # of a search
OWNED_WITHIN_S = 10
MAX_URL = 2000  # characters
MAX_MEMORY = 4 * 1024**3  # bytes
SLACK = 64 * 1024**2  # bytes by which what ffmpeg writes may be larger than what it reads
SAME = "same"  # the file that says of which video the rest of the folder is
CONTAINERS = {"mp4": "mp4/mkv", "webm": "webm/mkv", "mkv": "mkv"}
SORTED_BY = {"mp4": ["ext:mp4:m4a"], "webm": ["ext:webm:webm"]}
NATIVE = {"http", "https", "m3u8", "m3u8_native", "http_dash_segments", "http_dash_segments_generator", "ism", "f4m"}
PROXIES = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}

PASSING = (TransportError, ContentTooShortError, TimeoutError, ConnectionError, socket.gaierror)
STATUSES = {401: "sign_in", 407: "network", 408: "network", 425: "network", 429: "network", 451: "geo_blocked"}
SENTENCES = (  # of extractors, which have no types for these
    ("sign_in", r"sign in|log ?in|--cookies|registered users|credentials|members[- ]only|private video|password"),
    ("geo_blocked", r"(?:in|from) your (?:country|location|region)|geo[- ]?restrict"),
    ("live", r"live event|premieres in|is offline|not currently live|livestream"),
    ("disk_full", r"no space left|disk quota"),
    ("unavailable", r"unavailable|not available|removed|deleted|terminated|does ?n.t exist|no longer"),
    ("unsupported", r"no video|no formats|format is not|drm|unsupported|not a valid url|unable to extract"),
)


class Refused(Exception):
    """What was ordered is not downloaded; the text is the code of the error."""


def fetch(order: dict[str, Any], tell: Tell) -> None:
    """Do one order and tell how it went. It changes its whole process: the folder, limits, what may be connected to."""
    guard = Guard(order["allowed_networks"])
    try:
        limit(order["max_bytes"])
        guard.install(order["proxy"])
        if "search" in order:
            tell({"event": "found", "videos": search(order)})
            tell({"event": "done", "path": None})
        else:
            check(order["url"])
            os.chdir(order["folder"])
            own_folder()
            tell({"event": "done", "path": download(order, tell)})
    except Exception as error:
        code = "address_refused" if guard.refused else code_of(error)
        tell({"event": "error", "code": code, "detail": str(error)[:500]})


def check(url: str) -> None:
    """Raises Refused for what is no plain address: options, other schemes, secrets, what yt-dlp hides in a fragment."""
    if len(url) > MAX_URL or re.search(r"[\x00-\x20\x7f\\]", url) or "__youtubedl_smuggle" in unquote(url):
        raise Refused("address_refused")
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        plain = False
    if not plain:
        raise Refused("address_refused")


def place_of(proxy: str) -> tuple[str, int]:
    """Name and port of a proxy. Raises Refused for what is none."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        name, port = parts.hostname or "", parts.port or PROXIES.get(parts.scheme, 0)
        name.encode("idna")
    except ValueError:
        raise Refused("proxy") from None
    if not name or parts.scheme not in PROXIES:
        raise Refused("proxy")
    return name, port


def own_folder() -> None:
    """Wait for the end of an attempt that is just being killed: two would write into the same file. Raises Refused."""
    folder, deadline = os.open(".", os.O_RDONLY), time.monotonic() + OWNED_WITHIN_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Refused("unexpected") from None
            time.sleep(0.1)
        except OSError:  # a file system that locks no folders
            return
        else:
            return


def limit(max_bytes: int) -> None:
    """A file that grows further cannot be written, and no page can fill the memory. It holds for ffmpeg, too."""
    wanted = ((resource.RLIMIT_FSIZE, max_bytes + SLACK), (resource.RLIMIT_DATA, MAX_MEMORY), (resource.RLIMIT_CORE, 0))
    for which, value in wanted:
        highest = resource.getrlimit(which)[1]
        least = min(value, sys.maxsize if highest == resource.RLIM_INFINITY else highest)
        resource.setrlimit(which, (least, least))


# --- where to ----------------------------------------------------------------------------------------------------


class Guard:
    """Every connection of this process leads to the public internet, to an allowed network or to the proxy.

    Judged is the very address that is connected to: so redirects, segments of a stream, and names that lead elsewhere
    the second time need no rules of their own.
    """

    def __init__(self, allowed: str) -> None:
        self.allowed = [ip_network(entry.strip(), strict=False) for entry in allowed.split(",") if entry.strip()]
        self.proxy: set[tuple[str, int]] = set()
        self.refused = False

    def install(self, proxy: str) -> None:
        resolve = socket.getaddrinfo
        if proxy:
            name, port = place_of(proxy)
            self.proxy = {(answer[4][0], port) for answer in resolve(name, port)}

        def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
            answers = resolve(host, port, *rest, **more)
            return [answer for answer in answers if self.allows(answer[4])] or self.refuse()

        def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
            return lambda sock, to: connect(sock, to) if self.allows(to) else self.refuse()

        socket.getaddrinfo = getaddrinfo
        socket.socket.connect = guarded(socket.socket.connect)  # type: ignore[method-assign]
        socket.socket.connect_ex = guarded(socket.socket.connect_ex)  # type: ignore[method-assign]

    def refuse(self) -> Any:
        self.refused = True
        raise Refused("address_refused")  # no error of a network, which would be tried again

    def allows(self, to: Any) -> bool:
        """An address of a socket. Names are not connected to: whoever resolves them chooses one address."""
        try:
            ip = unwrapped(ip_address(to[0].partition("%")[0]))
        except (ValueError, AttributeError, IndexError):  # of another family
            return False
        return (to[0], to[1]) in self.proxy or is_public(ip) or any(ip in network for network in self.allowed)


def unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in ip_network("64:ff9b::/96"):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in ip_network("2000::/3"):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


# --- what --------------------------------------------------------------------------------------------------------


class Silent:
    """yt-dlp says everything that matters in its exceptions and hooks."""

    def debug(self, _message: str) -> None: ...

    warning = error = debug


def options(order: dict[str, Any]) -> dict[str, Any]:
    """What of yt-dlp may be used: its own downloaders, no files of settings, no other programs but ffmpeg on files."""
    chosen: dict[str, Any] = {
        "quiet": True,
        "noprogress": True,
        "logger": Silent(),
        "cachedir": False,
        "proxy": order["proxy"],
        "socket_timeout": ANSWER_WITHIN_S,
        "retries": REPETITIONS,
        "fragment_retries": REPETITIONS,
        "extractor_retries": 1,
        "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), lambda n: min(0.5 * 2**n, 8)),
        "external_downloader": {"default": "native"},
        "hls_prefer_native": True,
    }
    if order.get("cookies") and os.path.exists(order["cookies"]):
        chosen["cookiefile"] = io.StringIO(Path(order["cookies"]).read_text("utf-8", "replace"))
    return chosen


def tame() -> None:
    """What no option switches off."""
    yt_dlp.globals.plugin_dirs.value = []
    FFmpegFD.available = classmethod(lambda _cls, path=None: False)  # it would be asked for encrypted streams
    FFmpegFD.real_download = refuse_ffmpeg


def refuse_ffmpeg(*_: Any) -> bool:
    """The network is not for ffmpeg, which knows nothing of the guard."""
    raise Refused("unsupported")


def search(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Videos of YouTube, the best match first: {"id", "title", "channel", "duration"}."""
    tame()
    with yt_dlp.YoutubeDL(options(order) | {"extract_flat": True}) as ydl:
        found = ydl.extract_info(f"ytsearch{CANDIDATES}:{order['search']}", download=False) or {}
    videos = [video for video in found.get("entries") or () if video and video.get("id") and video.get("title")]
    return [{key: video.get(key) for key in ("id", "title", "channel", "duration")} for video in videos]


class Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]
    """Of a page with several videos the first; of a list of a site, none."""

    def process_ie_result(self, ie_result: dict[str, Any], *rest: Any, **more: Any) -> Any:
        is_list = ie_result.get("_type") in ("playlist", "multi_video")
        if is_list and ie_result.get("extractor_key") != "Generic":
            raise Refused("unsupported")
        return super().process_ie_result(ie_result, *rest, **more)


def download(order: dict[str, Any], tell: Tell) -> str:
    """The path of the file. It works in the current folder."""
    tame()
    progress = Progress(order, tell)
    quality = re.match(r"\d+", order["quality"] or "")
    chosen = options(order) | {
        "outtmpl": {"default": "video.%(ext)s"},
        "format": "bv*+ba/b" if order["ffmpeg"] else "b",
        "format_sort": ([f"res:{quality[0]}"] if quality else []) + SORTED_BY.get(order["format"], []),
        "merge_output_format": CONTAINERS.get(order["format"]),
        "ffmpeg_location": order["ffmpeg"],
        "postprocessor_args": {"ffmpeg_i": ["-protocol_whitelist", "file"]},
        "fixup": "force",  # an attempt that was killed may have left it undone
        "noplaylist": True,
        "playlist_items": "1",
        "lazy_playlist": True,
        "continuedl": True,
        "skip_unavailable_fragments": False,
        "updatetime": False,
        "match_filter": progress.judge,
        "progress_hooks": [progress.hook],
    }
    with Downloader(chosen) as ydl:
        info = ydl.extract_info(order["url"]) or {}
    if "entries" in info:
        info = next(filter(None, info["entries"]), {})
    made = info.get("requested_downloads")
    if not made:
        raise Refused("unsupported")
    path = Path(made[-1]["filepath"]).name
    if os.path.getsize(path) > order["max_bytes"]:
        raise Refused("too_large")
    return os.path.abspath(path)


class Progress:
    """What is known of the video, and how far it is. Picture and sound may come one after the other."""

    def __init__(self, order: dict[str, Any], tell: Tell) -> None:
        self.order, self.tell = order, tell
        self.done: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self.expected = 0
        self.told_at = 0.0

    def judge(self, info: dict[str, Any], *, incomplete: bool) -> None:
        """Raises Refused for what is not to be downloaded, before it is."""
        if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming"):
            raise Refused("live")
        if (info.get("duration") or 0) > self.order["max_seconds"]:
            raise Refused("too_long")
        if incomplete:
            return
        formats = info.get("requested_formats") or [info]
        if not all(one.get("protocol") in NATIVE for one in formats):
            raise Refused("unsupported")
        sizes = [one.get("filesize") or one.get("filesize_approx") or 0 for one in formats]
        self.expected = int(sum(sizes)) if all(sizes) else 0
        begin_anew_unless_same(info, formats)
        about = {"title": str(info.get("title") or "")[:500], "duration": info.get("duration")}
        self.tell({"event": "found", **about, "height": info.get("height")})

    def hook(self, status: dict[str, Any]) -> None:
        name, total = status["filename"], status.get("total_bytes") or status.get("total_bytes_estimate")
        self.done[name] = int(status.get("downloaded_bytes") or self.done.get(name, 0))
        self.totals[name] = int(total or 0)
        done = sum(self.done.values())
        if max(done, status.get("total_bytes") or 0) > self.order["max_bytes"]:
            raise Refused("too_large")
        if status["status"] != "finished" and time.monotonic() - self.told_at < TOLD_EVERY_S:
            return
        self.told_at = time.monotonic()
        known = max(self.expected, sum(self.totals.values()) if all(self.totals.values()) else 0)
        rates = {"speed": whole(status.get("speed")), "eta": whole(status.get("eta"))}
        self.tell({"event": "progress", "done": done, "total": max(known, done) if known else None, **rates})


def whole(number: Any) -> int | None:
    return None if number is None else int(number)


def begin_anew_unless_same(info: dict[str, Any], formats: list[dict[str, Any]]) -> None:
    """What lies in the folder may be of another video, or of the same in another quality: it is not to be continued."""
    video = [info.get("extractor_key"), info.get("id"), info.get("webpage_url")]
    same, note = json.dumps([*video, *(one.get("format_id") for one in formats)]), Path(SAME)
    if not note.exists() or note.read_text() != same:
        for left in Path().iterdir():
            left.unlink()
        note.write_text(same)


# --- what went wrong ---------------------------------------------------------------------------------------------


def code_of(error: BaseException) -> str:
    """The first of the errors behind an error that says something; then what is written in them."""
    errors = list(causes(error))
    for one in errors:
        code = known(one)
        if code:
            return code
    text = " ".join(map(str, errors)).lower()
    said = (code for code, pattern in SENTENCES if re.search(pattern, text))
    passing = any(isinstance(one, PASSING) for one in errors)
    return "network" if passing else next(said, "unexpected")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, each once."""
    seen, waiting = set(), [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            behind = getattr(one, "exc_info", None) or (None, None)
            waiting += [behind[1], getattr(one, "cause", None), one.__cause__, one.__context__]


def known(error: BaseException) -> str | None:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, HTTPError):
        passing = "network" if error.status >= 500 else "unavailable"
        return STATUSES.get(error.status, passing)
    if isinstance(error, GeoRestrictedError):
        return "geo_blocked"
    if isinstance(error, UserNotLive):
        return "live"
    if isinstance(error, UnsupportedError):
        return "unsupported"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "too_large"
    return None


# --- the process -------------------------------------------------------------------------------------------------


def main() -> None:
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what else is printed is no line of ours
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        order = json.loads(stdin.readline())
    Thread(target=die_with_stdin, daemon=True).start()

    def tell(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    fetch(order, tell)


def die_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
