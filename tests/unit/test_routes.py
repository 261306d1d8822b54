"""The route table: what pairs with what, what a request is, and that handing a match over changes nothing."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from flask import (
    Blueprint,
    Flask,
    abort,
    copy_current_request_context,
    g,
    redirect,
    request,
    session,
    stream_with_context,
    url_for,
)
from flask import Request as FlaskRequest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import Match as Fit
from starlette.routing import Mount
from werkzeug.exceptions import HTTPException as WerkzeugException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter, Map, MapAdapter, Rule

from gateway.errors import ConfigError, RouteError
from gateway.routes import NEW, KnownRoute, Match, RouteTable, hand_over
from tests.support.asgi import Answer, ask, http_scope


class Rest(PathConvertor):
    """An application's own."""

    regex = ".+"


register_url_convertor("rest", Rest())


def flask_app(*rules: str, **options: Any) -> Flask:
    """`"videos.get GET,PUT /videos/<int:video_id>"`, one argument a rule; endpoint and methods first."""
    app = Flask("legacy", **options)
    for line in rules:
        endpoint, methods, rule = line.split(" ", 2)
        app.url_map.add(app.url_rule_class(rule, endpoint=endpoint, methods=[*methods.split(","), "OPTIONS"]))
        app.view_functions[endpoint] = lambda **args: {"args": {name: str(value) for name, value in args.items()}}
    return app


def fastapi_app(*operations: str, router: APIRouter | None = None) -> FastAPI:
    """The same notation. An empty name (`-`) leaves the function's own name, `answer`."""
    app = FastAPI()
    for line in operations:
        name, methods, path = line.split(" ", 2)

        async def answer(request: Request) -> dict[str, Any]:
            return {"path_params": request.path_params, "route": request.scope["route"].name}

        (router or app).add_api_route(path, answer, methods=methods.split(","), name=None if name == "-" else name)
    if router:
        app.include_router(router)
    return app


def ported(table: RouteTable, method: str, path: str) -> bool:
    """Whether this request may go to FastAPI as a route of Flask."""
    match = table.match(method, path)
    return match is not None and match.route is not None and method in match.route.ported


# --- pairing ------------------------------------------------------------------------------------------------------


def test_an_operation_that_bears_the_name_of_an_endpoint_is_its_twin() -> None:
    table = RouteTable(
        flask_app("videos.get GET,PUT /videos/<int:video_id>"), fastapi_app("videos.get GET /videos/{video_id}")
    )
    route = table.routes["videos.get"]
    assert ("/videos/<int:video_id>",) == route.rules
    assert {"GET", "HEAD", "OPTIONS", "PUT"} == route.methods
    assert {"GET"} == route.ported
    assert {"GET": "name"} == route.paired
    assert frozenset({"videos.get", "static"}) == table.keys


def test_without_the_name_an_equal_method_and_template_is_enough() -> None:
    table = RouteTable(
        flask_app("videos.get GET,PUT /videos/<int:video_id>"), fastapi_app("read_video GET /videos/{id:int}")
    )
    assert {"GET": "path"} == table.routes["videos.get"].paired
    assert ported(table, "GET", "/videos/5")
    assert not ported(table, "PUT", "/videos/5")


@pytest.mark.parametrize(
    ("rule", "path", "twins"),
    [
        ("/a/<x>", "/a/{y}", True),
        ("/a/<int(min=3):x>", "/a/{y:float}", True),
        ("/a/<uuid:x>-<any(b, c):z>", "/a/{x}-{z}", True),
        ("/a/<path:x>", "/a/{y:path}", True),
        ("/a/<path:x>", "/a/{y:rest}", True),
        ("/a/<x>", "/a/{x:rest}", False),
        ("/a/<path:x>", "/a/{x}", False),
        ("/a/<x>", "/a/{x:path}", False),
        ("/a/<x>/", "/a/{x}", False),
        ("/a/", "/a", False),
        ("/a", "/b", False),
        ("/a/<x>", "/a/b", False),
    ],
)
def test_parameter_names_and_converters_do_not_matter_to_a_template_but_everything_else_does(
    rule: str, path: str, twins: bool
) -> None:
    table = RouteTable(flask_app(f"it GET {rule}"), fastapi_app(f"other GET {path}"))
    assert twins == bool(table.routes["it"].ported)


def test_each_method_finds_its_own_twin() -> None:
    table = RouteTable(
        flask_app("videos.item GET,PUT,DELETE /videos/<int:id>"),
        fastapi_app("videos.item GET /videos/{id}", "change PUT /videos/{key}"),
    )
    assert {"GET": "name", "PUT": "path"} == table.routes["videos.item"].paired


def test_two_endpoints_may_share_a_path() -> None:
    table = RouteTable(
        flask_app("videos.list GET /videos", "videos.create POST /videos"),
        fastapi_app("videos.list GET /videos", "make POST /videos"),
    )
    assert {"GET": "name"} == table.routes["videos.list"].paired
    assert {"POST": "path"} == table.routes["videos.create"].paired


def test_head_and_options_stay_with_flask_until_the_port_declares_them() -> None:
    legacy = flask_app("who GET /who")
    assert {"GET"} == RouteTable(legacy, fastapi_app("who GET /who")).routes["who"].ported
    assert {"GET", "HEAD"} == RouteTable(legacy, fastapi_app("who GET,HEAD /who")).routes["who"].ported


def test_operations_of_nested_routers_are_found_under_their_full_path() -> None:
    inner, outer, api = APIRouter(prefix="/{artist_id}"), APIRouter(prefix="/artists"), FastAPI()
    inner.add_api_route("/albums", lambda artist_id: [], name="artists.albums")
    outer.include_router(inner)
    api.include_router(outer, prefix="/api")
    table = RouteTable(flask_app("artists.albums GET /api/artists/<int:artist_id>/albums"), api)
    assert {"GET": "name"} == table.routes["artists.albums"].paired


def test_aliases_are_ported_one_by_one() -> None:
    legacy = flask_app("list GET /videos", "list GET /clips")
    half = RouteTable(legacy, fastapi_app("list GET /videos"))
    assert frozenset() == half.routes["list"].ported
    assert {"GET": "name"} == half.routes["list"].paired
    assert ("list: GET is ported, but not for /clips",) == half.warnings
    assert ported(half, "GET", "/videos")
    assert not ported(half, "GET", "/clips")
    both = RouteTable(legacy, fastapi_app("list GET /videos", "list GET /clips"))
    assert {"GET"} == both.routes["list"].ported
    assert ported(both, "GET", "/clips")
    assert () == both.warnings


def test_what_the_twin_cannot_match_stays_with_flask() -> None:
    table = RouteTable(flask_app("get GET /videos/<key>"), fastapi_app("get GET /videos/{key:int}"))
    assert ported(table, "GET", "/videos/5")
    assert not ported(table, "GET", "/videos/abc")
    assert {"GET"} == table.routes["get"].ported


def test_a_path_that_flask_reads_with_fewer_slashes_stays_with_flask() -> None:
    table = RouteTable(flask_app("who GET /who"), fastapi_app("who GET /who"))
    match = table.match("GET", "//who")
    assert match is not None
    assert match.route is not None
    assert "GET" not in match.route.ported


async def test_of_several_twins_by_path_the_one_with_the_same_parameter_names_is_asked_first() -> None:
    api = fastapi_app("by_name GET /v/{name}", "by_id GET /v/{id:int}")
    table = RouteTable(flask_app("v.id GET /v/<int:id>", "v.name GET /v/<name>"), api)
    assert {"id": 5} == decoded(await ask_port(api, table, "GET", "/v/5"))["path_params"]
    assert "by_name" == decoded(await ask_port(api, table, "GET", "/v/x"))["route"]


async def test_the_order_of_registration_does_not_decide_who_answers() -> None:
    api = fastapi_app("get GET /videos/{key}", "search GET /videos/search")
    table = RouteTable(flask_app("get GET /videos/<key>", "search GET /videos/search"), api)
    assert "search" == decoded(await ask_port(api, table, "GET", "/videos/search"))["route"]


# --- contradictions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/videos/{id}", "/api/video/{video_id}", "/api/videos/{video_id}/"])
def test_one_name_on_two_templates_is_an_error_that_names_both_sides(path: str) -> None:
    with pytest.raises(RouteError) as caught:
        RouteTable(
            flask_app("videos.get_video GET /api/videos/<int:video_id>"), fastapi_app(f"videos.get_video GET {path}")
        )
    assert f"videos.get_video: FastAPI has {path}, Flask has /api/videos/<int:video_id>" == str(caught.value)


def test_a_function_that_happens_to_have_the_name_pairs_by_path_if_only_a_parameter_is_called_otherwise() -> None:
    table = RouteTable(flask_app("answer GET /users/<int:user_id>"), fastapi_app("- GET /users/{id}"))
    assert {"GET": "path"} == table.routes["answer"].paired


def test_a_function_that_happens_to_have_the_name_of_another_path_is_an_error() -> None:
    with pytest.raises(RouteError, match="answer: FastAPI has /user, Flask has /users"):
        RouteTable(flask_app("answer GET /users"), fastapi_app("- GET /user"))


def test_an_unknown_dotted_name_is_an_error_that_suggests_the_nearest_endpoint() -> None:
    with pytest.raises(RouteError) as caught:
        RouteTable(flask_app("videos.list GET /videos"), fastapi_app("videos.lits GET /video"))
    assert "videos.lits: FastAPI has /video, Flask has no such endpoint; did you mean 'videos.list'?" == str(
        caught.value
    )


def test_an_unknown_dotted_name_is_no_error_when_the_path_pairs() -> None:
    table = RouteTable(flask_app("videos.list GET /videos"), fastapi_app("v2.all_videos GET /videos"))
    assert {"GET": "path"} == table.routes["videos.list"].paired


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(RouteError) as caught:
        RouteTable(flask_app("a.b GET /b", "a.c GET /c"), fastapi_app("a.b GET /x", "a.c GET /y"))
    assert 2 == len(str(caught.value).splitlines())


def test_a_method_that_flask_lacks_is_a_warning() -> None:
    table = RouteTable(flask_app("who GET /who"), fastapi_app("who GET,PATCH /who"))
    assert ("who: FastAPI answers PATCH /who, but Flask says 405 before that",) == table.warnings
    assert table.match("PATCH", "/who") is None


def test_a_new_operation_that_a_rule_of_flask_hides_is_a_warning() -> None:
    table = RouteTable(flask_app("spa GET /<path:anything>"), fastapi_app("fresh GET /fresh/{id}"))
    assert "fresh: GET /fresh/{id} is new, but Flask's map takes that path" in table.warnings
    assert ported(table, "GET", "/fresh/1") is False


def test_host_and_subdomain_matching_are_refused_with_a_port_and_left_to_flask_without() -> None:
    for legacy in (flask_app("a GET /a", host_matching=True, static_host="h"), flask_app(subdomain_matching=True)):
        with pytest.raises(ConfigError, match="host and subdomain matching"):
            RouteTable(legacy, FastAPI())
        table = RouteTable(legacy, None)
        assert frozenset() == table.keys
        assert table.match("GET", "/a") is None


def test_without_a_flask_object_everything_is_legacy() -> None:
    table = RouteTable(None, fastapi_app("videos.list GET /videos"))
    assert frozenset() == table.keys
    assert table.match("GET", "/videos") is None
    assert table.match("GET", "/docs") is None
    assert [] == table.pairs()


def test_without_a_port_every_route_is_known_and_none_is_ported() -> None:
    table = RouteTable(flask_app("who GET /who"), None)
    match = table.match("GET", "/who")
    assert match is not None
    assert match.route is table.routes["who"]
    assert frozenset() == match.route.ported
    assert not table.websocket("/who")


# --- matching -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> RouteTable:
    legacy = flask_app(
        "list GET /videos/",
        "get GET /videos/<int:video_id>",
        "page GET /page/<int:n>",
        "put PUT /only-put",
        "file GET /files/<path:name>",
        "number GET /number/<float(min=1):x>",
    )
    legacy.url_map.add(Rule("/page/", endpoint="page", methods=["GET"], defaults={"n": 1}))
    legacy.url_map.add(Rule("/old", endpoint="moved", redirect_to="/videos/"))
    legacy.url_map.add(Rule("/listed", endpoint="list", alias=True))
    legacy.url_map.add(Rule("/links/<x>", endpoint="links", build_only=True))
    legacy.url_map.add(Rule("/chat", endpoint="chat", websocket=True))
    port = fastapi_app("list GET /videos/", "get GET /videos/{video_id}", "file GET /files/{name:path}")
    return RouteTable(legacy, port)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/videos"),  # 308 to the slash
        ("POST", "/videos/"),  # 405
        ("GET", "/videos/abc"),  # 404: a converter says no
        ("GET", "/videos/-1"),
        ("GET", "/videos/5/"),
        ("GET", "/page/1"),  # 308 to the defaults
        ("GET", "/number/0.5"),
        ("GET", "/videos//5"),  # 308 to merged slashes
        ("GET", "/old"),
        ("GET", "/files/a\n"),
        ("GET", "/listed"),
        ("GET", "/links/1"),
        ("GET", "/chat"),
        ("GET", "/nowhere"),
        ("BREW", "/videos/"),
    ],
)
def test_what_flask_answers_by_itself_is_unmatched(strict: RouteTable, method: str, path: str) -> None:
    assert strict.match(method, path) is None


@pytest.mark.parametrize(
    ("path", "key", "args"),
    [
        ("/videos/", "list", {}),
        ("/videos/5", "get", {"video_id": 5}),
        ("/videos/٣", "get", {"video_id": 3}),
        ("/page/2", "page", {"n": 2}),
        ("/page/", "page", {"n": 1}),
        ("/files/a/b c", "file", {"name": "a/b c"}),
        ("/files/ä", "file", {"name": "ä"}),
        ("/number/1.5", "number", {"x": 1.5}),
    ],
)
def test_a_match_is_what_flask_itself_finds(strict: RouteTable, path: str, key: str, args: dict[str, object]) -> None:
    for _ in range(2):
        match = strict.match("GET", path)
        assert match is not None
        assert match.route is not None
        assert match.rule is not None
        assert (key, args) == (match.route.key, match.args)
        assert path.encode() == match.path_info.encode("latin-1")


def test_redirecting_and_aliasing_rules_do_not_keep_an_endpoint_from_being_ported(strict: RouteTable) -> None:
    assert {"GET"} == strict.routes["list"].ported
    assert {"moved", "links", "chat"}.isdisjoint(strict.keys)


def test_a_repeated_match_is_remembered_until_many_others_came(strict: RouteTable) -> None:
    first = strict.match("GET", "/videos/1")
    assert first is strict.match("GET", "/videos/1")
    for number in range(5_000):
        strict.match("GET", f"/videos/{number + 2}")
    assert len(strict._recent) + len(strict._older) <= 4096
    assert first is not strict.match("GET", "/videos/1")


def test_a_busy_path_is_not_crowded_out(strict: RouteTable) -> None:
    busy = strict.match("GET", "/videos/7")
    for number in range(5_000):
        strict.match("GET", f"/files/{number}")
        strict.match("GET", f"/nowhere/{number}")
        assert busy is strict.match("GET", "/videos/7")


def test_misses_and_long_paths_are_not_remembered() -> None:
    table = RouteTable(flask_app("file GET /files/<path:name>"), FastAPI())
    assert table.match("GET", "/nowhere") is None
    assert table.match("GET", "/files/" + "x" * 600) is not None
    assert {} == table._recent


def test_a_converter_of_the_application_is_asked_each_time_and_its_value_is_not_handed_over() -> None:
    asked = []

    class Slug(BaseConverter):
        def to_python(self, value: str) -> str:
            asked.append(value)
            if value == "broken":
                raise RuntimeError("no database here")
            return value

    legacy = Flask("legacy")
    legacy.url_map.converters["slug"] = Slug
    legacy.add_url_rule("/s/<slug:name>", "s", lambda name: name)
    table = RouteTable(legacy, fastapi_app("s GET /s/{name}"))
    matches = [table.match("GET", "/s/a"), table.match("GET", "/s/a")]
    assert ["a", "a"] == asked
    assert all(match is not None and match.rule is None and match.route is not None for match in matches)
    assert ported(table, "GET", "/s/a")
    assert table.match("GET", "/s/broken") is None


def test_a_rule_added_after_start_is_legacys_affair(strict: RouteTable) -> None:
    legacy = flask_app("file GET /files/<path:name>")
    table = RouteTable(legacy, fastapi_app("late GET /late"))
    legacy.url_map.add(Rule("/late", endpoint="late"))
    assert table.match("GET", "/late") is None


segments = st.sampled_from(["", "videos", "files", "page", "number", "only-put", "1", "5", "1.5", "ä", "a\n", "old"])


@settings(deadline=None)
@given(st.sampled_from(["GET", "HEAD", "PUT", "OPTIONS"]), st.lists(segments, min_size=1, max_size=5))
def test_for_any_path_flask_and_the_table_agree_and_a_twin_takes_what_it_is_sent(
    strict: RouteTable, method: str, parts: list[str]
) -> None:
    assert strict._adapter is not None
    path = "/" + "/".join(parts)
    bound = strict._adapter.map.bind_to_environ(environ(path, method), subdomain="")
    try:
        expected = bound.match(return_rule=True)
    except WerkzeugException:
        assert strict.match(method, path) is None
        return
    match = strict.match(method, path)
    assert match is not None
    assert match.route is not None
    assert (expected[0], expected[1]) == (match.rule, match.args)
    if method in match.route.ported:
        scope = {**http_scope(method, "/"), "path": path, "gateway.key": match.route.key}
        assert KnownRoute(strict._twins).matches(scope)[0] is Fit.FULL


# --- new routes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def grown() -> tuple[RouteTable, FastAPI]:
    api = fastapi_app("who GET /who", "fresh GET /fresh/{id:int}")
    api.mount("/sub", PlainTextResponse("mounted"))

    @api.websocket("/live/{room}")
    async def live(socket: WebSocket) -> None: ...

    return RouteTable(flask_app("who GET /who", "list GET /list/"), api), api


def test_new_paths_are_listed(grown: tuple[RouteTable, FastAPI]) -> None:
    assert {"/docs", "/openapi.json", "/fresh/{id:int}", "/sub", "/live/{room}"} <= set(grown[0].new)
    assert "/who" not in grown[0].new


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/fresh/1", "/sub/any/thing"])
def test_what_only_fastapi_has_is_new(grown: tuple[RouteTable, FastAPI], path: str) -> None:
    assert NEW is grown[0].match("GET", path)
    assert NEW is grown[0].match("GET", path)


def test_another_method_on_a_new_path_is_new_too_so_that_preflights_reach_it(
    grown: tuple[RouteTable, FastAPI],
) -> None:
    assert NEW is grown[0].match("OPTIONS", "/fresh/1")


@pytest.mark.parametrize("path", ["/fresh/1/", "/docs/", "/fresh/x", "/live/1", "/list", "/nowhere"])
def test_what_fastapi_would_only_redirect_or_refuse_is_not_new(grown: tuple[RouteTable, FastAPI], path: str) -> None:
    assert grown[0].match("GET", path) is None


def test_websockets_are_fastapis_where_it_has_them(grown: tuple[RouteTable, FastAPI]) -> None:
    table, _ = grown
    assert table.websocket("/live/7")
    assert table.websocket("/sub/x")
    assert not table.websocket("/who")
    assert not table.websocket("/live")


# --- route once: FastAPI ------------------------------------------------------------------------------------------


async def ask_port(api: FastAPI, table: RouteTable, method: str, path: str, **extra: Any) -> Answer:
    """What the gateway does with a ported request."""
    match = table.match(method, path)
    assert match is not None
    assert match.route is not None
    return await ask(api, method, path, **{"gateway.key": match.route.key}, **extra)


def shop() -> FastAPI:
    """Included routers two deep, dependencies at each level, validation, forms, a router-wide refusal."""

    async def outer_dependency(request: Request) -> None:
        request.state.seen = ["outer"]

    async def inner_dependency(request: Request, token: str = "") -> None:
        request.state.seen.append("inner")
        if token == "bad":
            raise HTTPException(403, "no")

    api = FastAPI(middleware=[])
    inner = APIRouter(prefix="/albums", dependencies=[Depends(inner_dependency)])
    outer = APIRouter(prefix="/artists/{artist_id}", dependencies=[Depends(outer_dependency)])

    @inner.get("/{album:path}", name="artists.album")
    async def album(request: Request, artist_id: int, album: str) -> dict[str, Any]:
        return {
            "artist": artist_id,
            "album": album,
            "seen": request.state.seen,
            "path_params": request.path_params,
            "route": request.scope["route"].path,
            "endpoint": request.scope["endpoint"].__name__,
            "full": request.scope["fastapi"]["effective_route_context"].path,
            "url": str(request.url_for("artists.album", artist_id=1, album="x")),
        }

    @api.post("/plain/{n}", name="plain", status_code=201)
    async def plain(request: Request, n: int, title: str = Form()) -> dict[str, Any]:
        return {"n": n, "title": title, "route": request.scope["route"].path}

    outer.include_router(inner)
    api.include_router(outer, prefix="/api")
    return api


SHOP_RULES = ("artists.album GET /api/artists/<artist_id>/albums/<path:album>", "plain POST /plain/<n>")


@pytest.mark.parametrize(
    ("key", "method", "target", "body"),
    [
        ("artists.album", "GET", "/api/artists/5/albums/a/b", b""),
        ("artists.album", "GET", "/api/artists/x/albums/a", b""),
        ("artists.album", "GET", "/api/artists/5/albums/a?token=bad", b""),
        ("plain", "POST", "/plain/3", b"title=x"),
        ("plain", "POST", "/plain/3", b""),
        ("plain", "POST", "/plain/x", b"title=x"),
    ],
)
async def test_fastapi_answers_the_same_when_the_route_is_known(
    key: str, method: str, target: str, body: bytes
) -> None:
    form = [("content-type", "application/x-www-form-urlencoded")]
    alone, api = await ask(shop(), method, target, form, body), shop()
    RouteTable(flask_app(*SHOP_RULES), api)
    for extra in ({"gateway.key": key}, {"gateway.key": key}, {"gateway.key": "unknown"}, {}):
        assert alone == await ask(api, method, target, form, body, **extra)


def test_the_known_route_is_found_first_and_only_with_a_key() -> None:
    api = shop()
    table = RouteTable(flask_app(*SHOP_RULES), api)
    first = api.routes[0]
    assert isinstance(first, KnownRoute)
    scope = http_scope("POST", "/plain/3")
    assert (Fit.NONE, {}) == first.matches(dict(scope))
    assert first.matches({**scope, "gateway.key": "plain"})[0] is Fit.FULL
    assert first.matches({**scope, "gateway.key": "plain", "method": "GET"})[0] is Fit.NONE
    assert first.matches({**scope, "gateway.key": "plain", "path": "/other"})[0] is Fit.NONE
    assert first.matches({"type": "websocket", "path": "/plain/3"})[0] is Fit.NONE
    assert first.matches({"type": "lifespan"})[0] is Fit.NONE
    assert table.routes["plain"].ported == {"POST"}


def test_documentation_and_url_building_do_not_see_the_known_route() -> None:
    alone, api = shop(), shop()
    RouteTable(flask_app(*SHOP_RULES), api)
    assert alone.openapi() == api.openapi()
    assert "/plain/3" == api.url_path_for("plain", n="3")
    assert [""] == Context().run(lambda: [route.path for route in api.routes if isinstance(route, KnownRoute)])
    Mount("/", app=api, name="root").url_path_for("root:plain", n="3")


def test_tools_that_look_for_the_route_of_a_request_find_its_full_path() -> None:
    api = shop()
    RouteTable(flask_app(*SHOP_RULES), api)
    scope = {**http_scope("GET", "/api/artists/5/albums/a"), "gateway.key": "artists.album"}
    found = next(route for route in api.routes if route.matches(scope)[0] is Fit.FULL)
    assert "/api/artists/{artist_id}/albums/{album:path}" == found.path  # type: ignore[attr-defined]
    assert "/api/artists/{artist_id}/albums/{album}" == found.path_format  # type: ignore[attr-defined]


def test_a_second_table_on_the_same_application_replaces_the_first() -> None:
    api, legacy = shop(), flask_app(*SHOP_RULES)
    RouteTable(legacy, api)
    before = len(api.routes)
    table = RouteTable(legacy, api)
    assert before == len(api.routes)
    assert {"POST"} == table.routes["plain"].ported


async def test_routes_that_match_in_a_way_of_their_own_are_left_to_fastapi() -> None:
    class Versioned(APIRoute):
        def matches(self, scope: Any) -> tuple[Fit, Any]:
            fit, child = super().matches(scope)
            return (fit if (b"x-version", b"2") in scope["headers"] else Fit.NONE), child

    api = FastAPI()
    api.router.route_class = Versioned
    api.add_api_route("/who", lambda: "two", name="who")
    table = RouteTable(flask_app("who GET /who"), api)
    assert 200 == (await ask_port(api, table, "GET", "/who", headers=[("x-version", "2")])).status
    assert 404 == (await ask_port(api, table, "GET", "/who")).status


async def test_form_limits_of_an_inclusion_still_hold() -> None:
    router, api = APIRouter(), FastAPI()

    @router.post("/form", name="form")
    async def form(title: str = Form()) -> str:
        return title

    api.include_router(router, form_limits={"max_fields": 1})
    table = RouteTable(flask_app("form POST /form"), api)
    kind = [("content-type", "application/x-www-form-urlencoded")]
    assert 200 == (await ask_port(api, table, "POST", "/form", headers=kind, body=b"title=x")).status
    assert 400 == (await ask_port(api, table, "POST", "/form", headers=kind, body=b"title=x&a=1")).status


async def test_the_middleware_of_fastapi_runs_and_may_send_a_request_elsewhere() -> None:
    api = fastapi_app("who GET /who", "other GET /other", "who POST /who")

    class Rewriting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if (b"x-to", b"other") in scope.get("headers", ()):
                scope = {**scope, "path": "/other"}
            await self.app(scope, receive, send)

    api.add_middleware(CORSMiddleware, allow_origins=["*"])
    api.add_middleware(Rewriting)
    table = RouteTable(flask_app("who GET,POST /who", "other GET /other"), api)
    answer = await ask_port(api, table, "GET", "/who", headers=[("origin", "http://a")])
    assert "*" == answer.get("access-control-allow-origin")
    assert "other" == decoded(await ask_port(api, table, "GET", "/who", headers=[("x-to", "other")]))["route"]


async def test_a_root_path_of_fastapi_is_taken_into_account() -> None:
    api = FastAPI()
    api.root_path = "/api"
    api.add_api_route("/who", lambda: "me", name="who")
    table = RouteTable(flask_app("who GET /who", "static2 GET /api/<x>"), api)
    assert b'"me"' == (await ask_port(api, table, "GET", "/who")).body
    assert not ported(table, "GET", "/api/who")


async def test_the_cost_of_a_known_route_does_not_grow_with_the_application() -> None:
    """Counted, not timed: how often FastAPI asks a route whether it matches."""
    asked = []

    class Counting(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            pattern = self.path_regex

            class Regex:
                def match(self, path: str) -> Any:
                    asked.append(path)
                    return pattern.match(path)

            self.path_regex = Regex()  # type: ignore[assignment]

    api = FastAPI()
    api.router.route_class = Counting
    names = [f"r{number}" for number in range(100)]
    for name in names:
        api.add_api_route(f"/{name}", lambda: "ok", name=name)
    table = RouteTable(flask_app(*(f"{name} GET /{name}" for name in names)), api)
    table.match("GET", "/r99")
    asked.clear()
    assert 200 == (await ask_port(api, table, "GET", "/r99")).status
    assert ["/r99"] == asked


def decoded(answer: Answer) -> Any:
    return json.loads(answer.body)


# --- route once: Flask --------------------------------------------------------------------------------------------


def conformance_app(**options: Any) -> Flask:
    """Everything in Flask that knows of the match or of the adapter."""
    app = Flask("legacy", **options)
    app.secret_key = "s" * 32
    pages = Blueprint("pages", __name__, url_prefix="/pages")
    nested = Blueprint("nested", __name__, url_prefix="/nested")

    @app.before_request
    def before() -> str | None:
        g.seen = [request.endpoint, str(request.url_rule), dict(request.view_args or {}), request.blueprints]
        if request.view_args is not None:
            request.view_args["added"] = True  # must not be seen by the next request
            del request.view_args["added"]
        return "stopped" if "stop" in request.args else None

    @app.url_value_preprocessor
    def preprocess(endpoint: str | None, values: dict[str, Any] | None) -> None:
        if values:
            values["number"] = values.get("number", 0) * 2

    def describe(**args: Any) -> dict[str, Any]:
        from flask.globals import request_ctx

        adapter = request_ctx.url_adapter
        assert adapter is not None
        return {
            "args": {name: str(value) for name, value in args.items()},
            "seen": g.seen,
            "host": [request.host, request.host_url, request.url, request.base_url, request.root_url],
            "urls": [
                url_for("item", number=7, q="ä"),
                url_for("item", number=7, _external=True),
                url_for("item", number=7, _external=True, _scheme="https"),
                url_for("static", filename="x.js"),
                url_for(".item" if request.blueprint is None else ".leaf", number=1),
                app.url_for("pages.leaf", number=2, _anchor="z"),
                app.redirect("/x").location,
            ],
            "adapter": {name: repr(value) for name, value in public(adapter).items()},
            "allowed": sorted(adapter.allowed_methods()),
            "others": [adapter.test("/item/3", "PUT"), adapter.test("/nowhere"), adapter.get_host(None)],
            "again": str(adapter.match(return_rule=False)) + str(adapter.match("/item/9", "GET")),
            "script": request.script_root,
        }

    @pages.get("/<int:number>", endpoint="leaf")
    @nested.get("/<int:number>", endpoint="leaf")
    @app.route("/item/<int:number>", methods=["GET", "PUT"], endpoint="item")
    @app.route("/float/<float(signed=True):x>/<path:rest>", endpoint="float")
    def view(**args: Any) -> dict[str, Any]:
        return describe(**args)

    @app.get("/default", defaults={"tags": ["a"]}, endpoint="default")
    def default(tags: list[str]) -> dict[str, Any]:
        return describe(tags=tags)

    @app.get("/session/<name>")
    def remember(name: str) -> str:
        session["name"] = name
        return "kept"

    @app.get("/stream/<name>")
    def stream(name: str) -> Any:
        def parts() -> Iterator[str]:
            yield str(request.view_args)
            yield url_for("stream", name=name)

        return app.response_class(stream_with_context(parts()))

    @app.get("/copied/<name>")
    def copied(name: str) -> str:
        @copy_current_request_context
        def inside() -> str:
            assert request.view_args is not None
            return f"{request.endpoint} {sorted(request.view_args)} {url_for('copied', name='x')}"

        return inside()

    @app.get("/redirect/<name>")
    def away(name: str) -> Any:
        return redirect(url_for("stream", name=name))

    @app.get("/abort/<int:code>")
    def give_up(code: int) -> None:
        abort(code)

    @app.get("/broken/<name>")
    def broken(name: str) -> None:
        raise KeyError(name)

    @app.errorhandler(404)
    def missing(error: Exception) -> tuple[str, int]:
        return f"no {request.path} {type(request.routing_exception).__name__} {request.endpoint}", 404

    @app.errorhandler(KeyError)
    def key_error(error: Exception) -> tuple[str, int]:
        return f"{request.url_rule} {error}", 500

    app.register_blueprint(pages)
    app.register_blueprint(nested, url_prefix="/pages/nested")
    return app


def public(adapter: MapAdapter) -> dict[str, Any]:
    """What `MapAdapter` keeps, whoever made it."""
    return {name: value for name, value in vars(adapter).items() if not name.startswith("_")}


def environ(path: str, method: str = "GET", **more: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "REQUEST_METHOD": method, "PATH_INFO": path.encode().decode("latin-1"), "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": "",
        "HTTP_HOST": "Shop.example:8080", "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "wsgi.errors": sys.stderr,
        "wsgi.input": io.BytesIO(), "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
        **more,
    }  # fmt: skip


def call(app: Callable[..., Any], asked: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    head: list[Any] = []
    parts = app(asked, lambda status, headers, _=None: head.extend([status, headers]))
    try:
        body = b"".join(parts)
    finally:
        getattr(parts, "close", lambda: None)()
    return head[0], [header for header in head[1] if header[0] not in ("Date", "Set-Cookie")], body


def with_match(table: RouteTable, asked: dict[str, Any]) -> dict[str, Any]:
    path = asked["PATH_INFO"].encode("latin-1").decode(errors="replace")
    return {**asked, "gateway.match": table.match(asked["REQUEST_METHOD"], path)}


REQUESTS = {
    "a view": environ("/item/5?a=%20b&b=1"),
    "a query in utf-8": environ("/item/5?a=" + "ä".encode().decode("latin-1")),
    "another method": environ("/item/5", "PUT"),
    "head": environ("/item/5", "HEAD"),
    "options": environ("/item/5", "OPTIONS"),
    "a blueprint": environ("/pages/5"),
    "a nested blueprint": environ("/pages/nested/5"),
    "converters": environ("/float/-1.5/a/b"),
    "a path in utf-8": environ("/float/1.5/ä/\n"),
    "defaults": environ("/default"),
    "before_request answers": environ("/item/5?stop=1"),
    "a session": environ("/session/x"),
    "a stream": environ("/stream/x"),
    "a copied context": environ("/copied/x"),
    "a redirect": environ("/redirect/x"),
    "abort": environ("/abort/404"),
    "an error handler": environ("/broken/x"),
    "static": environ("/static/none.js"),
    "not found": environ("/nowhere"),
    "not allowed": environ("/item/5", "DELETE"),
    "a slash too many": environ("/item//5"),
    "two slashes": environ("//item/5"),
    "no host": {k: v for k, v in environ("/item/5").items() if k != "HTTP_HOST"},
    "an invalid host": environ("/item/5", HTTP_HOST="a b"),
    "a host that cannot be encoded": environ("/item/5", HTTP_HOST="a..b"),
    "the standard port": environ("/item/5", HTTP_HOST="Shop.example:80"),
    "ipv6": environ("/item/5", HTTP_HOST="[::1]:8000"),
    "https": environ("/item/5", HTTP_HOST="Shop.example:443", **{"wsgi.url_scheme": "https"}),
    "a script name": environ("/item/5", SCRIPT_NAME="/shop"),
    "an upgrade": environ("/item/5", HTTP_CONNECTION="Upgrade", HTTP_UPGRADE="websocket"),
    "another upgrade": environ("/item/5", HTTP_CONNECTION="Upgrade", HTTP_UPGRADE="h2c"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_flask_cannot_tell_that_its_match_was_handed_over(name: str) -> None:
    plain, handed = conformance_app(), conformance_app()
    assert hand_over(handed)
    table = RouteTable(handed, None)
    for _ in range(2):
        expected = call(plain, dict(REQUESTS[name]))
        assert expected == call(handed, with_match(table, REQUESTS[name]))
        assert expected == call(handed, dict(REQUESTS[name]))


def test_a_match_is_really_taken_over_and_its_arguments_are_fresh_each_time() -> None:
    app = conformance_app()
    hand_over(app)
    table = RouteTable(app, None)
    asked = with_match(table, environ("/item/5"))
    app.url_map._matcher.match = None  # type: ignore[method-assign,assignment]
    asked_adapter = app.create_url_adapter(FlaskRequest(asked))
    assert asked_adapter is not None
    rule, args = asked_adapter.match(return_rule=True)
    args["number"] = 6  # type: ignore[index]
    assert ("item", {"number": 5}) == asked_adapter.match()
    assert "item" == rule.endpoint
    assert {"number": 5} == asked["gateway.match"].args


@pytest.mark.parametrize(
    "change",
    [
        {"PATH_INFO": "/item/6"},
        {"PATH_INFO": "/nowhere"},
        {"REQUEST_METHOD": "DELETE"},
        {"SCRIPT_NAME": "/item", "PATH_INFO": "/5"},
    ],
)
def test_a_request_that_middleware_has_rewritten_is_matched_by_flask(change: dict[str, str]) -> None:
    def rewritten(app: Flask) -> Flask:
        inner = app.wsgi_app
        app.wsgi_app = lambda asked, start: inner({**asked, **change}, start)  # type: ignore[method-assign]
        return app

    plain, handed = rewritten(conformance_app()), rewritten(conformance_app())
    hand_over(handed)
    asked = environ("/item/5")
    assert call(plain, dict(asked)) == call(handed, with_match(RouteTable(handed, None), asked))


def test_a_proxy_prefix_is_honoured() -> None:
    def proxied(app: Flask) -> Flask:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]
        return app

    plain, handed = proxied(conformance_app()), proxied(conformance_app())
    hand_over(handed)
    forwarded = {
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "public.example",
        "HTTP_X_FORWARDED_PREFIX": "/p",
    }
    for count in range(4):
        asked = environ("/item/5", **dict(list(forwarded.items())[:count]))
        assert call(plain, dict(asked)) == call(handed, with_match(RouteTable(handed, None), asked))


def test_a_match_of_another_application_is_not_taken_over() -> None:
    app, other = conformance_app(), conformance_app()
    hand_over(app)
    asked = with_match(RouteTable(other, None), environ("/item/5"))
    expected = call(other, environ("/item/5"))
    assert expected == call(app, asked)


def test_settings_that_change_how_a_request_is_bound_are_obeyed_even_if_made_later() -> None:
    for setting in ({"SERVER_NAME": "configured.example"}, {"TRUSTED_HOSTS": ["other.example"]}):
        plain, handed = conformance_app(), conformance_app()
        hand_over(handed)
        plain.config.update(setting)
        handed.config.update(setting)
        asked = environ("/item/5")
        assert call(plain, dict(asked)) == call(handed, with_match(RouteTable(handed, None), asked))


def test_trusted_hosts_of_a_request_class_are_obeyed() -> None:
    class Suspicious(FlaskRequest):
        trusted_hosts = ["other.example"]  # noqa: RUF012

    plain, handed = conformance_app(), conformance_app()
    plain.request_class = handed.request_class = Suspicious
    hand_over(handed)
    asked = environ("/item/5")
    expected = call(plain, dict(asked))
    assert expected[0].startswith("400")
    assert expected == call(handed, with_match(RouteTable(handed, None), asked))


def test_the_test_client_and_urls_outside_a_request_work_as_before() -> None:
    app = conformance_app()
    hand_over(app)
    assert 200 == app.test_client().get("/item/5").status_code
    with app.test_request_context("/item/5"):
        assert "/item/8" == url_for("item", number=8)
    app.config["SERVER_NAME"] = "x.example"
    with app.app_context():
        assert "http://x.example/item/8" == url_for("item", number=8)


class OwnAdapter(Flask):
    def create_url_adapter(self, request: Any) -> Any:
        return super().create_url_adapter(request)


class OwnMap(Map):
    pass


class OwnMapFlask(Flask):
    url_map_class = OwnMap


def named(app: Flask) -> Flask:
    app.config["SERVER_NAME"] = "shop.example"
    return app


def trusting(app: Flask) -> Flask:
    app.config["TRUSTED_HOSTS"] = ["shop.example"]
    return app


def patched(app: Flask) -> Flask:
    app.create_url_adapter = lambda request: None  # type: ignore[method-assign,misc]
    return app


def older(app: Flask) -> Flask:
    del app.config["TRUSTED_HOSTS"]
    return app


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnAdapter("x"),
        lambda: OwnMapFlask("x"),
        lambda: Flask("x", host_matching=True, static_host="x"),
        lambda: Flask("x", subdomain_matching=True),
        lambda: named(Flask("x")),
        lambda: trusting(Flask("x")),
        lambda: patched(Flask("x")),
        lambda: older(Flask("x")),
    ],
    ids=["adapter", "map", "host", "subdomain", "server name", "trusted hosts", "patched", "older flask"],
)
def test_an_application_that_binds_in_its_own_way_is_left_alone(make: Callable[[], Flask]) -> None:
    app = make()
    before = dict(vars(app))
    assert not hand_over(app)
    assert before == vars(app)


def test_handing_over_twice_is_handing_over_once() -> None:
    app = conformance_app()
    assert hand_over(app)
    installed = app.create_url_adapter
    assert hand_over(app)
    assert installed is app.create_url_adapter


# --- for gateway check --------------------------------------------------------------------------------------------


def test_pairs_tell_how_each_route_was_paired_and_which_hooks_its_twin_goes_without() -> None:
    legacy = Flask("legacy")
    outer, inner = Blueprint("api", __name__), Blueprint("videos", __name__)

    def login() -> None: ...
    def audit(response: Any) -> Any: ...
    def close(error: Any) -> None: ...
    def unrelated() -> None: ...

    legacy.before_request(unrelated)
    outer.before_request(login)
    inner.after_request(audit)
    legacy.teardown_appcontext(close)
    inner.add_url_rule("/videos", "index", list, methods=["GET", "POST"])
    outer.register_blueprint(inner)
    legacy.register_blueprint(outer)
    legacy.add_url_rule("/who", "who", lambda: "me")

    table = RouteTable(legacy, fastapi_app("api.videos.index GET /videos", "make POST /videos"))
    pairs = {pair.key: pair for pair in table.pairs()}
    assert ["api.videos.index", "static", "who"] == list(pairs)
    index, who = pairs["api.videos.index"], pairs["who"]
    assert (("/videos",), "name, path", ("/videos",)) == (index.rules, index.how, index.fastapi_paths)
    assert {"GET", "POST"} == index.ported
    here = f"{__name__}.{login.__qualname__.rpartition('.')[0]}"
    assert (
        f"before_request {here}.unrelated",
        f"before_request {here}.login",
        f"after_request {here}.audit",
        f"teardown_appcontext {here}.close",
    ) == index.hooks
    assert ("", frozenset(), ()) == (who.how, who.ported, who.fastapi_paths)
    assert (f"before_request {here}.unrelated", f"teardown_appcontext {here}.close") == who.hooks


def test_an_unmatched_and_a_new_request_are_told_apart() -> None:
    assert NEW.route is None
    assert isinstance(NEW, Match)
