"""Workers of the port, in processes of their own, and a queue that begins them when it is first needed."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from typing_extensions import override

from fastapi_app.kinds import ERRANDS, KINDS
from fastapi_app.queue import Queue

from .processes import child, wait_until
from .redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0  # with a Redis on a machine that is busy


@contextmanager
def workers(directory: Path, env: Mapping[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A pool; its log is `workers.log`. `env` says at least where Redis and the database are."""
    command = [sys.executable, "-m", "fastapi_app.worker", *options]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    with child(command, directory / "workers.log", cwd=directory, env=known) as process:
        yield process


@contextmanager
def _patient_worker(directory: Path, env: Mapping[str, str]) -> Iterator[None]:
    """One without a leader: what Redis does not take in time, nobody would put there later."""
    patient = f"from fastapi_app import queue, worker; queue.ANSWER_S = {PATIENCE_S}; "
    command = [sys.executable, "-c", f"{patient}worker.main(['--workers=1', '--no-leader'])"]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    with child(command, directory / "workers.log", cwd=directory, env=known):
        yield


class LazyQueue(Queue):
    """Begins its Redis and one worker when the first job comes. Nothing is downloaded."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory, self._env, self._began = directory, env, False
        self._server, self._running = RedisServer(directory), ExitStack()
        with patch("fastapi_app.queue.ANSWER_S", PATIENCE_S):
            super().__init__(self._server.url, {**KINDS, **ERRANDS})

    @override
    async def check(self) -> None:
        if not self._began:
            self._began = True
            self._server.start()
            env = {**self._env, "REDIS_URL": self._server.url}
            self._running.enter_context(_patient_worker(self._directory, env))
            with self._server.client() as redis:  # until it is there: what takes long then is the job
                wait_until(lambda: redis.scard("rq:workers"), f"a worker; see {self._directory}", 60)
        await super().check()

    @override
    async def put(self, kind: str, job_id: str = "") -> bool:
        return kind == "download" or await super().put(kind, job_id)

    @override
    def close(self) -> None:
        super().close()
        self._running.close()
        if self._began:
            self._server.stop()
