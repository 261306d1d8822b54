"""Programs run by the port: what they say arrives, what they do ends, and the loop stays free."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
import uvloop

from fastapi_app import commands
from fastapi_app.commands import (
    CommandError,
    CommandFailed,
    CommandMissing,
    CommandStopped,
    CommandTimeout,
    OutputTooLarge,
    Runner,
)
from tests.support.processes import session_members

FOREVER = "while :; do sleep 1; done"


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    runner = Runner(threads=4)
    yield runner
    runner.stop()
    await until(lambda: not under_way(runner))


def under_way(runner: Runner) -> float:
    now = runner.statistics()
    return now["running"] + now["waiting"]


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


async def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_written(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


async def written(path: Path) -> int:
    """The number that a program has left there."""
    await until(lambda: is_written(path))
    return int(path.read_text())


def with_word(word: str) -> list[Path]:
    """The processes that have it in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path)
    return found


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- to the end --------------------------------------------------------------------------------------------------


async def test_code_output_and_complaints_come_back_apart(runner: Runner) -> None:
    finished = await runner.run(shell("printf out; printf err >&2; exit 3"))
    assert (3, b"out", b"err", False) == (finished.code, finished.stdout, finished.stderr, finished.truncated)
    assert 0 < finished.seconds < 30


async def test_words_reach_the_program_as_they_are(runner: Runner, tmp_path: Path) -> None:
    words = ["%s|", "a b", "$HOME", "; rm -rf x", "'", "", "é\udcff"]
    assert b"a b|$HOME|; rm -rf x|'||\xc3\xa9\xff|" == (await runner.run(["printf", *words])).stdout
    (tmp_path / "file").touch()
    assert 0 == (await runner.run(["test", "-f", tmp_path / "file"])).code


@pytest.mark.parametrize("command", ["echo x", b"echo x", [], ["echo", 5]])
async def test_a_text_is_no_command(runner: Runner, command: object) -> None:
    with pytest.raises(TypeError):
        await runner.run(command)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await anext(runner.lines(command))  # type: ignore[arg-type]
    assert 0 == sum(runner.statistics().values())


async def test_a_word_with_a_nul_is_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match="null"):
        await runner.run(["echo", "a\0b"])


async def test_the_environment_is_ours_and_what_is_added(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    assert b"1 2\n" == (await runner.run(shell("echo $OURS $ADDED"), env={"ADDED": "2"})).stdout


async def test_a_program_reads_nothing(runner: Runner) -> None:
    assert b"" == (await runner.run(["cat"], timeout_s=10)).stdout


async def test_bytes_of_any_kind_come_back_unchanged(runner: Runner, tmp_path: Path) -> None:
    garbage = os.urandom(300_000)
    (tmp_path / "garbage").write_bytes(garbage)
    assert garbage == (await runner.run(["cat", tmp_path / "garbage"])).stdout


async def test_stderr_is_read_to_its_end_and_kept_up_to_64_kib(runner: Runner) -> None:
    finished = await runner.run(python("import sys; sys.stderr.write('x' * 1_000_000); print('done')"), timeout_s=20)
    assert (b"done\n", b"x" * 65_536, True) == (finished.stdout, finished.stderr, finished.truncated)


async def test_both_pipes_may_be_full_at_the_same_time(runner: Runner) -> None:
    script = "import os\nfor _ in range(20): os.write(2, b'e' * 60_000); os.write(1, b'o' * 60_000)"
    finished = await runner.run(python(script), timeout_s=20, max_bytes=2_000_000)
    assert 1_200_000 == len(finished.stdout)


async def test_a_signal_of_others_is_a_negative_code(runner: Runner) -> None:
    assert -signal.SIGTERM == (await runner.run(shell("kill -TERM $$"))).code


@pytest.mark.parametrize("kind", ["missing", "not executable", "a folder", "no program"])
async def test_what_cannot_be_started_is_missing(runner: Runner, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "program"
    if kind == "a folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\x00\x01\x02")
        path.chmod(0o755 if kind == "no program" else 0o644)
    with pytest.raises(CommandMissing, match=f"{path} cannot be started: "):
        await runner.run([path])
    with pytest.raises(CommandMissing):
        await anext(runner.lines([path]))
    with pytest.raises(CommandMissing):
        await runner.launch([path])
    assert (0, 2, 0) == tuple(runner.statistics()[name] for name in ("run_total", "failed_total", "running"))


# --- limits ------------------------------------------------------------------------------------------------------


async def test_at_time_out_the_whole_group_is_killed_even_if_it_ignores_sigterm(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over as soon as all of it is there, however long that takes."""
    monkeypatch.setattr(commands, "monotonic", lambda: time.monotonic() + 60 * is_written(tmp_path / "pid"))
    known = f"echo $(sh -c 'echo $PPID') > {tmp_path}/pid; echo known"
    script = f"trap '' TERM INT HUP; (trap '' TERM; {known}; {FOREVER}) & {FOREVER}"
    with pytest.raises(CommandTimeout):
        await runner.run(shell(script), timeout_s=60)
    grandchild = await written(tmp_path / "pid")
    await until(lambda: gone(grandchild))


async def test_too_much_output_ends_the_program(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(OutputTooLarge):
        await runner.run(shell(f"echo $$ > {tmp_path}/pid; exec yes"), max_bytes=1000)
    assert gone(await written(tmp_path / "pid"))


async def test_as_much_output_as_allowed_is_not_too_much(runner: Runner) -> None:
    assert b"12345" == (await runner.run(["printf", "12345"], max_bytes=5)).stdout
    with pytest.raises(OutputTooLarge):
        await runner.run(["printf", "123456"], max_bytes=5)


async def test_a_program_that_closes_its_pipes_still_has_only_its_time(runner: Runner) -> None:
    with pytest.raises(CommandTimeout):
        await runner.run(shell(f"exec >&- 2>&-; {FOREVER}"), timeout_s=0.3)


async def test_what_a_program_leaves_behind_is_killed_when_it_ends(runner: Runner, tmp_path: Path) -> None:
    finished = await runner.run(shell(f"({FOREVER}) & echo $! > {tmp_path}/pid; echo done"), timeout_s=20)
    assert b"done\n" == finished.stdout
    assert finished.seconds < 10  # though the pipe was open
    left = await written(tmp_path / "pid")
    await until(lambda: gone(left))


async def test_a_descendant_that_escapes_keeps_nobody_waiting(runner: Runner, tmp_path: Path) -> None:
    daemon = f"import os,time; os.setsid(); print(os.getpid(), file=open('{tmp_path}/pid', 'w')); time.sleep(60)"
    script = f"""{sys.executable} -I -S -c "{daemon}" & while [ ! -s {tmp_path}/pid ]; do sleep 0.01; done; echo done"""
    finished = await runner.run(shell(script), timeout_s=20)
    assert b"done\n" == finished.stdout
    os.kill(await written(tmp_path / "pid"), signal.SIGKILL)


# --- nobody waits any more ---------------------------------------------------------------------------------------


async def test_a_cancelled_caller_takes_the_group_along(runner: Runner, tmp_path: Path) -> None:
    task = asyncio.create_task(runner.run(shell(f"trap '' TERM; echo $$ > {tmp_path}/pid; {FOREVER}")))
    pid = await written(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)  # not later: now
    await until(lambda: not session_members(pid))
    assert (1, 0) == (runner.statistics()["killed_total"], runner.statistics()["running"])


async def test_a_caller_that_is_cancelled_while_it_waits_its_turn_starts_nothing(tmp_path: Path) -> None:
    runner = Runner(threads=1)
    first = asyncio.create_task(runner.run(shell(f"echo $$ > {tmp_path}/first; {FOREVER}")))
    await written(tmp_path / "first")
    second = asyncio.create_task(runner.run(["touch", tmp_path / "second"]))
    await until(lambda: runner.statistics()["waiting"] == 1)
    for task in (second, first):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await runner.run(["true"])
    assert not (tmp_path / "second").exists()
    assert (2, 0) == (runner.statistics()["run_total"], runner.statistics()["waiting"])


async def test_a_time_out_of_the_caller_is_as_good(runner: Runner, tmp_path: Path) -> None:
    task = asyncio.create_task(runner.run(shell(f"echo $$ > {tmp_path}/pid; {FOREVER}")))
    pid = await written(tmp_path / "pid")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.05)
    await until(lambda: not session_members(pid))


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(runner: Runner) -> None:
    number = f"600.{os.getpid()}"
    for turns in range(30):
        task = asyncio.create_task(runner.run(["sleep", number]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not under_way(runner))
    assert [] == with_word(number)


async def test_stop_ends_everything_and_the_runner_goes_on(tmp_path: Path) -> None:
    runner = Runner(threads=2)
    tasks = [asyncio.create_task(runner.run(shell(f"echo $$ > {tmp_path}/{n}; {FOREVER}"))) for n in range(5)]
    pids = [await written(tmp_path / str(n)) for n in range(2)]
    runner.stop()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, CommandStopped) for end in ends)
    assert all(map(gone, pids))
    assert ["0", "1"] == sorted(path.name for path in tmp_path.iterdir())
    assert b"on\n" == (await runner.run(["echo", "on"])).stdout


# --- many --------------------------------------------------------------------------------------------------------


async def test_200_at_once_in_four_threads_all_end_and_never_more_than_four_run(runner: Runner, tmp_path: Path) -> None:
    """The first four wait for what only the loop can do: it goes on."""
    script = f"touch {tmp_path}/$0; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo $0"
    running = [asyncio.create_task(runner.run(["sh", "-c", script, str(n)], timeout_s=60)) for n in range(200)]
    await until(lambda: len(list(tmp_path.iterdir())) == 4)
    counts = runner.statistics()
    assert (4, 196) == (counts["running"], counts["waiting"])
    (tmp_path / "go").touch()
    assert [f"{n}\n".encode() for n in range(200)] == [one.stdout for one in await asyncio.gather(*running)]


async def test_what_has_been_run_is_counted(runner: Runner) -> None:
    for command in (["true"], ["false"], ["/nowhere"], ["sleep", "600"]):
        try:
            await runner.run(command, timeout_s=0.2 if command[0] == "sleep" else 30)
        except CommandError:
            continue
    counts = runner.statistics()
    assert 0.2 <= counts.pop("seconds_total")
    assert counts == {
        "run_total": 3, "failed_total": 2, "timed_out_total": 1, "killed_total": 1, "running": 0, "waiting": 0,
    }  # fmt: skip


# --- streams -----------------------------------------------------------------------------------------------------


async def test_lines_come_while_the_program_runs(runner: Runner, tmp_path: Path) -> None:
    script = f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; printf 'two\\nthree'"
    lines = []
    async for line in runner.lines(shell(script)):
        lines.append(line)
        (tmp_path / "go").touch()
    assert ["one", "two", "three"] == lines


async def test_lines_of_any_bytes_and_any_length_are_text(runner: Runner) -> None:
    script = r"printf '\377\n\0\r\n\n'; head -c 200000 /dev/zero | tr '\0' x; printf '\nend'"
    lines = [line async for line in runner.lines(shell(script))]
    assert ["�", "\0\r", ""] == lines[:3]
    assert ("x" * 200_000, "end") == ("".join(lines[3:-1]), lines[-1])
    assert max(map(len, lines)) < 100_000


async def test_a_stream_that_ends_badly_says_so_with_its_last_words(runner: Runner) -> None:
    script = "echo line; head -c 300000 /dev/zero >&2; echo last words >&2; exit 4"
    lines = runner.lines(shell(script))
    assert "line" == await anext(lines)
    with pytest.raises(CommandFailed) as failed:
        await anext(lines)
    assert (4, True) == (failed.value.code, failed.value.stderr.endswith(b"\0last words\n"))
    assert len(failed.value.stderr) <= 65_536


async def test_whoever_stops_reading_lines_stops_the_program(runner: Runner, tmp_path: Path) -> None:
    async for line in runner.lines(shell(f"echo $$ > {tmp_path}/pid; trap '' PIPE; yes")):
        assert "y" == line
        break
    pid = await written(tmp_path / "pid")
    await until(lambda: not session_members(pid))
    await until(lambda: runner.statistics()["killed_total"] == 1)


async def test_a_reader_that_is_cancelled_takes_the_group_along(runner: Runner, tmp_path: Path) -> None:
    async def read() -> None:
        async with aclosing(runner.lines(shell(f"echo $$ > {tmp_path}/pid; {FOREVER}"))) as lines:
            async for _ in lines:
                pass

    task = asyncio.create_task(read())
    pid = await written(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)
    await until(lambda: not session_members(pid))


async def test_a_silent_stream_has_its_time_too(runner: Runner) -> None:
    for command in (["sleep", "600"], shell(f"exec >&-; {FOREVER}")):
        with pytest.raises(CommandTimeout):
            await anext(runner.lines(command, timeout_s=0.2))
    assert (2, 2) == (runner.statistics()["timed_out_total"], runner.statistics()["killed_total"])


async def test_a_slow_reader_holds_the_program_not_our_memory(runner: Runner) -> None:
    async with aclosing(runner.chunks(["cat", "/dev/zero"])) as chunks:
        assert b"\0" == (await anext(chunks))[:1]
        before = len(await anext(chunks))
        assert 0 < before <= commands.CHUNK


async def test_a_loud_stream_leaves_the_loop_to_others(runner: Runner) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while turns < 50:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(others())
    async with aclosing(runner.lines(["yes"])) as lines:
        async for _ in lines:
            if working.done():
                break
    assert 50 == turns


async def test_streams_take_no_thread_from_the_others(tmp_path: Path) -> None:
    runner = Runner(threads=1)
    streams = [runner.chunks(shell(f"echo x; {FOREVER}")) for _ in range(8)]
    assert [b"x\n"] * 8 == [await anext(stream) for stream in streams]
    assert b"y\n" == (await runner.run(["echo", "y"], timeout_s=20)).stdout
    for stream in streams:
        await stream.aclose()


async def test_streams_are_bounded_too() -> None:
    runner = Runner(streams=1)
    first, second = (runner.chunks(shell(f"echo x; {FOREVER}")) for _ in range(2))
    await anext(first)
    waiting = asyncio.ensure_future(anext(second))
    await until(lambda: runner.statistics()["waiting"] == 1)
    await first.aclose()
    assert b"x\n" == await waiting
    await second.aclose()


async def test_stop_ends_streams(runner: Runner) -> None:
    lines = runner.lines(shell(f"echo x; {FOREVER}"))
    assert "x" == await anext(lines)
    runner.stop()
    with pytest.raises(CommandStopped):
        await anext(lines)


async def test_a_stream_that_was_started_in_vain_leaves_nothing(runner: Runner) -> None:
    for turns in range(30):
        task = asyncio.ensure_future(anext(runner.chunks(["sleep", "600"])))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not under_way(runner))


# --- and left alone ----------------------------------------------------------------------------------------------


async def test_what_is_launched_is_stopped_by_nobody(runner: Runner, tmp_path: Path) -> None:
    await runner.launch(shell(f"echo $$ > {tmp_path}/pid; {FOREVER}"))
    pid = await written(tmp_path / "pid")
    runner.stop()
    await runner.run(["true"])
    assert not gone(pid)
    os.killpg(pid, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{pid}").exists())  # no zombie


# --- on the loop that serves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_start_that_is_cancelled_at_any_moment_leaves_nothing,
        test_lines_of_any_bytes_and_any_length_are_text,
        test_a_stream_that_ends_badly_says_so_with_its_last_words,
        test_a_silent_stream_has_its_time_too,
        test_a_slow_reader_holds_the_program_not_our_memory,
        test_a_loud_stream_leaves_the_loop_to_others,
        test_a_stream_that_was_started_in_vain_leaves_nothing,
        test_stop_ends_streams,
    ],
    ids=lambda scenario: scenario.__name__.removeprefix("test_"),
)
def test_on_uvloop_too(scenario: Callable[[Runner], Coroutine[None, None, None]]) -> None:
    uvloop.run(scenario(Runner(threads=4)))
