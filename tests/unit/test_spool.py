"""Where bytes wait: nothing lost, nothing exchanged, nothing kept."""

import asyncio
import io
import random
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.spool import BODY_FREE_BYTES, BodyTruncated, Spool, Store, Upload
from tests.unit.test_wsgi import open_files

MIB = 1024 * 1024
DATA = random.Random(7).randbytes(3 * MIB)  # a newline every 256 bytes


# --- spools

WRITES = st.lists(st.tuples(st.sampled_from(["keep", "write", "take", "take much"]), st.integers(1, 5000)), max_size=60)


@given(WRITES, st.integers(0, 20_000), st.integers(0, 20_000))
def test_a_spool_is_a_queue_wherever_its_bytes_are(steps: Any, free: int, most: int) -> None:
    store = Store(10_000)
    spool = Spool(store, free, most)
    expected, taken, position = bytearray(), bytearray(), 0
    for step, count in steps:
        if step.startswith("take"):
            taken += spool.take(count if step == "take much" else 0)
            continue
        chunk = DATA[position : position + count]
        if step == "write" or not spool.keep(chunk):
            spool.write(chunk)
        expected += chunk
        position += count
        assert len(expected) == spool.size + len(taken)
    while chunk := spool.take(100):
        taken += chunk
    assert expected == taken
    assert 10_000 == store.free_bytes


def test_an_empty_spool_takes_any_chunk() -> None:
    spool = Spool(Store(0), 0, 0)
    assert spool.keep(b"x" * MIB)
    assert not spool.keep(b"y")
    assert b"x" * MIB == spool.take()
    assert spool.keep(b"y")


def test_short_chunks_cost_what_they_cost() -> None:
    store = Store(100 * MIB)
    spool = Spool(store, 1000, 100_000)
    kept = 0
    while spool.keep(b"x"):
        kept += 1
    assert 1000 < kept < 100_000 / 60


def test_a_file_starts_anew_when_it_was_read() -> None:
    spool = Spool(Store(0), 0, 0)
    for _ in range(100):
        spool.write(DATA[:MIB])
        while spool.take():
            pass
    assert MIB == spool.file_bytes


def test_nothing_is_left_of_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(MIB)
    spool = Spool(store, 0, 2 * MIB)
    assert spool.keep(b"x")
    assert spool.keep(b"y" * 1000)
    spool.write(b"z")
    assert [] == list(tmp_path.iterdir())
    assert 1 == open_files(tmp_path)
    del spool
    assert (0, MIB) == (open_files(tmp_path), store.free_bytes)


def test_a_failed_write_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(Store(0), 0, 0)
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with pytest.raises(OSError, match="nonexistent"):
        spool.write(b"x")
    assert 0 == spool.size


def test_a_writer_waits_until_the_reader_has_taken_everything() -> None:
    spool = Spool(Store(0), 0, 0)
    assert spool.wait_until_empty(0)
    spool.keep(b"x")
    assert not spool.wait_until_empty(0.01)
    threading.Timer(0.02, spool.take).start()
    assert spool.wait_until_empty()
    spool.keep(b"x")
    threading.Timer(0.02, spool.abandon).start()
    assert spool.wait_until_empty()


# --- uploads

Delivery = Callable[[], Awaitable[dict[str, Any]]]


def delivery(data: bytes, cuts: list[int], *, end: bool = True) -> Delivery:
    """The messages of a body that is cut there."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if end:
        messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop(0)

    return receive


def upload(receive: Delivery, store: Store, **limits: int) -> Upload:
    loop = asyncio.get_running_loop()

    def wake(future: asyncio.Future[None]) -> None:
        loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))

    return Upload(receive, store, wake, **{"max_bytes": 0, "window_bytes": 20_000, **limits})


async def spooled(receive: Delivery, store: Store, read: Callable[[BinaryIO], Any]) -> Any:
    body = upload(receive, store)
    file = await body.receive_all(await receive())
    assert body.complete
    return await asyncio.to_thread(read, file)


async def streamed(receive: Delivery, store: Store, read: Callable[[BinaryIO], Any]) -> Any:
    body = upload(receive, store)
    pump = asyncio.create_task(body.pump())
    result = await asyncio.to_thread(read, body.stream())
    pump.cancel()
    return result


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 300_000))),
        st.tuples(st.just("readline"), st.one_of(st.none(), st.integers(-1, 700))),
        st.tuples(st.just("readlines"), st.one_of(st.none(), st.integers(-1, 20_000))),
        st.tuples(st.just("__next__"), st.none()),
    ),
    max_size=12,
)


def performing(operations: list[tuple[str, int | None]]) -> Callable[[BinaryIO], Any]:
    def perform(file: BinaryIO) -> list[Any]:
        results: list[Any] = []
        for name, argument in operations:
            if name == "__next__":
                results.append(next(file, None))
            else:
                results.append(getattr(file, name)(argument))
        return [*results, file.read(), file.read(), file.readline(), file.readlines()]

    return perform


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([spooled, streamed]),
    st.sampled_from([0, 1, 1000, BODY_FREE_BYTES, BODY_FREE_BYTES + 1, 2 * MIB, len(DATA)]),
    st.lists(st.integers(0, len(DATA)), max_size=30),
    st.sampled_from([0, MIB, 100 * MIB]),
    OPERATIONS,
)
def test_a_body_is_a_file_however_it_came(way: Any, size: int, cuts: Any, memory: int, operations: Any) -> None:
    data, perform, store = DATA[:size], performing(operations), Store(memory)
    assert perform(io.BytesIO(data)) == asyncio.run(way(delivery(data, cuts), store, perform))


@pytest.mark.parametrize("way", [spooled, streamed])
@pytest.mark.parametrize("size", [0, 1000, 2 * MIB])
async def test_a_body_cut_short_never_looks_whole(way: Any, size: int) -> None:
    data = DATA[:size]
    with pytest.raises(BodyTruncated, match=f"{size} bytes"):
        await way(delivery(data, [100, 10_000, MIB], end=False), Store(0), lambda file: file.read())


async def test_what_came_before_the_cut_can_be_read_line_by_line() -> None:
    def read(file: BinaryIO) -> list[bytes]:
        lines = [file.readline(), file.readline()]
        with pytest.raises(BodyTruncated):
            file.readline()
        with pytest.raises(BodyTruncated):
            file.read()
        return lines

    assert [b"a\n", b"b\n"] == await streamed(delivery(b"a\nb\nc", [], end=False), Store(0), read)


async def test_whoever_reads_when_the_request_ends_is_told() -> None:
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await never.wait()
        raise AssertionError("unreachable")

    body = upload(receive, Store(0))
    pump = asyncio.create_task(body.pump())
    reader = asyncio.create_task(asyncio.to_thread(body.stream().read))
    await asyncio.sleep(0.02)
    pump.cancel()
    with pytest.raises(BodyTruncated, match="the request ended after 0 bytes"):
        await reader


async def test_a_cancelled_upload_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stuck, store = asyncio.Event(), Store(0)
    messages = delivery(DATA, list(range(0, len(DATA), 65_536)), end=False)
    count = 0

    async def receive() -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > 40:
            await stuck.wait()
        return await messages()

    async def run() -> None:
        await upload(receive, store).receive_all(await receive())

    task = asyncio.create_task(run())
    while count <= 40:
        await asyncio.sleep(0.01)
    assert 1 == open_files(tmp_path)
    task.cancel()
    await asyncio.wait([task])
    del task
    store._disk.shutdown()  # its thread may still hold what it wrote last
    assert 0 == open_files(tmp_path)
