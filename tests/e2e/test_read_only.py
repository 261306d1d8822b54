"""A gateway that may write nothing serves all the same."""

from pathlib import Path

from tests.support.processes import child, free_port, wait_until
from tests.support.serving import GATEWAY, environment, flag_file
from tests.support.wire import Wire

PAIR = {"GATEWAY_LEGACY": "tests.support.pair:make_legacy", "GATEWAY_FASTAPI": "tests.support.pair:make_port"}


def test_workers_without_a_state_directory_recognise_each_others_anonymous_callers(tmp_path: Path) -> None:
    port, log, flags, nowhere = free_port(), tmp_path / "log", tmp_path / "flags.yaml", tmp_path / "file"
    flags.write_text(flag_file("who: 50"))
    nowhere.write_text("")
    env = {**PAIR, "GATEWAY_FLAGS": str(flags), "GATEWAY_STATE": str(nowhere / "state"), "GATEWAY_PORT": str(port)}
    command = [*GATEWAY, "serve", "--workers", "2"]
    with child(command, log, cwd=tmp_path, env=environment(env)):
        wait_until(lambda: log.read_text().count("startup complete") == 2, f"two workers; see {log}", 60)
        with Wire(port) as wire:
            cookie = (wire.get("/who").get("set-cookie") or "").partition(";")[0]
        assert cookie.startswith("gw_id=")
        workers: set[bytes] = set()
        while len(workers) < 2:
            with Wire(port) as wire:
                answer = wire.get("/who", f"Cookie: {cookie}")
            assert answer.get("set-cookie") is None
            workers.add(answer.body)
    assert log.read_text().count("set GATEWAY_SECRET_KEY") == 1
