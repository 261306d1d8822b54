"""Discovery: artists and videos that the library does not have yet."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/discovery", tags=["discovery"])
