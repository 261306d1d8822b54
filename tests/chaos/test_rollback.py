"""A port that was well goes bad under load, on four workers: it is rolled back without anybody's help."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.flagfile import parse_flags
from gateway.model import FlagSet
from tests.support.faulty import FAULTS, break_port
from tests.support.processes import wait_until
from tests.support.serving import Server, audit, serving

PAIR = {"legacy": "tests.support.faulty:make_legacy", "fastapi": "tests.support.faulty:make_port"}
FLAGS = """version: 1
override: none
rollouts:
  careful: {steps: [20, 100], every: 1h, min_requests: 100, max_errors: 1%, max_mismatches: 1%, max_p95_ratio: 1.5}
routes:
  item: {weight: 20, shadow: 100, rollout: careful}
  order: {weight: 20, rollout: careful}
  other: {weight: 50, rollout: careful}
"""
CLIENTS = 6
PAUSE_S = 0.04  # of one client between two requests: some hundred requests a second at most
SUBJECTS = 300
PATIENCE_S = 20  # of a client
HANGING_S = 5  # the same with orders that hang: nothing stands in for them


@dataclass
class Seen:
    """What the clients got."""

    answers: int = 0
    failed: dict[str, list[str]] = field(default_factory=lambda: {"item": [], "order": [], "other": []})
    wrong: int = 0
    patience_s: float = PATIENCE_S  # with orders
    ids: list[str] = field(default_factory=list)  # of requests for items, oldest first


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "flags.yaml").write_text(FLAGS)
    with serving(tmp_path, **PAIR, workers=4, port_timeout_s=1, memory_budget_bytes=60_000_000, drain_s=2) as running:
        yield running


@contextmanager
def steady(server: Server) -> Iterator[Seen]:
    """Clients with many identities that read, order and look elsewhere until the block ends."""
    seen, stop = Seen(), threading.Event()

    def run(client: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)) as connection:
            for number in iter(lambda: None if stop.is_set() else time.monotonic_ns(), None):
                ask(connection, client, number)
                time.sleep(PAUSE_S)

    def ask(connection: http.client.HTTPConnection, client: int, number: int) -> None:
        key = ("item", "item", "order", "other")[number % 4]
        request_id = f"{client}-{number}"
        headers = {"x-api-key": f"key-{number % SUBJECTS}", "x-request-id": request_id}
        headers |= {"content-type": "application/json"} if key == "order" else {}
        path = {"item": "/items/7", "order": "/orders", "other": "/others/7"}[key]
        method, body = ("POST", json.dumps({"item": 7})) if key == "order" else ("GET", None)
        if key == "item":
            seen.ids.append(request_id)
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(seen.patience_s if key == "order" else PATIENCE_S)
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            answer, failure = (json.loads(text), "") if response.status == 200 else ({}, f"{response.status} {text}")
        except (OSError, http.client.HTTPException) as error:
            answer, failure = {}, repr(error)
            connection.close()
        seen.answers += 1
        if failure:
            seen.failed[key].append(failure)
        elif key == "item" and answer["price"] != "1.10":
            seen.wrong += 1

    threads = [threading.Thread(target=run, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def flags(server: Server) -> FlagSet:
    return parse_flags(server.flags.read_text(), None)


def weights(server: Server) -> dict[str, int]:
    return {key: flag.weight_bp // 100 for key, flag in flags(server).flags.items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_port_that_goes_bad_is_rolled_back_by_itself(server: Server, tmp_path: Path, fault: str) -> None:
    broken = {"item"} if fault == "field" else {"item", "order"}
    with steady(server) as seen:
        wait_until(lambda: seen.answers > 300, "some healthy traffic", 60)
        assert {"item": 20, "order": 20, "other": 50} == weights(server)
        assert (0, {"item": [], "order": [], "other": []}) == (seen.wrong, seen.failed)

        break_port(tmp_path, fault)
        seen.patience_s = HANGING_S if fault == "hang" else PATIENCE_S
        wait_until(lambda: all(weights(server)[key] == 0 for key in broken), f"a rollback of {broken}", 90)
        settled = seen.answers
        wait_until(lambda: seen.answers > settled + 100, "traffic afterwards", 60)

    assert [] == seen.failed["item"]  # legacy stands in for every GET
    assert 50 > len(seen.failed["order"])
    assert 50 > seen.wrong
    blamed = [event for event in audit(server) if event["key"] == "other"]
    assert (50, [], []) == (weights(server)["other"], seen.failed["other"], blamed)
    explained(server, broken, seen)


def explained(server: Server, broken: set[str], seen: Seen) -> None:
    """Who rolled back what and on what evidence, and which side answered whom."""
    events = [event for event in audit(server) if event["key"] in broken and event["after"] == 0]
    assert broken == {event["key"] for event in events}
    assert all(event["why"] and event["evidence"] for event in events)
    before, after = (json.loads(server.cli("why", seen.ids[at], "--json").stdout) for at in (10, -5))
    for answer in (before, after):
        assert ("item", "GET") == (answer["key"], answer["method"])
    assert "legacy" == after["backend"]
    assert before["version"] != after["version"]
