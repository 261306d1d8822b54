"""Whatever a shadowed candidate does, its clients do not notice."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.shadow.keeper import status
from tests.support.candidates import MIB
from tests.support.processes import wait_until
from tests.support.serving import Server, serving

PAIR = {"legacy": "tests.support.candidates:make_legacy", "fastapi": "tests.support.candidates:make_port"}
EVIL = ["raises", "exits", "task_exits", "dies", "forever", "deaf", "sleeps", "endless", "huge", "memory", "leaks"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("shadows"),
        *(f"{key}: {{weight: 0, shadow: 100}}" for key in [*EVIL, "same", "stream", "large"]),
        **PAIR,
        workers=2,
        shadow_timeout_s=1,
        shadow_memory_bytes=512 * MIB,
    ) as running:
        yield running


def replaying(server: Server) -> int:
    """The process that replays, once it is there and has a pulse."""
    now = status(server.state)
    return 0 if now.loading else now.pid


@pytest.mark.parametrize("key", EVIL)
def test_a_client_gets_every_answer_in_time(server: Server, key: str) -> None:
    wait_until(lambda: replaying(server), "a process that replays", 60)
    took_s = []
    with server.client() as client:
        for _ in range(150):
            began = time.monotonic()
            answer = client.get(f"/{key}")
            took_s.append(time.monotonic() - began)
            assert (200, {"value": 1}) == (answer.status_code, answer.json())
            time.sleep(0.01)

    assert sorted(took_s)[-2] < 1.0  # the machine, too, may stand still for a moment


def test_afterwards_what_can_be_replayed_is_replayed(server: Server) -> None:
    def replayed() -> bool:
        server.get("/same")
        return any(event.endswith(" same") for event in server.events())

    wait_until(replayed, "a replay", 60)


def test_nothing_is_left_when_the_gateway_stops(tmp_path: Path) -> None:
    with serving(tmp_path, "same: {weight: 0, shadow: 100}", **PAIR, workers=2) as server:
        wait_until(lambda: replaying(server), "a process that replays", 60)
        assert len(server.processes()) > 3
        server.process.terminate()
        assert 0 == server.process.wait(20)
        wait_until(lambda: not server.processes(), "the end of every process", 20)


def test_another_worker_takes_over_when_the_one_that_keeps_it_dies(tmp_path: Path) -> None:
    with serving(tmp_path, "same: {weight: 0, shadow: 100}", **PAIR, workers=2) as server:
        first = wait_until(lambda: replaying(server), "a process that replays", 60)
        keeper = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        assert keeper in server.workers()

        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{first}").exists(), "its end")
        wait_until(lambda: replaying(server) not in (0, first), "another one", 60)
