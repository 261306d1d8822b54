"""Cases sent to one side or the other, as their clients would send them."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from io import BytesIO
from urllib.parse import urlencode

from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from gateway.model import Observation
from tests.cases import HOST, ORIGIN, PASSWORDS, Case

from .traces import Traces
from .world import ALONE, Request, World

BOUNDARY = "parity"


def play(world: World, case: Case, turns: Sequence[str]) -> tuple[Observation, Traces]:
    """The answer to the case and what is left behind, when these sides answer its requests."""
    world.restore()
    cookies = {user: sign_in(world, user) for user in dict.fromkeys(step.user for step in (*case.setup, case))}
    words: dict[str, str] = {}
    for step, side in zip(case.setup, turns, strict=False):
        with world.outside(step.outside):
            answer = world.ask(side, request(world, step, cookies[step.user], words))
        assert answer.status == step.expect_status, f"{step.id}: {answer.body!r}"
        words = {"etag": header(answer, "etag"), "last_modified": header(answer, "last-modified")}
    world.execute(fill(statement, {"upstream": world.upstream.url}) for statement in case.sql)
    world.log(case.log)
    with world.outside(case.outside):
        answer = world.ask(turns[-1], request(world, case, cookies[case.user], words))
    return answer, world.snapshot.traces()


def play_all(world: World, steps: Sequence[Case], side: str) -> tuple[list[Observation], Traces]:
    """The answers of one side to all of them, and what is left behind."""
    world.restore()
    cookies = {user: sign_in(world, user) for user in dict.fromkeys(step.user for step in steps)}
    words: dict[str, str] = {}
    answers = []
    for step in steps:
        with world.outside(step.outside):
            answer = world.ask(side, request(world, step, cookies[step.user], words))
        words = {"etag": header(answer, "etag"), "last_modified": header(answer, "last-modified")}
        answers.append(answer)
    return answers, world.snapshot.traces()


def sign_in(world: World, user: str) -> dict[str, str]:
    """The cookies of a browser in which this user has signed in to Flask."""
    if user not in PASSWORDS:
        return {}
    body = json.dumps({"username": user, "password": PASSWORDS[user]}).encode()
    headers = (("Host", HOST), ("Origin", ORIGIN), ("Content-Type", "application/json"))
    answer = world.ask(ALONE, Request("POST", "/auth/login", headers, body))
    assert answer.status == 200, answer.body
    pairs = [value.partition(";")[0] for name, value in answer.headers if name.lower() == "set-cookie"]
    return dict(pair.split("=", 1) for pair in pairs)


def header(answer: Observation, name: str) -> str:
    return next((value for key, value in answer.headers if key.lower() == name), "")


def request(world: World, case: Case, cookies: Mapping[str, str], words: Mapping[str, str]) -> Request:
    """What the client of this case sends; `words` fill the placeholders of its headers."""
    outside = {"upstream": world.upstream.url}
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
