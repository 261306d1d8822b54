"""The processes of `serve`: start, shutdown, dead workers, dead supervisors. Each test runs its own, around a stub."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.server import environment, serve
from gateway.settings import IdentitySettings, Settings
from tests.support.processes import child, free_port, session_members, wait_until
from tests.support.wire import Wire, echo, lifespan, reply

ROOT = Path(__file__).parents[2]


# --- the stub that workers run ---


def create_app() -> Any:
    """Raises what GATEWAY_LEGACY says, as long as that file exists."""
    if os.environ["GATEWAY_FASTAPI"] == "slow":
        print("loading", flush=True)
        time.sleep(30)
    if os.environ["GATEWAY_FASTAPI"] == "thread":
        Thread(target=time.sleep, args=(60,)).start()
    if (trouble := Path(os.environ["GATEWAY_LEGACY"])).is_file():
        raise ConfigError(trouble.read_text())
    return stub


async def stub(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        if os.environ["GATEWAY_FASTAPI"] == "fails":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "the database is away"})
            return
        await lifespan(receive, send)
    elif scope["path"] == "/pid":
        await reply(send, b"%d" % os.getpid(), (b"content-length", b"%d" % len(str(os.getpid()))))
    elif scope["path"] == "/slow":
        print("slow began", flush=True)
        await asyncio.sleep(1)
        await reply(send, b"slow", (b"content-length", b"4"))
    elif scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.05)
    else:
        await echo(scope, receive, send)


# --- running it ---


@dataclass(frozen=True)
class Run:
    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    trouble: Path

    def pid(self) -> int:
        with Wire(self.port) as wire:
            return int(wire.get("/pid").body)

    def workers(self, count: int) -> set[int]:
        """The processes that answer, when there are `count` of them."""
        seen: set[int] = set()
        wait_until(lambda: seen.add(self.pid()) or len(seen) >= count, f"{count} workers; see {self.log}")
        return seen

    def end(self, timeout_s: float = 10.0) -> int:
        return self.process.wait(timeout_s)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        self.process.send_signal(sig)


@contextmanager
def running(directory: Path, trouble: str = "", *, fastapi: str = "", **settings: Any) -> Iterator[Run]:
    port, log, file = free_port(), directory / "log", directory / "trouble"
    if trouble:
        file.write_text(trouble)
    values = {"port": port, "drain_s": 3, "legacy": file, "fastapi": fastapi, **settings}
    code = f"""
if __name__ == "__main__":
    import sys
    from gateway.errors import GatewayError
    from gateway.server import serve
    from gateway.settings import Settings
    try:
        sys.exit(serve(Settings.load(), factory="{__name__}:create_app"))
    except GatewayError as error:
        sys.exit(f"gateway: {{error}}")
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    env |= {f"GATEWAY_{name.upper()}": str(value) for name, value in values.items()} | {"PYTHONPATH": str(ROOT)}
    with child([sys.executable, "-c", code], log, cwd=directory, env=env) as process:
        yield Run(process, port, log, file)


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    with running(tmp_path, workers=request.param) as run:
        wait_until(lambda: "startup complete" in run.log.read_text(), "the server")
        yield run


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Run]:
    with running(tmp_path, workers=2) as run:
        wait_until(lambda: "startup complete" in run.log.read_text(), "the server")
        run.workers(2)
        yield run


# --- settings travel to the workers ---


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = Settings(
        legacy="a:b", port=1, served_by=True, route_once=False, stream_request=("x.y", "z"), drain_s=0.5,
        identity=IdentitySettings(claims={"user_id": "sub", "token": "sid"}, issuer="me", lifetime_s=5),
    )  # fmt: skip

    assert settings == Settings.load(env=environment(settings), root=Path("/nonexistent"))
    assert Settings() == Settings.load(env=environment(Settings()), root=Path("/nonexistent"))


# --- what cannot start ---


def test_an_occupied_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: in use by another process"):
            serve(Settings(port=port))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(host="no.such.host.invalid"), "'no.such.host.invalid' is not a known host"),
        (Settings(host="203.0.113.1"), "this machine does not have the address"),
        (Settings(port=70000), "port: expected 0 to 65535, not 70000"),
        (Settings(port=-1), "port: expected 0 to 65535, not -1"),
        (Settings(workers=0), "workers: expected 1 or more, not 0"),
        (Settings(log_level="loud"), "log_level: expected one of .*, not 'loud'"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: Settings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(settings)


def test_what_the_factory_raises_comes_out(tmp_path: Path) -> None:
    with running(tmp_path, "no such application") as run:
        assert run.end() == 1
        assert run.log.read_text().endswith("gateway: no such application\n")


def test_a_factory_that_raises_in_a_worker_is_heard_once(tmp_path: Path) -> None:
    with running(tmp_path, "no such application", workers=3) as run:
        assert run.end() == 2
        text = run.log.read_text()

    assert text.count("gateway: no such application") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lifespan_that_fails_ends_with_2(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, fastapi="fails", workers=workers) as run:
        assert run.end() == 2
        text = run.log.read_text()

    assert text.count("the database is away") == 1
    assert "Traceback" not in text


# --- shutdown ---


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_exits_with_0(run: Run, sig: int) -> None:
    with Wire(run.port, b"GET /slow HTTP/1.1\r\n\r\n") as slow, Wire(run.port) as idle:
        assert idle.get("/pid").status == 200
        wait_until(lambda: "slow began" in run.log.read_text(), "the request to be inside")
        run.stop(sig)
        answer = slow.answer()
        assert (b"slow", "close") == (answer.body, answer.get("connection"))
    assert run.end() == 0
    wait_until(lambda: not session_members(run.process.pid), "the last process to go")
    assert "Traceback" not in run.log.read_text()


def test_a_request_that_is_on_its_way_is_answered_by_a_server_that_stops(run: Run) -> None:
    with Wire(run.port) as wire:
        assert wire.get("/pid").status == 200
        run.stop()
        wait_until(lambda: "Shutting down" in run.log.read_text(), "the shutdown")
        answer = wire.get("/pid")
        assert (200, "close") == (answer.status, answer.get("connection"))
    assert run.end() == 0


def test_an_open_stream_ends_with_the_drain(run: Run) -> None:
    with Wire(run.port, b"GET /endless HTTP/1.1\r\n\r\n") as wire:
        assert wire.until(b".")
        run.stop()
        begun = time.monotonic()
        assert run.end() == 0
        assert 2 < time.monotonic() - begun < 7
        with pytest.raises((EOFError, ConnectionResetError)):
            wire.answer()
    assert "Traceback" not in run.log.read_text()


def test_the_same_signal_again_ends_at_once(run: Run) -> None:
    with Wire(run.port, b"GET /endless HTTP/1.1\r\n\r\n") as wire:
        assert wire.until(b".")
        run.stop()
        time.sleep(0.7)  # two signals closer than that are one wish, told by a terminal and by a parent
        run.stop()
        begun = time.monotonic()
        assert run.end() != 0
        assert time.monotonic() - begun < 1
    wait_until(lambda: not session_members(run.process.pid), "the last process to go")


def test_two_signals_at_the_same_time_are_one_wish(run: Run) -> None:
    with Wire(run.port, b"GET /slow HTTP/1.1\r\n\r\n") as wire:
        wait_until(lambda: "slow began" in run.log.read_text(), "the request to be inside")
        for pid in session_members(run.process.pid):
            os.kill(pid, signal.SIGINT)
        run.stop()
        assert wire.answer().body == b"slow"
    assert run.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_the_applications_load_ends_quietly(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, fastapi="slow", workers=workers) as run:
        wait_until(lambda: "loading" in run.log.read_text(), "the factory")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end(15) == 0
        assert "Traceback" not in run.log.read_text()


def test_a_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    with running(tmp_path, fastapi="thread", drain_s=0) as run:
        wait_until(lambda: "startup complete" in run.log.read_text(), "the server")
        run.stop()
        assert run.end() == 0


# --- workers ---


def test_a_killed_worker_is_replaced_within_a_second_or_two(two: Run) -> None:
    before = two.workers(2)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: "ended with" in two.log.read_text(), "the supervisor to notice")
    assert time.monotonic() - killed < 0.5
    after = two.workers(2)

    assert len(after - before) == 1
    assert victim not in after
    two.stop()
    assert two.end() == 0


def test_workers_follow_a_killed_supervisor(two: Run) -> None:
    with Wire(two.port, b"GET /slow HTTP/1.1\r\n\r\n") as wire:
        wait_until(lambda: "slow began" in two.log.read_text(), "the request to be inside")
        two.process.kill()
        assert wire.answer().body == b"slow"
    wait_until(lambda: not session_members(two.process.pid), "the workers to go")


def test_a_worker_that_cannot_be_replaced_leaves_the_others_serving(two: Run) -> None:
    two.trouble.write_text("the flag file is broken")
    victim = two.pid()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "gateway: the flag file is broken" in two.log.read_text(), "an attempt to replace it")
    assert {two.pid() for _ in range(20)} != {victim}
    two.trouble.unlink()
    two.workers(2)


def test_sighup_replaces_all_workers_and_loses_no_request(two: Run) -> None:
    before = two.workers(2)
    two.stop(signal.SIGHUP)
    wire = Wire(two.port)
    deadline = time.monotonic() + 15
    while two.pid() in before:
        answer = wire.get("/pid")
        assert answer.status == 200
        if answer.get("connection") == "close":
            wire.sock.close()
            wire = Wire(two.port)
        assert time.monotonic() < deadline
    wire.sock.close()
    wait_until(lambda: before.isdisjoint(session_members(two.process.pid)), "the old workers to go")


def test_sigttin_and_sigttou_add_and_remove_a_worker(two: Run) -> None:
    before = two.workers(2)
    two.stop(signal.SIGTTIN)
    assert len(two.workers(3) - before) == 1
    two.stop(signal.SIGTTOU)
    wait_until(lambda: len(before & set(session_members(two.process.pid))) == 2, "the old ones")
    assert two.workers(2)
