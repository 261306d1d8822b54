"""Fill an empty database, and make the first administrator.

python -m legacy_flask.seed                  2 000 artists and 20 000 videos
python -m legacy_flask.seed --size small     a few dozen rows with their files, always the same
python -m legacy_flask.seed --demo           and a user of every role, with the passwords below
python -m legacy_flask.seed --services URL   a library to try things out with, from the services at this address
python -m legacy_flask.seed --admin NAME     an administrator; the password is asked for, or read from ADMIN_PASSWORD
"""

import argparse
import getpass
import hashlib
import os
import random
import sys
from datetime import datetime, timedelta
from pathlib import Path

import bcrypt
from flask import Flask
from PIL import Image
from sqlalchemy import delete, func, insert, select

from . import create_app, passwords, thumbnails
from .auth import revoke
from .db import StartupError, get_session, transaction
from .files import safe_name
from .http import ApiError
from .models import (
    ROLES,
    VIDEO_STATUSES,
    Artist,
    Download,
    LoginAttempt,
    Setting,
    User,
    UserSession,
    Video,
    name_key,
    sort_name,
)

EPOCH = datetime(2026, 1, 1, 12)
MUCH_LATER = datetime(2100, 1, 1)  # a sign of life that nobody misses
FILE_TIME = EPOCH.timestamp()

# username, password, role. Known to everybody: for trying out and for tests only.
DEMO_USERS = (
    ("admin", "Admin-pass-1", "admin"),
    ("manager", "Manager-pass-1", "manager"),
    ("user", "User-pass-1", "user"),
    ("readonly", "Readonly-pass-1", "readonly"),
    ("veteran", "Veteran-pass-1", "user"),  # hash made by Werkzeug
    ("former", "Former-pass-1", "user"),  # no longer active
)

SETTINGS = (
    # key, value, description, secret
    ("library_path", "library", "Where the videos are", False),
    ("preferred_quality", "1080p", "Quality asked for when downloading", False),
    ("max_concurrent_downloads", "3", "Downloads at the same time", False),
    ("auto_organize_downloads", "true", "Move finished downloads into the library", False),
    ("discovery_threshold", "60", "Match score from which a video is taken", False),
    ("youtube_api_key", "", "YouTube Data API v3", True),
    ("imvdb_api_key", "", "IMVDb", True),
    ("spotify_client_id", "", "Spotify", False),
    ("spotify_client_secret", "", "Spotify", True),
    ("lastfm_api_key", "", "Last.fm", True),
    ("schedule_enabled", "false", "Look for new videos every day", False),
    ("schedule_time", "03:00", "When", False),
)

# name, genres: what databases, file systems and browsers like to get wrong
SMALL_ARTISTS = (
    ("Björk", ["electronic", "art pop"]),
    ("The Beatles", ["rock", "pop"]),
    ("AC/DC", ["rock", "hard rock"]),
    ("椎名林檎", ["j-pop", "rock"]),
    ("Кино", ["post-punk"]),
    ("أم كلثوم", ["tarab"]),
    ("Sigur Rós", ["post-rock"]),
    ("Beyonce\u0301", ["pop", "r&b"]),  # decomposed
    ("100% Electronica", ["electronic"]),
    ("under_score", ["electronic", "a+b c"]),
    ("back\\slash", ["noise"]),
    ("'Quote' \"Double\"", ["rock"]),
    ("<script>alert(1)</script>", ["pop"]),
    ("Emoji 🎸 Band", ["rock", "🎸"]),
    ("A Tribe Called Quest", ["hip hop"]),
    ("!!!", ["dance-punk"]),
    ("Straße", ["Deutschrock"]),
    ("ABBA", ["pop", "Pop"]),
    ("Łąki Łan", ["funk"]),
    ("Daft Punk", ["electronic", "house"]),
    ("deadmau5", ["house", "electronic"]),
    ("Nobody", []),  # no videos
)


# --- rows --------------------------------------------------------------------------------------------------------


def small_library() -> dict:
    """Rows by model, the same every time."""
    artists = [artist_row(number, name, genres) for number, (name, genres) in enumerate(SMALL_ARTISTS, 1)]
    artists[1] |= {"imvdb_id": "beatles", "bio": "Four from Liverpool.", "quality": "720p"}
    artists[0] |= {"imvdb_id": "bjork", "thumbnail_path": "thumbnails/artists/1"}
    videos = [small_video(number, artists) for number in range(1, 61)]
    for number, extra in SMALL_FILES.items():
        videos[number - 1] |= extra
    downloads = [
        download_row(1, 2, "completed", progress=100, bytes_done=5_000_000_000, bytes_total=5_000_000_000),
        download_row(2, 7, "failed", progress=40, error_code="http_403", error_message="The server said no"),
        download_row(
            3, 8, "downloading", progress=55, active_video_id=8, speed=1_500_000, eta=90, updated_at=MUCH_LATER
        ),
        download_row(4, 8, "cancelled"),
    ]
    settings = [row | {"value": "0"} if row["key"] == "max_concurrent_downloads" else row for row in settings_rows()]
    return {Setting: settings, Artist: artists, Video: videos, Download: downloads}  # in which nothing moves by itself


# Videos of the small library that differ from the pattern, by id. What has a size here has a file, see write_files.
SMALL_FILES = {
    1: {
        "title": "Jóga",
        "file_path": "Björk/Björk - Jóga.mp4",
        "file_size": 100_000,
        "status": "DOWNLOADED",
        "thumbnail_path": "thumbnails/videos/1",
        "youtube_id": "loB0kmz_0MM",
        "imvdb_id": "joga-1",
        "directors": ["Michel Gondry"],
        "description": "Iceland from above.",
    },
    2: {"file_path": "The Beatles/clip.webm", "file_size": 4096, "status": "DOWNLOADED", "youtube_id": "beatles-001"},
    3: {"file_path": "AC_DC/AC_DC - Thunder.mkv", "file_size": 2048, "status": "DOWNLOADED"},
    4: {"file_path": "椎名林檎/missing.mp4", "file_size": 5_000_000_000, "status": "DOWNLOADED"},
    5: {"file_path": "../outside.mp4", "file_size": 1, "status": "DOWNLOADED"},
    6: {"title": '100% "Live" <b>\\o/</b> 🎸', "duration": None, "year": None, "quality": None},
    20: {"file_path": "Daft Punk/empty.mp4", "file_size": 0, "status": "DOWNLOADED"},
}


# Names of files that wait to be organized; the last ones never are.
WAITING = (
    "100% Electronica - 100% Live.mp4",
    "Beyonce\u0301 - De\u0301ja\u0300 Vu.mp4",  # decomposed
    "Björk - Hyperballad (Official Video) (1996) [1080p].mp4",
    "Björk - Jóga.mp4",  # there is one in the library
    "New Artist – Première [HD].webm",
    "Sigur Rós - " + "Ágætis byrjun " * 13 + ".mp4",
    "'Quote' _Double_ - 'Quote' _Double_ song 12.avi",  # one that is wanted, with letters that no file name has
    "abba - abba SONG 18.MKV",  # one that is wanted
    "no artist.mp4",
    "Daft_Punk_-_Around_the_World.mp4",
    "椎名林檎/丸ノ内サディスティック [aB3-_xYz012].webm",
    ".hidden - file.mp4",
    ".hidden/Kino - file.mp4",
    "Daft Punk - Piece.f137.mp4",
    "Kino - Unfinished.mp4.part",
    "Kino - Unfinished.mp4.ytdl",
    "Kino - Unfinished.tmp",
    "notes.txt",
)


def small_video(number: int, artists: list[dict]) -> dict:
    artist = artists[(number - 1) % (len(artists) - 1)]
    return video_row(
        number,
        artist["id"],
        f"{artist['name']} song {number}",
        VIDEO_STATUSES[number % len(VIDEO_STATUSES)],
        artist["genres"],
        year=1960 + number,
        duration=120 + 7 * number,
        quality=("480p", "720p", "1080p")[number % 3],
    )


def large_library(artists: int = 2000, videos: int = 20_000) -> dict:
    """Made-up names; the same every time."""
    chance = random.Random(1)
    first = "Silver Velvet Electric Midnight Golden Broken Neon Crystal Wild Paper Iron Lunar Crimson Hollow Distant".split()
    second = (
        "Foxes Rivers Parade Hearts Motel Tigers Machines Ghosts Summer Avenue Satellites Choir Wolves Gardens".split()
    )
    verbs = (
        "Dancing Falling Waiting Running Burning Dreaming Driving Calling Leaving Breathing Shining Drowning".split()
    )
    places = "in the Rain|on the Moon|after Midnight|without You|to the Sea|under Neon|all Alone|by the River".split(
        "|"
    )
    genres = "rock pop electronic house techno indie folk metal punk jazz soul funk disco ambient hip-hop r&b".split()
    artist_rows, video_rows = [], []
    for number in range(1, artists + 1):
        name = f"The {chance.choice(first)} {chance.choice(second)} {number}"
        artist_rows.append(artist_row(number, name, chance.sample(genres, chance.randint(1, 3))))
    for number in range(1, videos + 1):
        artist = artist_rows[int(artists * chance.random() ** 3)]  # a few have many, many have a few
        title = f"{chance.choice(verbs)} {chance.choice(places)}"
        status = chance.choices(VIDEO_STATUSES, (30, 1, 50, 6, 3, 10))[0]
        row = video_row(
            number,
            artist["id"],
            title,
            status,
            artist["genres"],
            year=chance.randint(1981, 2026),
            duration=chance.randint(120, 420),
            quality=chance.choice(("480p", "720p", "1080p", "2160p")),
            youtube_id=f"{number:011d}",
        )
        if status == "DOWNLOADED":
            file_name = safe_name(f"{artist['name']} - {title} {number}")
            row |= {"file_path": f"{artist['folder_path']}/{file_name}.mp4", "file_size": row["duration"] * 600_000}
        video_rows.append(row)
    return {Setting: settings_rows(), Artist: artist_rows, Video: video_rows}


def settings_rows() -> list[dict]:
    return [
        {"key": key, "value": value, "description": description, "is_secret": secret, "updated_at": EPOCH}
        for key, value, description, secret in SETTINGS
    ]


def artist_row(number: int, name: str, genres: list[str]) -> dict:
    created = EPOCH + timedelta(minutes=number, microseconds=number % 3 * 1001)
    return {
        "id": number,
        "name": name,
        "name_key": name_key(name),
        "sort_name": sort_name(name),
        "imvdb_id": None,
        "bio": None,
        "genres": genres,
        "monitored": number % 3 != 0,
        "auto_download": number % 5 == 0,
        "quality": None,
        "folder_path": safe_name(name),
        "thumbnail_path": None,
        "created_at": created,
        "updated_at": created + timedelta(hours=1),
    }


def video_row(number: int, artist_id: int, title: str, status: str, genres: list[str], **more) -> dict:
    created = EPOCH + timedelta(minutes=7 * number, microseconds=number % 4 * 250_001)
    return {
        "id": number,
        "artist_id": artist_id,
        "title": title,
        "status": status,
        "youtube_id": None,
        "imvdb_id": None,
        "url": None,
        "description": None,
        "directors": [],
        "genres": genres,
        "file_path": None,
        "file_size": None,
        "thumbnail_path": None,
        "created_at": created,
        "updated_at": created,
    } | more


def download_row(number: int, video_id: int, status: str, **more) -> dict:
    created = EPOCH + timedelta(days=1, minutes=number)
    empty = dict.fromkeys(("active_video_id", "bytes_total", "speed", "eta", "error_code", "error_message"))
    return {
        "id": number,
        "video_id": video_id,
        "status": status,
        "progress": 0,
        "bytes_done": 0,
        "created_at": created,
        "updated_at": created,
    } | (empty | more)


def demo_users(rounds: int) -> list[dict]:
    """The salts are fixed, so that the rows are the same every time."""
    rows = []
    for number, (username, password, role) in enumerate(DEMO_USERS, 1):
        salt = f"$2b${rounds:02d}$abcdefghijklmnopqrstu{'.Oeu'[number % 4]}"
        hashed = bcrypt.hashpw(password.encode(), salt.encode()).decode()
        if username == "veteran":
            digest = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 1000).hex()
            hashed = f"pbkdf2:sha256:1000$salt${digest}"
        rows.append(
            {
                "id": number,
                "username": username,
                "email": f"{username}@music.test",
                "password_hash": hashed,
                "role": role,
                "is_active": username != "former",
                "preferences": {"theme": "dark"} if username == "user" else {},
                "created_at": EPOCH,
                "updated_at": EPOCH,
            }
        )
    return rows


# --- files of the small library ----------------------------------------------------------------------------------


def write_files(library: Path, data: Path) -> None:
    """Something to stream and to show. The videos are noise: long enough for ranges, not meant to be watched."""
    for number in (1, 2, 3, 20):
        row = SMALL_FILES[number]
        write_file(library / row["file_path"], random.Random(number).randbytes(row["file_size"]))
    for folder, colour in ((data / "thumbnails/artists/1", "navy"), (data / "thumbnails/videos/1", "teal")):
        folder.mkdir(parents=True, exist_ok=True)
        for size, pixels in thumbnails.SIZES.items():
            path = folder / f"{size}.jpg"
            thumbnails.write_jpeg(Image.new("RGB", (pixels or 800, (pixels or 800) // 2), colour), path)
            os.utime(path, (FILE_TIME, FILE_TIME))


def write_waiting(downloads: Path) -> None:
    for number, name in enumerate(WAITING, 100):
        write_file(downloads / name, random.Random(number).randbytes(10 * number))


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (FILE_TIME, FILE_TIME))


# --- commands ----------------------------------------------------------------------------------------------------


def seed(app: Flask, size: str = "large", demo: bool = False) -> str:
    """Fill an empty database; says what it did. Raises StartupError when there is something already."""
    with app.app_context():
        for model in (Artist, User) if demo else (Artist,):
            if get_session().scalar(select(func.count(model.id))):
                raise StartupError(f"There are {model.__tablename__} already: nothing was changed")
        rows = small_library() if size == "small" else large_library()
        with transaction() as db:
            present = set(db.scalars(select(Setting.key)))
            rows[Setting] = [row for row in rows[Setting] if row["key"] not in present]
            if demo:
                rows = {User: demo_users(app.config["BCRYPT_ROUNDS"]), **rows}
            for model, values in rows.items():
                if values:
                    db.execute(insert(model.__table__), values)
        if size == "small":
            write_files(app.config["LIBRARY_PATH"], app.config["DATA_PATH"])
            write_waiting(app.config["DOWNLOADS_PATH"])
    return f"{len(rows[Artist])} artists and {len(rows[Video])} videos"


def set_admin(app: Flask, username: str, password: str) -> str:
    """Make the administrator, or give an existing account this password, the role and its freedom."""
    username = username.strip().lower()
    with app.app_context():
        missing = passwords.problems(password)
        if missing:
            raise StartupError(f"The password needs: {', '.join(missing)}")
        hashed = passwords.hash_password(password)
        with transaction() as db:
            user = db.scalar(select(User).where(User.username == username))
            if user is None:
                db.add(User(username=username, password_hash=hashed, role="admin"))
            else:
                user.password_hash, user.role, user.is_active = hashed, "admin", True
                revoke(db, UserSession.user_id == user.id)
            db.execute(delete(LoginAttempt).where(LoginAttempt.key == f"user:{username}"))
    return f"{username} is an administrator"


def ask_password() -> str:
    password = os.environ.get("ADMIN_PASSWORD")
    if password:
        return password
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Again: "):
        raise StartupError("The two passwords differ")
    return password


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m legacy_flask.seed", description="Fill the library.")
    parser.add_argument("--size", choices=("small", "large"), default="large")
    parser.add_argument("--demo", action="store_true", help="also a user of every role; their passwords are printed")
    parser.add_argument("--services", metavar="URL", help="a small library from these services, and the same users")
    parser.add_argument("--admin", metavar="NAME", help="only make this administrator")
    options = parser.parse_args()
    try:
        app = create_app()
        if options.admin:
            print(set_admin(app, options.admin, ask_password()))
            return 0
        if options.services:
            from .demo import fill  # which is built from this module

            print(fill(app, options.services))
        else:
            print(seed(app, options.size, options.demo))
        if options.demo or options.services:
            users = DEMO_USERS[: len(ROLES)] if options.services else DEMO_USERS
            print("\n".join(f"{username} / {password}  ({role})" for username, password, role in users))
    except (StartupError, ApiError) as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
