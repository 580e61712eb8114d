"""One JSON line a request, without what users did or asked."""

import json
import logging
import time
from uuid import uuid4

from llmrec.serving.http.metrics import Metrics

logger = logging.getLogger("llmrec.serving")
_PROBES = ("/health", "/metrics")  # asked every few seconds by machines


class RequestLog:
    """ASGI middleware: gives every request an id, logs it to `llmrec.serving`, and counts it.

    Routes add to the line through `request.state.log`; `request.state.id` is the id, also in the answer's header
    `X-Request-ID`.
    """

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500
        state = scope.setdefault("state", {})
        state["id"], state["log"], state["began"] = uuid4().hex, {}, began

        async def observed(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", state["id"].encode())]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # not the path: it may hold an item id
            self.metrics.requests.labels(route, str(status)).inc()
            took = round((time.perf_counter() - began) * 1000, 2)
            line = {"id": state["id"], "route": route, "method": scope["method"], "status": status, "ms": took}
            level = logging.DEBUG if route in _PROBES and status == 200 else logging.INFO
            logger.log(level, json.dumps(line | state["log"]))
