"""Which rows a request changed, seen through SQLAlchemy's events: the application is not edited and need not know."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..model import RowChange


class Recorder:
    """The row changes of one request."""

    why = ""  # what made the record incomplete

    def changes(self) -> tuple[RowChange, ...] | None:
        """What was committed, one entry per row; None when that is not known for sure."""
        raise NotImplementedError


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record what the code in this context, and in threads that get a copy of it, changes. For `await` inside, too."""
    raise NotImplementedError
