"""Real transcoding on both sides: the same file beside the same original, and nothing left of what breaks off."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import AsyncConnection

import fastapi_app.transcoding
import legacy_flask.transcoding
from fastapi_app.db import ConnectionLost
from fastapi_app.jobs import Taken
from tests.support.cards import card, converting, probed
from tests.support.processes import many_open_files, wait_until
from tests.support.sides import LegacySide, Side, opened

REFUSALS = (legacy_flask.http.ApiError, fastapi_app.http.ApiError)
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac")
both = pytest.mark.parametrize("name", ["legacy", "port"])


def transcode(side: Side, report: Callable[[int, str], None] = lambda _percent, _message: None) -> dict[str, Any]:
    """That of the only video."""
    if isinstance(side, LegacySide):
        with side.app.test_request_context():
            return legacy_flask.transcoding.transcode(1, report)

    async def tell(percent: int, message: str = "") -> None:
        await asyncio.sleep(0)
        report(percent, message)

    return side.run(fastapi_app.transcoding.transcode(side.request, {"video_id": 1}, tell))


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@both
def test_the_mp4_lies_beside_the_original_and_is_the_file_of_the_video(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side:
        original = card(side.library / "Test/Test - Cards.mkv", 3, "161x121")
        side.index()
        seen: list[int] = []

        result = transcode(side, lambda percent, _: seen.append(percent))

        made = side.library / "Test/Test - Cards.mp4"
        expected = {"file_path": "Test/Test - Cards.mp4", "file_size": made.stat().st_size}
        assert expected | {"source": "Test/Test - Cards.mkv"} == result
        assert [(made.stat().st_size, "Test/Test - Cards.mp4", 3)] == side.rows(
            "SELECT file_size, file_path, duration FROM videos"
        )
        assert ("h264", "aac", 3) == tuple(
            round(value) if isinstance(value, float) else value
            for value in (probed(made)[key] for key in ("video", "audio", "duration"))
        )
        assert original.exists()
        assert {"created": 0, "unchanged": 1, "skipped": 1}.items() <= side.index().items()
        assert hidden(side.library) == []
        assert seen == sorted(seen)
        assert 99 == seen[-1]
        assert [("videos.transcode", "video:1")] == side.rows(
            "SELECT action, target FROM audit_log WHERE action LIKE 'videos.%'"
        )


@both
def test_a_process_with_many_open_files_transcodes_as_well(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side, many_open_files():
        card(side.library / "Test/Test - Cards.mkv")
        side.index()

        assert transcode(side)["file_path"] == "Test/Test - Cards.mp4"


def test_both_sides_make_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("legacy", "port"):
        with opened(name, tmp_path / name) as side:
            card(side.library / "Test - Cards.avi")
            side.index()
            made.append((transcode(side), (side.library / "Test - Cards.mp4").read_bytes()))

    assert made[0] == made[1]


@both
def test_what_browsers_play_is_packed_anew_without_loss_and_replaces_nothing(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side:
        card(side.library / "Test - Cards.mkv", 2, "160x120", *H264)
        side.index()
        (side.library / "Test - Cards.mp4").write_text("somebody else's")

        assert "Test - Cards (1).mp4" == transcode(side)["file_path"]

        assert "somebody else's" == (side.library / "Test - Cards.mp4").read_text()
        hashes = [pictures(side.library / f"Test - Cards{end}") for end in (".mkv", " (1).mp4")]
        assert hashes[0] == hashes[1]


def pictures(path: Path) -> bytes:
    """A digest of the coded pictures."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path}", "-map", "0:v", "-f", "md5", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@both
@pytest.mark.parametrize("content", [b"\0" * 5000, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"])
def test_what_is_no_video_fails_with_a_sentence_and_leaves_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side:
        (side.library / "Test - Noise.mkv").write_bytes(content)
        side.index()

        with pytest.raises(REFUSALS, match="The file could not be converted"):
            transcode(side)

        assert [side.library / "Test - Noise.mkv"] == list(side.library.iterdir())
        assert [("Test - Noise.mkv",)] == side.rows("SELECT file_path FROM videos")


@both
def test_work_that_is_cancelled_kills_its_ffmpeg_and_removes_what_it_has_made(name: str, tmp_path: Path) -> None:
    def cancelled(_percent: int, _message: str) -> None:
        assert converting(side.library)
        raise Taken

    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text('#!/bin/sh\nexec ffmpeg -re "$@"\n')  # no quicker than one would watch it
    ffmpeg.chmod(0o755)
    with opened(name, tmp_path, FFMPEG=str(ffmpeg)) as side:
        card(side.library / "Test - Long.mkv", 60)
        side.index()

        with pytest.raises(Taken):
            transcode(side, cancelled)

        assert [] == converting(side.library)
        assert [side.library / "Test - Long.mkv"] == list(side.library.iterdir())


@both
def test_a_video_that_was_changed_meanwhile_keeps_its_change(name: str, tmp_path: Path) -> None:
    def change(_percent: int, _message: str) -> None:
        side.execute("UPDATE videos SET file_path = 'elsewhere.mkv'")

    with opened(name, tmp_path) as side:
        card(side.library / "Test - Cards.mkv")
        (side.library / ".transcode-1-0000.mp4").write_text("of an attempt that was killed")
        side.index()

        with pytest.raises(REFUSALS, match="The video was changed meanwhile"):
            transcode(side, change)

        assert [side.library / "Test - Cards.mkv"] == list(side.library.iterdir())
        assert [("elsewhere.mkv",)] == side.rows("SELECT file_path FROM videos")


@pytest.mark.parametrize("committed", [True, False])
@both
def test_a_database_that_goes_away_at_the_end_costs_neither_the_file_nor_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    commit, tries = AsyncConnection.commit, list[bool]()

    async def cut_off(connection: AsyncConnection) -> None:
        tries.append(committed)
        if committed or len(tries) > 1:
            await commit(connection)
        if len(tries) == 1:
            raise ConnectionLost("The database is restarted.")

    def cut_off_from_flask(_: DefaultDialect, connection: sqlite3.Connection) -> None:
        tries.append(committed)
        if committed or len(tries) > 1:
            connection.commit()
        if len(tries) == 1:
            raise sqlite3.OperationalError("The database is restarted.")

    with opened(name, tmp_path) as side:
        card(side.library / "Test - Cards.mkv")
        side.index()
        if name == "port":
            monkeypatch.setattr(AsyncConnection, "commit", cut_off)
        else:
            monkeypatch.setattr(DefaultDialect, "do_commit", cut_off_from_flask)

        result = transcode(side)

        assert "Test - Cards.mp4" == result["file_path"]
        assert [("Test - Cards.mp4",)] == side.rows("SELECT file_path FROM videos")
        assert ["Test - Cards.mkv", "Test - Cards.mp4"] == sorted(path.name for path in side.library.iterdir())
        assert [(1,)] == side.rows("SELECT count(*) FROM audit_log WHERE action = 'videos.transcode'")


def test_cancelled_while_it_is_entered_a_transcoded_file_stays_where_a_row_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = AsyncConnection.commit

    async def cut_off(connection: AsyncConnection) -> None:
        await commit(connection)
        raise asyncio.CancelledError

    with opened("port", tmp_path) as side:
        card(side.library / "Test - Cards.mkv")
        side.index()
        monkeypatch.setattr(AsyncConnection, "commit", cut_off)

        with pytest.raises(asyncio.CancelledError):
            transcode(side)

        assert [("Test - Cards.mp4",)] == side.rows("SELECT file_path FROM videos")
        assert (side.library / "Test - Cards.mp4").exists()


@pytest.mark.parametrize("media", [legacy_flask.media, fastapi_app.media])
def test_a_program_does_not_outlive_whoever_began_it(media: Any) -> None:
    begin = f"import os, subprocess; from {media.__name__} import with_parent as w; "
    begin += "child = subprocess.Popen(w(['/bin/sleep', '60'], os.getpid()), start_new_session=True); "
    begin += "print(child.pid, flush=True); child.wait()"
    with subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        sleeper = Path(f"/proc/{int(parent.stdout.readline())}")
        wait_until(lambda: sleeper.joinpath("cmdline").read_bytes() == b"/bin/sleep\x0060\x00", "the program")
        parent.kill()

    wait_until(lambda: has_ended(sleeper), "its end")


def has_ended(process: Path) -> bool:
    try:
        return ") Z " in process.joinpath("stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("media", [legacy_flask.media, fastapi_app.media])
def test_without_an_ffprobe_ffmpeg_says_how_long_and_how_large_a_video_is(media: Any, tmp_path: Path) -> None:
    path = card(tmp_path / "card.mkv", 2, "640x480")
    said = subprocess.run(["ffmpeg", "-nostdin", "-hide_banner", "-i", path], check=False, capture_output=True).stderr

    told = media.read_banner(said)

    assert {"duration": 2, "quality": "480p"} == fastapi_app.indexing.read_probe(told)
    assert {} == fastapi_app.indexing.read_probe(media.read_banner(b"no such file"))
