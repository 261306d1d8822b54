"""Webhooks: who wants to be told what happens here."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])
