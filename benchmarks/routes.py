"""A ported route behind the gateway against the FastAPI application alone, and against a second identical one."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from .harness import Cell, Contestant, Plan, compete, ratios, save, serving, spread, table

PYTHON = [sys.executable, "-m"]
ALONE, NULL, GATEWAY = "FastAPI alone", "a second FastAPI alone", "behind the gateway"
TARGETS = {50: 1.2, 300: 3.0, 1000: 7.0}  # of the last route; the first has none


def contestants(routes: int, state: Path) -> list[Contestant]:
    uvicorn = [*PYTHON, "uvicorn", "--factory", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log"]
    uvicorn += ["--log-level", "warning", "benchmarks.apps:make_fastapi"]
    gateway = [*PYTHON, "gateway", "serve", "--legacy", "benchmarks.apps:make_flask", "--port", "{port}"]
    gateway += ["--fastapi", "benchmarks.apps:make_fastapi", "--flags", str(state / "flags.yaml")]
    gateway += ["--state", str(state / f"{routes}")]
    env = {"BENCH_ROUTES": str(routes), "GATEWAY_LOG_LEVEL": "warning"}
    return [Contestant(ALONE, uvicorn, env), Contestant(NULL, uvicorn, env), Contestant(GATEWAY, gateway, env)]


def main(plan: Plan) -> None:
    results, rows = {}, []
    with TemporaryDirectory() as directory:
        state = Path(directory)
        (state / "flags.yaml").write_text("version: 1\noverride: fastapi\n")
        for routes, target in TARGETS.items():
            last = Cell(f"last of {routes}", f"/api/resource{routes - 1}/items/7", 64, target=target)
            first = Cell(f"first of {routes}", "/api/resource0/items", 64)
            with serving(contestants(routes, state)) as ports:
                for cell in (first, last):
                    rounds = results[cell.name] = compete(plan, ports, cell)
                    rows.append([
                        cell.name,
                        spread([measured.rps for measured in rounds[ALONE]], 0),
                        spread(ratios(rounds, GATEWAY, ALONE)),
                        spread(ratios(rounds, NULL, ALONE)),
                        f"{cell.target:.1f}" if cell.target else "-",
                        str(sum(measured.errors for measureds in rounds.values() for measured in measureds)),
                    ])  # fmt: skip
    header = ["route", f"{ALONE}, req/s", f"{GATEWAY}, ratio", f"{NULL}, ratio", "target", "errors"]
    table("Ported route, 64 clients, ratio to the FastAPI application alone", header, rows)
    save("routes", plan, results)
