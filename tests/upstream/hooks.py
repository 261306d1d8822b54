"""Where webhooks go: every name takes everything; `status-503` answers with that status."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def hook(request: Request) -> Response:
    kind, _, status = request.path_params["name"].partition("-")
    code = int(status) if kind == "status" and status.isdecimal() else 200
    return Response(status_code=code) if code in (204, 304) else PlainTextResponse("ok\n", code)


app = Starlette(routes=[Route("/{name}", hook, methods=_METHODS)])


def error(status: int) -> dict[str, int]:
    return {"error": status}
