"""Services on the internet, one module each, asked by `client`."""

from flask import Flask


def init_app(app: Flask) -> None:
    """Sessions, limiters and breakers of this process."""
