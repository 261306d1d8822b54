"""From an import string to an application: `package.module:app`, `….module:factory`, `….module:make("x")`."""

import ast
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from flask import Flask

from .errors import ConfigError
from .settings import Settings

log = logging.getLogger("gateway")


def load_pair(settings: Settings) -> tuple[Callable[..., Any], Flask | None, FastAPI | None]:
    """The WSGI callable of legacy, its Flask object if it is one, and the FastAPI application if there is one."""
    if not settings.legacy:
        raise ConfigError("no legacy application: give --legacy package.module:app, or legacy in [tool.gateway]")
    wsgi = load_app(settings.legacy, "legacy")
    fastapi_app = load_app(settings.fastapi, "fastapi") if settings.fastapi else None
    if fastapi_app is not None and not isinstance(fastapi_app, FastAPI):
        raise ConfigError(f"fastapi: {settings.fastapi} is a {type(fastapi_app).__name__}, not a FastAPI application")
    return wsgi, wsgi if isinstance(wsgi, Flask) else None, fastapi_app


def load_app(spec: str, what: str) -> Any:
    """Import `package.module:name`; call it when it is a factory (`name` without required arguments, or `name(…)`).

    Raises ConfigError with one sentence naming `what`; the traceback of a failing module goes to the debug log.
    """
    module_name, _, expression = spec.partition(":")
    if not module_name or not expression:
        raise ConfigError(f"{what}: expected package.module:app_or_factory, not {spec!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        log.debug("import of %s", module_name, exc_info=True)
        raise ConfigError(f"{what}: cannot import {module_name}: {_sentence(error)}") from error
    name, arguments, options = _parse_call(expression, what, spec)
    target = getattr(module, name, None)
    if target is None:
        raise ConfigError(f"{what}: {module_name} has no {name!r}")
    if not callable(target):
        raise ConfigError(f"{what}: {spec} is a {type(target).__name__}, neither an application nor a factory")
    if arguments is None and not _is_factory(target):
        return target
    try:
        return target(*(arguments or ()), **options)
    except (Exception, SystemExit) as error:
        log.debug("factory %s", spec, exc_info=True)
        raise ConfigError(f"{what}: {spec} failed: {_sentence(error)}") from error


def _parse_call(expression: str, what: str, spec: str) -> tuple[str, list[Any] | None, dict[str, Any]]:
    """`name` or, as gunicorn accepts it, `name("literal", option=1)`."""
    try:
        node = ast.parse(expression, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, None, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return node.func.id, [ast.literal_eval(argument) for argument in node.args], options
    except (SyntaxError, ValueError):
        pass
    raise ConfigError(f"{what}: expected package.module:app_or_factory, not {spec!r}")


def _is_factory(target: Any) -> bool:
    """An application takes arguments (environ or scope); a factory can be called without any."""
    if isinstance(target, (Flask, FastAPI)):
        return False
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)


def _sentence(error: BaseException) -> str:
    """One line for a person: what was raised, where in the user's code, without the traceback."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames and not isinstance(error, SystemExit) else ""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text}{where}" if not isinstance(error, SystemExit) else text
