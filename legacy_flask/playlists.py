"""Playlists of YouTube that are looked through for new videos."""

from flask import Blueprint

bp = Blueprint("playlists", __name__, url_prefix="/api/youtube/playlists")
