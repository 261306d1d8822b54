"""Spotify: its artists and playlists, brought into the library."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/spotify", tags=["spotify"])
