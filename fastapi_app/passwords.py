"""Password hashes and what a good password needs. Hashing takes a third of a second: it runs in few threads."""

import hashlib
import hmac
import os

import bcrypt
from anyio import CapacityLimiter, to_thread

MAX_BYTES = 72  # bcrypt reads no further

COMMON = {
    "abcd123!", "admin@123", "admin123!", "changeme1!", "letmein1!", "p@ssw0rd", "p@ssw0rd1", "p@ssword1", "passw0rd!",
    "password1!", "password123!", "qwerty1!", "qwerty123!", "summer2024!", "welcome1!", "welcome123!", "winter2024!",
}  # fmt: skip

_cores = CapacityLimiter(os.cpu_count() or 1)  # more would only take turns


def problems(password: str) -> list[str]:
    """What is wrong with a new password; nothing when it may be used."""
    checks = (
        ("at least 8 characters", len(password) >= 8),
        ("at most 72 bytes", not too_long(password)),
        ("a lower-case letter", any(char.islower() for char in password)),
        ("an upper-case letter", any(char.isupper() for char in password)),
        ("a digit", any(char.isdigit() for char in password)),
        ("a special character", any(not char.isalnum() for char in password)),
        ("not a common password", password.casefold() not in COMMON),
    )
    return [sentence for sentence, fulfilled in checks if not fulfilled]


def too_long(password: str) -> bool:
    return len(password.encode()) > MAX_BYTES


async def hash_password(password: str, rounds: int) -> str:
    hashed = await to_thread.run_sync(lambda: bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)), limiter=_cores)
    return hashed.decode()


async def verify(password: str, password_hash: str | None, rounds: int) -> bool:
    """Whether the password is right. Without a hash (no such user) it takes as long as a wrong one."""
    if password_hash is None:
        password_hash = bcrypt.gensalt(rounds).decode() + "." * 31
    check = _check_old if is_old(password_hash) else _check
    return await to_thread.run_sync(check, password, password_hash, limiter=_cores)


def statistics() -> dict[str, float]:
    """Hashes in the making, and those that wait for a core."""
    now = _cores.statistics()
    return {"running": now.borrowed_tokens, "waiting": now.tasks_waiting}


def is_old(password_hash: str) -> bool:
    """Made before bcrypt, by Werkzeug: replaced when its owner signs in."""
    return not password_hash.startswith("$2")


def _check(password: str, password_hash: str) -> bool:
    return bcrypt.checkpw(password.encode(), password_hash.encode())


def _check_old(password: str, password_hash: str) -> bool:
    """A hash such as `scrypt:32768:8:1$salt$hex` or `pbkdf2:sha256:600000$salt$hex`. Raises ValueError for others."""
    try:
        method, salt, expected = password_hash.split("$", 2)
    except ValueError:
        return False
    kind, *parameters = method.split(":")
    secret, seasoning = password.encode(), salt.encode()
    if kind == "scrypt":
        n, r, p = map(int, parameters or (2**15, 8, 1))
        found = hashlib.scrypt(secret, salt=seasoning, n=n, r=r, p=p, maxmem=132 * n * r * p)
    elif kind == "pbkdf2":
        digest, iterations = [*parameters, *("sha256", "1000000")[len(parameters) :]]
        found = hashlib.pbkdf2_hmac(digest, secret, seasoning, int(iterations))
    else:
        raise ValueError(f"no such method of hashing: {kind}")
    return hmac.compare_digest(found.hex(), expected)
