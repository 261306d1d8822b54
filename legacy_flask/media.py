"""ffmpeg and ffprobe: where they are, what they may read, and how much they may take.

They read files, of the containers that videos come in: a playlist that calls itself a video leads nowhere. A few
threads, so much memory and time; never a shell.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from flask import current_app

THREADS = "2"
MAX_MEMORY = 4 * 1024**3  # bytes of addresses
MAX_CPU_S = 6 * 3600
PROBE_TIMEOUT_S = 30
CONTAINERS = "matroska,mov,avi,flv,mpeg,mpegvideo,mpegts,asf,ogg"
READING = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
QUIET = ["-nostdin", "-hide_banner", "-v", "error"]
# What every browser plays. Sides become even, which the format needs.
H264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
AAC = ["-c:a", "aac", "-ac", "2"]
# Becomes the program that its arguments name, in the background of everything else, and ends with who began it.
WITH_PARENT = """
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


def find_ffmpeg() -> str | None:
    """The one that FFMPEG names; without such a wish that of the PATH, or of the wheel imageio-ffmpeg."""
    name = current_app.config["FFMPEG"]
    return shutil.which(name) or (bundled() if name == "ffmpeg" else None)


def bundled() -> str | None:
    with suppress(ImportError, RuntimeError, AttributeError):
        return import_module("imageio_ffmpeg").get_ffmpeg_exe()
    return None


def find_ffprobe() -> str | None:
    """The one that FFPROBE names; without such a wish the one beside ffmpeg, of the PATH, or ffmpeg, which tells less."""
    name, ffmpeg = current_app.config["FFPROBE"], find_ffmpeg()
    if name != "ffprobe":
        return shutil.which(name)
    beside = shutil.which(Path(ffmpeg).with_name("ffprobe")) if ffmpeg else None
    return beside or shutil.which("ffprobe") or ffmpeg


def ask(ffprobe: str, path: Path) -> bytes:
    """JSON: `format` with its duration, `streams` with type, codec and size. Empty when nothing can be told."""
    told = "stream=codec_type,codec_name,pix_fmt,width,height:format=duration"
    command = [ffprobe, "-v", "error", *READING, "-of", "json", "-show_entries", told, f"file:{path}"]
    if is_ffmpeg(ffprobe):
        command = [ffprobe, "-nostdin", "-hide_banner", *READING, "-i", f"file:{path}"]
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return read_banner(done.stderr) if is_ffmpeg(ffprobe) else done.stdout


def is_ffmpeg(program: str) -> bool:
    return Path(program).name.startswith("ffmpeg")


def read_banner(output: bytes) -> bytes:
    """What ffmpeg says of its input, as far as it matters, in the words of ffprobe."""
    streams, length = [], re.search(rb"Duration: (\d+):(\d\d):(\d\d\.\d+)", output)
    for size in re.findall(rb"Video: .*?, (\d+)x(\d+)", output):
        streams.append({"codec_type": "video", "width": int(size[0]), "height": int(size[1])})
    hours, minutes, seconds = map(float, length.groups()) if length else (0, 0, 0)
    return json.dumps({"format": {"duration": hours * 3600 + minutes * 60 + seconds}, "streams": streams}).encode()


def with_parent(command: list[str], pid: int) -> list[str]:
    """The command, as one that ends when the thread of process `pid` that starts it ends, whatever ends that."""
    return [sys.executable, "-I", "-S", "-c", WITH_PARENT, str(pid), *command]


def limit(process: subprocess.Popen, max_bytes: int | None = None) -> None:
    """`max_bytes`: of a file that it writes."""
    limits = {resource.RLIMIT_AS: MAX_MEMORY, resource.RLIMIT_CPU: MAX_CPU_S, resource.RLIMIT_CORE: 0}
    if max_bytes is not None:
        limits[resource.RLIMIT_FSIZE] = max_bytes
    for which, most in limits.items():
        with suppress(ProcessLookupError, PermissionError, ValueError):  # it has ended, or has less already
            resource.prlimit(process.pid, which, (most, most))
