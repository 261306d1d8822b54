"""HTTP/1 on the wire: real sockets against `GatewayProtocol`, and beside it gunicorn, which Flask applications know."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.processes import child, free_port, wait_until
from tests.support.wire import Wire, echo, lifespan, listening, listens, reply

ROOT = Path(__file__).parents[2]
HANDLERS: dict[str, "Handler"] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`echo`, except where a test put its own handler."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    else:
        await HANDLERS.get(scope["path"], echo)(scope, receive, send)


Handler = Callable[[Any, Any, Any], Awaitable[None]]


def at(path: str) -> Callable[[Handler], Handler]:
    def put(handler: Handler) -> Handler:
        HANDLERS[path] = handler
        return handler

    return put


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(app, log_level="critical") as port:
        yield port


@pytest.fixture(scope="module")
def small() -> Iterator[int]:
    """A server that takes little at once."""
    with listening(app, log_level="critical", max_headers=20, max_header_bytes=4000) as port:
        yield port


@pytest.fixture(scope="module")
def strict() -> Iterator[int]:
    """A server without patience."""
    limits = {"head_timeout_s": 0.5, "body_timeout_s": 0.5, "keep_alive_s": 0.5, "send_timeout_s": 1.0}
    with listening(app, log_level="critical", **limits) as port:
        yield port


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port, log = free_port(), tmp_path_factory.mktemp("gunicorn") / "log"
    command = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "4", "-b", f"127.0.0.1:{port}"]
    with child([*command, "tests.support.wire:flask_echo()"], log, cwd=ROOT):
        wait_until(lambda: listens(port), f"gunicorn; see {log}")
        yield port


def outcome(port: int, data: bytes) -> list[Any]:
    """What a server makes of bytes: what the application saw of each request that it let pass, statuses otherwise."""
    seen: list[Any] = []
    with Wire(port, data) as wire:
        wire.end()
        try:
            while True:
                answer = wire.answer()
                seen.append(answer.json() if answer.status == 200 else answer.status)
        except (EOFError, ConnectionResetError):
            return seen


# --- the same bytes to gunicorn and to us ---


def head(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: a", *fields, b"", b""])


def get(target: bytes = b"/", version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return head(line=b" ".join([method, target, version]))


def post(*fields: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return head(*fields, line=b"POST / " + version) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


def coded(value: bytes) -> bytes:
    return post(b"Transfer-Encoding:" + value, body=b"0\r\n\r\n")


def sized(value: bytes) -> bytes:
    return post(b"Content-Length:" + value, body=b"abc")


NEXT = get(b"/next")
WEBSOCKET = (
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

# Both pass it on, and the applications see the same.
SAME = {
    "get": get(),
    "post": sized(b" 3"),
    "chunked": chunked(b"3\r\nabc\r\n0\r\n\r\n"),
    "two requests": get() + NEXT,
    "two requests, the first with a body": sized(b" 3") + NEXT,
    "a GET with a body": head(b"Content-Length: 3") + b"abc" + NEXT,
    "CRLF after a body": sized(b" 3") + b"\r\n" + NEXT,
    "CRLF before a request": b"\r\n" + get(),
    "chunked in capitals": coded(b" CHUNKED"),
    "chunked after a tab": coded(b"\tchunked"),
    "chunked with trailing blank": coded(b" chunked "),
    "length with leading zero": sized(b" 03"),
    "length with trailing blank": sized(b" 3 "),
    "length and its underscored twin": post(b"Content_Length: 9", b"Content-Length: 3", body=b"abc"),
    "chunk size with zeros": chunked(b"0003\r\nabc\r\n0\r\n\r\n"),
    "chunk size in hexadecimal": chunked(b"A\r\n0123456789\r\n0\r\n\r\n"),
    "last chunk with zeros": chunked(b"3\r\nabc\r\n000\r\n\r\n"),
    "chunk extension": chunked(b"3;a=b\r\nabc\r\n0\r\n\r\n"),
    "chunk extension in quotes": chunked(b'3;a="b c"\r\nabc\r\n0\r\n\r\n'),
    "trailer, hidden": chunked(b"3\r\nabc\r\n0\r\nX: y\r\n\r\n") + NEXT,
    "bytes above 127 in a value": head(b"A: b\xe9c"),
    "tab in a value": head(b"A: b\tc"),
    "blanks around a value": head(b"A: \t b \t "),
    "empty value": head(b"A:"),
    "repeated field": head(b"A: b", b"A: c"),
    "repeated cookie": head(b"Cookie: a=1", b"Cookie: b=2"),
    "underscore in a name": head(b"X_Forwarded_User: admin", b"X-User: me"),
    "underscored content type": post(b"Content_Type: a/b", b"Content-Length: 0"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "no host in 1.0": b"GET / HTTP/1.0\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "1.0": get(version=b"HTTP/1.0"),
    "1.0, then more": get(version=b"HTTP/1.0") + NEXT,
    "1.0 kept alive, then more": head(b"Connection: keep-alive", line=b"GET / HTTP/1.0") + NEXT,
    "close, then more": head(b"Connection: close") + NEXT,
    "Close, then more": head(b"Connection: Close") + NEXT,
    "PROPFIND": get(method=b"PROPFIND"),
    "PURGE": get(method=b"PURGE"),
    "QUERY": get(method=b"QUERY"),
    "PATCH": get(method=b"PATCH"),
    "TRACE": get(method=b"TRACE"),
    "M-SEARCH": get(method=b"M-SEARCH"),
    "OPTIONS *": get(b"*", method=b"OPTIONS"),
    "absolute form": get(b"http://b/c?d"),
    "absolute form with user": get(b"http://u:p@b/c"),
    "absolute form with IPv6": get(b"http://[::1]/c"),
    "absolute form with double slash": get(b"http://b//c"),
    "double slash": get(b"//a/b"),
    "dots": get(b"/../a/./b"),
    "backslash": get(b"/a\\b"),
    "brackets": get(b'/a[1]|{}^`"<>'),
    "semicolons": get(b"/a;b=c?d;e"),
    "fragment": get(b"/a?b#c"),
    "fragment before a query": get(b"/a#b?c"),
    "empty query": get(b"/a?"),
    "two question marks": get(b"/a??b"),
    "bytes that are no UTF-8": get(b"/caf%E9/%FF%2F"),
    "percent that encodes nothing": get(b"/%zz%"),
    "expectation in 1.0": post(b"Expect: 100-continue", b"Content-Length: 3", body=b"abc", version=b"HTTP/1.0"),
    "h2c": head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA") + NEXT,
    "h2c with a body": post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc") + NEXT,
    "h2c with chunks": chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Connection: Upgrade", b"Upgrade: h2c") + NEXT,
    "unknown upgrade": head(b"Connection: upgrade", b"Upgrade: foo/2") + NEXT,
    "upgrade without connection": head(b"Upgrade: h2c") + NEXT,
    "websocket without key": head(b"Connection: upgrade", b"Upgrade: websocket") + NEXT,
    "websocket in a POST": post(*WEBSOCKET, b"Content-Length: 3", body=b"abc") + NEXT,
    "Script-Name": head(b"X-Script-Name: /x", b"Proxy: http://x", b"TE: trailers", b"Keep-Alive: 3"),
}

# Neither passes it on.
REFUSED = {
    "length and chunked": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n") + NEXT,
    "chunked and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n") + NEXT,
    "coding: xchunked": coded(b" xchunked"),
    "coding: chunked, identity": coded(b" chunked, identity"),
    "coding: identity": coded(b" identity"),
    "coding: chunked, chunked": coded(b" chunked, chunked"),
    "coding: chunked;q=1": coded(b" chunked;q=1"),
    "coding: quoted": coded(b' "chunked"'),
    "coding: control character": coded(b" \x0bchunked"),
    "coding: leading comma": coded(b" ,chunked"),
    "coding: trailing comma": coded(b" chunked,"),
    "coding: empty": coded(b""),
    "coding: folded": coded(b"\r\n chunked"),
    "coding: twice": chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "coding: blank before the colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "coding: in 1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"HTTP/1.0"),
    "coding: gzip and a length": post(b"Transfer-Encoding: gzip", b"Content-Length: 3", body=b"abc"),
    "length: twice, equal": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "length: twice, different": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "length: list": sized(b" 3, 3"),
    "length: +": sized(b" +3"),
    "length: -": sized(b" -3"),
    "length: hexadecimal": sized(b" 0x3"),
    "length: fraction": sized(b" 3.0"),
    "length: underscore": sized(b" 0_3"),
    "length: empty": sized(b""),
    "length: two": sized(b" 3 4"),
    "length: superscript": sized(b" \xb3"),
    "length: blank before the colon": post(b"Content-Length : 3", body=b"abc"),
    "chunk: 0x": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk: +": chunked(b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk: -": chunked(b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk: underscore": chunked(b"0_3\r\nabc\r\n0\r\n\r\n"),
    "chunk: blank before": chunked(b" 3\r\nabc\r\n0\r\n\r\n"),
    "chunk: blank after": chunked(b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk: tab after": chunked(b"3\t\r\nabc\r\n0\r\n\r\n"),
    "chunk: no size": chunked(b"\r\nabc\r\n0\r\n\r\n"),
    "chunk: enormous": chunked(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk: no digit": chunked(b"g\r\nabc\r\n0\r\n\r\n"),
    "chunk: bare LF": chunked(b"3\nabc\n0\n\n"),
    "chunk: bare LF after data": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "chunk: bare LF at the end": chunked(b"3\r\nabc\r\n0\n\n"),
    "chunk: bare CR": chunked(b"3\rabc\r\n0\r\n\r\n"),
    "chunk: nothing after data": chunked(b"3\r\nabc0\r\n\r\n"),
    "chunk: more data than said": chunked(b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk: empty extension": chunked(b"3;\r\nabc\r\n0\r\n\r\n"),
    "chunk: LF in an extension": chunked(b"3;a\nabc\r\n0\r\n\r\n"),
    "chunk: CR in an extension": chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk: the last is missing": chunked(b"3\r\nabc\r\n"),
    "chunk: half": chunked(b"3\r\nab"),
    "chunk: the last CRLF is missing": chunked(b"3\r\nabc\r\n0\r\n"),
    "trailer: host": chunked(b"0\r\nHost: y\r\n\r\n") + NEXT,
    "trailer: length": chunked(b"0\r\nContent-Length: 5\r\n\r\n") + NEXT,
    "trailer: coding": chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n") + NEXT,
    "trailer: authorization": chunked(b"0\r\nAuthorization: y\r\n\r\n") + NEXT,
    "trailer: malformed": chunked(b"0\r\nX y\r\n\r\n"),
    "trailer: bare LF": chunked(b"0\r\nX: y\n\r\n"),
    "folded field": head(b"A: b", b" c"),
    "folded field with a tab": head(b"A: b", b"\tc"),
    "blank before the first name": b"GET / HTTP/1.1\r\n A: b\r\n\r\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR in a value": head(b"A: b\rc"),
    "bare CR after the request line": b"GET / HTTP/1.1\rHost: a\r\n\r\n",
    "two CR": b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    "NUL in a value": head(b"A: b\0c"),
    "NUL in a name": head(b"A\0: b"),
    "NUL in the target": get(b"/a\0b"),
    "DEL in a value": head(b"A: b\x7fc"),
    "control character in a value": head(b"A: b\x01c"),
    "blank in a name": head(b"A b: c"),
    "bytes above 127 in a name": head(b"\xe9: c"),
    "empty name": head(b": c"),
    "no colon": head(b"abc"),
    "parenthesis in a name": head(b"A(: c"),
    "slash in a name": head(b"A/b: c"),
    "quote in a name": head(b'A"b: c'),
    "two hosts": head(b"Host: b"),
    "two equal hosts": head(b"Host: a"),
    "two content types": post(b"Content-Type: a/b", b"Content-Type: c/d", b"Content-Length: 0"),
    "unknown expectation": post(b"Expect: 200-ok", b"Content-Length: 3", body=b"abc"),
    "0.9": get(version=b"HTTP/0.9"),
    "0.9 as it was": b"GET /\r\n\r\n",
    "2.0": get(version=b"HTTP/2.0"),
    "3.0": get(version=b"HTTP/3.0"),
    "9.9": get(version=b"HTTP/9.9"),
    "1.10": get(version=b"HTTP/1.10"),
    "1": get(version=b"HTTP/1"),
    "01.1": get(version=b"HTTP/01.1"),
    "http/1.1": get(version=b"http/1.1"),
    "HTTP 1.1": get(version=b"HTTP 1.1"),
    "XTTP/1.1": get(version=b"XTTP/1.1"),
    "blank after the version": get(version=b"HTTP/1.1 "),
    "no version": b"GET / \r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "blank in the target": get(b"/a b"),
    "bytes above 127 in the target": get(b"/\xc3\xa9"),
    "tabs in the request line": b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "blank before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method in small letters": get(method=b"get"),
    "one letter": get(method=b"G"),
    "colon in the method": get(method=b"GE:T"),
    "no method": b" / HTTP/1.1\r\n\r\n",
    "GET *": get(b"*"),
    "authority form": get(b"a:80"),
    "relative target": get(b"a/b"),
    "query only": get(b"?a"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "101 headers": head(*[b"A%d: b" % n for n in range(100)]),
    "half a head": b"GET / HTTP/1.1\r\nHost: a\r\n",
}

# gunicorn passes it on, we do not.
STRICTER = {
    "a body that ends early": sized(b" 5"),  # a truncated upload must never look whole
    "coding: gzip, chunked": coded(b" gzip, chunked"),  # gunicorn leaves the gzip to an application that knows nothing
    "a length of 67 bits": sized(b" 99999999999999999999"),
    "chunk: blank before an extension": chunked(b"3 ;a\r\nabc\r\n0\r\n\r\n"),
    "two authorizations": head(b"Authorization: a", b"Authorization: b"),
    "two expectations": post(b"Expect: 100-continue", b"Expect: 100-continue", b"Content-Length: 3", body=b"abc"),
    "1.2": get(version=b"HTTP/1.2"),
    "a method that llhttp does not know": get(method=b"FOOBAR"),
    "a method of RTSP": get(method=b"DESCRIBE"),
    "CONNECT": get(b"a:80", method=b"CONNECT"),
    "a port of 17 bits": get(b"http://b:99999/c"),
}

# gunicorn refuses it, we do not: llhttp forgives a form that has only one meaning, and no other framing.
FORGIVEN = {
    "two blanks before the target": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two blanks after the target": b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines before": b"\r\n\r\n" + get(),
    "LF before": b"\n" + get(),
    "extension without a name": chunked(b"3;=\r\nabc\r\n0\r\n\r\n"),
    "RTSP/1.0": get(version=b"RTSP/1.0"),
    "a field of 9000 bytes": head(b"A: " + b"x" * 9000),
    "a target of 5000 bytes": get(b"/" + b"x" * 5000),
}


@pytest.mark.parametrize("data", SAME.values(), ids=SAME)
def test_what_gunicorn_understands_is_understood_the_same_way(port: int, gunicorn: int, data: bytes) -> None:
    theirs = outcome(gunicorn, data)

    assert theirs
    assert all(isinstance(seen, dict) for seen in theirs)
    assert theirs == outcome(port, data)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_gunicorn_refuses_is_refused(port: int, gunicorn: int, data: bytes) -> None:
    for seen in (outcome(gunicorn, data), outcome(port, data)):
        assert not any(isinstance(request, dict) for request in seen)


@pytest.mark.parametrize("data", STRICTER.values(), ids=STRICTER)
def test_more_is_refused_than_by_gunicorn(port: int, gunicorn: int, data: bytes) -> None:
    assert any(isinstance(request, dict) for request in outcome(gunicorn, data))
    assert not any(isinstance(request, dict) for request in outcome(port, data))


@pytest.mark.parametrize("data", FORGIVEN.values(), ids=FORGIVEN)
def test_forms_with_one_meaning_are_forgiven(port: int, gunicorn: int, data: bytes) -> None:
    assert not any(isinstance(request, dict) for request in outcome(gunicorn, data))
    (seen,) = outcome(port, data)
    assert seen["headers"]["HOST"] == "a"


@pytest.mark.parametrize("fields", [(b"Connection: keep-alive, close",), (b"Connection: a", b"Connection: close")])
def test_a_close_among_other_words_closes(port: int, fields: tuple[bytes, ...]) -> None:
    assert len(outcome(port, head(*fields) + NEXT)) == 1


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, sized(b" x")),
        (400, head(b"Host: b")),
        (400, b"\x16\x03\x01\r\n\r\n"),
        (417, head(b"Expect: tea")),
        (501, get(method=b"FOOBAR")),
        (501, coded(b" gzip, chunked")),
        (505, get(version=b"HTTP/2.0")),
    ],
)
def test_a_refusal_is_short_and_closes(port: int, status: int, data: bytes) -> None:
    with Wire(port, data) as wire:
        answer = wire.answer()

        assert (answer.status, answer.get("connection")) == (status, "close")
        assert answer.get("content-type") == "text/plain; charset=utf-8"
        assert len(answer.get_all("date")) == 1
        assert len(answer.body) < 100
        assert wire.closed()


def test_a_body_that_comes_after_a_head_with_an_upgrade_is_not_the_next_request(port: int) -> None:
    with Wire(port, post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(NEXT))) as wire:
        for byte in NEXT:
            wire.send(bytes([byte]))

        assert wire.answer().json()["body"] == NEXT.decode()


# --- framing ---


@at("/stream")
async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (b"one ", b"two"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


@at("/broken-stream")
async def broken_stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("on purpose")


@at("/refuse")
async def refuse(scope: Any, receive: Any, send: Any) -> None:
    await reply(send, b"no", (b"content-length", b"2"), status=403)


@at("/slow")
async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.2)
    await reply(send, b"slow", (b"content-length", b"4"))


@at("/answer")
async def answer_as_asked(scope: Any, receive: Any, send: Any) -> None:
    """Status, headers and body from the query, as JSON."""
    body = await receive()
    status, headers, text = json.loads(body["body"])
    await reply(send, text.encode(), *[(name.encode(), value.encode()) for name, value in headers], status=status)


def ask(port: int, status: int, headers: dict[str, str], body: str = "", method: str = "POST") -> tuple[Any, bool]:
    """The answer that an application makes, and whether the connection was kept."""
    with Wire(port) as wire:
        answer = wire.get("/answer", method=method, body=json.dumps([status, list(headers.items()), body]).encode())
        if answer.get("connection") == "close":
            assert wire.closed()
            return answer, False
        return answer, wire.get("/kept").status == 200


def test_an_answer_of_unknown_length_is_chunked(port: int) -> None:
    with Wire(port) as wire:
        answer = wire.get("/stream")

        assert ("chunked", b"one two") == (answer.get("transfer-encoding"), answer.body)
        assert wire.get().status == 200


def test_an_answer_of_unknown_length_to_http_1_0_ends_with_the_connection(port: int) -> None:
    with Wire(port, b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") as wire:
        answer = wire.answer()

    assert ("HTTP/1.0", b"one two") == (answer.version, answer.body)
    assert (None, "close") == (answer.get("transfer-encoding"), answer.get("connection"))


def test_http_1_0_is_kept_alive_when_it_asks_and_the_length_is_known(port: int) -> None:
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with Wire(port) as wire:
        for _ in range(3):
            wire.send(request)
            answer = wire.answer()
            assert ("HTTP/1.0", "keep-alive") == (answer.version, answer.get("connection"))


def test_a_stream_that_breaks_never_looks_whole(port: int) -> None:
    with Wire(port, head(line=b"GET /broken-stream HTTP/1.1")) as wire, pytest.raises(EOFError):
        wire.answer()
    with Wire(port, b"GET /broken-stream HTTP/1.0\r\n\r\n") as wire, pytest.raises(ConnectionResetError):
        wire.answer()


def test_304_may_say_a_length_and_keeps_the_connection(port: int) -> None:
    answer, kept = ask(port, 304, {"content-length": "500", "etag": '"x"'})

    assert (304, "500", b"") == (answer.status, answer.get("content-length"), answer.body)
    assert kept


def test_204_has_neither_length_nor_body_and_keeps_the_connection(port: int) -> None:
    answer, kept = ask(port, 204, {"content-length": "3"}, "abc")

    assert (204, None, None) == (answer.status, answer.get("content-length"), answer.get("transfer-encoding"))
    assert kept


def test_head_has_the_length_of_get_and_no_body(port: int) -> None:
    for sent in ("abc", ""):
        answer, kept = ask(port, 200, {"content-length": "3"}, sent, method="HEAD")
        assert ("3", b"", True) == (answer.get("content-length"), answer.body, kept)


def test_head_of_unknown_length_keeps_the_connection(port: int) -> None:
    answer, kept = ask(port, 200, {}, "abc", method="HEAD")

    assert (None, None) == (answer.get("content-length"), answer.get("transfer-encoding"))
    assert kept


def test_there_is_one_date_and_no_server(port: int) -> None:
    answer, _ = ask(port, 200, {})

    assert (1, []) == (len(answer.get_all("date")), answer.get_all("server"))


def test_the_date_and_server_of_the_application_stand(port: int) -> None:
    answer, _ = ask(port, 200, {"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Server": "mine"})

    assert (["Thu, 01 Jan 1970 00:00:00 GMT"], ["mine"]) == (answer.get_all("date"), answer.get_all("server"))


def test_framing_is_ours_alone(port: int) -> None:
    answer, kept = ask(port, 200, {"transfer-encoding": "chunked", "content-length": "2", "Connection": "x"}, "ok")

    assert (["2"], [], []) == tuple(answer.get_all(n) for n in ("content-length", "transfer-encoding", "connection"))
    assert kept


def test_an_application_may_close(port: int) -> None:
    _, kept = ask(port, 200, {"connection": "close"}, "ok")

    assert not kept


@pytest.mark.parametrize(
    "headers",
    [{"a": "b\r\nset-cookie: c"}, {"a": "b\nc"}, {"a\r\nb": "c"}, {"a:": "b"}, {"a": "\0"}, {"content-length": "+1"}],
)
def test_a_header_that_would_split_the_answer_is_a_500(port: int, headers: dict[str, str]) -> None:
    answer, _ = ask(port, 200, headers)

    assert (500, b"Internal Server Error") == (answer.status, answer.body)


@pytest.mark.parametrize(("length", "body"), [("2", "abc"), ("4", "abc")])
def test_a_body_of_another_length_than_announced_closes(port: int, length: str, body: str) -> None:
    with pytest.raises(EOFError):
        ask(port, 200, {"content-length": length}, body)


def test_a_failure_after_the_answer_leaves_the_connection_alone(port: int) -> None:
    @at("/late")
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"ok", (b"content-length", b"2"))
        raise RuntimeError("a background task, on purpose")

    with Wire(port) as wire:
        assert [200, 200] == [wire.get("/late").status, wire.get("/late").status]


# --- bodies, expectations, pipelines ---


def test_expect_100_continue_invites_the_body_when_the_application_wants_it(port: int) -> None:
    with Wire(port, post(b"Expect: 100-continue", b"Content-Length: 3")) as wire:
        assert wire.answer().status == 100
        wire.send(b"abc" + NEXT)
        assert [wire.answer().json()["body"], wire.answer().json()["path"]] == ["abc", "/next"]


def test_an_early_answer_to_expect_100_continue_closes(port: int) -> None:
    """The client may send the body or not: what follows could be read as either."""
    with Wire(port, head(b"Expect: 100-continue", b"Content-Length: 99", line=b"POST /refuse HTTP/1.1")) as wire:
        answer = wire.answer()
        assert (403, "close") == (answer.status, answer.get("connection"))
        wire.send(NEXT)
        wire.end()
        assert wire.closed()


def test_an_unread_body_never_becomes_the_next_request(port: int) -> None:
    with Wire(port) as wire:
        for _ in range(3):
            wire.send(head(b"Content-Length: %d" % len(NEXT), line=b"POST /refuse HTTP/1.1"))
            assert wire.answer().status == 403
            wire.send(NEXT)
        assert wire.get("/other").json()["path"] == "/other"


def test_a_client_in_the_middle_of_its_upload_can_read_the_refusal(port: int) -> None:
    @at("/too-large")
    async def too_large(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await reply(send, b"no", (b"content-length", b"2"), (b"connection", b"close"), status=413)

    size = 4_000_000
    with Wire(port, head(b"Content-Length: %d" % size, line=b"POST /too-large HTTP/1.1")) as wire:
        wire.send(b"x" * size)
        assert wire.answer().status == 413
        assert wire.closed()


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    requests = [head(line=b"GET /slow HTTP/1.1"), sized(b" 3"), get(b"/c")]
    with Wire(port, b"".join(requests)) as wire:
        assert wire.answer().body == b"slow"
        assert [wire.answer().json()[key] for key in ("body", "path")] == ["abc", "/c"]


def test_a_malformed_request_is_answered_after_those_before_it(port: int) -> None:
    with Wire(port, head(line=b"GET /slow HTTP/1.1") + get(b"/b") + b"nonsense\r\n\r\n") as wire:
        assert [wire.answer().status for _ in range(3)] == [200, 200, 400]
        assert wire.closed()


# --- clients that leave, wholly or half ---


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_shuts_its_write_side_gets_its_answer(loop: str) -> None:
    with listening(app, loop=loop) as port, Wire(port, sized(b" 3") + head(line=b"GET /slow HTTP/1.1")) as wire:
        wire.end()

        assert [wire.answer().json()["body"], wire.answer().body] == ["abc", b"slow"]
        assert wire.closed()


def test_a_half_closed_client_may_read_a_long_stream(port: int) -> None:
    @at("/ticks")
    async def ticks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(15):
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.1)
        await send({"type": "http.response.body"})

    with Wire(port, head(line=b"GET /ticks HTTP/1.1")) as wire:
        wire.end()
        assert wire.answer().body == b"." * 15


def test_a_half_closed_client_is_not_gone_because_the_server_stood_still(port: int) -> None:
    @at("/stands-still")
    async def stands_still(scope: Any, receive: Any, send: Any) -> None:
        connection = scope["gateway.unsent"].__self__
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not (connection.half_closed and connection.since):
            await asyncio.sleep(0)  # until its silence is measured
        soon = asyncio.create_task(asyncio.sleep(0.01))
        await asyncio.sleep(0)
        time.sleep(1)  # nobody is served, and all timers are late
        await soon
        await send({"type": "http.response.body", "body": b"here"})

    with Wire(port, head(line=b"GET /stands-still HTTP/1.1")) as wire:
        wire.end()
        assert wire.answer().body == b"here"


def test_a_truncated_body_is_a_400_and_the_application_is_told(port: int) -> None:
    told = Event()

    @at("/upload")
    async def upload(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    with Wire(port, head(b"Content-Length: 5", line=b"POST /upload HTTP/1.1") + b"abc") as wire:
        wire.end()
        assert wire.answer().status == 400
        assert wire.closed()
    assert told.wait(20)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("interval_s", [0.05, 0.3, 30.0], ids=["talking", "hesitating", "silent"])
def test_a_stream_hears_within_a_second_that_its_client_is_gone(loop: str, interval_s: float) -> None:
    gone, ticks = Event(), list[None]()  # the server's own time: this machine may stand still

    @at("/events")
    async def events(scope: Any, receive: Any, send: Any) -> None:
        async def talk() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
                await asyncio.sleep(interval_s)

        async def tick() -> None:
            while not gone.is_set():
                await asyncio.sleep(0.05)
                ticks.append(None)

        await receive()
        talking, ticking = asyncio.create_task(talk()), asyncio.create_task(tick())
        await receive()
        gone.set()
        talking.cancel()
        await ticking

    with listening(app, loop=loop, log_level="critical") as port:
        with Wire(port, head(line=b"GET /events HTTP/1.1")) as wire:
            assert wire.until(b"\n\n")
        before = len(ticks)
        assert gone.wait(20)
        assert len(ticks) - before < 1.2 / 0.05


# --- limits ---


def test_too_many_headers_are_a_431(small: int) -> None:
    with Wire(small, head(*[b"A%d: b" % n for n in range(19)])) as wire:
        assert wire.answer().status == 200
        wire.send(head(*[b"A%d: b" % n for n in range(20)]))
        assert wire.answer().status == 431
        assert wire.closed()


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b""], ids=["complete", "endless"])
def test_a_large_head_is_a_431(small: int, ending: bytes) -> None:
    with Wire(small, b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 4000 + ending) as wire:
        assert wire.answer().status == 431
        assert wire.closed()


def test_a_head_in_many_pieces_is_limited_as_a_whole(small: int) -> None:
    with Wire(small, b"GET / HTTP/1.1\r\n") as wire:
        for _ in range(9):
            wire.send(b"A: " + b"x" * 500 + b"\r\n")
        assert wire.answer().status == 431


def test_a_long_target_is_a_414(small: int) -> None:
    with Wire(small, get(b"/" + b"x" * 4000)) as wire:
        assert wire.answer().status == 414


def test_a_large_body_before_a_head_does_not_count(small: int) -> None:
    with Wire(small, post(b"Content-Length: 9000", body=b"x" * 9000) + NEXT) as wire:
        assert [wire.answer().status, wire.answer().json()["path"]] == [200, "/next"]


@pytest.mark.parametrize("endless", [b"0\r\nA: ", b"0\r\n", b"3;a="], ids=["trailer", "trailers", "extension"])
def test_trailers_and_chunk_extensions_are_limited(small: int, endless: bytes) -> None:
    more = b"A: b\r\n" * 200 if endless == b"0\r\n" else b"x" * 1200
    with Wire(small, chunked(b"", b"Expect: 100-continue")) as wire:
        assert wire.answer().status == 100
        wire.send(endless)
        for _ in range(5):
            wire.send(more)
        assert wire.answer().status == 431


# --- deadlines ---


def test_a_head_has_to_end_in_time_however_it_trickles(strict: int) -> None:
    begun, pieces = time.monotonic(), 0
    with Wire(strict, b"GET / HTTP/1.1\r\n") as wire:
        while not wire.readable(0.1):
            wire.send(b"A: b\r\n")
            pieces += 1
        assert wire.answer().status == 408
    assert time.monotonic() - begun > 0.45
    assert pieces < 20


def test_a_body_that_stops_is_a_408_and_the_application_is_told(strict: int) -> None:
    told = Event()

    @at("/stops")
    async def stops(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    with Wire(strict, head(b"Content-Length: 5", line=b"POST /stops HTTP/1.1") + b"ab") as wire:
        assert wire.answer().status == 408
        assert wire.closed()
    assert told.wait(20)


def test_a_body_that_goes_on_has_time() -> None:
    with (
        listening(app, log_level="critical", body_timeout_s=2) as port,
        Wire(port, post(b"Content-Length: 15")) as wire,
    ):
        for _ in range(15):
            wire.send(b"x")
            time.sleep(0.2)  # the pace is what is tested
        assert wire.answer().json()["body"] == "x" * 15


def test_an_application_has_as_much_time_as_it_wants(strict: int) -> None:
    sent = Event()

    @at("/thinks")
    async def thinks(scope: Any, receive: Any, send: Any) -> None:
        while not sent.is_set():
            await asyncio.sleep(0.02)
        await echo(scope, receive, send)

    with Wire(strict, head(b"Content-Length: 6", line=b"POST /thinks HTTP/1.1") + b"abc") as wire:
        time.sleep(1.5)
        wire.send(b"def")
        sent.set()
        assert wire.answer().json()["body"] == "abcdef"


def test_an_idle_connection_is_closed_without_a_word(strict: int) -> None:
    with Wire(strict) as new, Wire(strict, get()) as used:
        assert used.answer().status == 200
        assert [new.closed(), used.closed()] == [True, True]  # or they would wait longer than this client does


@at("/flood")
async def flood(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body"})


def test_a_reader_that_takes_nothing_is_cut_off(strict: int) -> None:
    ended = Event()

    @at("/stalled")
    async def stalled(scope: Any, receive: Any, send: Any) -> None:
        await flood(scope, receive, send)
        ended.set()

    with Wire(strict, head(line=b"GET /stalled HTTP/1.1")):
        assert ended.wait(20)


def test_a_slow_reader_is_not_cut_off() -> None:
    """The kernel holds so much for a slow reader that the server's own buffer does not move for seconds."""
    ended = Event()

    @at("/slowly")
    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        await flood(scope, receive, send)
        ended.set()

    with (
        listening(app, log_level="critical", send_timeout_s=1.5, drain_s=0) as port,
        Wire(port, head(line=b"GET /slowly HTTP/1.1")) as wire,
    ):
        begun, taken = time.monotonic(), 0
        while (past := time.monotonic() - begun) < 3.5:
            while taken < past * 400_000:  # the pace is what is tested: 400 kB in a second
                taken += len(wire.sock.recv(8000))
            time.sleep(0.02)
        assert not ended.is_set()
        wire.sock.close()


def test_two_hundred_slow_heads_do_not_stop_a_healthy_client(port: int) -> None:
    slow = [Wire(port, b"GET / HTTP/1.1\r\nA: ") for _ in range(200)]
    try:
        with Wire(port) as wire:
            begun = time.monotonic()
            for _ in range(50):
                for other in slow[::20]:
                    other.send(b"x")
                assert wire.get().status == 200
            assert time.monotonic() - begun < 8  # sooner than the slow ones are given up
    finally:
        for other in slow:
            other.sock.close()


# --- one connection, two clients ---

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests_of_one_connection_share_no_context(loop: str) -> None:
    @at("/who")
    async def who(scope: Any, receive: Any, send: Any) -> None:
        seen = WHO.get()
        WHO.set(dict(scope["headers"]).get(b"user", b"?").decode())
        while (await receive()).get("more_body"):
            pass
        await reply(send, seen.encode(), (b"content-length", b"%d" % len(seen)))

    with listening(app, loop=loop) as port, Wire(port) as wire:
        seen = set()
        for _ in range(50):
            seen.add(wire.get("/who", "User: A", method="POST", body=b"x" * 1_000_000).body)
            seen.add(wire.get("/who", "User: B").body)
    assert seen == {b"nobody"}


# --- websockets ---


async def sockets(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        await app(scope, receive, send)
        return
    await receive()
    if scope["path"] == "/none":
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-type", b"text/html")]
        await send({"type": "websocket.http.response.start", "status": 404, "headers": cookies})
        await send({"type": "websocket.http.response.body", "body": b"<p>no"})
        return
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": (await receive())["text"].upper()})
    await send({"type": "websocket.close"})


@pytest.fixture(scope="module")
def ws_port() -> Iterator[int]:
    with listening(sockets, log_level="critical") as port:
        yield port


def test_a_websocket_talks(ws_port: int) -> None:
    with connect(f"ws://127.0.0.1:{ws_port}/", proxy=None) as client:
        client.send("hello")
        assert client.recv() == "HELLO"


def test_a_refused_websocket_gets_a_whole_http_answer(ws_port: int) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{ws_port}/none", proxy=None):
        pass
    answer = refused.value.response

    assert (404, b"<p>no") == (answer.status_code, answer.body)
    assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert (1, "text/html") == (len(answer.headers.get_all("date")), answer.headers["content-type"])


def test_a_refused_websocket_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with listening(sockets, log_level="info") as port:
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)  # a server takes away those it finds
        with Wire(port, head(*WEBSOCKET, line=b"GET /none HTTP/1.1")) as wire:
            assert wire.answer().status == 404
            assert wire.closed()
    said = [record for record in caplog.records if record.name == "uvicorn.error"]
    assert said
    assert [] == [record for record in said if record.levelno >= logging.WARNING]


def test_a_handshake_that_is_too_large_for_a_websocket_is_a_431(ws_port: int) -> None:
    with Wire(ws_port, head(*WEBSOCKET, b"Cookie: " + b"x" * 8001)) as wire:
        assert wire.answer().status == 431


def test_an_upgrade_behind_an_unfinished_request_is_an_ordinary_request(ws_port: int) -> None:
    with Wire(ws_port, head(line=b"GET /slow HTTP/1.1") + head(*WEBSOCKET)) as wire:
        assert [wire.answer().body, wire.answer().json()["headers"]["UPGRADE"]] == [b"slow", "websocket"]
