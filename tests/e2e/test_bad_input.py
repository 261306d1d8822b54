"""Wrong input: one clear message, exit code 2, no traceback, nothing changed on disk."""

import socket
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.serving import flag_file, gateway

LEGACY, PORT = "tests.support.pair:make_legacy", "tests.support.pair:make_port"
FLAGS = {
    "a wrong flag file": ("version: 1\nroutes: {", "flags.yaml:2"),
    "an unknown key with the nearest": (flag_file("who: 1", "only-legaci: 0"), "flags.yaml:5 only-legaci only_legacy"),
    "an unknown field with the nearest": (flag_file("who: {wait: 5}"), "flags.yaml:4 wait weight"),
    "a weight above 100": (flag_file("who: 101"), "flags.yaml:4 who 101 100"),
    "a negative weight": (flag_file("who: -1"), "flags.yaml:4 who -1"),
    "a weight that is no number": (flag_file("who: much"), "flags.yaml:4 who much"),
    "a duplicate YAML key": (flag_file("who: 0", "who: 100"), "flags.yaml:5 who"),
    "an unknown override": (flag_file(override="flask"), "flags.yaml:2 override flask"),
    "another version": ("version: 7\n", "flags.yaml:1 version"),
}
SETTINGS = {
    "no legacy": ({"GATEWAY_LEGACY": ""}, "--legacy"),
    "a module that does not exist": ({"GATEWAY_LEGACY": "nowhere:app"}, "legacy nowhere"),
    "an attribute that does not exist": ({"GATEWAY_LEGACY": "tests.support.pair:nothing"}, "legacy nothing"),
    "no import string": ({"GATEWAY_FASTAPI": "tests.support.pair"}, "fastapi tests.support.pair module:"),
    "a factory that raises": (
        {"GATEWAY_LEGACY": "tests.support.pair:raising_factory"},
        "legacy raising_factory RuntimeError: no licence file pair.py",
    ),
    "mismatched routes": (
        {"GATEWAY_FASTAPI": "tests.support.pair:make_mismatched_port"},
        "who /who/{name} Flask has /who",
    ),
    "a port that is no number": ({"GATEWAY_PORT": "http"}, "GATEWAY_PORT http"),
    "an unknown bridge": ({"GATEWAY_BRIDGE": "mod_wsgi"}, "bridge mod_wsgi native a2wsgi"),
    "flags that do not exist": ({"GATEWAY_FLAGS": "missing.yaml"}, "missing.yaml"),
    "an unreachable database": (
        {"GATEWAY_LEGACY": "legacy_flask:create_app", "DATABASE_URL": "mysql://nobody@127.0.0.1:1/none"},
        "legacy database 127.0.0.1:1",
    ),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "flags.yaml").write_text(flag_file("who: 25"))
    return tmp_path


def serve(here: Path, env: dict[str, str], *words: str) -> None:
    """`gateway serve` refuses to start with one message that has all the words."""
    defaults = {"GATEWAY_LEGACY": LEGACY, "GATEWAY_FASTAPI": PORT, "GATEWAY_FLAGS": "flags.yaml"}
    refused(here, ["serve", "--port", "0"] if "GATEWAY_PORT" not in env else ["serve"], {**defaults, **env}, *words)


def refused(here: Path, arguments: list[str], env: dict[str, str], *words: str) -> None:
    before = contents(here)
    done = gateway(*arguments, env=env, cwd=here)

    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert contents(here) == before


def contents(here: Path) -> dict[str, str]:
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in here.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("text", "words"), FLAGS.values(), ids=FLAGS)
def test_serve_refuses_a_flag_file_with(here: Path, text: str, words: str) -> None:
    (here / "flags.yaml").write_text(text)
    serve(here, {}, *words.split())


@pytest.mark.parametrize(("env", "words"), SETTINGS.values(), ids=SETTINGS)
def test_serve_refuses(here: Path, env: dict[str, str], words: str) -> None:
    serve(here, env, *words.split())


def test_serve_refuses_an_occupied_port(here: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as occupant:
        number = str(occupant.getsockname()[1])
        serve(here, {"GATEWAY_PORT": number}, number, "in use")


CHANGES = {
    "an unknown key": (["set", "whom", "5"], "whom who"),
    "a weight out of range": (["set", "who", "101"], "101"),
    "a weight that is no number": (["set", "who", "some"], "some"),
    "an unknown side": (["override", "flask"], "flask"),
    "a version that is no longer current": (["set", "who", "5", "--if-version", "0123456789ab"], "0123456789ab"),
    "an event that never was": (["undo", "no-such-event"], "no-such-event"),
    "a key that nobody knows": (["why", "whom", "--subject", "user:7"], "whom who"),
}


@pytest.mark.parametrize(("arguments", "words"), CHANGES.values(), ids=CHANGES)
def test_the_command_line_refuses(here: Path, arguments: list[str], words: str) -> None:
    env = {"GATEWAY_LEGACY": LEGACY, "GATEWAY_FASTAPI": PORT, "GATEWAY_FLAGS": "flags.yaml"}
    refused(here, arguments, env, *words.split())


def test_a_flag_file_that_breaks_the_rules_is_not_edited(here: Path) -> None:
    (here / "flags.yaml").write_text(flag_file("who: 101"))
    env = {"GATEWAY_LEGACY": LEGACY, "GATEWAY_FASTAPI": PORT, "GATEWAY_FLAGS": "flags.yaml"}
    refused(here, ["set", "only_legacy", "0"], env, "flags.yaml:4")
