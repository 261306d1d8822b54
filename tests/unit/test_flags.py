"""The flag file on disk: what is in force while people and programs do things to it."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from itertools import pairwise
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import disk, flags
from gateway.audit import UNRECORDED, Audit, Event, read_audit
from gateway.disk import version_on_disk
from gateway.errors import FlagConflict, FlagFileError, FlagsReadOnly, GatewayError, UnknownKey
from gateway.flagfile import SetShadow, version_of
from gateway.flags import FlagStore
from gateway.model import Backend, FlagSet
from tests.support.processes import wait_until

KNOWN = frozenset({"a", "b", "c"})
GOOD = "version: 1\noverride: none\nroutes:\n  a: 25 # a quarter\n"
OTHER = "version: 1\noverride: none\nroutes:\n  a: 75 # a quarter\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "flags.yaml").write_text(GOOD)
    return tmp_path / "flags.yaml"


def keep(file: Path) -> FlagStore:
    return FlagStore(file, KNOWN, file.parent / "state")


def weight(store: FlagStore, key: str = "a") -> float:
    return store.current[key].weight_bp / 100


def replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.replace(file)


# --- at start -----------------------------------------------------------------------------------------------------


def test_without_a_file_everything_is_legacy_and_nothing_can_be_edited(tmp_path: Path) -> None:
    store = FlagStore(None, KNOWN, tmp_path)
    assert FlagSet() == store.current
    with pytest.raises(FlagsReadOnly, match="--flags"):
        store.set_weight("a", 5, by="me")


def test_a_missing_file_is_fatal_at_start(tmp_path: Path) -> None:
    with pytest.raises(FlagFileError, match=r"none\.yaml: cannot be read: No such file"):
        keep(tmp_path / "none.yaml")


WRONG: dict[str, bytes] = {
    "not UTF-8": b"version: 1\n# caf\xe9\n",
    "huge": b"version: 1\n" + b"#" * 10_000_000 + b"\n",
    "empty": b"",
    "no percentage": b"version: 1\nroutes:\n  a: 101\n",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_fatal_at_start_and_refused_later(file: Path, content: bytes) -> None:
    store = keep(file)
    file.write_bytes(content)
    with pytest.raises(FlagFileError, match=str(file)) as caught:
        keep(file)

    store.look()
    assert (25, str(caught.value)) == (weight(store), store.rejected)


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "flags.yaml"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(FlagFileError, match="not a regular file"):
        keep(path)


# --- while running ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(store: FlagStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.watch())
    await asyncio.sleep(0.1)  # the file watch begins in a thread of its own, unobservably
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> float:
    started = monotonic()
    while not condition():
        assert monotonic() - started < timeout_s
        await asyncio.sleep(0.002)
    return monotonic() - started


def delete(file: Path) -> None:
    file.unlink()


def write_in_place(file: Path) -> None:
    file.write_text(OTHER)


def write_byte_by_byte(file: Path) -> None:
    with file.open("wb", buffering=0) as out:
        for byte in OTHER.encode():
            out.write(bytes([byte]))


def write_with_the_old_time(file: Path) -> None:
    times = file.stat()
    file.write_text(OTHER)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by_rename(file: Path) -> None:
    replace(file, OTHER)


def delete_and_create(file: Path) -> None:
    file.unlink()
    file.write_text(OTHER)


def swap_symlink(file: Path) -> None:
    """As Kubernetes updates a ConfigMap: the directory behind `..data` changes, the file's own link does not."""
    fresh = file.parent / "..fresh"
    fresh.mkdir()
    (fresh / file.name).write_text(OTHER)
    (file.parent / "..link").symlink_to(fresh)
    (file.parent / "..link").replace(file.parent / "..data")


CHANGES = [
    write_in_place,
    write_byte_by_byte,
    write_with_the_old_time,
    replace_by_rename,
    delete_and_create,
    swap_symlink,
]


@pytest.mark.parametrize("blind", [False, True], ids=["watched", "polled"])
@pytest.mark.parametrize("change", CHANGES)
async def test_however_the_file_changes_the_new_flags_are_in_force_soon(
    file: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], blind: bool
) -> None:
    if change is swap_symlink:
        (file.parent / "..old").mkdir()
        file.rename(file.parent / "..old" / file.name)
        (file.parent / "..data").symlink_to("..old")
        file.symlink_to(f"..data/{file.name}")
    if blind:
        monkeypatch.setattr(disk.watchfiles, "watch", no_watch)
    store = keep(file)
    seen: list[float] = []
    store.subscribe(lambda new: seen.append(new["a"].weight_bp / 100))
    async with watching(store):
        change(file)
        await until(lambda: seen[-1:] == [75])  # told from the thread that watches, just after the change

    assert weight(store) == 75
    assert set(seen) <= {25, 75}
    assert not store.rejected


def no_watch(*_: object, **__: object) -> Iterator[None]:
    raise OSError("inotify instances exhausted")


@pytest.mark.parametrize("end", range(len(GOOD)))
def test_a_file_that_is_cut_off_in_place_changes_nothing_wherever_it_is_cut(file: Path, end: int) -> None:
    store = keep(file)
    os.truncate(file, end)
    store.look()
    assert (25, True) == (weight(store), str(file) in store.rejected)
    with pytest.raises(FlagFileError):
        store.set_weight("b", 5, by="me")
    assert GOOD[:end] == file.read_text()

    file.write_text(GOOD)
    store.look()
    assert "" == store.rejected


def test_who_means_to_delete_the_last_lines_replaces_the_file(file: Path) -> None:
    store = keep(file)
    replace(file, GOOD.partition("  a")[0])
    store.look()
    assert (0, "") == (weight(store), store.rejected)


def test_a_file_deleted_and_written_anew_is_another_file_whatever_its_inode(file: Path) -> None:
    """As git does it."""
    store = keep(file)
    file.unlink()
    file.write_text(GOOD.partition("  a")[0])
    store.look()
    assert (0, "") == (weight(store), store.rejected)


async def test_a_rename_is_in_force_within_tens_of_milliseconds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "POLL_S", 60)  # nothing but the file watch tells of it
    store = keep(file)
    took_s = []
    async with watching(store):
        for text, percent in [(OTHER, 75), (GOOD, 25)] * 5:
            replace(file, text)
            took_s.append(await until(lambda percent=percent: weight(store) == percent))
    assert min(took_s) < 0.2  # the machine may be busy with others now and then


async def test_equal_size_time_and_inode_do_not_hide_a_change_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flags, "REREAD_S", 0.2)
    store = keep(file)
    monkeypatch.setattr(flags, "signature", lambda _: None)
    async with watching(store):
        file.write_text(OTHER)
        await until(lambda: weight(store) == 75)


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """By mode, which stops everybody but root; for root a dangling link looks the same."""
    if os.geteuid():
        file.chmod(0)
    else:
        file.rename(file.with_suffix(".away"))
        file.symlink_to("nowhere")
    yield
    if os.geteuid():
        file.chmod(0o644)
    else:
        file.unlink()
        file.with_suffix(".away").rename(file)


@contextmanager
def broken(file: Path) -> Iterator[None]:
    replace(file, "version: 1\nroutes: {\n")
    yield
    replace(file, GOOD)


@contextmanager
def deleted(file: Path) -> Iterator[None]:
    file.unlink()
    yield
    replace(file, GOOD)  # in one step: an empty file would be another alarm


@contextmanager
def directory_gone(file: Path) -> Iterator[None]:
    file.parent.rename(file.parent.with_name("elsewhere"))
    yield
    file.parent.with_name("elsewhere").rename(file.parent)


@pytest.mark.parametrize("damage", [broken, deleted, unreadable, directory_gone])
async def test_the_last_good_flags_stay_in_force_with_one_alarm_until_the_file_is_good_again(
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], Iterator[None]],
) -> None:
    monkeypatch.setattr(flags, "REREAD_S", 0.1)
    store = keep(file)
    told: list[str] = []
    store.subscribe(lambda _: told.append(store.rejected))
    async with watching(store):
        with damage(file):
            await until(lambda: store.rejected)
            assert str(file) in store.rejected
            await asyncio.sleep(0.8)  # several polls and readings later there is still one alarm
            assert 25 == weight(store)
            assert [store.rejected] == told
        await until(lambda: not store.rejected)
        replace(file, OTHER)
        await until(lambda: weight(store) == 75)

    alarms = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR and r.name.startswith("gateway.")]
    assert [f"flags: {told[0]}; version {alarms[0].split('version ')[1]}"] == alarms


def test_a_file_that_is_being_rewritten_is_read_only_when_it_stands_still(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GOOD + "".join(f"# {n}\n" for n in range(20)) + "  b: 100\n"
    store = keep(file)
    seen: list[FlagSet] = []
    store.subscribe(seen.append)
    lines = iter(whole.splitlines(keepends=True))
    with file.open("w") as out:

        def write_on(_wait_s: float = 0.0) -> None:
            out.write(next(lines, ""))
            out.flush()

        write_on()
        # Its own clock: whenever the file is waited for, one more line is written.
        monkeypatch.setattr(flags, "time", SimpleNamespace(sleep=write_on, monotonic=lambda: 0.0))
        store.look()
    assert weight(store, "b") == 100
    assert [store.current] == seen
    assert not store.rejected


def test_only_the_file_watch_dies_with_its_directory_not_the_watching(file: Path) -> None:
    stop = threading.Event()
    monitor = threading.Thread(target=disk.watch_directory, args=(file.parent / "no" / "f", stop, print))
    monitor.start()
    stop.set()
    monitor.join(30)
    assert not monitor.is_alive()


# --- edits --------------------------------------------------------------------------------------------------------


def test_an_edit_is_in_force_on_disk_and_in_the_audit_trail(file: Path) -> None:
    store = keep(file)
    seen: list[FlagSet] = []
    store.subscribe(seen.append)
    before = store.current.version

    event = store.set_weight("a", "12.5", by="ann@host", why="try")

    assert GOOD.replace("25", "12.5") == file.read_text()
    assert 12.5 == weight(store)
    assert [store.current] == seen
    assert [event] == store.audit() == read_audit(file.parent / "state" / "audit.jsonl")
    assert {
        "id": 1,
        "at": event.at,
        "by": "ann@host",
        "why": "try",
        "key": "a",
        "before": 25,
        "after": 12.5,
        "version_before": before,
        "version": store.current.version,
        "evidence": {},
    } == {name: value for name, value in asdict(event).items() if name not in ("action", "prev", "hash")}


def test_the_panic_switch_is_an_edit_too(file: Path) -> None:
    store = keep(file)
    event = store.set_override("legacy", by="me")
    assert ("override", "none", "legacy") == (event.key, event.before, event.after)
    assert Backend.LEGACY == store.current.override


def test_an_edit_that_changes_nothing_writes_nothing(file: Path) -> None:
    store, before = keep(file), disk.signature(file)
    assert 0 == store.set_weight("a", 25.0, by="me").id
    assert before == disk.signature(file)
    assert [] == store.audit()


@pytest.mark.parametrize("percent", [-1, 101, 100.01, 12.345, float("nan"), float("inf"), True, None, "", "5%", [5]])
def test_a_weight_out_of_range_is_refused_before_anything_is_touched(file: Path, percent: object) -> None:
    with pytest.raises(FlagFileError, match="a: expected a percentage from 0 to 100"):
        keep(file).set_weight("a", percent, by="me")
    assert GOOD == file.read_text()


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("version: 1\n")
    with pytest.raises(UnknownKey, match=r"videos\.lits: no such route; did you mean 'videos\.list'\?"):
        FlagStore(tmp_path / "f", {"videos.list"}, tmp_path).set_weight("videos.lits", 5, by="me")


def test_an_edit_based_on_an_old_version_is_refused(file: Path) -> None:
    store = keep(file)
    old = store.current.version
    store.set_weight("a", 30, by="me", if_version=old)
    with pytest.raises(FlagConflict, match=old):
        store.set_weight("a", 40, by="me", if_version=old)
    assert 30 == weight(store)


def test_an_edit_builds_on_what_is_on_disk_not_on_what_this_process_knows(file: Path) -> None:
    store = keep(file)
    replace(file, GOOD + "  b: 7 # by hand\n")
    store.set_weight("a", 30, by="me")
    assert (30, 7) == (weight(store), weight(store, "b"))
    assert "b: 7 # by hand" in file.read_text()


def test_a_file_that_is_broken_on_disk_is_not_edited(file: Path) -> None:
    store = keep(file)
    file.write_text("version: 1\nroutes: {a: 101}\n")
    with pytest.raises(FlagFileError, match="not 101"):
        store.set_weight("a", 30, by="me")
    assert file.read_text() == "version: 1\nroutes: {a: 101}\n"
    assert [] == store.audit()


def test_an_edit_keeps_mode_and_follows_a_link(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "elsewhere" / "link.yaml"
    link.parent.mkdir()
    link.symlink_to(file)
    keep(link).set_weight("a", 30, by="me")
    assert link.is_symlink()
    assert (0o640, GOOD.replace("25", "30")) == (file.stat().st_mode & 0o777, file.read_text())
    assert ["link.yaml", "state"] == sorted(p.name for p in link.parent.iterdir())


def test_undo_puts_back_what_was_before_even_a_deed_of_undo(file: Path) -> None:
    store = keep(file)
    store.set_weight("a", 30, by="me")
    undone = store.undo(1, by="me")
    assert (30, 25, "undo 1") == (undone.before, undone.after, undone.why)
    store.undo(str(undone.id), by="me")
    assert 30 == weight(store)

    store.set_override("fastapi", by="me")
    assert "none" == store.undo(4, by="me").after


def test_undo_of_a_shadow_leaves_the_weight_alone(file: Path) -> None:
    store = keep(file)
    event = store.edit(SetShadow("a", 1000), by="me")
    assert ("shadow", 0, 10) == (event.action, event.before, event.after)
    assert (10, 0) == ((undone := store.undo(event.id, by="me")).before, undone.after)
    assert "a: {weight: 25, shadow: 0}" in file.read_text()


def test_undo_of_what_was_changed_again_needs_force(file: Path) -> None:
    store = keep(file)
    store.set_weight("a", 30, by="me")
    store.set_weight("a", 40, by="me")
    with pytest.raises(FlagConflict, match="a is 40 by now; event 1 had made it 30"):
        store.undo(1, by="me")
    assert 25 == store.undo(1, by="me", force=True).after


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"action": "hold", "key": "a", "before": 25, "after": "held"}, "event 1 is nothing that can be put back$"),
        ({"action": "file", "key": "a", "before": "pins: []", "after": "pins: [x]"}, r"is versions/0123456789ab\.yaml"),
    ],
)
def test_what_no_program_can_put_back_is_refused(file: Path, event: dict[str, Any], reason: str) -> None:
    at = {"id": 0, "at": "2026-01-01T00:00:00.000+00:00", "by": "me", "why": ""}
    Audit(file.parent / "state").append(Event(**at, **event, version_before="0123456789ab", version=""))
    with pytest.raises(GatewayError, match=reason):
        keep(file).undo(1, by="me", force=True)


def test_undo_of_an_event_that_never_was_is_refused(file: Path) -> None:
    with pytest.raises(GatewayError, match="no event '7'"):
        keep(file).undo(7, by="me")


def test_a_torn_line_costs_one_event_not_the_next(file: Path) -> None:
    store = keep(file)
    store.set_weight("a", 30, by="me")
    audit = file.parent / "state" / "audit.jsonl"
    audit.write_bytes(audit.read_bytes() + b'{"id": 2, "at": "2026-')
    store.set_weight("a", 40, by="me")
    assert [(1, 30), (2, 40)] == [(event.id, event.after) for event in store.audit()]


def test_control_characters_do_not_reach_the_audit_trail(file: Path) -> None:
    event = keep(file).set_weight("a", 30, by="me\x1b[2J", why="a\nb\udcff")
    assert (r"me\x1b[2J", r"a\nb\udcff") == (event.by, event.why)
    (line,) = (file.parent / "state" / "audit.jsonl").read_text().splitlines()
    assert "me\\x1b[2J" == json.loads(line)["by"]


def refusal_without_root(file: Path, result: Connection) -> None:
    if not os.geteuid():
        os.setegid(65534)
        os.seteuid(65534)
    try:
        keep(file).set_weight("a", 30, by="me")
    except FlagsReadOnly as error:
        result.send(str(error))


@pytest.mark.parametrize("closed", [".", "state"])
def test_where_it_may_not_write_it_says_so_and_changes_nothing(closed: str) -> None:
    with TemporaryDirectory() as name:
        file = Path(name) / "flags.yaml"
        file.write_text(GOOD)
        (file.parent / "state").mkdir()
        for directory in (".", "state"):
            (file.parent / directory).chmod(0o555 if directory == closed else 0o777)
        receiver, sender = Pipe()
        child = get_context("spawn").Process(target=refusal_without_root, args=(file, sender))
        child.start()
        child.join()

        assert receiver.recv().startswith(f"{file} cannot be changed here: Permission denied")
        assert GOOD == file.read_text()
        file.parent.chmod(0o755)


def test_the_way_back_to_legacy_is_open_even_where_nothing_can_be_recorded(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = keep(file)
    (file.parent / "state").write_text("no directory")
    with pytest.raises(FlagsReadOnly):
        store.set_weight("a", 30, by="me")
    assert UNRECORDED == store.set_weight("a", 5, by="me").id
    assert UNRECORDED == store.set_override("legacy", by="me").id
    assert (5, Backend.LEGACY) == (weight(keep(file)), keep(file).current.override)
    assert "not recorded" in caplog.text


# --- what people do with an editor --------------------------------------------------------------------------------


def changes(store: FlagStore) -> list[tuple[object, ...]]:
    return [(event.id, event.by, event.action, event.key, event.before, event.after) for event in store.audit()]


def test_what_a_person_has_changed_is_recorded_key_by_key_before_the_next_edit(file: Path) -> None:
    store = keep(file)
    before = store.set_weight("a", 30, by="me").version
    replace(
        file,
        "version: 1\noverride: legacy\nrollouts: {slow: {steps: [1, 100], every: 1h}}\n"
        "routes:\n  a: {weight: 35, shadow: 5, pins: [x, y], rollout: slow}\n  b: 100\n",
    )
    by_hand = version_on_disk(file)
    store.set_weight("b", 90, by="me")

    assert [
        (1, "me", "weight", "a", 25, 30),
        (2, "file", "override", "override", "none", "legacy"),
        (3, "file", "weight", "a", 30, 35),
        (4, "file", "shadow", "a", 0, 5),
        (5, "file", "rollout", "a", "", "slow"),
        (6, "file", "file", "a", "pins: []", "pins: [x, y]"),
        (7, "file", "weight", "b", 0, 100),
        (8, "file", "file", "rollouts.slow", "none", store.audit()[7].after),
        (9, "me", "weight", "b", 100, 90),
    ] == changes(store)
    assert str(store.audit()[7].after).startswith("steps: [1%, 100%], every: 3600.0, min_requests: 200, max_errors: 1%")
    assert {(before, by_hand)} == {(event.version_before, event.version) for event in store.audit()[1:8]}
    assert by_hand == version_of(Audit(file.parent / "state").text_of(by_hand) or "")


def test_each_change_of_a_person_can_be_undone_by_itself(file: Path) -> None:
    store = keep(file)
    store.set_weight("a", 30, by="me")
    replace(file, "version: 1\noverride: legacy\nroutes:\n  a: {weight: 35, shadow: 5}\n")
    store.look()
    store.record()
    assert [30, 0, "none"] == [store.undo(number, by="me").after for number in (3, 4, 2)]


async def test_several_workers_record_the_edit_of_a_person_once(file: Path) -> None:
    stores = [keep(file) for _ in range(4)]
    stores[0].set_weight("a", 30, by="me")
    async with AsyncExitStack() as stack:
        for store in stores:
            await stack.enter_async_context(watching(store))
        replace(file, OTHER)
        await until(lambda: not any(store._unrecorded for store in stores) and len(stores[0].audit()) > 1)
    assert [(1, "me", "weight", "a", 25, 30), (2, "file", "weight", "a", 30, 75)] == changes(stores[0])


async def test_what_was_edited_while_nothing_ran_is_recorded_at_the_next_start(file: Path) -> None:
    keep(file).set_weight("a", 30, by="me")
    replace(file, GOOD)
    store = keep(file)
    async with watching(store):
        await until(lambda: len(store.audit()) == 2)
    assert (2, "file", "weight", "a", 30, 25) == changes(store)[1]


def test_an_edit_of_comments_is_a_version_and_an_event_too(file: Path) -> None:
    store = keep(file)
    store.set_weight("a", 30, by="me")
    replace(file, file.read_text() + "# for tomorrow\n")
    store.record()
    event = store.audit()[-1]
    assert ("file", "", "comments and spaces only") == (event.action, event.key, event.why)
    assert version_on_disk(file) == event.version == event.after


def test_every_version_that_was_in_force_is_kept(file: Path) -> None:
    store = keep(file)
    texts = [file.read_text()]
    for change in (lambda: store.set_weight("a", 30, by="me"), lambda: replace(file, OTHER), store.record):
        change()
        texts.append(file.read_text())
    audit = Audit(file.parent / "state")
    assert texts == [audit.text_of(version_of(text)) for text in texts]


# --- the breaker --------------------------------------------------------------------------------------------------


def held_file(file: Path) -> FlagStore:
    store = keep(file)
    store.hold("a", "9 of 10 failed", {"failed": 9})
    return store


def test_a_hold_is_in_force_at_once_and_soon_in_the_audit_trail(file: Path) -> None:
    store, seen = keep(file), []
    store.subscribe(seen.append)
    store.hold("a", "9 of 10 failed", {"failed": 9})
    assert ({"a"}, ["a"], [store.current]) == (store.current.held, [hold.key for hold in store.holds], seen)

    (event,) = recorded(store)
    assert ("hold", "breaker", "9 of 10 failed", "a", 25, "held", {"failed": 9}) == (
        event.action,
        event.by,
        event.why,
        event.key,
        event.before,
        event.after,
        event.evidence,
    )


def recorded(store: FlagStore) -> list[Event]:
    return wait_until(store.audit, "the audit line")


def test_a_hold_waits_for_nobody_who_edits(file: Path) -> None:
    store = keep(file)
    with store._mutex:
        store.hold("a", "failed", {})
    assert {"a"} == store.current.held


def test_a_second_hold_of_the_same_route_changes_nothing(file: Path) -> None:
    store = held_file(file)
    before = store.current
    store.hold("a", "again", {})
    assert before is store.current


def test_a_hold_ends_when_the_file_gives_the_route_another_weight(file: Path) -> None:
    store = held_file(file)
    store.set_weight("a", 0, by="breaker")
    assert (frozenset(), []) == (store.current.held, store.holds)

    store = held_file(file)
    replace(file, GOOD)
    store.look()
    assert frozenset() == store.current.held


def test_an_edit_about_something_else_does_not_put_a_broken_route_back(file: Path) -> None:
    store = held_file(file)
    store.set_weight("b", 10, by="me")
    store.set_override("legacy", by="me")
    store.set_override("none", by="me")
    replace(file, file.read_text().replace("a: 25", "a: {weight: 25, shadow: 100}"))
    store.look()
    assert {"a"} == store.current.held
    assert 10_000 == store.current["a"].shadow_bp


def test_a_hold_that_cannot_be_recorded_holds_nevertheless(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file.parent / "state").write_text("no directory")
    assert {"a"} == held_file(file).current.held
    wait_until(lambda: "what follows is not recorded" in caplog.text, "the line in the log")


# --- several writers ----------------------------------------------------------------------------------------------


def write_many(file: Path, key: str, times: int) -> None:
    disk.LOCK_WAIT_S = 100.0  # on a slow disk the others have their turns for long
    store = keep(file)
    for n in range(1, times + 1):
        store.set_weight(key, n / 100, by=key)


def test_writers_that_race_lose_no_update(file: Path) -> None:
    times, context = 50, get_context("spawn")
    writers = [context.Process(target=write_many, args=(file, key, times)) for key in "abc"]
    for writer in writers:
        writer.start()
    versions = set()
    while any(writer.is_alive() for writer in writers):
        versions.add(keep(file).current.version)  # at every moment there is a whole file
    assert [0, 0, 0] == [writer.exitcode for writer in writers]

    events = keep(file).audit()
    assert [times / 100] * 3 == [weight(keep(file), key) for key in "abc"]
    assert list(range(1, 3 * times + 1)) == [event.id for event in events]
    for key in "abc":
        assert [n / 100 for n in range(1, times + 1)] == [event.after for event in events if event.key == key]
    assert all(event.version == following.version_before for event, following in pairwise(events))
    assert len(versions) > 1


def test_a_writer_that_holds_the_lock_for_ever_stops_nobody_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOCK_WAIT_S", 0.05)
    store = keep(file)
    with disk.locked(file.parent), pytest.raises(FlagConflict, match="another program has locked"):
        store.set_weight("a", 30, by="me")
    store.set_weight("a", 30, by="me")
