"""Test cards: real videos, made by ffmpeg, and what ffprobe says of them."""

import json
import subprocess
from pathlib import Path
from typing import Any


def card(path: Path, seconds: int = 2, size: str = "160x120", *codecs: str, rate: int = 10) -> Path:
    """`codecs` are options of ffmpeg; MPEG-4 and MP3 unless they say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture, tone = f"testsrc=duration={seconds}:size={size}:rate={rate}", f"sine=duration={seconds}"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone]
    command += [*(codecs or ("-c:v", "mpeg4", "-c:a", "libmp3lame")), f"file:{path}"]
    subprocess.run(command, check=True)
    return path


def probed(path: Path) -> dict[str, Any]:
    """`duration` in seconds and the codecs by their kind."""
    shown = "stream=codec_type,codec_name,pix_fmt:format=duration"
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", shown, f"file:{path}"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    codecs = {stream["codec_type"]: stream["codec_name"] for stream in told["streams"]}
    return {"duration": float(told["format"]["duration"]), **codecs}


def converting(folder: Path) -> list[int]:
    """The processes, of whatever parent, that have a file of this folder on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if b"ffmpeg" in command and f"file:{folder}/".encode() in command:
            found.append(int(process.name))
    return found
