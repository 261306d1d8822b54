"""A host of videos: `/NAME.mp4` is a test card of ten seconds, from wherever a Range says."""

import asyncio
import re
import shutil
import subprocess
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


async def film(request: Request) -> Response:
    if request.path_params["name"].startswith("none"):
        return PlainTextResponse("not found\n", 404)
    content = await asyncio.to_thread(test_card)
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    start = min(int(asked[1]), len(content)) if asked else 0
    headers = {"Accept-Ranges": "bytes"}
    if asked:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Response(content[start:], 206 if asked else 200, headers, "video/mp4")


app = Starlette(routes=[Route("/{name}.mp4", film)])


def error(status: int) -> dict[str, int]:
    return {"error": status}


@lru_cache(1)
def test_card() -> bytes:
    source = ["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=10"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=10"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart"]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "card.mp4"
        ffmpeg = shutil.which("ffmpeg") or import_module("imageio_ffmpeg").get_ffmpeg_exe()
        subprocess.run([ffmpeg, "-nostdin", "-v", "error", *source, *sound, *coded, path], check=True, timeout=60)
        return path.read_bytes()
