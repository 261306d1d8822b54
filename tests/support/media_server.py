"""A site with videos, as good and as bad as they are: real files made by ffmpeg, ranges, streams, cut connections.

    /direct.mp4           a video; ranges are answered
    /norange.mp4          the same, whole whatever was asked for
    /slow.mp4?rate=N      N bytes a second (default 50 000)
    /cut.mp4?times=N      the first N answers (default 3) end half-way; ranges are answered. Whoever only looks at the
                          headers uses up one of them, as yt-dlp does in order to see what it is
    /hls/index.m3u8       the same pictures in segments; /hls/inside.m3u8: a segment on the private address;
                          /hls/sample-aes.m3u8: encrypted, so that it is nothing for a native downloader
    /live.m3u8            a stream that has not ended
    /endless.mp4          a video that goes on as long as somebody listens, and never says how long that will be
    /page.html            HTML with a <video>; /empty.html without; /many.html with 10 000; /many.xml, a feed of as many
    /text.mp4             text that is called a video
    /picture.jpg          a picture
    /missing 404, /forbidden 403, /broken 500, /sign-in 401
    /to-private           leads to 127.0.0.2, where this server is, too: who may only go to 127.0.0.1 never arrives

`?size=N` makes any mp4 N bytes large; it stays a valid video.
"""

import atexit
import hashlib
import io
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

_PIECE = 16 * 1024  # bytes written at once
_SECONDS = 2  # of the video
_STATUSES = {"/missing": 404, "/forbidden": 403, "/broken": 500, "/sign-in": 401}
_TYPES = {".mp4": "video/mp4", ".m3u8": "application/vnd.apple.mpegurl", ".ts": "video/mp2t", ".html": "text/html"}
_TYPES |= {".xml": "application/rss+xml"}


class Request(NamedTuple):
    path: str  # without the query; one of the private address begins with "private:"
    range: str | None
    cookie: str | None


class MediaServer:
    """`url` has no slash at the end. `allowed` is the network that a client must be allowed."""

    allowed = "127.0.0.1"

    def __init__(self, url: str, private: str) -> None:
        self.url, self.private = url, private
        self.requests: list[Request] = []
        self.open = 0  # answers that are being sent
        self.in_haste = False  # whether from now on nothing is slow
        self._cut: dict[str, int] = {}
        self._lock = Lock()

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(request.path == path for request in self.requests)

    def ranges(self, path: str) -> list[str]:
        """The `Range` headers that came for a path, in order."""
        return [request.range for request in self.requests if request.path == path and request.range]

    def reset(self) -> None:
        with self._lock:
            self.requests.clear()
            self._cut.clear()
            self.in_haste = False

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def is_cut(self, target: str, times: int) -> bool:
        """Whether this answer for a path with its query is one of the first `times`."""
        with self._lock:
            self._cut[target] = self._cut.get(target, 0) + 1
            return self._cut[target] <= times

    def sending(self, change: int) -> None:
        with self._lock:
            self.open += change


@cache
def _made() -> Path:
    """A folder with `video.mp4` (a test card and a tone) and `hls/`, once per process."""
    folder = Path(tempfile.mkdtemp(prefix="media-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "hls").mkdir()
    source = ["-f", "lavfi", "-i", f"testsrc=duration={_SECONDS}:size=320x180:rate=10"]
    source += ["-f", "lavfi", "-i", f"sine=duration={_SECONDS}"]
    codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "5", "-c:a", "aac", "-shortest"]
    ffmpeg = ["ffmpeg", "-nostdin", "-v", "error"]
    subprocess.run([*ffmpeg, *source, *codecs, "-movflags", "+faststart", folder / "video.mp4"], check=True)
    hls = ["-f", "hls", "-hls_time", "0.5", "-hls_playlist_type", "vod", "-hls_segment_filename"]
    subprocess.run(
        [*ffmpeg, "-i", folder / "video.mp4", "-c", "copy", *hls, folder / "hls/%d.ts", folder / "hls/index.m3u8"],
        check=True,
    )
    return folder


@lru_cache(8)
def video(size: int = 0) -> bytes:
    """The bytes of the mp4 files; with a size, as large as that by a box at the end that players skip."""
    content = (_made() / "video.mp4").read_bytes()
    missing = size - len(content)
    if not size:
        return content
    assert missing >= 8, f"the video has {len(content)} bytes already"
    noise = hashlib.shake_256(b"free").digest(64 * 1024)  # in which a byte that is missing or doubled shows
    box = struct.pack(">I4s", missing, b"free") + noise * (missing // len(noise) + 1)
    return content + box[:missing]


def _picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (640, 360), "teal").save(content, "JPEG")
    return content.getvalue()


def _text(server: MediaServer, path: str) -> str | None:
    """Of what is not a file."""
    index = (_made() / "hls/index.m3u8").read_text()
    first = "0.ts"
    texts = {
        "/page.html": '<html><title>A page</title><body><video src="/direct.mp4" controls></video></body></html>',
        "/empty.html": "<html><title>A page</title><body>Nothing to see</body></html>",
        "/text.mp4": "This is no video.\n" * 100,
        "/live.m3u8": index.replace("#EXT-X-PLAYLIST-TYPE:VOD\n", "").replace("#EXT-X-ENDLIST\n", ""),
        "/hls/inside.m3u8": index.replace(first, f"{server.private}/hls/{first}", 1),
        "/hls/sample-aes.m3u8": index.replace("#EXTINF", '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="key"\n#EXTINF', 1),
    }
    return texts.get(path)


def _many(server: MediaServer, path: str) -> str:
    videos = [f"{server.url}/direct.mp4?n={number}" for number in range(10_000)]
    if path == "/many.html":
        return "<html><title>Many</title>" + "".join(f'<video src="{video}"></video>' for video in videos)
    items = "".join(f"<item><title>One</title><link>{video}</link></item>" for video in videos)
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>Many</title>{items}</channel></rss>'


class _Handler(BaseHTTPRequestHandler):
    media: MediaServer
    is_private = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = parts.path, dict(parse_qsl(parts.query))
        shown = f"private:{path}" if self.is_private else path
        self.media.note(Request(shown, self.headers.get("Range"), self.headers.get("Cookie")))
        self.media.sending(1)
        try:
            with suppress(ConnectionError):
                self.answer(path, query)
        finally:
            self.media.sending(-1)

    def answer(self, path: str, query: dict[str, str]) -> None:
        if path in _STATUSES:
            self.send_error(_STATUSES[path])
        elif path == "/to-private":
            self.head(302, {"Location": f"{self.media.private}/direct.mp4", "Content-Length": "0"})
        elif (text := _text(self.media, path)) is not None:
            self.whole(text.encode(), _TYPES[Path(path).suffix])
        elif path in ("/many.html", "/many.xml"):
            self.whole(_many(self.media, path).encode(), _TYPES[Path(path).suffix])
        elif path == "/picture.jpg":
            self.whole(_picture(), "image/jpeg")
        elif path.startswith("/hls/") and (_made() / path[1:]).is_file():
            self.whole((_made() / path[1:]).read_bytes(), _TYPES[Path(path).suffix])
        elif path == "/endless.mp4":
            self.endless()
        elif path in ("/direct.mp4", "/norange.mp4", "/slow.mp4", "/cut.mp4"):
            self.video(path, query)
        else:
            self.send_error(404)

    def video(self, path: str, query: dict[str, str]) -> None:
        content = video(int(query.get("size", 0)))
        start, end = (0, len(content)) if path == "/norange.mp4" else self.asked(len(content))
        if start >= len(content):
            self.head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        about = {"Content-Type": "video/mp4", "Content-Length": str(end - start)}
        if path != "/norange.mp4":
            about["Accept-Ranges"] = "bytes"
        partial = path != "/norange.mp4" and "Range" in self.headers
        if partial:
            about["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.head(206 if partial else 200, about)
        if path == "/cut.mp4" and self.media.is_cut(self.path, int(query.get("times", 3))):
            end = start + (end - start) // 2
        rate = int(query.get("rate", 50_000)) if path == "/slow.mp4" else 0
        self.send(content[start:end], rate)

    def endless(self) -> None:
        self.head(200, {"Content-Type": "video/mp4"})
        content = video()
        while content:
            self.send(content, 0)
            content = bytes(_PIECE) if self.command == "GET" else b""

    def asked(self, size: int) -> tuple[int, int]:
        """Of a single range; everything else is answered as a whole."""
        first, dash, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not dash or not first.isdecimal():
            return 0, size
        return int(first), min(int(last) + 1, size) if last.isdecimal() else size

    def whole(self, content: bytes, kind: str) -> None:
        self.head(200, {"Content-Type": kind, "Content-Length": str(len(content))})
        self.send(content, 0)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, content: bytes, rate: int) -> None:
        """`rate` is in bytes a second; 0: as fast as it goes."""
        if self.command == "HEAD":
            return
        piece = max(1, min(_PIECE, rate // 20)) if rate else _PIECE
        for at in range(0, len(content), piece):
            self.wfile.write(content[at : at + piece])
            if rate and not self.media.in_haste:
                time.sleep(piece / rate)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Clients that leave are not worth a traceback."""


@contextmanager
def media_server() -> Iterator[MediaServer]:
    _made()  # not while the first client waits
    servers = [_Server((host, 0), _Handler) for host in ("127.0.0.1", "127.0.0.2")]
    url, private = (f"http://{server.server_address[0]!s}:{server.server_address[1]}" for server in servers)
    media = MediaServer(url, private)
    for server, is_private in zip(servers, (False, True), strict=True):
        server.RequestHandlerClass = type("Handler", (_Handler,), {"media": media, "is_private": is_private})
        Thread(target=server.serve_forever, args=(0.05,), name="media", daemon=True).start()
    try:
        yield media
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
