"""Health."""

from .case import read

NOW = ("$.timestamp",)

CASES = [
    read("system.health", "anonymous", "/api/health", user="anonymous", mask=NOW),
    read("system.health", "signed-in", "/api/health", user="user", mask=NOW, wire="W32"),
    read("system.health", "slash", "/api/health/", 404, user="anonymous", wire="W1"),
    read("system.health_status", "anonymous", "/api/health/status", user="anonymous", mask=NOW),
]
