"""Guessing passwords on one side, on the other and on both: they keep one account of it, and say nothing."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from unittest.mock import patch

import bcrypt
import pytest

from gateway.model import Observation
from tests.support.world import ALONE, FASTAPI, LEGACY, Request, World

RIGHT = "User-pass-1"
SIDES = (ALONE, FASTAPI, LEGACY)  # two processes of Flask and one of the port


@pytest.fixture(autouse=True)
def as_before(world: World) -> Iterator[None]:
    world.snapshot.restore()
    yield
    world.snapshot.restore()


def sign_in(world: World, side: str, name: str, password: str, path: str = "/auth/login") -> Observation:
    body = json.dumps({"username": name, "password": password}).encode()
    headers = (("Host", "testserver"), ("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    return world.ask(side, Request("POST", path, headers, body))


def header(answer: Observation, name: str) -> str:
    return next((value for key, value in answer.headers if key.lower() == name), "")


@pytest.mark.parametrize("first", range(len(SIDES)))
def test_five_guesses_lock_an_account_wherever_they_were_made(world: World, first: int) -> None:
    guesses = islice(cycle(SIDES), first, first + 8)
    statuses = [sign_in(world, side, "user", "Wrong-pass-1").status for side in guesses]
    assert [401] * 5 + [429] * 3 == statuses
    for side in SIDES:
        locked = sign_in(world, side, "user", RIGHT)
        assert (429, True) == (locked.status, 0 < int(header(locked, "retry-after")) <= 1801)
        assert 200 == sign_in(world, side, "manager", "Manager-pass-1").status


def test_guesses_for_tokens_count_as_well(world: World) -> None:
    where = [(ALONE, "/auth/login"), (FASTAPI, "/auth/token")]
    guesses = islice(cycle(where), 6)
    assert [401] * 5 + [429] == [sign_in(world, side, "user", "x", path).status for side, path in guesses]


def test_twenty_guesses_lock_an_address_wherever_they_were_made(world: World) -> None:
    guesses = [sign_in(world, side, f"name{n}", "x").status for n, side in enumerate(islice(cycle(SIDES), 22))]
    assert [401] * 20 + [429] * 2 == guesses
    assert {429} == {sign_in(world, side, "user", RIGHT).status for side in SIDES}


def test_who_signs_in_on_one_side_starts_afresh_on_both(world: World) -> None:
    for one, other in ((ALONE, FASTAPI), (FASTAPI, LEGACY)):
        assert [401] * 4 == [sign_in(world, one, "user", "x").status for _ in range(4)]
        assert 200 == sign_in(world, other, "user", RIGHT).status


def test_of_many_guesses_at_once_five_are_looked_at(world: World) -> None:
    with ThreadPoolExecutor(4) as visitors:
        asking = [visitors.submit(sign_in, world, ALONE, "user", "x") for _ in range(8)]
        statuses = [sign_in(world, FASTAPI, "user", "x").status for _ in range(8)]
        statuses += [answer.result().status for answer in asking]
    assert [401] * 5 + [429] * 11 == sorted(statuses)


@pytest.mark.parametrize("side", SIDES)
def test_an_unknown_name_a_wrong_password_and_a_former_user_get_the_same_answer_after_the_same_work(
    world: World, side: str
) -> None:
    seen = []
    for name, password in (("nobody", "x"), ("user", "x"), ("former", "x"), ("former", "Former-pass-1")):
        with patch("bcrypt.checkpw", wraps=bcrypt.checkpw) as checked:
            answer = sign_in(world, side, name, password)
        (call,) = checked.call_args_list
        names = sorted(key.lower() for key, _ in answer.headers)
        seen.append((answer.status, answer.body, names, call.args[1][:7]))  # algorithm and cost
    assert [seen[0]] * 4 == seen
    assert 401 == seen[0][0]
