"""What this process has done, for Prometheus: the statistics of each part as `music_<part>_<name>`."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from typing_extensions import override

from . import commands, files, passwords
from .http import read
from .identity import Admin

router = APIRouter(tags=["system"])

GAUGES = {"checked_out", "connections", "in_flight", "mean_ms", "running", "size", "slowest_ms", "sockets", "waiting"}


class Part(Protocol):
    """What counts. A value is a number, or a mapping of names to mappings such as this: of origins, for example.

    Numbers only grow, but for those named in GAUGES. In a mapping by names a text is a state.
    """

    def statistics(self) -> Mapping[str, Any]: ...


@read(router, "/metrics", name="metrics")
async def metrics(request: Request, _: Admin) -> Response:
    """Of the process that answers."""
    state = request.app.state
    parts: dict[str, Part] = {
        "database": state.database,
        "queue": state.queue,
        "upstream": state.upstream,
        "commands": commands,
        "files": files,
        "passwords": passwords,
        "live": state.live,
        "channel": state.channel,
    }
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parts(parts))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Parts(Collector):
    """The families of metrics of some parts."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts

    @override
    def collect(self) -> Iterator[Metric]:
        for part, source in self._parts.items():
            for name, value in source.statistics().items():
                if isinstance(value, Mapping):
                    yield from _by_name(f"music_{part}_{name.removesuffix('s')}", name.removesuffix("s"), value)
                else:
                    family = _family(f"music_{part}_{name}", name, ())
                    family.add_metric((), value)
                    yield family


def _by_name(prefix: str, label: str, values: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for owner, statistics in values.items():
        for name, value in statistics.items():
            if name not in families:
                families[name] = _family(f"{prefix}_{name}", name, (label,), state=isinstance(value, str))
            if isinstance(value, str):
                families[name].add_metric((owner, value), 1)
            else:
                families[name].add_metric((owner,), value)
    yield from families.values()


def _family(
    metric: str, name: str, labels: tuple[str, ...], *, state: bool = False
) -> CounterMetricFamily | GaugeMetricFamily:
    if state:
        return GaugeMetricFamily(metric, "", labels=(*labels, "state"))
    kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
    return kind(metric, "", labels=labels)
