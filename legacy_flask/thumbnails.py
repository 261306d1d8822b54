"""Thumbnails: four JPEG files per artist or video under the data directory, and a picture for those who have none."""

import hashlib
import shutil
from io import BytesIO
from pathlib import Path

from flask import current_app, send_file
from PIL import Image, ImageDraw, ImageOps

from .files import existing_file, inside
from .http import ApiError
from .upstreams import client

SIZES = {"small": 150, "medium": 300, "large": 600, "original": None}  # pixels of the longer side
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_UPLOAD = 10 * 1024 * 1024  # bytes
MAX_PIXELS = 40_000_000  # a small file can claim to be a huge picture


def save(upload, folder: str) -> dict:
    """Write the four sizes and return their dimensions. 413 for too many bytes, 400 for what is no picture."""
    content = upload.read(MAX_UPLOAD + 1)
    if len(content) > MAX_UPLOAD:
        raise ApiError(413, "The request is too large: at most 10 MB")
    picture = decode(content)
    target = current_app.config["DATA_PATH"] / folder
    target.mkdir(parents=True, exist_ok=True)
    dimensions = {}
    for size, pixels in SIZES.items():
        copy = picture.copy()
        if pixels:
            copy.thumbnail((pixels, pixels))
        write_jpeg(copy, target / f"{size}.jpg")
        dimensions[size] = {"width": copy.width, "height": copy.height}
    return dimensions


def fetch(url: str, folder: str) -> bool:
    """Write the four sizes of a picture on the web; False when it cannot be had, or is none."""
    try:
        save(BytesIO(client.fetch(url, MAX_UPLOAD)), folder)
    except (client.Unreachable, ApiError, OSError) as error:
        current_app.logger.warning("no thumbnail for %s: %s", folder, error)
        return False
    return True


def decode(content: bytes) -> Image.Image:
    try:
        picture = Image.open(BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ApiError(400, "The picture has too many pixels")
        return flatten(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ApiError(400, "The picture has too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError):
        raise ApiError(400, "Not a picture: jpg, png, webp or gif expected") from None


def flatten(picture: Image.Image) -> Image.Image:
    """JPEG knows no transparency: what shines through becomes white."""
    picture = picture.convert("RGBA")
    background = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(background, picture).convert("RGB")


def write_jpeg(picture: Image.Image, path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    picture.save(unfinished, "JPEG", quality=85)
    unfinished.replace(path)


def send(folder: str | None, size: str):
    """The JPEG, or None when there is none."""
    path = existing_file(current_app.config["DATA_PATH"], f"{folder}/{size}.jpg") if folder else None
    return send_file(path, mimetype="image/jpeg") if path else None


def send_placeholder(name: str, size: str):
    content = placeholder(name, SIZES[size] or 600)
    return send_file(BytesIO(content), mimetype="image/png", etag=hashlib.sha256(content).hexdigest())


def placeholder(name: str, pixels: int) -> bytes:
    """A play button on a colour that belongs to the name."""
    hue = hashlib.sha256(name.encode()).digest()[0] * 360 // 256
    picture = Image.new("RGB", (pixels, pixels), f"hsl({hue}, 45%, 40%)")
    left, right, middle = pixels * 2 // 5, pixels * 13 // 20, pixels // 2
    triangle = [(left, pixels * 7 // 20), (left, right), (right, middle)]
    ImageDraw.Draw(picture).polygon(triangle, fill="white")
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def remove(folder: str | None) -> None:
    path = inside(current_app.config["DATA_PATH"], folder)
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)
