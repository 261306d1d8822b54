"""What a replay finds out, and what it does not let a candidate do."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.model import Backend, Observation, Outcome, Verdict
from gateway.settings import Settings
from gateway.shadow.client import Shadow
from gateway.shadow.keeper import RECYCLED
from gateway.shadow.replay import BURST_S, Replayer, Throttle
from gateway.shadow.sides import Sides
from gateway.shadow.tape import Exchange
from tests.support.asgi import http_scope
from tests.support.candidates import IDENTITY, SECRET

from .test_shadow_client import until

APPS = {
    "GATEWAY_LEGACY": "tests.support.candidates:make_legacy",
    "GATEWAY_FASTAPI": "tests.support.candidates:make_port",
}
LEGACY, FASTAPI = Backend.LEGACY, Backend.FASTAPI


@dataclass
class Book:
    """Stands where verdicts are written down."""

    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)
    verdicts: list[tuple[str, Verdict, Observation]] = field(default_factory=list)

    def count(self, key: str, outcome: Outcome) -> None:
        self.outcomes.append((key, outcome))

    def add(self, _asked: Any, key: str, _side: Backend, verdict: Verdict, _control: Any, answer: Observation) -> None:
        self.verdicts.append((key, verdict, answer))

    def learn(self, key: str, noise: Any) -> None:
        pass

    def noise(self) -> dict[str, Any]:
        return {}


@dataclass
class Bench:
    """A replayer in this process, with a worker that hands exchanges over."""

    sides: Sides
    replayer: Replayer
    worker: Shadow
    book: Book

    async def exchange(
        self, target: str, candidate: Backend = FASTAPI, method: str = "GET", headers: Any = (), body: bytes = b""
    ) -> Exchange:
        """A request as the other side has just answered it."""
        scope = http_scope(method, target, headers)
        kept = {name: value for name, value in scope.items() if name not in ("type", "asgi", "state", "extensions")}
        key = scope["path"][1:].replace("-", "_")
        unknown = Observation(candidate.other, 200)
        asked = Exchange("r1", key, candidate, time.time(), "v1", "", kept, body, unknown)
        return replace(asked, control=await self.sides.ask(asked, candidate.other), at=time.time())

    async def verdict(self, target: str, *args: Any, **more: Any) -> tuple[Verdict, Observation]:
        before = len(self.book.verdicts)
        self.worker.submit(await self.exchange(target, *args, **more))
        await until(lambda: len(self.book.verdicts) > before, f"a verdict on {target}")
        return self.book.verdicts[-1][1:]

    async def outcome(self, target: str, *args: Any, **more: Any) -> Outcome:
        before = len(self.book.outcomes)
        self.worker.submit(await self.exchange(target, *args, **more))
        await until(lambda: len(self.book.outcomes) > before, f"an outcome of {target}")
        return self.book.outcomes[-1][1]


Start = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    lifespans = AsyncExitStack()
    benches: list[tuple[Bench, asyncio.AbstractServer, asyncio.Task[None]]] = []

    async def begin(**env: object) -> Bench:
        variables = {"GATEWAY_STATE": str(state), "GATEWAY_SHADOW_TIMEOUT_S": "1"}
        settings = Settings.load(env={**variables, **APPS, **{name: str(value) for name, value in env.items()}})
        sides, book = Sides(settings), Book()
        await sides.begin(lifespans)
        replayer = Replayer(settings, state, sides, book)
        server = await asyncio.start_unix_server(replayer.serve, state / "shadow.sock")
        worker = Shadow(settings, state, book)
        worker.start()
        beat = asyncio.create_task(replayer.beat())
        benches.append((Bench(sides, replayer, worker, book), server, beat))
        return benches[-1][0]

    yield begin
    (tmp_path / "enough").touch()  # for those that cannot be stopped
    for bench, server, beat in benches:
        await bench.worker.stop()
        beat.cancel()
        server.close()
        await asyncio.sleep(0.01)
    await lifespans.aclose()


def places(verdict: Verdict) -> list[str]:
    return [difference.where for difference in verdict.differences]


async def test_equal_answers_match(start: Start) -> None:
    verdict, _ = await (await start()).verdict("/same")

    assert verdict.matched


async def test_differences_are_found_in_both_directions(start: Start) -> None:
    bench = await start()

    before_cut_over, _ = await bench.verdict("/other", FASTAPI)
    after_cut_over, _ = await bench.verdict("/other", LEGACY)

    assert ["$.value"] == places(before_cut_over) == places(after_cut_over)
    assert (1, 2) == (before_cut_over.differences[0].control, before_cut_over.differences[0].candidate)
    assert (2, 1) == (after_cut_over.differences[0].control, after_cut_over.differences[0].candidate)


async def test_what_the_flag_ignores_does_not_count(start: Start) -> None:
    bench = await start()

    bench.worker.submit(replace(await bench.exchange("/other"), ignore=("$.value",)))
    await until(lambda: bench.book.verdicts, "a verdict")

    _, verdict, _ = bench.book.verdicts[0]
    assert verdict.matched
    assert ["$.value"] == [difference.where for difference in verdict.ignored]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_only_what_is_sent_is_compared(start: Start, method: str) -> None:
    verdict, answer = await (await start()).verdict("/other", method=method)

    assert (method == "HEAD") == verdict.matched
    assert (method == "HEAD") == (answer.body == b"")


@pytest.mark.parametrize(("target", "status"), [("/raises", 500), ("/exits", 500)])
async def test_a_candidate_that_fails_differs(start: Start, target: str, status: int) -> None:
    verdict, answer = await (await start()).verdict(target)

    assert "status" in places(verdict)
    assert status == answer.status
    assert "secret" not in answer.error


async def test_a_view_that_exits_is_a_failure_with_a_name(start: Start) -> None:
    verdict, answer = await (await start()).verdict("/exits")

    assert "error" in places(verdict)
    assert "SystemExit" == answer.error


async def test_what_fails_after_the_answer_is_not_a_difference(start: Start) -> None:
    verdict, _ = await (await start()).verdict("/background")

    assert verdict.matched


@pytest.mark.parametrize("target", ["/endless", "/huge"])
async def test_an_answer_longer_than_any_that_is_recorded_differs_and_is_not_kept(start: Start, target: str) -> None:
    verdict, answer = await (await start()).verdict(target)

    assert not verdict.matched
    assert len(answer.body) <= Settings().shadow_body_bytes + 1


async def test_a_candidate_that_never_answers_holds_up_nobody(start: Start) -> None:
    bench = await start()

    assert Outcome.TIMED_OUT is await bench.outcome("/forever")
    verdict, _ = await bench.verdict("/same")

    assert verdict.matched
    assert 0 == bench.sides.stuck


async def test_a_route_that_never_comes_back_is_left_out_for_a_while(start: Start) -> None:
    bench = await start()

    outcomes = [await bench.outcome("/forever") for _ in range(3)]
    assert [Outcome.TIMED_OUT] * 3 == outcomes

    await asyncio.sleep(1.1)  # workers look once a second
    assert not bench.worker.wants("forever")
    assert bench.worker.wants("same")


async def test_requests_that_cannot_be_stopped_make_the_process_start_afresh(start: Start, tmp_path: Path) -> None:
    bench = await start(GATEWAY_SHADOW_CONCURRENCY=2, GATEWAY_SHADOW_TIMEOUT_S=0.2)

    for _ in range(2):
        assert Outcome.TIMED_OUT is await bench.outcome("/deaf")

    assert RECYCLED == await asyncio.wait_for(bench.replayer.over, 5)
    (tmp_path / "enough").touch()
    await until(lambda: bench.sides.stuck == 0, "them to end")


async def test_a_thread_that_hangs_counts_as_stuck_until_it_is_done(start: Start) -> None:
    bench = await start(GATEWAY_SHADOW_TIMEOUT_S=0.3)
    exchange = await bench.exchange("/hangs", LEGACY)
    slow = {**exchange.scope, "query_string": b"wait=1"}

    bench.worker.submit(replace(exchange, scope=slow))
    await until(lambda: bench.book.outcomes, "an outcome")

    assert [("hangs", Outcome.TIMED_OUT)] == bench.book.outcomes
    assert 1 == bench.sides.stuck
    await until(lambda: bench.sides.stuck == 0, "the thread to end")


async def test_a_write_that_cannot_be_contained_does_not_run(start: Start, tmp_path: Path) -> None:
    bench = await start()

    assert Outcome.INCONCLUSIVE is await bench.outcome("/write", method="POST", body=b"12")
    assert not (tmp_path / "events").exists()


async def test_what_is_no_longer_fresh_is_shed(start: Start) -> None:
    bench = await start()

    bench.worker.submit(replace(await bench.exchange("/other"), at=time.time() - 5))
    await until(lambda: bench.book.outcomes, "an outcome")

    assert [("other", Outcome.SHED)] == bench.book.outcomes
    assert not bench.book.verdicts


async def test_so_many_run_at_once_and_no_more(start: Start) -> None:
    bench = await start(GATEWAY_SHADOW_CONCURRENCY=2)
    exchange = await bench.exchange("/forever")

    for _ in range(6):
        bench.worker.submit(exchange)
    await until(lambda: len(bench.replayer._running) == 2, "two to run")
    await asyncio.sleep(0.2)

    assert 2 == len(bench.replayer._running)


async def test_the_cpu_is_left_to_others() -> None:
    began, used_s = time.monotonic(), time.process_time()
    throttle = Throttle(0.5)
    while time.process_time() < used_s + 0.4:
        pass

    await throttle.pause()

    assert time.process_time() - used_s <= 0.5 * (time.monotonic() - began) + BURST_S


# --- with the rights of the user ----------------------------------------------------------------------------------


async def test_a_session_of_flask_is_a_bearer_on_the_port(start: Start, tmp_path: Path) -> None:
    bench = await start(**IDENTITY)
    signed_in = await bench.exchange("/sign-in")
    cookie = SimpleCookie(dict(signed_in.control.headers)["set-cookie"])["session"].value

    verdict, answer = await bench.verdict("/me", headers=[("cookie", f"session={cookie}")])

    assert b'{"me":7}\n' == answer.body
    assert "the port was asked for me" in (tmp_path / "events").read_text()
    assert verdict.matched


async def test_a_bearer_is_a_session_on_legacy_that_nobody_sees(start: Start) -> None:
    bench = await start(**IDENTITY)
    now = int(time.time())
    claims = {"sub": "7", "iss": "tests", "aud": "tests", "iat": now, "exp": now + 600}
    token = jwt.encode(claims, SECRET, "HS256")

    _, answer = await bench.verdict("/me", LEGACY, headers=[("authorization", f"Bearer {token}")])

    assert b'"me":7' in answer.body.replace(b" ", b"")
    assert "set-cookie" not in dict(answer.headers)


async def test_sessions_in_a_store_are_neither_written_for_a_shadow_of_the_port_nor_compared(
    start: Start, tmp_path: Path
) -> None:
    legacy = {"GATEWAY_LEGACY": "tests.support.candidates:make_legacy_with_store"}
    bench = await start(**IDENTITY, **legacy)

    verdict, answer = await bench.verdict("/me", headers=[("cookie", "session=stored")])

    assert b'{"me":7}\n' == answer.body
    assert verdict.matched
    assert 1 == (tmp_path / "events").read_text().count("store written")  # by the control
