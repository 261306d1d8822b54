"""Thumbnails: four JPEG files per artist or video under the data directory, and a picture for those who have none."""

import hashlib
import logging
import shutil
from io import BytesIO
from pathlib import Path

from fastapi import Request
from PIL import Image, ImageDraw, ImageOps
from starlette.responses import Response

from .containment import refuse
from .files import existing_file, inside, off_loop
from .http import ApiError
from .sending import send_bytes, send_file
from .upstreams import ask

log = logging.getLogger("fastapi_app")

SIZES = {"small": 150, "medium": 300, "large": 600, "original": None}  # pixels of the longer side
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_UPLOAD = 10 * 1024 * 1024  # bytes
MAX_PIXELS = 40_000_000  # a small file can claim to be a huge picture


def save(content: bytes, folder: Path) -> dict[str, dict[str, int]]:
    """Write the four sizes and return their dimensions. Raises ApiError: 413 for too many bytes, 400 for no picture.

    Blocks for a good part of a second.
    """
    if len(content) > MAX_UPLOAD:
        raise ApiError(413, "The request is too large: at most 10 MB")
    picture = _decode(content)
    refuse("files", folder)
    folder.mkdir(parents=True, exist_ok=True)
    dimensions = {}
    for size, pixels in SIZES.items():
        copy = picture.copy()
        if pixels:
            copy.thumbnail((pixels, pixels))
        _write_jpeg(copy, folder / f"{size}.jpg")
        dimensions[size] = {"width": copy.width, "height": copy.height}
    return dimensions


async def fetch(request: Request, url: str, folder: str) -> bool:
    """Write the four sizes of a picture on the web; False when it cannot be had, or is none."""
    refuse("http", url)  # not below, where every OSError is taken for a full disk
    try:
        content = await ask.fetch(request.app.state.upstream, url, MAX_UPLOAD)
        await off_loop(save, content, request.app.state.settings.data_path / folder)
    except (ask.Unreachable, ApiError, OSError) as error:
        log.warning("no thumbnail for %s: %s", folder, error)
        return False
    return True


def _decode(content: bytes) -> Image.Image:
    try:
        picture = Image.open(BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ApiError(400, "The picture has too many pixels")
        return _flatten(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ApiError(400, "The picture has too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError):
        raise ApiError(400, "Not a picture: jpg, png, webp or gif expected") from None


def _flatten(picture: Image.Image) -> Image.Image:
    """JPEG knows no transparency: what shines through becomes white."""
    picture = picture.convert("RGBA")
    background = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(background, picture).convert("RGB")


def _write_jpeg(picture: Image.Image, path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    picture.save(unfinished, "JPEG", quality=85)
    unfinished.replace(path)


async def send(request: Request, folder: str | None, size: str) -> Response | None:
    """The JPEG, or None when there is none."""
    if not folder:
        return None
    path = await off_loop(existing_file, request.app.state.settings.data_path, f"{folder}/{size}.jpg")
    return await send_file(request, path, "image/jpeg") if path else None


async def send_placeholder(request: Request, name: str, size: str) -> Response:
    content = await off_loop(placeholder, name, SIZES[size] or 600)
    return send_bytes(request, content, "image/png", etag=hashlib.sha256(content).hexdigest())


def placeholder(name: str, pixels: int) -> bytes:
    """A play button on a colour that belongs to the name, as PNG."""
    hue = hashlib.sha256(name.encode()).digest()[0] * 360 // 256
    picture = Image.new("RGB", (pixels, pixels), f"hsl({hue}, 45%, 40%)")
    left, right, middle = pixels * 2 // 5, pixels * 13 // 20, pixels // 2
    triangle = [(left, pixels * 7 // 20), (left, right), (right, middle)]
    ImageDraw.Draw(picture).polygon(triangle, fill="white")
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def remove(root: Path, folders: list[str | None]) -> None:
    """Forget the pictures in these folders below the data directory."""
    for folder in folders:
        path = inside(root, folder)
        if path is not None:
            refuse("files", path)
            shutil.rmtree(path, ignore_errors=True)
