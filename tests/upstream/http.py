"""What the services have in common."""

from starlette.requests import Request

KEY = "demo-key"  # of YouTube, IMVDb and Last.fm
SPOTIFY_ID, SPOTIFY_SECRET = "demo-id", "demo-secret"


def image(request: Request, name: str, width: int, height: int) -> str:
    """The address of a picture on the image host; `name` is a slug."""
    return f"http://{request.headers['host']}/images/{name}-{width}x{height}.jpg"


def number(request: Request, name: str, default: int, most: int) -> int:
    """From the query; `default` for what is no number."""
    text = request.query_params.get(name, "")
    return min(int(text), most) if text.isdecimal() and int(text) else default
