"""Clients that leave, lie, crawl or bring too much, on two real workers."""

import hashlib
import http.client
import socket
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.load import load
from tests.support.processes import peak_mb, resident_mb, threads, wait_until
from tests.support.serving import Server, serving

PAIR = {"legacy": "tests.support.pair:make_legacy", "fastapi": "tests.support.pair:make_port"}
MEGABYTE = bytes(1_048_576)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "who: 100", threads=8, **PAIR) as running:
        yield running


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def test_a_hundred_abandoned_streams_are_closed_and_leave_no_thread(server: Server) -> None:
    for closed in range(4, 101, 4):  # however the two workers share four, each has threads for them
        streams = [connect(server) for _ in range(4)]
        for stream in streams:
            stream.sendall(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n")
            assert stream.recv(100).startswith(b"HTTP/1.1 200")
        for stream in streams:
            stream.close()
        wait_until(lambda closed=closed: server.events().count("stream closed") == closed, "closed generators", 30)

    assert server.events().count("stream opened") == 100
    assert all(threads(pid) < 8 + 12 for pid in server.workers())  # the pool, and what an idle worker has
    with load(server, "/slow?s=0.1", clients=16) as asked:  # 2 x 8 threads, all of them free again
        wait_until(lambda: len(asked.requests) >= 64, "64 answers", 30)
    assert asked.failures == []


def test_a_truncated_upload_never_looks_complete(server: Server) -> None:
    with closing(connect(server)) as upload:
        upload.sendall(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\n" + MEGABYTE)
    with closing(connect(server)) as upload:
        upload.sendall(b"POST /digest HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    with server.client() as client:
        assert client.post("/digest", content=b"whole").json()["length"] == 5

    assert [event for event in server.events() if "complete" in event] == ["upload complete: 5"]


def test_a_chunked_upload_arrives_whole(server: Server) -> None:
    pieces = [b"a" * 70_000, b"b", b"c" * 300_000]
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", "/digest", body=iter(pieces), encode_chunked=True)
        answer = connection.getresponse()
        body = answer.read().decode()

    assert answer.status == 200
    assert hashlib.sha256(b"".join(pieces)).hexdigest() in body


@pytest.mark.timeout(300)
def test_an_upload_of_a_gigabyte_takes_bounded_memory(server: Server) -> None:
    before = {pid: resident_mb(pid) for pid in server.workers()}
    expected = hashlib.sha256()
    with closing(connect(server)) as upload:
        upload.settimeout(120)
        upload.sendall(b"POST /digest HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % (1024 * len(MEGABYTE)))
        for _ in range(1024):
            upload.sendall(MEGABYTE)
            expected.update(MEGABYTE)
        answer = http.client.HTTPResponse(upload)
        answer.begin()
        body = answer.read().decode()

    assert expected.hexdigest() in body
    assert max(peak_mb(pid) - mb for pid, mb in before.items()) < 64 + 32  # what one worker may hold, and slack


def test_while_legacy_is_slow_and_full_ported_routes_stay_fast(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "who: 100", threads=4, queue=8, queue_wait_s=1, **PAIR) as server,
        load(server, "/slow?s=2", clients=32) as slow,
    ):
        wait_until(lambda: server.events().count("slow began") >= 8, "both pools to be full")
        with load(server, "/who", clients=2) as quick:
            wait_until(lambda: len(slow.requests) >= 32, "the slow route to answer or refuse", 60)

    assert {request.status for request in slow.requests} == {200, 503}
    assert quick.failures == []
    took_s = statistics.median(request.ended - request.began for request in quick.requests)
    assert took_s < 0.5  # one that needed a legacy thread would have waited for a second


def test_a_refusal_of_a_full_pool_says_when_to_come_back(tmp_path: Path) -> None:
    with (
        serving(tmp_path, threads=1, queue=1, queue_wait_s=0.2, workers=1, **PAIR) as server,
        load(server, "/slow?s=1", clients=3) as slow,
    ):
        wait_until(lambda: slow.failures, "a refusal")
        with server.client() as client:
            refused = wait_until(lambda: refusal(client), "a refusal of another route")

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1


def refusal(client: httpx.Client) -> httpx.Response | None:
    response = client.get("/only-legacy")
    return response if response.status_code != 200 else None
