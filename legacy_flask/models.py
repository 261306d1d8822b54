"""The tables. They are the contract with everything else that reads this database.

All times are naive UTC with microseconds. Text compares byte for byte on both databases (MariaDB: utf8mb4_bin), so that
`Abc` and `abc` are two values everywhere; what must be unique regardless of case has a `*_key` column.
"""

import unicodedata
from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

ROLES = ("readonly", "user", "manager", "admin")  # low to high
VIDEO_STATUSES = ("WANTED", "DOWNLOADING", "DOWNLOADED", "IGNORED", "FAILED", "MONITORED")
DOWNLOAD_STATUSES = ("pending", "queued", "downloading", "paused", "completed", "failed", "cancelled")

Timestamp = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
BigId = BigInteger().with_variant(Integer, "sqlite")


def utcnow() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


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


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    __table_args__ = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


class Setting(Base):
    """A text, whatever it means; secrets are never shown."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(String(500), default="", server_default="")
    is_secret: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)


class User(Base):
    """`username` is stored in lower case."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    username: Mapped[str] = mapped_column(String(50), unique=True)
    email: Mapped[str | None] = mapped_column(String(255))
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(20), default="user", server_default="user")
    is_active: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    last_login_at: Mapped[datetime | None] = mapped_column(Timestamp)
    preferences: Mapped[dict] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)


class UserSession(Base):
    """A sign-in. The row is the truth: the cookie only names it. `token_hash` is the SHA-256 of the token, in hex."""

    __tablename__ = "user_sessions"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    expires_at: Mapped[datetime] = mapped_column(Timestamp, index=True)
    last_activity_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    ip: Mapped[str] = mapped_column(String(45), default="", server_default="")
    user_agent: Mapped[str] = mapped_column(String(255), default="", server_default="")

    user: Mapped[User] = relationship()


class RevokedToken(Base):
    """A JWT that must no longer be accepted, kept until it would have expired anyway."""

    __tablename__ = "revoked_tokens"

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    family: Mapped[str | None] = mapped_column(String(64), index=True)
    expires_at: Mapped[datetime] = mapped_column(Timestamp, index=True)


class LoginAttempt(Base):
    """Failed sign-ins in the current window. `key` is `ip:<address>` or `user:<username>`, of users that do not exist too:
    whether a name is taken must not show."""

    __tablename__ = "login_attempts"

    key: Mapped[str] = mapped_column(String(120), primary_key=True)
    window_start: Mapped[datetime] = mapped_column(Timestamp)
    count: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))


class CacheEntry(Base):
    """Answers kept for a while; `value` is JSON text."""

    __tablename__ = "cache"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(LongText)
    expires_at: Mapped[datetime] = mapped_column(Timestamp, index=True)


class AuditEntry(Base):
    """Who did what to which thing."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, index=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    username: Mapped[str] = mapped_column(String(50), default="", server_default="")
    action: Mapped[str] = mapped_column(String(50))
    target: Mapped[str] = mapped_column(String(100), default="", server_default="")
    detail: Mapped[dict] = mapped_column(JSON, default=dict)
    ip: Mapped[str] = mapped_column(String(45), default="", server_default="")
    served_by: Mapped[str] = mapped_column(String(20), default="flask", server_default="")


class Artist(Base):
    __tablename__ = "artists"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    name_key: Mapped[str] = mapped_column(String(255), unique=True)
    sort_name: Mapped[str] = mapped_column(String(300), index=True)
    imvdb_id: Mapped[str | None] = mapped_column(String(50), unique=True)
    spotify_id: Mapped[str | None] = mapped_column(String(50), unique=True)
    bio: Mapped[str | None] = mapped_column(Text)
    genres: Mapped[list] = mapped_column(JSON, default=list)
    monitored: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    auto_download: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    quality: Mapped[str | None] = mapped_column(String(20))
    folder_path: Mapped[str | None] = mapped_column(String(500))
    thumbnail_url: Mapped[str | None] = mapped_column(String(1000))
    thumbnail_path: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)

    videos: Mapped[list["Video"]] = relationship(back_populates="artist", order_by="Video.id", passive_deletes="all")


class Video(Base):
    """`file_path` and `thumbnail_path` are relative: to the library and to the data directory."""

    __tablename__ = "videos"
    __table_args__ = (
        Index(None, "artist_id", "status"),
        Index(None, "status", "created_at"),
        Index(None, "created_at"),
        Index("ix_videos_title", "title", mysql_prefix="FULLTEXT", mariadb_prefix="FULLTEXT"),
        Base.__table_args__,
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    artist_id: Mapped[int] = mapped_column(ForeignKey("artists.id"))
    title: Mapped[str] = mapped_column(String(500))
    status: Mapped[str] = mapped_column(String(20), default="WANTED", server_default="WANTED")
    youtube_id: Mapped[str | None] = mapped_column(String(20), unique=True)
    imvdb_id: Mapped[str | None] = mapped_column(String(50), unique=True)
    url: Mapped[str | None] = mapped_column(String(1000))
    description: Mapped[str | None] = mapped_column(Text)
    directors: Mapped[list] = mapped_column(JSON, default=list)
    genres: Mapped[list] = mapped_column(JSON, default=list)
    year: Mapped[int | None] = mapped_column(Integer)
    duration: Mapped[int | None] = mapped_column(Integer)  # seconds
    quality: Mapped[str | None] = mapped_column(String(20))
    file_path: Mapped[str | None] = mapped_column(String(500))
    file_size: Mapped[int | None] = mapped_column(BigInteger)  # bytes
    thumbnail_url: Mapped[str | None] = mapped_column(String(1000))
    thumbnail_path: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)

    artist: Mapped[Artist] = relationship(back_populates="videos")
    downloads: Mapped[list["Download"]] = relationship(
        back_populates="video", order_by="Download.id", passive_deletes="all"
    )


class Download(Base):
    """One attempt to get one video. `active_video_id` repeats `video_id` while the row is active and is NULL afterwards:
    being unique, it keeps a video from being downloaded twice at a time."""

    __tablename__ = "downloads"
    __table_args__ = (
        UniqueConstraint("active_video_id"),
        Index(None, "status", "priority"),
        Index(None, "finished_at"),
        Base.__table_args__,
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    video_id: Mapped[int] = mapped_column(ForeignKey("videos.id", ondelete="CASCADE"), index=True)
    active_video_id: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(20), default="pending", server_default="pending")
    priority: Mapped[int] = mapped_column(Integer, default=5, server_default=text("5"))  # 1 (first) to 10
    progress: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))  # percent
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    speed: Mapped[int | None] = mapped_column(BigInteger)  # bytes per second
    eta: Mapped[int | None] = mapped_column(Integer)  # seconds
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(Integer, default=3, server_default=text("3"))
    error_code: Mapped[str | None] = mapped_column(String(50))
    error_message: Mapped[str | None] = mapped_column(String(500))
    quality: Mapped[str | None] = mapped_column(String(20))
    format: Mapped[str | None] = mapped_column(String(20))
    file_path: Mapped[str | None] = mapped_column(String(500))
    job_id: Mapped[str | None] = mapped_column(String(64))
    runner: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
    retry_at: Mapped[datetime | None] = mapped_column(Timestamp)  # a pending row waits until then

    video: Mapped[Video] = relationship(back_populates="downloads")


class PlaylistMonitor(Base):
    """A playlist of YouTube that is looked through for new videos. `playlist_id` is YouTube's."""

    __tablename__ = "playlist_monitors"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    playlist_id: Mapped[str] = mapped_column(String(64), unique=True)
    title: Mapped[str] = mapped_column(String(500))
    channel: Mapped[str | None] = mapped_column(String(255))
    auto_download: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    video_count: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    last_synced_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)


class Webhook(Base):
    """Who wants to be told. `events` are event types, `["*"]` means all of them."""

    __tablename__ = "webhooks"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    url: Mapped[str] = mapped_column(String(500), unique=True)
    events: Mapped[list] = mapped_column(JSON, default=list)
    secret: Mapped[str | None] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)


class WebhookDelivery(Base):
    """An outbox: the row is written in the transaction of the event, and sent after its commit. `payload` is the JSON
    text that is signed and sent."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "status", "created_at"), Base.__table_args__)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    event_type: Mapped[str] = mapped_column(String(50))
    payload: Mapped[str] = mapped_column(LongText)
    status: Mapped[str] = mapped_column(String(20), default="pending", server_default="pending")
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    response_status: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow)
    claimed_at: Mapped[datetime | None] = mapped_column(Timestamp)  # by whoever is delivering it
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)


class Job(Base):
    """Work that goes on after the answer. The row is the truth about it. `active_type` repeats type and target of active
    work of which there may be one at a time, and is NULL afterwards. `parent_id` is a job that this one is a part of."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "type", "status"),
        Index(None, "status"),
        Index(None, "finished_at"),
        Index(None, "target"),
        UniqueConstraint("active_type"),
        Base.__table_args__,
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    type: Mapped[str] = mapped_column(String(50))
    active_type: Mapped[str | None] = mapped_column(String(150))
    target: Mapped[str | None] = mapped_column(String(100))  # "video:7"
    arguments: Mapped[dict | None] = mapped_column(JSON(none_as_null=True))
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    runner: Mapped[str | None] = mapped_column(String(100))
    retry_at: Mapped[datetime | None] = mapped_column(Timestamp)  # a queued row waits until then
    status: Mapped[str] = mapped_column(String(20), default="queued", server_default="queued")
    progress: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))  # percent
    message: Mapped[str] = mapped_column(String(500), default="", server_default="")
    result: Mapped[dict | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(String(500))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, index=True)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, default=utcnow, onupdate=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
