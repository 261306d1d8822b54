"""The outbox of the Flask application: one thread of each process, there as long as something waits."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, insert, select, update

from fastapi_app import events as port_events
from legacy_flask import create_app, events, outbox
from legacy_flask.db import get_session, transaction
from legacy_flask.models import Webhook, WebhookDelivery, utcnow
from tests.support.databases import create_database
from tests.support.internet import Handler, Host, Say, host, unknown
from tests.support.processes import free_port, wait_until

BUSY = ("pending", "delivering")
TOLD = {"artist": {"id": 1, "name": "Björk"}}


@pytest.fixture
def target() -> Iterator[Host]:
    with host() as target:
        yield target


@contextmanager
def running(home: Path, **config: Any) -> Iterator[Flask]:
    """All that are made here share a database, unless told otherwise."""
    paths = {"DATA_PATH": home / "data", "LIBRARY_PATH": home / "library", "REDIS_URL": ""}
    usual = {"DATABASE_URL": f"sqlite:///{home}/app.sqlite3", "ALLOWED_NETWORKS": "127.0.0.1", "SHADOW": False}
    app = create_app({"SECRET_KEY": "s" * 32, "UPSTREAM_BACKOFF_S": 0.01, **usual, **paths, **config})
    yield app
    app.extensions["outbox"].deliver()  # it may be waiting for what another has claimed
    wait_until(lambda: app.extensions["outbox"].thread is None, "the thread to end")
    app.extensions["engine"].dispose()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    with running(tmp_path) as app:
        yield app


def write(app: Flask, statement: Any) -> None:
    with app.app_context(), transaction() as db:
        db.execute(statement)


def add_webhook(app: Flask, url: str, *wanted: str, **more: Any) -> None:
    write(app, insert(Webhook).values(url=url, events=list(wanted) or ["*"], **more))


def tell(app: Flask, event_type: str = "artist.created", times: int = 1) -> None:
    with app.app_context(), transaction() as db:
        for _ in range(times):
            events.emit(db, event_type, TOLD)


def leave(app: Flask, *claims: dict[str, Any]) -> None:
    """What a process that is gone has left: deliveries to one webhook."""
    row = {"webhook_id": 1, "event_type": "artist.created", "payload": "{}"}
    for claim in claims:
        write(app, insert(WebhookDelivery).values({**row, **claim}))


def rows(app: Flask) -> list[WebhookDelivery]:
    with app.app_context():
        return list(get_session().scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def settled(app: Flask) -> list[WebhookDelivery]:
    """All rows, as soon as none of them waits."""
    wait_until(lambda: not any(row.status in BUSY for row in rows(app)), "the deliveries", timeout_s=30)
    return rows(app)


def ids(target: Host) -> list[int]:
    return [int(call.headers["X-Webhook-Delivery"]) for call in target.calls]


def blocked(handler: Handler) -> None:
    """Answers when the gate is opened."""
    handler.server.gate.wait()
    handler.say(Say(200))


def test_both_sides_know_the_same_events() -> None:
    assert port_events.TYPES == events.TYPES
    assert 17 == len(set(events.TYPES))


# What is sent


def test_a_receiver_can_verify_what_it_was_told(app: Flask, target: Host) -> None:
    add_webhook(app, f"{target.url}/x?y=z", secret="s3cret")
    tell(app)
    (row,) = settled(app)

    (call,) = target.calls
    signature = hmac.new(b"s3cret", call.body, hashlib.sha256).hexdigest()
    assert ("POST", "/x?y=z", f"sha256={signature}") == (call.method, call.path, call.headers["X-Webhook-Signature"])
    assert ("artist.created", str(row.id)) == (call.headers["X-Webhook-Event"], call.headers["X-Webhook-Delivery"])
    assert "application/json" == call.headers["Content-Type"]
    told = json.loads(call.body)
    assert {"event_type": "artist.created", "data": TOLD} == {key: told[key] for key in ("event_type", "data")}
    assert row.payload.encode() == call.body
    assert ("delivered", 1, 200, None) == (row.status, row.attempts, row.response_status, row.claimed_at)


def test_both_sides_send_the_same_bytes_of_an_event() -> None:
    told = {"videos": [{"id": 1, "title": 'a"\u007f\u2028🎵/é'}], "fields": [], "status": None, "moved": True}
    theirs, ours = port_events.message("video.updated", told), events.message("video.updated", told)

    assert theirs.split('"timestamp"')[0] == ours.split('"timestamp"')[0]
    assert len(theirs) == len(ours)


def test_without_a_secret_nothing_is_signed(app: Flask, target: Host) -> None:
    add_webhook(app, target.url)
    tell(app)
    settled(app)

    assert [None] == [call.headers["X-Webhook-Signature"] for call in target.calls]


def test_a_change_that_is_undone_tells_nobody(app: Flask, target: Host) -> None:
    add_webhook(app, target.url)

    def change_and_fail() -> None:
        with app.app_context(), transaction() as db:
            events.emit(db, "artist.deleted", TOLD)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert app.extensions["outbox"].thread is None
    tell(app)
    settled(app)

    assert ["artist.created"] == [call.headers["X-Webhook-Event"] for call in target.calls]


def test_why_there_is_no_answer_is_told_in_fixed_sentences(tmp_path: Path, target: Host) -> None:
    target.usual = blocked
    urls = [target.url.replace("http:", "https:"), f"http://127.0.0.1:{free_port()}", "http://x.invalid"]
    with running(tmp_path, UPSTREAM_TIMEOUT_S=0.5) as app, app.app_context():
        sent = [outbox.send(target.url, None, "webhook.test", "1", "{}")]
    with running(tmp_path) as app, app.app_context(), unknown("x.invalid"):
        sent += [outbox.send(url, None, "webhook.test", "1", "{}") for url in urls]

    assert [
        "It did not answer in time",
        "Its certificate cannot be trusted",
        "It refuses connections",
        "Its name cannot be found",
    ] == [one.error for one in sent]


def test_a_target_that_fails_again_and_again_closes_no_door_to_others_of_its_host(app: Flask, target: Host) -> None:
    target.first = [Say(500)] * 12
    add_webhook(app, f"{target.url}/broken")
    tell(app, times=3)
    settled(app)
    add_webhook(app, f"{target.url}/well", "video.deleted")
    tell(app, "video.deleted")
    sent = settled(app)

    assert ["failed"] * 3 + ["delivered"] * 2 == [row.status for row in sent]
    assert 14 == len(target.calls)


# How often, and in which order


def test_a_target_that_fails_is_asked_again_with_the_same_bytes(app: Flask, target: Host) -> None:
    target.first = [Say(503), Say(body=None)]
    add_webhook(app, target.url)
    tell(app)
    (row,) = settled(app)

    assert ("delivered", 3, 200) == (row.status, row.attempts, row.response_status)
    assert 1 == len({(call.headers["X-Webhook-Delivery"], call.body) for call in target.calls})
    assert 3 == len(target.calls)


@pytest.mark.parametrize(
    ("status", "attempts"), [(301, 1), (400, 1), (404, 1), (410, 1), (408, 4), (429, 4), (500, 4), (503, 4)]
)
def test_what_another_attempt_cannot_change_is_not_repeated(
    app: Flask, target: Host, status: int, attempts: int
) -> None:
    target.usual = Say(status, headers={"Location": "/elsewhere", "Retry-After": "3600"})
    add_webhook(app, target.url)
    tell(app)
    (row,) = settled(app)

    assert ("failed", attempts, status) == (row.status, row.attempts, row.response_status)
    assert ["/"] * attempts == [call.path for call in target.calls]


def test_a_private_address_is_never_asked(tmp_path: Path, target: Host) -> None:
    with running(tmp_path, ALLOWED_NETWORKS="") as app:
        add_webhook(app, target.url)
        tell(app)
        (row,) = settled(app)

    assert ("failed", "Its address is not allowed", []) == (row.status, row.error, target.calls)


def test_deliveries_to_one_webhook_keep_their_order(app: Flask, target: Host) -> None:
    target.first = [Say(), Say(500), Say(500), Say(404)]
    add_webhook(app, target.url)
    tell(app, times=4)
    first, second, third, fourth = [row.id for row in settled(app)]

    assert [first, second, second, second, third, fourth] == ids(target)


@pytest.mark.parametrize("database", ["sqlite", "mariadb"])
def test_processes_never_send_one_delivery_twice(
    request: pytest.FixtureRequest, tmp_path: Path, target: Host, database: str
) -> None:
    config = {}
    if database == "mariadb":
        config["DATABASE_URL"] = create_database(request.getfixturevalue("mariadb_server"), "legacy_outbox")
    with running(tmp_path, **config) as one, running(tmp_path, **config) as other:
        for number in range(3):
            add_webhook(one, f"{target.url}/{number}")
        for _ in range(10):
            both = [threading.Thread(target=tell, args=(app,)) for app in (one, other)]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()
        sent = settled(one)

    assert {("delivered", 1)} == {(row.status, row.attempts) for row in sent}
    assert [row.id for row in sent] == sorted(ids(target))
    assert 60 == len(sent)


# What is left to others


def test_the_first_request_of_a_process_takes_over_what_was_left(app: Flask, target: Host) -> None:
    add_webhook(app, target.url)
    gone, now = utcnow() - timedelta(seconds=61), utcnow()
    leave(app, {}, {"status": "delivering", "attempts": 1, "claimed_at": gone}, {"created_at": now})
    app.test_client().get("/api/artists/")
    sent = settled(app)

    assert [1, 2, 3] == ids(target)
    assert [1, 2, 1] == [row.attempts for row in sent]


def test_a_claim_counts_for_a_minute(app: Flask, target: Host) -> None:
    add_webhook(app, target.url)
    leave(app, {"status": "delivering", "attempts": 1, "claimed_at": utcnow()})
    add_webhook(app, f"{target.url}/other")
    leave(app, {"webhook_id": 2})
    app.test_client().get("/api/artists/")
    wait_until(lambda: len(target.calls) == 1, "the free delivery")
    write(app, update(WebhookDelivery).where(WebhookDelivery.id == 1).values(claimed_at=utcnow() - outbox.LEASE))
    app.extensions["outbox"].deliver()
    settled(app)

    assert [2, 1] == ids(target)


def test_a_delivery_that_takes_processes_along_is_given_up(app: Flask, target: Host) -> None:
    add_webhook(app, target.url)
    gone = utcnow() - timedelta(hours=1)
    leave(app, {"status": "delivering", "attempts": 4, "claimed_at": gone}, {})
    app.test_client().get("/api/artists/")
    lost, sent = settled(app)

    assert ("failed", outbox.LOST, "delivered") == (lost.status, lost.error, sent.status)
    assert [2] == ids(target)


def test_what_waits_for_a_webhook_that_was_deactivated_is_not_sent(app: Flask, target: Host) -> None:
    add_webhook(app, target.url, is_active=False)
    leave(app, {})
    app.test_client().get("/api/artists/")
    (row,) = settled(app)

    assert ("failed", 0, outbox.INACTIVE, []) == (row.status, row.attempts, row.error, target.calls)


def test_a_webhook_may_go_while_it_is_told(app: Flask, target: Host) -> None:
    target.first = [blocked]
    add_webhook(app, f"{target.url}/gone")
    tell(app)
    wait_until(lambda: target.calls, "the target to be asked")
    write(app, delete(Webhook))
    add_webhook(app, f"{target.url}/next")
    tell(app)
    target.gate.set()
    (row,) = settled(app)

    assert "delivered" == row.status
    assert ["/gone", "/next"] == [call.path for call in target.calls]


def test_a_process_that_only_replays_takes_nothing_over(tmp_path: Path, target: Host) -> None:
    with running(tmp_path, SHADOW=True) as shadow:
        add_webhook(shadow, target.url)
        leave(shadow, {})
        shadow.test_client().get("/api/artists/")
        assert shadow.extensions["outbox"].thread is None
        with running(tmp_path) as app:
            app.test_client().get("/api/artists/")
            settled(app)

    assert [1] == ids(target)


def test_the_thread_outlives_a_database_that_is_gone_for_a_while(
    app: Flask, target: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "TROUBLE_S", 0.01)
    add_webhook(app, target.url)
    leave(app, {})
    with app.app_context(), transaction() as db:
        db.connection().exec_driver_sql("ALTER TABLE webhooks RENAME TO elsewhere")
    app.test_client().get("/api/artists/")
    wait_until(lambda: "webhooks" in caplog.messages, "the thread to complain")
    with app.app_context(), transaction() as db:
        db.connection().exec_driver_sql("ALTER TABLE elsewhere RENAME TO webhooks")
    settled(app)

    assert [1] == ids(target)


def test_finished_deliveries_are_kept_for_a_month_and_by_the_thousand(app: Flask) -> None:
    add_webhook(app, "http://hooks.example/")
    old, now = utcnow() - timedelta(days=31), utcnow()
    row = {"webhook_id": 1, "event_type": "artist.created", "payload": "{}"}
    kinds = [("delivered", old), ("pending", old), *[("failed", now)] * 1005]
    with app.app_context(), transaction() as db:
        many = [{**row, "status": status, "created_at": created_at} for status, created_at in kinds]
        db.execute(insert(WebhookDelivery), many)
    with app.app_context():
        outbox.trim()

    assert [2, *range(8, 1008)] == [row.id for row in rows(app)]
