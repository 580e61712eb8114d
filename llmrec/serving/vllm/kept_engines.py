"""`Engines`: the engine processes of a server, which are looked after and replaced where they fail."""

import asyncio
import json
import logging
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from llmrec.serving.http.engine_context import TracedEngine
from llmrec.serving.http.service import Unavailable
from llmrec.serving.in_flight import Work
from llmrec.serving.living_catalogue.store import Prepared
from llmrec.serving.vllm.engines import OnlineEngine

logger = logging.getLogger("llmrec.serving")
_LOADING_S = 600.0  # the longest that an engine may take for a catalogue version
_LOOK_S = 0.5  # between two looks at the engines


class EngineFailed(RuntimeError):
    """An engine stopped, or did not answer for too long; nothing of the engines is left running."""


class Engines:
    """The engines of a server by mode; what blocks is called from other threads than that of their event loop.

    Args:
        clients: of engines that run; `start` fills it.
        arguments: of vLLM, by mode, to start them with (`llmrec.serving.vllm.engines.engine_arguments`).

    Attributes:
        online (`dict`): mode → `OnlineEngine`, which goes on with an engine that was started again.
    """

    def __init__(self, clients: dict[str, AsyncLLM], arguments: dict[str, dict] | None = None):
        self.clients, self.arguments, self.loop = clients, arguments or {}, asyncio.get_running_loop()
        self.online = {mode: OnlineEngine(clients, mode, self.loop) for mode in [*clients, *self.arguments]}
        self._asked = Work()  # of workers, beside searches
        self._down: float | None = None  # since when
        self._start_s = 0.0  # how long the last start took
        self._closed = False

    def start(self) -> None:
        """Starts an engine for each mode, which takes a minute; blocks."""
        began = time.monotonic()
        for mode, arguments in self.arguments.items():
            if self._closed:
                raise EngineFailed("the engines are not started: the server stops")
            logger.info("starting the %s engine (some minutes with a large model)", mode)
            self.clients[mode] = start_engine(arguments)
        self._start_s = time.monotonic() - began
        if self._closed:
            self.close()

    def close(self) -> None:
        self._closed = True
        for client in self.clients.values():
            client.shutdown()

    def publish(self, prepared: Prepared) -> None:
        """Loads a catalogue version into every worker, beside what is running; `RuntimeError` where one could not."""
        self.check()
        number, until = prepared.version.number, time.monotonic() + _LOADING_S
        self._ask("llmrec_load", json.dumps(prepared.record))
        while "loading" in (states := self._ask("llmrec_state", number)):
            if time.monotonic() > until:
                raise RuntimeError(f"version {number} was not loaded within {_LOADING_S:.0f} s")
            time.sleep(0.01)
        for state in states:
            if state != "loaded":
                raise RuntimeError(f"a worker could not load version {number}: {state}")

    def retire(self, number: int) -> None:
        self._ask("llmrec_drop", number)

    def check(self) -> None:
        """Raises `Unavailable` while an engine is dead, or is started again: as long as it took the last time."""
        if self._down is not None:
            left = self._down + self._start_s - time.monotonic()
            raise Unavailable("an engine has failed and is started again", left)
        if (error := self._stopped()) is not None:
            raise Unavailable(str(error), self._start_s)

    async def keep(self, longest_s: float, restarts: int, unchanged, ready: Callable[[], Awaitable]) -> None:
        """Starts the engines again where one has stopped, or has not answered for `longest_s`: engines answer between
        two steps, so one that is busy answers, too. Where it is cancelled a start is given up.

        Args:
            restarts: how often; then it raises `EngineFailed`.
            unchanged: a context in which the catalogue stays as it is.
            ready: awaited when they have started, before anybody is sent to them.
        """
        while True:
            error = await self._failure(longest_s)
            while error is not None:
                self._kill()
                if not restarts:
                    raise error
                restarts -= 1
                logger.error("%s: starting again", error)
                try:
                    await self._started_within(unchanged)
                    await ready()
                    error = None
                except Exception as again:
                    error = EngineFailed(f"an engine did not start again: {again}")
            self._down = None
            logger.info("the engines answer again")

    async def _started_within(self, unchanged) -> None:
        starting = self.loop.run_in_executor(None, self._start_within, unchanged)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:  # its thread ends when its process does, which may only come to be
            self._closed = True
            while not starting.done():
                _kill_children()
                await asyncio.wait([starting], timeout=0.1)
            starting.exception()
            raise

    def _start_within(self, unchanged) -> None:
        with unchanged():
            for client in self.clients.values():
                client.shutdown()
            self.start()

    def _kill(self) -> None:
        """What waits for an answer is told."""
        if self._down is None:
            self._down = time.monotonic()
        _kill_children()
        self._asked.stop()
        self._asked = Work()

    def _stopped(self) -> EngineFailed | None:
        for mode, client in self.clients.items():
            if client.errored:
                return EngineFailed(f"the {mode} engine has stopped; its log says why")
        return None

    async def _failure(self, longest_s: float) -> EngineFailed:
        """Returns when there is one."""
        asked: dict[str, asyncio.Task] = {}
        since = time.monotonic()
        try:
            while (error := self._stopped()) is None:
                if not asked:
                    since = time.monotonic()
                    asked = {mode: asyncio.create_task(_answer(client)) for mode, client in self.clients.items()}
                await asyncio.sleep(_LOOK_S)
                silent = [mode for mode, task in asked.items() if not task.done()]
                if silent and time.monotonic() - since > longest_s:
                    return EngineFailed(f"the {silent[0]} engine has not answered for {longest_s:g} s")
                if not silent:
                    asked = {}
            return error
        finally:
            for task in asked.values():
                task.cancel()

    def _ask(self, method: str, argument) -> list:
        """The answers of all workers of all engines."""

        async def ask() -> list:
            answers = await asyncio.gather(
                *(client.collective_rpc(method, timeout=60.0, args=(argument,)) for client in self.clients.values())
            )
            return [answer for of_engine in answers for answer in of_engine]

        future = asyncio.run_coroutine_threadsafe(ask(), self.loop)
        self._asked.add(future)
        return future.result()


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


async def _answer(client: AsyncLLM) -> None:
    with suppress(Exception):  # of an engine that stops, which is seen otherwise
        await client.collective_rpc("llmrec_state", args=(0,))


def start_engine(arguments: dict) -> TracedEngine:
    traces = arguments.get("otlp_traces_endpoint") is not None  # its spans need the times that statistics take
    return TracedEngine(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, disable_log_stats=not traces)), traces)
