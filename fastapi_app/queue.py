"""The way to the workers: a job waits in Redis, in the queue of its kind, until a worker takes it (see `worker`).

What is to be done is in the rows of the database. A job in Redis only names one, so losing it costs time, not work: the
leader puts it there again. Redis has half a second for an answer.
"""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, Protocol

import rq
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from .http import ApiError

ANSWER_S = 0.5
RETRY_AFTER_S = 5
KEEP_S = 3600  # what is over stays so long in Redis; its row stays
NO_LIMIT = -1
SPARE_S = 60  # after its time-out work should have ended by itself

log = logging.getLogger("fastapi_app")


class Place(Protocol):
    """What the queue must know of a kind of work."""

    @property
    def queue(self) -> str: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def has_rows(self) -> bool:
        """Whether each job is a row of its own; of the others one waits at a time, which does all there is."""


class Queue:
    """Usable from several loops. Without a URL nothing can be put."""

    def __init__(self, url: str, kinds: Mapping[str, Place]) -> None:
        """Connects to nothing yet. Raises ValueError for what is no URL of a Redis."""
        self._kinds, self._redis = kinds, connect(url) if url else None
        self._threads = ThreadPoolExecutor(4, "queue")
        self._asked: asyncio.Future[bool] | None = None
        self._put = self._failed = self._refused = 0

    async def check(self) -> None:
        """Raises ApiError 503 when nothing can be put now."""
        if not await self.answers():
            self._refused += 1
            raise ApiError(503, "The job queue is not available", {"Retry-After": str(RETRY_AFTER_S)})

    async def answers(self) -> bool:
        """Whether Redis is there. All who ask at one time share the answer."""
        if self._redis is None:
            return False
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().run_in_executor(self._threads, self._ping)
        return await asyncio.shield(self._asked)

    async def put(self, kind: str, job_id: str = "") -> bool:
        """To be called after the commit of the row; whether it worked. Never raises."""
        if self._redis is None:
            return False
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.put_now, kind, job_id)

    def put_now(self, kind: str, job_id: str = "") -> bool:
        """Like `put`. Blocks."""
        try:
            self._enqueue(kind, job_id)
        except (RedisError, OSError) as error:
            self._failed += 1
            log.warning("a job could not be put into the queue, which is done later: %s", type(error).__name__)
            return False
        self._put += 1
        return True

    def waiting(self) -> set[str]:
        """The ids of all jobs that wait. Blocks. Raises RedisError."""
        names = {kind.queue for kind in self._kinds.values()}
        return {job_id for name in names for job_id in self._open(name).get_job_ids()}

    async def seen(self) -> dict[str, Any]:
        """What is in Redis: `redis` (up, down, not configured), `queues` and `workers`, by name."""
        if self._redis is None:
            return {"redis": "not configured", "queues": [], "workers": []}
        return await asyncio.get_running_loop().run_in_executor(self._threads, _see, self._redis)

    def statistics(self) -> dict[str, float]:
        """Of this process."""
        return {"put_total": self._put, "failed_total": self._failed, "refused_total": self._refused}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._redis is not None:
            self._redis.close()

    def _ping(self) -> bool:
        try:
            return bool(self._redis is not None and self._redis.ping())
        except (RedisError, OSError):
            return False

    def _enqueue(self, kind: str, job_id: str) -> None:
        place = self._kinds[kind]
        queue, limit = self._open(place.queue), NO_LIMIT if place.timeout_s is None else int(place.timeout_s) + SPARE_S
        common: dict[str, Any] = {"timeout": limit, "result_ttl": 0, "failure_ttl": KEEP_S, "description": kind}
        if place.has_rows:
            queue.enqueue_call("fastapi_app.working.work_on", [job_id], job_id=job_id, **common)
        elif not any(waits.startswith(f"{kind}-") for waits in queue.get_job_ids()):
            queue.enqueue_call("fastapi_app.working.run", [kind], job_id=f"{kind}-{rq.utils.now():%H%M%S%f}", **common)

    def _open(self, name: str) -> rq.Queue:
        return rq.Queue(name, connection=self._redis, serializer=JSONSerializer)


def _see(redis: Redis) -> dict[str, Any]:
    try:
        queues = [{"name": queue.name, "waiting": queue.count} for queue in rq.Queue.all(redis)]
        workers = [_worker_json(worker) for worker in rq.Worker.all(redis, serializer=JSONSerializer)]
    except (RedisError, OSError):
        return {"redis": "down", "queues": [], "workers": []}
    return {
        "redis": "up",
        "queues": sorted(queues, key=itemgetter("name")),
        "workers": sorted(workers, key=itemgetter("name")),
    }


def _worker_json(worker: BaseWorker) -> dict[str, Any]:
    seen_at = worker.last_heartbeat
    return {
        "name": worker.name,
        "host": worker.hostname,
        "state": str(getattr(worker.get_state(), "value", worker.get_state())),
        "queues": worker.queue_names(),
        "job_id": worker.get_current_job_id(),
        "completed": worker.successful_job_count,
        "failed": worker.failed_job_count,
        "seen_at": seen_at.replace(tzinfo=None).isoformat() if seen_at else None,
    }


def connect(url: str) -> Redis:
    """Raises ValueError for what is no URL of a Redis."""
    limits: dict[str, Any] = {"socket_connect_timeout": ANSWER_S, "socket_timeout": ANSWER_S}
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits)
