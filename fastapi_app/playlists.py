"""Playlists of YouTube that are looked through for new videos."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/youtube/playlists", tags=["playlists"])
