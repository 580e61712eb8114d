"""What keeps a server answering: fair turns with a deadline, and no work for clients that went away."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TypeVar

from fastapi import Request

from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.turns import Turn, Turns, Waiting
from llmrec.serving.in_flight import Work

T = TypeVar("T")


class Gate:
    """Lets some requests run, more wait, and turns the rest away; each client gets an equal share of the work
    (`llmrec.serving.http.turns`). Where the queue is full, the client with the most requests in it loses its last.

    Args:
        width: turns at a time; each blocking call has a thread.
        max_queue: requests that wait.
        timeout_s: for waiting and the calls together.
        alone: what a turn costs, and takes where it runs alone; see `Turns`.
    """

    def __init__(self, width: int, max_queue: int, timeout_s: float, alone: tuple[float, float] | None = None):
        self.max_queue, self.timeout_s, self._turns = max_queue, timeout_s, Turns(width, alone)
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="llmrec-search")

    @property
    def running(self) -> int:
        return self._turns.running

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    def check_room(self, client: str) -> None:
        """Raises `ApiError` (429) where one more request of this client would be turned away."""
        if self.waiting >= max(1, self.max_queue) and self._turns.last(client).client == client:
            raise self._full()

    @asynccontextmanager
    async def slot(self, client: str = "", cost: float = 1.0) -> AsyncIterator[None]:
        """Waits for a turn and holds it.

        Raises:
            ApiError: 429 where too many wait, 503 where the turn does not come in time; both say when to try again.
        """
        come: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()

        def begin(_, turn: Turn) -> None:
            if come.done():  # it waits no longer
                self._end(turn, worked=False)
            else:
                come.set_result(turn)

        try:
            await self._answer(come, Waiting(client, [cost], begin, partial(self._refuse, come)))
            yield
        finally:
            if not come.cancelled() and come.exception() is None:  # it may have come as the client went
                self._end(come.result())

    async def run(self, calls: Sequence[tuple[float, Callable[[], T]]], client: str = "") -> list[T]:
        """What `(cost, call)` give, each in a thread, in turn. A turn ends when its thread does; when nobody waits any
        more, what the calls have asked of an engine is cancelled, and no other one begins. Calls that give an
        `ApiError` say nothing of how fast work is done.

        Raises:
            ApiError: as `slot`, and 503 where it takes too long.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[T]] = loop.create_future()
        results: dict[int, T] = {}
        running: set[Work] = set()
        contexts = [copy_context() for _ in calls]  # with this request's trace; `begin` may run in another one's

        def begin(number: int, turn: Turn) -> None:
            asked = Work(turn.shared)
            running.add(asked)
            thread = self._threads.submit(contexts[number].run, asked.run, calls[number][1])
            thread.add_done_callback(lambda _: loop.call_soon_threadsafe(end, number, turn, asked, thread))

        def end(number: int, turn: Turn, asked: Work, thread: Future) -> None:
            running.discard(asked)
            error, worked = thread.exception(), False
            if error is None:
                results[number] = thread.result()
                worked = not isinstance(results[number], ApiError)
            if not answer.done():
                if error is not None:
                    answer.set_exception(error)
                elif len(results) == len(calls):
                    answer.set_result([results[number] for number in range(len(calls))])
            self._end(turn, worked)

        try:
            waiting = Waiting(client, [cost for cost, _ in calls], begin, partial(self._refuse, answer))
            return await self._answer(answer, waiting)
        finally:
            for asked in running:
                asked.stop()

    async def _answer(self, answer: asyncio.Future, waiting: Waiting):
        """What a request gets that waits from now on."""
        self._turns.add(waiting, time.monotonic())
        self._turns.give(time.monotonic())
        if self.waiting > self.max_queue:
            last = self._turns.last(waiting.client)
            self._turns.remove(last)
            last.refuse()
        try:
            async with asyncio.timeout(self.timeout_s):
                return await answer
        except TimeoutError as error:
            what = "answer" if waiting.begun else "turn"
            message = f"no {what} within {self.timeout_s:g} s: try again later"
            raise self._refused(503, message, "timeout") from error
        finally:
            self._turns.remove(waiting)
            answer.cancel()

    def _end(self, turn: Turn, worked: bool = True) -> None:
        now = time.monotonic()
        self._turns.end(turn, now, worked)
        self._turns.give(now)

    def _refuse(self, answer: asyncio.Future) -> None:
        if not answer.done():
            answer.set_exception(self._full())

    def _full(self) -> ApiError:
        return self._refused(429, f"{self.waiting} requests are waiting already: try again later", "queue_full")

    def _refused(self, status: int, message: str, code: str) -> ApiError:
        """With the time until those who wait now have had their turn, from 1 to 60 s."""
        seconds = math.ceil(self._turns.cost_waiting / (self._turns.rate or self._turns.width))
        return ApiError(status, message, code=code, headers={"Retry-After": str(min(60, max(1, seconds)))})


def client_of(request: Request) -> str:
    """Who asks, by address; of IPv6 the network, of which anybody has a whole one."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:  # of a socket that has none, or what a proxy says
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ip_network((address.packed, 64), strict=False) if address.version == 6 else address)


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
