"""Programs: off the loop, a few at once, each with a time limit, a limit for what it says, and an end.

    finished = await commands.run(["ffprobe", "-version"], timeout_s=5)
    async for line in commands.lines(["ffmpeg", "-progress", "pipe:1", ...]): ...

A command is a list, never a text for a shell. Its program reads nothing and leads a process group of its own, which
is killed as a whole when the time is over, when it says too much, when nobody waits any more, at `stop`, and for what
is left of it when the program has ended. SIGKILL: there is nothing to ignore. Only a descendant that opens a session of
its own escapes.

Programs are started, and those of `run` waited for, in threads: uvloop forks on the loop, which then stands still for
as long as this process is large; `subprocess` uses vfork. Usable alone; the application shares the runner at the end.
"""

import asyncio
import os
import resource
import select
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import anyio

CHUNK = 64 * 1024  # bytes read at once
MAX_STDERR = 64 * 1024  # bytes kept; the rest is read and forgotten
MAX_LINE = 64 * 1024  # bytes; a longer line comes in pieces
FEW = 8 * 1024  # bytes, whose lines can be worked on without keeping the loop
LINGER_S = 1.0  # between the end of the output and that of the program

T = TypeVar("T")
Command = Sequence[str | os.PathLike[str]]
Limits = Mapping[int, int]  # of `resource`: RLIMIT_CPU and so on


class CommandError(Exception):
    """A program did not do its work. `str(error)` is for a log, not for a client."""


class CommandMissing(CommandError):
    """It does not exist, or cannot be executed."""


class CommandTimeout(CommandError):
    """It was killed because its time was over."""


class OutputTooLarge(CommandError):
    """It was killed because it said too much."""


class CommandStopped(CommandError):
    """It was killed by `stop`, or did not begin because of it."""


class CommandFailed(CommandError):
    """It ended with another code than 0. `stderr` is the end of what it complained about."""

    def __init__(self, message: str, code: int, stderr: bytes) -> None:
        super().__init__(message)
        self.code, self.stderr = code, stderr


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended by itself; `code` is negative when a signal of others ended it."""

    code: int
    stdout: bytes
    stderr: bytes  # its first 64 KiB
    seconds: float
    truncated: bool  # whether there was more in stderr


class Runner:
    """At most `threads` programs of `run` and `streams` of `lines` and `chunks` at once; the others wait their turn."""

    def __init__(self, threads: int = 8, streams: int = 64) -> None:
        self._threads = ThreadPoolExecutor(threads, "command")
        self._starters = ThreadPoolExecutor(2, "command-start")  # a stream keeps no thread, and waits for no `run`
        self._streams = anyio.CapacityLimiter(streams)
        self._jobs: set[_Job] = set()
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    async def run(
        self,
        command: Command,
        *,
        timeout_s: float = 30,
        max_bytes: int = 1_000_000,
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a program to its end. `timeout_s` counts from its start, `max_bytes` its stdout; `env` is added to ours.

        Raises CommandMissing, CommandTimeout, OutputTooLarge, CommandStopped; TypeError for a text instead of a list,
        ValueError for an argument that holds a NUL.
        """
        job = _Job(command, env)
        with self._counted(job):
            return await _in_thread(self._threads, job, lambda: job.converse(timeout_s, max_bytes))

    async def lines(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> AsyncGenerator[str, None]:
        """The lines of stdout as they come, without their ends; bytes that are no UTF-8 are replaced.

        The program waits for a slow reader, and is killed when nobody reads any more. Raises what `run` raises, and
        CommandFailed at the end.
        """
        job, rest = _Job(command, env, limits), b""
        async with self._streaming(job) as pipes:
            deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            while chunk := await _before(deadline, job, pipes.read(FEW)):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) >= MAX_LINE:
                    whole, rest = [*whole, rest], b""
                for line in whole:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
            await _before(deadline, job, job.ended())
        if job.code:
            raise CommandFailed(f"{job.name} ended with code {job.code}", job.code, bytes(pipes.complaints))

    async def chunks(
        self, command: Command, *, env: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of stdout as they come, whatever the code at the end.

        The program waits for a slow reader, and is killed when nobody reads any more. Raises CommandMissing and
        CommandStopped.
        """
        job = _Job(command, env, limits)
        async with self._streaming(job) as pipes:
            while chunk := await pipes.read(CHUNK):
                yield chunk
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await job.ended()

    async def launch(self, command: Command) -> None:
        """Start a program and leave it alone: it outlives this process. Raises CommandMissing."""
        job = _Job(command, None)
        process = await _in_thread(self._starters, job, lambda: job.start(subprocess.DEVNULL))
        threading.Thread(target=process.wait, daemon=True).start()  # or a zombie would remain

    def stop(self) -> None:
        """Kill every program; those that wait do not begin. The runner may be used again."""
        for job in list(self._jobs):
            job.kill(CommandStopped(f"{job.name} was stopped"))

    def statistics(self) -> dict[str, float]:
        """What has been run so far, and what is under way. What could not be started has failed."""
        counts = {f"{name}_total": self._counts[name] for name in ("run", "failed", "timed_out", "killed")}
        now = Counter(job.state for job in list(self._jobs))
        return {**counts, "seconds_total": self._seconds, "running": now["running"], "waiting": now["waiting"]}

    @contextmanager
    def _counted(self, job: "_Job") -> Iterator[None]:
        self._jobs.add(job)
        try:
            yield
        finally:
            self._jobs.discard(job)
            self._seconds += job.seconds
            self._counts.update(job.outcome())

    @asynccontextmanager
    async def _streaming(self, job: "_Job") -> AsyncIterator["_Pipes"]:
        """Its output. Raises CommandStopped at the end, when that is why it ended."""
        with self._counted(job):
            await self._streams.acquire_on_behalf_of(job)  # not of the task: that may read from several
            try:
                process = await _in_thread(self._starters, job, lambda: job.start(subprocess.PIPE))
                with _Pipes(process) as pipes:
                    yield pipes
            except CommandError:
                raise
            except BaseException:
                job.kill(CommandStopped(f"nobody reads from {job.name} any more"))
                raise
            finally:
                self._streams.release_on_behalf_of(job)
                job.kill()
                with anyio.CancelScope(shield=True):
                    await asyncio.shield(asyncio.wrap_future(self._starters.submit(job.reap)))
            if job.why:
                raise job.why


class _Job:
    """One program, from the wish to its end."""

    def __init__(self, command: Command, env: Mapping[str, str] | None, limits: Limits | None = None) -> None:
        if isinstance(command, str | bytes) or not command:
            raise TypeError("a command is a list of words: the program and its arguments")
        self._words = [os.fspath(word) for word in command]
        self._env = {**os.environ, **env} if env else None
        self._limits = limits or {}
        self._lock = threading.Lock()  # held while its number is used: the number of a reaped one may be another's
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._ended = 0.0
        self._gone = False  # but for its number: it is a zombie
        self.code: int | None = None
        self.why: CommandError | None = None  # why it was killed

    @property
    def name(self) -> str:
        return self._words[0]

    @property
    def state(self) -> str:
        return "waiting" if not self._began else "ended" if self._ended else "running"

    @property
    def seconds(self) -> float:
        return (self._ended or monotonic()) - self._began if self._began else 0.0

    def outcome(self) -> Iterator[str]:
        """The statistics that it belongs to."""
        if self._began:
            yield "run"
        if self.why is None or isinstance(self.why, CommandMissing):
            if self.code != 0:
                yield "failed"
        elif self._began:
            yield "killed"
            if isinstance(self.why, CommandTimeout):
                yield "timed_out"

    # From any thread

    def kill(self, why: CommandError | None = None) -> None:
        """Kill the group, or let it not begin; the first reason counts."""
        with self._lock:
            self.why = self.why or why
            if self._process is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until the program, not its group, has ended."""
        with self._lock:
            if self._process is None:
                return
            watched = os.pidfd_open(self._process.pid)
        try:
            await _readable(watched)
        finally:
            os.close(watched)

    # In a thread

    def start(self, output: int) -> subprocess.Popen[bytes]:
        """`output` is PIPE or DEVNULL. After an exception there may still be a process to reap."""
        if self.why:
            raise self.why
        self._began = monotonic()
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            self._began = 0.0
            raise CommandMissing(f"{self.name} cannot be started: {error.strerror}") from None
        for which, most in self._limits.items():
            with suppress(ProcessLookupError, PermissionError, ValueError):  # it has ended, or has less already
                resource.prlimit(process.pid, which, (most, most))
        with self._lock:
            self._process = process
        if self.why:  # meanwhile
            self.kill()
            raise self.why
        return process

    def converse(self, timeout_s: float, max_bytes: int) -> Finished:
        """Start it and read both pipes until it ends."""
        try:
            process = self.start(subprocess.PIPE)
            out, err = self._read(process, self._began + timeout_s, max_bytes)
        except CommandError as error:
            self.kill(error)
            raise
        finally:
            self.reap()
        if self.why:
            raise self.why
        return Finished(self.code or 0, bytes(out.content), bytes(err.content), self.seconds, err.lost)

    def _read(self, process: subprocess.Popen[bytes], deadline: float, max_bytes: int) -> tuple["_Kept", "_Kept"]:
        if process.stdout is None or process.stderr is None:
            raise ValueError("not started with pipes")
        out, err = _Kept(max_bytes), _Kept(MAX_STDERR)
        pipes = {process.stdout.fileno(): out, process.stderr.fileno(): err}
        program, ended, poll = os.pidfd_open(process.pid), False, select.poll()
        try:
            for watched in (program, *pipes):
                poll.register(watched, select.POLLIN)
            while pipes or not ended:
                left = deadline - monotonic()
                if left <= 0:
                    raise CommandTimeout(f"{self.name} took too long")
                ready = poll.poll(0 if ended else left * 1000)
                if ended and not ready:  # a descendant that escaped keeps a pipe open
                    break
                for watched, _ in ready:
                    if watched == program:
                        ended = self._gone = True
                        self.kill()  # what it left behind
                    elif pipes[watched].add(os.read(watched, CHUNK)):
                        continue
                    else:
                        del pipes[watched]
                    poll.unregister(watched)
                if out.lost:
                    raise OutputTooLarge(f"{self.name} said more than {max_bytes} bytes")
        finally:
            os.close(program)
        return out, err

    def reap(self) -> None:
        """Kill what is there and wait for its end; does nothing when there is nothing."""
        process = self._process
        if process is None:
            return
        if not self._gone:
            self.kill()
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self.code, self._process = process.wait(), None
        self._ended = monotonic()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class _Kept:
    """The first `limit` bytes of what a pipe says."""

    def __init__(self, limit: int) -> None:
        self.content, self.lost, self._limit = bytearray(), False, limit

    def add(self, chunk: bytes) -> bool:
        """Whether there was any."""
        room = self._limit - len(self.content)
        self.content += chunk[:room]
        self.lost = self.lost or len(chunk) > room
        return bool(chunk)


class _Pipes:
    """What a program says, read on the loop without blocking it; stderr all the time, stdout when asked.

    The loop's own transports are not used: uvloop's close the number of the pipe twice, and the second time it may
    belong to another thread.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None or process.stderr is None:
            raise ValueError("not started with pipes")
        self._out, self._err = process.stdout.fileno(), process.stderr.fileno()
        self._loop = asyncio.get_running_loop()
        self.complaints = bytearray()  # the last 64 KiB of stderr

    def __enter__(self) -> "_Pipes":
        for pipe in (self._out, self._err):
            os.set_blocking(pipe, False)
        self._loop.add_reader(self._err, self._drain)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._err)

    async def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        while True:
            await _readable(self._out)  # even when there is something: the loop has other work, too
            with suppress(BlockingIOError):
                return os.read(self._out, size)  # blocks: never, it is told not to

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            chunk = os.read(self._err, CHUNK)
            self.complaints += chunk
            del self.complaints[:-MAX_STDERR]
            if not chunk:
                self._loop.remove_reader(self._err)


async def _readable(number: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(number, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(number)


async def _in_thread(threads: Executor, job: _Job, work: Callable[[], T]) -> T:
    """The result of `work`. When nobody wants it any more, the job is killed and the end of `work` awaited."""
    future = threads.submit(work)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        job.kill(CommandStopped(f"nobody waits for {job.name} any more"))
        if not future.cancel():
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            with anyio.CancelScope(shield=True):
                await ended.wait()
        raise


async def _before(deadline: float | None, job: _Job, awaited: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await awaited
    except TimeoutError:
        late = CommandTimeout(f"{job.name} took too long")
        job.kill(late)
        raise late from None


runner = Runner()  # of this process
run, lines, chunks, launch = runner.run, runner.lines, runner.chunks, runner.launch
stop, statistics = runner.stop, runner.statistics
