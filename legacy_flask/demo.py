"""A library to try things out with: well-known names, and what the services at one address say about them."""

import random
import subprocess

from flask import Flask, current_app
from sqlalchemy import func, insert, select

from . import settings, thumbnails
from .db import get_session, transaction
from .files import safe_name
from .models import ROLES, Artist, Download, PlaylistMonitor, Setting, User, Video, Webhook
from .seed import artist_row, demo_users, download_row, settings_rows, video_row, write_file
from .upstreams import imvdb, lastfm, youtube

ARTISTS = (
    "A Tribe Called Quest|a-ha|ABBA|AC/DC|Aphex Twin|Beastie Boys|Beyoncé|Björk|The Chemical Brothers|Daft Punk|deadmau5|"
    "Fatboy Slim|Fever Ray|FKA twigs|Gorillaz|Justice|Kate Bush|Massive Attack|Missy Elliott|OK Go|Peter Gabriel|"
    "Portishead|Radiohead|Sigur Rós|Talking Heads"
).split("|")
VIDEOS = 6  # of each; the services know more
PLAYLIST = "PLdemo-offline"
STATUSES = {"DOWNLOADED": 50, "WANTED": 25, "MONITORED": 15, "IGNORED": 5, "FAILED": 5}  # and their weights


def services(url: str) -> dict[str, str]:
    """Settings with which everything is asked at one address, without waiting for a turn."""
    names = ("youtube", "imvdb", "spotify", "lastfm", "wikipedia")
    return {
        **{f"{name}_url": f"{url}/{name}" for name in names},
        **{f"{name}_per_second": "0" for name in names},
        **{f"{name}_api_key": "demo-key" for name in ("youtube", "imvdb", "lastfm")},
        "spotify_token_url": f"{url}/spotify-token",
        "spotify_client_id": "demo-id",
        "spotify_client_secret": "demo-secret",
    }


def fill(app: Flask, url: str) -> str:
    """Fill an empty database; in one that is filled only the address of the services is new. Says what is there.

    Raises ApiError when a service does not answer.
    """
    with app.app_context():
        configure(url)
        if not count(Artist):
            rows = library(settings.texts(get_session()))
            rows[User] = demo_users(app.config["BCRYPT_ROUNDS"])[: len(ROLES)]
            rows[Webhook] = [{"url": f"{url}/hooks/demo", "events": ["*"], "secret": "demo-secret"}]
            with transaction() as db:
                for model, values in rows.items():
                    db.execute(insert(model), values)
        return f"{count(Artist)} artists and {count(Video)} videos"


def count(model) -> int:
    return get_session().scalar(select(func.count(model.id)))


def configure(url: str) -> None:
    with transaction() as db:
        present = set(db.scalars(select(Setting.key)))
        db.add_all(Setting(**row) for row in settings_rows() if row["key"] not in present)
        db.flush()
        for key, value in services(url).items():
            settings.store(db, key, value)


def library(texts: dict) -> dict:
    """Rows by model. Pictures are fetched; videos that are there have a file when ffmpeg is."""
    chance, content = random.Random(1), test_card()
    artists, videos = [], []
    for number, name in enumerate(ARTISTS, 1):
        entity, known = imvdb.entity(texts, imvdb.search_entities(texts, name)[0].imvdb_id)
        artist = artist_row(number, name, lastfm.artist_info(texts, name).genres)
        artist |= {"imvdb_id": entity.imvdb_id, "bio": entity.bio}
        artists.append(artist | picture(entity.image, f"thumbnails/artists/{number}"))
        for found in known[:VIDEOS]:
            status = chance.choices(list(STATUSES), STATUSES.values())[0]
            row = video(texts, len(videos) + 1, artist, found.imvdb_id, status)
            videos.append(row | (film(artist, row, content) if status == "DOWNLOADED" else {}))
    playlist = youtube.playlist(texts, PLAYLIST)
    monitor = {"playlist_id": PLAYLIST, "title": playlist.title, "channel": playlist.channel}
    return {Artist: artists, Video: videos, Download: downloads(videos), PlaylistMonitor: [monitor]}


def video(texts: dict, number: int, artist: dict, imvdb_id: str, status: str) -> dict:
    found = imvdb.video(texts, imvdb_id)
    clip = youtube.video(texts, found.youtube_id)
    return video_row(
        number,
        artist["id"],
        found.title,
        status,
        artist["genres"],
        year=found.year,
        duration=clip.duration,
        quality=("720p", "1080p", "2160p")[number % 3],
        youtube_id=clip.youtube_id,
        imvdb_id=imvdb_id,
        url=f"{texts['youtube_url'].removesuffix('/youtube')}/files/{clip.youtube_id}.mp4",  # can be downloaded
        description=clip.description,
        directors=found.directors,
        **picture(clip.thumbnail_url, f"thumbnails/videos/{number}"),
    )


def picture(url: str | None, folder: str) -> dict:
    path = folder if url and thumbnails.fetch(url, folder) else None
    return {"thumbnail_url": url, "thumbnail_path": path}


def film(artist: dict, row: dict, content: bytes) -> dict:
    if not content:
        return {}
    name = safe_name(f"{artist['name']} - {row['title']}")
    path = f"{artist['folder_path']}/{name}.mp4"
    write_file(current_app.config["LIBRARY_PATH"] / path, content)
    return {"file_path": path, "file_size": len(content)}


def test_card() -> bytes:
    """Ten seconds of a test card; nothing without ffmpeg."""
    path = current_app.config["DATA_PATH"] / "film.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=10"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=330:duration=10"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart"]
    try:
        subprocess.run(
            [current_app.config["FFMPEG"], "-nostdin", "-v", "error", "-y", *source, *sound, *coded, path],
            check=True,
            timeout=60,
            capture_output=True,
        )
        return path.read_bytes()
    except (OSError, subprocess.SubprocessError):
        return b""
    finally:
        path.unlink(missing_ok=True)


def downloads(videos: list[dict]) -> list[dict]:
    """What has been downloaded, what failed, and what waits for its turn."""
    by_status = {status: [row for row in videos if row["status"] == status] for status in STATUSES}
    rows = [finished(row) for row in by_status["DOWNLOADED"][:25]]
    rows += [
        download_row(0, row["id"], "failed", progress=40, error_code="http_403", error_message="The server said no")
        for row in by_status["FAILED"]
    ]
    rows += [download_row(0, row["id"], "pending", active_video_id=row["id"]) for row in by_status["WANTED"][:5]]
    return [row | {"id": number} for number, row in enumerate(rows, 1)]


def finished(row: dict) -> dict:
    size = row["file_size"] or row["duration"] * 600_000
    return download_row(
        0, row["id"], "completed", progress=100, bytes_done=size, bytes_total=size, quality=row["quality"]
    )
