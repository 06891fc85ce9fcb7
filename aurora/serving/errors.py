"""Every error that a client sees: one JSON object in the form of OpenAI's, and the status that docs/serve.md lists."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from aurora.errors import AuroraError
from aurora.inference.visuals import UnreadableVisual
from aurora.serving.answer import DeadlineExceeded, QueueFull

_CODES = {
    400: "invalid_request", 401: "invalid_token", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 413: "too_large", 422: "unreadable_media", 429: "queue_full", 500: "internal_error",
    503: "shutting_down", 504: "deadline_exceeded", 507: "disk_full",
}
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnreadableVisual, 422), (DeadlineExceeded, 504), (QueueFull, 429), (AuroraError, 400),
)


class ApiError(HTTPException):
    """An error with its status; `param` is the field of the request that is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
        super().__init__(status, message, headers=headers)
        self.param, self.code = param, code or _CODES.get(status, "error")


def api_error(error: Exception) -> ApiError:
    """What a client is told of an exception; of one that is ours alone it learns nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return ApiError(507, "there is no room left on the server's disk")
    if isinstance(error, AuroraError) and "no room left" in str(error):
        return ApiError(507, "there is no room left on the server's disk")
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return ApiError(status, str(error))
    return ApiError(500, "something went wrong on the server; its log has the reason under this request's id")


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error, in a response or as an event of a stream."""
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return {"error": {"message": error.detail, "type": kind, "param": error.param, "code": error.code}}


def add_error_handlers(app: FastAPI) -> None:
    """Makes every exception of a route a response with its status."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        told = api_error(error)
        return JSONResponse(error_body(told), told.status_code, headers=told.headers)

    handler: Callable[[Request, Exception], Awaitable[JSONResponse]] = handle
    for kind in (HTTPException, RequestValidationError, AuroraError, OSError):
        app.add_exception_handler(kind, handler)


def _invalid(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
                    if part not in ("body", "query", "path")).removeprefix(".")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{place} is not supported by this server", param=place, code="unsupported_field")
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    return ApiError(400, f"{place or 'the body'}: {first['msg'].removeprefix('Value error, ')}", param=place or None)
