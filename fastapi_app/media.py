"""ffmpeg and ffprobe: where they are, what they may read, and how much they may take.

They read files, of the containers that videos come in: a playlist that calls itself a video leads nowhere. A few
threads, so much memory and time; never a shell.
"""

import json
import re
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from . import commands

THREADS = "2"
PROBE_TIMEOUT_S = 30
CONTAINERS = "matroska,mov,avi,flv,mpeg,mpegvideo,mpegts,asf,ogg"
READING = ("-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS)
QUIET = ("-nostdin", "-hide_banner", "-v", "error")
# What every browser plays. Sides become even, which the format needs.
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2")
AAC = ("-c:a", "aac", "-ac", "2")
LIMITS: Mapping[int, int] = {
    resource.RLIMIT_AS: 4 * 1024**3,  # bytes
    resource.RLIMIT_CPU: 6 * 3600,  # seconds
    resource.RLIMIT_CORE: 0,
}
# Becomes the program that its arguments name, in the background of everything else, and ends with who began it.
_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.nice(15)
try:  # Linux looks at sessions first, and here is one of its own
    with open("/proc/self/autogroup", "w") as session:
        session.write("15")
except OSError:
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find_ffmpeg(ffmpeg: str) -> str | None:
    """The one of this name; if that is no more than `ffmpeg`, also that of the wheel imageio-ffmpeg. Blocks."""
    return shutil.which(ffmpeg) or (_bundled() if ffmpeg == "ffmpeg" else None)


def _bundled() -> str | None:
    with suppress(ImportError, RuntimeError, AttributeError):
        return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    return None


def find_ffprobe(ffmpeg: str, ffprobe: str = "ffprobe") -> str | None:
    """The one of this name; if that is no more than `ffprobe`, the one beside ffmpeg first, and at last ffmpeg, which
    tells less. Blocks."""
    if ffprobe != "ffprobe":
        return shutil.which(ffprobe)
    found = find_ffmpeg(ffmpeg)
    beside = shutil.which(Path(found).with_name("ffprobe")) if found else None
    return beside or shutil.which("ffprobe") or found


async def ask(ffprobe: str, path: Path) -> bytes:
    """JSON: `format` with its duration, `streams` with type, codec and size. Empty when nothing can be told."""
    try:
        return await answer_of(ffprobe, path)
    except commands.CommandError:
        return b""


async def answer_of(ffprobe: str, path: Path) -> bytes:
    """What `ask` gives. Raises CommandError when the program did not answer, which says nothing about the file."""
    told = "stream=codec_type,codec_name,pix_fmt,width,height:format=duration"
    command = [ffprobe, "-v", "error", *READING, "-of", "json", "-show_entries", told, f"file:{path}"]
    if _is_ffmpeg(ffprobe):
        command = [ffprobe, "-nostdin", "-hide_banner", *READING, "-i", f"file:{path}"]
    done = await commands.run(command, timeout_s=PROBE_TIMEOUT_S)
    return read_banner(done.stderr) if _is_ffmpeg(ffprobe) else done.stdout


def _is_ffmpeg(program: str) -> bool:
    return Path(program).name.startswith("ffmpeg")


def read_banner(output: bytes) -> bytes:
    """What ffmpeg says of its input, as far as it matters, in the words of ffprobe."""
    length = re.search(rb"Duration: (\d+):(\d\d):(\d\d\.\d+)", output)
    hours, minutes, seconds = map(float, length.groups()) if length else (0.0, 0.0, 0.0)
    sizes = re.findall(rb"Video: .*?, (\d+)x(\d+)", output)
    streams = [{"codec_type": "video", "width": int(width), "height": int(height)} for width, height in sizes]
    return json.dumps({"format": {"duration": hours * 3600 + minutes * 60 + seconds}, "streams": streams}).encode()


def with_parent(command: Sequence[str], pid: int) -> list[str]:
    """The command, as one that ends when the thread of process `pid` that starts it ends, whatever ends that."""
    return [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(pid), *command]
