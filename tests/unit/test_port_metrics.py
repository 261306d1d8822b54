"""What the port tells Prometheus about itself."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fastapi_app import commands, files
from fastapi_app.metrics import Parts
from fastapi_app.upstreams.failures import Unavailable
from tests.support.asgi import Answer, ask
from tests.unit import test_port_auth
from tests.unit.test_port_auth import bearer, sql, tokens

port = test_port_auth.app  # a fixture
REFERENCE = (Path(__file__).parents[2] / "docs/reference.md").read_text()


async def scraped(app: Any) -> Answer:
    await sql(app, "UPDATE users SET role = 'admin'")
    return await ask(app, "GET", "/metrics", bearer((await tokens(app))["access_token"]).items())


def samples(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_only_an_admin_reads_them_with_a_bearer_too(port: Any) -> None:
    assert 401 == (await ask(port, "GET", "/metrics")).status
    bought = bearer((await tokens(port))["access_token"]).items()
    assert 403 == (await ask(port, "GET", "/metrics", bought)).status
    answer = await scraped(port)
    assert 200 == answer.status
    assert (answer.get("content-type") or "").startswith("text/plain; version=")
    head = await ask(port, "HEAD", "/metrics", bearer((await tokens(port))["access_token"]).items())
    assert (200, b"") == (head.status, head.body)


async def test_what_is_done_is_counted(port: Any) -> None:
    while commands.statistics()["running"] + commands.statistics()["waiting"]:  # what an earlier test has left
        await asyncio.sleep(0.01)
    before = samples((await scraped(port)).body.decode())
    await commands.run(["true"])
    await commands.run(["false"])
    await files.off_loop(len, "")
    stream = commands.lines(["sleep", "600"])
    reading = asyncio.ensure_future(anext(stream))
    while commands.statistics()["running"] != 1:
        await asyncio.sleep(0.01)
    after = samples((await scraped(port)).body.decode())
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    gained = {name: after[name] - before[name] for name in after if name in before}
    assert (2, 1, 1) == tuple(gained[f"music_commands_{name}"] for name in ("run_total", "failed_total", "running"))
    assert gained["music_files_done_total"] >= 1
    assert 0 == after["music_passwords_waiting"]


async def test_the_request_itself_holds_no_connection(port: Any) -> None:
    assert 0 == samples((await scraped(port)).body.decode())["music_database_checked_out"]


class Counts:
    def __init__(self, **statistics: Any) -> None:
        self._statistics = statistics

    def statistics(self) -> Mapping[str, Any]:
        return self._statistics


def test_numbers_names_and_states_become_families() -> None:
    origins = {"https://a": {"calls": 3, "in_flight": 1, "breaker": "open"}, 'b"\n': {"calls": 1, "breaker": "closed"}}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parts({"upstream": Counts(in_flight=1, done_total=7, retries=2, origins=origins)}))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("# HELP")]
    assert [
        "# TYPE music_upstream_in_flight gauge",
        "music_upstream_in_flight 1.0",
        "# TYPE music_upstream_done_total counter",
        "music_upstream_done_total 7.0",
        "# TYPE music_upstream_retries_total counter",
        "music_upstream_retries_total 2.0",
        "# TYPE music_upstream_origin_calls_total counter",
        'music_upstream_origin_calls_total{origin="https://a"} 3.0',
        'music_upstream_origin_calls_total{origin="b\\"\\n"} 1.0',
        "# TYPE music_upstream_origin_in_flight gauge",
        'music_upstream_origin_in_flight{origin="https://a"} 1.0',
        "# TYPE music_upstream_origin_breaker gauge",
        'music_upstream_origin_breaker{origin="https://a",state="open"} 1.0',
        'music_upstream_origin_breaker{origin="b\\"\\n",state="closed"} 1.0',
    ] == lines


async def test_every_metric_and_its_type_are_in_the_reference(port: Any) -> None:
    with pytest.raises(Unavailable):
        await port.state.upstream.request("GET", "http://127.0.0.1:1/", repeat=False)
    text = (await scraped(port)).body.decode()
    told = dict(re.findall(r"^# TYPE (music_\w+) (\w+)$", text, re.MULTILINE))
    assert told == dict(re.findall(r"^\| `(music_\w+)` \| (\w+) \|", REFERENCE, re.MULTILINE))
