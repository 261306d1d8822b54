"""A private MariaDB, as root or not, and nothing of the machine's own; and a SQLite file in the hands of another."""

import getpass
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer

import pymysql

from .processes import child, free_port, wait_until

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian keeps mariadbd
_QUICK = ["--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
_QUICK += ["--debug-no-sync", "--skip-sync-frm", "--innodb-flush-method=nosync"]  # killed it loses nothing all the same


class MariaDb:
    """A server in `directory`, which can be stopped in any way and started again with the same port and data.

    It needs a directory for temporary tables of its own: a server that starts clears away what it finds there.
    """

    def __init__(self, directory: Path) -> None:
        install, server = (shutil.which(name, path=_PATH) for name in ("mariadb-install-db", "mariadbd"))
        if not (install and server):
            raise RuntimeError("MariaDB is missing: ./dev test installs it")
        where = ["--no-defaults", f"--user={getpass.getuser()}", f"--datadir={directory}/data", f"--tmpdir={directory}"]
        fresh = [install, *where, "--auth-root-authentication-method=normal", "--skip-test-db", "--force"]  # no DNS
        made = subprocess.run(
            [*fresh, *_QUICK], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if made.returncode:
            raise RuntimeError(f"mariadb-install-db failed:\n{made.stdout}")
        self._log = directory / "mariadb.log"
        self.port = free_port()
        self._command = [server, *where, *_QUICK, "--socket=socket", f"--port={self.port}", "--bind-address=127.0.0.1"]
        self._command += ["--skip-name-resolve", "--skip-log-bin", "--performance-schema=OFF", "--max-connections=300"]
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """`mysql://root@127.0.0.1:PORT`, without a database."""
        return f"mysql://root@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it answers: 0.2 s."""
        self._process = self._running.enter_context(child(self._command, self._log))
        wait_until(self._answers, "MariaDB to answer")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Until it is gone."""
        self._process.send_signal(how)
        self._process.wait()
        self._running.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            pymysql.connect(host="127.0.0.1", port=self.port, user="root").close()
        except pymysql.err.OperationalError:
            return False
        return True


@contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """The address of a server in `directory`, without a database. It takes 0.7 s."""
    server = MariaDb(directory)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def create_database(server: str, name: str) -> str:
    """An empty database on `server`; returns its URL."""
    port = int(server.rpartition(":")[2])
    with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")
        cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    return f"{server}/{name}"


@contextmanager
def being_made(path: Path) -> Iterator[None]:
    """A new SQLite file, of which another process is writing the first page; it is done a moment later."""
    maker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    maker.execute("BEGIN IMMEDIATE")
    done = Timer(0.3, maker.execute, ("COMMIT",))
    done.start()
    try:
        yield
    finally:
        done.join()
        maker.close()
