"""Files on their way into the library, and the index of it, on both sides: nothing is lost, whatever happens."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

import fastapi_app.http
import legacy_flask.http
from tests.support.databases import create_database
from tests.support.sides import Side, fill, opened

NAMES = ["Björk - Jóga.mp4", "Björk - Hyperballad.webm", "Кино/Группа крови.mkv", "Daft Punk - One More Time [HD].mp4"]
API_ERRORS = (legacy_flask.http.ApiError, fastapi_app.http.ApiError)
ANYWHERE = pytest.mark.parametrize("side", ["legacy", "port", "legacy on mariadb", "port on mariadb"], indirect=True)
FILE_PATHS = "SELECT file_path FROM videos ORDER BY file_path"


@pytest.fixture(scope="module")
def quick_ffprobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH. What the files hold is no video anyway, and the true one takes 0.1 s to say so."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("ffmpeg", "ffprobe"):  # they are looked for side by side
        program(folder / name, "exit 1")
    return folder


@pytest.fixture(autouse=True)
def _quick(quick_ffprobe: Path) -> Iterator[None]:
    with patch.dict(os.environ, PATH=f"{quick_ffprobe}:{os.environ['PATH']}"):
        yield


@pytest.fixture(params=["legacy", "port"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    name, _, database = request.param.partition(" on ")
    url = create_database(request.getfixturevalue("mariadb_server"), "intake") if database else ""
    with opened(name, tmp_path, url) as side:
        yield side


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def file_paths(side: Side) -> list[str]:
    return [row[0] for row in side.rows(FILE_PATHS)]


def told(failed: list[dict[str, Any]]) -> dict[str, str]:
    return {one["file"]: one["error"] for one in failed}


def every_file_has_one_row_and_one_name(side: Side, before: dict[str, str]) -> None:
    assert sorted(before.values()) == sorted(contents(side.library).values())
    assert {} == contents(side.downloads)
    assert sorted(contents(side.library)) == file_paths(side)


# --- what waits


def test_links_pipes_and_what_is_hidden_or_unfinished_do_not_wait(side: Side, tmp_path: Path) -> None:
    fill(side.downloads, ["b - b.mp4", "a/a - a.mp4", ".x - x.mp4", ".y/y - y.mp4", "c - c.mp4.part", "d.txt"])
    fill(tmp_path / "outside", ["secret - secret.mp4"])
    (side.downloads / "loop").symlink_to(side.downloads)
    (side.downloads / "a/up").symlink_to("..")
    (side.downloads / "out").symlink_to(tmp_path / "outside")
    (side.downloads / "link - link.mp4").symlink_to(tmp_path / "outside/secret - secret.mp4")
    (side.downloads / "broken - broken.mp4").symlink_to("nowhere")
    (side.downloads / "folder - folder.mp4").mkdir()
    os.mkfifo(side.downloads / "pipe - pipe.mp4")

    assert ["a/a - a.mp4", "b - b.mp4"] == [file.path for file in side.waiting()]


def test_a_folder_that_cannot_be_read_is_told_and_one_below_it_is_left_out(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(side.downloads, ["a - a.mp4", "locked/b - b.mp4"])
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if isinstance(path, str) and Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert ["a - a.mp4"] == [file.path for file in side.waiting()]

    shutil.rmtree(side.downloads)
    side.downloads.write_text("no folder")
    with pytest.raises(API_ERRORS, match="The downloads folder cannot be read"):
        side.waiting()


def test_files_may_come_and_go_while_a_folder_is_looked_through(side: Side) -> None:
    fill(side.downloads, ["stays/a - a.mp4"])
    done = Event()

    def churn() -> None:
        while not done.is_set():
            fill(side.downloads, [f"{n % 7}/x - {n}.mp4" for n in range(50)])
            for n in range(7):
                shutil.rmtree(side.downloads / str(n))

    thread = Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            assert "stays/a - a.mp4" in [file.path for file in side.waiting()]
    finally:
        done.set()
        thread.join()


def test_a_time_that_no_calendar_has_is_no_obstacle() -> None:
    for moment in (legacy_flask.indexing.moment, fastapi_app.indexing.moment):
        assert (None, None) == (moment(1e18), moment(-1e18))
        assert datetime(2001, 9, 9, 1, 46, 40, 500_000) == moment(1e9 + 0.5)


# --- organizing


def test_files_get_their_place_and_their_row(side: Side) -> None:
    fill(side.downloads, NAMES)
    before = contents(side.downloads)
    moved, failed = side.organize()

    assert [] == failed
    assert [
        "Björk/Björk - Hyperballad.webm",
        "Björk/Björk - Jóga.mp4",
        "Daft Punk/Daft Punk - One More Time.mp4",
        "Кино/Кино - Группа крови.mkv",
    ] == [one["target"] for one in moved]
    every_file_has_one_row_and_one_name(side, before)
    assert ([], []) == side.organize()


def test_names_that_are_no_text_stay_where_they_are(side: Side) -> None:
    fill(side.downloads, ["a - b\udcff.mp4", "a\udcff/c.mp4"])

    assert ({"a - b\ufffd.mp4", "a\ufffd/c.mp4"}, {"The name is not valid text"}) == (
        set(told(side.organize()[1])),
        set(told(side.organize()[1]).values()),
    )
    assert 2 == len(side.waiting())


def test_a_file_that_has_gone_meanwhile_is_told(side: Side) -> None:
    fill(side.downloads, NAMES)
    files = side.waiting()
    (side.downloads / NAMES[0]).unlink()
    moved, failed = side.organize(files)

    assert {NAMES[0]: "The file is no longer there"} == told(failed)
    assert 3 == len(moved)


@ANYWHERE
def test_two_who_organize_at_once_do_the_work_once(side: Side) -> None:
    fill(side.downloads, [f"{artist} - {title}.mp4" for artist in "abc" for title in range(5)])
    before = contents(side.downloads)
    answers = side.organize_twice_at_once()

    every_file_has_one_row_and_one_name(side, before)
    assert 15 == len({one["video_id"] for moved, _ in answers for one in moved})
    assert {"The file is no longer there"} >= {one["error"] for _, failed in answers for one in failed}
    assert [(3,)] == side.rows("SELECT count(*) FROM artists")


def link_fails(monkeypatch: pytest.MonkeyPatch, code: int, below: Path) -> None:
    """As between two disks (EXDEV), or where there are no hard links (EPERM)."""
    link = os.link

    def failing(source: Path, target: Path, **options: Any) -> None:
        if Path(source).is_relative_to(below):
            raise OSError(code, os.strerror(code), str(source))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", failing)


@pytest.mark.parametrize(("code", "everywhere"), [(errno.EXDEV, False), (errno.EPERM, True)])
def test_the_library_may_be_on_another_disk_or_have_no_hard_links(
    side: Side, monkeypatch: pytest.MonkeyPatch, code: int, everywhere: bool
) -> None:
    fill(side.downloads, NAMES)
    fill(side.library, ["Björk/Björk - Jóga.mp4"])
    os.utime(side.downloads / NAMES[0], (1e9, 1e9))
    before = contents(side.downloads)
    link_fails(monkeypatch, code, side.downloads.parent if everywhere else side.downloads)
    (side.library / "Björk/Björk - Jóga.mp4").write_text("another")
    _, failed = side.organize()

    assert [] == failed
    assert {*before.values(), "another"} == {*contents(side.library).values()}
    assert {} == contents(side.downloads)
    assert "Björk/Björk - Jóga (1).mp4" in file_paths(side)
    assert 1e9 == (side.library / "Björk/Björk - Jóga (1).mp4").stat().st_mtime


def test_a_file_that_cannot_be_copied_stays_and_leaves_nothing(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(side.downloads, NAMES)
    before = contents(side.downloads)
    link_fails(monkeypatch, errno.EXDEV, side.downloads)

    def full(source: Path, target: Path, **_: Any) -> None:
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copy2", full)
    moved, failed = side.organize()

    assert ([], {"The file could not be moved"}) == (moved, set(told(failed).values()))
    assert (before, {}, []) == (contents(side.downloads), contents(side.library), file_paths(side))


def failing_commits(statement: str) -> Callable[[], None]:
    """Every transaction that has executed such a statement fails at its end; returns what makes it stop."""

    def fail(connection: Any) -> None:
        if connection.info.pop("doomed", False):
            raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    def mark(connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(statement):
            connection.info["doomed"] = True

    event.listen(Engine, "commit", fail)
    event.listen(Engine, "before_cursor_execute", mark)

    def stop() -> None:
        event.remove(Engine, "commit", fail)
        event.remove(Engine, "before_cursor_execute", mark)

    return stop


def test_a_commit_that_fails_leaves_the_file_where_it_was(side: Side) -> None:
    fill(side.downloads, NAMES)
    before = contents(side.downloads)
    stop = failing_commits("INSERT INTO videos")
    try:
        with pytest.raises(OperationalError):
            side.organize()
    finally:
        stop()

    assert (before, {}, []) == (contents(side.downloads), contents(side.library), file_paths(side))
    side.organize()
    every_file_has_one_row_and_one_name(side, before)


def test_what_was_cut_off_before_its_row_is_finished_without_a_second_copy(side: Side) -> None:
    fill(side.downloads, NAMES)
    before = contents(side.downloads)
    target = side.library / "Björk/Björk - Jóga.mp4"
    target.parent.mkdir()
    os.link(side.downloads / NAMES[0], target)
    moved, _ = side.organize()

    assert {"Björk/Björk - Jóga.mp4"} < {one["target"] for one in moved}
    every_file_has_one_row_and_one_name(side, before)


def test_what_was_cut_off_after_its_row_is_finished_without_a_second_row(side: Side) -> None:
    fill(side.downloads, NAMES)
    before = contents(side.downloads)
    side.organize()
    os.link(side.library / "Björk/Björk - Jóga.mp4", side.downloads / NAMES[0])
    shutil.copy(side.library / "Björk/Björk - Hyperballad.webm", side.downloads / NAMES[1])  # from another disk
    moved, _ = side.organize()

    assert [False, False] == [one["created"] for one in moved]
    every_file_has_one_row_and_one_name(side, before)


def test_what_was_left_behind_by_one_who_was_cut_off_goes_after_a_day(side: Side) -> None:
    old, new, others = f".1000000000-{'a' * 32}.part", f".{int(time.time())}-{'b' * 32}.part", ".1000-x.part"
    fill(side.library, [old, new, others])
    side.organize()

    assert {new, others} == set(contents(side.library))


def test_a_row_whose_file_is_gone_gets_the_new_one(side: Side) -> None:
    fill(side.downloads, NAMES)
    side.organize()
    (side.library / "Björk/Björk - Jóga.mp4").unlink()
    side.execute("UPDATE videos SET status = 'FAILED', file_size = 1 WHERE title = 'Jóga'")
    fill(side.downloads, ["BJÖRK - JÓGA.mkv"])
    (moved,), failed = side.organize()

    assert (False, "Björk/Björk - Jóga.mkv", []) == (moved["created"], moved["target"], failed)
    row = "SELECT status, file_path, file_size FROM videos WHERE title = 'Jóga'"
    assert [("DOWNLOADED", "Björk/Björk - Jóga.mkv", 20)] == side.rows(row)


def test_no_link_leads_a_file_out_of_the_library(side: Side, tmp_path: Path) -> None:
    fill(side.downloads, NAMES)
    (tmp_path / "outside").mkdir()
    (side.library / "Björk").symlink_to(tmp_path / "outside")
    _, failed = side.organize()

    assert {NAMES[0], NAMES[1]} == set(told(failed))
    assert {"The folder of the artist leads out of the library"} == set(told(failed).values())
    assert {} == contents(tmp_path / "outside")


def test_an_nfo_that_is_there_already_stays(side: Side) -> None:
    fill(side.downloads, NAMES)
    fill(side.library, ["Björk/Björk - Jóga.nfo"])
    moved, _ = side.organize(with_nfo=True)

    assert {"Björk - Jóga.mp4": False} == {one["file"]: one["nfo"] for one in moved if not one["nfo"]}
    assert "0 Björk/Björk - Jóga.nfo" == (side.library / "Björk/Björk - Jóga.nfo").read_text()
    assert "<title>Hyperballad</title>" in (side.library / "Björk/Björk - Hyperballad.nfo").read_text()


# --- the index


@ANYWHERE
def test_an_index_enters_every_file_once_and_a_second_one_changes_nothing(side: Side) -> None:
    fill(side.library, [*NAMES, "no artist.mp4", ".hidden/a - b.mp4", "Кино/Кино - Группа крови (1).mkv"])
    first = side.index()
    rows = side.rows("SELECT * FROM videos ORDER BY id"), side.rows("SELECT * FROM artists ORDER BY id")
    second = side.index()

    assert {"files": 6, "created": 5, "matched": 0, "updated": 0, "unchanged": 0, "skipped": 1} == first
    assert {"files": 6, "created": 0, "matched": 0, "updated": 0, "unchanged": 5, "skipped": 1} == second
    assert rows == (side.rows("SELECT * FROM videos ORDER BY id"), side.rows("SELECT * FROM artists ORDER BY id"))


@ANYWHERE
def test_two_indexes_at_once_enter_every_file_once(side: Side) -> None:
    names = [f"{artist}/{artist} - {title}.mp4" for artist in "abc" for title in range(5)]
    fill(side.library, names)
    side.index_twice_at_once()

    assert names == file_paths(side)
    assert [(3,)] == side.rows("SELECT count(*) FROM artists")


def test_an_index_marks_nothing_deleted_and_sees_what_has_changed(side: Side) -> None:
    fill(side.library, NAMES)
    side.index()
    (side.library / NAMES[0]).unlink()
    (side.library / NAMES[1]).write_text("longer than before, by far")
    side.execute("UPDATE videos SET status = 'WANTED' WHERE title = 'Группа крови'")

    assert {"files": 3, "created": 0, "matched": 0, "updated": 2, "unchanged": 1, "skipped": 0} == side.index()
    assert sorted(NAMES) == file_paths(side)
    assert [("DOWNLOADED", 4)] == side.rows("SELECT status, count(*) FROM videos GROUP BY status")


def test_a_file_that_was_moved_by_hand_finds_its_row(side: Side) -> None:
    fill(side.library, NAMES)
    side.index()
    (side.library / NAMES[0]).rename(side.library / "Björk - Joga - wrong.mp4")
    (side.library / NAMES[1]).rename(side.library / "Björk - Hyperballad.mp4")
    counts = side.index()

    assert (1, 1) == (counts["created"], counts["matched"])
    assert {"Björk - Hyperballad.mp4", "Björk - Joga - wrong.mp4", NAMES[0]} < set(file_paths(side))


def test_no_link_leads_the_index_out_of_the_library_or_round_in_circles(side: Side, tmp_path: Path) -> None:
    fill(tmp_path / "outside", ["secret - secret.mp4"])
    fill(side.library, ["a/a - a.mp4"])
    (side.library / "out").symlink_to(tmp_path / "outside")
    (side.library / "a/a - b.mp4").symlink_to(tmp_path / "outside/secret - secret.mp4")
    (side.library / "a/again").symlink_to(side.library)

    assert 1 == side.index()["files"]
    assert ["a/a - a.mp4"] == file_paths(side)


def test_files_that_wait_inside_the_library_are_not_indexed(tmp_path: Path) -> None:
    for name in ("legacy", "port"):
        with opened(name, tmp_path / name, DOWNLOADS_PATH=str(tmp_path / name / "library/incoming")) as side:
            fill(side.library, ["a/a - a.mp4", "incoming/b - b.mp4"])
            side.index()

            assert ["a/a - a.mp4"] == file_paths(side)


def test_an_index_of_a_library_that_cannot_be_read_is_told(side: Side) -> None:
    side.library.rmdir()

    with pytest.raises(API_ERRORS, match="The library cannot be read"):
        side.index()


def test_names_that_no_row_can_hold_are_skipped(side: Side) -> None:
    long = "/".join(["x" * 100] * 5)
    fill(side.library, ["a - b\udcff.mp4", f"{long}/a - b.mp4", "a - c.mp4"])

    assert (1, 2) == (side.index()["created"], side.index()["skipped"])


# --- ffprobe


ANSWERS = [
    ("", {}),
    ("nonsense", {}),
    ("[]", {}),
    ("null", {}),
    (
        '{"streams": [{"width": 1920, "height": 800}], "format": {"duration": "1.6"}}',
        {"duration": 2, "quality": "1080p"},
    ),
    ('{"streams": [], "format": {"duration": "200"}}', {"duration": 200}),
    ('{"streams": [{"width": 640, "height": 480}], "format": {"duration": "N/A"}}', {"quality": "480p"}),
    ('{"streams": [{"width": 1080, "height": 1920}]}', {"quality": "1080p"}),
    ('{"streams": [{"width": 100, "height": 100}]}', {"quality": "100p"}),
    ('{"streams": [{"width": -1, "height": 1080}], "format": {"duration": "inf"}}', {}),
    ('{"streams": [{"width": 1e300, "height": null}], "format": {"duration": NaN}}', {}),
    ('{"streams": {"0": 5}, "format": {"duration": "-5"}}', {}),
    ('{"streams": [{"width": 99999999999, "height": 1}], "format": {"duration": 1e15}}', {}),
]


@pytest.mark.parametrize(("output", "expected"), ANSWERS)
def test_what_ffprobe_says_is_believed_as_far_as_it_makes_sense(output: str, expected: dict[str, Any]) -> None:
    assert expected == legacy_flask.indexing.read_probe(output.encode())
    assert expected == fastapi_app.indexing.read_probe(output.encode())


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["legacy", "port"])
def test_ffprobe_is_the_one_beside_ffmpeg(name: str, tmp_path: Path) -> None:
    program(tmp_path / "bin/ffmpeg", "exit 1")
    program(
        tmp_path / "bin/ffprobe", """echo '{"streams": [{"width": 320, "height": 240}], "format": {"duration": "7"}}'"""
    )
    with opened(name, tmp_path, FFMPEG=str(tmp_path / "bin/ffmpeg")) as side:
        fill(side.library, NAMES)
        side.index()

        assert [(7, "240p", 4)] == side.rows(
            "SELECT duration, quality, count(*) FROM videos GROUP BY duration, quality"
        )


@pytest.mark.parametrize("name", ["legacy", "port"])
@pytest.mark.parametrize("does", ["exit 1", "kill -9 $$", "exec sleep 60", "exec no-such-program"])
def test_an_ffprobe_that_fails_is_as_good_as_none(
    name: str, does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for media in (legacy_flask.media, fastapi_app.media):
        monkeypatch.setattr(media, "PROBE_TIMEOUT_S", 0.2)
    program(tmp_path / "bin/ffmpeg", "exit 1")
    program(tmp_path / "bin/ffprobe", does)
    with opened(name, tmp_path, FFMPEG=str(tmp_path / "bin/ffmpeg")) as side:
        fill(side.library, NAMES)

        assert 4 == side.index()["created"]
        assert [(None, None)] * 4 == side.rows("SELECT duration, quality FROM videos")
