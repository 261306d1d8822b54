"""Files as answers: what the port says against Werkzeug's `send_file`, and what happens when the client leaves."""

import asyncio
import os
from collections.abc import AsyncGenerator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.utils import send_file as werkzeug_send_file

from fastapi_app.sending import Stream, send_bytes, send_file
from tests.support.asgi import Answer, ask, http_scope

CONTENT = bytes(range(100))
TIME = 1_700_000_000.25
DATE, LATER, EARLIER = "Tue, 14 Nov 2023 22:13:20 GMT", "Wed, 15 Nov 2023 00:00:00 GMT", "Mon, 13 Nov 2023 00:00:00 GMT"


def file_in(folder: Path, name: str = "clip.mp4", content: bytes = CONTENT) -> Path:
    path = folder / name
    path.write_bytes(content)
    os.utime(path, (TIME, TIME))
    return path


def expected(what: Path | BytesIO, method: str, headers: dict[str, str], **options: Any) -> Answer:
    builder = EnvironBuilder(method=method, headers=headers)
    environ = builder.get_environ()

    def app(environ: Any, start_response: Any) -> Any:
        try:
            response: Any = werkzeug_send_file(what, environ, mimetype="video/mp4", **options)
        except HTTPException as error:
            response = error
        return response(environ, start_response)

    chunks, status, found = run_wsgi_app(app, environ, buffered=True)
    names = [(name.lower(), value) for name, value in found.to_wsgi_list() if name != "Date"]
    return Answer(int(status.split()[0]), sorted(names), b"".join(chunks), True)


async def answered(response: Response, method: str) -> Answer:
    answer = await ask(response, method)
    answer.headers.sort()
    if method == "HEAD":  # the outermost layer takes the body of a HEAD away
        answer.body = b""
    return answer


def asking(method: str, headers: dict[str, str]) -> Request:
    return Request(http_scope(method, "/", headers.items()))


def parts(*texts: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(texts), min_size=1, max_size=4).map("".join)


ranges = parts("bytes=", "bytes", " = ", "0", "9", "99", "100", "-", "-10", " ", ",", "BYTES=", "1-0", "x", "\u0661")
etags = st.sampled_from(['"{etag}"', 'W/"{etag}"', "{etag}", '"other"', "*", '"a", "{etag}"', "", ",", '"', 'W/"a",*'])
dates = st.sampled_from([DATE, LATER, EARLIER, "yesterday", "", "Tue, 14 Nov 2023 22:13:20 -0100"])
conditions = st.fixed_dictionaries(
    {},
    optional={
        "Range": ranges | st.sampled_from(["bytes=0-9", "bytes=-10", "bytes=90-", "bytes=100-", "bytes=-200"]),
        "If-Range": etags | dates,
        "If-None-Match": etags,
        "If-Match": etags,
        "If-Modified-Since": dates,
    },
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(["GET", "HEAD"]), conditions, st.sampled_from([CONTENT, b""]))
@example("GET", {"Range": "bytes=0-99"}, CONTENT)
@example("GET", {"Range": "bytes=0-9", "If-Range": DATE}, CONTENT)
@example("GET", {"Range": "bytes=0-9", "If-Range": '"{etag}"', "If-None-Match": '"{etag}"'}, CONTENT)
@example("GET", {"If-Match": "*"}, CONTENT)
def test_every_condition_has_werkzeugs_answer(
    tmp_path: Path, method: str, headers: dict[str, str], content: bytes
) -> None:
    path = file_in(tmp_path, content=content)
    etag = expected(path, "GET", {}).get("etag")
    headers = {name: value.replace("{etag}", (etag or "").strip('"')) for name, value in headers.items()}
    if "\u0661" in headers.get("Range", ""):
        headers["Range"] = headers["Range"].encode().decode("latin-1")

    async def port() -> Answer:
        return await answered(await send_file(asking(method, headers), path, "video/mp4"), method)

    assert expected(path, method, headers) == asyncio.run(port())


@pytest.mark.parametrize(
    "name", ["a b.mp4", 'quo"te.mp4', "back\\slash.mp4", "Björk - Jóga.mp4", "椎名林檎.webm", "plain"]
)
async def test_the_name_is_told_as_werkzeug_tells_it(tmp_path: Path, name: str) -> None:
    path = file_in(tmp_path, name)
    answer = await answered(await send_file(asking("GET", {}), path, "video/mp4"), "GET")
    assert expected(path, "GET", {}) == answer


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=5-"}, {"Range": "bytes=x"}, {"If-None-Match": '"tag"'}])
async def test_a_picture_made_in_memory(headers: dict[str, str]) -> None:
    response = send_bytes(asking("GET", headers), CONTENT, "video/mp4", "tag")
    assert expected(BytesIO(CONTENT), "GET", headers, etag="tag") == await answered(response, "GET")


async def test_without_ranges_the_whole_file_comes(tmp_path: Path) -> None:
    asked = asking("GET", {"Range": "bytes=0-1,5-6"})
    answer = await answered(await send_file(asked, file_in(tmp_path), "video/mp4", ranges=False), "GET")
    assert (200, CONTENT) == (answer.status, answer.body)


# The client leaves


async def leave_after(response: Response, chunks: int) -> int:
    """Take some chunks, then go; how many came in all."""
    gone, taken = asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal taken
        if message["type"] == "http.response.body" and message["body"]:
            taken += 1
            if taken == chunks:
                gone.set()

    await asyncio.wait_for(response(http_scope(), receive, send), 30)
    return taken


async def test_the_making_stops_when_the_client_has_left() -> None:
    closed = False

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            while True:
                await asyncio.sleep(0)
                yield b"x"
        finally:
            closed = True

    taken = await leave_after(Stream(endless(), 200, {}), 3)
    assert closed
    assert taken < 10


async def test_a_maker_that_says_nothing_is_stopped_too() -> None:
    closed = False

    async def silent() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            closed = True

    await leave_after(Stream(silent(), 200, {}), 1)
    assert closed


async def test_what_fails_before_the_first_byte_sends_nothing() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        raise OSError("no such file")
        yield b""

    with pytest.raises(BaseExceptionGroup):
        await ask(Stream(broken(), 200, {}))


async def test_a_head_opens_nothing() -> None:
    opened = False

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal opened
        opened = True
        yield b"x"

    answer = await ask(Stream(chunks(), 200, {"content-length": "1"}), "HEAD")
    assert (b"", True, False) == (answer.body, answer.complete, opened)
