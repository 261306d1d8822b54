"""What a newcomer meets: `./dev up --demo`, from nothing, without the internet."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.processes import child, free_port, session_members, wait_until
from tests.support.serving import ROOT, environment


@dataclass(frozen=True)
class Demo:
    process: "subprocess.Popen[bytes]"
    url: str
    services: str
    said: str

    @contextmanager
    def signed_in(self, user: str) -> Iterator[httpx.Client]:
        """With the password that was printed."""
        password = re.search(rf"^{user} / (\S+)", self.said, re.MULTILINE)
        assert password is not None
        with httpx.Client(base_url=self.url, headers={"Origin": self.url}, timeout=30, trust_env=False) as client:
            answer = client.post("/auth/login", json={"username": user, "password": password[1]})
            assert answer.status_code == 200, answer.text
            yield client

    def is_gone(self) -> bool:
        """The services, too."""
        return not session_members(self.process.pid) and not answers(self.services)


def command(port: int) -> list[str]:
    return [sys.executable, str(ROOT / "dev"), "up", "--demo", "--port", str(port)]


def variables(home: Path) -> dict[str, str]:
    quick = {"BCRYPT_ROUNDS": "4", "FFMPEG": "no-such-program"}
    return environment({"DEMO_PATH": str(home / "demo"), "GATEWAY_STATE": str(home / "state"), **quick})


@contextmanager
def demo(home: Path, log: Path) -> Iterator[Demo]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with child(command(port), log, env=variables(home)) as process:

        def serves() -> bool:
            assert process.poll() is None, log.read_text()
            return answers(url)

        wait_until(serves, f"the demo; see {log}", timeout_s=180)
        said = log.read_text()
        services = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert services is not None
        yield Demo(process, url, services[0], said)


def answers(url: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_the_demo_is_filled_discovers_offline_keeps_what_was_done_and_leaves_nothing_running(tmp_path: Path) -> None:
    with demo(tmp_path, tmp_path / "first.log") as first:
        with first.signed_in("user") as user:
            assert user.get("/api/artists/").json()["total"] == 25
            assert user.get("/api/videos/?limit=1").json()["total"] == 150
            for kind in ("artists", "videos"):
                picture = user.get(f"/api/{kind}/7/thumbnail")
                assert picture.headers["content-type"] == "image/jpeg"
            (monitor,) = user.get("/api/youtube/playlists/").json()["monitors"]
            assert monitor["playlist_id"] == "PLdemo-offline"

            found = user.get("/api/discovery/artists", params={"q": "Kraftwerk"}).json()["artists"]
            assert found[0]["name"] == "Kraftwerk"
            assert not found[0]["already_have"]
            imported = user.post("/api/discovery/artists/import", json={"imvdb_id": found[0]["imvdb_id"]})
            assert imported.status_code == 201, imported.text
            artist = imported.json()["artist"]["id"]
            assert user.get(f"/api/artists/{artist}/thumbnail").headers["content-type"] == "image/jpeg"
            stored = user.post(f"/api/discovery/artist/{artist}").json()
            assert stored["stored"] > 0
        with first.signed_in("admin") as admin:
            assert admin.get("/api/users/").json()["total"] == 4

        other = subprocess.run(
            command(free_port()), check=False, env=variables(tmp_path), capture_output=True, text=True, timeout=120
        )
        assert (other.returncode, "another demo runs" in other.stderr) == (2, True)
        assert answers(first.services)

        os.killpg(first.process.pid, signal.SIGINT)  # Ctrl-C
        wait_until(first.is_gone, "everything to end", timeout_s=60)

    with demo(tmp_path, tmp_path / "second.log") as second:
        with second.signed_in("user") as user:
            assert user.get("/api/artists/").json()["total"] == 26
            assert user.get("/api/discovery/artists", params={"q": "Björk"}).json()["artists"][0]["already_have"]
        second.process.kill()
        wait_until(second.is_gone, "everything to end", timeout_s=60)
