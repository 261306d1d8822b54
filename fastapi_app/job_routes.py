"""Jobs: what goes on after an answer, to be seen and to be cancelled."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
