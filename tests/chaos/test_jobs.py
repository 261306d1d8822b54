"""Workers that are killed, Redis that goes away and forgets: every job is done, once, and its row is right."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from tests.support.processes import child, free_port, session_members, wait_until
from tests.support.redis_server import RedisServer, redis_server
from tests.support.worker import ROOT, workers

pytestmark = pytest.mark.timeout(300)  # several pools start for one test

SLOW = "#!/bin/sh\nsleep {seconds}\necho '{{}}'\n"  # an ffprobe; it makes the index of a library last
FILES = 4


class Site:
    """A database, a library and a Redis; a server of the port, and pools of workers in folders of their own."""

    def __init__(self, home: Path) -> None:
        self._rest = ExitStack()
        self.home = home
        self.redis: RedisServer = self._rest.enter_context(redis_server(home))
        (home / "bin").mkdir()
        self.slow(0)
        self.env = {
            "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
            "SECRET_KEY": "s" * 32,
            "DATA_PATH": str(home / "data"),
            "LIBRARY_PATH": str(home / "library"),
            "FFMPEG": str(home / "bin/ffmpeg"),
            "REDIS_URL": self.redis.url,
            "JOB_STALE_S": "120",
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "BCRYPT_ROUNDS": "4",
        }
        for number in range(FILES):
            path = home / f"library/Artist/Artist - Song {number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no video")
        self._engine = create_engine(self.env["DATABASE_URL"])

    def close(self) -> None:
        self._rest.close()
        self._engine.dispose()

    def slow(self, seconds: float) -> None:
        """How long a file of the library takes from now on."""
        for name in ("ffprobe", "ffmpeg"):
            path = self.home / "bin" / name
            path.with_suffix(".new").write_text(SLOW.format(seconds=seconds))
            path.with_suffix(".new").chmod(0o755)
            path.with_suffix(".new").rename(path)

    def pool(self, *options: str, name: str = "pool") -> Any:
        folder = self.home / name
        folder.mkdir()
        before = self.redis.client().scard("rq:workers")
        process = self._rest.enter_context(workers(folder, self.env, *options))
        wait_until(lambda: self.redis.client().scard("rq:workers") > before, f"workers; see {folder}", 60)
        return process

    def server(self) -> str:
        """Its address; one that is signed in to by nobody."""
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--factory", "fastapi_app:create_app", "--port", str(port)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **self.env}
        self._rest.enter_context(child(command, self.home / "server.log", cwd=self.home, env=env))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), f"the server; see {self.home}/server.log", 60)
        return url

    def start(self, kind: str = "index", **detail: Any) -> str:
        """A job, as the routes begin it."""
        return asyncio.run(self._start(kind, detail))

    async def _start(self, kind: str, detail: dict[str, Any]) -> str:
        import fastapi_app  # noqa: F401 - slow
        from fastapi_app import jobs, working
        from fastapi_app.config import Settings
        from fastapi_app.db import Database
        from fastapi_app.kinds import ERRANDS, KINDS
        from fastapi_app.queue import Queue

        class State:
            settings = Settings.load(self.env)
            database = Database(self.env["DATABASE_URL"])
            queue = Queue(self.env["REDIS_URL"], {**KINDS, **ERRANDS})

        class App:
            state = State

        await State.database.prepare()
        try:
            return await jobs.start(working.request_of(App), kind, {}, **detail)  # type: ignore[arg-type]
        finally:
            State.queue.close()
            await State.database.dispose()

    def row(self, job_id: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id}).one()

    def scalar(self, query: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(query)).scalar()

    def execute(self, statement: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(statement))

    def wait(self, job_id: str, status: str, timeout_s: float = 60) -> Any:
        wait_until(lambda: self.row(job_id).status == status, f"{status}: {self.row(job_id)}", timeout_s)
        return self.row(job_id)

    def indexed_once(self) -> None:
        """Every file has one row, and so has the artist."""
        assert (FILES, FILES) == (
            self.scalar("SELECT count(*) FROM videos"),
            self.scalar("SELECT count(DISTINCT file_path) FROM videos"),
        )
        assert 1 == self.scalar("SELECT count(*) FROM artists")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


def horse_of(row: Any) -> int:
    """The process that works on it."""
    return int(row.runner.rpartition(":")[2])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def programs(home: Path) -> list[str]:
    """Our ffprobes that run, anywhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{home}/bin/ff" in words:
            found.append(words)
    return found


def test_a_job_whose_process_is_killed_goes_back_at_once_and_is_done_by_another(site: Site) -> None:
    site.slow(120)
    site.pool("--no-leader")  # which would find the row, sooner or later, and begins what waits
    job_id = site.start()
    row = site.wait(job_id, "running")
    wait_until(lambda: programs(site.home), "an ffprobe")

    os.kill(horse_of(row), signal.SIGKILL)
    row = site.wait(job_id, "queued")

    assert (1, None) == (row.attempts, row.runner)
    wait_until(lambda: not programs(site.home), "no ffprobe", 30)
    site.slow(0)
    site.pool(name="another")
    assert 2 == site.wait(job_id, "completed").attempts
    site.indexed_once()


def test_a_worker_that_is_killed_takes_its_job_along_and_another_one_does_it(site: Site) -> None:
    site.slow(120)
    site.pool()
    job_id = site.start()
    horse = horse_of(site.wait(job_id, "running"))
    worker = parent_of(horse)
    wait_until(lambda: programs(site.home), "an ffprobe")

    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_there(horse), "the end of the job's process", 30)
    site.slow(0)

    site.wait(job_id, "completed", 120)
    assert [] == programs(site.home)
    site.indexed_once()


def test_when_worker_and_job_are_killed_at_once_the_leader_finds_the_row(site: Site) -> None:
    site.slow(120)
    site.env["JOB_STALE_S"] = "8"
    site.pool()
    job_id = site.start()
    horse = horse_of(site.wait(job_id, "running"))
    worker = parent_of(horse)
    for pid in (worker, horse):
        os.kill(pid, signal.SIGSTOP)  # so that neither sees the other die
    for pid in (worker, horse):
        os.kill(pid, signal.SIGKILL)
    site.slow(0)

    assert 2 == site.wait(job_id, "completed", 120).attempts
    site.indexed_once()


def test_sigterm_gives_a_job_its_grace_and_then_puts_it_back(site: Site) -> None:
    site.slow(120)
    pool = site.pool("--grace", "1")
    job_id = site.start()
    site.wait(job_id, "running")
    wait_until(lambda: programs(site.home), "an ffprobe")

    pool.terminate()

    assert 0 == pool.wait(60)
    assert ("queued", 0) == (site.row(job_id).status, site.row(job_id).attempts)
    wait_until(lambda: not session_members(pool.pid) + programs(site.home), "the end of every process", 30)


def test_sigterm_lets_a_job_end_that_needs_less_than_the_grace(site: Site) -> None:
    site.slow(1.5)
    pool = site.pool("--grace", "30")
    job_id = site.start()
    site.wait(job_id, "running")

    pool.terminate()

    assert 0 == pool.wait(90)
    assert "completed" == site.row(job_id).status


def test_workers_leave_the_processor_to_those_who_wait_for_an_answer(site: Site) -> None:
    pool = site.pool("--workers", "1")

    assert {15} == {os.getpriority(os.PRIO_PROCESS, process) for process in session_members(pool.pid)}


def test_what_is_cancelled_ends_wherever_it_is(site: Site) -> None:
    site.slow(120)
    site.pool("--workers", "1")
    running, queued = site.start(), site.start()
    horse = horse_of(site.wait(running, "running"))
    wait_until(lambda: programs(site.home), "an ffprobe")

    site.execute("UPDATE jobs SET status = 'cancelled'")  # as either side does it

    wait_until(lambda: not is_there(horse), "the end of the job's process", 30)
    wait_until(lambda: not programs(site.home), "no ffprobe", 30)
    site.slow(0)
    site.wait(site.start(), "completed")  # whoever waited before has had its turn
    assert ["cancelled"] * 2 == [site.row(job_id).status for job_id in (running, queued)]
    assert [1, 0] == [site.row(job_id).attempts for job_id in (running, queued)]


def test_after_flushall_everything_is_found_again(site: Site) -> None:
    site.slow(2)
    site.pool("--workers", "1")
    ids = [site.start() for _ in range(3)]
    site.wait(ids[0], "running")

    site.redis.client().flushall()
    site.slow(0)

    for job_id in ids:
        assert 1 == site.wait(job_id, "completed").attempts
    wait_until(lambda: site.redis.client().scard("rq:workers"), "workers that are known again", 90)
    site.indexed_once()


def test_without_redis_only_what_enqueues_is_refused_and_then_everything_resumes(site: Site) -> None:
    site.slow(1)
    site.pool()
    url = site.server()
    job_id = site.start()
    site.wait(job_id, "running")
    queued = site.start()

    site.redis.stop()
    statuses = set()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        statuses.add(httpx.get(f"{url}/api/health", timeout=30).status_code)
        statuses.add(httpx.get(f"{url}/api/genres", timeout=30).status_code)  # nobody is signed in
    assert {200, 401} == statuses
    began = time.monotonic()
    with pytest.raises(Exception, match="The job queue is not available") as refused:
        site.start()
    assert time.monotonic() - began < 20  # the application's own time included
    assert (503, {"Retry-After": "5"}) == (refused.value.status, refused.value.headers)  # type: ignore[attr-defined]
    site.redis.start()

    for one in (job_id, queued):
        assert 1 == site.wait(one, "completed", 90).attempts
    site.indexed_once()


def test_pools_in_several_folders_share_the_work_and_nothing_is_done_twice(site: Site) -> None:
    site.slow(0.2)
    for name in ("one", "two"):
        site.pool("--workers", "1", name=name)
    ids = [site.start() for _ in range(8)]

    rows = [site.wait(job_id, "completed", 90) for job_id in ids]

    assert {1} == {row.attempts for row in rows}
    assert 2 == len({row.runner.split(":")[1] for row in rows})
    site.indexed_once()
