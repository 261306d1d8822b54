"""The services of the internet, for tests, benchmarks and `./dev up --demo`: one ASGI application, no network.

    python -m tests.upstream --port 8099        uvicorn tests.upstream:app

Base URLs are `/youtube`, `/imvdb`, `/spotify`, `/spotify-token`, `/lastfm`, `/wikipedia`, `/images`, `/files` and
`/hooks`. Keys: `demo-key` (YouTube, IMVDb, Last.fm), `demo-id` and `demo-secret` (Spotify). Addresses in answers lead
back here.

**Queries.** Any name is an artist with ten songs; "Daft Punk", "daft punk official video" and "Daft Punk - Static" mean
the same one. A title that the artist has narrows a search to it. `nothing…` is found nowhere. `Silent Nobody` has no
videos, no picture and no biography. Artists in `catalogue.ARTISTS` are spelled as they should be, whatever was asked.

| where | id | what |
|---|---|---|
| IMVDb `/entity/` | a slug: `daft-punk`, `bjork`, `beatles` | the artist, with `id` as asked for |
| | `634` | Michel Gondry, with a number for an id |
| | `none…` | 404 |
| IMVDb `/video/` | a number from a search; `joga-1` | the video; else 404 |
| YouTube `/videos` | eleven characters | a video, always the same; `loB0kmz_0MM` is Björk's Jóga |
| | `none…`, `priv…`, another length | left out, as YouTube does it |
| | `live…` | a live broadcast, of no duration (`P0D`) |
| YouTube playlists | `PL…` | 12 items: place 4 private, 9 deleted, 11 the same as 10 |
| | `PLlong…` | 120 items in three pages, every 20 as above |
| | `PLhuge…` | 10 000 items in 200 pages, by a few artists |
| | `PLempty…`; `PLpriv…`; `PLnone…` and what does not begin with PL | empty; 403 for items; 404 for items |
| Spotify `/artists/` | a slug; `none…` | the artist; 404 |
| Spotify `/playlists/` | any | 12 tracks: place 3 null, 6 a local file, 8 an episode, 10 the same as 0 |
| | `long…`; `empty…`; `none…`, `priv…` | 120 tracks in two pages; none; 404 |
| images | `NAME-640x360.jpg`, `.png`, `.webp`, `.gif` | a drawn picture |
| | `none….jpg` | 404 |
| | `not-a-picture`, `empty`, `broken`, `bomb` (.jpg) | HTML, nothing, half a JPEG, 400 million pixels |
| | `huge.jpg` | a picture with 12 MB behind it |
| files | `NAME.mp4`; `none….mp4` | ten seconds of a test card; 404 |
| | `redirect`, `redirect-loop`, `redirect-private`, `redirect-metadata`, `redirect-file` (.jpg) | 302 |
| hooks | any name; `status-503` | 200 to any method; that status |

**Dials.** `PUT /_dials` with `{service: {dial: value}}` replaces all of them; `GET /_dials` shows them.

| dial | what happens to calls of the service |
|---|---|
| `latency_s` | the answer begins so much later |
| `slow_body_s` | the second half of the body comes so much later |
| `status`, `retry_after` | this status, this `Retry-After` (also with `fail_first`) |
| `fail_first` | the first n calls get `status`, 503 by default; then all is well |
| `quota` | 403 as YouTube says quotaExceeded |
| `error_in_200` | status 200 with the error body of the service; a number is its code: 6, 10, 11, 29 of Last.fm |
| `malformed`, `empty` | 200, but no JSON; no body |
| `wrong_types`, `wrong_shape` | the true answer with every leaf of another type; in a list |
| `huge_body` | 32 MB of JSON |
| `redirect` | 302 to this address |
| `down` | the connection is closed without an answer |
| `only` | the other dials act on calls whose path and query contain this text, `offset=100` |

**Calls.** `GET /_calls` lists the last 10 000 as `{service, method, path, query, headers, body}`; `DELETE /_calls`
forgets them.
"""

from . import files, hooks, images, imvdb, lastfm, spotify, wikipedia, youtube
from .control import Control, Service
from .http import KEY, SPOTIFY_ID, SPOTIFY_SECRET

__all__ = ["KEY", "SPOTIFY_ID", "SPOTIFY_SECRET", "Control", "app", "create_app"]


def create_app() -> Control:
    """With dials and calls of its own."""
    services = {
        "youtube": Service(youtube.app, youtube.error),
        "imvdb": Service(imvdb.app, imvdb.error),
        "spotify": Service(spotify.app, spotify.error),
        "spotify-token": Service(spotify.token_app, spotify.token_error),
        "lastfm": Service(lastfm.app, lastfm.error),
        "wikipedia": Service(wikipedia.app, wikipedia.error),
        "images": Service(images.app, images.error),
        "files": Service(files.app, files.error),
        "hooks": Service(hooks.app, hooks.error),
    }
    return Control(services)


app = create_app()
