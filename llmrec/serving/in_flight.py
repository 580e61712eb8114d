"""What a request has asked of engines: taken back when nobody waits for its answer any more."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_current: ContextVar["Work | None"] = ContextVar("work", default=None)


class Work:
    """Futures that a call has made, in the thread that runs it.

    Args:
        shared: whether others are there, who wait for what the call asks.
    """

    def __init__(self, shared: bool = False):
        self.shared = shared
        self._futures: set[Future] = set()
        self._stopped, self._lock = False, threading.Lock()

    def run(self, call: Callable[[], T]) -> T:
        token = _current.set(self)
        try:
            return call()
        finally:
            _current.reset(token)

    def add(self, future: Future) -> None:
        with self._lock:
            self._futures.add(future)
            stopped = self._stopped
        future.add_done_callback(self._futures.discard)
        if stopped:
            future.cancel()

    def stop(self) -> None:
        """Cancels what is not done, and what will still be asked."""
        with self._lock:
            self._stopped, futures = True, [*self._futures]
        for future in futures:
            future.cancel()


def remembered(future: Future) -> Future:
    """`future`, which the `Work` that this call belongs to may cancel."""
    if (work := _current.get()) is not None:
        work.add(future)
    return future


def shared() -> bool:
    """Whether others wait for what this call asks of engines."""
    return (work := _current.get()) is not None and work.shared
