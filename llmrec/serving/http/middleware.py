"""What happens to every HTTP request before a route sees it: a line of the log, its key, the size of its body."""

import asyncio
import json
import logging
import re
import time
from hashlib import sha256
from hmac import compare_digest
from uuid import uuid4

from starlette._utils import get_route_path  # what routes go by: the path without a proxy's prefix

from llmrec.serving.http.engine_context import came_with
from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.front import Front
from llmrec.serving.http.settings import Settings

logger = logging.getLogger("llmrec.serving")
_PIECES, _CRUMB = 500, 128  # so many pieces of a body may be smaller than so many bytes
_TRACE = (b"traceparent", b"tracestate")
_PARENT = re.compile("(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds by machines


class RequestLog:
    """ASGI middleware: gives every request an id, logs it to `llmrec.serving`, and counts it.

    A line is JSON, without what users did or asked. Routes add to it through `request.state.log`; `request.state.id`
    is the id, also in the answer's header `X-Request-ID`. A `traceparent` (W3C Trace Context) is passed on to what the
    request asks of engines, and its trace id stands in the line. A server that leaves ends each connection.
    """

    def __init__(self, app, front: Front):
        self.app, self.front = app, front

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500
        state = scope.setdefault("state", {})
        state["id"], state["log"], state["began"] = uuid4().hex, {}, began
        trace = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE}
        if parent := _PARENT.fullmatch(trace.get("traceparent", "")):
            state["log"]["trace"] = parent[1]
            came_with.set(trace)

        async def observed(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", state["id"].encode()), (b"x-content-type-options", b"nosniff")]
                more += [(b"connection", b"close")] if self.front.leaving else []
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # not the path: it may hold an item id
            self.front.metrics.requests.labels(route, str(status)).inc()
            took = round((time.perf_counter() - began) * 1000, 2)
            line = {"id": state["id"], "route": route, "method": scope["method"], "status": status, "ms": took}
            level = logging.DEBUG if route in _PROBES and status == 200 else logging.INFO
            logger.log(level, json.dumps(line | state["log"]))


class Guard:
    """ASGI middleware: `Authorization: Bearer <key>` before anything of a request is read, and bodies of bounded size.

    A body that is too large, comes in crumbs, or does not come in time, is refused while it is read. An answer that
    comes before the end of the body closes the connection: a server would read on.
    """

    def __init__(self, app, settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit, headers = self.settings.body_limit(get_route_path(scope)), dict(scope["headers"])
        length = int(headers.get(b"content-length", b"0"))  # servers refuse what is no number
        size, pieces, complete = 0, 0, not length and b"transfer-encoding" not in headers
        timeout_s = self.settings.timeout_s
        deadline = time.monotonic() + timeout_s
        too_large = ApiError(413, f"the body has more than {limit} bytes, the limit here: send less at a time")

        async def limited() -> dict:
            nonlocal size, pieces, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(400, f"the body did not arrive within {timeout_s:g} s") from error
            size, pieces = size + len(message.get("body", b"")), pieces + 1
            if size > limit:
                raise too_large
            if pieces > _PIECES and size < pieces * _CRUMB:
                raise ApiError(400, f"the body comes in pieces of less than {_CRUMB} bytes: send larger ones")
            complete = not message.get("more_body", False)
            return message

        async def closing(message) -> None:
            if message["type"] == "http.response.start" and not complete:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if length > limit:
            return await too_large.response()(scope, receive, closing)
        keys = self.settings.keys_of(scope["method"], get_route_path(scope))
        if keys is not None and (error := _refused(keys, headers.get(b"authorization", b""))):
            return await error.response()(scope, receive, closing)
        await self.app(scope, limited, closing)


def _refused(keys: list[str], authorization: bytes) -> ApiError | None:
    """Why a header opens nothing; it takes as long whichever key is how far right."""
    if not keys:
        message = "the catalogue of this server cannot be changed: its operator has set no LLMREC_ADMIN_KEY"
        return ApiError(403, message)
    scheme, _, given = authorization.partition(b" ")
    digest = sha256(given.strip()).digest()
    matches = [compare_digest(digest, sha256(key.encode()).digest()) for key in keys]
    if scheme.lower() == b"bearer" and any(matches):
        return None
    message = "wrong or missing key: send the header `Authorization: Bearer <key>`"
    return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
