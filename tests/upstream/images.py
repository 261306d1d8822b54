"""An image host: `/NAME-WIDTHxHEIGHT.jpg` (or .png, .webp, .gif) is a drawn picture; some names are something else."""

import re
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from .catalogue import chance

_NAME = re.compile(r"(?P<name>.*?)(-(?P<width>\d{1,4})x(?P<height>\d{1,4}))?\.(?P<kind>jpg|jpeg|png|webp|gif)")
_REDIRECTS = {
    "redirect": "/images/daft-punk-640x360.jpg",
    "redirect-loop": "/images/redirect-loop.jpg",
    "redirect-private": "http://10.0.0.1/secret.jpg",
    "redirect-metadata": "http://169.254.169.254/latest/meta-data/",
    "redirect-file": "file:///etc/passwd",
}


async def picture(request: Request) -> Response:
    match = _NAME.fullmatch(request.path_params["name"])
    if match is None or match["name"].startswith("none"):
        return PlainTextResponse("not found\n", 404)
    name, kind = match["name"], "jpeg" if match["kind"] == "jpg" else match["kind"]
    if name in _REDIRECTS:
        return RedirectResponse(_REDIRECTS[name], 302)
    if name == "not-a-picture":
        return Response(b"<!doctype html><title>Sign in</title>", media_type="image/jpeg")
    if name == "empty":
        return Response(b"", media_type="image/jpeg")
    if name == "bomb":
        return Response(_bomb(), media_type="image/png")
    content = drawn(name, int(match["width"] or 640) or 1, int(match["height"] or 360) or 1, kind)
    if name == "broken":
        content = content[: len(content) // 2]
    if name == "huge":
        content += bytes(12 << 20)  # decoders stop at the end of the picture; limits do not
    return Response(content, media_type=f"image/{kind}", headers={"Cache-Control": "max-age=86400"})


app = Starlette(routes=[Route("/{name}", picture)])


@lru_cache(512)
def drawn(name: str, width: int, height: int, kind: str = "jpeg") -> bytes:
    """Hills under a sky, and the name: the same bytes for the same name."""
    sky, hill = chance(name, 360), chance(f"{name} hill", 360)
    picture = Image.new("RGB", (width, height), f"hsl({sky}, 55%, 45%)")
    draw = ImageDraw.Draw(picture)
    for layer in range(3):
        x, top = chance(f"{name} {layer}", width + 1), height * (5 + layer) // 9
        box = (x - width, top, x + width, top + 2 * height)
        draw.ellipse(box, fill=f"hsl({hill + 15 * layer}, 45%, {38 - 9 * layer}%)")
    sun, size = chance(f"{name} sun", width + 1), height // 5
    draw.ellipse((sun - size, height // 9, sun + size, height // 9 + 2 * size), fill=f"hsl({sky + 180}, 70%, 75%)")
    if text := name.replace("-", " ").title() * name.isascii():  # the font that Pillow brings has no other letters
        size = min(
            height / 9, height / 9 * 0.9 * width / draw.textlength(text, font=ImageFont.load_default(height / 9))
        )
        draw.text((width / 20, height * 5 / 6), text, "white", ImageFont.load_default(size))
    content = BytesIO()
    picture.save(content, kind.upper(), quality=80)
    return content.getvalue()


@lru_cache(1)
def _bomb() -> bytes:
    """A PNG of some 50 kB that says 400 million pixels."""
    content = BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, "PNG")
    return content.getvalue()


def error(status: int) -> dict[str, int]:
    return {"error": status}
