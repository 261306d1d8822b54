"""A real video, made by ffmpeg and probed by ffprobe."""

import subprocess
from pathlib import Path

import pytest

from tests.support.sides import opened

PICTURES = ((1280, 720, "720p"), (640, 360, "360p"))


@pytest.mark.parametrize("name", ["legacy", "port"])
def test_an_index_knows_how_long_and_how_fine_real_videos_are(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side:
        for seconds, (width, height, quality) in enumerate(PICTURES, 2):
            source = f"testsrc=duration={seconds}:size={width}x{height}:rate=5"
            target = f"file:{side.library}/Test: cards - {quality} {seconds}.mp4"
            command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "mpeg4", target]
            subprocess.run(command, check=True)
        (side.library / "Test - Noise.mp4").write_bytes(b"\0" * 5000)

        assert 3 == side.index()["created"]
        assert {("Noise", None, None), ("360p 3", 3, "360p"), ("720p 2", 2, "720p")} == {
            *side.rows("SELECT title, duration, quality FROM videos")
        }
        assert {"created": 0, "updated": 0, "unchanged": 3}.items() <= side.index().items()
