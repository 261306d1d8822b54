"""Webhooks: who wants to be told what happens here."""

from flask import Blueprint

bp = Blueprint("webhooks", __name__, url_prefix="/api/webhooks")
