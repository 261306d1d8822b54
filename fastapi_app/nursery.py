"""A process that has imported yt-dlp, and forks a child for every download: 100 of them do not cost 100 interpreters.

`fetchers` runs this file as a program of its own: what it forks has one thread, no connections and no secrets.
multiprocessing has such a server, too, but its children import the main module again, here the whole application, and
nobody could tell when the last process of a group is gone.

A message on the socket at file 0 carries two pipes, the order to read and the place to tell. The child has them as its
files 0 and 1 and leads a group of its own. When nobody holds the other end of the order any more, the group is killed.
What the child tells ends when all of the group are gone, ffmpeg included.
"""

import ctypes
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).parent

_PR_SET_CHILD_SUBREAPER = 36


class Child(NamedTuple):
    """`number` is that of its group, too; `ended` becomes readable when it has ended."""

    number: int
    ended: int
    order: int
    told: int


def main() -> None:
    """Until nobody holds the other end of the socket."""
    package = ModuleType("fastapi_app")
    package.__path__ = [str(HERE)]
    sys.modules["fastapi_app"] = package  # without the application in it: a fetch needs 2 s and 70 MB less
    from fastapi_app import fetch, priority

    with suppress(Exception):  # another yt-dlp may be different inside: then it is only slower
        warm()
    priority.step_back()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # a child's children become ours when it ends
    gc.collect()
    gc.freeze()  # or the collector of every child would make the memory its own
    with socket.socket(fileno=0) as orders:
        Nursery(orders, fetch.main).run()


def warm() -> None:
    """Everything that each child would do first: imports, hundreds of patterns, the certificates to trust."""
    from yt_dlp.networking import common
    from yt_dlp.utils import unified_timestamp

    from fastapi_app import fetch

    for name in ("generic", "youtube"):
        import_module(f"yt_dlp.extractor.{name}")
    video = {"id": "video", "title": "video", "url": "https://example.com/video.mp4", "extractor_key": "Generic"}
    for site in fetch.sites():
        site.suitable(video["url"])
    common.make_ssl_context = cache(common.make_ssl_context)
    common.make_ssl_context(verify=True, legacy_support=False, use_certifi=True)
    fetch.tame()
    rehearsal = {"simulate": True, "ffmpeg_location": ""}  # no program is begun, which could stand still
    with fetch.Downloader(fetch.options({"proxy": ""}) | rehearsal) as ydl:
        ydl.process_ie_result(video)
    unified_timestamp("Mon, 02 Jan 2006 15:04:05 GMT")


class Nursery:
    """`work` is what each child does, with its order at file 0."""

    def __init__(self, orders: socket.socket, work: Callable[[], None]) -> None:
        self._orders, self._work = orders, work
        self._poll = select.poll()
        self._poll.register(orders, select.POLLIN)
        self._children: dict[int, Child] = {}  # by both files that are watched

    def run(self) -> None:
        while True:
            for watched, _ in self._poll.poll():
                if watched == self._orders.fileno():
                    _, pipes, _, _ = socket.recv_fds(self._orders, 1, 2)
                    if len(pipes) != 2:
                        self._end_all()
                        return
                    self._fork(*pipes)
                elif watched in self._children:
                    self._end(self._children[watched])

    def _fork(self, order: int, told: int) -> None:
        number = os.fork()
        if number == 0:
            self._be_child(order, told)
        with suppress(PermissionError, ProcessLookupError):  # it has done so, or has ended
            os.setpgid(number, number)
        child = Child(number, os.pidfd_open(number), order, told)
        self._children |= {child.ended: child, order: child}
        self._poll.register(child.ended, select.POLLIN)
        self._poll.register(order, 0)  # only that the other end is closed

    def _be_child(self, order: int, told: int) -> None:
        """Never returns."""
        status = 1
        try:
            os.setpgid(0, 0)
            os.dup2(order, 0)
            os.dup2(told, 1)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            self._work()
            status = 0
        finally:
            os._exit(status)

    def _end(self, child: Child) -> None:
        """Kill the group, wait for all of it, and let the reader know."""
        with suppress(ProcessLookupError):
            os.killpg(child.number, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-child.number, 0)
        for watched in (child.ended, child.order):
            self._poll.unregister(watched)
            del self._children[watched]
        for file in child[1:]:
            os.close(file)

    def _end_all(self) -> None:
        for child in {child.number: child for child in self._children.values()}.values():
            self._end(child)


if __name__ == "__main__":
    main()
