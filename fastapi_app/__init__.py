"""A self-hosted music-video manager, asynchronous.

uvicorn --factory fastapi_app:create_app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from stamina.instrumentation import set_on_retry_hooks

from . import (
    artists,
    auth,
    commands,
    discovery,
    docs,
    downloads,
    job_routes,
    library,
    live,
    metrics,
    playlists,
    scheduler,
    settings,
    spotify,
    system,
    tokens,
    transcoding,
    users,
    videos,
    webhooks,
)
from .config import Settings, StartupError
from .containment import Containment, declaration
from .db import Database, DatabaseUnavailable
from .files import off_loop
from .frame import Frame, handle_errors, not_found
from .hub import Hub
from .jwts import Signer
from .kinds import ERRANDS, KINDS
from .logs import LogFile
from .outbox import Outbox
from .progress import Channel
from .queue import Queue
from .sessions import SessionCookie
from .upstreams.client import UpstreamClient
from .upstreams.spotify import Spotify

ROUTERS = (
    auth,
    tokens,
    users,
    artists,
    videos,
    discovery,
    spotify,
    playlists,
    library,
    settings,
    scheduler,
    webhooks,
    system,
    downloads,
    transcoding,
    job_routes,
    live,
    metrics,
    docs,
)


def create_app() -> FastAPI:
    """Configured by the environment. Raises StartupError with one sentence when the application cannot run."""
    config = Settings.load()
    try:
        database = Database(
            config.database_url, pool_size=config.database_pool_size, max_overflow=config.database_max_overflow
        )
    except DatabaseUnavailable as error:
        raise StartupError(str(error)) from None
    app = FastAPI(
        title="Music videos",
        openapi_url="/openapi.json",
        docs_url=None,  # docs.py has it, with a policy that lets the page load
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = config
    app.state.database = database
    app.state.upstream = _upstream(config)
    app.state.queue = queue = Queue(config.redis_url, {**KINDS, **ERRANDS})
    app.state.redis = system.open_redis(config.redis_url)
    app.state.channel = Channel(app.state.redis)
    app.state.live = live.Live(Hub(database, app.state.redis))
    app.state.spotify = Spotify(app.state.upstream)
    app.state.outbox = Outbox(
        database,
        app.state.upstream,
        timeout_s=config.upstream_timeout_s,
        backoff_s=config.upstream_backoff_s,
        queue=queue if config.redis_url else None,
    )
    app.state.signer = Signer(config.secret_key, config.secret_key_fallbacks)
    app.router.default = not_found
    app.state.session_cookie = SessionCookie(
        config.secret_key, config.secret_key_fallbacks, secure=config.secure_cookies
    )
    app.add_middleware(Frame, cookie=app.state.session_cookie, secure=config.secure_cookies)
    app.state.gateway_shadow = declaration(database.engine)
    app.add_middleware(Containment)
    handle_errors(app)
    for module in ROUTERS:
        app.include_router(module.router)
    return app


def _upstream(config: Settings) -> UpstreamClient:
    set_on_retry_hooks(())  # the client counts and logs by itself
    try:
        return UpstreamClient(
            timeout_s=config.upstream_timeout_s,
            backoff_s=config.upstream_backoff_s,
            connections=config.upstream_connections,
            allowed_networks=config.allowed_networks,
            redis_url=config.redis_url,
            http2=config.upstream_http2,
        )
    except ValueError as error:
        raise StartupError(f"ALLOWED_NETWORKS or REDIS_URL: {error}") from None


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    database: Database = app.state.database
    log_file = LogFile(app.state.settings.log_file)
    try:
        await off_loop(log_file.open)
        await database.prepare()
    except DatabaseUnavailable as error:
        app.state.refusal = str(error)
        await off_loop(log_file.close)
        raise
    except OSError as error:
        app.state.refusal = f"The log file {app.state.settings.log_file} cannot be written: {error.strerror}"
        raise
    if not app.state.settings.shadow:
        await app.state.outbox.begin()
    try:
        yield
    finally:
        await app.state.live.aclose()
        await app.state.outbox.aclose()
        await app.state.upstream.aclose()
        app.state.queue.close()
        commands.stop()
        if app.state.redis is not None:
            await app.state.redis.aclose()
        await database.dispose()
        await off_loop(log_file.close)
