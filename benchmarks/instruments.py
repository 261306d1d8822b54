"""What do ledger, journal and shadows cost the client? The same gateway with them and without, at full load."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .harness import Cell, Contestant, Measured, Plan, compete, ratios, save, serving, spread, table

OFF, NULL, ON, SHADOW = "off", "off, a second one", "on", "on, shadow 10 %"
TARGETS = {ON: ("0.97", "-"), SHADOW: ("0.95", "1.0"), NULL: ("-", "-")}  # ratio at least, ms of p99 at most
CELL = Cell("GET", "/api/resource1/items/7", 16)


def contestants(directory: Path, weight: int) -> list[Contestant]:
    """Four gateways; the process that replays shares the core of its gateway, and the bottom of its priorities."""
    serve = [sys.executable, "-m", "gateway", "serve", "--port", "{port}", "--legacy", "benchmarks.apps:make_flask"]
    serve += ["--fastapi", "benchmarks.apps:make_fastapi"]
    made = []
    for number, (name, shadow) in enumerate({OFF: 0, NULL: 0, ON: 0, SHADOW: 10}.items()):
        state = directory / f"{weight}-{number}"
        state.mkdir()
        flags = state / "flags.yaml"
        flags.write_text(f"version: 1\nroutes:\n  resource1.get: {{weight: {weight}, shadow: {shadow}}}\n")
        ledger = "false" if name in (OFF, NULL) else "true"
        env = {"GATEWAY_FLAGS": str(flags), "GATEWAY_STATE": str(state), "GATEWAY_LEDGER": ledger}
        made.append(Contestant(name, serve, {**env, "GATEWAY_LOG_LEVEL": "warning"}))
    return made


def main(plan: Plan) -> None:
    results, rows = {}, []
    with TemporaryDirectory() as directory:
        for side, weight in (("legacy", 0), ("ported", 100)):
            with serving(contestants(Path(directory), weight)) as ports:
                rounds = results[side] = compete(plan, ports, CELL)
            for name, base in ((NULL, OFF), (ON, OFF), (SHADOW, ON)):
                worse = [mine.p99_ms - other.p99_ms for mine, other in zip(rounds[name], rounds[base], strict=True)]
                rate, p99 = TARGETS[name]
                rows.append([
                    f"{side}: {name} / {base}",
                    spread(ratios(rounds, name, base)),
                    rate,
                    spread(worse),
                    p99,
                    str(errors(rounds[name])),
                ])  # fmt: skip
            print(f"{side}: {median(measured.rps for measured in rounds[OFF]):.0f} requests/s with all of them off")
    header = ["GET, 16 clients", "throughput, ratio", "at least", "p99, ms more", "at most", "errors"]
    table("Instruments and shadows", header, rows)
    save("instruments", plan, results)


def errors(measured: Sequence[Measured]) -> int:
    return sum(one.errors for one in measured)
