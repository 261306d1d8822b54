"""Spotify: its artists and playlists, brought into the library."""

from flask import Blueprint

bp = Blueprint("spotify", __name__, url_prefix="/api/spotify")
