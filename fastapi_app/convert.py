"""Live conversion of a video to fragmented mp4, by ffmpeg."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from . import commands
from .containment import refuse


async def converted(ffmpeg: str, path: Path) -> AsyncGenerator[bytes, None]:
    """The output of ffmpeg, which starts with the first chunk; its process group is killed when nobody reads any more.

    Raises CommandError when it cannot be started.
    """
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", f"file:{path}", "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-c:a", "aac", "-movflags", "frag_keyframe+empty_moov+default_base_moof", "-f", "mp4", "pipe:1"]
    refuse("processes", ffmpeg)
    async with aclosing(commands.chunks(command)) as chunks:
        async for chunk in chunks:
            yield chunk
