"""Jobs of the port: tasks that the application holds, and rows that say what became of them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import event, insert, select

from fastapi_app import containment, create_app, jobs
from fastapi_app.db import Db
from fastapi_app.http import ApiError
from fastapi_app.jobs import Report
from fastapi_app.models import audit_log, utcnow
from fastapi_app.models import jobs as table
from tests.support.asgi import Lifespan


@pytest.fixture
async def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    env = {"SECRET_KEY": "s" * 32, "DATA_PATH": str(tmp_path / "data"), "LIBRARY_PATH": str(tmp_path / "library")}
    for name, value in (env | {"DATABASE_URL": f"sqlite:///{tmp_path}/app.sqlite3"}).items():
        monkeypatch.setenv(name, value)
    app = create_app()
    async with Lifespan(app):
        yield app


def request_of(app: FastAPI) -> Request:
    return Request({"type": "http", "app": app, "headers": [], "client": ("127.0.0.1", 1), "state": {}})


async def row_of(app: FastAPI, job_id: str) -> Any:
    return (await Db(app.state.database).execute(select(table).where(table.c.id == job_id))).one()


async def ended(app: FastAPI, job_id: str) -> Any:
    async with asyncio.timeout(20):
        while (row := await row_of(app, job_id)).status in jobs.ACTIVE:
            await asyncio.sleep(0.005)
    return row


async def for_ever(_: Report) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def test_the_row_says_what_the_work_gave(app: FastAPI) -> None:
    async def work(report: Report) -> dict[str, Any]:
        await report(40, "almost half")
        return {"number": 5}

    row = await ended(app, await jobs.start(request_of(app), "index", work, why="a test"))

    assert ("index", "completed", 100, "almost half", {"number": 5}, None) == (
        row.type,
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert row.created_at <= row.started_at <= row.finished_at
    entry = (await Db(app.state.database).execute(select(audit_log))).one()
    assert ("jobs.start", "job:index", {"why": "a test"}) == (entry.action, entry.target, entry.detail)


async def test_work_that_crashes_ends_with_a_sentence_that_tells_nothing(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(report: Report) -> dict[str, Any]:
        await report(30, "so far")
        raise RuntimeError("the password is secret")

    row = await ended(app, await jobs.start(request_of(app), "index", work))

    assert ("failed", 30, "so far", None, jobs.UNEXPECTED) == (
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert "the password is secret" in caplog.text  # there it belongs
    assert row.finished_at


async def test_work_that_says_why_it_fails_ends_with_that_sentence(app: FastAPI) -> None:
    async def work(_: Report) -> dict[str, Any]:
        raise ApiError(503, "YouTube is not available")

    row = await ended(app, await jobs.start(request_of(app), "discovery", work))

    assert ("failed", "YouTube is not available") == (row.status, row.error)


async def test_at_shutdown_work_is_cancelled_awaited_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s" * 32)
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    monkeypatch.setenv("LIBRARY_PATH", str(tmp_path / "library"))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.sqlite3")
    tidied, begun = [], asyncio.Event()

    async def work(report: Report) -> dict[str, Any]:
        try:
            await report(60, "under way")
            begun.set()
            return await for_ever(report)
        finally:
            await asyncio.sleep(0.05)  # what it has to put in order
            tidied.append(True)

    app = create_app()
    async with Lifespan(app):
        running = await jobs.start(request_of(app), "index", work)
        await begun.wait()
        just_begun = await jobs.start(request_of(app), "index", for_ever)

    assert [True] == tidied
    for job_id, progress in ((running, 60), (just_begun, 0)):
        row = await row_of(app, job_id)
        assert ("cancelled", jobs.STOPPED, progress) == (row.status, row.error, row.progress)
        assert row.finished_at
    await app.state.database.dispose()


async def test_a_job_that_ends_just_at_shutdown_has_its_result(app: FastAPI) -> None:
    async def work(_: Report) -> dict[str, Any]:
        finished.set()
        return {"done": True}

    finished = asyncio.Event()
    job_id = await jobs.start(request_of(app), "index", work)
    await finished.wait()
    await app.state.jobs.aclose()

    assert "completed" == (await row_of(app, job_id)).status


async def test_two_jobs_at_once_do_not_wait_for_each_other(app: FastAPI) -> None:
    met = asyncio.Barrier(2)

    async def work(_: Report) -> dict[str, Any]:
        await met.wait()
        return {}

    ids = [await jobs.start(request_of(app), kind, work) for kind in ("index", "discovery")]

    assert ["completed"] * 2 == [(await ended(app, job_id)).status for job_id in ids]


async def test_progress_is_written_twice_a_second_at_most_and_at_the_end(app: FastAPI) -> None:
    written: list[int] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs") and "progress" in statement:
            written.append(1)

    async def work(report: Report) -> dict[str, Any]:
        began = asyncio.get_running_loop().time()
        number = 0
        while asyncio.get_running_loop().time() < began + 1.2:
            number += 1
            await report(min(number, 99), f"number {number}")
            await asyncio.sleep(0)
        took = asyncio.get_running_loop().time() - began
        assert number > 10
        return {"at_most": int(took / jobs.REPORT_EVERY_S) + 1}

    event.listen(app.state.database.engine.sync_engine, "before_cursor_execute", note)
    row = await ended(app, await jobs.start(request_of(app), "index", work))

    assert 2 <= len(written) <= row.result["at_most"] + 1
    assert row.message.startswith("number ")


async def test_progress_stays_within_its_limits(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REPORT_EVERY_S", 0)
    seen = []

    async def work(report: Report) -> dict[str, Any]:
        for percent in (-5, 250):
            await report(percent, "x" * 600)
            seen.append(await row_of(app, job_id))
        return {}

    job_id = await jobs.start(request_of(app), "index", work)
    await ended(app, job_id)

    assert [(0, 500), (100, 500)] == [(row.progress, len(row.message)) for row in seen]


async def test_a_job_that_nobody_has_touched_for_long_is_not_running_and_the_next_one_says_so(app: FastAPI) -> None:
    old = utcnow() - jobs.GONE_AFTER - timedelta(seconds=1)
    async with app.state.database.transaction() as connection:
        for number, (status, updated) in enumerate((("running", old), ("queued", old), ("completed", old))):
            row = {"id": str(number), "type": "index", "status": status, "updated_at": updated}
            await connection.execute(insert(table).values(row))
    db = Db(app.state.database)
    assert None is await jobs.running(db, "index")

    job_id = await jobs.start(request_of(app), "index", for_ever)

    assert [("failed", jobs.GONE), ("failed", jobs.GONE), ("completed", None)] == [
        (row.status, row.error) for row in [await row_of(app, str(number)) for number in range(3)]
    ]
    assert job_id == await jobs.running(db, "index")
    assert None is await jobs.running(db, "discovery")


async def test_an_end_that_cannot_be_noted_is_logged_and_breaks_nothing(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_: Report) -> dict[str, Any]:
        finished.set()
        return {"not": object()}  # no JSON

    finished = asyncio.Event()
    job_id = await jobs.start(request_of(app), "index", work)
    await finished.wait()
    await app.state.jobs.aclose()

    assert f"the end of job {job_id} could not be noted" in caplog.text


class Refusing:
    """The gateway's half of a contained request."""

    def attach(self, connection: Any) -> None:
        raise PermissionError

    def detach(self) -> None: ...

    def refuse(self, kind: str, what: str) -> NoReturn:
        raise PermissionError(f"{kind}: {what}")


async def test_a_contained_request_begins_no_job(app: FastAPI) -> None:
    async def replay() -> None:
        containment._contained.set(containment.Contained(Refusing()))
        await jobs.start(request_of(app), "index", for_ever)

    with pytest.raises(PermissionError, match="jobs: index"):
        await asyncio.create_task(replay())  # in a context of its own
    assert [] == (await Db(app.state.database).execute(select(table))).all()
