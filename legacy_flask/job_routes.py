"""Jobs: what goes on after an answer, to be seen and to be cancelled."""

from flask import Blueprint

bp = Blueprint("jobs", __name__, url_prefix="/api/jobs")
