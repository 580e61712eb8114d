"""Errors in the shape of OpenAI's API, whoever raised them, and how routes document them."""

import logging
import math

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from llmrec.serving.http.schemas import ErrorResponse

logger = logging.getLogger("llmrec.serving")

_INVALID, _SERVER = "invalid_request_error", "server_error"
# status → OpenAI's type of error, the code, and what the schema says of it
_STATUSES = {
    400: (_INVALID, "invalid_value", "The request says something that does not fit; `param` names the field."),
    401: ("authentication_error", "invalid_api_key", "Wrong or missing key."),
    403: ("permission_error", "no_admin_key", "Nobody may do this: the server has no key for it."),
    404: ("not_found_error", "not_found", "There is no such item."),
    405: (_INVALID, "method_not_allowed", ""),
    409: (_INVALID, "conflict", "This server follows another one, or is followed by one with another catalogue."),
    413: (_INVALID, "body_too_large", "The body is too large."),
    429: ("rate_limit_error", "queue_full", "Too many requests wait already."),
    499: (_INVALID, "client_disconnected", ""),
    500: (_SERVER, "internal_error", ""),
    503: (_SERVER, "unavailable", "The engine is down, or there was no answer in time."),
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_TYPE_NAMES = {"str", "int", "float", "bool", "none"}  # of a union: pydantic names the member that did not fit


class ApiError(HTTPException):
    """An answer that is no success.

    Args:
        message: what is wrong and what to do.
        param: path of the field, e.g. `filter.where[0][1]`.
        code: for programs; by default one that belongs to the status.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers=None):
        super().__init__(status, message, headers)
        self.type, usual, _ = _STATUSES.get(status, (_SERVER if status >= 500 else _INVALID, "error", ""))
        self.param, self.code = param, code or usual

    @property
    def body(self) -> dict:
        return {"message": self.detail, "type": self.type, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.body}, self.status_code, self.headers)


def engine_failed(message: str = "the engine failed", seconds: float = 1.0) -> ApiError:
    """What a client is told of it; the log says more."""
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return ApiError(503, f"{message}: try again later", code="engine", headers=headers)


def errors(*statuses: int) -> dict:
    """The `responses` of a route that may answer with these statuses."""
    documented = {status: {"model": ErrorResponse, "description": _STATUSES[status][2]} for status in statuses}
    for status in {429, 503} & documented.keys():
        documented[status]["headers"] = _RETRY
    return documented


def field_path(location) -> str:
    """`("filter", "where", 0, 1)` → `filter.where[0][1]`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _TYPE_NAMES and part.isidentifier():
            path += f".{part}" if path else part
    return path


def validation_error(error: RequestValidationError | ValidationError) -> ApiError:
    """What pydantic says of a body, or of one request of a batch, with the path of the field that comes first."""
    whole = isinstance(error, RequestValidationError)  # its locations begin with "body"
    problems, first = [], None
    for one in error.errors()[:3]:
        path = field_path(one["loc"][whole:])
        where = f"{path}: " if path else ""
        if one["type"] == "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {one['ctx']['error']} at character {one['loc'][-1]}")
        if one["type"] == "extra_forbidden":
            name = one["loc"][-1]
            path = path or str(name).encode(errors="replace").decode()
            problems.append(f"unknown field {name!r}: leave it out; /openapi.json lists the fields")
        elif one["loc"] in [("body",), ()] and one["type"] != "value_error":
            problems.append("the body should be a JSON object, sent with `Content-Type: application/json`")
        elif one["type"] == "string_unicode":
            problems.append(f"{where}half a character (a lone surrogate): leave it out")
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


async def _answer(request: Request, error: Exception) -> JSONResponse:
    match error:
        case ApiError():
            answer = error
        case RequestValidationError():
            answer = validation_error(error)
        case StarletteHTTPException():
            answer = _http_error(request, error)
        case ClientDisconnect():
            answer = ApiError(499, "the client went away")
        case _:
            route = getattr(request.scope.get("route"), "path", "a request")
            logger.exception("%s failed", route, exc_info=error)
            answer = ApiError(500, "this request failed in the server, whose log says why")
    return answer.response()


_RAISED = StarletteHTTPException, RequestValidationError, ClientDisconnect, Exception
ERROR_HANDLERS = dict.fromkeys(_RAISED, _answer)
