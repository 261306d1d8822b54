"""The way of files into the library on a disk that is full, and when it is cut off by kill -9."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.disks import needs_small_disk, with_small_disk
from tests.support.serving import environment
from tests.support.sides import fill, opened

ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from tests.support.sides import opened

def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

with opened(sys.argv[1], Path(sys.argv[2])) as side:
    for name in "abc":
        (side.downloads / f"{name} - {name}.mp4").write_bytes(name.encode() * 400_000)
    moved, failed = side.organize(with_nfo=True)
    full = listing(side.library), listing(side.downloads)
    (side.library / "a/a - a.mp4").unlink()
    again = side.organize(with_nfo=True)
    print(json.dumps({
        "moved": len(moved), "failed": failed, "library": full[0], "downloads": full[1], "again": len(again[0]),
        "rows": side.rows("SELECT file_path, file_size FROM videos ORDER BY id"), "left": listing(side.downloads),
    }))
"""


@needs_small_disk
@pytest.mark.parametrize("name", ["legacy", "port"])
def test_a_file_that_finds_no_room_stays_where_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "script.py").write_text(ON_A_SMALL_DISK)
    command = with_small_disk(
        tmp_path / "library", "1m", f"exec {sys.executable} {tmp_path}/script.py {name} {tmp_path}"
    )
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment({}), timeout=60)
    assert 0 == done.returncode, done.stderr
    found = json.loads(done.stdout)

    assert (2, [{"file": "c - c.mp4", "error": "The file could not be moved"}]) == (found["moved"], found["failed"])
    assert ["a/a - a.mp4", "a/a - a.nfo", "b/b - b.mp4", "b/b - b.nfo"] == found["library"]
    assert ["c - c.mp4"] == found["downloads"]
    assert (1, []) == (found["again"], found["left"])
    assert [[f"{letter}/{letter} - {letter}.mp4", 400_000] for letter in "abc"] == found["rows"]


CUT_OFF = """
import os, signal, sys
from pathlib import Path
from threading import Thread
from time import sleep
from tests.support.sides import opened

name, home, after = sys.argv[1:]

def kill():  # from within: whoever looks from outside may look too late
    while len(list(side.library.rglob("*.mp4"))) < int(after):
        sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

with opened(name, Path(home), f"sqlite:///{home}/app.sqlite3") as side:
    Thread(target=kill, daemon=True).start()
    side.organize(with_nfo=True)
"""


@pytest.mark.parametrize("name", ["legacy", "port"])
@pytest.mark.parametrize("after", [1, 7, 30])
def test_what_kill_9_cuts_off_is_finished_by_doing_it_again(name: str, after: int, tmp_path: Path) -> None:
    with opened(name, tmp_path) as side:
        names = [f"{artist} - {title}.mp4" for artist in "abcdefgh" for title in range(20)]
        fill(side.downloads, names)
        command = [sys.executable, "-c", CUT_OFF, name, str(tmp_path), str(after)]
        done = subprocess.run(command, check=False, env=environment({}), stderr=subprocess.PIPE, timeout=60)
        assert (-signal.SIGKILL, b"") == (done.returncode, done.stderr)

        _, failed = side.organize(with_nfo=True)

        assert [] == failed
        assert [] == list(side.downloads.iterdir())
        there = sorted(path for path in side.library.rglob("*.mp4") if not path.name.startswith("."))
        assert sorted(f"{number} {name}" for number, name in enumerate(names)) == sorted(
            path.read_text() for path in there
        )
        assert [str(path.relative_to(side.library)) for path in there] == [
            row[0] for row in side.rows("SELECT file_path FROM videos ORDER BY file_path")
        ]
