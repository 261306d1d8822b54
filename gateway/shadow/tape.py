"""What was asked and what was answered, written down while it passes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope

from gateway.model import Backend, Observation, Outcome, RowChange

_STREAMS = (b"text/event-stream", b"multipart/x-mixed-replace")
_ASKED = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client", "server")

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, the answer that its client got, and what is asked of the other side."""

    id: str
    key: str
    candidate: Backend  # the side that did not answer
    at: float  # seconds since the epoch, when the answer was complete
    version: str  # of the flags
    subject: str
    scope: Mapping[str, Any]  # of the request as it came, before any credential was exchanged
    body: bytes
    control: Observation
    ignore: tuple[str, ...] = ()  # of the flag in that version
    rows: tuple[RowChange, ...] | None = None  # what the control has changed; only for writes; None: unknown


class Tape:
    """Records one request and the answer to it, `limit_bytes` of each, as long as that may take.

    The answer is the one that the client got: after the identity bridge, so that no forged session is in it, and
    before the gateway's own headers, which no application sends.
    """

    __slots__ = (
        "_answered_at",
        "_asked",
        "_backend",
        "_began",
        "_body",
        "_complete",
        "_gone",
        "_headers",
        "_left",
        "_limit_bytes",
        "_limit_s",
        "_receive",
        "_request",
        "_scope",
        "_status",
        "skip",
    )

    def __init__(self, scope: Scope, receive: Receive, *, limit_bytes: int, limit_s: float) -> None:
        self._scope = {name: scope[name] for name in _ASKED}
        self._scope["headers"] = list(scope["headers"])  # a list that middleware is free to change
        self._receive, self._limit_bytes, self._limit_s = receive, limit_bytes, limit_s
        self._request: list[bytes] = []
        self._body: list[bytes] = []
        self._left = [limit_bytes, limit_bytes]
        self._asked = not _has_body(scope["headers"])  # all of it is here
        self._complete = self._gone = False
        self._backend = Backend.LEGACY
        self._status = 0
        self._headers: Headers = ()
        self._began = time.perf_counter()
        self._answered_at = 0.0
        self.skip: Outcome | None = None  # why there is nothing to replay

    async def receive(self) -> Message:
        """Stands in for the server's `receive`."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._keep(self._request, 0, message.get("body", b""))
            self._asked = not message.get("more_body", False)
        elif not self._complete:
            self._gone = True
        return message

    def begin(self, backend: Backend, status: int, headers: Headers) -> None:
        """Note the head of the answer."""
        self._backend, self._status, self._headers = backend, status, headers
        self._answered_at = time.perf_counter()
        if is_stream(status, headers):
            self._give_up(Outcome.STREAMED)

    def add(self, body: bytes, *, more: bool) -> None:
        """Note a part of its body."""
        self._keep(self._body, 1, body)
        self._complete = not more
        if more and self._takes_too_long():
            self._give_up(Outcome.STREAMED)

    def exchange(
        self,
        request_id: str,
        key: str,
        *,
        version: str,
        subject: str = "",
        ignore: tuple[str, ...] = (),
        rows: tuple[RowChange, ...] | None = None,
    ) -> Exchange | None:
        """All of it; None when `skip` says why not, or when the client has left before it had its answer."""
        if self.skip is None and not self._complete and self._takes_too_long():
            self._give_up(Outcome.STREAMED)
        if self.skip is None and self._complete and not self._asked:
            self._give_up(Outcome.INCONCLUSIVE)  # answered before the body was read: nobody knows the rest of it
        if self.skip or self._gone or not self._complete:
            return None
        control = Observation(
            self._backend,
            self._status,
            text_headers(self._headers),
            b"".join(self._body),
            time.perf_counter() - self._began,
        )
        return Exchange(
            request_id,
            key,
            self._backend.other,
            time.time(),
            version,
            subject,
            self._scope,
            b"".join(self._request),
            control,
            ignore,
            rows,
        )

    def _keep(self, parts: list[bytes], side: int, part: bytes) -> None:
        if self.skip is not None or not part:
            return
        self._left[side] -= len(part)
        if self._left[side] < 0:
            self._give_up(Outcome.LARGE)
        else:
            parts.append(part)

    def _give_up(self, why: Outcome) -> None:
        self.skip = self.skip or why
        self._request, self._body = [], []

    def _takes_too_long(self) -> bool:
        return bool(self._answered_at) and time.perf_counter() - self._answered_at > self._limit_s


def is_stream(status: int, headers: Headers) -> bool:
    """Whether an answer has no end by its nature."""
    return status == 101 or any(
        name.lower() == b"content-type" and value.lower().startswith(_STREAMS) for name, value in headers
    )


def text_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Headers as an Observation has them."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _has_body(headers: Headers) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
