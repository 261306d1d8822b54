"""Services on the internet, one module each, asked by `client`."""

from flask import Flask

from ..db import StartupError
from .client import Upstream
from .spotify import Tokens


def init_app(app: Flask) -> None:
    """Connections, limiters, breakers and the token of this process. Raises StartupError."""
    app.extensions["spotify"] = Tokens()
    try:
        app.extensions["upstream"] = Upstream(
            timeout_s=app.config["UPSTREAM_TIMEOUT_S"],
            backoff_s=app.config["UPSTREAM_BACKOFF_S"],
            allowed_networks=app.config["ALLOWED_NETWORKS"],
            redis_url=app.config["REDIS_URL"],
        )
    except ValueError as error:
        raise StartupError(f"ALLOWED_NETWORKS or REDIS_URL: {error}") from None
