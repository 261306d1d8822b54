"""What does Prometheus get? The sums of all workers of this host, as text format 0.0.4.

Whichever worker is asked answers the same, for the numbers come from the files that all of them write.
Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, groupby

from .flagfile import percent
from .ledger import BOUNDS_S, Counter
from .model import Backend, FlagSet

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
_DURATION = "gateway_request_duration_seconds"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to tell, read at one moment."""

    flags: FlagSet = field(default_factory=FlagSet)
    counters: Sequence[Counter] = ()  # by key, backend and status
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    shadows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # key -> outcome -> how often
    groups: Mapping[str, int] = field(default_factory=dict)  # key -> groups of mismatches
    steps: Mapping[str, int] = field(default_factory=dict)  # key -> step of its rollout, from 1; 0: not begun
    versions: Sequence[str] = ()  # that the live workers run
    rejecting: int = 0  # live workers that refuse the flag file on disk
    led: bool = False  # a worker of this host holds the leader's lock
    dropped: Mapping[str, int] = field(default_factory=dict)  # instrument -> writes that failed


Samples = Iterable[str]  # lines without the name of the metric: `{key="health"} 1`


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of the exposition."""

    name: str
    kind: str
    help: str
    samples: Callable[[Facts], Samples]


def render(facts: Facts) -> str:
    """All metrics, ending with a newline."""
    return "".join(line for metric in METRICS for line in _family(metric, facts))


def _family(metric: Metric, facts: Facts) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    for sample in metric.samples(facts):
        yield f"{metric.name}{sample}\n"


def _requests(facts: Facts) -> Samples:
    for c in facts.counters:
        yield f'{{{_labels(c.key, c.backend)},status="{c.status}"}} {c.count}'


def _durations(facts: Facts) -> Samples:
    """One histogram per route and side, over all statuses."""
    for (key, backend), counters in groupby(facts.counters, lambda c: (c.key, c.backend)):
        every = list(counters)
        below = [*accumulate(map(sum, zip(*(c.buckets for c in every), strict=True)))]
        yield _histogram(key, backend) % (*below, sum(c.sum_s for c in every), below[-1])


@lru_cache(4096)
def _histogram(key: str, backend: Backend) -> str:
    """Fourteen lines with holes for the numbers: they are most of the text."""
    labels = _labels(key, backend).replace("%", "%%")
    lines = [*(f'_bucket{{{labels},le="{bound}"}} %d' for bound in _BOUNDS), f"_sum{{{labels}}} %r"]
    return f"\n{_DURATION}".join([*lines, f"_count{{{labels}}} %d"])


@lru_cache(4096)  # escaping takes longer than everything else about a line
def _labels(key: str, backend: Backend) -> str:
    return f'key="{_escaped(key)}",backend="{backend.value}"'


def _by_key(values: Mapping[str, float]) -> Samples:
    for key, value in sorted(values.items()):
        yield f'{{key="{_escaped(key)}"}} {value}'


def _shadows(facts: Facts) -> Samples:
    for key, outcomes in sorted(facts.shadows.items()):
        for outcome, count in sorted(outcomes.items()):
            yield f'{{key="{_escaped(key)}",outcome="{_escaped(outcome)}"}} {count}'


def _override(facts: Facts) -> Samples:
    thrown = facts.flags.override.value if facts.flags.override else "none"
    for word in ("none", "legacy", "fastapi"):
        yield f'{{side="{word}"}} {int(word == thrown)}'


def _versions(facts: Facts) -> Samples:
    for version in sorted(set(facts.versions)):
        yield f'{{version="{_escaped(version)}"}} {facts.versions.count(version)}'


def _dropped(facts: Facts) -> Samples:
    for instrument, count in sorted(facts.dropped.items()):
        yield f'{{instrument="{_escaped(instrument)}"}} {count}'


@lru_cache(4096)
def _escaped(text: str) -> str:
    """`text` as the value of a label."""
    return text.translate(_ESCAPES)


METRICS = (
    Metric("gateway_requests_total", "counter", "Answers by route, side and status; 0: none.", _requests),
    Metric("gateway_request_duration_seconds", "histogram", "Until the last byte of an answer.", _durations),
    Metric(
        "gateway_fallbacks_total",
        "counter",
        "Requests in which legacy stood in for the port.",
        lambda facts: _by_key(facts.fallbacks),
    ),
    Metric(
        "gateway_flag_weight",
        "gauge",
        "Percent of the subjects that FastAPI serves.",
        lambda facts: _by_key({key: percent(flag.weight_bp) for key, flag in facts.flags.flags.items()}),
    ),
    Metric(
        "gateway_flag_shadow",
        "gauge",
        "Percent of the requests that are replayed on the other side.",
        lambda facts: _by_key({key: percent(flag.shadow_bp) for key, flag in facts.flags.flags.items()}),
    ),
    Metric("gateway_override", "gauge", "1 for the position of the panic switch.", _override),
    Metric("gateway_shadow_total", "counter", "Replays by route and outcome.", _shadows),
    Metric(
        "gateway_mismatch_groups", "gauge", "Causes of mismatches that are known.", lambda facts: _by_key(facts.groups)
    ),
    Metric(
        "gateway_rollout_step",
        "gauge",
        "Step of the rollout, from 1; 0: not begun.",
        lambda facts: _by_key(facts.steps),
    ),
    Metric("gateway_workers", "gauge", "Live workers by the version of the flags that they run.", _versions),
    Metric(
        "gateway_flags_rejected",
        "gauge",
        "Live workers that refuse the flag file on disk.",
        lambda facts: [f" {facts.rejecting}"],
    ),
    Metric("gateway_leader", "gauge", "1 while a worker of this host leads.", lambda facts: [f" {int(facts.led)}"]),
    Metric("gateway_dropped_total", "counter", "Writes of the instruments that failed.", _dropped),
)
