"""Downloads by forks of a process that has imported yt-dlp, as the port has them: an interpreter for each takes long.

This file is also the program of that process: `fetching.py FETCH ADDRESS`, of which FETCH is the `fetch.py` of a side.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]

_ORDER = "import socket, sys; s = socket.socket(1, 2); s.connect(sys.argv[1]); socket.send_fds(s, [b'+'], [0, 1])"


class Nursery:
    """`command` can be started instead of `python -I fetch.py`. It ends at once; what works is no child of it."""

    def __init__(self, address: Path) -> None:
        self._address = str(address)
        self.command = [sys.executable, "-I", "-S", "-c", _ORDER, self._address]

    @contextmanager
    def child(self, order: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """At work, and what it tells. At the end it is gone, and all that it has started."""
        order_read, order_write = os.pipe()
        told_read, told_write = os.pipe()
        with os.fdopen(told_read, "rb") as told:
            with os.fdopen(order_write, "wb", buffering=0) as ordered:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
                    orders.connect(self._address)
                    socket.send_fds(orders, [b"+"], [order_read, told_write])
                os.close(order_read)
                os.close(told_write)
                ordered.write(json.dumps(order).encode() + b"\n")
                yield map(json.loads, told)
            told.read()


@contextmanager
def nursery(side: str, folder: Path) -> Iterator[Nursery]:
    """With the `fetch.py` of one of the two packages; `folder` is empty."""
    from tests.support.processes import child, wait_until

    address, log = folder / "orders", folder / "log"
    with child([sys.executable, "-P", __file__, str(ROOT / side / "fetch.py"), str(address)], log) as process:
        wait_until(lambda: address.exists() or process.poll() is not None, "yt-dlp", 60)
        assert address.exists(), log.read_text()
        yield Nursery(address)


def _main(fetch: str, address: str) -> None:
    work, nursery = _alone(fetch).main, _alone(str(ROOT / "fastapi_app/nursery.py"))
    nursery.warm()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
        orders.bind(address)
        nursery.Nursery(orders, work).run()


def _alone(path: str) -> ModuleType:
    """Without its package, which would bring the application."""
    spec = spec_from_file_location(Path(path).stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    _main(*sys.argv[1:])
