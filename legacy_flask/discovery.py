"""Discovery: artists and videos that the library does not have yet."""

from flask import Blueprint

bp = Blueprint("discovery", __name__, url_prefix="/api/discovery")
