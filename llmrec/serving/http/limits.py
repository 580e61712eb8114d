"""What keeps a server answering: a bounded queue with a deadline, and no work for clients that went away."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import TypeVar

from fastapi import Request

from llmrec.serving.http.errors import ApiError

T = TypeVar("T")


class Gate:
    """Lets some requests run, more wait, and turns the rest away.

    Args:
        width: requests that run at a time; each blocking call has a thread.
        max_queue: requests that wait.
        timeout_s: for waiting and the call together.
    """

    def __init__(self, width: int, max_queue: int, timeout_s: float):
        self.width, self.max_queue, self.timeout_s = width, max_queue, timeout_s
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(width)
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="llmrec-search")
        self._recent: deque[float] = deque(maxlen=64)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it.

        Raises:
            ApiError: 429 where too many wait, 503 where the turn does not come in time; both say when to try again.
        """
        await self._enter()
        began = time.monotonic()
        try:
            yield
        finally:
            self._leave(began)

    async def run(self, call: Callable[[], T]) -> tuple[T, float]:
        """`call()` in a thread, in turn; with the seconds waited. The turn ends when the thread does.

        Raises:
            ApiError: as `slot`, and 503 where the call takes too long.
        """
        waited = await self._enter()
        loop, began = asyncio.get_running_loop(), time.monotonic()
        work = self._threads.submit(copy_context().run, call)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, began))
        try:
            async with asyncio.timeout(self.timeout_s - waited):
                return await asyncio.wrap_future(work), waited
        except TimeoutError as error:
            raise self._refused(503, f"no answer within {self.timeout_s:g} s: try again later", "timeout") from error

    async def _enter(self) -> float:
        """Gives the seconds waited."""
        if self._free.locked() and self.waiting >= self.max_queue:
            raise self._refused(429, f"{self.waiting} requests are waiting already: try again later", "queue_full")
        began = time.monotonic()
        self.waiting += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._free.acquire()
        except TimeoutError as error:
            message = f"no turn within {self.timeout_s:g} s in the queue: try again later"
            raise self._refused(503, message, "timeout") from error
        finally:
            self.waiting -= 1
        self.running += 1
        return time.monotonic() - began

    def _leave(self, began: float) -> None:
        self.running -= 1
        self._recent.append(time.monotonic() - began)
        self._free.release()

    def _refused(self, status: int, message: str, code: str) -> ApiError:
        """With the time until those who wait now have had their turn, from 1 to 60 s."""
        latency = sum(self._recent) / len(self._recent) if self._recent else 1.0
        seconds = math.ceil(latency * (self.waiting + 1) / self.width)
        return ApiError(status, message, code=code, headers={"Retry-After": str(min(60, max(1, seconds)))})


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client goes away. The body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
