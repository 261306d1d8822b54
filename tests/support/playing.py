"""Cases sent to one side or the other, as their clients would send them."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from io import BytesIO
from urllib.parse import urlencode

from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from gateway.model import Observation
from tests.cases import Case

from .traces import Traces
from .world import Request, World

BOUNDARY = "parity"


def play(world: World, case: Case, turns: Sequence[str]) -> tuple[Observation, Traces]:
    """The answer to the case and what is left behind, when these sides answer its requests."""
    world.restore()
    words: dict[str, str] = {}
    for step, side in zip(case.setup, turns, strict=False):
        with world.outside(step.outside):
            answer = world.ask(side, request(world, step, words))
        assert answer.status == step.expect_status, f"{step.id}: {answer.body!r}"
        words = {"etag": header(answer, "etag"), "last_modified": header(answer, "last-modified")}
    world.execute(fill(statement, {"upstream": world.upstream.url}) for statement in case.sql)
    world.log(case.log)
    with world.outside(case.outside):
        answer = world.ask(turns[-1], request(world, case, words))
    return answer, world.snapshot.traces()


def play_all(world: World, steps: Sequence[Case], side: str) -> tuple[list[Observation], Traces]:
    """The answers of one side to all of them, and what is left behind."""
    world.restore()
    words: dict[str, str] = {}
    answers = []
    for step in steps:
        with world.outside(step.outside):
            answer = world.ask(side, request(world, step, words))
        words = {"etag": header(answer, "etag"), "last_modified": header(answer, "last-modified")}
        answers.append(answer)
    return answers, world.snapshot.traces()


def header(answer: Observation, name: str) -> str:
    return next((value for key, value in answer.headers if key.lower() == name), "")


def request(world: World, case: Case, words: Mapping[str, str]) -> Request:
    """What the client of this case sends; `words` fill the placeholders of its headers."""
    outside, cookies = {"upstream": world.upstream.url}, world.cookies[case.user]
    body, content_type = encode(case)
    if case.json is not None:
        body = fill(body.decode(), outside).encode()
    sent = {"Content-Type": content_type} if content_type else {}
    if cookies:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    known = {**words, "session": cookies.get("mv_session", ""), "csrf_token": cookies.get("csrf_token", "")}
    sent |= {name: fill(value, known) for name, value in case.sent_headers.items()}
    return Request(case.method, fill(case.target, outside), tuple(sent.items()), body)


def fill(template: str, words: Mapping[str, str]) -> str:
    return reduce(lambda text, word: text.replace(f"{{{word}}}", words[word]), words, template)


def encode(case: Case) -> tuple[bytes, str]:
    """The body and its content type."""
    if case.json is not None:
        return json.dumps(case.json).encode(), "application/json"
    if case.files is not None:
        files = {
            field: FileStorage(BytesIO(content), name, content_type=kind)
            for field, (name, content, kind) in case.files.items()
        }
        _, body = encode_multipart({**(case.data or {}), **files}, boundary=BOUNDARY)
        return body, f"multipart/form-data; boundary={BOUNDARY}"
    if case.data is not None:
        return urlencode(case.data).encode(), "application/x-www-form-urlencoded"
    return case.body or b"", ""
