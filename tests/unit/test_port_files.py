"""Work on files by the port: whole or not at all, never elsewhere, never on the loop."""

import asyncio
import errno
import os
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import legacy_flask.files
from fastapi_app import files
from fastapi_app.files import digest, move, off_loop, tail, tree_size, usage, walk, walked, write_atomic

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole writes ------------------------------------------------------------------------------------------------


def test_a_written_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"one")
    write_atomic(tmp_path / "file", b"two")
    assert (b"two", ["file"]) == ((tmp_path / "file").read_bytes(), names(tmp_path))


@pytest.mark.parametrize(
    ("before", "wanted", "after"), [(0o640, None, 0o640), (0o644, 0o600, 0o600), (None, 0o600, 0o600)]
)
def test_the_mode_is_kept_or_as_wanted(tmp_path: Path, before: int | None, wanted: int | None, after: int) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.touch()
        path.chmod(before)
    write_atomic(path, b"secret", mode=wanted)
    assert after == path.stat().st_mode & 0o7777


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "file", b"")
    assert (tmp_path / "usual").stat().st_mode == (tmp_path / "file").stat().st_mode


def test_a_secret_is_never_readable_by_others_not_even_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_mode & 0o777), fsync(number)))
    write_atomic(tmp_path / "secret", b"x", mode=0o600)
    assert 0o600 == seen[0]


def test_a_reader_finds_the_old_content_or_the_new(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [letter * 500_000 for letter in (b"a", b"b")]
    write_atomic(path, contents[0])
    done, found = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_bytes())

    reading = threading.Thread(target=read)
    reading.start()
    for number in range(100):
        write_atomic(path, contents[number % 2])
    done.set()
    reading.join()
    assert found <= set(contents)


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"untouched")
    (tmp_path / "link").symlink_to("other")
    write_atomic(tmp_path / "link", b"new")
    assert (b"untouched", b"new") == ((tmp_path / "other").read_bytes(), (tmp_path / "link").read_bytes())
    assert not (tmp_path / "link").is_symlink()


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", b"new")
    assert (b"old", ["file"]) == ((tmp_path / "file").read_bytes(), names(tmp_path))


def test_what_cannot_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "folder/inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", b"x")
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere/file", b"x")
    assert ["folder"] == names(tmp_path)


def test_the_longest_safe_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / files.safe_name("é" * 400)
    write_atomic(path, b"x")
    assert b"x" == path.read_bytes()


# --- moves from one file system to another -----------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is missing, or on the file system of the temporary folder: there is no second one")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("move", [move, legacy_flask.files.move], ids=["port", "legacy"])
def test_a_file_moves_to_another_file_system_whole(
    tmp_path: Path, elsewhere: Path, move: Callable[[Path, Path], Path]
) -> None:
    source, content = elsewhere / "video.mp4", os.urandom(3_000_000)
    source.write_bytes(content)
    os.utime(source, (1, 1_000_000_000))
    (tmp_path / "to").mkdir()
    (tmp_path / "to/video.mp4").write_bytes(b"other")
    target = move(source, tmp_path / "to/video.mp4")
    assert (tmp_path / "to/video (1).mp4", content, 1_000_000_000) == (
        target,
        target.read_bytes(),
        target.stat().st_mtime,
    )
    assert ([], ["video (1).mp4", "video.mp4"]) == (names(elsewhere), names(tmp_path / "to"))
    assert b"other" == (tmp_path / "to/video.mp4").read_bytes()


@pytest.mark.parametrize("module", [files, legacy_flask.files], ids=["port", "legacy"])
def test_a_move_that_fails_half_way_leaves_the_source_and_nothing_else(
    tmp_path: Path, elsewhere: Path, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (elsewhere / "video.mp4").write_bytes(b"whole")
    (tmp_path / "to").mkdir()
    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        module.move(elsewhere / "video.mp4", tmp_path / "to/video.mp4")  # type: ignore[attr-defined]
    assert (b"whole", []) == ((elsewhere / "video.mp4").read_bytes(), names(tmp_path / "to"))


# --- walks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/2", "b/1", "a/deep/er/3", "0", "c\udcff/4"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    root = tmp_path / "tree"
    (root / "loop").symlink_to(root)
    (root / "outside").symlink_to("/etc")
    (root / "dangling").symlink_to("/nowhere")
    (root / "link").symlink_to("0")
    os.mkfifo(root / "pipe")
    (root / "empty").mkdir()
    return root


def test_a_walk_finds_every_regular_file_once_and_follows_no_link(tree: Path) -> None:
    found = [one for batch in walk(tree) for one in batch]
    assert ["0", "a/deep/er/3", "b/1", "b/2", "c\udcff/4"] == [str(one.path.relative_to(tree)) for one in found]
    assert {1000} == {one.size for one in found}
    assert found[0].modified == (tree / "0").stat().st_mtime


@pytest.mark.parametrize(("batch", "sizes"), [(2, [2, 2, 1]), (5, [5]), (1, [1] * 5), (100, [5])])
async def test_a_walk_comes_in_batches(tree: Path, batch: int, sizes: list[int]) -> None:
    assert sizes == [len(found) for found in walk(tree, batch)]
    assert sizes == [len(found) async for found in walked(tree, batch)]


async def test_a_walk_through_nothing_finds_nothing(tree: Path) -> None:
    for root in (tree / "empty", tree / "nowhere", tree / "0"):
        assert [] == [found async for found in walked(root)]


def test_what_vanishes_during_a_walk_is_left_out(tree: Path) -> None:
    batches = walk(tree, 1)
    assert "0" == next(batches)[0].path.name
    for path in (tree / "b").iterdir():
        path.unlink()
    (tree / "b").rmdir()
    assert ["3", "4"] == [found.path.name for batch in batches for found in batch]


def test_the_size_of_a_tree_counts_what_is_there_once(tree: Path) -> None:
    links = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_symlink())
    assert 5000 + links == tree_size(tree)
    os.link(tree / "0", tree / "again")
    assert 5000 + links == tree_size(tree)


# --- tails -------------------------------------------------------------------------------------------------------


@PATIENT
@given(
    st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line), max_size=12),
    st.integers(1, 14),
    st.booleans(),
)
def test_a_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int, ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(content if ended else content[:-1])
    expected = lines if ended or not lines or lines[-1] else lines[:-1]
    told = [line.removesuffix(b"\r").decode(errors="replace") for line in expected[-count:]]
    assert told == tail(path, count)
    assert told == legacy_flask.files.tail(path, count)


def test_a_tail_reads_only_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)  # takes no room
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"line\n" * 2000)
    tracemalloc.start()
    assert ["line"] * 1000 == tail(path, 1000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    assert [10, 4] == [len(line) for line in tail(path, 2001, max_bytes=2000 * 5 + 11)][:2]
    tracemalloc.stop()


@pytest.mark.parametrize("tail", [tail, legacy_flask.files.tail], ids=["port", "legacy"])
def test_a_tail_of_what_is_no_file_is_refused_at_once(tmp_path: Path, tail: Callable[[Path, int], list[str]]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "nothing"):
        with pytest.raises(OSError):
            tail(path, 5)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_a_digest_is_the_sha_256_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256(content).hexdigest() == digest(tmp_path / "file")


def test_usage_is_in_bytes(tmp_path: Path) -> None:
    known, found = os.statvfs(tmp_path), usage(tmp_path)
    assert known.f_blocks * known.f_frsize == found.total
    assert 0 < found.used + found.free <= found.total
    with pytest.raises(FileNotFoundError):
        usage(tmp_path / "nowhere")


# --- off the loop ------------------------------------------------------------------------------------------------


async def test_the_loop_goes_on_while_files_are_worked_on() -> None:
    """The work waits for what only the loop can do."""
    go = threading.Event()
    working = asyncio.create_task(off_loop(go.wait, 30))
    await asyncio.sleep(0)
    go.set()
    assert await working


async def test_work_on_files_is_counted_and_bounded() -> None:
    while any(files.statistics()[name] for name in ("running", "waiting")):  # what an earlier test has left
        await asyncio.sleep(0.001)
    before, go = files.statistics(), threading.Event()
    working = [asyncio.create_task(off_loop(go.wait, 20)) for _ in range(12)]
    while files.statistics()["waiting"] != 4:
        await asyncio.sleep(0.001)
    assert 8 == files.statistics()["running"]
    go.set()
    await asyncio.gather(*working)
    with pytest.raises(FileNotFoundError):
        await off_loop(usage, Path("/nowhere"))
    after = files.statistics()
    assert (12, 1) == tuple(after[name] - before[name] for name in ("done_total", "failed_total"))
    assert (0, 0) == (after["running"], after["waiting"])
    assert after["seconds_total"] > before["seconds_total"]
