"""Signs of life in a row, while the thread that works on it waits for something else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

EVERY_S = 5.0  # after a minute of silence the row is taken away


@contextmanager
def beating(write: Callable[[], None], lost: type[Exception], name: str) -> Iterator[None]:
    """Call `write` in a thread of its own until the block ends, or it raises `lost`: the row is no longer ours."""
    over, app = Event(), current_app._get_current_object()
    thread = Thread(target=beat, args=(app, write, lost, over), name=f"beat-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def beat(app: Flask, write: Callable[[], None], lost: type[Exception], over: Event) -> None:
    with app.app_context(), suppress(lost):
        while not over.wait(EVERY_S):
            with suppress(SQLAlchemyError):  # the next one may be written
                write()
