"""Downloads: the queue, its history, and what a person may do with one of them."""

from flask import Blueprint

bp = Blueprint("downloads", __name__, url_prefix="/api/downloads")
