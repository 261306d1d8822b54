"""What several hosts know together is what one host would know that had answered everything."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from gateway import hosts as hosts_module
from gateway.census import Census
from gateway.errors import NotShared
from gateway.hosts import Hosts
from gateway.ledger import Ledger
from gateway.model import Backend, Outcome
from tests.support.processes import free_port, wait_until
from tests.support.redis_server import RedisServer, redis_server

NAMES = ("x", "y", "all")
SIDES = tuple(Backend)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


def fill(ledgers: dict[str, Ledger]) -> None:
    """Answers of two hosts, and of one that gave them all."""
    random = Random(7)
    for ledger in ledgers.values():
        ledger.seen("v1")
        ledger.start()
    for _ in range(2000):
        answer = random.choice("ab"), random.choice(SIDES), random.choice((200, 404, 500)), random.choice((0.01, 2.0))
        for name in (random.choice("xy"), "all"):
            ledgers[name].count(*answer, trial=answer[0] == "a")
    for ledger in ledgers.values():
        ledger.close()
        ledger._thread.join()


def test_two_hosts_know_together_what_one_would_know(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANSWER_S", "STALE_S", "_WANTED_S"):
        monkeypatch.setattr(hosts_module, name, 60.0)  # however busy the machine is
    ledgers = {name: Ledger(tmp_path / name) for name in NAMES}
    fill(ledgers)
    verdicts = {"x": {"a": {Outcome.MATCHED: 3}}, "y": {"a": {Outcome.MATCHED: 4, Outcome.SHED: 1}}}
    hosts = {name: Hosts(server.url, tmp_path / name) for name in "xy"}
    census = {name: Census(hosts[name], ledgers[name], lambda name=name: verdicts[name]) for name in "xy"}
    with ExitStack() as stack:
        for name, host in hosts.items():
            stack.callback(host.close)
            host.seen("v1")
            host.start(lambda: None)
            host.contend()
            census[name].share()
        wait_until(lambda: len(hosts["x"].sums()) == 2, "both shares")

        assert key(ledgers["all"].counters()) == key(census["x"].counters()) == key(census["y"].counters())
        assert ledgers["all"].trials() == census["x"].trials()
        assert {"a": {Outcome.MATCHED: 7, Outcome.SHED: 1}} == census["y"].tallies()
        assert [("v1", ""), ("v1", "")] == [(worker.version, worker.rejected) for worker in census["x"].workers()]


def key(counters: object) -> list[object]:
    """In one order, and sums of seconds to the microsecond."""
    rows = [(c.key, c.backend.value, c.status, c.count, round(c.sum_s, 6), c.buckets) for c in counters]  # type: ignore[attr-defined]
    return sorted(rows)


def test_this_hosts_own_sums_are_as_they_are_now(tmp_path: Path, server: RedisServer) -> None:
    verdicts = {"a": {Outcome.MATCHED: 3}}
    census = Census(Hosts(server.url, tmp_path), Ledger(tmp_path), lambda: verdicts)
    assert {"a": {Outcome.MATCHED: 3}} == census.tallies()
    verdicts["a"][Outcome.MATCHED] = 4
    assert {"a": {Outcome.MATCHED: 4}} == census.tallies()


def test_without_redis_nobody_knows_what_all_hosts_know(tmp_path: Path) -> None:
    census = Census(Hosts(f"redis://127.0.0.1:{free_port()}", tmp_path), Ledger(tmp_path), dict)
    with pytest.raises(NotShared):
        census.trials()
