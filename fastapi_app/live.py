"""Live progress of downloads and jobs, by WebSocket."""

from fastapi import APIRouter

router = APIRouter()
