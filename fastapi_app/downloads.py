"""Downloads: the queue, its history, and what a person may do with one of them."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/downloads", tags=["downloads"])
