"""What the environment says: where things are and which secret signs.

DATABASE_URL, DATABASE_POOL_SIZE, DATABASE_MAX_OVERFLOW, SECRET_KEY, SECRET_KEY_FALLBACKS, DATA_PATH, LIBRARY_PATH,
DOWNLOADS_PATH, REDIS_URL, FFMPEG, FFPROBE, DOWNLOAD_BACKOFF_S, JOB_STALE_S, BCRYPT_ROUNDS, SESSION_COOKIE_SECURE,
ALLOWED_NETWORKS, UPSTREAM_TIMEOUT_S, UPSTREAM_BACKOFF_S, UPSTREAM_CONNECTIONS, UPSTREAM_HTTP2, LOG_FILE, SERVICE_UNIT,
RESTART_COMMAND, GATEWAY_SHADOW.
"""

import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_SECRET_LENGTH = 32


class StartupError(SystemExit):
    """The application cannot start; the process ends with one sentence for a person and no traceback."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths are absolute and exist."""

    database_url: str
    secret_key: str
    data_path: Path
    library_path: Path
    downloads_path: Path  # where files wait to be organized
    log_file: Path
    database_pool_size: int = 10
    database_max_overflow: int = 20
    secret_key_fallbacks: tuple[str, ...] = ()  # verify what an earlier SECRET_KEY has signed
    redis_url: str = ""
    ffmpeg: str = "ffmpeg"
    ffprobe: str = "ffprobe"
    job_stale_s: float = 60.0  # without a sign of life, then somebody else does it
    download_backoff_s: float = 10.0  # before the first repetition
    service_unit: str = ""  # of systemd, which runs us
    restart_command: tuple[str, ...] = ()
    bcrypt_rounds: int = 12
    secure_cookies: bool = False  # as behind TLS
    allowed_networks: str = ""  # private ones that we may fetch from, by commas: "10.1.0.0/16, 127.0.0.1"
    upstream_timeout_s: float = 10.0
    upstream_backoff_s: float = 0.5  # before the first repetition
    upstream_connections: int = 100  # calls at once
    upstream_http2: tuple[str, ...] = ()  # origins that need it: "https://api.example.com"
    shadow: bool = False  # this process only repeats requests, to compare the answers: it begins nothing by itself

    @classmethod
    def load(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        """Raises StartupError for a folder that cannot be used, a short secret, a number that is none."""
        data = _folder(env.get("DATA_PATH") or ROOT / "data")
        library = _folder(env.get("LIBRARY_PATH") or ROOT / "library")
        secret_key = env.get("SECRET_KEY") or _stored_secret(data / "secret_key")
        fallbacks = tuple(env.get("SECRET_KEY_FALLBACKS", "").replace(",", " ").split())
        if min(map(len, (secret_key, *fallbacks))) < MIN_SECRET_LENGTH:
            raise StartupError(f"SECRET_KEY is too short: at least {MIN_SECRET_LENGTH} characters")
        try:
            timeout_s, backoff_s, download_backoff_s, job_stale_s = (
                float(env.get(name) or default)
                for name, default in (
                    ("UPSTREAM_TIMEOUT_S", 10),
                    ("UPSTREAM_BACKOFF_S", 0.5),
                    ("DOWNLOAD_BACKOFF_S", 10),
                    ("JOB_STALE_S", 60),
                )
            )
        except ValueError:
            names = "UPSTREAM_TIMEOUT_S, UPSTREAM_BACKOFF_S, DOWNLOAD_BACKOFF_S, JOB_STALE_S"
            raise StartupError(f"{names} must be seconds") from None
        return cls(
            database_url=env.get("DATABASE_URL") or f"sqlite:///{data / 'app.sqlite3'}",
            secret_key=secret_key,
            data_path=data,
            library_path=library,
            database_pool_size=_whole(env, "DATABASE_POOL_SIZE", 10),
            database_max_overflow=_whole(env, "DATABASE_MAX_OVERFLOW", 20, above=-1),
            secret_key_fallbacks=fallbacks,
            downloads_path=_folder(env.get("DOWNLOADS_PATH") or data / "downloads"),
            redis_url=env.get("REDIS_URL", ""),
            ffmpeg=env.get("FFMPEG") or "ffmpeg",
            ffprobe=env.get("FFPROBE") or "ffprobe",
            download_backoff_s=download_backoff_s,
            job_stale_s=job_stale_s,
            log_file=Path(env.get("LOG_FILE") or data / "app.log").resolve(),
            service_unit=env.get("SERVICE_UNIT", ""),
            restart_command=_words(env.get("RESTART_COMMAND", "")),
            bcrypt_rounds=_whole(env, "BCRYPT_ROUNDS", 12),
            secure_cookies=env.get("SESSION_COOKIE_SECURE", "").lower() in ("1", "true", "yes"),
            allowed_networks=env.get("ALLOWED_NETWORKS", ""),
            upstream_timeout_s=timeout_s,
            upstream_backoff_s=backoff_s,
            upstream_connections=_whole(env, "UPSTREAM_CONNECTIONS", 100),
            upstream_http2=tuple(env.get("UPSTREAM_HTTP2", "").replace(",", " ").split()),
            shadow=bool(env.get("GATEWAY_SHADOW")),
        )


def _whole(env: Mapping[str, str], name: str, default: int, *, above: int = 0) -> int:
    value = env.get(name) or str(default)
    if not (value.isdecimal() and int(value) > above):
        raise StartupError(f"{name} must be a whole number above {above}")
    return int(value)


def _words(command: str) -> tuple[str, ...]:
    """As a shell would split them; there is none."""
    try:
        return tuple(shlex.split(command))
    except ValueError:
        raise StartupError("RESTART_COMMAND is no command: a quote is not closed") from None


def _folder(path: str | Path) -> Path:
    folder = Path(path).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"The folder {folder} cannot be used: {error.strerror}") from None
    return folder


def _stored_secret(path: Path) -> str:
    """A random key, made at the first start and readable by its owner only."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        fresh.touch(mode=0o600, exist_ok=False)
        fresh.write_text(secrets.token_hex(32))
        try:
            path.hardlink_to(fresh)  # unlike a rename, it never replaces the key of a worker that was quicker
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()
