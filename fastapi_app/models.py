"""The tables, mapped for SQLAlchemy Core. The database is the contract: `legacy_flask` owns the DDL until it is gone.

All times are naive UTC with microseconds. Text compares byte for byte on both databases (MariaDB: utf8mb4_bin); what
must be unique regardless of case has a `*_key` column.
"""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects import mysql

ROLES = ("readonly", "user", "manager", "admin")  # low to high
VIDEO_STATUSES = ("WANTED", "DOWNLOADING", "DOWNLOADED", "IGNORED", "FAILED", "MONITORED")

Timestamp = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
BigId = BigInteger().with_variant(Integer, "sqlite")


def utcnow() -> datetime:
    """Now, as the tables keep it: naive UTC."""
    return datetime.now(UTC).replace(tzinfo=None)


def as_dicts(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[dict[str, Any]]:
    """Rows of one result by the names of their columns: many times as quick as by their attributes."""
    names = tuple(map(str, rows[0]._fields)) if rows else ()  # those of a row are of a kind of text that costs more
    return [dict(zip(names, row, strict=True)) for row in rows]


def name_key(name: str) -> str:
    """What makes two artist names the same: NFC, case folded, white space collapsed."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", name).casefold().split()))


def sort_name(name: str) -> str:
    """`The Beatles` sorts as `beatles, the`."""
    key = name_key(name)
    for article in ("the ", "a ", "an "):
        if key.startswith(article) and len(key) > len(article):
            return f"{key.removeprefix(article)}, {article.strip()}"
    return key


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ENGINE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _text(name: str, length: int, *, default: str | None = None) -> Column[str]:
    """A text that is always there; left out of an INSERT it is `default`."""
    return Column(name, String(length), nullable=False, default=default, server_default=default)


def _maybe(name: str, length: int) -> Column[str]:
    return Column(name, String(length))


def _flag(name: str, *, default: bool) -> Column[bool]:
    return Column(name, Boolean, nullable=False, default=default, server_default=true() if default else false())


def _number(name: str, kind: type[Integer] = Integer, *, default: int) -> Column[int]:
    return Column(name, kind, nullable=False, default=default, server_default=text(str(default)))


def _json(name: str, default: type[list[Any]] | type[dict[str, Any]]) -> Column[Any]:
    return Column(name, JSON, nullable=False, default=default)


def _time(name: str, *, index: bool = False) -> Column[datetime]:
    return Column(name, Timestamp, nullable=False, index=index)


def _created(*, index: bool = False) -> Column[datetime]:
    return Column("created_at", Timestamp, nullable=False, default=utcnow, index=index)


def _updated() -> Column[datetime]:
    return Column("updated_at", Timestamp, nullable=False, default=utcnow, onupdate=utcnow)


settings = Table(
    "settings",
    metadata,
    Column("key", String(100), primary_key=True),
    Column("value", Text, nullable=False),
    _text("description", 500, default=""),
    _flag("is_secret", default=False),
    _updated(),
    **_ENGINE,
)

users = Table(
    "users",
    metadata,
    _id(),
    Column("username", String(50), nullable=False, unique=True),  # in lower case
    _maybe("email", 255),
    _text("password_hash", 255),
    _text("role", 20, default="user"),
    _flag("is_active", default=True),
    Column("last_login_at", Timestamp),
    _json("preferences", dict),
    _created(),
    _updated(),
    **_ENGINE,
)

user_sessions = Table(  # a sign-in: the row is the truth, cookies and tokens only name it
    "user_sessions",
    metadata,
    _id(),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("token_hash", String(64), nullable=False, unique=True),  # SHA-256 of the token, in hex
    _created(),
    _time("expires_at", index=True),
    Column("last_activity_at", Timestamp, nullable=False, default=utcnow),
    Column("revoked_at", Timestamp),
    _text("ip", 45, default=""),
    _text("user_agent", 255, default=""),
    **_ENGINE,
)

revoked_tokens = Table(  # kept until the token would have expired anyway
    "revoked_tokens",
    metadata,
    Column("jti", String(64), primary_key=True),
    Column("family", String(64), index=True),
    _time("expires_at", index=True),
    **_ENGINE,
)

login_attempts = Table(  # failed ones in the current window; `key` is `ip:<address>` or `user:<username>`
    "login_attempts",
    metadata,
    Column("key", String(120), primary_key=True),
    _time("window_start"),
    _number("count", default=0),
    **_ENGINE,
)

cache = Table(  # answers kept for a while; `value` is JSON text
    "cache",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("value", LongText, nullable=False),
    _time("expires_at", index=True),
    **_ENGINE,
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigId, primary_key=True),
    _created(index=True),
    Column("user_id", ForeignKey("users.id", ondelete="SET NULL")),
    _text("username", 50, default=""),
    _text("action", 50),
    _text("target", 100, default=""),
    _json("detail", dict),
    _text("ip", 45, default=""),
    Column("served_by", String(20), nullable=False, default="fastapi", server_default=""),
    **_ENGINE,
)

artists = Table(
    "artists",
    metadata,
    _id(),
    _text("name", 255),
    Column("name_key", String(255), nullable=False, unique=True),
    Column("sort_name", String(300), nullable=False, index=True),
    Column("imvdb_id", String(50), unique=True),
    Column("spotify_id", String(50), unique=True),
    Column("bio", Text),
    _json("genres", list),
    _flag("monitored", default=True),
    _flag("auto_download", default=False),
    _maybe("quality", 20),
    _maybe("folder_path", 500),
    _maybe("thumbnail_url", 1000),
    _maybe("thumbnail_path", 500),
    _created(),
    _updated(),
    **_ENGINE,
)

videos = Table(  # `file_path` and `thumbnail_path` are relative: to the library and to the data directory
    "videos",
    metadata,
    _id(),
    Column("artist_id", ForeignKey("artists.id"), nullable=False),
    _text("title", 500),
    _text("status", 20, default="WANTED"),
    Column("youtube_id", String(20), unique=True),
    Column("imvdb_id", String(50), unique=True),
    _maybe("url", 1000),
    Column("description", Text),
    _json("directors", list),
    _json("genres", list),
    Column("year", Integer),
    Column("duration", Integer),  # seconds
    _maybe("quality", 20),
    _maybe("file_path", 500),
    Column("file_size", BigInteger),  # bytes
    _maybe("thumbnail_url", 1000),
    _maybe("thumbnail_path", 500),
    _created(),
    _updated(),
    Index(None, "artist_id", "status"),
    Index(None, "status", "created_at"),
    Index(None, "created_at"),
    Index("ix_videos_title", "title", mysql_prefix="FULLTEXT", mariadb_prefix="FULLTEXT"),
    **_ENGINE,
)

downloads = (
    Table(  # `active_video_id` repeats `video_id` while the row is active: being unique, it forbids a second one
        "downloads",
        metadata,
        _id(),
        Column("video_id", ForeignKey("videos.id", ondelete="CASCADE"), nullable=False, index=True),
        Column("active_video_id", Integer),
        _text("status", 20, default="pending"),
        _number("priority", default=5),  # 1 (first) to 10
        _number("progress", default=0),  # percent
        _number("bytes_done", BigInteger, default=0),
        Column("bytes_total", BigInteger),
        Column("speed", BigInteger),  # bytes per second
        Column("eta", Integer),  # seconds
        _number("attempts", default=0),
        _number("max_attempts", default=3),
        _maybe("error_code", 50),
        _maybe("error_message", 500),
        _maybe("quality", 20),
        _maybe("format", 20),
        _maybe("file_path", 500),
        _maybe("job_id", 64),
        _maybe("runner", 100),
        _created(),
        _updated(),
        Column("started_at", Timestamp),
        Column("finished_at", Timestamp),
        Column("retry_at", Timestamp),  # a pending row waits until then
        UniqueConstraint("active_video_id"),
        Index(None, "status", "priority"),
        Index(None, "finished_at"),
        **_ENGINE,
    )
)

playlist_monitors = Table(  # `playlist_id` is YouTube's
    "playlist_monitors",
    metadata,
    _id(),
    Column("playlist_id", String(64), nullable=False, unique=True),
    _text("title", 500),
    _maybe("channel", 255),
    _flag("auto_download", default=False),
    _number("video_count", default=0),
    Column("last_synced_at", Timestamp),
    _created(),
    _updated(),
    **_ENGINE,
)

webhooks = Table(  # `events` are event types, `["*"]` means all of them
    "webhooks",
    metadata,
    _id(),
    Column("url", String(500), nullable=False, unique=True),
    _json("events", list),
    _maybe("secret", 255),
    _flag("is_active", default=True),
    _created(),
    _updated(),
    **_ENGINE,
)

webhook_deliveries = Table(  # an outbox: written in the transaction of the event, sent after its commit
    "webhook_deliveries",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True),
    _text("event_type", 50),
    Column("payload", LongText, nullable=False),  # the JSON text that is signed and sent
    _text("status", 20, default="pending"),
    _number("attempts", default=0),
    Column("response_status", Integer),
    _maybe("error", 500),
    _created(),
    Column("claimed_at", Timestamp),  # by whoever is delivering it
    Column("finished_at", Timestamp),
    Index(None, "status", "created_at"),
    **_ENGINE,
)

jobs = Table(  # work that goes on after the answer; the row is the truth about it
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    _text("type", 50),
    _maybe("active_type", 150),  # type and target of active work of which there may be one at a time
    _maybe("target", 100),  # "video:7"
    Column("arguments", JSON(none_as_null=True)),
    Column("parent_id", String(64), index=True),  # a job that this one is a part of
    _number("attempts", default=0),
    _maybe("runner", 100),
    Column("retry_at", Timestamp),  # a queued row waits until then
    _text("status", 20, default="queued"),
    _number("progress", default=0),  # percent
    _text("message", 500, default=""),
    Column("result", JSON(none_as_null=True)),
    _maybe("error", 500),
    Column("created_by", ForeignKey("users.id", ondelete="SET NULL")),
    _created(index=True),
    _updated(),
    Column("started_at", Timestamp),
    Column("finished_at", Timestamp),
    Index(None, "type", "status"),
    Index(None, "status"),
    Index(None, "finished_at"),
    Index(None, "target"),
    UniqueConstraint("active_type"),
    **_ENGINE,
)
