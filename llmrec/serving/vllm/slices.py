"""Wide searches in slices: between two levels a step of the engine can end, so that others need not wait for all of
one. The client asks again until it is done (`llmrec.serving.vllm.engines.OnlineEngine`)."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
_MOST = 128  # searches that have begun; of a client that went away the oldest is forgotten


class Sliced(Generic[T]):
    """A call in a thread of its own, which runs only within `go_on`, from one `pause` to the next."""

    def __init__(self, call: Callable[[Callable[[], None]], T]):
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._call, self._result, self._error = call, None, None
        self.done, self._stopped = False, False
        threading.Thread(target=self._run, daemon=True, name="llmrec-slices").start()

    def go_on(self) -> bool:
        """Whether the call has ended."""
        self._go.release()
        self._stands.acquire()
        return self.done

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result

    def stop(self) -> None:
        """It never goes on; its thread ends."""
        self._stopped = True
        self.go_on()

    def _run(self) -> None:
        self._go.acquire()
        try:
            with torch.inference_mode():
                self._result = None if self._stopped else self._call(self._pause)
        except BaseException as error:
            self._error = error
        self.done = True
        self._stands.release()

    def _pause(self) -> None:
        self._stands.release()
        self._go.acquire()
        if self._stopped:
            raise InterruptedError("nobody asked for the rest of this search")


class Begun(Generic[T]):
    """Calls that have begun and not ended, by name."""

    def __init__(self):
        self._calls: OrderedDict[str, Sliced[T]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._calls

    def go_on(self, name: str, call: Callable[[Callable[[], None]], T] | None = None) -> Sliced[T]:
        """One more slice of a call, which begins here where it has not."""
        sliced = self._calls.pop(name, None) or Sliced(call)
        if not sliced.go_on():
            self._calls[name] = sliced
            if len(self._calls) > _MOST:
                self._calls.popitem(last=False)[1].stop()
        return sliced
