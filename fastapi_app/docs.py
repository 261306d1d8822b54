"""The page that shows `/openapi.json`."""

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

router = APIRouter()

_CDN = "https://cdn.jsdelivr.net"
_POLICY = f"default-src 'self'; script-src 'unsafe-inline' {_CDN}; style-src {_CDN}; img-src 'self' data: https:"


@router.get("/api/docs", name="docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    page = get_swagger_ui_html(openapi_url="/openapi.json", title=request.app.title)
    page.headers["content-security-policy"] = _POLICY
    return page
