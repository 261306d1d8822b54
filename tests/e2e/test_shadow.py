"""The reference application is shadowed, reads and writes, on two real workers: its port shows no difference."""

import time
from pathlib import Path

import pytest

from gateway.model import Outcome
from gateway.shadow.keeper import status
from gateway.shadow.verdicts import Verdicts
from tests.e2e.test_sessions import ADMIN, server, sign_in
from tests.support.processes import wait_until
from tests.support.serving import Server

__all__ = ["server"]

READS = {
    "system.health": "/api/health",
    "users.me": "/api/users/me",
    "artists.list_artists": "/api/artists/?page=1&per_page=5",
    "videos.list_videos": "/api/videos/",
}
WRITE = "artists.create_artist"
ROUNDS = 12
ENOUGH = ROUNDS // 2  # comparisons: what is too much at once is shed


@pytest.fixture
def shadowed(server: Server) -> Server:
    server.put(
        *(f"{key}: {{shadow: 100}}" for key in READS),
        f"{WRITE}: {{shadow: 100, shadow_writes: rollback, ignore: [rows.audit_log.served_by]}}",
    )
    wait_until(lambda: status(server.state).pid and not status(server.state).loading, "a process that replays", 60)
    return server


def compared(state: Path, key: str) -> int:
    tally = Verdicts(state).tallies().get(key, {})
    return tally.get(Outcome.MATCHED, 0) + tally.get(Outcome.MISMATCHED, 0)


@pytest.mark.timeout(300)
def test_reads_and_writes_of_the_reference_application_match(shadowed: Server) -> None:
    with shadowed.client() as client:
        sign_in(client, ADMIN)
        for number in range(ROUNDS):
            made = client.post("/api/artists/", json={"name": f"Shadow {number}"}, headers={"Origin": shadowed.url})
            assert made.status_code == 201, made.text
            for path in READS.values():
                assert client.get(path).status_code == 200
            time.sleep(0.1)  # a person's pace
        names = [artist["name"] for artist in client.get("/api/artists/?search=Shadow").json()["artists"]]
    assert sorted(f"Shadow {number}" for number in range(ROUNDS)) == sorted(names)

    for key in (*READS, WRITE):
        wait_until(lambda key=key: compared(shadowed.state, key) >= ENOUGH, f"comparisons of {key}", 120)  # type: ignore[misc]
    causes = [(group.key, group.places, group.samples[:1]) for group in Verdicts(shadowed.state).groups()]
    assert [] == causes
