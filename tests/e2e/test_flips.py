"""Flags that change while requests are served, on two real workers."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import load
from tests.support.processes import wait_until
from tests.support.serving import Server, ordered, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("flips"), **PAIR) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """With everything on legacy."""
    running.put("who: 0")
    return running


def test_flags_flipped_under_load_fail_no_request_and_every_answer_is_from_a_side_in_force(server: Server) -> None:
    flips = [("legacy", time.monotonic(), time.monotonic())]  # to which side, and between which moments
    with load(server, "/who") as asked:
        for side in ("fastapi", "legacy") * 3:
            began = time.monotonic()
            server.put(f"who: {side}")
            flips.append((side, began, time.monotonic()))
            wait_until(lambda: asked.requests and asked.requests[-1].began > flips[-1][2], "a later request")
            time.sleep(0.5)

    assert asked.failures == []
    assert len(asked.requests) > 100
    for request in asked.requests:
        assert request.answer["by"] in sides_in_force(flips, request.began, request.ended)


def sides_in_force(flips: list[tuple[str, float, float]], began: float, ended: float) -> set[str]:
    """A side is in force from the beginning of the flip to it until all have followed the next."""
    ends = [followed for _, _, followed in flips[1:]] + [float("inf")]
    return {side for (side, since, _), until in zip(flips, ends, strict=True) if since <= ended and until >= began}


def test_no_request_sees_half_of_a_version(server: Server) -> None:
    """Both versions send everybody to legacy; the weight of one with the override of the other would not."""
    with load(server, "/who") as asked:
        for _ in range(10):
            server.say("who: 100", override="legacy")
            time.sleep(0.15)
            server.say("who: 0", override="none")
            time.sleep(0.15)

    assert asked.failures == []
    assert {request.answer["by"] for request in asked.requests} == {"legacy"}


def test_set_with_wait_returns_when_every_worker_runs_the_new_version(server: Server) -> None:
    before = len(ordered(server))
    for percent, side in ((100, "fastapi"), (0, "legacy"), (100, "fastapi")):
        done = server.cli("set", "who", str(percent), "--wait")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(set(server.workers().values())) == 1
        assert {by for by, _ in ask_anew(server, 40)} == {side}

    assert len(ordered(server)) == before + 3


def test_the_panic_switch_beats_every_weight(server: Server) -> None:
    server.cli("set", "who", "100", "--wait")
    server.cli("override", "legacy", "--wait")
    assert {by for by, _ in ask_anew(server, 20)} == {"legacy"}

    server.cli("override", "none", "--wait")
    assert {by for by, _ in ask_anew(server, 20)} == {"fastapi"}


def test_a_subject_stays_on_its_side_on_every_worker_and_after_a_restart(tmp_path: Path) -> None:
    keys = [f"client-{n}" for n in range(40)]
    with serving(tmp_path, "who: 50", **PAIR) as server:
        first = sides(server, keys)
        assert set(first.values()) == {"legacy", "fastapi"}
    with serving(tmp_path, **PAIR) as server:
        assert sides(server, keys) == first

        server.put("who: 75")
        raised = sides(server, keys)
        assert [key for key in keys if first[key] == "fastapi" and raised[key] == "legacy"] == []


def sides(server: Server, keys: list[str]) -> dict[str, str]:
    """The one side of every key, seen from both workers."""
    seen: dict[str, set[str]] = {key: set() for key in keys}
    for key in keys:
        pids: set[int] = set()

        def both(key: str = key, pids: set[int] = pids) -> bool:
            for by, pid in ask_anew(server, 4, {"x-api-key": key}):
                seen[key].add(by)
                pids.add(pid)
            return len(pids) == 2

        wait_until(both, "an answer of each worker")
    assert [key for key in keys if len(seen[key]) != 1] == []
    return {key: by for key, (by,) in seen.items()}


def ask_anew(server: Server, times: int, headers: dict[str, str] | None = None) -> list[tuple[str, int]]:
    """Side and process of several answers, each over a connection of its own."""
    answers = [server.get("/who", headers) for _ in range(times)]
    return [(answer["by"], answer["pid"]) for answer in answers]


def test_an_anonymous_caller_gets_a_cookie_only_when_a_split_needs_it_and_then_stays(server: Server) -> None:
    with server.client() as client:
        assert "set-cookie" not in client.get("/who").headers

    server.put("who: 50")
    with server.client() as client:
        first = client.get("/who")
        assert list(first.cookies) == ["gw_id"]
        again = [client.get("/who") for _ in range(20)]
        assert {answer.json()["by"] for answer in again} == {first.json()["by"]}
        assert [answer for answer in again if "set-cookie" in answer.headers] == []
