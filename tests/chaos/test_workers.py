"""Processes that die, and processes that are told to."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.serving import Server, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "who: 100", **PAIR) as running:
        yield running


def test_when_a_worker_is_killed_the_others_answer_and_it_is_replaced(server: Server) -> None:
    victim, survivor = server.workers()
    os.kill(victim, signal.SIGKILL)

    assert victim not in {server.get("/who")["pid"] for _ in range(50)}  # some may have been for its replacement
    fresh = wait_until(lambda: set(server.workers()) - {victim, survivor}, "a replacement")

    assert set(server.workers()) == {survivor, *fresh}
    wait_until(lambda: server.get("/who")["pid"] in fresh, "an answer of the replacement")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_gateway_finishes_what_it_began_and_leaves_no_process(server: Server, how: signal.Signals) -> None:
    with load(server, "/held", clients=8) as asked:
        wait_until(lambda: len(server.events()) == 8, "eight requests to be inside")
        server.process.send_signal(how)
        wait_until(lambda: server.log.read_text().count("Shutting down") == 2, "both workers to stop")
        server.flags.with_name("release").touch()
        wait_until(lambda: len(asked.requests) >= 8, "the answers in flight")

    assert [asked for asked in asked.requests[:8] if asked.status != 200] == []
    assert server.process.wait(30) == 0
    wait_until(lambda: not server.processes(), "every process to end", 20)


def test_an_endless_stream_does_not_keep_a_stopped_gateway_alive(tmp_path: Path) -> None:
    with serving(tmp_path, **PAIR, drain_s=1) as server, server.client() as client:
        with client.stream("GET", "/endless") as response:
            next(response.iter_bytes())
            server.process.terminate()
            server.process.wait(30)
        wait_until(lambda: not server.processes(), "every process to end", 20)
