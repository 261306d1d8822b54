"""`./dev bench [NAME…] [--quick]`"""

import argparse

from . import (
    bridges,
    downloads,
    flags,
    fuzz,
    instruments,
    jobs,
    mutants,
    overhead,
    pages,
    rollouts,
    routes,
    sockets,
    stalls,
    streams,
    upstream,
    writes,
)
from .harness import Plan

BENCHMARKS = {
    "bridges": bridges,
    "routes": routes,
    "overhead": overhead,
    "flags": flags,
    "instruments": instruments,
    "rollouts": rollouts,
    "mutants": mutants,
    "writes": writes,
    "pages": pages,
    "upstream": upstream,
    "stalls": stalls,
    "fuzz": fuzz,
    "downloads": downloads,
    "streams": streams,
    "jobs": jobs,
    "sockets": sockets,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Run the benchmarks, all of them or some by name.")
    parser.add_argument("name", nargs="*", choices=[[], *BENCHMARKS], help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="few and short rounds: shows that it runs, proves nothing")
    parser.add_argument("--rounds", type=int, help="after the first, which is discarded")
    parser.add_argument("--seconds", type=int, help="of load per cell and round")
    arguments = parser.parse_args()
    plan = Plan.quick() if arguments.quick else Plan()
    plan = plan.but(rounds=arguments.rounds, seconds=arguments.seconds)
    for name in arguments.name or BENCHMARKS:
        BENCHMARKS[name].main(plan)


main()
