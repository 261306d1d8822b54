"""The web interface. Its pages call the JSON API; nothing here reads the database but to see who is signed in."""

from flask import Blueprint

bp = Blueprint("pages", __name__)
