"""The gateway in front of two real applications, in process."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from flask import Flask, jsonify, request

from gateway.app import Gateway
from gateway.errors import ConfigError
from gateway.flags import FlagStore
from gateway.identity import IdentityBridge
from gateway.instruments import Instruments
from gateway.ledger import Ledger
from gateway.loading import load_app, load_pair
from gateway.routes import RouteTable
from gateway.settings import Settings
from gateway.wsgi import WsgiBackend
from tests.support.asgi import Lifespan, ask, http_scope
from tests.support.browser import IDENTITY, KEY, token_of
from tests.support.processes import wait_until

PORTED = [
    "everyone",
    "answered",
    "died",
    "refused",
    "late",
    "pair",
    "body",
    "background",
    "missing",
    "hung",
    "stubborn",
]


_legacy_was_asked = threading.Event()


def make_legacy() -> Flask:
    app = Flask("shop")
    app.secret_key = KEY
    calls = app.config["CALLS"] = []
    _legacy_was_asked.clear()

    def view(name: str) -> Callable[[], Response]:
        def answer() -> Response:
            calls.append((request.method, name, request.get_data()))
            _legacy_was_asked.set()
            return jsonify(by="legacy", name=name, remote=request.remote_addr, scheme=request.scheme)

        return answer

    for name in [*PORTED, "old"]:
        app.add_url_rule(f"/{name}", name, view(name), methods=["GET", "POST"])
    return app


def make_port() -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "open"}

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/everyone", name="everyone", methods=["GET", "POST"])
    async def everyone(request: Request) -> dict[str, object]:
        client = request.client.host if request.client else None
        return {"by": "fastapi", "remote": client, "scheme": request.url.scheme, "pool": request.state.pool}

    @app.api_route("/answered", name="answered", methods=["GET", "POST"])
    async def answered() -> None:
        raise HTTPException(503)

    @app.api_route("/died", name="died", methods=["GET", "POST"])
    async def died() -> None:
        raise RuntimeError("bug")

    @app.get("/refused", name="refused")
    async def refused() -> None:
        raise HTTPException(418)

    @app.get("/late", name="late")
    async def late() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("after the first byte")

        return StreamingResponse(parts())

    @app.get("/body", name="body")
    async def body(request: Request) -> None:
        await request.body()
        raise RuntimeError("bug")

    @app.get("/background", name="background")
    async def background(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(explode)
        return {"by": "fastapi"}

    @app.api_route("/hung", name="hung", methods=["GET", "POST"])
    async def hung(seconds: float = 60) -> dict[str, str]:
        await asyncio.sleep(seconds)
        return {"by": "fastapi"}

    @app.get("/stubborn", name="stubborn")
    def stubborn() -> dict[str, str]:
        _legacy_was_asked.wait(60)  # in a thread, where nothing can cancel it
        return {"by": "fastapi"}

    @app.get("/born", name="born")
    async def born() -> dict[str, str]:
        return {"by": "fastapi"}

    @app.websocket("/live")
    async def live(socket) -> None:
        await socket.accept()

    return app


def explode() -> None:
    raise RuntimeError("in the background")


@asynccontextmanager
async def running(
    tmp_path: Path, said: str = "override: fastapi", port: FastAPI | None = None, **settings: object
) -> AsyncIterator[Gateway]:
    legacy = make_legacy()
    fastapi = port or make_port()
    file = tmp_path / "flags.yaml"
    file.write_text(f"version: 1\n{said}\n")
    config = Settings(threads=2, state=str(tmp_path), **settings)  # type: ignore[arg-type]
    routes = RouteTable(legacy, fastapi)
    flags = FlagStore(file, routes.keys, tmp_path)
    gateway = Gateway(
        config,
        routes=routes,
        flags=flags,
        identity=IdentityBridge(legacy, config, b"s" * 32),
        legacy=WsgiBackend(legacy, config, multiprocess=False),
        fastapi=fastapi,
        instruments=Instruments(config, flags),
    )
    gateway.calls = legacy.config["CALLS"]  # type: ignore[attr-defined]
    gateway.counters = partial(counters, tmp_path)  # type: ignore[attr-defined]
    async with Lifespan(gateway) as lifespan:
        gateway.state = lifespan.state  # type: ignore[attr-defined]
        yield gateway


def counters(state: Path, total: int) -> dict[tuple[str, int], int]:
    """Answers by side and status, once the ledger has written so many."""
    ledger = Ledger(state)
    wait_until(lambda: sum(counter.count for counter in ledger.counters()) >= total, "the ledger")
    return {(counter.backend.value, counter.status): counter.count for counter in ledger.counters()}


async def by(gateway: Gateway, method: str, path: str, **more: object) -> str:
    answer = await ask(gateway, method, path, state=gateway.state, **more)  # type: ignore[attr-defined,arg-type]
    assert answer.complete
    return "legacy" if b'"by":"legacy"' in answer.body else "fastapi" if b'"by":"fastapi"' in answer.body else "nobody"


async def test_a_flag_sends_each_route_its_own_way(tmp_path: Path) -> None:
    async with running(tmp_path, "routes: {everyone: fastapi, died: legacy}") as gateway:
        assert "fastapi" == await by(gateway, "GET", "/everyone")
        assert "legacy" == await by(gateway, "GET", "/died")
        assert "legacy" == await by(gateway, "GET", "/old")
        assert "fastapi" == await by(gateway, "GET", "/born")


async def test_the_lifespan_state_of_fastapi_reaches_its_handlers(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answer = await ask(gateway, "GET", "/everyone", state=gateway.state)  # type: ignore[attr-defined]
        assert b'"pool":"open"' in answer.body


@pytest.mark.parametrize("path", ["/answered", "/died"])
async def test_legacy_stands_in_for_a_failing_port_on_a_get(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as gateway:
        answer = await ask(gateway, "GET", path, state={})
        assert (200, True) == (answer.status, b'"by":"legacy"' in answer.body)
        assert 1 == len(gateway.calls)  # type: ignore[attr-defined]


async def test_a_failing_write_is_never_run_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answer = await ask(gateway, "POST", "/answered", state={}, body=b"x")
        assert (503, []) == (answer.status, gateway.calls)  # type: ignore[attr-defined]
        answer = await ask(gateway, "POST", "/died", state={}, body=b"x")
        assert (500, []) == (answer.status, gateway.calls)  # type: ignore[attr-defined]


async def test_nobody_stands_in_after_the_first_byte(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        with pytest.raises(RuntimeError, match="after the first byte"):
            await ask(gateway, "GET", "/late", state={})
        assert [] == gateway.calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/hung", "/stubborn"])
async def test_legacy_stands_in_for_a_port_that_hangs(tmp_path: Path, path: str) -> None:
    async with running(tmp_path, port_timeout_s=0.05) as gateway:
        answer = await ask(gateway, "GET", path, state={})
        assert (200, True, True) == (answer.status, answer.complete, b'"by":"legacy"' in answer.body)
        counters = gateway.counters(2)  # type: ignore[attr-defined]
        assert {("legacy", 200): 1, ("fastapi", 504): 1} == counters


async def test_a_write_that_takes_long_is_neither_cut_off_nor_repeated(tmp_path: Path) -> None:
    async with running(tmp_path, port_timeout_s=0.05) as gateway:
        assert "fastapi" == await by(gateway, "POST", "/hung?seconds=0.2")
        assert [] == gateway.calls  # type: ignore[attr-defined]


async def test_an_answer_that_has_begun_may_take_its_time(tmp_path: Path) -> None:
    port, loop = make_port(), asyncio.get_running_loop()
    time = loop.time

    @port.get("/pair", name="pair")
    async def pair() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b'{"by":'
            loop.time = lambda: time() + 60  # the limit is long over, without waiting for it
            await asyncio.sleep(0.01)
            loop.time = time
            yield b'"fastapi"}'

        return StreamingResponse(parts())

    async with running(tmp_path, port=port, port_timeout_s=30) as gateway:
        assert "fastapi" == await by(gateway, "GET", "/pair")


async def test_an_error_of_the_client_is_an_answer_like_any_other(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert 418 == (await ask(gateway, "GET", "/refused", state={})).status


async def test_a_get_whose_body_the_port_has_read_is_not_repeated_without_it(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answer = await ask(gateway, "GET", "/body", state={}, body=b"read me")
        assert (500, []) == (answer.status, gateway.calls)  # type: ignore[attr-defined]


async def test_a_background_task_that_fails_does_not_take_the_connection_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert "fastapi" == await by(gateway, "GET", "/background")


async def test_answers_carry_nothing_of_ours_unless_the_operator_asks(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        names = {name for name, _ in (await ask(gateway, "GET", "/everyone", state=gateway.state)).headers}  # type: ignore[attr-defined]
        assert {"content-length", "content-type"} == names
    async with running(tmp_path, served_by=True) as gateway:
        answer = await ask(gateway, "GET", "/old")
        assert "legacy" == answer.get("x-served-by")
        assert "desc=unported" in (answer.get("server-timing") or "")
        answer = await ask(gateway, "GET", "/died", state={})
        assert "legacy" == answer.get("x-served-by")


@pytest.mark.parametrize(
    ("hops", "forwarded", "client"),
    [
        (0, "6.6.6.6", "127.0.0.1"),
        (1, "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (2, "1.2.3.4, 9.9.9.9", "1.2.3.4"),
        (2, "6.6.6.6", "127.0.0.1"),
    ],
)
async def test_both_sides_believe_the_same_proxy(tmp_path: Path, hops: int, forwarded: str, client: str) -> None:
    headers = [("x-forwarded-for", forwarded), ("x-forwarded-proto", "https"), ("x-forwarded-proto", "https")]
    scheme = "https" if hops else "http"
    async with running(tmp_path, trusted_hops=hops) as gateway:
        for path in ("/everyone", "/old"):
            body = (await ask(gateway, "GET", path, headers, state=gateway.state)).body.decode()  # type: ignore[attr-defined]
            assert (f'"remote":"{client}"' in body, f'"scheme":"{scheme}"' in body) == (True, True), body


async def test_an_anonymous_caller_of_a_split_route_stays_on_one_side(tmp_path: Path) -> None:
    async with running(tmp_path, "routes: {everyone: {weight: 50}}") as gateway:
        sides = set()
        for _ in range(40):
            first = await ask(gateway, "GET", "/everyone", state=gateway.state)  # type: ignore[attr-defined]
            cookie = (first.get("set-cookie") or "").split(";")[0]
            assert cookie.startswith("gw_id=")
            again = await ask(gateway, "GET", "/everyone", [("cookie", cookie)], state=gateway.state)  # type: ignore[attr-defined]
            assert first.body == again.body
            assert again.get("set-cookie") is None
            sides.add(first.body[:15])
        assert 2 == len(sides)


async def test_a_route_that_is_not_split_sets_no_cookie(tmp_path: Path) -> None:
    async with running(tmp_path, "routes: {everyone: {weight: 100}}") as gateway:
        for path in ("/everyone", "/old", "/nowhere"):
            assert (await ask(gateway, "GET", path, state=gateway.state)).get("set-cookie") is None  # type: ignore[attr-defined]


async def test_with_one_sign_in_a_caller_without_credentials_can_sign_in_and_is_kept_on_one_side(
    tmp_path: Path,
) -> None:
    port = make_port()

    @port.get("/old", name="old")
    async def sign_in(response: Response) -> None:
        response.set_cookie("access_token", token_of(7))

    flags = "routes: {everyone: {weight: 50}, old: fastapi}"
    async with running(tmp_path, flags, port, identity=IDENTITY) as gateway:
        signed_in = await ask(gateway, "GET", "/old", state=gateway.state)  # type: ignore[attr-defined]
        assert ["access_token", "session"] == [line.partition("=")[0] for line in signed_in.get_all("set-cookie")]
        for _ in range(10):
            first = await ask(gateway, "GET", "/everyone", state=gateway.state)  # type: ignore[attr-defined]
            assert ["gw_id"] == [line.partition("=")[0] for line in first.get_all("set-cookie")]
        assert None is (await ask(gateway, "GET", "/died", state=gateway.state)).get("set-cookie")  # type: ignore[attr-defined]


async def test_a_flag_change_is_followed_without_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, "override: none") as gateway:
        assert "legacy" == await by(gateway, "GET", "/everyone")
        (tmp_path / "flags.yaml").write_text("version: 1\noverride: fastapi\n")
        async with asyncio.timeout(30):
            while "legacy" == await by(gateway, "GET", "/everyone"):
                await asyncio.sleep(0.01)


async def test_a_websocket_that_only_legacy_knows_gets_an_http_answer(tmp_path: Path) -> None:
    sent: list[dict] = []
    upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")]
    scope = http_scope("GET", "/old", upgrade, type="websocket", extensions={"websocket.http.response": {}})
    del scope["method"]

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    async def send(message: dict) -> None:
        sent.append(message)

    async with running(tmp_path) as gateway:
        await gateway(scope, receive, send)
        assert ("websocket.http.response.start", 400) == (sent[0]["type"], sent[0]["status"])


async def test_a_port_that_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database at db:3306")
        yield

    port = FastAPI(lifespan=lifespan)
    legacy = make_legacy()
    config = Settings(state=str(tmp_path))
    routes = RouteTable(legacy, port)
    gateway = Gateway(
        config,
        routes=routes,
        flags=FlagStore(None, routes.keys, tmp_path),
        identity=IdentityBridge(legacy, config, b"s" * 32),
        legacy=WsgiBackend(legacy, config, multiprocess=False),
        fastapi=port,
    )
    async with Lifespan(gateway) as span:
        assert "gateway: RuntimeError: no database at db:3306" == span.failed


# --- what --legacy and --fastapi may name -----------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> None:
        (tmp_path / "given.py").write_text(source)
        sys.modules.pop("given", None)

    yield write
    sys.modules.pop("given", None)


@pytest.mark.parametrize("name", ["app", "make", "make()", "make('x', y=1)", "raw", "Thing"])
def test_an_application_a_factory_and_a_call_are_accepted(module: Callable[[str], None], name: str) -> None:
    module(
        "from flask import Flask\n"
        "app = Flask('a')\n"
        "def make(x=None, y=None): return app\n"
        "def raw(environ, start_response): return []\n"
        "class Thing:\n def __call__(self, environ, start_response): return []\n"
    )
    assert callable(load_app(f"given:{name}", "legacy"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("given", "expected package.module:app_or_factory, not 'given'"),
        ("given:", "expected package.module:app_or_factory, not 'given:'"),
        ("given:a.b", "expected package.module:app_or_factory"),
        ("given:make(x)", "expected package.module:app_or_factory"),
        ("nowhere.at.all:app", "cannot import nowhere.at.all: ModuleNotFoundError"),
        ("given:apq", "given has no 'apq'"),
        ("given:number", "given:number is a int, neither an application nor a factory"),
        ("given:broken", "given:broken failed: ZeroDivisionError: division by zero (" + "{path}/given.py:3)"),
        ("given:leaves", "given:leaves failed: no database"),
    ],
)
def test_a_wrong_import_string_is_one_sentence(module, tmp_path: Path, spec: str, says: str) -> None:
    module(
        "import sys\nnumber = 3\n"
        "def broken(): 1 / 0\n"
        "def leaves(): sys.exit('no database')\n"
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_app(spec, "legacy")
    assert says.format(path=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_breaks_while_it_is_imported_is_one_sentence(module) -> None:
    module("import nothing_like_it\n")
    with pytest.raises(ConfigError, match=r"legacy: cannot import given: ModuleNotFoundError: .*nothing_like_it"):
        load_app("given:app", "legacy")


def test_legacy_must_be_named_and_the_port_must_be_fastapi(module) -> None:
    module("from flask import Flask\napp = Flask('a')\n")
    with pytest.raises(ConfigError, match="no legacy application"):
        load_pair(Settings())
    with pytest.raises(ConfigError, match="given:app is a Flask, not a FastAPI application"):
        load_pair(Settings(legacy="given:app", fastapi="given:app"))
