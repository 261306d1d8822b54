"""One SQLite file per host, which several processes write and anyone reads: `<state>/ledger.sqlite3`.

Each module that keeps something there brings its own tables. Deleted, the file is made anew; corrupt or of another
make, it is put aside as `….corrupt` first.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

BUSY_S = 2.0  # how long one write may wait for those of other processes
NAME = "ledger.sqlite3"

_USELESS = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")  # the last one: tables of another version


class Store:
    """The file in the directory `state`, with the tables of `schema` (SQL that may run any number of times)."""

    def __init__(self, state: Path, schema: str) -> None:
        self._path, self._schema = state / NAME, schema
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None  # of the file that is connected

    @property
    def path(self) -> Path:
        return self._path

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows, from any thread or process; none when there is nothing to read."""
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error:
            return []

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction that is committed at the end. For one thread."""
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            self.close()
            if getattr(error, "sqlite_errorname", "").startswith(_USELESS):
                self._put_aside()
            raise

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection and self._inode == _inode(self._path):
            return self._connection
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path.parent):
            self._inode = _inode(self._path)
            if self._inode is None:  # what was beside a deleted file belongs to nothing
                self._beside("-wal").unlink(missing_ok=True)
                self._beside("-shm").unlink(missing_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(self._schema)
            self._inode = _inode(self._path)
        return self._connection

    def _put_aside(self) -> None:
        with _locked(self._path.parent):
            if self._inode is None or _inode(self._path) != self._inode:
                return  # another worker has done so
            self._beside("-wal").unlink(missing_ok=True)
            self._beside("-shm").unlink(missing_ok=True)
            self._path.replace(self._beside(".corrupt"))

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One worker at a time creates, or clears away, what is in `directory`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
