"""Keys that others can guess are refused; the gateway's own is made once."""

import secrets
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from gateway.errors import ConfigError
from gateway.identity import IdentityBridge, own_secret
from gateway.settings import Settings
from tests.support.browser import IDENTITY, KEY, OWN, SETTINGS, FileSessions, legacy_app

WEAK = [
    "",
    "dev",
    "secret",
    "short but random 8f3k2",
    "k" * 64,
    "ab" * 32,
    "battery-staple-9" * 3,
    "your-secret-key-change-in-production",
    "super-secret-key-that-nobody-will-ever-find-out",
    "django-insecure-8f3k2j4h5k6j7h8g9f0d1s2a3q4w5e6r",
    "a-string-secret-at-least-256-bits-long",
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    b"09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
]


@pytest.mark.parametrize("key", WEAK)
def test_a_key_that_others_can_guess_refuses_to_start_and_is_not_printed(key: str | bytes) -> None:
    app = legacy_app()
    app.secret_key = key
    with pytest.raises(ConfigError) as refused:
        IdentityBridge(app, SETTINGS, OWN)
    assert "SECRET_KEY" in str(refused.value)
    assert len(key) < 8 or str(key) not in str(refused.value)
    IdentityBridge(app, Settings(), OWN)


def test_a_guessable_key_is_refused_wherever_it_signs() -> None:
    app = legacy_app(SECRET_KEY_FALLBACKS=["dev"])
    with pytest.raises(ConfigError, match="SECRET_KEY_FALLBACKS is shorter"):
        IdentityBridge(app, SETTINGS, OWN)
    with pytest.raises(ConfigError, match="GATEWAY_IDENTITY_KEY is shorter"):
        IdentityBridge(legacy_app(), Settings(identity=replace(IDENTITY, key="dev")), OWN)
    pem = f"-----BEGIN PUBLIC KEY-----\n{secrets.token_hex(32)}\n-----END PUBLIC KEY-----\n"
    with pytest.raises(ConfigError, match="cannot be used for HS256"):
        IdentityBridge(legacy_app(), Settings(identity=replace(IDENTITY, key=pem)), OWN)


@pytest.mark.parametrize("make", [secrets.token_hex, secrets.token_urlsafe, secrets.token_bytes, lambda n: KEY])
def test_a_random_key_starts(make: Callable[[int], Any]) -> None:
    app = Flask("legacy")
    for _ in range(100):
        app.secret_key = make(32)
        assert IdentityBridge(app, SETTINGS, OWN).active


def test_server_side_sessions_may_go_without_a_secret_key(tmp_path: Path) -> None:
    app = legacy_app()
    app.secret_key = None
    with pytest.raises(ConfigError, match="no SECRET_KEY"):
        IdentityBridge(app, Settings(identity=replace(IDENTITY, key=KEY)), OWN)
    app.session_interface = FileSessions(tmp_path)
    with pytest.raises(ConfigError, match="no SECRET_KEY"):
        IdentityBridge(app, SETTINGS, OWN)
    IdentityBridge(app, Settings(identity=replace(IDENTITY, key=KEY)), OWN)


# --- the gateway's own -------------------------------------------------------------------------------------------


def test_the_own_secret_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    settings = Settings(state=str(state))
    first = own_secret(settings)
    assert (64, first) == (len(first), own_secret(settings))
    assert ["secret_key"] == [path.name for path in state.iterdir()]
    assert 0o600 == stat.S_IMODE((state / "secret_key").stat().st_mode)


def test_workers_that_start_together_agree_on_the_secret(tmp_path: Path) -> None:
    for attempt in range(20):
        settings = Settings(state=str(tmp_path / str(attempt)))
        with ThreadPoolExecutor(8) as workers:
            found = set(workers.map(own_secret, [settings] * 8))
        assert 1 == len(found)


def test_a_configured_secret_is_used_and_leaves_no_file(tmp_path: Path) -> None:
    settings = Settings(state=str(tmp_path / "state"), secret_key=KEY)
    assert KEY.encode() == own_secret(settings)
    assert [] == list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="GATEWAY_SECRET_KEY is shorter"):
        own_secret(Settings(secret_key="dev"))


def test_where_none_can_be_kept_one_is_made_for_this_run_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("no directory")
    made = own_secret(Settings(state=str(tmp_path / "state"))).decode()
    assert ["WARNING"] == [record.levelname for record in caplog.records if record.name == "gateway"]
    assert ("set GATEWAY_SECRET_KEY" in caplog.text, made in caplog.text) == (True, False)
    assert made == own_secret(Settings(secret_key=made)).decode()


def test_a_damaged_secret_says_what_to_do(tmp_path: Path) -> None:
    for damaged in (b"half", b"\xff" * 64, b""):
        (tmp_path / "secret_key").write_bytes(damaged)
        with pytest.raises(ConfigError, match="delete it"):
            own_secret(Settings(state=str(tmp_path)))
