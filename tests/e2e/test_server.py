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

from gateway import protocol
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
        time.sleep(90)
    if os.environ["GATEWAY_FASTAPI"] == "thread":
        Thread(target=time.sleep, args=(90,)).start()
    if os.environ["GATEWAY_FASTAPI"] == "patient":
        protocol.RETIRE_S = 30.0  # the test may be slow to ask
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
        while not Path("finish").exists():
            await asyncio.sleep(0.02)
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

    def end(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        self.process.send_signal(sig)

    def said(self, words: str, times: int = 1) -> None:
        """Wait until they are in the log so often."""
        wait_until(lambda: self.log.read_text().count(words) >= times, f"{words!r} in {self.log}")

    def finish(self) -> None:
        """Let `/slow` answer."""
        (self.log.parent / "finish").touch()


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
def count(request: pytest.FixtureRequest) -> int:
    """Processes that serve."""
    return int(request.param)


@pytest.fixture
def run(tmp_path: Path, count: int) -> Iterator[Run]:
    with running(tmp_path, workers=count, fastapi="patient", drain_s=40) as run:
        run.said("startup complete", count)
        yield run


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Run]:
    with running(tmp_path, workers=2, fastapi="patient", drain_s=40) as run:
        run.said("startup complete", 2)
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
def test_a_signal_lets_requests_finish_and_exits_with_0(run: Run, count: int, sig: int) -> None:
    with Wire(run.port, b"GET /slow HTTP/1.1\r\n\r\n") as slow:
        with Wire(run.port) as idle:
            assert idle.get("/pid").status == 200
            run.said("slow began")
            run.stop(sig)
            run.said("Shutting down", count)
        run.finish()
        answer = slow.answer()
        assert (b"slow", "close") == (answer.body, answer.get("connection"))
    assert run.end() == 0
    wait_until(lambda: not session_members(run.process.pid), "the last process to go")
    assert "Traceback" not in run.log.read_text()


def test_a_request_that_is_on_its_way_is_answered_by_a_server_that_stops(run: Run, count: int) -> None:
    with Wire(run.port) as wire:
        assert wire.get("/pid").status == 200
        run.stop()
        run.said("Shutting down", count)
        answer = wire.get("/pid")
        assert (200, "close") == (answer.status, answer.get("connection"))
    assert run.end() == 0


def test_an_open_stream_ends_with_the_drain(tmp_path: Path, count: int) -> None:
    with running(tmp_path, workers=count) as run:
        run.said("startup complete", count)
        with Wire(run.port, b"GET /endless HTTP/1.1\r\n\r\n") as wire:
            assert wire.until(b".")
            begun = time.monotonic()
            run.stop()
            assert run.end() == 0
            assert time.monotonic() - begun > 2
            with pytest.raises((EOFError, ConnectionResetError)):
                wire.answer()
        text = run.log.read_text()
    assert text.count("Finished server process") == count  # in good order, and not only because time was up
    assert "Traceback" not in text


def test_the_same_signal_again_ends_at_once(run: Run, count: int) -> None:
    with Wire(run.port, b"GET /endless HTTP/1.1\r\n\r\n") as wire:
        assert wire.until(b".")
        run.stop()
        run.said("Shutting down", count)
        time.sleep(1.5)  # two signals close together are one wish, told by a terminal and by a parent
        run.stop()
        assert run.end(15) != 0  # long before the drain is over
    wait_until(lambda: not session_members(run.process.pid), "the last process to go")


def test_two_signals_at_the_same_time_are_one_wish(run: Run, count: int) -> None:
    with Wire(run.port, b"GET /slow HTTP/1.1\r\n\r\n") as wire:
        run.said("slow began")
        members = session_members(run.process.pid)
        for sig in (signal.SIGSTOP, signal.SIGINT):  # stopped they hear nothing until they may go on
            for pid in members:
                os.kill(pid, sig)
        run.stop()
        for pid in members:
            os.kill(pid, signal.SIGCONT)
        run.said("Shutting down", count)
        run.finish()
        assert wire.answer().body == b"slow"
    assert run.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_the_applications_load_ends_quietly(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, fastapi="slow", workers=workers) as run:
        run.said("loading")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 0
        assert "Traceback" not in run.log.read_text()


def test_a_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    with running(tmp_path, fastapi="thread", drain_s=0) as run:
        run.said("startup complete")
        run.stop()
        assert run.end() == 0


# --- workers ---


def test_a_killed_worker_is_replaced_within_a_second_or_two(two: Run) -> None:
    before = two.workers(2)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "ended with" in two.log.read_text(), "the supervisor to notice sooner than that one hangs", 10)
    after = two.workers(2)

    assert len(after - before) == 1
    assert victim not in after
    two.stop()
    assert two.end() == 0


def test_workers_follow_a_killed_supervisor(two: Run) -> None:
    with Wire(two.port, b"GET /slow HTTP/1.1\r\n\r\n") as wire:
        two.said("slow began")
        two.process.kill()
        two.said("Shutting down", 2)
        two.finish()
        assert wire.answer().body == b"slow"
    wait_until(lambda: not session_members(two.process.pid), "the workers to go")


def test_a_worker_that_cannot_be_replaced_leaves_the_others_serving(two: Run) -> None:
    two.trouble.write_text("the flag file is broken")
    victim = two.pid()
    os.kill(victim, signal.SIGKILL)
    two.said("gateway: the flag file is broken")
    assert {two.pid() for _ in range(20)} != {victim}
    two.trouble.unlink()
    two.workers(2)


def test_sighup_replaces_all_workers_and_loses_no_request(two: Run) -> None:
    before = two.workers(2)
    two.stop(signal.SIGHUP)
    wire = Wire(two.port)
    deadline = time.monotonic() + 60
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
