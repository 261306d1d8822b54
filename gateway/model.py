"""The words everybody uses. Values only: nothing here reads a clock, a file or a socket.

Weights, shares and buckets are basis points (`_bp`): integers from 0 to 10 000, so that 12.34 % is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

FULL_BP = 10_000


class Backend(Enum):
    """Who can answer."""

    LEGACY = "legacy"
    FASTAPI = "fastapi"

    @property
    def other(self) -> "Backend":
        return Backend.FASTAPI if self is Backend.LEGACY else Backend.LEGACY


class Reason(Enum):
    """Why that backend: the first that applies, in this order."""

    UNMATCHED = "unmatched"  # Flask's map has no such rule: legacy says so in its own words
    NEW = "new"  # only FastAPI has it
    UNPORTED = "unported"  # FastAPI has no twin for this method
    OVERRIDE = "override"  # the panic switch
    HELD = "held"  # this worker's breaker
    ASKED = "asked"  # a trusted caller chose
    PINNED = "pinned"  # the flag names this subject
    STATIC = "static"  # weight 0 or 100
    SPLIT = "split"  # the subject's bucket


@dataclass(frozen=True, slots=True)
class Route:
    """One Flask endpoint and its FastAPI twin."""

    key: str
    rules: tuple[str, ...]
    methods: frozenset[str]
    ported: frozenset[str] = frozenset()  # methods that FastAPI answers; empty: not ported
    paired: Mapping[str, str] = field(default_factory=dict)  # method -> "name" or "path": how the twin was found


@dataclass(frozen=True, slots=True)
class Flag:
    """What an operator wants for one route. The default is legacy, unwatched."""

    key: str
    weight_bp: int = 0
    shadow_bp: int = 0
    cohort: str = ""
    pins: frozenset[str] = frozenset()
    ignore: tuple[str, ...] = ()
    rollout: str = ""
    shadow_writes: bool = False  # replay unsafe methods, too: in a transaction that is always rolled back

    @property
    def salt(self) -> str:
        """What buckets are salted with: routes of one cohort move the same subjects together."""
        return self.cohort or self.key

    @property
    def needs_subject(self) -> bool:
        """Whether deciding needs to know who asks."""
        return bool(self.pins) or 0 < self.weight_bp < FULL_BP


@dataclass(frozen=True, slots=True)
class Rollout:
    """A named plan of weight steps over time."""

    name: str
    steps_bp: tuple[int, ...]
    every_s: float
    min_requests: int = 200
    max_errors_bp: int = 100
    max_mismatches_bp: int = 10
    max_p95_ratio: float = 1.5
    drill_s: float = 0.0  # between rollback drills; 0: none


@dataclass(frozen=True, slots=True)
class FlagSet:
    """One version of the flag file; immutable, so that a reload cannot split a request."""

    version: str = ""
    override: Backend | None = None
    flags: Mapping[str, Flag] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    def __getitem__(self, key: str) -> Flag:
        """The flag of `key`; a route that nobody mentioned is legacy."""
        return self.flags.get(key) or Flag(key)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as a decision needs to know."""

    subject: str = ""  # "user:7", "key:3f…", "anon:9c…"; empty: nobody in particular
    asked: Backend | None = None  # set only for a trusted caller


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answers and why."""

    backend: Backend
    reason: Reason
    shadow: bool = False
    bucket_bp: int | None = None  # set when the reason is SPLIT


@dataclass(frozen=True, slots=True)
class Observation:
    """What one backend answered. Headers keep their order and their repetitions."""

    backend: Backend
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    duration_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two answers differ: `status`, `header.location`, `cookie.name.path`, `$.items[3].title`."""

    where: str
    control: object
    candidate: object


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row of a table before and after a request: `before` is None for an insert, `after` for a delete."""

    table: str
    key: tuple[object, ...]  # its primary key, in the order of the table
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None


class Outcome(Enum):
    """What became of one request that was to be replayed. Only the first two say anything about the candidate."""

    MATCHED = "matched"
    MISMATCHED = "mismatched"
    STREAMED = "streamed"  # skipped: an event stream, an upgrade, an answer without an end
    LARGE = "large"  # skipped: a body above the limit
    SHED = "shed"  # dropped: too many at once, or more than their share of the CPU
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"  # the candidate took its process with it
    INCONCLUSIVE = "inconclusive"  # a write that is not provably contained, or whose control is not known well enough
    BROKEN = "broken"  # our own fault


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison. An ignored difference is kept, never dropped."""

    differences: tuple[Difference, ...] = ()
    ignored: tuple[Difference, ...] = ()

    @property
    def matched(self) -> bool:
        return not self.differences
