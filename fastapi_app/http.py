"""What every route says in the same words: query, JSON and form in; JSON, error envelopes and HTML pages out."""

import codecs
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from typing_extensions import override

from .forms import FormTooLarge, Part, parse_multipart
from .json import decode, encode

MAX_INT = 2**31 - 1
PER_PAGE, MAX_PER_PAGE = 50, 100
MAX_BODY = 11 * 1024 * 1024  # bytes: an upload of 10 MB and its envelope
_KEEP_QUOTED = "fastapi_app.keep_quoted"


Handler = TypeVar("Handler", bound=Callable[..., Any])


class ApiError(Exception):
    """Ends the request with `{"error": message, **payload}`."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None, /, **payload: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.payload = status, message, headers, payload

    def response(self) -> Response:
        return json_response({"error": self.message, **self.payload}, self.status, self.headers)


class _Digits(Convertor[int]):
    """Digits of any script and no sign, as Werkzeug's `int`; FastAPI's own takes ASCII only."""

    regex = r"\d+"

    @override
    def convert(self, value: str) -> int:
        return int(value)

    @override
    def to_string(self, value: int) -> str:
        return str(value)


class _Tail(Convertor[str]):
    """All the rest of a path, slashes and all, as Werkzeug's `path`; FastAPI's own may be empty or begin with one."""

    regex = r"[^/].*?\Z"

    @override
    def convert(self, value: str) -> str:
        return value

    @override
    def to_string(self, value: str) -> str:
        return value


register_url_convertor("digits", _Digits())
register_url_convertor("tail", _Tail())


def read(router: APIRouter, path: str, *, name: str) -> Callable[[Handler], Handler]:
    """Register a handler for GET and HEAD. Only GET is documented: OpenAPI wants an id for each of them."""

    def register(handler: Handler) -> Handler:
        router.add_api_route(path, handler, methods=["GET"], name=name)
        router.add_api_route(path, handler, methods=["HEAD"], name=name, include_in_schema=False)
        return handler

    return register


# Out


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as `encode` writes it."""
    return Response(encode(value), status, headers, media_type="application/json")


def success(message: str, status: int = 200, **payload: Any) -> Response:
    return json_response({"success": True, "message": message, **payload}, status)


def paged(name: str, items: list[dict[str, Any]], total: int, page: int, per_page: int) -> Response:
    return json_response(
        {
            name: items,
            "count": len(items),
            "total": total,
            "page": page,
            "per_page": per_page,
            "pages": -(-total // per_page),
        }
    )


_NOT_FOUND = (
    "The requested URL was not found on the server. If you entered the URL manually please check your spelling"
    " and try again."
)
_PAGES = {  # status -> name and text of the page, in Werkzeug's words
    404: ("Not Found", _NOT_FOUND),
    405: ("Method Not Allowed", "The method is not allowed for the requested URL."),
    416: ("Requested Range Not Satisfiable", "The server cannot provide the requested range."),
}


def error_page(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """The HTML page for 404, 405 and 416, which no route words itself."""
    name, sentence = _PAGES[status]
    return _page(f"<title>{status} {name}</title>\n<h1>{name}</h1>\n<p>{sentence}</p>\n", status, headers)


def redirect(location: str, status: int = 302) -> Response:
    """A redirect with the page that goes with it."""
    link = escape(location).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    return _page(
        "<title>Redirecting...</title>\n<h1>Redirecting...</h1>\n"
        "<p>You should be redirected automatically to the target URL: "
        f'<a href="{link}">{link}</a>. If not, click the link.\n',
        status,
        {"location": _ascii_url(location)},
    )


def _ascii_url(url: str) -> str:
    scheme, host, path, query, fragment = urlsplit(url)
    quoted = (quote(part, safe="%!#$&'()*+,/:;=?@") for part in (path, query, fragment))
    return urlunsplit((scheme, host.lower(), *quoted))


def _page(content: str, status: int, headers: Mapping[str, str] | None) -> Response:
    return Response(f"<!doctype html>\n<html lang=en>\n{content}", status, headers, media_type="text/html")


# In: the query


def query(request: Request) -> dict[str, str]:
    """The query's fields; of a repeated one the first counts, and bytes that are no UTF-8 stay quoted."""
    return _fields(request.scope["query_string"])


def _fields(urlencoded: bytes) -> dict[str, str]:
    """Raises UnicodeDecodeError for raw bytes that are no UTF-8."""
    first: dict[str, str] = {}
    for name, value in parse_qsl(urlencoded.decode(), keep_blank_values=True, errors=_KEEP_QUOTED):
        first.setdefault(name, value)
    return first


def _keep_quoted(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return quote(error.object[error.start : error.end], safe=""), error.end


codecs.register_error(_KEEP_QUOTED, _keep_quoted)


def query_flag(args: Mapping[str, str], name: str) -> bool | None:
    """A yes or no in the query; None when absent or empty."""
    value = args.get(name, "")
    return value.lower() in ("true", "1", "yes", "on") if value else None


def query_int(args: Mapping[str, str], name: str) -> int | None:
    """A whole number in the query, held within 0 and MAX_INT; anything else counts as absent."""
    try:
        return min(max(int(args[name]), 0), MAX_INT)
    except (KeyError, ValueError):
        return None


def page_args(args: Mapping[str, str]) -> tuple[int, int]:
    """`page` and `per_page`, held within their limits. Raises ApiError 400 when they are no numbers."""
    try:
        page, per_page = int(args.get("page", 1)), int(args.get("per_page", PER_PAGE))
    except ValueError:
        raise ApiError(400, "page and per_page must be numbers") from None
    return min(max(page, 1), MAX_INT), min(max(per_page, 1), MAX_PER_PAGE)


# In: the body


def mime_type(request: Request) -> str:
    """The content type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    kind = mime_type(request)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ApiError 413 above MAX_BODY, and 400 when the client leaves before its end."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise _too_large()
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise _too_large()
    except ClientDisconnect:
        raise ApiError(400, "Bad request") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, "The request is too large: at most 10 MB")


async def form_fields(request: Request) -> dict[str, str]:
    """The text fields of a form, URL-encoded or multipart; of a repeated one the first counts."""
    if mime_type(request) == "application/x-www-form-urlencoded":
        return _fields(await read_body(request))
    first: dict[str, str] = {}
    for part in await _multipart(request):
        if part.filename is None:
            first.setdefault(part.name, part.text)
    return first


async def uploaded_file(request: Request, field: str) -> bytes | None:
    """The content of a multipart form's file; None when there is none or it has no name. Raises ApiError 413."""
    files = [part for part in await _multipart(request) if part.name == field and part.filename is not None]
    return files[0].content if files and files[0].filename else None


async def _multipart(request: Request) -> list[Part]:
    if mime_type(request) != "multipart/form-data":
        return []
    try:
        return parse_multipart(await read_body(request), request.headers["content-type"])
    except FormTooLarge:
        raise _too_large() from None


async def json_body(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The request's JSON object, which must not be empty; `optional`: {} for a request without a body.

    Raises ApiError 400 or 415.
    """
    body = await read_body(request) if optional else b""
    if optional and not body:
        return {}
    if not is_json(request):
        raise ApiError(415, "Content-Type must be application/json")
    try:
        data = decode(body or await read_body(request))
    except (ValueError, RecursionError):
        raise ApiError(400, "Malformed JSON") from None
    if not isinstance(data, dict):
        raise ApiError(400, "A JSON object is expected")
    if not data:
        raise ApiError(400, "No data given")
    return data


def text(data: Mapping[str, Any], field: str, limit: int) -> str | None:
    """A field as text: numbers become their digits, white space at both ends goes, nothing left is None."""
    value = data.get(field)
    if value is None:
        return None
    if isinstance(value, dict | list):
        raise ApiError(400, f"{field} must be text")
    value = str(value).strip()
    if len(value) > limit:
        raise ApiError(400, f"{field} is too long: at most {limit} characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ApiError(400, f"{field} is not valid text")
    return value or None


def number(data: Mapping[str, Any], field: str, low: int = 0, high: int = MAX_INT) -> int | None:
    """A field as a whole number; digits in a string will do."""
    value = data.get(field)
    if value is None:
        return None
    try:
        value = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ApiError(400, f"{field} must be a number") from None
    if not low <= value <= high:
        raise ApiError(400, f"{field} must be between {low} and {high}")
    return value


def text_list(data: Mapping[str, Any], field: str, limit: int = 100, length: int = 100) -> list[str]:
    """A field as a list of texts without blanks and repetitions."""
    values = data.get(field)
    if values is None:
        return []
    if not isinstance(values, list):
        raise ApiError(400, f"{field} must be a list")
    if len(values) > limit:
        raise ApiError(400, f"{field} has too many items: at most {limit}")
    items = [text({field: value}, field, limit=length) for value in values]
    return list(dict.fromkeys(item for item in items if item))


def id_list(data: Mapping[str, Any], field: str) -> list[int]:
    """A field as a list of different row ids."""
    values = data.get(field)
    if not isinstance(values, list):
        raise ApiError(400, f"{field} must be a list")
    if not values:
        raise ApiError(400, f"{field} is empty")
    if len(values) > 1000:
        raise ApiError(400, f"{field} has too many items: at most 1000")
    return list(dict.fromkeys(number({field: value}, field) or 0 for value in values))
