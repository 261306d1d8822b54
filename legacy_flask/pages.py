"""The web interface. Its pages call the JSON API; nothing here reads the database but to see who is signed in."""

from functools import wraps
from pathlib import Path
from urllib.parse import quote

from flask import Blueprint, g, make_response, redirect, render_template, request, send_from_directory
from sqlalchemy import select

from .auth import current_user, local_path
from .db import get_session
from .models import User

STATIC = Path(__file__).resolve().parent / "static"
PROGRAMS = ("/api/", "/auth/", "/static/")  # ask here, not people
MAX_ERROR = 200  # characters: what an address can make this page say

bp = Blueprint("pages", __name__)


def signed_in(view):
    """Sends everybody else to the sign-in page, which leads back to this one."""

    @wraps(view)
    def wrapper(*args, **kwargs):
        if current_user() is None:
            return redirect(f"/login?next={quote(request.path)}")
        return view(*args, **kwargs)

    return wrapper


@bp.app_errorhandler(404)
def unknown(error):
    """A page that leads on for browsers that were led astray; programs read what Flask says everywhere."""
    wanted = request.accept_mimetypes.best_match(["application/json", "text/html"])
    if wanted != "text/html" or request.path.startswith(PROGRAMS):
        return error
    response = make_response(render_template("unknown.html", page="unknown"), 404)
    response.vary.add("Accept")
    return response


def page(name: str, **values) -> str:
    return render_template(f"{name}.html", page=name, user=g.user, **values)


@bp.get("/")
@signed_in
def dashboard():
    return page("dashboard")


@bp.get("/artists")
@signed_in
def artists():
    return page("artists")


@bp.get("/artist/<int:artist_id>")
@signed_in
def artist(artist_id):
    return page("artist", row_id=artist_id)


@bp.get("/videos")
@signed_in
def videos():
    return page("videos")


@bp.get("/video/<int:video_id>")
@signed_in
def video(video_id):
    return page("video", row_id=video_id)


@bp.get("/downloads")
@signed_in
def downloads():
    return page("downloads")


@bp.get("/discover")
@signed_in
def discover():
    return page("discover")


@bp.get("/playlists")
@signed_in
def playlists():
    return page("playlists")


@bp.get("/settings")
@signed_in
def settings():
    return page("settings")


@bp.get("/system")
@signed_in
def system():
    return page("system")


@bp.get("/login")
def login():
    """Asks for the first administrator while nobody has an account."""
    if current_user() is not None:
        return redirect("/")
    first_run = get_session().scalar(select(User.id).limit(1)) is None
    target, error = local_path(request.args.get("next", "")), request.args.get("error", "")
    return page("login", next=target, error=error[:MAX_ERROR], first_run=first_run)


@bp.get("/static/<path:filename>")
def static(filename):
    """Browsers keep the files and ask each time whether they still hold: an upgrade shows at once."""
    return send_from_directory(STATIC, filename)
