"""The processes that serve: one, or a supervisor and its workers."""

import copy
import errno
import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from multiprocessing import connection, parent_process
from threading import Thread, Timer
from types import FrameType
from typing import Any

import uvicorn
from typing_extensions import override
from uvicorn.config import LOG_LEVELS, LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process, logger

from .errors import ConfigError, GatewayError
from .keys import own_secret
from .protocol import Config, GatewayProtocol
from .settings import Settings

__all__ = ["GatewayProtocol", "serve"]

BACKLOG = 2048
WRONG = 2  # exit code: something that was configured cannot work
TICK_S = 0.1  # between two looks of the supervisor; a dead worker wakes it at once
AGAIN_S = 0.5  # a signal repeated sooner is the same wish, come twice: from the terminal and from a parent
STUCK_S = 5.0  # for threads and shutdown hooks after the drain, then the process ends anyway
HUNG_S = 30.0  # a worker that answers no ping for so long is replaced
MAX_PAUSE_S = 30.0  # between attempts to replace a worker that does not start


def serve(settings: Settings, *, factory: str = "gateway.app:create_app") -> int:
    """Serve until SIGTERM or SIGINT and return the exit code: 0, or 2 when a worker could not start.

    `factory` names what makes the ASGI application in each worker; it reads its settings from `GATEWAY_*` variables,
    which are set here. Raises ConfigError for an address that cannot be listened on, GatewayError from the factory.
    """
    config = _config(settings, factory)
    with _listen(settings.host, settings.port) as listener:
        os.environ.update(environment(settings))
        if settings.workers > 1:
            os.environ["GATEWAY_SECRET_KEY"] = own_secret(settings).decode()  # one for all, even where none can be kept
            return Supervisor(config, [listener]).supervise()
        try:
            config.load()
            Server(config).run([listener])
        except SystemExit as stop:  # uvicorn has said why
            return WRONG if stop.code else 0
        except KeyboardInterrupt:  # while the applications were loading
            pass
        return 0


def environment(settings: Any, prefix: str = "GATEWAY_") -> dict[str, str]:
    """`settings` as the variables from which `Settings.load` makes them again."""
    variables: dict[str, str] = {}
    for field in fields(settings):
        name, value = prefix + field.name.upper(), getattr(settings, field.name)
        if field.name == "identity":
            variables |= environment(value, f"{name}_")
        elif isinstance(value, Mapping):
            variables[name] = ",".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, tuple):
            variables[name] = ",".join(value)
        else:
            variables[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return variables


def _config(settings: Settings, factory: str) -> Config:
    if settings.workers < 1:
        raise ConfigError(f"workers: expected 1 or more, not {settings.workers}")
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"port: expected 0 to 65535, not {settings.port}")
    if settings.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level: expected one of {', '.join(LOG_LEVELS)}, not {settings.log_level!r}")
    logs = copy.deepcopy(LOGGING_CONFIG)
    logs["loggers"]["gateway"] = {"handlers": ["default"], "level": settings.log_level.upper(), "propagate": False}
    return Config(
        settings,
        factory,
        factory=True,
        interface="asgi3",
        loop="uvloop",
        lifespan="on",
        log_config=logs,
        log_level=settings.log_level,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=settings.workers,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
        reset_contextvars=True,  # https://github.com/python/cpython/issues/140947: one client would see another's
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: others see at once that the port is taken, clients wait for the first worker."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"cannot listen on {where}: {host!r} is not a known host") from None
    family, kind, protocol, _, address = min(places, key=lambda place: place[0] != socket.AF_INET)  # localhost is both
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        number = error.errno or 0
        raise ConfigError(f"cannot listen on {where}: {_WHY.get(number) or os.strerror(number)}") from None
    return listener


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    logger.info("Listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)


_WHY = {
    errno.EADDRINUSE: "in use by another process",
    errno.EADDRNOTAVAIL: "this machine does not have the address",
    errno.EACCES: "this user may not (ports below 1024 are for root)",
}


class Server(uvicorn.Server):
    """uvicorn's server, which ends in the time and with the exit code that were agreed."""

    _asked_at = 0.0

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.on_tick(0)  # the first answer has a Date, too
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # both applications live as long as the process: no collection need look at them again
        if self.started and sockets and parent_process() is None:
            _announce(sockets[0])

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain and exit with 0; the same wish once more means at once. uvicorn would end by the signal."""
        now = time.monotonic()
        if not self.should_exit:
            self.should_exit, self._asked_at = True, now
            limit = Timer((self.config.timeout_graceful_shutdown or 0) + STUCK_S, os._exit, [0])
            limit.daemon = True
            limit.start()
        elif parent_process() is None and now - self._asked_at > AGAIN_S:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)


class Worker(Process):
    """One process of several."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.ready = False  # whether it has ever said that it serves
        self.asked_at = 0.0  # when the ping went out that is not answered yet

    @override
    def target(self, sockets: list[socket.socket] | None = None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until uvicorn listens to it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        Thread(target=_follow_supervisor, daemon=True).start()
        try:
            self.config.load()
        except GatewayError as error:
            print(f"gateway: {error}", file=sys.stderr, flush=True)
            sys.exit(WRONG)
        self._server = Server(self.config)
        super().target(sockets)

    def ask(self, now: float) -> None:
        """Send a ping when the last one is answered. Never waits."""
        while self.parent_conn.poll():
            self.ready = self.parent_conn.recv() or self.ready
            self.asked_at = 0.0
        if not self.asked_at:
            self.parent_conn.send(b"ping")
            self.asked_at = now

    def hangs(self, now: float) -> bool:
        return self.ready and now - self.asked_at > HUNG_S


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which never blocks. The first worker starts alone: what stops it would stop them all."""

    processes: list[Worker]  # type: ignore[assignment]

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.leaving: list[Worker] = []  # told to stop, finishing their requests
        self.exit_code = 0
        self.pause_s = 0.0  # before the next attempt to replace a worker
        self.not_before = 0.0

    def supervise(self) -> int:
        """Run until told to stop, or until no worker serves and none can start. Returns the exit code."""
        self.processes = [self._spawn()]
        if self._wait_until_ready(self.processes[0]):
            _announce(self.sockets[0])
        while not self.should_exit.is_set():
            self.keep_subprocess_alive()
            connection.wait([worker.process.sentinel for worker in self.processes], TICK_S)
            self.handle_signals()
        self._stop()
        return self.exit_code

    @override
    def keep_subprocess_alive(self) -> None:
        now = time.monotonic()
        for worker in tuple(self.processes):
            if worker.process.is_alive():
                worker.ask(now)
                if not worker.hangs(now):
                    continue
            worker.kill()
            worker.join()
            self.processes.remove(worker)
            self._mourn(worker, now)
        self.leaving = [worker for worker in self.leaving if worker.process.is_alive()]
        while len(self.processes) < self.processes_num and now >= self.not_before and not self.should_exit.is_set():
            self.processes.append(self._spawn())

    def _mourn(self, worker: Worker, now: float) -> None:
        """Decide when, if at all, there will be another one."""
        logger.error("Worker [%s] ended with %s", worker.pid, worker.exitcode)
        if worker.ready:
            self.pause_s = 0.0
        elif self.processes:
            self.pause_s = min(2 * self.pause_s or 1.0, MAX_PAUSE_S)
        else:
            self.exit_code = WRONG if worker.exitcode in (WRONG, STARTUP_FAILURE) else 1
            self.should_exit.set()
        self.not_before = now + self.pause_s

    def _spawn(self) -> Worker:
        worker = Worker(self.config, self.sockets)  # type: ignore[arg-type]
        # Ctrl-C reaches the whole terminal: a child that still imports would end with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return worker

    def _wait_until_ready(self, worker: Worker) -> bool:
        while worker.process.is_alive() and not worker.ready:
            connection.wait([worker.process.sentinel], TICK_S)
            if signal.SIGINT in self.signal_queue or signal.SIGTERM in self.signal_queue:
                break
            worker.ask(time.monotonic())
        return worker.ready

    def _stop(self) -> None:
        """Let all finish what they do, within the drain; a signal that comes again ends them at once."""
        self.terminate_all()
        asked_at = time.monotonic()
        limit_s = (self.config.timeout_graceful_shutdown or 0) + 2 * STUCK_S
        while alive := [worker for worker in (*self.processes, *self.leaving) if worker.process.is_alive()]:
            waited_s = time.monotonic() - asked_at
            if waited_s < AGAIN_S:
                self.signal_queue.clear()
            elif self.signal_queue or waited_s > limit_s:
                self.exit_code = 1
                for worker in alive:
                    worker.kill()
            connection.wait([worker.process.sentinel for worker in alive], TICK_S)

    def _retire(self, worker: Worker) -> None:
        worker.terminate()
        self.leaving.append(worker)

    @override
    def restart_all(self) -> None:
        """Replace one worker after the other; the old one leaves when the new one serves."""
        for place, old in enumerate(self.processes):
            new = self._spawn()
            if not self._wait_until_ready(new):
                logger.error("Worker [%s] did not start, the restart ends here", new.pid)
                new.kill()
                new.join()
                return
            self.processes[place] = new
            self._retire(old)

    @override
    def handle_ttin(self) -> None:
        self.processes_num += 1

    @override
    def handle_ttou(self) -> None:
        if self.processes_num > 1:
            self.processes_num -= 1
            self._retire(self.processes.pop())


def _follow_supervisor() -> None:
    """Stop, in good order, when the supervisor is gone, however it went."""
    if (supervisor := parent_process()) is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)
