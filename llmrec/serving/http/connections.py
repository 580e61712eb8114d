"""Connections that cost little: their heads are short and come soon, and they leave files to the rest of the process.

uvicorn alone takes heads of any length for any time, and as many connections as come: where the process may open no
more files, asyncio calls `accept` in vain in a circle, and logs each time.
"""

import logging
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger("llmrec.serving")
HEAD_BYTES, HEAD_S = 2**16, 10.0
_MOST, _QUEUE = 4096, 2048  # connections that are open, and that wait to be
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n"
    b"content-type: application/json\r\n\r\n"
)


class Connection(HttpToolsProtocol):
    """uvicorn's, which `limit_concurrency` bounds otherwise: one more connection closes the one that has been idle for
    longest, and is refused where none is idle. Checked with uvicorn 0.54.

    A head (the request's line and headers) of more than `HEAD_BYTES`, or that takes longer than `HEAD_S` from its
    first byte, or from the beginning of the connection, closes it.
    """

    _told = -60.0  # when the log was last told of connections that were closed

    def __init__(self, config: uvicorn.Config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.most, self.limit_concurrency = config.limit_concurrency, None
        self.head: int | None = None  # its bytes, while it is read
        self.deadline = None
        self.since = time.monotonic()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._await_head()
        if self.most is not None and len(self.connections) > self.most:
            self._make_room()

    def _make_room(self) -> None:
        there = [one for one in self.connections if not one.transport.is_closing()]
        if len(there) <= self.most:
            return
        idle = (one for one in there if one is not self and one.idle)
        longest = min(idle, key=lambda one: one.since, default=None)
        if longest is None:
            self.transport.write(_FULL)
        (longest or self).transport.close()
        if time.monotonic() - Connection._told > 60:
            Connection._told = time.monotonic()
            logger.warning("%d connections are open, the most for this process: idle ones are closed", self.most)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.head is not None:
            self.head += len(data)
            if self.head > HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head = 0
        if self.deadline is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self.head = None
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self.deadline = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class Server(uvicorn.Server):
    """uvicorn's, with a longer queue of connections that the system keeps until they are accepted: asyncio accepts as
    many at once as it asks the system to keep.

    After SIGTERM it calls `leave` and goes on for `drain_s`, so that who sends requests here can look elsewhere; a
    second signal ends that.
    """

    def __init__(self, config: uvicorn.Config, drain_s: float = 0.0, leave: Callable[[], None] = lambda: None):
        super().__init__(config)
        self._drain_s, self._leave, self._ends = drain_s, leave, math.inf

    def handle_exit(self, sig: int, frame) -> None:
        if sig == signal.SIGTERM and self._drain_s and self._ends == math.inf:
            self._ends = time.monotonic() + self._drain_s
            self._leave()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or time.monotonic() > self._ends

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in self.servers if self.started else ():
            for one in listening.sockets:
                with socket.socket(fileno=os.dup(one.fileno())) as same:
                    same.listen(_QUEUE)


def web_config(app, **more) -> uvicorn.Config:
    """How uvicorn serves an application to strangers; `more` of its settings win."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST * 2 if files == resource.RLIM_INFINITY else files
    spare = min(1024, files // 4)
    limits = {
        "http": Connection,
        "limit_concurrency": max(16, min(_MOST, files - len(os.listdir("/dev/fd")) - spare)),
        "ws": "none",  # a connection that becomes another protocol's has none of these limits
        "backlog": spare // 4,  # asyncio accepts so many before any of them is looked at, some times over
        "timeout_graceful_shutdown": 30,
        "timeout_keep_alive": 75,  # longer than clients and proxies keep one: who ends it first loses no request
    }
    quiet = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Config(app, **(quiet | limits | more))
