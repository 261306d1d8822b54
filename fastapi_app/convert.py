"""Live conversion of a video to fragmented mp4, by ffmpeg."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from . import commands, media
from .containment import refuse


async def converted(ffmpeg: str, path: Path, start: int = 0) -> AsyncGenerator[bytes, None]:
    """The output of ffmpeg from that second on. It starts with the first chunk; its process group is killed when nobody
    reads any more.

    Raises CommandError when it cannot be started.
    """
    command = [ffmpeg, *media.QUIET, "-threads", media.THREADS, "-ss", str(start), *media.READING, "-i", f"file:{path}"]
    command += ["-map", "0:v:0", "-map", "0:a:0?", *media.H264, *media.AAC, "-threads", media.THREADS]
    command += ["-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "1000000"]
    refuse("processes", ffmpeg)
    async with aclosing(commands.chunks([*command, "-f", "mp4", "pipe:1"], limits=media.LIMITS)) as chunks:
        async for chunk in chunks:
            yield chunk
