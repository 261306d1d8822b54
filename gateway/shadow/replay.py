"""The process that replays: `python -m gateway.shadow.replay PARENT`, one per host, started by `Keeper`.

Whatever a candidate does, it does it here: to a process of the lowest priority that nobody waits for, with a limit to
its memory and its share of the CPU, which dies with its parent and may die at any time.
"""

import asyncio
import ctypes
import fcntl
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from uvicorn.config import LOG_LEVELS

from gateway.decide import SAFE_METHODS
from gateway.errors import GatewayError
from gateway.model import Backend, Outcome
from gateway.settings import Settings

from .client import NAME as SOCKET
from .client import address
from .contain import contained, supports
from .frames import FrameError, read
from .keeper import LOCKED, RECYCLED, STOPPED
from .noise import NoiseBook, Run
from .notes import Notes, waited_s
from .sides import Sides
from .strikes import LIMIT, Strikes
from .tape import Exchange
from .verdicts import Verdicts

BEAT_S = 0.25
BURST_S = 0.1  # of CPU time above the share, before it pauses
LOCK_S = 5.0  # for the process before this one to die
FULL = 0.75  # of the memory that it may use: it starts afresh while it still can

WRONG, FAILED = 2, 70  # exit codes: an application that cannot be loaded; the loop was ended by a candidate

SPELLING = "body.bytes"  # equal JSON with other blanks, order of keys or escapes: nobody who reads JSON can tell

log = logging.getLogger("gateway.shadow")


class Inconclusive(Exception):
    """Raised where nothing can be said about the candidate; a sentence why."""


class Gate:
    """Lets in so many at once, or one alone."""

    def __init__(self, places: int) -> None:
        self._places, self._free = places, asyncio.Semaphore(places)
        self._door = asyncio.Lock()  # two that need several places must not wait for each other

    async def enter(self, *, alone: bool) -> int:
        """Wait for a place, or for all of them. Returns what is to be given to `leave`."""
        places = self._places if alone else 1
        async with self._door:
            for _ in range(places):
                await self._free.acquire()
        return places

    def leave(self, places: int) -> None:
        for _ in range(places):
            self._free.release()


class Throttle:
    """Keeps the CPU time of this process within a share of one core."""

    def __init__(self, share: float) -> None:
        self._share, self._over_s = share, 0.0
        self._cpu, self._now = time.process_time(), time.monotonic()

    async def pause(self) -> None:
        """Wait until what was used above the share has been saved again."""
        if (over_s := self._count()) > BURST_S:
            await asyncio.sleep(over_s / self._share)

    def _count(self) -> float:
        """CPU seconds above the share that have not been waited for yet."""
        cpu, now = time.process_time(), time.monotonic()
        self._over_s = max(0.0, self._over_s + cpu - self._cpu - self._share * (now - self._now))
        self._cpu, self._now = cpu, now
        return self._over_s


class Replayer:
    """Takes exchanges from workers, asks the other side, and writes down what it thinks of the answers."""

    def __init__(self, settings: Settings, state: Path, sides: Sides, verdicts: Verdicts) -> None:
        self._settings, self._sides, self._verdicts = settings, sides, verdicts
        self._notes = Notes(state, settings.shadow_concurrency)
        self._strikes = Strikes(state)
        self._gate = Gate(settings.shadow_concurrency)
        self._throttle = Throttle(settings.shadow_cpu_share)
        self._book = NoiseBook()
        for key, learned in verdicts.noise().items():
            self._book.load(key, learned)
        self._running: set[asyncio.Task[None]] = set()
        self._late: Counter[str] = Counter()  # replays in a row that took too long
        self._broken: set[str] = set()  # told already
        self._uncontained = supports(sides.fastapi) if sides.fastapi else "there is no port"
        self._most_bytes = size_bytes() + int(FULL * settings.shadow_memory_bytes)
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # the exit code

    async def beat(self) -> None:
        """Show that the loop turns, and notice when it is time to start afresh."""
        while True:
            self._notes.beat()
            if self._sides.stuck >= self._settings.shadow_concurrency:
                self.end(RECYCLED, "too many requests hang")
            elif size_bytes() > self._most_bytes:
                self.end(RECYCLED, "the applications have grown too large")
            await asyncio.sleep(BEAT_S)

    def end(self, code: int, why: str = "") -> None:
        if not self.over.done():
            self.over.set_result(code)
            if why:
                log.warning("shadow: %s; the process that replays starts afresh", why)

    async def finish(self) -> None:
        """Let what runs come to its end."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.shadow_timeout_s)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker. What is not read piles up at its end, where it is shed."""
        try:
            while not self.over.done():
                exchange = await read(reader, self._settings.shadow_body_bytes)
                await self._throttle.pause()
                await self._admit(exchange)
        except FrameError as error:
            log.warning("shadow: a worker was not understood: %s", error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it is gone
        finally:
            writer.close()

    async def _admit(self, exchange: Exchange) -> None:
        suspects = self._strikes.suspects()
        alone = exchange.scope["method"] not in SAFE_METHODS or exchange.key in suspects
        places = await self._gate.enter(alone=alone)
        stale = time.time() - exchange.at > self._settings.shadow_timeout_s
        if stale or self.over.done() or exchange.key in self._strikes.suspended():
            self._gate.leave(places)
            self._verdicts.count(exchange.key, Outcome.SHED)
            return
        task = asyncio.create_task(self._replay(exchange))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._gate.leave(places))

    async def _replay(self, exchange: Exchange) -> None:
        key = exchange.key
        began, waited = time.monotonic(), waited_s(os.getpid())
        with self._notes.running(key):
            try:
                await self._judge(exchange)
                self._late.pop(key, None)
            except TimeoutError:
                starved_s = waited_s(os.getpid()) - waited
                self._note_late(key, starved=starved_s > (time.monotonic() - began) / 2)
            except Inconclusive as reason:
                log.debug("shadow: %s: %s", key, reason)
                self._verdicts.count(key, Outcome.INCONCLUSIVE)
            except Exception:  # our own fault
                self._verdicts.count(key, Outcome.BROKEN)
                if key not in self._broken:
                    self._broken.add(key)
                    log.exception("shadow: %s could not be judged; told once", key)

    async def _judge(self, exchange: Exchange) -> None:
        key, method = exchange.key, exchange.scope["method"]
        control = Run(self._sides.comparable(method, exchange.control), exchange.rows)
        candidate = await self._ask(exchange, exchange.candidate)
        ignore = (*exchange.ignore, SPELLING)
        trial = self._book.trial(key, control, candidate, ignore, again=method in SAFE_METHODS)
        learned = False
        while (backend := trial.wants()) is not None:
            trial.see(await self._ask(exchange, backend))
            learned = True
        verdict = trial.verdict()
        self._verdicts.add(exchange, key, exchange.candidate, verdict, control.answer, candidate.answer)
        if learned:
            self._verdicts.learn(key, self._book.dump(key))

    async def _ask(self, exchange: Exchange, backend: Backend) -> Run:
        """Raises TimeoutError when the candidate takes too long, Inconclusive when the control does."""
        if exchange.scope["method"] not in SAFE_METHODS:
            return await self._ask_contained(exchange)
        try:
            return Run(await self._sides.ask(exchange, backend))
        except TimeoutError:
            if backend is exchange.candidate:
                raise
            raise Inconclusive("the side that had answered takes too long now") from None

    async def _ask_contained(self, exchange: Exchange) -> Run:
        port = self._sides.fastapi
        if port is None or exchange.candidate is not Backend.FASTAPI or self._uncontained:
            raise Inconclusive(self._uncontained or "writes are replayed on the port alone")
        if exchange.rows is None:
            raise Inconclusive("nobody knows which rows the write has changed")
        scope, who = await self._sides.shown(exchange, Backend.FASTAPI)
        result = await contained(port, scope, exchange.body, exchange.rows, self._settings.shadow_timeout_s)
        if result.poisoned:
            self.end(RECYCLED, f"a write of {exchange.key} could not be stopped")
        if result.timed_out:
            raise TimeoutError
        if result.inconclusive:
            raise Inconclusive(result.inconclusive)
        return Run(await self._sides.settled(scope, who, result.observation), result.rows)

    def _note_late(self, key: str, *, starved: bool) -> None:
        """A candidate that never comes back would take the places of all others."""
        self._verdicts.count(key, Outcome.SHED if starved else Outcome.TIMED_OUT)
        self._late[key] += not starved
        if self._late[key] >= LIMIT:
            del self._late[key]
            with suppress(OSError):
                self._strikes.add([key], LIMIT)
            log.error("shadow: %s is left out for a while: it took too long %d times in a row", key, LIMIT)


# --- the process ----------------------------------------------------------------------------------------------------


def main(parent: int) -> int:
    """Run until the parent closes standard input or dies. Returns the exit code."""
    _die_with(parent)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    settings = Settings.load()
    _log_to_stderr(settings.log_level)
    state = settings.state_dir.absolute()  # an application may change the working directory
    lock = _lock(state)
    if lock is None:
        return LOCKED
    try:
        sides = Sides(settings)
    except GatewayError as error:
        log.critical("shadow: the process that replays cannot start: %s", error)
        return WRONG
    return asyncio.new_event_loop().run_until_complete(_run(settings, state, sides))


async def _run(settings: Settings, state: Path, sides: Sides) -> int:
    verdicts = Verdicts(state)
    async with AsyncExitStack() as stack:
        try:
            await sides.begin(stack)
        except Exception as error:  # noqa: BLE001  # anybody's code
            log.critical("shadow: the FastAPI application did not start: %s: %s", type(error).__name__, error)
            return WRONG
        verdicts.start()
        stack.callback(verdicts.close)
        _confine(settings)
        replayer = Replayer(settings, state, sides, verdicts)
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), replayer.end, STOPPED)
        loop.add_signal_handler(signal.SIGTERM, replayer.end, STOPPED)
        (state / SOCKET).unlink(missing_ok=True)
        with address(state) as path:
            before = os.umask(0o177)
            server = await asyncio.start_unix_server(replayer.serve, path)
            os.umask(before)
        beat = asyncio.create_task(replayer.beat())
        code = await replayer.over
        loop.remove_reader(sys.stdin.fileno())
        server.close()
        if code == RECYCLED:
            await replayer.finish()
        beat.cancel()
    return code


def _log_to_stderr(level: str) -> None:
    """What the gateway has to say, as a worker says it; the applications log as they like."""
    handler, logger = logging.StreamHandler(), logging.getLogger("gateway")
    handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(LOG_LEVELS[level])
    logger.propagate = False


def _lock(state: Path) -> int | None:
    """A lock that belongs to this process and not to what it forks; None when another one keeps it."""
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state / "shadow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > give_up_at:
                return None
            time.sleep(0.05)
        else:
            return descriptor


def _die_with(parent: int) -> None:
    """Be killed when the thread that started this process is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(STOPPED)


def _confine(settings: Settings) -> None:
    """From here on: the CPU when nobody else wants it, so much memory and no more, no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings.shadow_memory_bytes:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes() + settings.shadow_memory_bytes, hard))
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # for disks, too
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def size_bytes() -> int:
    """The address space in use."""
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    try:
        exit_code = main(int(sys.argv[1]))
    except BaseException:
        log.exception("shadow: the process that replays was ended from inside")
        exit_code = FAILED
    logging.shutdown()
    os._exit(exit_code)  # threads that hang must not keep it alive
