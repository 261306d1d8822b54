"""Three gateways with files and directories of their own, and one Redis: edits, deaths, cuts and returns."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from gateway.audit import Audit
from gateway.flagfile import version_of
from gateway.hosts import LEASE_S
from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.redis_server import Cable, RedisServer, cable, redis_server
from tests.support.serving import Server, flag_file, gateway, serving

pytestmark = pytest.mark.timeout(300)  # several gateways start for one test

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}
WORKERS = 2
FOLLOW_S = RETURN_S = 30.0  # the most; an edit takes milliseconds, a return two seconds


@dataclass(frozen=True)
class Group:
    """Three hosts; the third one reaches Redis over a cable that can be cut."""

    redis: RedisServer
    hosts: list[Server]
    cable: Cable


@contextmanager
def host(directory: Path, url: str) -> Iterator[Server]:
    directory.mkdir(exist_ok=True)
    with serving(directory, "who: 100", **PAIR, workers=WORKERS, state=url) as server:
        yield server


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    home = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(home))
        third = stack.enter_context(cable(server.port))
        urls = {"a": server.url, "b": server.url, "c": third.url}
        hosts = [stack.enter_context(host(home / name, url)) for name, url in urls.items()]
        yield Group(server, hosts, third)


@pytest.fixture(autouse=True)
def good_flags(group: Group) -> None:
    """Each test begins with all three in agreement."""
    text = flag_file("who: 100")
    if group.hosts[0].flags.read_text() != text:
        group.hosts[0].say("who: 100")
    wait_until(lambda: all_run(group.hosts, text), "all hosts to agree", RETURN_S)


def all_run(hosts: list[Server], text: str) -> bool:
    workers = [version for server in hosts for version in server.workers().values()]
    files = {server.flags.read_text() for server in hosts}
    return files == {text} and workers == [version_of(text)] * WORKERS * len(hosts)


def sides(server: Server) -> set[str]:
    with server.client() as client:
        return {client.get("/who").json()["by"] for _ in range(5)}


def command(server: Server, *arguments: str) -> tuple[int, str, str]:
    """`gateway ARGUMENTS` on the host of a server."""
    done = gateway(*arguments, env=server.env, cwd=server.flags.parent)
    return done.returncode, done.stdout, done.stderr


def test_an_edit_on_any_host_runs_on_all_workers_of_all_hosts(group: Group) -> None:
    for weight, server in enumerate(group.hosts, 1):
        server.say(f"who: {weight}")
        wait_until(lambda: all_run(group.hosts, flag_file(f"who: {weight}")), "all to follow", FOLLOW_S)  # noqa: B023
    assert [[], [], []] == [Audit(server.state).verify() for server in group.hosts]


def test_a_command_waits_for_the_workers_of_all_hosts_and_is_in_every_audit_trail(group: Group) -> None:
    code, said, _ = command(group.hosts[1], "set", "who", "50", "--wait", "--timeout", "60", "--why", "try", "--json")
    assert (0, 3 * WORKERS, {}) == (code, json.loads(said)["workers"], json.loads(said)["laggards"])
    for server in group.hosts:
        event = wait_until(lambda: Audit(server.state).events()[-1:], "an event")[0]  # noqa: B023
        assert ("who", 100, 50, "try") == (event.key, event.before, event.after, event.why)


def test_a_host_that_is_cut_off_throws_its_own_switch_and_is_heard_when_it_is_back(group: Group) -> None:
    *others, alone = group.hosts
    with load(alone, "/who", clients=1) as asked:
        group.cable.cut = True
        code, _, complaint = command(alone, "override", "legacy", "--why", "port is down")
        assert code != 0
        assert "override is legacy on this host alone" in complaint
        wait_until(lambda: sides(alone) == {"legacy"}, "the switch", FOLLOW_S)
        assert [{"fastapi"}] * 2 == [sides(server) for server in others]

        group.cable.cut = False
        text = flag_file("who: 100", override="legacy")
        wait_until(lambda: all_run(group.hosts, text), "the others to hear of it", RETURN_S)
    assert asked.failures == []
    assert "port is down" in {event.why for event in Audit(others[0].state).events()}


def test_when_redis_stops_and_comes_back_empty_nobody_notices(group: Group) -> None:
    one, other, _ = group.hosts
    with load(one, "/who", clients=1) as asked:
        group.redis.stop()
        wait_until(lambda: "ramps are frozen" in one.log.read_text(), "the alarm", RETURN_S)
        assert {"fastapi"} == sides(one)
        other.say("who: 30")
        wait_until(lambda: all_run([other], flag_file("who: 30")), "an edit of one host alone", FOLLOW_S)
        assert flag_file("who: 100") == one.flags.read_text()

        group.redis.start()
        wait_until(lambda: all_run(group.hosts, flag_file("who: 30")), "the edit everywhere", RETURN_S)
    assert asked.failures == []


def test_when_both_sides_of_a_cut_are_edited_redis_wins_and_nothing_is_lost(group: Group) -> None:
    one, _, alone = group.hosts
    group.cable.cut = True
    lost = flag_file("who: 7")
    alone.say("who: 7")
    wait_until(lambda: all_run([alone], lost), "an edit behind the cut", FOLLOW_S)
    one.say("who: 8")
    wait_until(lambda: all_run(group.hosts[:2], flag_file("who: 8")), "an edit before the cut", FOLLOW_S)

    group.cable.cut = False
    wait_until(lambda: all_run(group.hosts, flag_file("who: 8")), "the others", RETURN_S)
    wait_until(
        lambda: f"version {version_of(lost)} was made from revision" in alone.log.read_text(), "the alarm", RETURN_S
    )
    assert lost == Audit(alone.state).text_of(version_of(lost))


def test_a_host_with_a_stale_file_takes_what_the_others_have(group: Group, tmp_path: Path) -> None:
    with host(tmp_path / "late", group.redis.url) as late:
        assert all_run([late], flag_file("who: 100"))
    group.hosts[0].say("who: 40")
    wait_until(lambda: all_run(group.hosts, flag_file("who: 40")), "the others", FOLLOW_S)
    assert flag_file("who: 100") == late.flags.read_text()

    with host(tmp_path / "late", group.redis.url) as late:
        assert all_run([late], flag_file("who: 40"))


def test_when_the_leading_host_is_killed_another_one_leads_after_its_lease(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, server.client() as client, ExitStack() as stack:
        hosts = [stack.enter_context(host(tmp_path / name, server.url)) for name in "abc"]
        first = wait_until(lambda: leading(client), "a leader")
        victim = next(member for member in hosts if first == (member.state / "host").read_text())
        rest = [member for member in hosts if member is not victim]
        for pid in victim.processes():
            os.kill(pid, signal.SIGKILL)

        wait_until(lambda: leading(client) not in ("", first), "another leader", LEASE_S + RETURN_S)
        rest[0].say("who: 20")
        wait_until(lambda: all_run(rest, flag_file("who: 20")), "the others to follow", FOLLOW_S)


def leading(client: redis.Redis) -> str:
    """The host that has the lease."""
    return str(client.get("{gateway}:lease") or "").split("/", 1)[0]
