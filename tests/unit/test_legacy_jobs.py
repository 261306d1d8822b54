"""Jobs of the Flask application: threads, and rows that say what became of them."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import event

from legacy_flask import beats, create_app, jobs
from legacy_flask.db import get_session, transaction
from legacy_flask.http import ApiError
from legacy_flask.jobs import Report
from legacy_flask.models import AuditEntry, Job, utcnow
from tests.support.processes import wait_until

Work = Callable[[Report], dict[str, Any]]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    paths = {"DATA_PATH": tmp_path / "data", "LIBRARY_PATH": tmp_path / "library"}
    app = create_app({"DATABASE_URL": f"sqlite:///{tmp_path}/app.sqlite3", "SECRET_KEY": "s" * 32, **paths})
    yield app
    app.extensions["engine"].dispose()


def start(app: Flask, work: Work, kind: str = "index", **detail: Any) -> str:
    with app.test_request_context():
        return jobs.start(kind, work, **detail)


def row_of(app: Flask, job_id: str) -> Job:
    with app.app_context():
        job = get_session().get(Job, job_id)
        assert job is not None
        return job


def ended(app: Flask, job_id: str) -> Job:
    wait_until(lambda: row_of(app, job_id).status not in jobs.ACTIVE, "the job's end")
    return row_of(app, job_id)


def test_the_row_says_what_the_work_gave(app: Flask) -> None:
    def work(report: Report) -> dict[str, Any]:
        report(40, "almost half")
        return {"library": str(current_app.config["LIBRARY_PATH"].name)}

    row = ended(app, start(app, work, why="a test"))

    assert ("index", "completed", 100, "almost half", {"library": "library"}, None) == (
        row.type,
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert row.started_at
    assert row.finished_at
    assert row.created_at <= row.started_at <= row.finished_at
    with app.app_context():
        entry = get_session().query(AuditEntry).one()
        assert ("jobs.start", "job:index", {"why": "a test"}) == (entry.action, entry.target, entry.detail)


def test_work_that_crashes_ends_with_a_sentence_that_tells_nothing(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    def work(report: Report) -> dict[str, Any]:
        report(30, "so far")
        raise RuntimeError("the password is secret")

    row = ended(app, start(app, work))

    assert ("failed", 30, "so far", None, jobs.UNEXPECTED) == (
        row.status,
        row.progress,
        row.message,
        row.result,
        row.error,
    )
    assert "the password is secret" in caplog.text  # there it belongs
    assert row.finished_at


def test_work_that_says_why_it_fails_ends_with_that_sentence(app: Flask) -> None:
    def work(_: Report) -> dict[str, Any]:
        raise ApiError(503, "YouTube is not available")

    row = ended(app, start(app, work, "discovery"))

    assert ("failed", "YouTube is not available") == (row.status, row.error)


def test_two_jobs_at_once_do_not_wait_for_each_other(app: Flask) -> None:
    met = Barrier(2, timeout=20)

    def work(_: Report) -> dict[str, Any]:
        met.wait()
        return {}

    ids = [start(app, work, kind) for kind in ("index", "discovery")]

    assert ["completed"] * 2 == [ended(app, job_id).status for job_id in ids]


def test_a_request_does_not_wait_for_the_work(app: Flask) -> None:
    go = Event()

    def work(_: Report) -> dict[str, Any]:
        return {"went": go.wait(20)}

    job_id = start(app, work)
    try:
        assert row_of(app, job_id).status in jobs.ACTIVE
    finally:
        go.set()

    assert {"went": True} == ended(app, job_id).result


def test_progress_is_written_twice_a_second_at_most_and_at_the_end(app: Flask) -> None:
    written = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs") and "progress" in statement:
            written.append(1)

    def work(report: Report) -> dict[str, Any]:
        began = time.monotonic()
        number = 0
        while len(written) < 2 or time.monotonic() < began + 1.2:
            number += 1
            report(min(number, 99), f"number {number}")
        return {"at_most": int((time.monotonic() - began) / jobs.REPORT_EVERY_S) + 1}

    event.listen(app.extensions["engine"], "before_cursor_execute", note)
    row = ended(app, start(app, work))

    assert row.result
    assert 2 <= len(written) <= row.result["at_most"] + 1
    assert row.message.startswith("number ")


def test_work_that_reports_nothing_for_long_gives_signs_of_life(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "EVERY_S", 0.05)
    go = Event()

    job_id = start(app, lambda _: {"went": go.wait(20)})
    try:
        wait_until(lambda: row_of(app, job_id).status == "running", "its begin")
        begun = row_of(app, job_id).updated_at
        wait_until(lambda: row_of(app, job_id).updated_at > begun, "a sign of life")
    finally:
        go.set()

    assert ended(app, job_id).status == "completed"
    assert not [thread for thread in threading.enumerate() if thread.name == f"beat-{job_id}"]


def test_progress_stays_within_its_limits(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REPORT_EVERY_S", 0)
    seen = []

    def work(report: Report) -> dict[str, Any]:
        for percent in (-5, 250):
            report(percent, "x" * 600)
            seen.append(get_session().query(Job.progress, Job.message).one())
        return {}

    ended(app, start(app, work))

    assert [(0, 500), (100, 500)] == [(percent, len(message)) for percent, message in seen]


def test_a_job_that_nobody_has_touched_for_long_is_not_running_and_the_next_one_says_so(app: Flask) -> None:
    old = utcnow() - jobs.GONE_AFTER - timedelta(seconds=1)
    go = Event()
    with app.app_context():
        with transaction() as db:
            for number, status in enumerate(("running", "queued", "completed")):
                db.add(Job(id=str(number), type="index", status=status, updated_at=old))
        assert None is jobs.running(get_session(), "index")

    job_id = start(app, lambda _: {"went": go.wait(20)})
    try:
        assert [("failed", jobs.GONE), ("failed", jobs.GONE), ("completed", None)] == [
            (row.status, row.error) for row in [row_of(app, str(number)) for number in range(3)]
        ]
        with app.app_context():
            assert job_id == jobs.running(get_session(), "index")
            assert None is jobs.running(get_session(), "discovery")
    finally:
        go.set()
    ended(app, job_id)


def test_an_end_that_cannot_be_noted_is_logged_and_breaks_nothing(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    job_id = start(app, lambda _: {"not": object()})  # no JSON

    wait_until(lambda: f"the end of job {job_id} could not be noted" in caplog.text, "the log")
