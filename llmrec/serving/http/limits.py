"""What keeps a server answering: fair turns with a deadline, and no work for clients that went away."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

from fastapi import Request

from llmrec.serving.http.errors import ApiError
from llmrec.serving.in_flight import Work

T = TypeVar("T")
_SHARED_S, _ALONE_S = 0.25, 4.0  # how much may run at a time for several clients, and for one
_GONE_S = 10.0  # a client that asked for nothing so long is gone


@dataclass(eq=False)
class Waiting:
    """One that waits for its turn, and how much it costs the others."""

    turn: asyncio.Future
    cost: float


class Gate:
    """Lets some requests run, more wait, and turns the rest away; each client gets an equal share of the work.

    A turn goes to the client that has been given the least (start-time fair queueing), and of its requests to the
    first. While several clients are there, or were seconds ago, what runs for all of them is what takes `_SHARED_S` at
    the rate at which work was done lately, so that nobody waits for long behind what others have running already; one
    client alone has `_ALONE_S` of it. Where the queue is full, the client with the most requests in it loses its last.

    Args:
        width: requests that run at a time; each blocking call has a thread.
        max_queue: requests that wait.
        timeout_s: for waiting and the call together.
    """

    def __init__(self, width: int, max_queue: int, timeout_s: float):
        self.width, self.max_queue, self.timeout_s = width, max_queue, timeout_s
        self._queues: dict[str, deque[Waiting]] = {}  # of clients that wait
        self._running: dict[str, list[float]] = {}  # what runs for a client: the costs
        self._given: dict[str, float] = {}  # of clients that are there: where their next turn stands
        self._clock = 0.0  # where the last turn stood
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="llmrec-search")
        self._seen: dict[str, float] = {}  # when clients were there last
        self._done: deque[tuple[float, float]] = deque(maxlen=64)  # when, and the cost, of the last turns that ended

    @property
    def running(self) -> int:
        return sum(map(len, self._running.values()))

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def rate(self) -> float:
        """Cost that was done in a second lately."""
        if len(self._done) < 2:
            return 0.0
        (first, _), *rest = self._done
        return sum(cost for _, cost in rest) / max(1e-3, rest[-1][0] - first)

    @asynccontextmanager
    async def slot(self, client: str = "", cost: float = 1.0) -> AsyncIterator[None]:
        """Waits for a turn and holds it.

        Raises:
            ApiError: 429 where too many wait, 503 where the turn does not come in time; both say when to try again.
        """
        await self._enter(client, cost)
        try:
            yield
        finally:
            self._leave(client, cost)

    async def run(self, call: Callable[[], T], client: str = "", cost: float = 1.0) -> tuple[T, float]:
        """`call()` in a thread, in turn; with the seconds waited. The turn ends when the thread does; what it has
        asked of an engine is cancelled when nobody waits for it any more.

        Raises:
            ApiError: as `slot`, and 503 where the call takes too long.
        """
        waited = await self._enter(client, cost)
        loop = asyncio.get_running_loop()
        with Work() as asked:
            work = self._threads.submit(copy_context().run, call)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, client, cost))
        try:
            async with asyncio.timeout(self.timeout_s - waited):
                return await asyncio.wrap_future(work), waited
        except TimeoutError as error:
            raise self._refused(503, f"no answer within {self.timeout_s:g} s: try again later", "timeout") from error
        finally:
            asked.stop()

    async def _enter(self, client: str, cost: float) -> float:
        """Gives the seconds waited."""
        began, waiting = time.monotonic(), Waiting(asyncio.get_running_loop().create_future(), cost)
        self._queues.setdefault(client, deque()).append(waiting)
        self._seen[client] = began
        self._give_turns()
        if self.waiting > self.max_queue:
            longest = max(self._queues, key=lambda one: (len(self._queues[one]), one == client))
            self._forget(longest, self._queues[longest][-1])
        try:
            async with asyncio.timeout(self.timeout_s):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self._leave(client, cost)  # the turn came as the client went
            self._forget(client, waiting)
            if not isinstance(error, TimeoutError):
                raise
            message = f"no turn within {self.timeout_s:g} s in the queue: try again later"
            raise self._refused(503, message, "timeout") from error
        return time.monotonic() - began

    def _give_turns(self) -> None:
        while self.running < self.width and (client := self._next()) is not None:
            waiting = self._queues[client].popleft()
            if not self._queues[client]:
                del self._queues[client]
            self._clock = max(self._clock, self._given.get(client, 0.0))
            self._given[client] = self._clock + waiting.cost
            self._running.setdefault(client, []).append(waiting.cost)
            waiting.turn.set_result(None)

    def _next(self) -> str | None:
        """The client whose turn it is, if any."""
        there = len(self._seen)
        most = self.rate * _SHARED_S / there if there > 1 else max(4.0 * self.width, self.rate * _ALONE_S)
        able = (
            client
            for client, queue in self._queues.items()
            if not (runs := self._running.get(client)) or sum(runs) + queue[0].cost <= most
        )
        return min(able, key=lambda client: max(self._clock, self._given.get(client, 0.0)), default=None)

    def _forget(self, client: str, waiting: Waiting) -> None:
        """Takes one out of the queue, and tells it where it waits still."""
        if waiting in self._queues.get(client, ()):
            self._queues[client].remove(waiting)
            if not self._queues[client]:
                del self._queues[client]
        if not waiting.turn.done():
            message = f"{self.waiting} requests are waiting already: try again later"
            waiting.turn.set_exception(self._refused(429, message, "queue_full"))

    def _leave(self, client: str, cost: float) -> None:
        self._running[client].remove(cost)
        if not self._running[client]:
            del self._running[client]
        self._seen[client] = now = time.monotonic()
        self._done.append((now, cost))
        self._give_turns()
        for gone in self._given.keys() - self._queues.keys() - self._running.keys():
            del self._given[gone]
        while now - (longest := min(self._seen.items(), key=itemgetter(1)))[1] > _GONE_S:
            del self._seen[longest[0]]

    def _refused(self, status: int, message: str, code: str) -> ApiError:
        """With the time until those who wait now have had their turn, from 1 to 60 s."""
        costs = sum(waiting.cost for queue in self._queues.values() for waiting in queue)
        seconds = math.ceil(costs / (self.rate or self.width))
        return ApiError(status, message, code=code, headers={"Retry-After": str(min(60, max(1, seconds)))})


def client_of(request: Request) -> str:
    """Who asks, by address; of IPv6 the network, of which anybody has a whole one."""
    host = request.client.host if request.client else ""
    return ":".join(host.split(":")[:4]) if ":" in host else host


async def all_of(works: Sequence[Awaitable[T]]) -> list[T]:
    """What all of them give; where one fails, or nobody waits, the others are cancelled."""
    tasks = [*map(asyncio.ensure_future, works)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


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
