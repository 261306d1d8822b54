"""The threads of this process that download: one that claims rows, and one for each row that it has."""

import os
import time
from multiprocessing.util import Finalize
from threading import Event, Lock, Thread
from weakref import WeakSet

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from . import downloading
from .db import close_session
from .downloading import Task

LOOK_EVERY_S = 2.0  # when all places are taken, or only rows of others are left
LOOK_AGAIN_S = 10.0  # between two requests that make an idle process look: the other application wakes nobody here
TROUBLE_S = 5.0  # before the next look, when the database could not be asked
STOP_S = 10.0  # for the threads to see that they are to end


class Downloader:
    """The thread that claims is there as long as something waits or is running anywhere."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.lock, self.more = Lock(), Event()
        self.thread, self.stopping = None, False
        self.tasks: dict[Task, Thread] = {}
        self.pid, self.looked_at = 0, float("-inf")

    def begin(self) -> None:
        """With a request: continue what one that is gone has left, or what others have queued."""
        if self.pid != os.getpid() or time.monotonic() - self.looked_at > LOOK_AGAIN_S:
            self.wake()

    def wake(self) -> None:
        """There is something to download: to be called after the commit."""
        if self.app.config["SHADOW"]:
            return
        with self.lock:
            if self.pid != os.getpid():  # threads do not survive a fork
                self.pid, self.thread, self.tasks = os.getpid(), None, {}
                Finalize(None, stop_all, exitpriority=1)  # unlike atexit also in a process of multiprocessing
            self.looked_at = time.monotonic()
            self.more.set()
            if self.thread is None:
                self.thread = Thread(target=self.run, name="downloads", daemon=True)
                self.thread.start()

    def stop(self) -> None:
        """Put back what is being downloaded, for others to continue, and wait until no thread is left."""
        if self.pid != os.getpid():
            return
        self.stopping = True
        self.more.set()
        deadline = time.monotonic() + STOP_S
        if self.thread:  # first: what it is just claiming is to be put back, too
            self.thread.join(STOP_S)
        tasks = dict(self.tasks)
        with self.app.app_context():
            for task in tasks:
                try:
                    downloading.release(task)
                except (downloading.Lost, SQLAlchemyError):
                    continue
        for thread in tasks.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self.thread, self.stopping = None, False

    def run(self) -> None:
        while not self.stopping:
            self.more.clear()
            pause_s = self.look()
            if pause_s:
                self.more.wait(pause_s)
            elif self.is_idle():
                return

    def is_idle(self) -> bool:
        with self.lock:
            if not self.more.is_set():
                self.thread = None
            return self.thread is None

    def look(self) -> float:
        """Begin what can begin. Seconds until the next look; 0 when there is nothing more to do."""
        with self.app.app_context():
            try:
                downloading.take_back()
                downloading.tidy()
                while not self.stopping and downloading.is_room() and (task := downloading.claim()):
                    self.tasks[task] = Thread(target=self.work, args=(task,), name=f"download-{task.id}", daemon=True)
                    self.tasks[task].start()
                return LOOK_EVERY_S if downloading.is_more() else 0.0
            except Exception:
                self.app.logger.exception("downloads")
                return TROUBLE_S
            finally:
                close_session()

    def work(self, task: Task) -> None:
        with self.app.app_context():
            downloading.run(task)
        self.tasks.pop(task, None)
        if not self.stopping:
            self.wake()  # its place is free


downloaders: WeakSet[Downloader] = WeakSet()


def stop_all() -> None:
    for downloader in list(downloaders):
        downloader.stop()


def init_app(app: Flask) -> None:
    downloader = app.extensions["downloader"] = Downloader(app)
    downloaders.add(downloader)
    if not app.config["SHADOW"]:
        app.before_request(downloader.begin)
