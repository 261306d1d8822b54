"""What a worker does with the queue of downloads: take what is due, have it fetched, and bring it into the library.

The rows are the truth (`claiming`). What is under way lies in `.incoming/<id of the download>` of the downloads folder,
where another attempt, of whichever process, goes on with it.
"""

import asyncio
import errno
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from sqlalchemy.exc import InternalError, OperationalError

from . import claiming, intake, progress, settings, thumbnails
from .claiming import Lost
from .commands import CommandError
from .config import Settings
from .containment import refuse
from .db import DatabaseUnavailable, Db
from .fetchers import shared
from .files import inside, off_loop, safe_name
from .http import ApiError
from .indexing import read_probe
from .media import answer_of, find_ffmpeg, find_ffprobe
from .models import utcnow
from .organizing import VIDEO_TYPES, nfo, target_path
from .resolving import Resolver
from .upstreams import youtube

log = logging.getLogger("fastapi_app")

AT_ONCE = 25  # by one process
LOOK_EVERY_S = 0.5  # at the rows
SIGN_EVERY_S = 5.0  # of life, when nothing else is new
PATIENCE_S = 60.0  # with a database that is away
STALLED_S = 900.0  # without a word of the child: the longest merging of two files
INCOMING = ".incoming"
COOKIES = "cookies.txt"  # in the data folder
KEPT = ("pending", "queued", "downloading", "paused")  # whose folder will be needed

T = TypeVar("T")


class Failed(Exception):
    """It cannot be downloaded; `code` is one of `claiming.ERRORS`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Download:
    """One that this process has claimed."""

    row: Any
    percent: int = 0
    bytes_done: int = 0
    bytes_total: int | None = None
    speed: int | None = None
    eta: int | None = None
    signed_at: float = field(default_factory=monotonic)
    moved: bool = False  # since then
    lost: bool = False
    over: bool = False  # its row is ours no longer because we said so

    def move(self, line: Mapping[str, Any]) -> None:
        """As its child tells."""
        self.bytes_done, self.bytes_total = line["done"], line["total"]
        self.speed, self.eta = line["speed"], line["eta"]
        if self.bytes_total:
            self.percent = min(99, 100 * self.bytes_done // self.bytes_total)
        self.moved = True

    def sign(self) -> dict[str, Any]:
        self.moved, self.signed_at = False, monotonic()
        return {
            **claiming.whose(self.row),
            "progress": self.percent,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "speed": self.speed,
            "eta": self.eta,
            "updated_at": utcnow(),
        }

    def document(self, status: str = "downloading", message: str = "") -> progress.Document:
        moving = status == "downloading"
        return {
            "id": f"download:{self.row.id}",
            "type": "download",
            "target": f"video:{self.row.video_id}",
            "status": status,
            "percent": self.percent,
            "message": message or self.row.title,
            "eta": self.eta if moving else None,
            "speed": self.speed if moving else None,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "updated_at": utcnow().isoformat(),
        }


async def drain(app: FastAPI) -> None:
    """Download what is due, up to AT_ONCE at a time, until nothing is. Cancelled, it puts back what is not done.

    Raises DatabaseUnavailable when the database is away for a minute.
    """
    refuse("jobs", "downloads")
    await Drain(app).run()


async def take_back(app: FastAPI) -> int:
    """See `claiming.take_back`; and remove the folders that nobody will need. How many rows were put back."""
    db = Db(app.state.database)
    count = await claiming.take_back(_request(app), db)
    await _sweep(app.state.settings, db)
    return count


def _request(app: FastAPI) -> Request:
    """One that nobody has sent."""
    return Request({"type": "http", "method": "POST", "app": app, "headers": [], "client": None, "state": {}})


class Drain:
    """The downloads of one process."""

    def __init__(self, app: FastAPI) -> None:
        from .working import this_runner  # it knows all kinds of work, this one too

        self._request = _request(app)
        self._config: Settings = app.state.settings
        self._db = Db(app.state.database)
        self._queue = app.state.queue
        self._channel: progress.Channel = app.state.channel
        self._resolver = Resolver(app.state.upstream, shared, self._config.allowed_networks)
        self._runner = this_runner()
        self._under_way: dict[asyncio.Task[None], Download] = {}
        self._seen_at = monotonic()  # the database

    async def run(self) -> None:
        looking = asyncio.create_task(self._look())
        try:
            await self._fill()
            while self._under_way:
                await asyncio.wait(
                    {*self._under_way, looking}, timeout=2 * LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if looking.done():
                    looking.result()
                await self._fill()
        finally:
            looking.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(looking, *self._under_way, return_exceptions=True)

    async def _fill(self) -> None:
        """Claim as many as there is room for; when there is none any more, let another worker look."""
        if len(self._under_way) >= AT_ONCE:
            return
        while len(self._under_way) < AT_ONCE:
            row = await self._patiently(partial(claiming.claim, self._request, self._db, self._runner))
            if row is None:
                return
            download = Download(row)
            task = asyncio.create_task(self._do(download), name=f"download {row.id}")
            self._under_way[task] = download
            task.add_done_callback(self._under_way.pop)
            await self._channel.publish(download.document())
        await self._queue.put("download")

    # The rows

    async def _look(self) -> None:
        """Whether the rows are still ours, how far they are, and a sign of life. Ends when the database stays away."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._look_once()
            except (DatabaseUnavailable, OperationalError, InternalError) as error:
                if monotonic() - self._seen_at > PATIENCE_S:
                    raise DatabaseUnavailable("The database was away for too long.") from error
            else:
                self._seen_at = monotonic()

    async def _look_once(self) -> None:
        looked_at = [(task, one) for task, one in self._under_way.items() if not one.over]
        if not looked_at:
            return
        states = await claiming.states(self._db, [one.row.id for _, one in looked_at])
        for task, one in looked_at:
            if states.get(one.row.id) != ("downloading", one.row.attempts, one.row.runner) and not (
                one.over or one.lost
            ):
                one.lost = True
                task.cancel()
        moved = [one for _, one in looked_at if one.moved and not one.lost]
        silent = [one for _, one in looked_at if monotonic() - one.signed_at >= SIGN_EVERY_S and not one.lost]
        if signed := sorted({*moved, *silent}, key=lambda one: int(one.row.id)):
            await claiming.sign(self._db, [one.sign() for one in signed])
        for one in moved:
            await self._channel.publish(one.document())

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again when the database is away, or somebody else was in the way."""
        until = monotonic() + PATIENCE_S
        while True:
            try:
                return await ask()
            except (DatabaseUnavailable, OperationalError, InternalError):
                if monotonic() > until:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)

    # One download

    async def _do(self, download: Download) -> None:
        """From the claim to the end, whatever that is."""
        row = download.row
        try:
            await self._bring(download)
        except Failed as error:
            await self._fail(download, error.code)
        except asyncio.CancelledError:
            if not download.lost:
                await claiming.release(self._db, row)
                raise
            await self._leave(row)
        except Lost:
            await self._leave(row)
        except (DatabaseUnavailable, OperationalError, InternalError):
            log.exception("what became of download %d could not be noted", row.id)
        except TimeoutError:
            await self._fail(download, "network")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            log.warning("download %d: %s", row.id, error)
            await self._fail(download, "disk_full" if full else "unexpected")
        except Exception:
            log.exception("download %d", row.id)
            await self._fail(download, "unexpected")

    async def _bring(self, download: Download) -> None:
        """Raises Failed, Lost, OSError."""
        texts = await self._patiently(lambda: settings.texts(self._db))
        address = await self._address(download.row, texts)
        path = await self._fetch(download, address, texts)
        fields = await self._probe(path)
        organized = settings.as_bool(texts["auto_organize_downloads"])
        name = await self._keep(download, path, fields, organized=organized)
        await off_loop(_remove, self._folder(download.row.id))
        if organized and settings.as_bool(texts["organize_nfo"]):
            await off_loop(intake.write_nfo, self._config.library_path, name, _about(download.row))
        await self._adopt_picture(download.row)

    async def _address(self, row: Any, texts: Mapping[str, str]) -> str:
        if row.url or row.youtube_id:
            return str(row.url or youtube.watch_url(row.youtube_id))
        try:
            address = await self._resolver.find_address(texts, row.artist, row.title)
        except ApiError as error:
            log.warning("download %d: %s", row.id, error.message)
            raise Failed("service") from None
        if address is None:
            raise Failed("not_found")
        await self._patiently(partial(claiming.note_address, self._db, row.video_id, address))
        return address

    async def _fetch(self, download: Download, address: str, texts: Mapping[str, str]) -> Path:
        """The path of the file. Raises Failed."""
        row, folder = download.row, self._folder(download.row.id)
        refuse("files", folder)
        await off_loop(partial(folder.mkdir, parents=True, exist_ok=True))
        order = {
            "url": address,
            "folder": str(folder),
            "quality": row.quality or texts["download_quality"],
            "format": row.format or texts["download_format"],
            "cookies": str(self._config.data_path / COOKIES),
            "proxy": texts["download_proxy"].strip(),
            "max_bytes": int(settings.as_number(texts["download_max_mb"], 16384) * 1024**2),
            "max_seconds": int(settings.as_number(texts["download_max_minutes"], 720) * 60),
            "allowed_networks": self._config.allowed_networks,
            "ffmpeg": await off_loop(find_ffmpeg, self._config.ffmpeg),
        }
        async with aclosing(shared.fetch(order)) as lines, asyncio.timeout(STALLED_S) as patience:
            async for line in lines:
                patience.reschedule(asyncio.get_running_loop().time() + STALLED_S)
                if line["event"] == "progress":
                    download.move(line)
                elif line["event"] == "done":
                    return await off_loop(_made, folder, line["path"])
                elif line["event"] == "error":
                    log.warning("download %d: %s: %s", row.id, line["code"], line["detail"])
                    raise Failed(line["code"] if line["code"] in claiming.ERRORS else "unexpected")
        raise Failed("unexpected")  # its process was killed, or could not even begin

    async def _probe(self, path: Path) -> dict[str, Any]:
        """Size, duration and quality. Raises Failed for what is no video, and when nobody can tell now."""
        ffprobe = await off_loop(find_ffprobe, self._config.ffmpeg, self._config.ffprobe)
        try:
            found = read_probe(await answer_of(ffprobe, path)) if ffprobe else {}
        except CommandError as error:
            log.warning("what was downloaded could not be looked at: %s", error)
            raise Failed("unexpected") from None
        if ffprobe and "quality" not in found:
            raise Failed("invalid_file")
        return {**found, "file_size": (await off_loop(path.stat)).st_size}

    def _target(self, row: Any, suffix: str, *, organized: bool) -> str:
        """The path below the root that the rules of the library ask for; in the downloads folder, only the name."""
        own = safe_name(row.artist)
        path = target_path(row.folder_path or own, row.artist, row.title, suffix)
        if not organized:
            return PurePosixPath(path).name
        if inside(self._config.library_path, path) is None:  # the folder of the artist leads out of the library
            return target_path(own, row.artist, row.title, suffix)
        return path

    async def _keep(self, download: Download, file: Path, fields: dict[str, Any], *, organized: bool) -> str:
        """The file gets its name, and the rows say so: both, or none. Raises Lost."""
        row, config = download.row, self._config
        root = config.library_path if organized else config.downloads_path
        suffix = file.suffix if file.suffix.lower() in VIDEO_TYPES else ".mkv"  # that is converted when it is played
        staged = intake.staged_path(root)
        try:
            await off_loop(intake.stage, file, staged)
            wanted = await off_loop(partial(self._target, row, suffix, organized=organized))
            download.over = True  # from here on nobody cancels it: the file would have its name, and no row
            name, size, placed = await off_loop(intake.place, root, staged, wanted)
        finally:
            await off_loop(intake.forget, staged)
        news = {**fields, "file_path": name} if organized else {}
        try:
            await self._patiently(partial(claiming.complete, self._request, self._db, row, name, size, news))
        except Lost:  # anything else may have been committed; another attempt finds the same file
            if placed and not await self._patiently(partial(claiming.has_file, self._db, row.id, name)):
                await off_loop(partial(placed.unlink, missing_ok=True))
            raise
        download.percent, download.bytes_done, download.bytes_total = 100, size, size
        await self._channel.publish(download.document("completed"))
        return name

    async def _adopt_picture(self, row: Any) -> None:
        """Fetch and keep the picture of a video that has none."""
        folder = f"thumbnails/videos/{row.video_id}"
        if row.thumbnail_path or not row.thumbnail_url:
            return
        if not await thumbnails.fetch(self._request, row.thumbnail_url, folder):
            return
        if not await self._patiently(partial(claiming.note_picture, self._db, row.video_id, folder)):
            await off_loop(thumbnails.remove, self._config.data_path, [folder])  # deleted meanwhile

    async def _fail(self, download: Download, code: str) -> None:
        download.over = True
        try:
            last = await self._patiently(partial(claiming.fail, self._request, self._db, download.row, code))
        except Lost:
            await self._leave(download.row)
            return
        if last:
            await off_loop(_remove, self._folder(download.row.id))
        status, message = ("failed", claiming.ERRORS[code]) if last else ("pending", "")
        await self._channel.publish(download.document(status, message))

    async def _leave(self, row: Any) -> None:
        """Its child is gone; the folder goes, too, unless somebody will go on with it."""
        states = await self._patiently(partial(claiming.states, self._db, [row.id]))
        if states.get(row.id, ("",))[0] not in KEPT:
            await off_loop(_remove, self._folder(row.id))

    def _folder(self, download_id: int) -> Path:
        return self._config.downloads_path / INCOMING / str(download_id)


async def _sweep(config: Settings, db: Db) -> None:
    """Remove the folders of downloads that are over: of those that were cancelled while nobody had them."""
    folders = await off_loop(_folders, config.downloads_path / INCOMING)
    if folders:
        states = await claiming.states(db, list(folders))
        for download_id, folder in folders.items():
            if states.get(download_id, ("",))[0] not in KEPT:
                await off_loop(_remove, folder)


def _folders(incoming: Path) -> dict[int, Path]:
    with suppress(OSError):
        return {int(path.name): path for path in incoming.iterdir() if path.name.isdecimal()}
    return {}


def _made(folder: Path, path: str) -> Path:
    """The file that a child names, if it is one of the folder. Raises Failed."""
    file = folder / PurePosixPath(path).name
    if file.is_symlink() or not file.is_file():
        raise Failed("unexpected")
    return file


def _about(row: Any) -> str:
    return nfo(row.title, row.artist, row.year, row.genres, row.directors, row.description)


def _remove(folder: Path) -> None:
    refuse("files", folder)
    shutil.rmtree(folder, ignore_errors=True)
