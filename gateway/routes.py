"""Which endpoint is this, and does FastAPI have its twin? Werkzeug's own map is the only matcher.

A key is a Flask endpoint. Its twins are the FastAPI operations that bear its name or, failing that, whose method and
path template are equal. Both sides are joined once, at start; a request costs one look-up in a dictionary.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any, Literal, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from flask import Flask, Request
from starlette.convertors import CONVERTOR_TYPES
from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, NoMatchFound, get_name
from starlette.routing import Match as Fit
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, MapAdapter, Rule
from werkzeug.routing.converters import DEFAULT_CONVERTERS, BaseConverter
from werkzeug.wsgi import get_host

from .errors import ConfigError, RouteError
from .model import Route

_GENERATION = 2048  # matches; two generations are remembered
_LONG_PATH = 512  # characters; longer ones are matched afresh each time
_ANY_METHOD = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_STOCK_CONVERTERS = frozenset(DEFAULT_CONVERTERS.values())

_FLASK_PARAMETER = re.compile(r"<(?:([a-zA-Z_]\w*)(?:\(.*?\))?:)?([a-zA-Z_]\w*)>", re.ASCII)
_FASTAPI_PARAMETER = re.compile(r"{([a-zA-Z_]\w*)(?::([a-zA-Z_]\w*))?}", re.ASCII)
_SEGMENT, _SEGMENTS = "\0", "\1"  # what a parameter leaves in a shape: it stops at a slash, or does not


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """What one method and path are. Requests share it, so nobody may change it."""

    route: Route | None = None  # None: only FastAPI has it. `ported` is exact for this very path
    rule: Rule | None = None  # what Flask would match; None where Flask has to do so itself
    args: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    path: str = ""
    path_info: str = ""  # the path as WSGI spells it


NEW = Match()


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of `gateway check`: a route, its twins, and what no longer runs once they answer."""

    key: str
    rules: tuple[str, ...]
    methods: frozenset[str]
    ported: frozenset[str]
    how: str  # "name", "path", "name, path"; empty: no twin
    fastapi_paths: tuple[str, ...]
    hooks: tuple[str, ...]  # "before_request app.auth.require_login"


class RouteTable:
    """All Flask endpoints, joined with the operations of FastAPI.

    `Route.ported` of the table holds the methods that FastAPI answers on every rule of the endpoint. A match is finer:
    its route has a method as ported only if a twin takes that very path. So an alias that nobody ported, or a
    converter that is wider in Flask, never sends FastAPI what it cannot answer.

    Both applications are read once. A rule or operation added later is unknown here, and thus legacy's.

    Raises RouteError when the two contradict each other, ConfigError for host or subdomain matching with a port.
    """

    def __init__(self, legacy_flask: Flask | None, fastapi: FastAPI | None) -> None:
        self._flask, self._adapter = legacy_flask, _bind(legacy_flask, fastapi)
        self._root_path = fastapi.root_path if fastapi else ""
        self._recent: dict[tuple[str, str], Match] = {}
        self._older: dict[tuple[str, str], Match] = {}

        rules = list(_rules(self._adapter.map)) if self._adapter else []
        operations, self._others = _read(fastapi) if fastapi else ([], [])
        join = _Join(rules, operations if self._adapter else [])
        if join.problems:
            raise RouteError("\n".join(join.problems))
        self._rules = {id(rule.rule): rule for rule in rules}
        self._new: list[_Operation | RouteContext] = [*join.new, *self._others]
        self._twins = join.twins
        self.routes: Mapping[str, Route] = join.routes
        self.warnings = (*join.warnings, *self._unreachable(join.new))
        if fastapi:
            others = (route for route in fastapi.router.routes if not isinstance(route, KnownRoute))
            fastapi.router.routes[:] = [KnownRoute(self._twins), *others]

    @property
    def keys(self) -> frozenset[str]:
        """What a flag file may name."""
        return frozenset(self.routes)

    @property
    def new(self) -> tuple[str, ...]:
        """The paths that only FastAPI has, in its order."""
        return tuple(dict.fromkeys(route.path or "/" for route in self._new))

    def is_ported(self, key: str) -> bool:
        """Whether FastAPI answers anything of a route."""
        return key in self.routes and bool(self.routes[key].paired)

    def match(self, method: str, path: str) -> Match | None:
        """What this request is; None when legacy has to say it in its own words (404, 405, a redirect)."""
        return self._recent.get((method, path)) or self._look_up(method, path)

    def websocket(self, path: str) -> bool:
        """Whether FastAPI has a websocket route, or a mounted application, for `path`."""
        return _fit(self._others, self._scope("websocket", "", path)) is Fit.FULL

    def pairs(self) -> list[Pair]:
        """Every route with its twins."""
        return [self._pair(route) for _, route in sorted(self.routes.items())]

    def _look_up(self, method: str, path: str) -> Match | None:
        """Remember matches that last. Misses are not remembered, so they cannot crowd out anything."""
        match = self._older.get((method, path))
        if match is None:
            match = self._find(method, path)
            if match is None or (match.rule is None and match is not NEW) or len(path) > _LONG_PATH:
                return match
        if len(self._recent) >= _GENERATION:
            self._older, self._recent = self._recent, {}
        self._recent[method, path] = match
        return match

    def _find(self, method: str, path: str) -> Match | None:
        if self._adapter is None:
            return None
        try:
            found, args = self._adapter.match(path, method, return_rule=True)
        except NotFound:
            fit = _fit(self._new, self._scope("http", method, path))
            return None if fit is Fit.NONE else NEW  # with another method, too: a 405 or a preflight is FastAPI's
        except Exception:  # noqa: BLE001  # 405, a redirect, or whatever a converter of the application raises
            return None
        rule = self._rules.get(id(found))
        if rule is None:
            return None
        route = rule.route
        if method in route.ported and _fit(rule.twins[method], self._scope("http", method, path)) is not Fit.FULL:
            route = replace(route, ported=route.ported - {method})
        if not rule.stock:
            return Match(route)
        path_info = path.encode("utf-8", "surrogatepass").decode("latin-1")
        return Match(route, found, args, method, path, path_info)

    def _scope(self, kind: str, method: str, path: str) -> Scope:
        return {"type": kind, "method": method, "path": path, "root_path": self._root_path, "headers": []}

    def _unreachable(self, new: Iterable["_Operation"]) -> Iterator[str]:
        for operation in new:
            path = _FASTAPI_PARAMETER.sub("1", operation.path)
            for method in sorted(operation.methods):
                if self._find(method, path) is not NEW:
                    yield f"{operation.name}: {method} {operation.path} is new, but Flask's map takes that path"

    def _pair(self, route: Route) -> Pair:
        twins = (known for method in sorted(route.paired) for known in self._twins[route.key, method])
        return Pair(
            key=route.key,
            rules=route.rules,
            methods=route.methods,
            ported=route.ported,
            how=", ".join(sorted(set(route.paired.values()))),
            fastapi_paths=tuple(dict.fromkeys(operation.path for operation in twins)),
            hooks=tuple(_hooks(self._flask, route.key)) if self._flask else (),
        )


def _bind(flask_app: Flask | None, fastapi: FastAPI | None) -> MapAdapter | None:
    """Flask's map as the matcher; None when it cannot be one."""
    if flask_app is None:
        return None
    if not (flask_app.url_map.host_matching or flask_app.subdomain_matching):
        return flask_app.url_map.bind("gateway")
    if fastapi is None:
        return None
    raise ConfigError(f"{flask_app.name}: host and subdomain matching cannot be combined with a FastAPI application")


def _fit(routes: Iterable[Any], scope: Scope) -> Fit:
    """How well the best of them takes this request."""
    best = Fit.NONE
    try:
        for route in routes:
            fit, _ = route.matches(scope)
            if fit is Fit.FULL:
                return Fit.FULL
            if fit is Fit.PARTIAL:
                best = Fit.PARTIAL
    except Exception:  # noqa: BLE001  # a convertor of the application; FastAPI itself would answer 500
        return Fit.NONE
    return best


def _hooks(app: Flask, key: str) -> Iterator[str]:
    """The functions that the application and its blueprints run around an endpoint."""
    scopes: list[str | None] = [None]
    blueprint = key.rpartition(".")[0]
    while blueprint:
        scopes.append(blueprint)
        blueprint = blueprint.rpartition(".")[0]
    stages: dict[str, Mapping[str | None, Sequence[Any]]] = {
        "url_value_preprocessor": app.url_value_preprocessors,
        "before_request": app.before_request_funcs,
        "after_request": app.after_request_funcs,
        "teardown_request": app.teardown_request_funcs,
        "teardown_appcontext": {None: app.teardown_appcontext_funcs},
    }
    for stage, registered in stages.items():
        for scope in scopes:
            for hook in registered.get(scope, ()):
                yield f"{stage} {hook.__module__}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"


# --- the two sides ------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Operation:
    """One HTTP route of FastAPI, with the prefixes of the routers that include it."""

    context: RouteContext
    matches: Callable[[Scope], tuple[Fit, Scope]]
    included: bool
    once: bool  # may be called without asking FastAPI's router
    name: str
    named: bool  # by somebody, not just after its function
    path: str
    path_format: str | None
    shape: str
    parameters: tuple[str, ...]
    methods: frozenset[str]


@dataclass(slots=True, eq=False)
class _Rule:
    """One rule of Flask's map and, by method, its twins and how they were found."""

    rule: Rule
    shape: str
    parameters: tuple[str, ...]
    methods: frozenset[str]
    stock: bool  # converts as Werkzeug does: always the same arguments for the same path
    twins: dict[str, list[_Operation]] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    route: Route = field(init=False)

    @property
    def key(self) -> str:
        return str(self.rule.endpoint)


def _rules(url_map: Map) -> Iterator[_Rule]:
    """The rules that can answer a request; others redirect, only build URLs, or wait for another host."""

    def kind(parameter: re.Match[str]) -> type[BaseConverter]:
        return url_map.converters.get(parameter[1] or "default", BaseConverter)

    for rule in url_map.iter_rules():
        redirects = rule.redirect_to is not None or (rule.alias and url_map.redirect_defaults)
        if redirects or rule.build_only or rule.websocket or rule.subdomain != url_map.default_subdomain:
            continue
        found = list(_FLASK_PARAMETER.finditer(rule.rule))
        yield _Rule(
            rule=rule,
            shape=_FLASK_PARAMETER.sub(lambda m: _SEGMENT if kind(m).part_isolating else _SEGMENTS, rule.rule),
            parameters=tuple(m[2] for m in found),
            methods=frozenset(rule.methods or _ANY_METHOD),
            stock=_STOCK_CONVERTERS.issuperset(map(kind, found)),
        )


def _read(fastapi: FastAPI) -> tuple[list[_Operation], list[RouteContext]]:
    """All HTTP routes, included ones too; and what has no methods: websockets, mounts, class-based endpoints."""
    operations, others = [], []
    for route in fastapi.router.routes:
        if isinstance(route, KnownRoute):
            continue
        for context in iter_route_contexts([route]):
            if not context.methods:
                others.append(context)
                continue
            path = context.path or ""
            operations.append(
                _Operation(
                    context=context,
                    matches=context.matches,
                    included=context.original_route is not route,
                    once=_is_stock(context.original_route) and not _limits_forms(route),
                    name=context.name or "",
                    named=context.endpoint is None or context.name != get_name(context.endpoint),
                    path=path,
                    path_format=context.path_format,
                    shape=_FASTAPI_PARAMETER.sub(lambda m: _SEGMENTS if _takes_slashes(m[2]) else _SEGMENT, path),
                    parameters=tuple(m[1] for m in _FASTAPI_PARAMETER.finditer(path)),
                    methods=frozenset(context.methods),
                )
            )
    return operations, others


def _takes_slashes(convertor: str | None) -> bool:
    return re.fullmatch(CONVERTOR_TYPES[convertor or "str"].regex, "a/b") is not None


def _is_stock(route: BaseRoute) -> bool:
    """Whether it matches and handles as FastAPI's own routes do."""
    kind = type(route)
    return issubclass(kind, APIRoute) and kind.matches is APIRoute.matches and kind.handle is APIRoute.handle


def _limits_forms(route: BaseRoute) -> bool:
    """Whether `include_router(form_limits=…)` is at work, which FastAPI applies on its own way down to a route."""
    inclusion = getattr(route, "include_context", None)
    if inclusion is None:
        return False
    return bool(getattr(inclusion, "form_limits", None)) or any(map(_limits_forms, inclusion.included_router.routes))


# --- the join -----------------------------------------------------------------------------------------------------


class _Join:
    """Finds the twins of every rule: by name first, then by path."""

    def __init__(self, rules: Sequence[_Rule], operations: Sequence[_Operation]) -> None:
        self.new: list[_Operation] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._by_key: dict[str, list[_Rule]] = {}
        self._by_shape: dict[str, list[_Rule]] = {}
        for rule in rules:
            self._by_key.setdefault(rule.key, []).append(rule)
            self._by_shape.setdefault(rule.shape, []).append(rule)

        for operation in [operation for operation in operations if not self._pair_by_name(operation)]:
            if not _link(operation, self._by_shape.get(operation.shape, ()), "path"):
                self._unpaired(operation)
        self.routes = {key: self._route(key, rules) for key, rules in self._by_key.items()}
        self.twins = _twins(rules)

    def _pair_by_name(self, operation: _Operation) -> bool:
        """Parameter names count here: they are what both handlers are called with. False: try the path."""
        name, shape = operation.name, operation.shape
        rules = self._by_key.get(name, [])
        same = [rule for rule in rules if rule.shape == shape and rule.parameters == operation.parameters]
        if not same:
            by_chance = not operation.named and any(rule.shape == shape for rule in rules)
            if rules and not by_chance:
                self.problems.append(self._contradiction(operation))
            return bool(rules) and not by_chance
        _link(operation, same, "name")
        for method in sorted(operation.methods.difference(*(rule.methods for rule in same))):
            self.warnings.append(f"{name}: FastAPI answers {method} {operation.path}, but Flask says 405 before that")
        return True

    def _unpaired(self, operation: _Operation) -> None:
        name = operation.name
        if "." not in name:
            self.new.append(operation)
            return
        near = get_close_matches(name, self._by_key, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ", and the name of a new route has no dot"
        self.problems.append(f"{name}: FastAPI has {operation.path}, Flask has no such endpoint{hint}")

    def _route(self, key: str, rules: Sequence[_Rule]) -> Route:
        """The route of an endpoint. Its rules get it too or, where not all are ported alike, one of their own."""
        methods = frozenset[str]().union(*(rule.methods for rule in rules))
        paired = {method: how for rule in rules for method, how in rule.how.items()}
        left = {m: [r.rule.rule for r in rules if m in r.methods and m not in r.twins] for m in methods}
        ported = frozenset(method for method in methods if not left[method])
        for method in sorted(paired.keys() - ported):
            self.warnings.append(f"{key}: {method} is ported, but not for {' and '.join(left[method])}")
        route = Route(key, tuple(rule.rule.rule for rule in rules), methods, ported, paired)
        for rule in rules:
            own = frozenset(rule.twins)
            rule.route = route if own == ported else replace(route, ported=own)
        return route

    def _contradiction(self, operation: _Operation) -> str:
        rules = " and ".join(rule.rule.rule for rule in self._by_key[operation.name])
        return f"{operation.name}: FastAPI has {operation.path}, Flask has {rules}"


def _link(operation: _Operation, rules: Iterable[_Rule], how: str) -> bool:
    """Note a twin for every method that both have, unless one was found in a better way."""
    linked = False
    for rule in rules:
        for method in operation.methods & rule.methods:
            if rule.how.setdefault(method, how) == how:
                rule.twins.setdefault(method, []).append(operation)
                linked = True
    return linked


def _twins(rules: Iterable[_Rule]) -> dict[tuple[str, str], list[_Operation]]:
    """By key and method, those with the parameter names of the rule first."""
    twins: dict[tuple[str, str], list[_Operation]] = {}
    for rule in rules:
        for method, operations in rule.twins.items():
            operations.sort(key=lambda operation, ours=rule.parameters: operation.parameters != ours)  # type: ignore[misc]
            known = twins.setdefault((rule.key, method), [])
            known += [operation for operation in operations if operation not in known]
    return twins


# --- route once: FastAPI ------------------------------------------------------------------------------------------

_last: ContextVar[_Operation | None] = ContextVar("gateway_last_operation", default=None)


class KnownRoute(BaseRoute):
    """First in FastAPI's list: takes requests whose route the gateway already knows, at a cost that does not grow.

    Without `scope["gateway.key"]` it is not there. Tools that ask every route of the list whether it matches, and
    then for its path, see the path of what it found.
    """

    def __init__(self, twins: Mapping[tuple[str, str], Sequence[_Operation]]) -> None:
        self._twins = {known: [one for one in operations if one.once] for known, operations in twins.items()}

    @property
    def path(self) -> str:
        """The path template, prefixes included."""
        operation = _last.get()
        return operation.path if operation else ""

    @property
    def path_format(self) -> str | None:
        """The same without convertors; FastAPI's telemetry reads it."""
        operation = _last.get()
        return operation.path_format if operation else None

    @override
    def matches(self, scope: Scope) -> tuple[Fit, Scope]:
        for operation in self._twins.get((scope.get("gateway.key", ""), scope.get("method", "")), ()):
            fit, child = operation.matches(scope)
            if fit is Fit.FULL:
                _last.set(operation)
                return fit, {**child, "route": operation.context.original_route, "gateway.operation": operation}
        return Fit.NONE, {}

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation: _Operation = scope.pop("gateway.operation")
        if operation.included:  # as FastAPI does it; tracing tools read the full path there
            scope.setdefault("fastapi", {})["effective_route_context"] = operation.context
        await operation.context.app(scope, receive, send)

    @override
    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        raise NoMatchFound(name, path_params)


# --- route once: Flask --------------------------------------------------------------------------------------------


def hand_over(flask_app: Flask) -> bool:
    """Let Flask take its match from `environ["gateway.match"]`, which saves it a third of its own work.

    Only where nobody can notice: an application that binds or matches in a way of its own is left as it is, and the
    answer is False. A request that is no longer what was matched (a rewritten path, say) is matched by Flask.
    """
    installed = vars(flask_app).get("create_url_adapter")
    if isinstance(installed, partial) and installed.func is _create_url_adapter:
        return True
    stock = (
        installed is None
        and type(flask_app).create_url_adapter is Flask.create_url_adapter
        and type(flask_app.url_map) is Map
        and not (flask_app.url_map.host_matching or flask_app.subdomain_matching)
        and "TRUSTED_HOSTS" in flask_app.config  # since Flask 3.1, whose binding is repeated below
        and _binds_by_request(flask_app)
    )
    if stock:
        adapter = partial(_create_url_adapter, flask_app, flask_app.create_url_adapter)
        flask_app.create_url_adapter = adapter  # type: ignore[method-assign]
    return stock


def _binds_by_request(app: Flask) -> bool:
    """Whether the request alone decides which host its URLs are built for."""
    return app.config["SERVER_NAME"] is None and app.config["TRUSTED_HOSTS"] is None


def _create_url_adapter(
    app: Flask, stock: Callable[[Request | None], MapAdapter | None], request: Request | None
) -> MapAdapter | None:
    """`Flask.create_url_adapter` for a request that is already matched, and `stock` for every other one."""
    if request is None:
        return stock(request)
    environ = request.environ
    match: Match | None = environ.get("gateway.match")
    if (
        match is None
        or match.path_info != environ.get("PATH_INFO")
        or match.method != environ["REQUEST_METHOD"]
        or match.rule is None
        or match.rule.map is not app.url_map
        or environ.get("SCRIPT_NAME")
        or "HTTP_UPGRADE" in environ  # an upgrade to websocket matches other rules
        or request.trusted_hosts is not None
        or not _binds_by_request(app)
    ):
        return stock(request)
    scheme = environ["wsgi.url_scheme"]
    server = environ.get("SERVER_NAME"), environ.get("SERVER_PORT")
    try:
        request.host, server_name = _hosts(scheme, environ.get("HTTP_HOST"), *server)
    except HTTPException:
        return stock(request)
    return _MatchedAdapter(match, match.rule, server_name, scheme, environ.get("QUERY_STRING"))


@lru_cache(64)
def _hosts(scheme: str, host: str | None, name: str | None, port: str | None) -> tuple[str, str]:
    """The host of a request, and the one that its URLs are built with. Raises HTTPException as binding does."""
    environ = {"wsgi.url_scheme": scheme, "HTTP_HOST": host, "SERVER_NAME": name, "SERVER_PORT": port}
    valid = get_host(environ)
    return valid, Map().bind(valid.lower()).server_name


class _MatchedAdapter(MapAdapter):
    """What `Map.bind_to_environ` returns, except that it knows the answer to the question that is always asked."""

    def __init__(self, known: Match, rule: Rule, server_name: str, scheme: str, query: str | None) -> None:
        super().__init__(
            rule.map,
            server_name,
            script_name="/",
            subdomain=rule.map.default_subdomain or "",
            url_scheme=scheme,
            path_info=known.path,
            default_method=known.method,
            query_args=query and query.encode("latin-1").decode(errors="replace"),
        )
        self._rule, self._args = rule, known.args

    @override
    def match(
        self,
        path_info: str | None = None,
        method: str | None = None,
        return_rule: bool = False,
        query_args: Mapping[str, Any] | str | None = None,
        websocket: bool | None = None,
    ) -> tuple[Any, Mapping[str, Any]]:
        if path_info is None and method is None and websocket is None:
            return (self._rule if return_rule else self._rule.endpoint), dict(self._args)
        return super().match(path_info, method, cast(Literal[True], return_rule), query_args, websocket)
