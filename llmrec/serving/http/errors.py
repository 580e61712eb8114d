"""Errors in the shape of OpenAI's API, whoever raised them."""

import logging

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

logger = logging.getLogger("llmrec.serving")

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    429: "queue_full",
    499: "client_disconnected",
    503: "unavailable",
}
_TYPE_NAMES = {"str", "int", "float", "bool", "none"}  # of a union: pydantic names the member that did not fit


class ApiError(HTTPException):
    """An answer that is no success.

    Args:
        status (`int`): of HTTP.
        message (`str`): what is wrong and what to do.
        param (`str`, *optional*): path of the field, e.g. `filter.where[0][1]`.
        code (`str`, *optional*): for programs; by default one that belongs to the status.
        headers (`dict`, *optional*).
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers=None):
        super().__init__(status, message, headers)
        self.param, self.code = param, code or _CODES.get(status, "error")

    @property
    def body(self) -> dict:
        """`{"message", "type", "param", "code"}`."""
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"message": self.detail, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.body}, self.status_code, self.headers)


def field_path(location) -> str:
    """`("body", "filter", "where", 0, 1)` → `filter.where[0][1]`."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _TYPE_NAMES and part.isidentifier():
            path += f".{part}" if path else part
    return path


def _validation_error(error: RequestValidationError) -> ApiError:
    problems, first = [], None
    for one in error.errors()[:3]:
        path = field_path(one["loc"])
        where = f"{path}: " if path else ""
        if one["type"] == "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {one['ctx']['error']} at character {one['loc'][-1]}")
        if one["type"] == "extra_forbidden":
            name = one["loc"][-1]
            path = path or str(name)
            problems.append(f"unknown field {name!r}: leave it out; /openapi.json lists the fields")
        elif one["loc"] == ("body",) and one["type"] != "value_error":
            problems.append("the body should be a JSON object, sent with `Content-Type: application/json`")
        else:
            problems.append(where + one["msg"].removeprefix("Value error, "))
        first = first or path or None
    return ApiError(400, "; ".join(dict.fromkeys(problems)), first)


def _http_error(request: Request, error: StarletteHTTPException) -> ApiError:
    status, message, headers = error.status_code, str(error.detail), error.headers
    if isinstance(error.__cause__, UnicodeDecodeError):
        message = "the body is not UTF-8"
    elif isinstance(error.__cause__, RecursionError):
        message = "the body is nested too deeply"
    elif status == 400:
        message = f"the body cannot be read: {error.__cause__ or message}"
    elif status == 404:
        message = f"there is no route {request.url.path}; /openapi.json lists all"
    elif status == 405:
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        headers = {"Allow": ", ".join(sorted({method for route in routes for method in route.methods}))}
        message = f"{request.url.path} has no method {request.method}; /openapi.json lists all"
    return ApiError(status, message, headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Every answer that is no success gets the shape of OpenAI's."""

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError):
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError):
        return _validation_error(error).response()

    @app.exception_handler(StarletteHTTPException)
    async def starlette(request: Request, error: StarletteHTTPException):
        return _http_error(request, error).response()

    @app.exception_handler(Exception)
    async def rest(request: Request, error: Exception):
        logger.exception("%s failed", getattr(request.scope.get("route"), "path", "a request"), exc_info=error)
        return ApiError(500, "this request failed in the server, whose log says why", code="internal_error").response()
