"""The stub upstream beside the tests, on a port of its own."""

import socket
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from legacy_flask.demo import services
from tests.upstream import Control, create_app

from .processes import wait_until

END_S = 20  # and the tests end without it: it is a daemon


class Upstream:
    """What `tests.upstream` describes, without its HTTP control: this process has it at hand."""

    def __init__(self, url: str, control: Control) -> None:
        self.url = url
        self._control = control

    @property
    def settings(self) -> dict[str, str]:
        """With which the reference application asks here, with the right keys and as quickly as it can."""
        return services(self.url)

    def dial(self, dials: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace all dials."""
        self._control.set_dials(dials)

    def calls(self, service: str = "") -> list[dict[str, Any]]:
        """Those of one service, or all, since the last `reset`."""
        calls = list(self._control.calls)  # at once: others may be coming
        return [call for call in calls if service in ("", call["service"])]

    def reset(self) -> None:
        """No dials, no calls: what somebody had sent and did not wait for has arrived before this comes back."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=END_S) as answer:
            answer.read()
        self._control.set_dials({})
        self._control.calls.clear()


@contextmanager
def upstream() -> Iterator[Upstream]:
    control = create_app()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    # asyncio does it for listeners of another kind only; head and body are two packets, and the second one waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    quiet = {"log_level": "error", "access_log": False, "ws": "none", "lifespan": "off"}
    # A connection that ends while a client takes it up again would fail a call at random.
    server = uvicorn.Server(uvicorn.Config(control, loop="asyncio", timeout_keep_alive=3600, **quiet))
    thread = threading.Thread(target=server.run, args=([listener],), name="upstream", daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "the stub upstream to listen")
        yield Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}", control)
    finally:
        server.should_exit = True
        server.force_exit = True  # what still waits for a slow answer need not have it
        thread.join(END_S)
        listener.close()
        if (frame := sys._current_frames().get(thread.ident or 0)) is not None:
            at = "".join(traceback.format_stack(frame))
            sys.stderr.write(f"the stub upstream did not end within {END_S} s:\n{at}")
