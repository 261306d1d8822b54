"""A self-hosted music-video manager.

flask --app legacy_flask run
gunicorn 'legacy_flask:create_app()'
"""

import os
import secrets
import shlex
from datetime import timedelta
from pathlib import Path

from flask import Flask

from . import (
    artists,
    auth,
    db,
    discovery,
    downloader,
    downloads,
    http,
    job_routes,
    library,
    logs,
    outbox,
    pages,
    playlists,
    scheduler,
)
from . import spotify, system, transcoding, upstreams, users, videos, webhooks  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
BLUEPRINTS = (
    auth.bp,
    users.bp,
    artists.bp,
    videos.bp,
    discovery.bp,
    spotify.bp,
    playlists.bp,
    library.bp,
    scheduler.bp,  # the one of settings, with two more rules
    webhooks.bp,
    system.bp,
    downloads.bp,
    job_routes.bp,
    pages.bp,
)


def create_app(config: dict | None = None) -> Flask:
    """`config` wins over the environment. Raises StartupError with one sentence when the application cannot run."""
    app = Flask(__name__, static_folder=None)
    app.config.from_mapping(defaults(), **(config or {}))
    data, library_root = Path(app.config["DATA_PATH"]).resolve(), Path(app.config["LIBRARY_PATH"]).resolve()
    downloads = Path(app.config["DOWNLOADS_PATH"] or data / "downloads").resolve()
    for folder in (data, library_root, downloads):
        make_folder(folder)
    app.config.update(DATA_PATH=data, LIBRARY_PATH=library_root, DOWNLOADS_PATH=downloads)
    app.config["DATABASE_URL"] = app.config["DATABASE_URL"] or f"sqlite:///{data / 'app.sqlite3'}"
    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or stored_secret(data / "secret_key")
    if any(len(key) < 32 for key in (app.config["SECRET_KEY"], *app.config["SECRET_KEY_FALLBACKS"])):
        raise db.StartupError("SECRET_KEY is too short: at least 32 characters")
    app.config["RESTART_COMMAND"] = words(app.config["RESTART_COMMAND"])
    logs.init_app(app)
    http.init_app(app)
    db.init_app(app)
    upstreams.init_app(app)
    outbox.init_app(app)
    scheduler.init_app(app)
    downloader.init_app(app)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    return app


def defaults() -> dict:
    return {
        "DATABASE_URL": os.environ.get("DATABASE_URL", ""),
        "SECRET_KEY": os.environ.get("SECRET_KEY", ""),
        "SECRET_KEY_FALLBACKS": os.environ.get("SECRET_KEY_FALLBACKS", "").replace(",", " ").split(),  # earlier ones
        "DATA_PATH": os.environ.get("DATA_PATH") or ROOT / "data",
        "LIBRARY_PATH": os.environ.get("LIBRARY_PATH") or ROOT / "library",
        "DOWNLOADS_PATH": os.environ.get("DOWNLOADS_PATH", ""),  # where files wait to be organized
        "REDIS_URL": os.environ.get("REDIS_URL", ""),
        "FFMPEG": os.environ.get("FFMPEG") or "ffmpeg",
        "FFPROBE": os.environ.get("FFPROBE") or "ffprobe",
        "DOWNLOAD_BACKOFF_S": float(os.environ.get("DOWNLOAD_BACKOFF_S") or 10),  # before the first repetition
        "LOG_FILE": os.environ.get("LOG_FILE", ""),
        "SERVICE_UNIT": os.environ.get("SERVICE_UNIT", ""),  # of systemd, which runs us
        "RESTART_COMMAND": os.environ.get("RESTART_COMMAND", ""),  # words as in a shell, but there is none
        "ALLOWED_NETWORKS": os.environ.get("ALLOWED_NETWORKS", ""),  # private ones that we may fetch from, by commas
        "UPSTREAM_TIMEOUT_S": float(os.environ.get("UPSTREAM_TIMEOUT_S") or 10),
        "UPSTREAM_BACKOFF_S": float(os.environ.get("UPSTREAM_BACKOFF_S") or 0.5),  # before the first repetition
        "SHADOW": bool(os.environ.get("GATEWAY_SHADOW")),  # a process that only repeats requests: it begins nothing
        "BCRYPT_ROUNDS": int(os.environ.get("BCRYPT_ROUNDS") or 12),
        "MAX_CONTENT_LENGTH": 11 * 1024 * 1024,  # an upload of 10 MB and its envelope
        "SESSION_COOKIE_NAME": "mv_session",
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": os.environ.get("SESSION_COOKIE_SECURE", "").lower() in ("1", "true", "yes"),
        "PERMANENT_SESSION_LIFETIME": timedelta(hours=24),
    }


def words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        raise db.StartupError("RESTART_COMMAND is no command: a quote is not closed") from None


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise db.StartupError(f"The folder {folder} cannot be used: {error.strerror}") from None


def stored_secret(path: Path) -> str:
    """A random key, made at the first start and readable by its owner only."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # unlike a rename, it never replaces the key of a worker that was quicker
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()
