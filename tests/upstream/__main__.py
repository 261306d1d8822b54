"""python -m tests.upstream --port N, or as a child that was given a listening socket: --fd N"""

import argparse
import socket
import sys
import threading

import uvicorn

from . import app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description="The services of the internet.")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--fd", type=int, help="a socket that listens already; ends with its standard input")
    options = parser.parse_args()
    server = uvicorn.Server(uvicorn.Config(app, port=options.port, log_level="warning", ws="none", lifespan="off"))
    if options.fd is None:
        server.run()
    else:
        threading.Thread(target=_follow, args=(server,), daemon=True).start()
        server.run([socket.socket(fileno=options.fd)])


def _follow(server: uvicorn.Server) -> None:
    """Whoever started this has the other end of the pipe: it ends with them, however they end."""
    sys.stdin.buffer.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
