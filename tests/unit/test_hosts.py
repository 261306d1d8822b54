"""Several hosts that share one flag file through a real Redis; each host is a directory, a store and a thread."""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import disk, flags, hosts
from gateway.audit import Audit
from gateway.errors import ConfigError, FlagConflict, FlagFileError, FlagsReadOnly, NotShared
from gateway.flagfile import SetWeight, version_of
from gateway.flags import FlagStore
from gateway.hosts import Copy, Course, Hosts, Revision, add_up, course
from gateway.model import Backend
from gateway.settings import Settings
from tests.support.processes import free_port, wait_until
from tests.support.redis_server import Cable, RedisServer, cable, redis_server

KNOWN = frozenset({"a", "b", "c"})
GOOD = "version: 1\noverride: none\nroutes:\n  a: 25 # a quarter\n"
OTHER = "version: 1\noverride: none\nroutes:\n  a: 75 # a quarter\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may take its time on a busy machine, and nobody who is silent for a while is gone."""
    monkeypatch.setattr(hosts, "ANSWER_S", 30.0)
    monkeypatch.setattr(hosts, "STALE_S", 60.0)


@pytest.fixture
def news_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever arrives does so at once: the next heartbeat is too far away."""
    monkeypatch.setattr(hosts, "BEAT_S", 600.0)


class Host:
    """One host: its file, its state, and one worker that takes part while `with` lasts."""

    def __init__(self, home: Path, url: str, text: str = GOOD, known: frozenset[str] = KNOWN) -> None:
        home.mkdir(exist_ok=True)
        self.file, self.state = home / "flags.yaml", home / "state"
        if not self.file.exists():
            self.file.write_text(text)
        self.hosts = Hosts(url, self.state)
        self.store = FlagStore(self.file, known, self.state, self.hosts, join=True)
        self.contending, self._left = threading.Event(), threading.Event()
        self._leader = threading.Thread(target=self._lead)

    def _lead(self) -> None:
        """As the leader of the host does, while `contending` is set."""
        while not self._left.wait(0.05):
            if self.contending.is_set():
                self.hosts.contend()

    def __enter__(self) -> "Host":
        self.hosts.seen(self.store.current.version)
        self.hosts.start(self.store.follow)
        self._leader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._leader.join()
        self.hosts.close()

    @property
    def weight(self) -> float:
        return self.store.current["a"].weight_bp / 100

    def write(self, text: str) -> str:
        """As a person does, with a worker that watches."""
        fresh = self.file.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.replace(self.file)
        self.store.look()
        return version_of(text)

    def events(self) -> list[tuple[str, str, object, object]]:
        return [(event.by, event.key, event.before, event.after) for event in self.store.audit()]


@contextmanager
def group(tmp_path: Path, *urls: str) -> Iterator[list[Host]]:
    members = [Host(tmp_path / name, url) for name, url in zip("xyz", urls, strict=False)]
    for member in members:
        member.__enter__()
    try:
        soon(lambda: members[0].hosts._redis.pubsub_numsub(hosts._KEYS["news"])[0][1] == len(members))
        soon(lambda: len(members[0].hosts.workers()) == len(members))
        yield members
    finally:
        for member in members:
            member.__exit__()


def soon(condition: Callable[[], object]) -> None:
    wait_until(condition, "it")


# --- what to do when two texts meet -------------------------------------------------------------------------------

SHARED = Revision(7, "new", "text", "old", (), "x")


@pytest.mark.parametrize(
    ("version", "copy", "shared", "expected"),
    [
        ("any", Copy(), None, Course.PUBLISH),
        ("new", Copy(), SHARED, Course.KEEP),
        ("old", Copy(6, "old"), SHARED, Course.TAKE),
        ("mine", Copy(6, "old"), SHARED, Course.REFUSE),
        ("mine", Copy(), SHARED, Course.REFUSE),
        ("mine", Copy(7, "new"), SHARED, Course.PUBLISH),
        ("mine", Copy(7, "mine"), SHARED, Course.TAKE),  # Redis has forgotten, and somebody else was first
        ("newer", Copy(9, "newer"), SHARED, Course.PUBLISH),  # Redis has lost two revisions
    ],
)
def test_a_file_and_a_revision_come_together(version: str, copy: Copy, shared: Revision, expected: Course) -> None:
    assert expected is course(version, copy, shared)


# --- flags --------------------------------------------------------------------------------------------------------


def test_one_host_needs_no_redis(tmp_path: Path) -> None:
    assert Hosts.of(Settings(state=str(tmp_path))) is None


def test_without_redis_py_several_hosts_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'strangler-gateway\[cluster\]'"):
        Hosts("redis://127.0.0.1", tmp_path)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port", "redis://127.0.0.1/0?nonsense=1"])
def test_a_url_that_is_none_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="state: not the URL of a Redis") as caught:
        Hosts(url.replace("//", "//user:hunter2@"), tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("news_alone")
def test_an_edit_on_one_host_is_at_once_in_force_and_in_the_file_of_all(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, *[server.url] * 3) as (x, y, z):
        x.store.set_weight("a", 30, by="ann@x", why="try")
        soon(lambda: y.weight == z.weight == 30)
        y.store.set_override("legacy", by="bob@y")
        soon(lambda: x.store.current.override is z.store.current.override is Backend.LEGACY)

        soon(lambda: len(z.events()) == 2)
        assert GOOD.replace("25", "30").replace("none", "legacy") == x.file.read_text() == z.file.read_text()
        assert [("ann@x", "a", 25, 30), ("bob@y", "override", "none", "legacy")] == z.events() == x.events()
        assert [] == Audit(z.state).verify()


def test_an_edit_builds_on_what_other_hosts_did_before_the_news_arrived(tmp_path: Path, server: RedisServer) -> None:
    x, y = (Host(tmp_path / name, server.url) for name in "xy")
    old = x.store.set_weight("a", 30, by="ann@x").version_before
    with pytest.raises(FlagConflict, match=old):
        y.store.set_weight("b", 5, by="bob@y", if_version=old)
    y.store.set_weight("b", 5, by="bob@y")
    assert (30, 5) == (y.weight, y.store.current["b"].weight_bp / 100)


def test_hosts_that_race_lose_no_update(tmp_path: Path, server: RedisServer) -> None:
    def write_many(host: Host, key: str) -> None:
        for n in range(1, 41):
            while host.store.current[key].weight_bp != n:
                with suppress(FlagConflict):  # others were faster all the time: "try again"
                    host.store.set_weight(key, n / 100, by=f"{key}@host")

    with group(tmp_path, *[server.url] * 3) as members:
        writers = [threading.Thread(target=write_many, args=pair) for pair in zip(members, "abc", strict=True)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        soon(lambda: all([40] * 3 == [host.store.current[key].weight_bp for key in "abc"] for host in members))
        assert 1 == len({host.file.read_text() for host in members})
        shared = members[0].hosts.fetch()
        assert shared is not None
        assert 121 == shared.number


@pytest.mark.usefixtures("news_alone")
def test_what_a_person_writes_into_one_file_reaches_all(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, *[server.url] * 2) as (x, y):
        x.write(OTHER)
        assert x.weight == 75
        soon(lambda: y.weight == 75)
        assert OTHER == y.file.read_text()
        soon(y.events)
        assert [(f"file@{x.hosts.host}", "a", 25, 75)] == y.events()


def test_a_host_that_starts_with_a_stale_file_takes_the_newer_revision(tmp_path: Path, server: RedisServer) -> None:
    with Host(tmp_path / "x", server.url) as x, Host(tmp_path / "y", server.url):
        pass
    x.store.set_weight("a", 30, by="ann@x")
    x.store.set_weight("a", 40, by="ann@x")

    y = Host(tmp_path / "y", server.url)
    assert (40, x.file.read_text(), []) == (y.weight, y.file.read_text(), y.store.trouble)
    assert [(f"hosts@{x.hosts.host}", "a", 25, 40)] == y.events()


def test_who_only_looks_neither_follows_nor_publishes(tmp_path: Path, server: RedisServer) -> None:
    with Host(tmp_path / "x", server.url) as x:
        pass
    x.file.write_text(OTHER)
    hosts = Hosts(server.url, x.state)
    assert 7500 == FlagStore(x.file, KNOWN, x.state, hosts).current["a"].weight_bp
    assert GOOD == (hosts.fetch() or SHARED).text


def test_an_edit_of_a_stale_file_is_refused_and_nothing_is_lost(
    tmp_path: Path, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Host(tmp_path / "x", server.url) as x, Host(tmp_path / "y", server.url) as y:
        pass
    in_force = x.store.set_weight("a", 30, by="ann@x").version
    refused = version_of(OTHER)
    y.file.write_text(OTHER)

    y = Host(tmp_path / "y", server.url)
    assert (30, OTHER) == (y.weight, Audit(y.state).text_of(refused))
    (alarm,) = y.store.trouble
    assert f"version {refused} was made from revision 1 and is refused: revision 2 is in force" in alarm
    assert f"version {in_force}, by ann@x" in alarm
    assert alarm in caplog.text
    assert (refused, in_force, alarm) == ((event := y.store.audit()[-1]).before, event.after, event.why)

    y.store.set_weight("a", 31, by="bob@y")
    assert [] == y.store.trouble


def test_who_gives_redis_back_what_it_has_lost_overtakes_no_edit_of_another_host(
    tmp_path: Path, server: RedisServer
) -> None:
    with Host(tmp_path / "x", server.url), Host(tmp_path / "y", server.url) as y:
        pass
    with server.client() as client:
        client.flushall()
    y.file.write_text(OTHER)  # while Redis is away

    x = Host(tmp_path / "x", server.url)  # the first one to be back
    assert (25, GOOD) == (x.weight, (x.hosts.fetch() or SHARED).text)
    y = Host(tmp_path / "y", server.url)
    assert (75, []) == (y.weight, y.store.trouble)
    assert OTHER == (y.hosts.fetch() or SHARED).text


def test_a_new_host_takes_what_all_have_even_if_its_own_file_is_wrong(tmp_path: Path, server: RedisServer) -> None:
    Host(tmp_path / "x", server.url).store.set_weight("a", 30, by="ann@x")
    y = Host(tmp_path / "y", server.url, text="version: 1\nroutes: {gone: 5}\n")
    assert 30 == y.weight


@pytest.mark.usefixtures("news_alone")
def test_a_host_whose_file_is_locked_by_another_program_follows_when_it_is_free(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flags, "FOLLOW_WAIT_S", 0.05)
    with group(tmp_path, server.url, server.url) as (x, y):
        with disk.locked(y.file.parent):
            x.store.set_weight("a", 30, by="ann@x")
            time.sleep(0.5)
            assert 25 == y.weight
        soon(lambda: y.weight == 30)


def test_a_file_that_was_deleted_comes_back_with_the_next_revision(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, server.url, server.url) as (x, y):
        y.file.unlink()
        x.store.set_weight("a", 30, by="ann@x")
        soon(lambda: y.weight == 30)
        assert (x.file.read_text(), []) == (y.file.read_text(), y.store.trouble)


def test_a_file_that_cannot_be_replaced_keeps_no_host_from_following(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "flags.yaml")

    x, y = (Host(tmp_path / name, server.url) for name in "xy")
    x.store.set_weight("a", 30, by="ann@x")
    monkeypatch.setattr(flags, "replacing", read_only)
    y.store.follow()
    assert (30, GOOD) == (y.weight, y.file.read_text())
    assert "cannot be changed here: Read-only file system" in y.store.rejected

    with pytest.raises(FlagsReadOnly):
        y.store.set_weight("a", 40, by="bob@y")
    assert 30 == (x.hosts.fetch() or SHARED).events[-1].after


def test_a_revision_that_does_not_fit_a_host_is_an_alarm_there_and_its_file_stays(
    tmp_path: Path, server: RedisServer
) -> None:
    with group(tmp_path, server.url) as (x,), Host(tmp_path / "old", server.url, known=frozenset({"a"})) as old:
        x.store.set_weight("b", 5, by="ann@x")
        soon(lambda: old.store.rejected)
        assert "revision 2 of" in old.store.rejected
        assert "b: no such route" in old.store.rejected
        assert (25, GOOD) == (old.weight, old.file.read_text())
        with pytest.raises(FlagFileError, match="b: no such route"):
            old.store.set_weight("a", 1, by="bob@old")


def test_when_redis_has_forgotten_everything_the_hosts_know_it_still(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, *[server.url] * 2) as (x, y):
        x.store.set_weight("a", 30, by="ann@x")
        soon(lambda: y.weight == 30)
        with server.client() as client:
            client.flushall()
        soon(x.hosts.fetch)
        assert 2 == (x.hosts.fetch() or SHARED).number
        y.store.set_weight("a", 40, by="bob@y")
        soon(lambda: x.weight == 40)


# --- Redis is away ------------------------------------------------------------------------------------------------


@pytest.fixture
def wire(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    monkeypatch.setattr(hosts, "ANSWER_S", 2.0)  # in vain
    with cable(server.port) as carried:
        yield carried


def test_without_redis_a_host_starts_with_its_own_file_soon(tmp_path: Path) -> None:
    started = monotonic()
    host = Host(tmp_path / "x", f"redis://127.0.0.1:{free_port()}")
    assert monotonic() - started < hosts.ANSWER_S / 2
    assert 25 == host.weight


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whom a question was sent to, each time, and its answer waited for."""
    asked: list[object] = []
    get = hosts._Answer.get

    def noted(answer: hosts._Answer) -> None:
        asked.append(answer.redis)
        get(answer)

    monkeypatch.setattr(hosts._Answer, "get", noted)
    return asked


def test_a_host_that_is_cut_off_goes_on_alone_and_is_heard_afterwards(
    tmp_path: Path, server: RedisServer, wire: Cable, asked: list[object]
) -> None:
    with group(tmp_path, server.url, wire.url) as (x, y):
        wire.cut = True
        before = asked.count(y.hosts._redis)
        with pytest.raises(NotShared, match=r"override is legacy on this host alone, with version \w{12}: Redis does"):
            y.store.set_override("legacy", by="bob@y")
        assert asked.count(y.hosts._redis) <= before + 2
        assert Backend.LEGACY is y.store.current.override
        assert [("bob@y", "override", "none", "legacy")] == y.events()
        soon(lambda: "Redis does not answer" in str(y.store.trouble))
        assert None is x.store.current.override

        before = asked.count(y.hosts._redis)
        with pytest.raises(NotShared):
            y.store.set_weight("a", 5, by="bob@y")
        assert asked.count(y.hosts._redis) == before  # by now it knows

        wire.cut = False
        soon(lambda: x.store.current.override is Backend.LEGACY)
        assert 5 == x.weight
        soon(lambda: y.store.trouble == [])
        soon(lambda: len(x.events()) == 2)
        assert [("bob@y", "override", "none", "legacy"), ("bob@y", "a", 25, 5)] == y.events() == x.events()


def test_what_was_edited_on_both_sides_of_a_cut_is_decided_by_redis(
    tmp_path: Path, server: RedisServer, wire: Cable
) -> None:
    with group(tmp_path, server.url, wire.url) as (x, y):
        wire.cut = True
        soon(lambda: y.hosts.trouble)
        refused = y.write(OTHER)
        assert 75 == y.weight
        x.store.set_weight("a", 30, by="ann@x")
        wire.cut = False
        soon(lambda: y.weight == 30 and refused in y.store.refused)
        assert OTHER == Audit(y.state).text_of(refused)


def test_an_edit_by_a_leader_is_not_made_at_all_without_redis(tmp_path: Path, server: RedisServer, wire: Cable) -> None:
    y = Host(tmp_path / "y", wire.url)
    wire.cut = True
    with pytest.raises(NotShared, match="Redis does not answer"):
        y.store.edit(SetWeight("a", 9000), by="ramp", fence=1)
    assert (25, GOOD) == (y.weight, y.file.read_text())


def test_news_that_is_lost_arrives_with_a_heartbeat(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = hosts._KEYS
    monkeypatch.setattr(hosts, "_KEYS", {**usual, "news": "{gateway}:elsewhere"})
    with group(tmp_path, server.url) as (x,):
        monkeypatch.setattr(hosts, "_KEYS", usual)
        Host(tmp_path / "y", server.url).store.set_weight("a", 30, by="bob@y")
        soon(lambda: x.weight == 30)


# --- workers, sums and the leader ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("news_alone")
def test_every_worker_of_every_host_says_which_flags_it_runs(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, server.url, server.url) as (x, y):
        version = x.store.set_weight("a", 30, by="ann@x").version
        soon(lambda: [version] * 2 == [worker.version for worker in y.hosts.workers()])
        assert {x.hosts.host, y.hosts.host} == {worker.host for worker in y.hosts.workers()}
    assert [] == Host(tmp_path / "y", server.url).hosts.workers()


def test_the_sums_of_a_host_count_even_when_it_is_dead(tmp_path: Path, server: RedisServer) -> None:
    with Host(tmp_path / "x", server.url) as x:
        x.contending.set()
        x.hosts.share({"a": {"fastapi": [1, 2, 0.5]}, "b": {"legacy": [1]}})
        soon(x.hosts.sums)
    with Host(tmp_path / "y", server.url) as y:
        y.contending.set()
        y.hosts.share({"a": {"fastapi": [10, 20, 30, 40], "legacy": [7]}})
        soon(lambda: len(y.hosts.sums()) == 2)
        assert {"a": {"fastapi": [11, 22, 30.5, 40], "legacy": [7]}, "b": {"legacy": [1]}} == add_up(
            list(y.hosts.sums().values())
        )


counts = st.dictionaries(st.sampled_from("ab"), st.lists(st.integers(0, 9), max_size=3), max_size=2)


@given(st.lists(counts, max_size=4))
def test_sums_of_hosts_add_up_in_any_order(parts: list[dict[str, list[int]]]) -> None:
    total = add_up(parts)
    assert total == add_up(parts[::-1])
    assert sum(sum(numbers) for numbers in total.values()) == sum(sum(n) for part in parts for n in part.values())


def test_one_worker_leads_all_hosts_and_its_death_has_a_successor_within_the_lease(
    tmp_path: Path, server: RedisServer, wire: Cable
) -> None:
    with group(tmp_path, wire.url, server.url) as (x, y):
        x.contending.set()
        soon(x.hosts.held)
        y.contending.set()
        token = x.hosts.token
        wire.cut = True
        with server.client() as client:
            assert -1 != client.pttl(hosts._KEYS["lease"]) <= 1000 * hosts.LEASE_S
        soon(y.hosts.held)
        assert not x.hosts.held()
        assert token < y.hosts.token


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LEASE_S", 600.0)


@pytest.mark.usefixtures("long_lease")
def test_a_leader_that_stops_makes_room_at_once(tmp_path: Path, server: RedisServer) -> None:
    with Host(tmp_path / "y", server.url) as y:
        with Host(tmp_path / "x", server.url) as x:
            x.contending.set()
            soon(x.hosts.held)
            y.contending.set()
        soon(y.hosts.held)
        assert 0 == x.hosts.token


@pytest.mark.usefixtures("long_lease")
def test_an_edit_of_yesterdays_leader_is_refused(tmp_path: Path, server: RedisServer) -> None:
    with group(tmp_path, server.url, server.url) as (x, y):
        x.contending.set()
        soon(x.hosts.held)
        yesterday = x.hosts.token
        x.store.edit(SetWeight("a", 3000), by="ramp", fence=yesterday)
        x.contending.clear()
        y.contending.set()
        soon(lambda: y.hosts.held() and y.weight == 30)
        with pytest.raises(FlagConflict, match="another one has taken over"):
            x.store.edit(SetWeight("a", 9000), by="ramp", fence=yesterday)
        assert (30, 30) == (x.weight, y.weight)
        y.store.edit(SetWeight("a", 5000), by="ramp", fence=y.hosts.token)
        soon(lambda: x.weight == 50)
