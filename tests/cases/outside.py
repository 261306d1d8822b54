"""Services on the internet: how they fail, what a client sees of it, and the settings with which they are asked."""

from collections.abc import Iterator, Mapping
from typing import Any

LISTENING = (  # somebody who wants to be told everything
    (
        "INSERT INTO webhooks (id, url, events, is_active, created_at, updated_at)"
        " VALUES (1, '{upstream}/hooks/all', '[\"*\"]', 1, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
    ),
)
SOME = ("down", "401", "429-wait", "malformed")  # ways to fail of a route that asks like another


def setting(key: str, value: str) -> tuple[str, ...]:
    """Statements that store it."""
    return (
        f"DELETE FROM settings WHERE `key` = '{key}'",
        f"INSERT INTO settings (`key`, value, updated_at) VALUES ('{key}', '{value}', CURRENT_TIMESTAMP)",
    )


def failures(service: str, *some: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Name, status and dials: how a service can fail, and what a client sees. All of it, or some by their names."""
    for name, status, dials in (
        ("down", 502, {"down": True}),
        ("500", 502, {"status": 500}),
        ("503-wait", 502, {"status": 503, "retry_after": 30}),
        ("418", 502, {"status": 418}),
        ("204", 502, {"status": 204}),
        ("401", 400, {"status": 401}),
        ("403", 400, {"status": 403}),
        ("429", 429, {"status": 429}),
        ("429-wait", 429, {"status": 429, "retry_after": 77}),
        ("429-wait-for-ever", 429, {"status": 429, "retry_after": 10**9}),
        ("429-wait-nonsense", 429, {"status": 429, "retry_after": "soon"}),
        ("malformed", 502, {"malformed": True}),
        ("empty-body", 502, {"empty": True}),
        ("wrong-shape", 502, {"wrong_shape": True}),
        ("huge-body", 502, {"huge_body": True}),
        ("redirect-private", 502, {"redirect": "http://10.0.0.1/"}),
        ("redirect-metadata", 502, {"redirect": "http://169.254.169.254/latest/meta-data/"}),
        ("redirect-file", 502, {"redirect": "file:///etc/passwd"}),
    ):
        if not some or name in some:
            yield f"{service}-{name}", status, {service: dials}


def recovers(service: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and dials of what a client does not notice."""
    yield f"{service}-fails-once", {service: {"fail_first": 1}}
    yield f"{service}-fails-twice", {service: {"fail_first": 2}}
    yield f"{service}-busy-once", {service: {"fail_first": 1, "status": 429, "retry_after": 0}}
    yield f"{service}-late", {service: {"latency_s": 0.1}}
    yield f"{service}-slow-body", {service: {"slow_body_s": 0.1}}


def keys(service: str, *some: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and statements: keys with which nobody is let in. All of them, or some by their names."""
    for name, key in (
        ("missing", ""),
        ("blank", "  "),
        ("wrong", "wrong"),
        ("non-ascii", "clé"),
        ("lines", "a\r\nb: c"),
    ):
        if not some or name in some:
            yield f"{service}-key-{name}", setting(f"{service}_api_key", key)
