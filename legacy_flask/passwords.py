"""Password hashes and what a good password needs."""

import bcrypt
from flask import current_app
from werkzeug.security import check_password_hash

MAX_BYTES = 72  # bcrypt reads no further

COMMON = {
    "abcd123!", "admin@123", "admin123!", "changeme1!", "letmein1!", "p@ssw0rd", "p@ssw0rd1", "p@ssword1", "passw0rd!",
    "password1!", "password123!", "qwerty1!", "qwerty123!", "summer2024!", "welcome1!", "welcome123!", "winter2024!",
}  # fmt: skip


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


def hash_password(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(current_app.config["BCRYPT_ROUNDS"])).decode()


def verify(password: str, password_hash: str | None) -> bool:
    """Whether the password is right. Without a hash (no such user) it takes as long as a wrong one."""
    if password_hash is None:
        password_hash = bcrypt.gensalt(current_app.config["BCRYPT_ROUNDS"]).decode() + "." * 31
    if is_old(password_hash):
        return check_password_hash(password_hash, password)
    return bcrypt.checkpw(password.encode(), password_hash.encode())


def is_old(password_hash: str) -> bool:
    """Made before bcrypt, by Werkzeug: replaced when its owner signs in."""
    return not password_hash.startswith("$2")
