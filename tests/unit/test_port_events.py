"""The port's outbox: who is told what, in which order, how often, and what a crash or a shutdown leaves to others."""

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import delete, insert, select, update

from fastapi_app import create_app, events, outbox
from fastapi_app.db import Db
from fastapi_app.models import utcnow, webhook_deliveries, webhooks
from tests.support.asgi import Lifespan
from tests.support.databases import create_database
from tests.support.internet import Handler, Host, Say, host, unknown
from tests.support.processes import free_port, wait_until
from tests.support.shadowing import Write, known_connections, staged

BUSY, ROWS = ("pending", "delivering"), select(webhook_deliveries).order_by(webhook_deliveries.c.id)
TOLD = {"artist": {"id": 1, "name": "Björk"}}


@pytest.fixture
def target() -> Iterator[Host]:
    with host() as target:
        yield target


def make_app(home: Path, database_url: str = "", **env: str) -> FastAPI:
    """Not started. All that are made here share a database."""
    url = database_url or f"sqlite:///{home}/app.sqlite3"
    env = {"DATABASE_URL": url, "SECRET_KEY": "s" * 32, "ALLOWED_NETWORKS": "127.0.0.1", **env}
    folders = {"DATA_PATH": str(home / "data"), "LIBRARY_PATH": str(home / "library"), "REDIS_URL": ""}
    with patch.dict(os.environ, env | folders | {"UPSTREAM_BACKOFF_S": "0.01"}):
        return create_app()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    async with Lifespan(app):
        yield app


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    async with running(make_app(tmp_path)) as app:
        yield app


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[FastAPI]:
    """It has its tables, but nobody delivers."""
    app = make_app(tmp_path)
    await app.state.database.prepare()
    yield app
    await app.state.outbox.aclose()
    await app.state.upstream.aclose()
    await app.state.database.dispose()


async def write(app: FastAPI, statement: Any) -> None:
    async with Db(app.state.database).transaction() as connection:
        await connection.execute(statement)


async def add_webhook(app: FastAPI, url: str, *wanted: str, **more: Any) -> None:
    await write(app, insert(webhooks).values(url=url, events=list(wanted) or ["*"], **more))


async def tell(app: FastAPI, event_type: str = "artist.created", times: int = 1) -> None:
    request = Request({"type": "http", "app": app, "headers": [], "client": None, "state": {}})
    async with Db(app.state.database).transaction() as connection:
        for _ in range(times):
            await events.emit(connection, request, event_type, TOLD)


async def rows(app: FastAPI) -> list[Any]:
    return list((await Db(app.state.database).execute(ROWS)).all())


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


async def settled(app: FastAPI) -> list[Any]:
    """All rows, as soon as none of them waits."""
    async with asyncio.timeout(30):
        while any(row.status in BUSY for row in await rows(app)):
            await asyncio.sleep(0.01)
    return await rows(app)


def ids(target: Host) -> list[int]:
    return [int(call.headers["X-Webhook-Delivery"]) for call in target.calls]


def blocked(handler: Handler) -> None:
    """Answers when the gate is opened."""
    handler.server.gate.wait()
    handler.say(Say(200))


# What is sent


async def test_a_receiver_can_verify_what_it_was_told(app: FastAPI, target: Host) -> None:
    await add_webhook(app, f"{target.url}/x?y=z", secret="s3cret")
    await tell(app)
    (row,) = await settled(app)

    (call,) = target.calls
    signature = hmac.new(b"s3cret", call.body, hashlib.sha256).hexdigest()
    assert ("POST", "/x?y=z", f"sha256={signature}") == (call.method, call.path, call.headers["X-Webhook-Signature"])
    assert ("artist.created", str(row.id)) == (call.headers["X-Webhook-Event"], call.headers["X-Webhook-Delivery"])
    assert "application/json" == call.headers["Content-Type"]
    told = json.loads(call.body)
    assert {"event_type": "artist.created", "data": TOLD} == {key: told[key] for key in ("event_type", "data")}
    assert 3 == len(told)
    assert row.payload.encode() == call.body
    assert ("delivered", 1, 200, None, None) == (
        row.status,
        row.attempts,
        row.response_status,
        row.error,
        row.claimed_at,
    )


async def test_without_a_secret_nothing_is_signed(app: FastAPI, target: Host) -> None:
    await add_webhook(app, target.url)
    await tell(app)
    await settled(app)

    assert [None] == [call.headers["X-Webhook-Signature"] for call in target.calls]


async def test_only_those_who_want_it_are_told(app: FastAPI, target: Host) -> None:
    await add_webhook(app, f"{target.url}/all")
    await add_webhook(app, f"{target.url}/this", "video.deleted", "artist.created")
    await add_webhook(app, f"{target.url}/other", "artist.updated")
    await add_webhook(app, f"{target.url}/nobody", is_active=False)
    await tell(app)
    await settled(app)

    assert ["/all", "/this"] == sorted(call.path for call in target.calls)


async def test_a_change_that_is_undone_tells_nobody(app: FastAPI, target: Host) -> None:
    await add_webhook(app, target.url)

    async def change_and_fail() -> None:
        request = Request({"type": "http", "app": app, "headers": [], "client": None, "state": {}})
        async with Db(app.state.database).transaction() as connection:
            await events.emit(connection, request, "artist.deleted", TOLD)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change_and_fail()
    await tell(app)
    await settled(app)

    assert ["artist.created"] == [call.headers["X-Webhook-Event"] for call in target.calls]


async def test_why_there_is_no_answer_is_told_in_fixed_sentences(tmp_path: Path, target: Host) -> None:
    target.usual = blocked
    urls = [target.url.replace("http:", "https:"), f"http://127.0.0.1:{free_port()}", "http://x.invalid"]
    async with running(make_app(tmp_path, UPSTREAM_TIMEOUT_S="0.5")) as app:
        sent = [await app.state.outbox.send(target.url, None, "webhook.test", "1", "{}")]
    async with running(make_app(tmp_path)) as app:
        with unknown("x.invalid"):
            sent += [await app.state.outbox.send(url, None, "webhook.test", "1", "{}") for url in urls]

    assert [
        "It did not answer in time",
        "Its certificate cannot be trusted",
        "It refuses connections",
        "Its name cannot be found",
    ] == [one.error for one in sent]


async def test_a_target_that_fails_again_and_again_closes_no_door_to_others_of_its_host(
    app: FastAPI, target: Host
) -> None:
    target.first = [Say(500)] * 12
    await add_webhook(app, f"{target.url}/broken")
    await tell(app, times=3)
    await settled(app)
    await add_webhook(app, f"{target.url}/well", "video.deleted")
    await tell(app, "video.deleted")
    sent = await settled(app)

    assert ["failed"] * 3 + ["delivered"] * 2 == [row.status for row in sent]
    assert 14 == len(target.calls)


# How often, and in which order


async def test_a_target_that_fails_is_asked_again_with_the_same_bytes(app: FastAPI, target: Host) -> None:
    target.first = [Say(503), Say(body=None)]
    await add_webhook(app, target.url)
    await tell(app)
    (row,) = await settled(app)

    assert ("delivered", 3, 200) == (row.status, row.attempts, row.response_status)
    assert 1 == len({(call.headers["X-Webhook-Delivery"], call.body) for call in target.calls})
    assert 3 == len(target.calls)


@pytest.mark.parametrize(
    ("status", "attempts"), [(301, 1), (400, 1), (404, 1), (410, 1), (408, 4), (429, 4), (500, 4), (503, 4)]
)
async def test_what_another_attempt_cannot_change_is_not_repeated(
    app: FastAPI, target: Host, status: int, attempts: int
) -> None:
    target.usual = Say(status, headers={"Location": "/elsewhere", "Retry-After": "3600"})
    await add_webhook(app, target.url)
    await tell(app)
    (row,) = await settled(app)

    assert ("failed", attempts, status) == (row.status, row.attempts, row.response_status)
    assert ["/"] * attempts == [call.path for call in target.calls]


async def test_a_private_address_is_never_asked(tmp_path: Path, target: Host) -> None:
    async with running(make_app(tmp_path, ALLOWED_NETWORKS="")) as app:
        await add_webhook(app, target.url)
        await tell(app)
        (row,) = await settled(app)

    assert ("failed", "Its address is not allowed", []) == (row.status, row.error, target.calls)


async def test_deliveries_to_one_webhook_keep_their_order(app: FastAPI, target: Host) -> None:
    target.first = [Say(), Say(500), Say(500), Say(404)]
    await add_webhook(app, target.url)
    await tell(app, times=4)
    first, second, third, fourth = [row.id for row in await settled(app)]

    assert [first, second, second, second, third, fourth] == ids(target)


async def test_a_target_that_does_not_answer_holds_up_nobody_else(app: FastAPI, target: Host) -> None:
    target.usual = blocked
    with host() as other:
        await add_webhook(app, target.url)
        await add_webhook(app, other.url)
        await tell(app, times=3)
        await until(lambda: len(other.calls) == 3 and target.calls, "both to be told")
        assert 1 == len(target.calls)
        target.gate.set()
        await settled(app)


async def test_no_more_than_ten_are_told_at_once(app: FastAPI, target: Host) -> None:
    target.usual = blocked
    for number in range(15):
        await add_webhook(app, f"{target.url}/{number}")
    await tell(app)
    await until(lambda: target.busy == outbox.CONCURRENCY, "ten to be asked")
    target.gate.set()
    await settled(app)

    assert (outbox.CONCURRENCY, 15) == (target.busiest, len(target.calls))


@pytest.mark.parametrize("database", ["sqlite", "mariadb"])
async def test_processes_never_send_one_delivery_twice(
    request: pytest.FixtureRequest, tmp_path: Path, target: Host, database: str
) -> None:
    url = create_database(request.getfixturevalue("mariadb_server"), "outbox") if database == "mariadb" else ""
    async with running(make_app(tmp_path, url)) as one, running(make_app(tmp_path, url)) as other:
        for number in range(3):
            await add_webhook(one, f"{target.url}/{number}")
        for _ in range(10):
            await asyncio.gather(tell(one), tell(other))
        sent = await settled(one)

    assert 60 == len(sent)
    assert {("delivered", 1)} == {(row.status, row.attempts) for row in sent}
    assert [row.id for row in sent] == sorted(ids(target))


# What is left to others


async def test_what_a_crash_kept_from_being_sent_is_sent_after_the_next_start(
    stopped: FastAPI, tmp_path: Path, target: Host
) -> None:
    await add_webhook(stopped, target.url)
    await tell(stopped)
    async with running(make_app(tmp_path)) as app:
        await settled(app)

    assert [1] == ids(target)


async def test_a_claim_counts_for_a_minute(stopped: FastAPI, tmp_path: Path, target: Host) -> None:
    for number in range(2):
        await add_webhook(stopped, f"{target.url}/{number}")
    await tell(stopped)
    dead, alive = utcnow() - timedelta(seconds=61), utcnow()
    column = webhook_deliveries.c
    for delivery, claimed_at in ((1, dead), (2, alive)):
        claim = {"status": "delivering", "attempts": 1, "claimed_at": claimed_at}
        await write(stopped, update(webhook_deliveries).where(column.id == delivery).values(claim))
    async with running(make_app(tmp_path)) as app:
        await until(lambda: target.calls, "the forgotten delivery")
        assert [1] == ids(target)
        await write(app, update(webhook_deliveries).where(column.id == 2).values(claimed_at=dead))
        app.state.outbox.deliver()
        sent = await settled(app)

    assert [("delivered", 2)] * 2 == [(row.status, row.attempts) for row in sent]


async def test_a_shutdown_gives_back_what_was_not_delivered(tmp_path: Path, target: Host) -> None:
    target.usual = blocked
    async with running(make_app(tmp_path)) as app:
        await add_webhook(app, target.url)
        await tell(app)
        await until(lambda: target.calls, "the target to be asked")
    async with running(make_app(tmp_path, GATEWAY_SHADOW="1")) as app:  # it only looks
        (row,) = await rows(app)
        assert ("pending", 1, None) == (row.status, row.attempts, row.claimed_at)
    target.gate.set()
    async with running(make_app(tmp_path)) as app:
        (row,) = await settled(app)

    assert ("delivered", 2) == (row.status, row.attempts)


async def test_the_end_of_a_workers_turn_cuts_nothing_off_and_begins_nothing_more(
    stopped: FastAPI, target: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "TURN_S", 1)
    target.usual = blocked
    await add_webhook(stopped, target.url)
    await tell(stopped, times=2)

    turn = asyncio.create_task(stopped.state.outbox.empty())
    await until(lambda: target.calls, "the first")
    await until(stopped.state.outbox._turn_over.is_set, "the end of the turn")
    target.gate.set()
    await turn

    assert [("delivered", 1, None), ("pending", 0, None)] == [
        (row.status, row.attempts, row.claimed_at) for row in await rows(stopped)
    ]
    assert 1 == len(target.calls)


async def test_at_the_end_of_a_turn_what_waits_for_another_attempt_goes_back(
    stopped: FastAPI, target: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "TURN_S", 1)
    monkeypatch.setattr(outbox, "_pause_s", lambda *_: 600.0)
    target.usual = Say(500)
    await add_webhook(stopped, target.url)
    await tell(stopped)

    async with asyncio.timeout(30):
        await stopped.state.outbox.empty()

    (row,) = await rows(stopped)
    assert ("pending", 1, None) == (row.status, row.attempts, row.claimed_at)


async def test_a_delivery_that_takes_processes_along_is_given_up(
    stopped: FastAPI, tmp_path: Path, target: Host
) -> None:
    await add_webhook(stopped, target.url)
    await tell(stopped, times=2)
    died = {"status": "delivering", "attempts": 4, "claimed_at": utcnow() - timedelta(hours=1)}
    await write(stopped, update(webhook_deliveries).where(webhook_deliveries.c.id == 1).values(died))
    async with running(make_app(tmp_path)) as app:
        lost, sent = await settled(app)

    assert ("failed", outbox.LOST, "delivered") == (lost.status, lost.error, sent.status)
    assert [2] == ids(target)


async def test_what_waits_for_a_webhook_that_was_deactivated_is_not_sent(
    stopped: FastAPI, tmp_path: Path, target: Host
) -> None:
    await add_webhook(stopped, target.url)
    await tell(stopped)
    await write(stopped, update(webhooks).values(is_active=False))
    async with running(make_app(tmp_path)) as app:
        (row,) = await settled(app)

    assert ("failed", 0, outbox.INACTIVE, []) == (row.status, row.attempts, row.error, target.calls)


async def test_a_webhook_may_go_while_it_is_told(app: FastAPI, target: Host) -> None:
    target.first = [blocked]
    await add_webhook(app, f"{target.url}/gone")
    await tell(app)
    await until(lambda: target.calls, "the target to be asked")
    await write(app, delete(webhooks))
    await add_webhook(app, f"{target.url}/next")
    await tell(app)
    target.gate.set()
    (row,) = await settled(app)

    assert "delivered" == row.status
    assert ["/gone", "/next"] == [call.path for call in target.calls]


async def test_finished_deliveries_are_kept_for_a_month_and_by_the_thousand(stopped: FastAPI) -> None:
    await add_webhook(stopped, "http://hooks.example/")
    old, now = utcnow() - timedelta(days=31), utcnow()
    row = {"webhook_id": 1, "event_type": "artist.created", "payload": "{}"}
    kinds = [("delivered", old), ("pending", old), *[("failed", now)] * 1005]
    many = [{**row, "status": status, "created_at": created_at} for status, created_at in kinds]
    async with Db(stopped.state.database).transaction() as connection:
        await connection.execute(insert(webhook_deliveries), many)
    await outbox.trim(stopped.state.database)

    kept = [row.id for row in await rows(stopped)]
    assert [2, *range(8, 1008)] == kept


# Shadows


async def test_a_process_that_only_replays_delivers_nothing(tmp_path: Path, target: Host) -> None:
    async with running(make_app(tmp_path, GATEWAY_SHADOW="1")) as shadow:
        await add_webhook(shadow, target.url)
        await tell(shadow)
        (row,) = await rows(shadow)
        assert "pending" == row.status
        async with running(make_app(tmp_path)) as app:
            await settled(app)

    assert [1] == ids(target)


def test_a_contained_change_writes_a_row_that_does_not_remain_and_tells_nobody(tmp_path: Path, target: Host) -> None:
    new = Write("POST", "/api/artists/", {"name": "New"})
    url = f"sqlite:///{tmp_path}/stage.sqlite3"
    with patch.dict(os.environ, ALLOWED_NETWORKS="127.0.0.1"), known_connections(), staged(url, tmp_path) as stage:
        with stage.engine.execution_options(write=True).begin() as connection:
            connection.execute(insert(webhooks).values(url=target.url, events=["*"]))
        result = stage.replay(new, ())
        with stage.engine.connect() as connection:
            left = connection.execute(ROWS).all()
        assert ([], []) == (left, target.calls)
        stage.answer(new)
        wait_until(lambda: target.calls, "Flask to tell what it has changed")

    assert ("", 201) == (result.inconclusive, result.observation.status)
    assert "webhook_deliveries" in {change.table for change in result.rows or ()}
