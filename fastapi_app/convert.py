"""Live conversion of a video to fragmented mp4, by ffmpeg."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import anyio

from .containment import refuse
from .files import off_loop

CHUNK = 64 * 1024


async def converted(ffmpeg: str, path: Path) -> AsyncGenerator[bytes, None]:
    """The output of ffmpeg, which starts with the first chunk; its process group is killed when nobody reads any more.

    It is started in a thread: fork on the loop would stop the loop for as long as this process is large.
    """
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", f"file:{path}", "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-c:a", "aac", "-movflags", "frag_keyframe+empty_moov+default_base_moof", "-f", "mp4", "pipe:1"]
    process = await off_loop(_start, command)
    try:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=CHUNK)
        output, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        try:
            while chunk := await reader.read(CHUNK):
                yield chunk
        finally:
            output.close()  # and with it the pipe
    finally:
        with anyio.CancelScope(shield=True):
            await off_loop(_end, process)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    refuse("processes", command[0])
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the group before its leader is reaped: until then nobody else can have that number."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
