"""Where settings come from, and what is said when one is wrong."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.settings import Settings


def load(root: Path, toml: str = "", env: dict[str, str] | None = None, **given: object) -> Settings:
    (root / "pyproject.toml").write_text(toml)
    return Settings.load(given, env=env or {}, root=root)


def test_a_plain_application_starts_with_no_configuration_at_all(tmp_path: Path) -> None:
    settings = Settings.load({"legacy": "app:app"}, env={}, root=tmp_path)
    assert ("app:app", "", "", "native", 8000) == (
        settings.legacy, settings.fastapi, settings.flags, settings.bridge, settings.port,
    )  # fmt: skip
    assert not settings.identity.claims


def test_the_command_line_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    toml = "[tool.gateway]\nport = 1\nthreads = 1\nworkers = 1\n"
    settings = load(tmp_path, toml, {"GATEWAY_PORT": "2", "GATEWAY_THREADS": "2"}, port=3, host=None)
    assert (3, 2, 1, "127.0.0.1") == (settings.port, settings.threads, settings.workers, settings.host)


def test_identity_and_lists_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    toml = '[tool.gateway]\nstream_request = ["a.b"]\n[tool.gateway.identity]\nclaims = {user_id = "sub"}\n'
    settings = load(tmp_path, toml)
    assert (("a.b",), {"user_id": "sub"}) == (settings.stream_request, settings.identity.claims)
    settings = load(tmp_path, toml, {"GATEWAY_STREAM_REQUEST": "x, y", "GATEWAY_IDENTITY_CLAIMS": "uid=sub,t=sid"})
    assert (("x", "y"), {"uid": "sub", "t": "sid"}) == (settings.stream_request, settings.identity.claims)


@pytest.mark.parametrize(
    ("toml", "env", "says"),
    [
        ("[tool.gateway]\nthread = 4", {}, "unknown key 'thread'; did you mean 'threads'?"),
        ("[tool.gateway.identity]\nclaim = {}", {}, "[tool.gateway.identity]: unknown key 'claim'; did you mean"),
        ('[tool.gateway]\nthreads = "4x"', {}, "threads: expected a whole number, not '4x'"),
        ("[tool.gateway]\nthreads = true", {}, "threads: expected a whole number, not True"),
        ("[tool.gateway]\nlegacy = 3", {}, "legacy: expected text, not 3"),
        ("[tool.gateway]\nstream_request = [1]", {}, "stream_request: expected a list or table of texts"),
        ('[tool.gateway]\nbridge = "asgiref"', {}, "bridge: expected native or a2wsgi, not 'asgiref'"),
        ("[tool.gateway\n", {}, "pyproject.toml: "),
        ("", {"GATEWAY_PORT": "http"}, "GATEWAY_PORT: expected a whole number, not 'http'"),
        ("", {"GATEWAY_SERVED_BY": "maybe"}, "GATEWAY_SERVED_BY: expected true or false, not 'maybe'"),
        ("", {"GATEWAY_IDENTITY_CLAIMS": "sub"}, "GATEWAY_IDENTITY_CLAIMS: expected name=value,name=value"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_its_place(
    tmp_path: Path, toml: str, env: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml, env)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_settings_cannot_change_after_start(tmp_path: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        load(tmp_path).port = 1  # type: ignore[misc]
