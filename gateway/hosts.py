"""What do several hosts share? Flags, acknowledgements, sums and one leader, through Redis (or Valkey), from 5 on.

Redis is the truth: it holds one numbered revision of the flag file, and each host keeps a copy as its own file. An
edit is a compare-and-set of that revision; the news goes to all hosts over a channel, and with the answer to every
heartbeat, should a message be lost. Every worker talks to Redis in one thread of its own, never on the event loop.

Without Redis each host goes on with the flags it has. Nobody leads then, so ramps are frozen; an edit takes effect on
its host alone and is shared when Redis is back, unless somebody else was faster.
"""

import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

from .audit import Event
from .errors import ConfigError, FlagConflict, NotShared
from .flagfile import printable
from .settings import Settings

Redis = Any  # redis-py's own types say "bytes or str, now or later" of every answer
T = TypeVar("T")

BEAT_S = 1.0  # between heartbeats, each with this worker's acknowledgement
STALE_S = 3.0  # after its last heartbeat a worker counts as gone
LEASE_S = 3.0  # after which a leader that is silent has a successor
ANSWER_S = 0.9  # for one question to Redis; an edit asks two
FORGET_S = 30 * 24 * 3600.0  # after which the sums of a host that is gone count no more

log = logging.getLogger(__name__)

_WAKE_S = 0.1  # between looks for what this worker has to tell
_TURN_S = 0.5  # how long one edit waits for others
_STRIKE_S = 60.0  # between looks for what can be forgotten
_WANTED_S = 2.0  # how long one wish to lead lasts
_MARGIN_S = 0.5  # a leader stops that long before Redis would let another one begin
_BACK_OFF_S = (0.1, 2.0)  # first and longest pause between attempts to connect
_KEYS = {name: f"{{gateway}}:{name}" for name in ("flags", "workers", "sums", "lease", "fence", "news", "turn")}

# KEYS flags, fence, news. ARGV expected revision, fencing token or 0, then the fields of the new revision.
_PUBLISH = """
local current = tonumber(redis.call('HGET', KEYS[1], 'revision') or 0)
local token = tonumber(ARGV[2])
if token > 0 and token ~= tonumber(redis.call('GET', KEYS[2]) or 0) then return 'fenced' end
if current ~= tonumber(ARGV[1]) then return 'stale' end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PUBLISH', KEYS[3], redis.call('HGET', KEYS[1], 'revision'))
return 'done'
"""
# KEYS flags, workers, sums. ARGV worker, its report, host, its sums or ''. By the clock of Redis: hosts disagree.
_BEAT = """
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
redis.call('HSET', KEYS[2], ARGV[1], now .. ' ' .. ARGV[2])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], now .. ' ' .. ARGV[4]) end
return tonumber(redis.call('HGET', KEYS[1], 'revision') or 0)
"""
# KEYS lease, fence. ARGV who, milliseconds. The fencing token of the holder; 0 for anybody else.
_LEASE = """
local holder = redis.call('GET', KEYS[1])
if not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
  return redis.call('INCR', KEYS[2])
end
if holder ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(redis.call('GET', KEYS[2]) or 0)
"""
# KEYS lease or turn. ARGV who.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of the flag file that all hosts shall have."""

    number: int
    version: str
    text: str
    before: str  # the version it was made from
    events: tuple[Event, ...]  # what changed, by whom and why
    host: str  # where


@dataclass(frozen=True, slots=True)
class Copy:
    """The last revision that was this host's flag file."""

    number: int = 0
    version: str = ""


class Overtaken(FlagConflict):
    """Raised by an edit that another host came before."""


class Course(Enum):
    """How a host's flag file and the shared revision come together."""

    KEEP = "keep"
    TAKE = "take"  # the file is a copy of an older revision
    REFUSE = "refuse"  # the file was changed on the basis of an older revision: take the newer one, say so
    PUBLISH = "publish"  # the file was changed on the basis of the current revision, or Redis has lost that one


def course(version: str, copy: Copy, shared: Revision | None) -> Course:
    """What to do on a host whose file says `version` and was last `copy`."""
    if shared is None:
        return Course.PUBLISH
    if version == shared.version:
        return Course.KEEP
    if shared.number < copy.number:
        return Course.PUBLISH
    if version == copy.version:
        return Course.TAKE
    return Course.PUBLISH if shared.number == copy.number else Course.REFUSE


@dataclass(frozen=True, slots=True)
class HostWorker:
    """One live worker process of one host, and the flags that it runs."""

    host: str
    pid: int
    version: str
    rejected: str
    started_at: float  # seconds since the epoch, by the clock of its host
    seen_at: float  # by the clock of Redis


class Hosts:
    """This host's part in the group. Opens nothing before it is asked to; between `start` and `close` it takes part.

    Raises ConfigError for a URL that is none, and where redis-py is not installed.
    """

    def __init__(self, url: str, state: Path) -> None:
        self._redis, self._errors = _client(url)
        self._state = state
        self.host = _name(state)
        self._who = f"{self.host}/{os.getpid()}/{secrets.token_hex(4)}"
        self._started_at = time.time()
        self._report = ("", "")
        self._sums = ""
        self._wanted_until, self._token, self._lease_until = 0.0, 0, 0.0
        self._follow: Callable[[], None] | None = None
        self._followed = -1  # the revision that this worker has looked at
        self._silent_until = 0.0  # what a process that does not take part has found out
        self._strike_at = 0.0
        self._stirred, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-hosts", daemon=True)
        self.trouble = ""  # why nothing is shared; empty: Redis answers

    @classmethod
    def of(cls, settings: Settings) -> "Hosts | None":
        """The group that `state = "redis://…"` names; None: there is one host, and nothing of this is needed."""
        return cls(settings.redis, settings.state_dir) if settings.redis else None

    def start(self, follow: Callable[[], None]) -> None:
        """Take part: `follow` is called in the thread of this object for each new revision, and may use it."""
        self._follow = follow
        self._thread.start()

    def close(self) -> None:
        """Give up the lease and leave."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(3 * ANSWER_S)

    # --- flags

    def fetch(self) -> Revision | None:
        """The current revision; None if there is none yet. Raises NotShared."""
        values = self._ask(lambda redis: redis.hgetall(_KEYS["flags"]))
        return _revision(values) if values else None

    def publish(self, revision: Revision, expected: int, fence: int = 0) -> None:
        """Make `revision` the current one, if `expected` still is. Raises FlagConflict, also for a leader of yesterday.

        Raises NotShared when Redis does not answer; whether it has heard the question, nobody knows then.
        """
        fields = {
            "revision": revision.number,
            "version": revision.version,
            "text": revision.text,
            "before": revision.before,
            "events": json.dumps([asdict(event) for event in revision.events]),
            "host": revision.host,
        }
        values = [expected, fence, *(part for item in fields.items() for part in item)]
        answer = self._ask(lambda redis: redis.eval(_PUBLISH, 3, *_keys("flags", "fence", "news"), *values))
        if answer == "fenced":
            raise FlagConflict("this leader's lease has ended: another one has taken over")
        if answer == "stale":
            raise Overtaken("another host was faster: try again")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let the edits of several hosts take turns. A courtesy, lest anybody starve; `publish` is what decides."""

        def take(redis: Redis) -> bool:
            return bool(redis.set(_KEYS["turn"], self._who, nx=True, px=int(2000 * _TURN_S)))

        with suppress(NotShared):
            give_up_at = time.monotonic() + _TURN_S
            while not self._ask(take) and time.monotonic() < give_up_at:
                time.sleep(random.uniform(0, 0.01))  # noqa: S311  # not all at once
        try:
            yield
        finally:
            with suppress(NotShared):
                self._ask(lambda redis: redis.eval(_RELEASE, 1, *_keys("turn"), self._who))

    @property
    def copy(self) -> Copy:
        """The last revision that was this host's file. For whoever has locked the file."""
        try:
            values = json.loads((self._state / "revision.json").read_bytes())
            return Copy(int(values["number"]), str(values["version"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Copy()

    def keep(self, copy: Copy) -> None:
        """Note that the file is this revision now. What fails is logged: the next comparison finds it out again."""
        try:
            if copy != self.copy:
                _write(self._state / "revision.json", json.dumps(asdict(copy)))
        except OSError as error:
            log.warning("hosts: %s: revision %s is not noted: %s", self._state, copy.number, error.strerror)

    def stir(self) -> None:
        """The file was changed here: have it followed soon, by this worker's thread."""
        self._followed = -1
        self._stirred.set()

    # --- workers and sums

    def seen(self, version: str, rejected: str = "") -> None:
        """Report which flags this worker runs: to all hosts within 0.1 s, and with every heartbeat from now on."""
        self._report = version, rejected
        self._stirred.set()

    def share(self, sums: Mapping[str, Any]) -> None:
        """Give the others this host's sums: numbers, and lists and mappings of them. Only its leader calls this."""
        self._sums = json.dumps(sums)

    def workers(self) -> list[HostWorker]:
        """The live workers of all hosts. Raises NotShared."""
        now, rows = self._ask(lambda redis: (_now(redis), redis.hgetall(_KEYS["workers"])))
        workers = []
        for name, row in rows.items():
            seen_at, report = _stamped(row)
            host, pid, *_ = name.rsplit("/", 2)
            if now - seen_at < STALE_S:
                workers.append(HostWorker(host=host, pid=int(pid), seen_at=seen_at, **report))
        return sorted(workers, key=lambda worker: (worker.host, worker.pid))

    def sums(self) -> dict[str, Any]:
        """The last sums of every host, dead or alive, by host. Raises NotShared."""
        rows = self._ask(lambda redis: redis.hgetall(_KEYS["sums"]))
        return {host: _stamped(row)[1] for host, row in rows.items()}

    # --- the leader

    def contend(self) -> None:
        """Want to lead all hosts for the next two seconds: a job for whoever leads this one, several times a second."""
        idle = time.monotonic() > self._wanted_until
        self._wanted_until = time.monotonic() + _WANTED_S
        if idle:
            self._stirred.set()

    def held(self) -> bool:
        """Whether this worker leads all hosts right now. By a clock that nobody can set."""
        return time.monotonic() < self._lease_until

    @property
    def token(self) -> int:
        """What the leader's edits carry, so that those of an older leader are refused; 0: this is not the leader."""
        return self._token if self.held() else 0

    # --- the thread

    def _run(self) -> None:
        pause_s, longest_s = _BACK_OFF_S
        while not self._closed.is_set():
            try:
                self._take_part()
            except self._errors as error:
                pause_s = pause_s if self.trouble else _BACK_OFF_S[0]
                self._lost(error)
            except Exception:
                log.exception("hosts: the thread goes on")
            self._closed.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # all hosts come back at once otherwise
            pause_s = min(2 * pause_s, longest_s)
        try:
            self._leave()
        except self._errors as error:
            log.debug("hosts: %s", error)

    def _take_part(self) -> None:
        """Beat, listen and follow, until Redis is lost or this worker stops."""
        with self._redis.pubsub(ignore_subscribe_messages=True) as news:
            news.subscribe(_KEYS["news"])
            while not self._closed.is_set():
                self._stirred.clear()
                number = self._beat()
                if self.trouble:
                    log.warning("hosts: Redis answers again")
                    self.trouble, self._followed = "", -1
                self._renew()
                if number != self._followed and self._follow:
                    self._followed = number  # before: who edits the file meanwhile stirs again
                    self._follow()
                    self._stirred.set()  # acknowledge
                self._listen(news)

    def _listen(self, news: Any) -> None:
        """Return when it is time for the next heartbeat: there is news, something to tell, or nothing for long."""
        due = time.monotonic() + BEAT_S
        while time.monotonic() < due and not (self._stirred.is_set() or self._closed.is_set()):
            if news.get_message(timeout=_WAKE_S):
                return

    def _beat(self) -> int:
        version, rejected = self._report
        report = {"version": version, "rejected": rejected, "started_at": self._started_at}
        leads_its_host = time.monotonic() <= self._wanted_until  # else its sums are old, and another worker's are not
        values = [self._who, json.dumps(report), self.host, self._sums if leads_its_host else ""]
        return int(self._redis.eval(_BEAT, 3, *_keys("flags", "workers", "sums"), *values))

    def _renew(self) -> None:
        """Take, renew or give up the lease. It is counted from before the question: Redis counts from after."""
        if time.monotonic() > self._wanted_until:
            if self._token:
                self._resign()
            return
        asked = time.monotonic()
        token = int(self._redis.eval(_LEASE, 2, *_keys("lease", "fence"), self._who, int(1000 * LEASE_S)))
        if token and token != self._token:
            log.info("hosts: %s leads all hosts, token %s", self._who, token)
        self._token = token
        self._lease_until = asked + LEASE_S - _MARGIN_S if token else 0.0
        if token and asked >= self._strike_at:
            self._strike_at = asked + _STRIKE_S
            self._strike_out()

    def _strike_out(self) -> None:
        """What the leader clears away: workers that are gone, and sums that are older than anybody's rollout."""
        now = _now(self._redis)
        for key, limit_s in ((_KEYS["workers"], 10 * STALE_S), (_KEYS["sums"], FORGET_S)):
            gone = [name for name, row in self._redis.hgetall(key).items() if now - _stamped(row)[0] > limit_s]
            if gone:
                self._redis.hdel(key, *gone)

    def _resign(self) -> None:
        self._token, self._lease_until = 0, 0.0
        self._redis.eval(_RELEASE, 1, *_keys("lease"), self._who)

    def _leave(self) -> None:
        if self.trouble:
            return
        if self._token:
            self._resign()
        self._redis.hdel(_KEYS["workers"], self._who)
        self._redis.close()

    def _lost(self, error: Exception) -> None:
        if not self.trouble:
            log.error("hosts: %s; the flags stay, ramps are frozen", _sentence(error))
        self.trouble = _sentence(error)

    # --- questions of other threads

    def _ask(self, question: Callable[[Redis], T]) -> T:
        """The answer of Redis, or NotShared within ANSWER_S: at once while the thread knows that nobody answers.

        In a thread, since nothing else bounds the time that looking up a name may take.
        """
        if threading.current_thread() is not self._thread:
            if self.trouble and self._thread.is_alive():
                raise NotShared(self.trouble)
            if time.monotonic() < self._silent_until:
                raise NotShared("Redis does not answer")
        answer = _Answer(question, self._redis, self._errors)
        threading.Thread(target=answer.get, name="gateway-hosts-ask", daemon=True).start()
        if not answer.ready.wait(ANSWER_S):
            answer.error = NotShared(f"Redis does not answer within {ANSWER_S:g} s")
        if isinstance(answer.error, NotShared):
            self._silent_until = time.monotonic() + ANSWER_S
        if answer.error:
            raise answer.error
        return cast(T, answer.value)


@dataclass(slots=True)
class _Answer:
    question: Callable[[Redis], Any]
    redis: Redis
    errors: tuple[type[Exception], ...]
    ready: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: Exception | None = None

    def get(self) -> None:
        try:
            self.value = self.question(self.redis)
        except self.errors as error:
            self.error = NotShared(_sentence(error))
        except Exception as error:  # noqa: BLE001  # raised again where it was asked
            self.error = error
        self.ready.set()


def add_up(parts: Sequence[Any]) -> Any:
    """The sum of numbers, of lists place by place, of mappings name by name; of anything else the first."""
    first = parts[0] if parts else {}
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: add_up([part[name] for part in parts if name in part]) for name in names}
    if isinstance(first, list):
        return [add_up(column) for column in zip_longest(*parts, fillvalue=0)]
    return sum(parts) if isinstance(first, int | float) else first


def _client(url: str) -> tuple[Redis, tuple[type[Exception], ...]]:
    """A client that tries once and does not wait long, and the errors that it raises."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ConfigError(
            "state: several hosts need redis-py, which is not installed: pip install 'strangler-gateway[cluster]'"
        ) from None
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,
            socket_connect_timeout=ANSWER_S / 2,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
        )
        client.connection_pool.make_connection()  # opens nothing, but reads the options
    except (ValueError, TypeError) as error:
        raise ConfigError(f"state: not the URL of a Redis: {error}") from None
    return client, (redis.RedisError, OSError, NotShared)


def _keys(*names: str) -> list[str]:
    return [_KEYS[name] for name in names]


def _now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def _stamped(row: str) -> tuple[float, Any]:
    at, _, values = row.partition(" ")
    return float(at), json.loads(values)


def _revision(values: Mapping[str, str]) -> Revision:
    events = tuple(map(_event, json.loads(values["events"])))
    texts = {name: values[name] for name in ("version", "text", "before", "host")}
    return Revision(number=int(values["revision"]), events=events, **texts)


def _event(values: Mapping[str, Any]) -> Event:
    """As another release of this program may have written it."""
    return Event(**{name: values[name] for name in _EVENT_FIELDS if name in values})


_EVENT_FIELDS = [f.name for f in fields(Event)]


def _sentence(error: Exception) -> str:
    if isinstance(error, NotShared):
        return str(error)
    return f"Redis does not answer: {printable(str(error) or type(error).__name__)}"


def _name(state: Path) -> str:
    """What this host is called: its name, and something that tells apart two state directories on it."""
    path = state / "host"
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    with suppress(OSError):
        draft = path.with_name(f".host.{secrets.token_hex(8)}")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(name)
        try:
            path.hardlink_to(draft)  # whole, and by the first only
        finally:
            draft.unlink()
    with suppress(OSError):
        return path.read_text()
    return name


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")  # one writer at a time: who holds the lock of the flag file
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(text)
    draft.replace(path)
