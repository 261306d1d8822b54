"""What both applications say about their machine where it is not as it should be, and what they note in the log."""

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import rq
from flask import Flask
from redis import Redis
from rq.serializers import JSONSerializer

import fastapi_app
import legacy_flask
from fastapi_app import queue
from fastapi_app.config import Settings, StartupError
from legacy_flask import job_routes
from legacy_flask.db import StartupError as LegacyStartupError
from legacy_flask.seed import seed
from tests.cases import PASSWORDS
from tests.support.asgi import Lifespan, ask
from tests.support.made_once import create_port, flask_app
from tests.support.processes import free_port, wait_until
from tests.support.redis_server import RedisServer

ORIGIN = "http://localhost"
SIDES = ("legacy", "port")
LIMIT_S = 5  # for what takes one second at most, on a machine that is busy


class Got(NamedTuple):
    """An answer."""

    status: int
    json: Any
    seconds: float


class Side:
    """One application, asked by an admin."""

    def __init__(self, name: str, home: Path, legacy: Flask, cleanup: ExitStack) -> None:
        self.name, self.home = name, home
        self._legacy = legacy
        cleanup.callback(close_log, self._legacy.logger)  # all applications of a process share it
        seed(self._legacy, "small", demo=True)
        self._client = self._legacy.test_client()
        credentials = {"username": "admin", "password": PASSWORDS["admin"]}
        assert 200 == self._client.post("/auth/login", json=credentials, headers={"Origin": ORIGIN}).status_code
        if name == "port":
            self.loop = cleanup.enter_context(asyncio.Runner())
            self.port = create_port()
            life = Lifespan(self.port)
            self.loop.run(life.__aenter__())
            assert not life.failed
            cleanup.callback(lambda: self.loop.run(life.__aexit__()))

    def __call__(self, path: str, method: str = "GET", **headers: str) -> Got:
        began = time.monotonic()
        sent = {"Origin": ORIGIN, **headers}
        if self.name == "legacy":
            answer = self._client.open(path, method=method, headers=sent)
            status, body = answer.status_code, answer.data
            answer.close()
        else:
            cookie = self._client.get_cookie("mv_session")
            assert cookie is not None
            sent |= {"Host": "localhost", "Cookie": f"mv_session={cookie.value}"}
            port = self.loop.run(ask(self.port, method, path, sent.items()))
            status, body = port.status, port.body
        return Got(status, json.loads(body), time.monotonic() - began)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self._legacy.extensions["engine"].connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def warn(self, message: str, **options: Any) -> None:
        logger = self._legacy.logger if self.name == "legacy" else logging.getLogger("fastapi_app")
        logger.warning(message, **options)

    @property
    def log(self) -> list[str]:
        """The lines of the log file; the port's are written by a thread."""
        path = self.home / "data/app.log"
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "a line in the log")
        return path.read_text().split("\n")[:-1]


def close_log(logger: logging.Logger) -> None:
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def running(name: str, home: Path, **env: str) -> Iterator[Side]:
    base = {
        "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
        "SECRET_KEY": "s" * 32,
        "DATA_PATH": f"{home}/data",
        "LIBRARY_PATH": f"{home}/library",
        "DOWNLOADS_PATH": f"{home}/downloads",
        "BCRYPT_ROUNDS": "4",
        **dict.fromkeys(("REDIS_URL", "LOG_FILE", "SERVICE_UNIT", "RESTART_COMMAND"), ""),
        **env,
    }
    with ExitStack() as cleanup, patch.dict(os.environ, base):
        if env and name == "legacy":
            legacy = legacy_flask.create_app()
            cleanup.callback(legacy.extensions["engine"].dispose)
        else:
            legacy = cleanup.enter_context(flask_app(home))
        yield Side(name, home, legacy, cleanup)


@pytest.fixture(params=SIDES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# --- Redis -------------------------------------------------------------------------------------------------------


def silent_server(cleanup: ExitStack) -> int:
    listener = cleanup.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_without_redis_health_is_503_at_once_and_everything_else_goes_on(name: str, tmp_path: Path, kind: str) -> None:
    with ExitStack() as cleanup:
        port = free_port() if kind == "dead" else silent_server(cleanup)
        side = cleanup.enter_context(running(name, tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}/0"))
        for _ in range(2):
            health = side("/api/health/status")
            assert (503, "unhealthy") == (health.status, health.json["status"])
            assert ("down", "down", "up") == tuple(
                health.json["components"][it] for it in ("redis", "worker", "database")
            )
            assert health.seconds < LIMIT_S
        assert 200 == side("/api/health").status
        assert 200 == side("/api/artists/").status


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that answers is believed, on a machine that is busy, too."""
    monkeypatch.setattr(queue, "ANSWER_S", 20)
    for module in (fastapi_app.system, legacy_flask.system, job_routes):
        monkeypatch.setattr(module, "REDIS_S", 20)


@pytest.mark.usefixtures("_patient")
def test_a_redis_that_comes_back_is_seen_and_so_are_its_workers(name: str, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    with running(name, tmp_path, REDIS_URL=redis.url) as side:
        seen = []
        for workers in (None, 0, 1, None, 1):
            if workers is None:
                redis.stop()
            else:
                redis.start() if redis.process is None or redis.process.poll() is not None else None
                with redis.client() as client:
                    client.sadd("rq:workers", "rq:worker:one")  # where one that was killed stays
                    client.hset("rq:worker:one", "state", "idle") if workers else client.delete("rq:worker:one")
            answer = side("/api/health/status")
            seen.append((answer.status, answer.json["components"]["redis"], answer.json["components"]["worker"]))
        redis.stop()
    down, idle, well = (503, "down", "down"), (503, "up", "down"), (200, "up", "up")
    assert [down, idle, well, down, well] == seen


@pytest.mark.usefixtures("_patient")
def test_queues_and_workers_are_seen_alike(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    for name in SIDES:
        (tmp_path / name).mkdir()
    with (
        running("legacy", tmp_path / "legacy", REDIS_URL=redis.url) as legacy,
        running("port", tmp_path / "port", REDIS_URL=redis.url) as port,
    ):
        with Redis(port=redis.port) as connection:
            rq.Queue("media", connection=connection, serializer=JSONSerializer).enqueue_call("os.getpid")
            rq.Worker(["downloads", "media"], connection=connection, name="one").register_birth()
        well = [side("/api/jobs/queues")[:2] for side in (legacy, port)]
        redis.stop()
        away = [side("/api/jobs/queues")[:2] for side in (legacy, port)]
    assert well[0] == well[1]
    assert away == [(200, well[0][1] | {"redis": "down", "queues": [], "workers": []})] * 2
    seen = well[0][1]
    assert ("up", [{"name": "media", "waiting": 1}]) == (seen["redis"], seen["queues"])
    assert [("one", ["downloads", "media"])] == [(each["name"], each["queues"]) for each in seen["workers"]]
    assert {"failed": 1, "completed": 1, "cancelled": 1, "downloading": 1} == seen["downloads"]


@pytest.mark.usefixtures("_patient")
def test_the_port_has_one_connection_to_redis_for_all_requests(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        with running("port", tmp_path, REDIS_URL=redis.url) as side, redis.client() as client:
            side("/api/health/status")
            before = client.info("stats")["total_connections_received"]
            for _ in range(5):
                side("/api/health/status")
            assert before == client.info("stats")["total_connections_received"]
    finally:
        redis.stop()


# --- restart -----------------------------------------------------------------------------------------------------


def test_a_restart_is_refused_unless_it_is_configured(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        answer = side("/admin/system/restart", "POST")
        assert (403, {"error": "Restarting is not configured", "code": "RESTART_DISABLED"}) == answer[:2]
        assert [] == side.rows("SELECT * FROM audit_log WHERE action = 'system.restart'")


def test_a_restart_command_that_is_not_there_is_503(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path, RESTART_COMMAND="/nowhere/restart now") as side:
        answer = side("/admin/system/restart", "POST")
        assert (503, {"error": "The restart command is not installed"}) == answer[:2]
        assert [] == side.rows("SELECT * FROM audit_log WHERE action = 'system.restart'")


def test_the_restart_command_runs_with_its_words_after_the_answer(name: str, tmp_path: Path) -> None:
    program(
        tmp_path / "bin",
        "restart",
        f'printf "%s|" "$@" > {tmp_path}/words.new; mv {tmp_path}/words.new {tmp_path}/words',
    )
    with running(
        name, tmp_path, RESTART_COMMAND=f"{tmp_path}/bin/restart now 'a b' $HOME ; touch {tmp_path}/no"
    ) as side:
        answer = side("/admin/system/restart", "POST")
        assert (202, {"success": True, "message": "The restart has been requested"}) == answer[:2]
        wait_until((tmp_path / "words").exists, "the restart command")
        assert f"now|a b|$HOME|;|touch|{tmp_path}/no|" == (tmp_path / "words").read_text()
        assert [("admin", "system")] == side.rows(
            "SELECT username, target FROM audit_log WHERE action = 'system.restart'"
        )


def test_a_restart_command_outlives_the_application(name: str, tmp_path: Path) -> None:
    script = f"while [ ! -e {tmp_path}/gone ]; do sleep 0.02; done; touch {tmp_path}/restarted"
    program(tmp_path / "bin", "restart", script)
    with running(name, tmp_path, RESTART_COMMAND=f"{tmp_path}/bin/restart") as side:
        assert 202 == side("/admin/system/restart", "POST").status
    (tmp_path / "gone").touch()
    wait_until((tmp_path / "restarted").exists, "the restart command")


def test_a_restart_command_that_makes_no_sense_keeps_them_from_starting(tmp_path: Path) -> None:
    sentence = "RESTART_COMMAND is no command: a quote is not closed"
    with pytest.raises(LegacyStartupError, match=sentence), running("legacy", tmp_path, RESTART_COMMAND="sh -c 'exit"):
        pass
    with pytest.raises(StartupError, match=sentence):
        Settings.load({"RESTART_COMMAND": "'", "DATA_PATH": f"{tmp_path}/data", "LIBRARY_PATH": f"{tmp_path}/library"})


# --- programs that answer otherwise ------------------------------------------------------------------------------


def test_what_systemd_says_about_the_unit_is_told(name: str, tmp_path: Path) -> None:
    program(tmp_path / "bin", "systemctl", f'echo "$@" > {tmp_path}/asked; echo ActiveState=active')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    with running(name, tmp_path, SERVICE_UNIT="music.service", PATH=path) as side:
        told = side("/admin/system/status/service").json
        assert ("systemd", "music.service", "active") == (told["type"], told["unit"], told["state"])
        assert "show --property=ActiveState -- music.service\n" == (tmp_path / "asked").read_text()
        assert (os.getpid(), sys.version.split()[0]) == (told["pid"], told["python"])
        assert 1_000_000 < told["memory_bytes"] < 10**11


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "head -c 100000 /dev/urandom", "kill -9 $$"])
def test_without_the_programs_less_is_told_but_nothing_fails(name: str, tmp_path: Path, script: str) -> None:
    for tool in ("systemctl", "ps", "df", "du"):
        program(tmp_path / "bin", tool, script)
    with running(name, tmp_path, SERVICE_UNIT="music.service", PATH=f"{tmp_path}/bin:{os.environ['PATH']}") as side:
        told = side("/admin/system/status/service")
        assert (200, "process", "running") == (told.status, told.json["type"], told.json["state"])
        assert told.json["memory_bytes"] is None
        check_disk(side)
    with running(name, tmp_path / "b", SERVICE_UNIT="music.service", PATH="/nowhere") as side:
        told = side("/admin/system/status/service")
        assert (200, "process", None) == (told.status, told.json["type"], told.json["memory_bytes"])
        check_disk(side)


def test_disk_by_du_and_df(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        check_disk(side)


def check_disk(side: Side) -> None:
    """What is told agrees with the files that are there."""
    library = side.home / "library"
    for folder, size in {"a": 100_000, "b": 300_000, "é\udcff": 200_000}.items():
        (library / folder / "deep").mkdir(parents=True, exist_ok=True)
        (library / folder / "deep/file").write_bytes(b"x" * size)
    (library / "link").symlink_to("/")
    answer = side("/admin/system/disk")
    assert (200, 3) == (answer.status, answer.json["count"])
    assert ["library", "data", "downloads"] == [root["name"] for root in answer.json["roots"]]
    root = answer.json["roots"][0]
    known = os.statvfs(library)
    assert (str(library), known.f_blocks * known.f_frsize) == (root["path"], root["total"])
    assert 0 < root["free"] <= root["total"] - root["used"]
    sizes = {it["name"]: it["bytes"] for it in root["directories"]}
    folders = 16_384  # what du may count for the folders themselves
    for folder, size in {"a": 100_000, "b": 300_000, "é\ufffd": 200_000}.items():
        assert size <= sizes[folder] <= size + folders
    assert "link" not in sizes
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    everything = sum(path.lstat().st_size for path in library.rglob("*") if path.is_symlink() or not path.is_dir())
    assert everything <= root["size"] <= everything + 20 * folders


def test_only_the_twenty_largest_directories_are_told(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        for number in range(30):
            folder = tmp_path / f"downloads/{number:02}"
            folder.mkdir()
            (folder / "file").write_bytes(b"x" * 20_000 * number)
        told = side("/admin/system/disk").json["roots"][2]["directories"]
        assert [f"{number:02}" for number in range(29, 9, -1)] == [it["name"] for it in told]


def test_sizes_that_take_too_long_are_unknown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "du", "exec sleep 600")
    for module in (fastapi_app.system, legacy_flask.system):
        monkeypatch.setattr(module, "PROGRAM_S", 0.2)
    with running(name, tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}") as side:
        roots = side("/admin/system/disk").json["roots"]
        assert [(None, [])] * 3 == [(root["size"], root["directories"]) for root in roots]
        assert all(root["total"] > 0 for root in roots)


def test_a_root_that_is_gone_is_503(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        shutil.rmtree(tmp_path / "downloads")
        assert (503, {"error": "The disk cannot be read"}) == side("/admin/system/disk")[:2]


# --- the log -----------------------------------------------------------------------------------------------------


def test_warnings_are_appended_in_one_line_each(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        side.warn("first\nsecond\r\n\x1b[31m\u2028third é")
        (line,) = side.log
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING \w+: (.*)", line)
        assert line.endswith(r": first\x0asecond\x0d\x0a\x1b[31m\x2028third é")
        assert [line] == side("/admin/system/logs/recent").json["lines"]
        side.warn("x" * 5000)
        wait_until(lambda: len(side.log) == 2, "the second line")
        assert 2000 == len(side.log[1])


def test_an_exception_is_told_by_kind_and_place_not_by_its_text(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        try:
            int("hunter2")
        except ValueError:
            side.warn("it failed", exc_info=True)
        assert re.search(r"WARNING \w+: it failed \[ValueError in test_system\.py:\d+\]$", side.log[0])


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("GET https://user:hunter2@host/path", "GET https://***@host/path"),
        ("https://api/x?key=hunter2&q=a", "https://api/x?key=***&q=a"),
        ("{'api_key': 'hunter2', 'q': 'a'}", "{'api_key': ***, 'q': 'a'}"),
        ('{"client_secret": "hunter2 b", "q": 1}', '{"client_secret": ***, "q": 1}'),
        ("Authorization: Bearer hunter2 end", "Authorization: *** end"),
        ("Authorization: Basic aHVudGVyMg==", "Authorization: ***"),
        ("password=hunter2", "password=***"),
        ("X-Webhook-Signature: hunter2", "X-Webhook-Signature: ***"),
        ("mysql+pymysql://root:hunter2@127.0.0.1/x", "mysql+pymysql://***@127.0.0.1/x"),
        ("the key is missing", "the key is missing"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_secrets_are_not_logged(name: str, tmp_path: Path, message: str, logged: str) -> None:
    modules: dict[str, Callable[[str], str]] = {
        "legacy": legacy_flask.logs.without_secrets,
        "port": fastapi_app.logs.without_secrets,
    }
    assert logged == modules[name](message)


def test_what_fails_in_a_request_is_in_the_log(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        side._legacy.extensions["engine"].dispose()
        (tmp_path / "app.sqlite3").rename(tmp_path / "away")
        (tmp_path / "app.sqlite3").mkdir()
        for path in tmp_path.glob("app.sqlite3-*"):
            path.unlink()
        if name == "port":
            side.loop.run(side.port.state.database.dispose())
        assert 503 == side("/api/users/me").status
        assert any(" ERROR " in line and "database" in line for line in side.log)
        (tmp_path / "app.sqlite3").rmdir()
        (tmp_path / "away").rename(tmp_path / "app.sqlite3")


def test_a_log_that_is_moved_away_is_begun_anew_and_a_lost_folder_fails_nothing(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with (
        running(name, tmp_path, LOG_FILE=f"{folder}/here.log") as side,
        patch.object(logging, "raiseExceptions", False),
    ):
        log = folder / "here.log"
        side.warn("one")
        wait_until(lambda: log.read_text().endswith("one\n"), "the line")
        log.rename(folder / "old.log")
        side.warn("two")
        wait_until(lambda: log.exists() and log.read_text().endswith("two\n"), "the line")
        assert "one" not in log.read_text()
        log.unlink()
        (folder / "old.log").unlink()
        folder.rmdir()
        side.warn("three")
        assert (200, {"count": 0, "lines": []}) == side("/admin/system/logs/recent")[:2]
        folder.mkdir()
        side.warn("four")
        wait_until(lambda: log.exists() and log.read_text().endswith("four\n"), "the line")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_no_log_and_nobody_waits_for_it(name: str, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "data/app.log"
    with running(name, tmp_path) as side:
        log.unlink()
        if kind == "folder":
            log.mkdir()
        elif kind == "pipe":
            os.mkfifo(log)
        else:
            log.symlink_to("/dev/zero")
        assert (503, {"error": "The log file cannot be read"}) == side("/admin/system/logs/recent")[:2]


def test_of_a_log_of_100_mb_only_the_end_is_read(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as side:
        with (tmp_path / "data/app.log").open("wb") as log:
            log.truncate(100_000_000)  # one line of zeros
            log.seek(0, os.SEEK_END)
            log.write(b"\nlast\n")
        before = peak_memory()
        answer = side("/admin/system/logs/recent?lines=1000")
        assert (200, 2, "last") == (answer.status, answer.json["count"], answer.json["lines"][1])
        assert {"\0"} == set(answer.json["lines"][0])
        assert peak_memory() - before < 50_000_000


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_log_that_cannot_be_written_keeps_it_from_starting(tmp_path: Path) -> None:
    sentence = re.escape(f"The log file {tmp_path}/no/app.log cannot be written: No such file or directory")
    with (
        pytest.raises(LegacyStartupError, match=sentence),
        running("legacy", tmp_path, LOG_FILE=f"{tmp_path}/no/app.log"),
    ):
        pass
    script = "import asyncio, fastapi_app\nfrom tests.support.asgi import Lifespan\nasync def main():\n"
    script += "    async with Lifespan(fastapi_app.create_app()) as life: print(life.failed)\nasyncio.run(main())"
    env = {
        **os.environ,
        "DATA_PATH": f"{tmp_path}/data",
        "LIBRARY_PATH": f"{tmp_path}/library",
        "LOG_FILE": f"{tmp_path}/no/app.log",
    }
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert re.search(sentence, run.stdout), run.stderr
