"""One sign-in on both sides of the reference application, on two real workers."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.support.load import load
from tests.support.serving import ROOT, Server, environment, serving

SIDES = ("legacy", "fastapi")
ADMIN = {"username": "admin", "password": "Admin-pass-1"}
READER = {"username": "readonly", "password": "Readonly-pass-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference application as this repository configures it, with the small library and the demo users."""
    home = tmp_path_factory.mktemp("music")
    env = {
        "DATABASE_URL": f"sqlite:///{home}/app.sqlite3",
        "DATA_PATH": str(home / "data"),
        "LIBRARY_PATH": str(home / "library"),
        "SECRET_KEY": os.urandom(32).hex(),
        "BCRYPT_ROUNDS": "4",
    }
    seed = [sys.executable, "-m", "legacy_flask.seed", "--size", "small", "--demo"]
    subprocess.run(seed, check=True, cwd=ROOT, env=environment(env), stdout=subprocess.DEVNULL)
    apps = {"legacy": "legacy_flask:create_app", "fastapi": "fastapi_app:create_app"}
    patience = {"shadow_timeout_s": 100}  # what replays gets the CPU when nobody else wants it
    with serving(home, **apps, env=env, cwd=ROOT, served_by=True, **patience) as running:
        yield running


def sign_in(client: httpx.Client, who: dict[str, str]) -> None:
    answer = client.post("/auth/login", json=who, headers={"Origin": str(client.base_url)})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("other", SIDES)
@pytest.mark.parametrize("side", SIDES)
def test_a_session_that_one_side_made_is_good_on_both_and_ends_on_both(server: Server, side: str, other: str) -> None:
    with server.client() as client:
        server.put(override=side)
        sign_in(client, ADMIN)
        server.put(override=other)
        answer = client.get("/api/users/me")
        assert (answer.status_code, answer.headers["x-served-by"]) == (200, other)
        assert answer.json()["username"] == "admin"
        stolen, me = dict(client.cookies), f"{server.url}/api/users/me"

        assert client.post("/auth/logout", headers={"Origin": server.url}).status_code == 200
        for where in SIDES:
            server.put(override=where)
            assert client.get("/api/users/me").status_code == 401
            assert httpx.get(me, cookies=stolen, timeout=30, trust_env=False).status_code == 401


@pytest.mark.parametrize("side", SIDES)
def test_a_role_that_changes_on_one_side_is_seen_on_the_other_with_the_next_request(server: Server, side: str) -> None:
    with server.client() as admin, server.client() as reader:
        server.put(override=side)
        sign_in(admin, ADMIN)
        sign_in(reader, READER)
        server.put(override="fastapi" if side == "legacy" else "legacy")
        assert reader.get("/api/users/").status_code == 403
        user_id = reader.get("/api/users/me").json()["id"]

        for role, status in (("admin", 200), ("readonly", 403)):
            server.put(override=side)
            changed = admin.put(f"/api/users/{user_id}/role", json={"role": role}, headers={"Origin": server.url})
            assert changed.status_code == 200, changed.text
            server.put(override="fastapi" if side == "legacy" else "legacy")
            assert reader.get("/api/users/").status_code == status


def test_a_token_of_the_port_is_good_on_both_sides_and_ends_with_its_session(server: Server) -> None:
    server.put(override="fastapi")
    with server.client() as client:
        tokens = client.post("/auth/token", json=ADMIN).raise_for_status().json()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    for side in SIDES:
        server.put(override=side)
        assert httpx.get(f"{server.url}/api/users/me", headers=bearer, timeout=30, trust_env=False).status_code == 200

    server.put(override="legacy")
    origin = {"Origin": server.url}
    ended = httpx.post(f"{server.url}/auth/logout", headers=bearer | origin, timeout=30, trust_env=False)
    assert ended.status_code == 200, ended.text
    for side in SIDES:
        server.put(override=side)
        assert httpx.get(f"{server.url}/api/users/me", headers=bearer, timeout=30, trust_env=False).status_code == 401


def test_a_signed_in_user_notices_nothing_while_sides_change(server: Server) -> None:
    server.put(override="legacy")
    with server.client() as client:
        sign_in(client, READER)
        with load(server, "/api/artists/?per_page=5", headers={"Cookie": cookie(client)}, clients=2) as asked:
            for side in ("fastapi", "legacy") * 3:
                server.put(override=side)

    assert asked.failures == []
    bodies = {repr(request.answer) for request in asked.requests}
    assert len(bodies) == 1


def cookie(client: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())
