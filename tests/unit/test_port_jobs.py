"""Jobs of the port: rows that wait for a worker, and what the child process of a worker does with one."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import event, insert, select, update

from fastapi_app import containment, intake, jobs, leader, queue, worker, working
from fastapi_app.db import Db
from fastapi_app.http import ApiError
from fastapi_app.jobs import Kind, Report
from fastapi_app.kinds import KINDS
from fastapi_app.models import audit_log, utcnow
from fastapi_app.models import jobs as table
from tests.support.asgi import Lifespan
from tests.support.databases import create_database
from tests.support.made_once import create_port, sqlite
from tests.support.redis_server import RedisServer, redis_server

Work = Callable[[Report], Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def app(
    request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FastAPI]:
    if getattr(request, "param", "sqlite") == "sqlite":
        database = sqlite(tmp_path / "app.sqlite3")
    else:
        database = create_database(request.getfixturevalue("mariadb_server"), "jobs")
    env = {"SECRET_KEY": "s" * 32, "DATA_PATH": str(tmp_path / "data"), "LIBRARY_PATH": str(tmp_path / "library")}
    env |= {"DATABASE_URL": database, "REDIS_URL": server.url}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(queue, "ANSWER_S", 20)
    with server.client() as client:
        client.flushall()
    app = create_port()
    async with Lifespan(app):
        yield app


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on a job of type "index" is this work."""

    def change(work: Work, *, kind: str = "index", attempts: int = 3, timeout_s: float = 20) -> None:
        async def adapted(_: Request, _arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
            return await work(report)

        monkeypatch.setitem(KINDS, kind, Kind("default", timeout_s=timeout_s, attempts=attempts, work=adapted))

    return change


async def row_of(app: FastAPI, job_id: str) -> Any:
    return (await Db(app.state.database).execute(select(table).where(table.c.id == job_id))).one()


async def change_row(app: FastAPI, job_id: str, **values: Any) -> None:
    async with app.state.database.transaction() as connection:
        await connection.execute(update(table).where(table.c.id == job_id).values(values))


async def start(app: FastAPI, **detail: Any) -> str:
    return await jobs.start(working.request_of(app), "index", {}, **detail)


async def done(app: FastAPI, job_id: str) -> Any:
    """The row when the child process of a worker has been given the job."""
    await working._work_on(app, job_id)
    return await row_of(app, job_id)


async def waiting(app: FastAPI) -> set[str]:
    return await asyncio.to_thread(app.state.queue.waiting)


async def for_ever(_: Report) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def test_a_job_is_a_row_and_waits_in_redis(app: FastAPI) -> None:
    job_id = await start(app, why="a test")

    row = await row_of(app, job_id)
    assert ("index", "queued", 0, {}, None) == (row.type, row.status, row.attempts, row.arguments, row.active_type)
    assert {job_id} == await waiting(app)
    entry = (await Db(app.state.database).execute(select(audit_log))).one()
    assert ("jobs.start", "job:index", {"why": "a test"}) == (entry.action, entry.target, entry.detail)


async def test_the_row_says_what_the_work_gave(app: FastAPI, does: Callable[..., None]) -> None:
    async def work(report: Report) -> dict[str, Any]:
        await report(40, "almost half")
        return {"number": 5}

    does(work)
    row = await done(app, await start(app))

    assert ("completed", 100, "almost half", {"number": 5}, None) == (
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert 1 == row.attempts
    assert row.created_at <= row.started_at <= row.finished_at


async def test_work_that_crashes_waits_for_another_attempt_and_ends_with_a_sentence_that_tells_nothing(
    app: FastAPI, does: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(report: Report) -> dict[str, Any]:
        await report(30, "so far")
        raise RuntimeError("the password is secret")

    does(work, attempts=2)
    row = await done(app, job_id := await start(app, busy="Busy"))
    assert ("queued", 1, "index") == (row.status, row.attempts, row.active_type)
    assert row.retry_at > utcnow()
    assert "queued" == (await done(app, job_id)).status  # not yet

    await change_row(app, job_id, retry_at=utcnow() - timedelta(seconds=1))
    row = await done(app, job_id)

    assert ("failed", 30, "so far", None, jobs.UNEXPECTED) == (
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert (2, None) == (row.attempts, row.active_type)
    assert "the password is secret" in caplog.text  # there it belongs


async def test_work_that_says_why_it_fails_ends_with_that_sentence(app: FastAPI, does: Callable[..., None]) -> None:
    async def work(_: Report) -> dict[str, Any]:
        raise ApiError(503, "YouTube is not available")

    does(work)
    row = await done(app, await start(app))

    assert ("failed", "YouTube is not available") == (row.status, row.error)


async def test_work_that_takes_too_long_has_failed(app: FastAPI, does: Callable[..., None]) -> None:
    does(for_ever, timeout_s=0.05)

    row = await done(app, await start(app))

    assert ("failed", jobs.TOO_LONG) == (row.status, row.error)


async def test_of_two_processes_that_are_given_a_job_one_does_it(app: FastAPI, does: Callable[..., None]) -> None:
    did = []

    async def work(_: Report) -> dict[str, Any]:
        did.append(True)
        return {}

    does(work)
    job_id = await start(app)
    await asyncio.gather(*(working._work_on(app, job_id) for _ in range(5)))

    assert [True] == did
    assert 1 == (await row_of(app, job_id)).attempts


@pytest.mark.parametrize("change", [{"status": "cancelled"}, {"attempts": 7}], ids=["cancelled", "taken over"])
async def test_work_whose_row_is_no_longer_its_own_is_ended_and_writes_nothing(
    app: FastAPI, does: Callable[..., None], change: dict[str, Any]
) -> None:
    begun, tidied = asyncio.Event(), []

    async def work(report: Report) -> dict[str, Any]:
        begun.set()
        try:
            return await for_ever(report)
        finally:
            tidied.append(True)

    does(work)
    job_id = await start(app)
    working_on = asyncio.create_task(working._work_on(app, job_id))
    await begun.wait()
    await change_row(app, job_id, **change)
    async with asyncio.timeout(20):
        await working_on

    assert [True] == tidied
    row = await row_of(app, job_id)
    assert change.items() <= row._mapping.items()
    assert (None, None) == (row.result, row.finished_at)


async def test_a_process_that_is_told_to_stop_puts_its_job_back_and_the_attempt_does_not_count(
    app: FastAPI, does: Callable[..., None]
) -> None:
    begun = asyncio.Event()

    async def work(report: Report) -> dict[str, Any]:
        begun.set()
        return await for_ever(report)

    does(work, attempts=1)
    job_id = await start(app)
    working_on = asyncio.create_task(working._work_on(app, job_id))
    await begun.wait()
    working_on.cancel()
    await asyncio.wait([working_on])

    row = await row_of(app, job_id)
    assert ("queued", 0, None, None) == (row.status, row.attempts, row.runner, row.retry_at)


async def test_while_one_runs_a_second_is_refused_with_the_id_of_the_first(app: FastAPI) -> None:
    job_id = await start(app, busy="Busy")

    with pytest.raises(ApiError, match="Busy") as refused:
        await start(app, busy="Busy")

    assert (409, {"job_id": job_id}) == (refused.value.status, refused.value.payload)
    assert await start(app, busy="Busy", target="video:1") != job_id


async def test_progress_is_written_twice_a_second_at_most(app: FastAPI, does: Callable[..., None]) -> None:
    written = []

    def note(_: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("UPDATE jobs") and "progress" in statement and "result" not in statement:
            written.append(statement)

    async def work(report: Report) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while len(written) < 2 or loop.time() < began + 1.2:
            number += 1
            await report(min(number, 99), f"number {number}")
            await asyncio.sleep(0)
        assert number > 10
        return {"at_most": int((loop.time() - began) / jobs.REPORT_EVERY_S) + 1}

    event.listen(app.state.database.engine.sync_engine, "before_cursor_execute", note)
    does(work)
    row = await done(app, await start(app))

    assert 2 <= len(written) <= row.result["at_most"] + 1
    assert row.message.startswith("number ")


async def test_progress_stays_within_its_limits(
    app: FastAPI, does: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "REPORT_EVERY_S", 0)
    seen = []

    async def work(report: Report) -> dict[str, Any]:
        for percent in (-5, 250):
            await report(percent, "x" * 600)
            seen.append((await Db(app.state.database).execute(select(table))).one())
        return {}

    does(work)
    await done(app, await start(app))

    assert [(0, 500), (100, 500)] == [(row.progress, len(row.message)) for row in seen]


async def test_a_job_that_nobody_has_touched_for_long_is_not_running_and_the_next_one_says_so(app: FastAPI) -> None:
    old = utcnow() - jobs.GONE_AFTER - timedelta(seconds=1)
    rows = [("running", "index"), ("queued", "index"), ("completed", "index"), ("queued", "discovery")]
    async with app.state.database.transaction() as connection:
        for number, (status, kind) in enumerate(rows):
            row = {"id": str(number), "type": kind, "status": status, "updated_at": old}
            await connection.execute(insert(table).values(row))
    db = Db(app.state.database)
    assert None is await jobs.running(db, "index")

    job_id = await start(app)

    assert [("failed", jobs.GONE), ("failed", jobs.GONE), ("completed", None), ("queued", None)] == [
        (row.status, row.error) for row in [await row_of(app, str(number)) for number in range(4)]
    ]
    assert job_id == await jobs.running(db, "index")


# Parts


async def test_the_last_part_that_ends_completes_the_whole_with_the_sum(
    app: FastAPI, does: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def divide(request: Request, _: Mapping[str, Any], _report: Report) -> dict[str, Any]:
        await jobs.start_parts(request, request.state.job_id, "index", [{}, {}])
        return {"artists": 4}

    async def part(_: Report) -> dict[str, Any]:
        return {"found": 3}

    monkeypatch.setitem(KINDS, "discovery", Kind("default", timeout_s=20, attempts=3, work=divide))
    does(part)
    whole = await jobs.start(working.request_of(app), "discovery", {}, busy="Busy")
    row = await done(app, whole)
    assert ("running", None) == (row.status, row.runner)

    assert "completed" == (await done(app, f"{whole}-0")).status
    row = await row_of(app, whole)
    assert ("running", 50) == (row.status, row.progress)
    assert "completed" == (await done(app, f"{whole}-1")).status

    row = await row_of(app, whole)
    assert ("completed", 100, {"artists": 4, "found": 6}, None) == (
        row.status,
        row.progress,
        row.result,
        row.active_type,
    )


async def test_a_whole_of_which_a_part_was_cancelled_has_failed(app: FastAPI) -> None:
    job_id = await start(app)
    await change_row(app, job_id, status="running", runner=None)
    await jobs.start_parts(working.request_of(app), job_id, "index", [{}])

    async with app.state.database.transaction() as connection:
        await jobs.cancel(connection, f"{job_id}-0")
        await jobs.sum_up(connection, job_id)

    row = await row_of(app, job_id)
    assert ("failed", jobs.INCOMPLETE) == (row.status, row.error)


async def test_parts_of_what_is_cancelled_are_cancelled(app: FastAPI) -> None:
    job_id = await start(app)
    await change_row(app, job_id, status="running")
    await jobs.start_parts(working.request_of(app), job_id, "index", [{}, {}])
    await jobs.start_parts(working.request_of(app), job_id, "index", [{}, {}])  # begins nothing twice

    async with app.state.database.transaction() as connection:
        assert await jobs.cancel(connection, job_id)

    rows = await Db(app.state.database).rows(select(table))
    assert ["cancelled"] * 3 == [row.status for row in rows]


@pytest.mark.parametrize("app", ["mariadb"], indirect=True)
async def test_a_part_that_reports_and_who_cancels_the_whole_wait_for_each_other_in_one_order(app: FastAPI) -> None:
    whole = await start(app)
    await change_row(app, whole, status="running")
    await jobs.start_parts(working.request_of(app), whole, "index", [{}])
    row = await working.claim(Db(app.state.database), f"{whole}-0")
    assert row is not None
    part = working.Job(app, row, KINDS["index"])

    async with app.state.database.transaction() as connection:
        await connection.execute(select(table).where(table.c.id == whole).with_for_update())  # as who cancels it
        reporting = asyncio.create_task(part._write({"progress": 5}))
        await asyncio.sleep(0.5)
        assert await jobs.cancel(connection, whole)
    await reporting

    rows = await Db(app.state.database).rows(select(table))
    assert ["cancelled"] * 2 == [row.status for row in rows]
    assert part._lost


# The leader


async def test_what_redis_has_lost_is_put_there_again(app: FastAPI, server: RedisServer) -> None:
    job_id = await start(app)
    with server.client() as client:
        client.flushall()
    assert set() == await waiting(app)

    await leader.put_waiting(app)

    assert {job_id} == await waiting(app)


@pytest.mark.parametrize(("attempts", "status"), [(1, "queued"), (3, "failed")])
async def test_a_job_without_a_sign_of_life_goes_back_as_long_as_attempts_are_left(
    app: FastAPI, attempts: int, status: str
) -> None:
    stale = utcnow() - timedelta(seconds=app.state.settings.job_stale_s + 1)
    alive, gone = await start(app), await start(app)
    await change_row(app, alive, status="running", runner="a", attempts=attempts)
    await change_row(app, gone, status="running", runner="b", attempts=attempts, updated_at=stale)

    await leader.take_back_stale(app)

    assert "running" == (await row_of(app, alive)).status
    row = await row_of(app, gone)
    assert (status, None if status == "queued" else jobs.GONE) == (row.status, row.error)


class Refusing:
    """The gateway's half of a contained request."""

    def attach(self, connection: Any) -> None:
        raise PermissionError

    def detach(self) -> None: ...

    def refuse(self, kind: str, what: str) -> NoReturn:
        raise PermissionError(f"{kind}: {what}")


async def test_what_was_being_moved_when_somebody_was_killed_goes_after_a_day(app: FastAPI) -> None:
    config, age_s = app.state.settings, intake.FORGOTTEN_S
    folders = [config.library_path, config.downloads_path]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for age in (age_s + 60, age_s - 60):
            (folder / f".{int(time.time() - age)}-{'0' * 32}.part").touch()

    await leader.Leader(app)._trim(app)

    assert [1, 1] == [len(list(folder.glob(".*.part"))) for folder in folders]


@pytest.mark.parametrize("words", [["--queues", "medai"], ["--queues", "media, default"], ["--workers", "0"]])
def test_a_pool_that_would_wait_at_no_queue_or_have_no_workers_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        worker._options(words)

    assert words[0] in capsys.readouterr().err


def test_after_redis_has_lost_everything_a_worker_says_again_who_it_is(app: FastAPI, server: RedisServer) -> None:
    one = worker.Worker(app.state.settings, ["media", "default"], 1)
    one.register_birth()
    one.set_state("idle")
    with server.client() as client:
        before = queue._see(client)["workers"]
        client.flushall()
        one.heartbeat()
        after = queue._see(client)["workers"]

    assert {"host": one.hostname, "state": "idle", "queues": ["media", "default"]}.items() <= after[0].items()
    assert [worker | {"seen_at": None} for worker in before] == [worker | {"seen_at": None} for worker in after]


async def test_a_contained_request_begins_no_job(app: FastAPI) -> None:
    async def replay() -> None:
        containment._contained.set(containment.Contained(Refusing()))
        await start(app)

    with pytest.raises(PermissionError, match="jobs: index"):
        await asyncio.create_task(replay())  # in a context of its own
    assert [] == (await Db(app.state.database).execute(select(table))).all()
