"""The record of row changes, on SQLite and on MariaDB, from statements of every kind."""

import asyncio
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    String,
    bindparam,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from gateway.model import RowChange
from gateway.shadow import rows
from gateway.shadow.rows import MAX_ROWS, MAX_SETS, Recorder, recording
from tests.support.databases import create_database


class Base(DeclarativeBase):
    pass


class Artist(Base):
    __tablename__ = "artists"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    plays: Mapped[int] = mapped_column(default=0)


class Video(Base):
    __tablename__ = "videos"
    id: Mapped[int] = mapped_column(primary_key=True)
    artist_id: Mapped[int] = mapped_column(ForeignKey("artists.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(50))


class Note(Base):
    __tablename__ = "notes"
    key: Mapped[str] = mapped_column(String(50), primary_key=True)
    video_id: Mapped[int | None] = mapped_column(ForeignKey("videos.id", ondelete="SET NULL"))
    text: Mapped[str] = mapped_column(String(50), default="")


@pytest.fixture(params=["sqlite", "mariadb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Two artists, three videos and a note."""
    url = f"sqlite:///{tmp_path}/rows.sqlite3"
    if request.param == "mariadb":
        server = create_database(request.getfixturevalue("mariadb_server"), "rows")
        url = server.replace("mysql://", "mysql+pymysql://")
        rows._catalogs.clear()
    engine = create_engine(url)
    if request.param == "sqlite":
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Artist(id=1, name="Björk"), Artist(id=2, name="Cher")])
        session.flush()
        session.add_all([Video(id=number, artist_id=1, title=f"video {number}") for number in (1, 2, 3)])
        session.flush()
        session.add(Note(key="first", video_id=1))
    yield engine
    engine.dispose()


def changed(recorder: Recorder) -> list[tuple[str, tuple[object, ...], object, object]]:
    """Table, key and what is different; a row that came or went as the word for it."""
    assert recorder.why == ""
    recorded = recorder.changes()
    assert recorded is not None
    return [(change.table, change.key, *difference(change)) for change in recorded]


def difference(change: RowChange) -> tuple[object, object]:
    if change.before is None or change.after is None:
        return ("absent" if change.before is None else "there", "absent" if change.after is None else "there")
    names = [name for name in change.before if change.before[name] != change.after[name]]
    return {name: change.before[name] for name in names}, {name: change.after[name] for name in names}


def test_changes_of_objects_are_recorded_when_they_are_committed(engine: Engine) -> None:
    with recording() as recorder, Session(engine) as session:
        artist = session.get_one(Artist, 1)
        artist.name = "Bjork"
        session.add(Artist(name="Dido"))
        session.flush()
        assert recorder.changes() is None  # not yet
        session.commit()

    assert changed(recorder) == [
        ("artists", (1,), {"name": "Björk"}, {"name": "Bjork"}),
        ("artists", (3,), "absent", "there"),
    ]
    assert recorder.changes()[1].after == {"id": 3, "name": "Dido", "plays": 0}


def test_many_objects_at_once_are_recorded_one_by_one(engine: Engine) -> None:
    with recording() as recorder, Session(engine) as session, session.begin():
        session.add_all([Artist(name=name) for name in ("Dido", "Enya", "Feist")])
        for video in session.scalars(select(Video)):
            video.title = video.title.upper()

    keys = [(table, key) for table, key, _, _ in changed(recorder)]
    assert sorted(keys) == [*(("artists", (n,)) for n in (3, 4, 5)), *(("videos", (n,)) for n in (1, 2, 3))]


def test_statements_with_conditions_lists_and_subqueries_are_followed(engine: Engine) -> None:
    played = exists().where(Video.artist_id == Artist.id)
    with recording() as recorder, Session(engine) as session, session.begin():
        session.execute(update(Artist).where(played).values(plays=Artist.plays + 1))
        session.execute(update(Video).where(Video.id.in_([1, 3]), Video.title != "x").values(title="new"))
        session.execute(delete(Note).where(Note.key == "first"))
    with recording() as again, engine.begin() as connection:  # from the cache of compiled statements
        connection.execute(update(Video).where(Video.id.in_([2])).values(title="newer"))
        connection.execute(update(Video).where(Video.id.in_([3, 4, 5])).values(title="newest"))

    assert changed(recorder) == [
        ("artists", (1,), {"plays": 0}, {"plays": 1}),
        ("videos", (1,), {"title": "video 1"}, {"title": "new"}),
        ("videos", (3,), {"title": "video 3"}, {"title": "new"}),
        ("notes", ("first",), "there", "absent"),
    ]
    assert [key for _, key, _, _ in changed(again)] == [(2,), (3,)]


def test_what_the_database_deletes_and_empties_by_itself_is_recorded(engine: Engine) -> None:
    with recording() as recorder, Session(engine) as session, session.begin():
        session.execute(delete(Artist).where(Artist.id == 1))

    assert sorted(changed(recorder)) == [
        ("artists", (1,), "there", "absent"),
        ("notes", ("first",), {"video_id": 1}, {"video_id": None}),
        *(("videos", (number,), "there", "absent") for number in (1, 2, 3)),
    ]


def test_what_is_rolled_back_has_not_happened(engine: Engine) -> None:
    with recording() as recorder, Session(engine) as session:
        session.execute(update(Artist).values(plays=9))
        session.rollback()

    assert changed(recorder) == []


def test_a_savepoint_that_is_rolled_back_takes_its_changes_with_it(engine: Engine) -> None:
    with recording() as recorder, engine.begin() as connection:
        with connection.begin_nested():
            connection.execute(update(Artist).where(Artist.id == 1).values(plays=1))
        nested = connection.begin_nested()
        connection.execute(update(Artist).where(Artist.id == 2).values(plays=2))
        nested.rollback()

    assert changed(recorder) == [("artists", (1,), {"plays": 0}, {"plays": 1})]


def test_a_row_that_is_changed_twice_is_one_change_and_one_that_comes_and_goes_is_none(engine: Engine) -> None:
    with recording() as recorder:
        with engine.begin() as connection:
            connection.execute(update(Artist).where(Artist.id == 1).values(plays=1))
            connection.execute(insert(Note).values(key="brief"))
            connection.execute(delete(Note).where(Note.key == "brief"))
        with engine.begin() as connection:
            connection.execute(update(Artist).where(Artist.id == 1).values(plays=2))
            connection.execute(update(Artist).where(Artist.id == 2).values(plays=0))

    assert changed(recorder) == [("artists", (1,), {"plays": 0}, {"plays": 2})]


def test_reading_alone_is_a_record_without_changes_and_not_asking_at_all_is_none(engine: Engine) -> None:
    with recording() as recorder, engine.connect() as connection:
        assert recorder.changes() is None
        connection.execute(select(func.count(Video.id)))
        connection.execute(text("SELECT 1"))

    assert changed(recorder) == []


@pytest.mark.parametrize(
    "statement",
    [
        text("UPDATE artists SET plays = 1"),
        text("WITH x AS (SELECT 1) DELETE FROM notes"),
        insert(Artist).from_select(["name", "plays"], select(Video.title, Video.id)),
        update(Artist).where(Artist.id == 2).values(id=7),
    ],
    ids=["text", "with", "insert-select", "key"],
)
def test_what_cannot_be_followed_makes_the_record_incomplete(engine: Engine, statement: Any) -> None:
    with recording() as recorder, engine.connect() as connection:
        if "WITH" in str(statement) and engine.dialect.name != "sqlite":
            statement = text("REPLACE INTO notes VALUES ('a', NULL, '')")
        connection.execute(statement)
        connection.commit()

    assert recorder.changes() is None
    assert recorder.why


def test_an_upsert_makes_the_record_incomplete(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        statement: Any = sqlite.insert(Note).values(key="a").on_conflict_do_nothing()
    else:
        statement = mysql.insert(Note).values(key="a").on_duplicate_key_update(text="b")
    with recording() as recorder, engine.begin() as connection:
        connection.execute(statement)

    assert (recorder.changes(), recorder.why) == (None, "an INSERT that may change rows that exist")


def test_a_trigger_makes_the_record_incomplete(engine: Engine) -> None:
    body = "INSERT INTO notes (`key`, text) VALUES ('t', '')"
    sql = f"CREATE TRIGGER t AFTER UPDATE ON artists FOR EACH ROW BEGIN {body}; END"
    with engine.begin() as connection:
        connection.exec_driver_sql(sql)
    with recording() as recorder, engine.begin() as connection:
        connection.execute(update(Artist).where(Artist.id == 1).values(plays=1))

    assert (recorder.changes(), recorder.why) == (None, "table artists has a trigger")


def test_too_many_rows_make_the_record_incomplete_and_nothing_else(engine: Engine) -> None:
    with engine.begin() as connection:
        values = [{"name": f"artist {number}", "plays": 0} for number in range(MAX_ROWS)]
        connection.execute(insert(Artist), values)
    with recording() as recorder, engine.begin() as connection:
        assert connection.execute(update(Artist).values(plays=1)).rowcount == MAX_ROWS + 2

    assert (recorder.changes(), recorder.why) == (None, f"more than {MAX_ROWS} rows of artists")


def test_a_connection_that_commits_by_itself_makes_the_record_incomplete(engine: Engine) -> None:
    with recording() as recorder, engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(update(Artist).values(plays=1))

    assert (recorder.changes(), recorder.why) == (None, "a connection that commits by itself")


def test_one_statement_with_many_parameters_is_followed_as_far_as_the_client_may_wait(engine: Engine) -> None:
    each = update(Artist).where(Artist.name == bindparam("who")).values(plays=bindparam("number"))
    with recording() as few, engine.begin() as connection:
        connection.execute(each, [{"who": "Björk", "number": 4}, {"who": "Cher", "number": 5}])
    with recording() as many, engine.begin() as connection:
        connection.execute(each, [{"who": "Cher", "number": number} for number in range(MAX_SETS + 1)])

    assert [after for *_, after in changed(few)] == [{"plays": 4}, {"plays": 5}]
    assert (many.changes(), many.why) == (None, f"a statement with more than {MAX_SETS} sets of parameters")


def test_threads_with_a_copy_of_the_context_are_recorded_and_others_are_not(engine: Engine) -> None:
    def play(artist: int) -> None:
        with engine.begin() as connection:
            connection.execute(update(Artist).where(Artist.id == artist).values(plays=5))

    with recording() as recorder:
        ours = threading.Thread(target=copy_context().run, args=(play, 1))
    other = threading.Thread(target=play, args=(2,))
    for thread in (ours, other):
        thread.start()
        thread.join()

    assert [key for _, key, _, _ in changed(recorder)] == [(1,)]


async def test_asyncio_is_recorded_request_by_request(engine: Engine) -> None:
    names = {"sqlite": "sqlite+aiosqlite", "mysql": "mysql+aiomysql"}
    slow = create_async_engine(engine.url.set(drivername=names[engine.dialect.name]))

    async def play(artist: int) -> Recorder:
        with recording() as recorder:
            async with slow.begin() as connection:
                await connection.execute(update(Artist).where(Artist.id == artist).values(plays=artist))
        return recorder

    recorders = [await play(1), await play(2)] if engine.dialect.name == "sqlite" else await gather(play)
    await slow.dispose()

    assert [changed(recorder) for recorder in recorders] == [
        [("artists", (1,), {"plays": 0}, {"plays": 1})],
        [("artists", (2,), {"plays": 0}, {"plays": 2})],
    ]


async def gather(play: Any) -> list[Recorder]:
    return list(await asyncio.gather(play(1), play(2)))
