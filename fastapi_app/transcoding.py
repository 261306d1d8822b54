"""Transcoding: another container for what browsers cannot play."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/videos", tags=["videos"])
