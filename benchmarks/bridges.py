"""Legacy through the gateway against the same application under gunicorn gthread, with the same threads."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from .harness import Cell, Contestant, Plan, compete, ratios, save, serving, spread, table

THREADS = "16"
PYTHON = [sys.executable, "-m"]
BASE, NATIVE = "gunicorn gthread", "gateway native"
CELLS = [
    Cell("GET, 1 client", "/api/resource1/items/7", 1, target=1.05),
    Cell("GET, 16 clients", "/api/resource1/items/7", 16, target=1.8),
    Cell("GET, 64 clients", "/api/resource1/items/7", 64, target=1.8),
    Cell("GET, 256 clients", "/api/resource1/items/7", 256, target=1.8),
    Cell("POST 1 KB, 64 clients", "/echo", 64, "POST", 1024, target=1.7),
    Cell("1 MB stream, 4 clients", "/stream", 4, target=0.95),
    Cell("10 MB upload, 4 clients", "/upload", 4, "POST", 10_485_760, target=4.0),
]


def contestants(state: Path) -> list[Contestant]:
    gateway = [*PYTHON, "gateway", "serve", "--legacy", "benchmarks.apps:make_flask", "--port", "{port}"]
    gateway += ["--fastapi", "benchmarks.apps:make_fastapi", "--flags", str(state / "flags.yaml"), "--threads", THREADS]
    bind = ["--bind", "127.0.0.1:{port}", "--log-level", "warning"]
    uvicorn = ["--host", "127.0.0.1", "--port", "{port}", "--no-access-log", "--log-level", "warning"]
    env = {"BENCH_THREADS": THREADS, "BENCH_ROUTES": "200", "GATEWAY_LOG_LEVEL": "warning"}
    return [
        Contestant(
            BASE,
            [*PYTHON, "gunicorn", "-k", "gthread", "--threads", THREADS, *bind, "benchmarks.apps:make_flask()"],
            env,
        ),
        Contestant(NATIVE, [*gateway, "--bridge", "native", "--state", str(state / "native")], env),
        Contestant("gateway a2wsgi", [*gateway, "--bridge", "a2wsgi", "--state", str(state / "a2wsgi")], env),
        Contestant("uvicorn + a2wsgi", [*PYTHON, "uvicorn", "--factory", *uvicorn, "benchmarks.apps:make_a2wsgi"], env),
    ]


def main(plan: Plan) -> None:
    with TemporaryDirectory() as directory:
        state = Path(directory)
        (state / "flags.yaml").write_text("version: 1\nroutes:\n  resource1.get: legacy\n")
        servers = contestants(state)
        with serving(servers) as ports:
            results = {cell.name: compete(plan, ports, cell) for cell in CELLS}
    rows = []
    for cell in CELLS:
        rounds = results[cell.name]
        base = [measured.rps for measured in rounds[BASE]]
        errors = sum(measured.errors for measureds in rounds.values() for measured in measureds)
        others = [spread(ratios(rounds, server.name, BASE)) for server in servers[1:]]
        rows.append([cell.name, spread(base, 0), *others, f"{cell.target:.2f}", str(errors)])
    header = [f"{BASE}, req/s", *(f"{server.name}, ratio" for server in servers[1:]), f"target of {NATIVE}", "errors"]
    table(f"Legacy, {THREADS} threads, ratio to {BASE}", ["load", *header], rows)
    save("bridges", plan, results)
