"""Live conversion: ffmpeg and all it started go with the client."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from fastapi_app.convert import converted
from fastapi_app.sending import Stream
from tests.support.asgi import ask, http_scope


def fake_ffmpeg(folder: Path, script: str) -> str:
    """A program that notes its process group and one child's id, then does as the script says."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\nsleep 600 >/dev/null & echo $$ $! > {folder}/pids\n{script}\n")
    path.chmod(0o755)
    return str(path)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def pids_in(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "pids").read_text().split()]


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", ["while :; do echo x; done", "echo x; sleep 600", "sleep 600"])
async def test_a_client_that_leaves_takes_the_whole_group_along(tmp_path: Path, script: str) -> None:
    ffmpeg, gone = fake_ffmpeg(tmp_path, script), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    stream = Stream(converted(ffmpeg, tmp_path / "video.mkv"), 200, {})
    answering = asyncio.create_task(stream(http_scope(), receive, send))
    await until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().strip())
    pids = pids_in(tmp_path)
    assert all(map(running, pids))
    gone.set()
    await answering
    assert not running(pids[0])  # not later: now
    await until(lambda: not any(map(running, pids)))


async def test_the_output_arrives_whole_and_in_order(tmp_path: Path) -> None:
    ffmpeg = fake_ffmpeg(tmp_path, "kill $!; seq 1 100000")
    answer = await ask(Stream(converted(ffmpeg, tmp_path / "video.mkv"), 200, {}))
    assert "".join(f"{n}\n" for n in range(1, 100001)).encode() == answer.body


async def test_what_the_program_leaves_behind_goes_too(tmp_path: Path) -> None:
    ffmpeg = fake_ffmpeg(tmp_path, "echo x")
    answer = await ask(Stream(converted(ffmpeg, tmp_path / "video.mkv"), 200, {}))
    assert b"x\n" == answer.body
    assert not running(pids_in(tmp_path)[0])
    await until(lambda: not any(map(running, pids_in(tmp_path))))


async def test_a_conversion_that_fails_ends_the_stream(tmp_path: Path) -> None:
    ffmpeg = fake_ffmpeg(tmp_path, "kill $!; exit 1")
    answer = await ask(Stream(converted(ffmpeg, tmp_path / "video.mkv"), 200, {}))
    assert (b"", True) == (answer.body, answer.complete)
