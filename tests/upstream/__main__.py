"""python -m tests.upstream --port N [--with-parent]"""

import argparse
import sys
import threading

import uvicorn

from . import app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description="The services of the internet.")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    options = parser.parse_args()
    server = uvicorn.Server(uvicorn.Config(app, port=options.port, log_level="warning", ws="none", lifespan="off"))
    if options.with_parent:
        threading.Thread(target=_follow, args=(server,), daemon=True).start()
    server.run()


def _follow(server: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
