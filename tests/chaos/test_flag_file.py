"""A flag file that breaks while it is being served."""

from collections.abc import Iterator

import pytest

from gateway.ledger import Ledger
from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.serving import Server, flag_file, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}
FOLLOW_S = 2.0

BROKEN = {
    "empty": "",
    "no YAML": "version: 1\nroutes: {",
    "truncated": flag_file("who: 0")[:-8],
    "unknown key": flag_file("whoo: 0"),
    "out of range": flag_file("who: 101"),
    "not a number": flag_file("who: .nan"),
    "twice": flag_file("who: 0", "who: 100"),
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "binary": "\x00\x01\x02",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("flags"), "who: 100", **PAIR) as running:
        yield running


@pytest.fixture(autouse=True)
def good_file(server: Server) -> None:
    server.say("who: 100")
    wait_until(lambda: all_accept(server), "the good file", FOLLOW_S)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_raises_an_alarm_and_changes_nothing_else(server: Server, text: str) -> None:
    with load(server, "/who", clients=2) as asked:
        server.flags.write_text(text)
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}
    assert str(server.flags) in server.log.read_text()


def test_a_file_that_disappears_raises_an_alarm_and_changes_nothing_else(server: Server) -> None:
    with load(server, "/who", clients=2) as asked:
        server.flags.unlink()
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}


def test_the_next_good_file_is_live_on_every_worker_within_two_seconds(server: Server) -> None:
    server.flags.write_text(BROKEN["no YAML"])
    wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)

    server.say("who: legacy")
    wait_until(lambda: all_accept(server), "the good file", FOLLOW_S)
    with server.client() as client:
        assert {client.get("/who").json()["by"] for _ in range(20)} == {"legacy"}


def test_a_version_on_disk_that_nobody_runs_is_not_acknowledged(server: Server) -> None:
    """`set` edits the file on disk: it refuses to build on one that is broken."""
    server.flags.write_text(BROKEN["out of range"])
    done = server.cli("set", "who", "50")

    assert done.returncode == 2
    assert server.flags.read_text() == BROKEN["out of range"]


def all_reject(server: Server) -> bool:
    return all(worker.rejected for worker in Ledger(server.state).workers())


def all_accept(server: Server) -> bool:
    versions = {worker.version for worker in Ledger(server.state).workers() if not worker.rejected}
    return len(versions) == 1 and not any(worker.rejected for worker in Ledger(server.state).workers())
