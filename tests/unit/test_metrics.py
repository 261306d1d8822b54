"""What Prometheus reads: well-formed, complete, and right whichever worker is asked."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gateway.flags import FlagStore
from gateway.ledger import Counter, Ledger
from gateway.metrics import METRICS, Facts, render
from gateway.model import Backend, Flag, FlagSet, Outcome
from gateway.settings import Settings
from gateway.shadow.verdicts import Verdicts
from gateway.views import Views

Sample = tuple[str, dict[str, str], float]

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)", re.ASCII)
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)', re.ASCII)
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
_SUFFIXES = {"counter": {""}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}


def parse(text: str) -> dict[str, list[Sample]]:
    """Every family and its samples; an AssertionError for whatever the format does not allow."""
    assert text.endswith("\n")
    families: dict[str, list[Sample]] = {}
    lines = iter(text.split("\n")[:-1])
    seen = set()
    for line in lines:
        if help_ := re.fullmatch(r"# HELP (\S+) (.+)", line):
            kind = re.fullmatch(r"# TYPE (\S+) (counter|gauge|histogram)", next(lines))
            assert kind is not None
            assert help_[1] == kind[1]
            assert help_[1] not in families
            name, suffixes = kind[1], _SUFFIXES[kind[2]]
            families[name] = []
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample is not None, line
        assert sample[1].removeprefix(name) in suffixes, line
        labels = dict(labels_of(sample[2] or ""))
        identity = (sample[1], *sorted(labels.items()))
        assert identity not in seen, line
        seen.add(identity)
        families[name].append((sample[1], labels, float(sample[3])))
    return families


def labels_of(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        assert match is not None, text
        yield match[1], re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], match[2])
        position = match.end()


def value(families: dict[str, list[Sample]], name: str, **labels: str) -> float:
    (found,) = [v for samples in families.values() for n, given, v in samples if (n, given) == (name, labels)]
    return found


def test_nothing_to_tell_is_well_formed_too() -> None:
    families = parse(render(Facts()))
    assert [metric.name for metric in METRICS] == list(families)
    assert 0 == value(families, "gateway_leader")


def test_two_workers_are_one_gateway_and_restarts_do_not_count(tmp_path: Path) -> None:
    flags = tmp_path / "flags.yaml"
    flags.write_text("version: 1\noverride: legacy\nroutes:\n  a: {weight: 12.5, shadow: 1}\n")
    settings = Settings(flags=str(flags), state=str(tmp_path / "state"))
    for duration_s in (0.003, 0.2, 20.0):
        ledger = Ledger(settings.state_dir)
        ledger.start()
        ledger.count("a", Backend.FASTAPI, 200, duration_s)
        ledger.count("a", Backend.FASTAPI, 500, duration_s)
        ledger.count_fallback("a")
        ledger.close()
    verdicts = Verdicts(settings.state_dir)
    verdicts.start()
    verdicts.count("a", Outcome.SHED)
    verdicts.close()

    views = Views(settings, FlagStore(flags, None, settings.state_dir))
    families = parse(render(views.facts()))
    assert 3 == value(families, "gateway_requests_total", key="a", backend="fastapi", status="500")
    assert 3 == value(families, "gateway_fallbacks_total", key="a")
    assert (12.5, 1) == tuple(value(families, f"gateway_flag_{name}", key="a") for name in ("weight", "shadow"))
    assert (1, 0) == tuple(value(families, "gateway_override", side=side) for side in ("legacy", "none"))

    def below(bound: str) -> float:
        return value(families, "gateway_request_duration_seconds_bucket", key="a", backend="fastapi", le=bound)

    assert [2, 2, 4, 4, 6] == [below(bound) for bound in ("0.005", "0.1", "0.25", "10", "+Inf")]
    assert 6 == value(families, "gateway_request_duration_seconds_count", key="a", backend="fastapi")
    assert abs(40.406 - value(families, "gateway_request_duration_seconds_sum", key="a", backend="fastapi")) < 1e-9


def test_odd_names_are_escaped() -> None:
    odd = 'a"b\\c\nd{e}%s %d 100%'
    flags = FlagSet(flags={odd: Flag(odd, 5000)})
    counters = [Counter(odd, Backend.LEGACY, 200, 1, 0.5, (*[0] * 11, 1))]
    facts = Facts(flags, counters, fallbacks={odd: 1}, shadows={odd: {"matched": 2}}, groups={odd: 3}, versions=[odd])
    families = parse(render(replace(facts, steps={odd: 4}, dropped={odd: 5})))
    assert 50 == value(families, "gateway_flag_weight", key=odd)
    assert 0.5 == value(families, "gateway_request_duration_seconds_sum", key=odd, backend="legacy")
    assert 2 == value(families, "gateway_shadow_total", key=odd, outcome="matched")
    assert 1 == value(families, "gateway_workers", version=odd)
    assert 5 == value(families, "gateway_dropped_total", instrument=odd)
