"""How long does the event loop stand still while programs are started and passwords are checked?

Each arm is a process of its own under uvloop, with a ticker that should wake every millisecond; what it wakes late is
the stall. The arm that does nothing is the null control: below its worst, this rig sees nothing.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .harness import ROOT, Plan, save, spread, table
from .pages import PYTHON

PROGRAM = ["/bin/true"]
MEMORY_MB, AT_ONCE, THREADS = 500, 8, 8
LOGINS, ROUNDS_OF_BCRYPT = 32, 12
RUNNER, POOL, LOOP, IDLE = "runner", "thread pool", "uvloop's own", "nothing"
OFF_LOOP, ON_LOOP = "off the loop", "on the loop"
STALL_MS, LOGIN_STALL_MS = 5, 50

Work = Callable[[], Awaitable[Any]]


def main(plan: Plan) -> None:
    commands = rounds(plan, "commands", (RUNNER, POOL, LOOP, IDLE))
    rows = [
        [
            name,
            spread([one["per_s"] for one in measured], 0),
            spread([mine["per_s"] / base["per_s"] for mine, base in zip(measured, commands[POOL], strict=True)]),
            spread([one["stall_ms"] for one in measured], 1),
        ]
        for name, measured in commands.items()
    ]
    title = f"Programs from {MEMORY_MB} MB; asked of the runner: 1.0 of a thread pool, stalls of {STALL_MS} ms at most"
    table(title, ["", "per second", f"ratio to {POOL}", "longest stall, ms"], rows)
    logins = rounds(plan, "logins", (OFF_LOOP, ON_LOOP, IDLE))
    rows = [
        [name, spread([one["seconds"] for one in measured], 1), spread([one["stall_ms"] for one in measured], 1)]
        for name, measured in logins.items()
    ]
    title = f"{LOGINS} passwords at once, bcrypt cost {ROUNDS_OF_BCRYPT}; asked: stalls of {LOGIN_STALL_MS} ms at most"
    table(title, ["", "seconds", "longest stall, ms"], rows)
    save("stalls", plan, {"commands": commands, "logins": logins})


def rounds(plan: Plan, what: str, names: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(plan.rounds):
        for name in names if number % 2 else reversed(names):
            command = [*PYTHON, "benchmarks.stalls", what, name, str(plan.seconds)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            measured[name].append(json.loads(done.stdout))
    return measured


# --- one arm


async def commands(name: str, seconds: float) -> dict[str, float]:
    """Programs per second, `AT_ONCE` at a time, from a process as large as an application with its caches."""
    ballast = bytearray(MEMORY_MB * 1_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    loop, one = asyncio.get_running_loop(), starter(name)
    end, done = loop.time() + seconds, 0

    async def work() -> None:
        nonlocal done
        while loop.time() < end:
            await one()
            done += 1

    await one()
    began = loop.time()
    stall = await watched(asyncio.gather(*(work() for _ in range(AT_ONCE))))
    return {"per_s": done / (loop.time() - began), "stall_ms": stall}


def starter(name: str) -> Work:
    if name == RUNNER:
        from fastapi_app.commands import run

        return lambda: run(PROGRAM)
    if name == POOL:
        pool, loop = ThreadPoolExecutor(THREADS), asyncio.get_running_loop()
        return lambda: loop.run_in_executor(pool, lambda: subprocess.run(PROGRAM, capture_output=True, check=True))
    if name == LOOP:
        return by_loop
    return lambda: asyncio.sleep(0.01)


async def by_loop() -> None:
    process = await asyncio.create_subprocess_exec(*PROGRAM, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    await process.communicate()


async def logins(name: str, _seconds: float) -> dict[str, float]:
    """Everybody signs in at the same moment."""
    import bcrypt

    from fastapi_app import passwords

    password = "Correct-Horse-1"
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(ROUNDS_OF_BCRYPT)).decode()

    async def check() -> None:
        if name == OFF_LOOP:
            right = await passwords.verify(password, hashed, ROUNDS_OF_BCRYPT)
        elif name == ON_LOOP:
            await asyncio.sleep(0)
            right = bcrypt.checkpw(password.encode(), hashed.encode())
        else:
            await asyncio.sleep(1)
            right = True
        if not right:
            sys.exit("a right password was refused")

    loop = asyncio.get_running_loop()
    began = loop.time()
    stall = await watched(asyncio.gather(*(check() for _ in range(LOGINS))))
    return {"seconds": loop.time() - began, "stall_ms": stall}


async def watched(work: Awaitable[Any]) -> float:
    """Do it; the longest time that the loop stood still meanwhile, in ms."""
    task, loop, longest = asyncio.ensure_future(work), asyncio.get_running_loop(), 0.0
    while not task.done():
        before = loop.time()
        await asyncio.sleep(0.001)
        longest = max(longest, loop.time() - before - 0.001)
    await task
    return longest * 1000


if __name__ == "__main__":
    import uvloop

    arm = commands if sys.argv[1] == "commands" else logins
    print(json.dumps(uvloop.run(arm(sys.argv[2], float(sys.argv[3])))))
