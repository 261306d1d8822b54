"""Secret keys: which are refused, and the gateway's own."""

import logging
import os
import re
import secrets
from pathlib import Path

from .errors import ConfigError
from .settings import Settings

log = logging.getLogger("gateway")

MIN_BYTES = 32

_PHRASES = re.compile(
    rb"change[-_ ]?(me|this|it|in)|your[-_ ]?(\w{0,12}[-_ ]?)?(secret|key)|secret[-_ ]?key|default[-_ ]?(secret|key)|"
    rb"(my|super|top|very|dev|test|app|flask|jwt)[-_ ]?secret|not[-_ ]?(so[-_ ]?)?secret|a-string-secret|insecure|"
    rb"placeholder|password|example|012345678|123456789|abcdefgh|qwertyui|never-guess|hard[-_ ]to[-_ ]guess",
    re.IGNORECASE,
)
_PUBLISHED = (
    b"192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",  # Flask's documentation
    b"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",  # FastAPI's documentation
)


def refuse_weak(key: bytes, name: str) -> None:
    """Raises ConfigError, without the key, when it is short, published, or hardly random."""
    if len(key) < MIN_BYTES:
        problem = f"is shorter than {MIN_BYTES} bytes"
    elif key in _PUBLISHED or _PHRASES.search(key):
        problem = "is a well-known example"
    elif len(set(key)) < 8 or (key + key).find(key, 1) < len(key):
        problem = "is a repetition"
    else:
        return
    advice = "python3 -c 'import secrets; print(secrets.token_hex(32))' prints a good one"
    raise ConfigError(f"{name} {problem}: anybody could forge what it signs; {advice}")


def own_secret(settings: Settings) -> bytes:
    """The key of the gateway's own cookie: as configured, else made once and kept in the state directory.

    Where nothing can be kept there it is made for this run, which is logged. Raises ConfigError when the configured
    key is weak or the one that is kept is damaged.
    """
    if settings.secret_key:
        key = settings.secret_key.encode()
        refuse_weak(key, "GATEWAY_SECRET_KEY")
        return key
    path = settings.state_dir / "secret_key"
    try:
        if not path.exists():
            _create_once(path, _random_key())
        key = path.read_bytes().strip()
    except OSError as error:
        lost = "anonymous callers are not recognised after a restart; set GATEWAY_SECRET_KEY"
        log.warning("%s: %s: %s", path, error.strerror, lost)
        return _random_key()
    if not re.fullmatch(rb"[0-9a-f]{64}", key):
        raise ConfigError(f"{path}: not a key that was made here; delete it and a new one is made")
    return key


def _random_key() -> bytes:
    return secrets.token_hex(32).encode()


def _create_once(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that appears whole; of several workers the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
