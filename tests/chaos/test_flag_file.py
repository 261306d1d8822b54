"""A flag file that breaks while it is being served."""

import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from gateway.audit import Audit
from gateway.flagfile import version_of
from gateway.flags import FlagStore
from gateway.ledger import Ledger
from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.serving import Server, flag_file, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}
FOLLOW_S = 30.0  # the most; it is a matter of milliseconds
WORKERS = 2

BROKEN = {
    "empty": "",
    "no YAML": "version: 1\nroutes: {",
    "truncated": flag_file("who: 0")[:-8],
    "unknown key": flag_file("whoo: 0"),
    "out of range": flag_file("who: 101"),
    "not a number": flag_file("who: .nan"),
    "twice": flag_file("who: 0", "who: 100"),
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "billion laughs": "a0: &a0 ha\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 10)),
    "deep": "version: 1\nroutes: " + "[" * 100_000 + "\n",
    "10 MB": flag_file("who: 0") + "#" * 10_000_000 + "\n",
    "binary": "\x00\x01\x02",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("flags"), "who: 100", **PAIR, workers=WORKERS) as running:
        yield running


@pytest.fixture(autouse=True)
def good_file(server: Server) -> None:
    server.say("who: 100")
    wait_until(lambda: all_run(server, flag_file("who: 100")), "the good file", FOLLOW_S)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_raises_an_alarm_and_changes_nothing_else(server: Server, text: str) -> None:
    with load(server, "/who", clients=2) as asked:
        server.flags.write_text(text)
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}
    assert str(server.flags) in server.log.read_text()


def test_a_file_that_is_truncated_anywhere_raises_an_alarm_and_changes_nothing_else(server: Server) -> None:
    whole = server.flags.read_bytes()
    with load(server, "/who", clients=1) as asked:
        for end in range(len(whole)):
            os.truncate(server.flags, end)
            wait_until(lambda: all_reject(server), f"the alarm after {end} bytes", FOLLOW_S)
            server.flags.write_bytes(whole)
            wait_until(lambda: all_accept(server), "the good file", FOLLOW_S)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.replace(path)


def swap_link(path: Path, text: str) -> None:
    """As Kubernetes updates a mounted ConfigMap."""
    fresh = path.parent / f"..{os.urandom(4).hex()}"
    fresh.mkdir()
    (fresh / path.name).write_text(text)
    link = path.parent / "..data_tmp"
    link.symlink_to(fresh)
    link.replace(path.parent / "..data")
    if not path.is_symlink():
        path.unlink()
        path.symlink_to(f"..data/{path.name}")


@pytest.mark.parametrize("change", [replace, swap_link])
def test_a_file_that_is_replaced_by_a_broken_one_and_then_by_a_good_one(
    server: Server, change: Callable[[Path, str], None]
) -> None:
    with load(server, "/who", clients=2) as asked:
        change(server.flags, BROKEN["out of range"])
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)
    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}

    change(server.flags, flag_file("who: 0"))
    wait_until(lambda: all_run(server, flag_file("who: 0")), "the good file", FOLLOW_S)
    with server.client() as client:
        assert {client.get("/who").json()["by"] for _ in range(20)} == {"legacy"}
    server.flags.unlink()  # a link is followed by edits: put a file there again


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def forbid(path: Path) -> None:
    path.chmod(0)
    if not os.geteuid():  # a mode stops everybody but root: a directory in its place stops even root
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("spoil", [dangle, forbid])
def test_a_file_that_cannot_be_read_raises_an_alarm_and_changes_nothing_else(
    server: Server, spoil: Callable[[Path], None]
) -> None:
    with load(server, "/who", clients=2) as asked:
        spoil(server.flags)
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)
    server.flags.rmdir() if server.flags.is_dir() else server.flags.unlink()

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}


def write_many(path: Path, state: Path, key: str, times: int) -> None:
    store = FlagStore(path, None, state)
    for n in range(1, times + 1):
        store.set_weight(key, n / 100, by=key)


@pytest.mark.timeout(300)
def test_two_writers_that_race_a_thousand_edits_lose_none(server: Server) -> None:
    server.put("who: 100", "only_legacy: 0")
    before, context = len(Audit(server.state).events()), get_context("spawn")
    writers = [
        context.Process(target=write_many, args=(server.flags, server.state, key, 500))
        for key in ("who", "only_legacy")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [0, 0] == [writer.exitcode for writer in writers]

    events = Audit(server.state).events()[before:]
    for key in ("who", "only_legacy"):
        assert [n / 100 for n in range(1, 501)] == [event.after for event in events if event.by == key]
    assert flag_file("who: 5", "only_legacy: 5") == server.flags.read_text()
    assert [] == Audit(server.state).verify()
    wait_until(lambda: all_run(server, server.flags.read_text()), "the last edit", FOLLOW_S)


def test_a_file_that_disappears_raises_an_alarm_and_changes_nothing_else(server: Server) -> None:
    with load(server, "/who", clients=2) as asked:
        server.flags.unlink()
        wait_until(lambda: all_reject(server), "the alarm", FOLLOW_S)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"fastapi"}


def test_the_next_good_file_is_live_on_every_worker(server: Server) -> None:
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


def all_run(server: Server, text: str) -> bool:
    return set(server.workers().values()) == {version_of(text)} and all_accept(server)


def all_reject(server: Server) -> bool:
    return len([worker for worker in Ledger(server.state).workers() if worker.rejected]) == WORKERS


def all_accept(server: Server) -> bool:
    versions = [worker.version for worker in Ledger(server.state).workers() if not worker.rejected]
    return len(versions) == WORKERS and len(set(versions)) == 1
