"""What every blueprint says in the same words: JSON bodies in, error envelopes and security headers out."""

import json

from flask import Flask, current_app, jsonify, request
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

MAX_INT = 2**31 - 1
PER_PAGE, MAX_PER_PAGE = 50, 100

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: https:; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class ApiError(Exception):
    """Ends the request with `{"error": message, **payload}`."""

    def __init__(self, status: int, message: str, headers: dict | None = None, /, **payload) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}
        self.payload = payload


def init_app(app: Flask) -> None:
    app.json.compact = True
    app.after_request(add_security_headers)
    app.register_error_handler(ApiError, on_api_error)
    app.register_error_handler(BadRequest, lambda _: error_response(400, "Bad request"))
    app.register_error_handler(
        RequestEntityTooLarge, lambda _: error_response(413, "The request is too large: at most 10 MB")
    )
    app.register_error_handler(500, lambda _: error_response(500, "Internal server error"))
    for unavailable in (OperationalError, InterfaceError, PoolTimeout):
        app.register_error_handler(unavailable, on_database_error)


def error_response(status: int, message: str, /, **payload):
    return jsonify(error=message, **payload), status


def on_api_error(error: ApiError):
    return *error_response(error.status, error.message, **error.payload), error.headers


def on_database_error(error: Exception):
    current_app.logger.error("database: %s", type(error).__name__, exc_info=error)
    return error_response(503, "The database is not available")


def add_security_headers(response):
    response.headers.update(SECURITY_HEADERS)
    if request.is_secure or current_app.config["SESSION_COOKIE_SECURE"]:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response


def success(message: str, status: int = 200, **payload):
    return jsonify(success=True, message=message, **payload), status


def json_body(optional: bool = False) -> dict:
    """The request's JSON object, which must not be empty; `optional`: {} for a request without a body."""
    if optional and not request.get_data():
        return {}
    if not request.is_json:
        raise ApiError(415, "Content-Type must be application/json")
    try:
        data = json.loads(request.get_data())
    except (ValueError, RecursionError):
        raise ApiError(400, "Malformed JSON") from None
    if not isinstance(data, dict):
        raise ApiError(400, "A JSON object is expected")
    if not data:
        raise ApiError(400, "No data given")
    return data


def text(data: dict, field: str, limit: int) -> str | None:
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


def number(data: dict, field: str, low: int = 0, high: int = MAX_INT) -> int | None:
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


def text_list(data: dict, field: str, limit: int = 100, length: int = 100) -> list[str]:
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


def id_list(data: dict, field: str) -> list[int]:
    """A field as a list of different row ids."""
    values = data.get(field)
    if not isinstance(values, list):
        raise ApiError(400, f"{field} must be a list")
    if not values:
        raise ApiError(400, f"{field} is empty")
    if len(values) > 1000:
        raise ApiError(400, f"{field} has too many items: at most 1000")
    return list(dict.fromkeys(number({field: value}, field) or 0 for value in values))


def query_flag(name: str) -> bool | None:
    """A yes or no in the query; None when absent or empty."""
    value = request.args.get(name, "")
    return value.lower() in ("true", "1", "yes", "on") if value else None


def query_int(name: str, default: int | None = None) -> int | None:
    """A whole number in the query, 0 at least; anything else counts as absent."""
    value = request.args.get(name, type=int)
    return default if value is None else min(max(value, 0), MAX_INT)


def page_args() -> tuple[int, int]:
    """`page` and `per_page`, held within their limits; 400 when they are no numbers."""
    try:
        page = int(request.args.get("page", 1))
        per_page = int(request.args.get("per_page", PER_PAGE))
    except ValueError:
        raise ApiError(400, "page and per_page must be numbers") from None
    return min(max(page, 1), MAX_INT), min(max(per_page, 1), MAX_PER_PAGE)


def paged(name: str, items: list, total: int, page: int, per_page: int):
    return jsonify(
        {
            name: items,
            "count": len(items),
            "total": total,
            "page": page,
            "per_page": per_page,
            "pages": -(-total // per_page),
        }
    )


def find_or_404(session, model, row_id: int, lock: bool = False):
    """The row with that id; `lock` keeps other writers away until the transaction ends."""
    row = session.get(model, row_id, with_for_update=lock or None) if row_id <= MAX_INT else None
    if row is None:
        raise ApiError(404, f"{model.__name__} not found")
    return row
