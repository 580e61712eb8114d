"""One server for a model folder: an engine process for each mode, and the HTTP front in this process."""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from llmrec.item_tokenizers import load_item_tokenizer
from llmrec.models.folder import DENSE, ITEM_TOKENIZER, RecommenderConfig, check_checksums
from llmrec.models.weights import load_tokenizer
from llmrec.serving.http.app import create_app
from llmrec.serving.http.connections import Server, web_config
from llmrec.serving.http.engine_context import TracedEngine, VersionedEngine
from llmrec.serving.http.following import Following, WriterAway
from llmrec.serving.http.openai_routes import add_openai_routes
from llmrec.serving.http.service import ChangeFailed, Service
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore, CatalogueVersion, Prepared
from llmrec.serving.vllm.engines import GENERATE, RECOMMEND, OnlineEngine, engine_arguments
from llmrec.serving.vllm.plugin import FRONT, register
from llmrec.serving.vllm.recommender import VLLMRecommender
from llmrec.tokens import fix_today

logger = logging.getLogger("llmrec.serving")
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_LOADING_S = 600.0  # the longest that an engine may take for a catalogue version
_LOOK_S = 2.0  # between two looks at the engines


class EngineFailed(RuntimeError):
    """An engine stopped, did not answer for too long, or did not take a version of a catalogue that it follows;
    nothing of the server is left running."""


FAILED = EngineFailed, WriterAway  # what another start may mend


class Engines:
    """The engines of a server by mode; what blocks is called from other threads than that of their event loop."""

    def __init__(self, clients: dict[str, AsyncLLM], loop: asyncio.AbstractEventLoop):
        self.clients, self.loop = clients, loop

    def publish(self, prepared: Prepared) -> None:
        """Loads a catalogue version into every worker, beside what is running; `RuntimeError` where one could not."""
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
        for mode, client in self.clients.items():
            if client.errored:
                raise EngineFailed(f"the {mode} engine has stopped; its log says why")

    async def watch(self, longest_s: float) -> None:
        """Raises `EngineFailed` when an engine has stopped, or hangs: engines answer between two steps, so one that is
        busy answers, too. Where one fails all are killed, so that whoever waits for them is told."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                self.check()
                for mode, client in self.clients.items():
                    try:
                        async with asyncio.timeout(longest_s):
                            await client.collective_rpc("llmrec_state", args=(0,))
                    except TimeoutError as error:
                        raise EngineFailed(f"the {mode} engine has not answered for {longest_s:g} s") from error
        except Exception as error:
            for process in multiprocessing.active_children():
                process.kill()
            raise EngineFailed(str(error)) from error

    def _ask(self, method: str, argument) -> list:
        """The answers of all workers of all engines."""

        async def ask() -> list:
            answers = await asyncio.gather(
                *(client.collective_rpc(method, timeout=60.0, args=(argument,)) for client in self.clients.values())
            )
            return [answer for of_engine in answers for answer in of_engine]

        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result()


@asynccontextmanager
async def opened(
    folder: str | Path,
    modes: dict[str, dict],
    settings: Settings,
    directory: str | Path | None,
    engine_timeout_s: float = 120.0,
) -> AsyncIterator[tuple[FastAPI, list[asyncio.Task]]]:
    """The application over a folder, its engines and its catalogue, while the block lasts; and what runs beside it,
    which ends, with an error, only where the server should too.

    Args:
        folder: a merged model folder.
        modes: `recommend`, `generate` or both, with vLLM's arguments for the engine of each; with none there is the
            catalogue alone, for other servers that follow.
        directory: of the catalogue log, by default `<folder>/catalogue`.
        engine_timeout_s: an engine that does not answer for so long hangs.

    Raises:
        ValueError: a folder that is none, or one whose weights recommend nothing; a writer that does not want to be
            followed.
        WriterAway: the writer that it follows does not answer.
    """
    check_checksums(folder)
    os.environ[FRONT] = str(os.getpid())
    register()
    shared = len(modes) > 1 and current_platform.is_cuda_alike()
    traces = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)
    instrumentor = _instrumentor() if traces else None
    store = CatalogueStore(folder, directory)  # first: the engines load what it says
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        following = None
        if settings.follow is not None:
            following = Following(settings.follow, store, settings.admin_key, settings.never_stale)
            await following.catch_up()
        clients = {}
        for mode, engine in modes.items():
            if shared:
                engine = {"gpu_memory_utilization": 0.45} | engine  # two engines share the device
            if traces:
                engine = {"otlp_traces_endpoint": traces} | engine
            logger.info("starting the %s engine (some minutes with a large model)", mode)
            arguments = engine_arguments(folder, mode, store.directory, **engine)
            clients[mode] = start_engine(arguments)
            stack.callback(clients[mode].shutdown)
        service = await open_service(folder, store, clients, following.check if following else lambda: None)
        stack.callback(service.close)
        if RECOMMEND in clients:
            await asyncio.to_thread(_try_out, service, folder)
        app = create_app(service, front_settings(folder, store, clients, settings))
        if GENERATE in clients:
            add_openai_routes(app, await openai_serving(clients[GENERATE], settings.model, folder))
        if instrumentor is not None:
            instrumentor.instrument_app(app, excluded_urls="health,ready,metrics,catalogue/records")
        running = [Engines(clients, asyncio.get_running_loop()).watch(engine_timeout_s)]
        running += [_follow(following, service)] if following else []
        beside = [*map(asyncio.ensure_future, running)]
        for task in beside:
            stack.callback(task.cancel)
        if following is not None:
            await following.until_level(beside)
            text = "Seconds since the writer of the catalogue was heard."
            app.state.front.metrics.gauge("llmrec_catalogue_silent_seconds", text, lambda: following.silent_s)
        yield app, beside


async def serve(
    folder: str | Path,
    modes: dict[str, dict],
    settings: Settings,
    host: str,
    port: int,
    directory: str | Path | None,
    engine_timeout_s: float = 120.0,
    **more,
) -> None:
    """Serves until SIGINT or SIGTERM, or until an engine fails.

    Args:
        folder, modes, settings, directory, engine_timeout_s: as for `opened`.
        more: of uvicorn's `Config`, such as `ssl_certfile`.

    Raises:
        ValueError: other machines could reach it without a key (`Settings.check_host`), and as `opened`.
        EngineFailed: an engine stopped, hangs, or did not take a catalogue version.
        WriterAway: as `opened`.
    """
    settings.check_host(host)

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    # While engines start, and once more after uvicorn has handled it: engines are always shut down.
    signal.signal(signal.SIGTERM, interrupt)
    # Threads that wait for a search need the loop: the front stops first, then the engines.
    async with opened(folder, modes, settings, directory, engine_timeout_s) as (app, beside):
        config, front = web_config(app, host=host, port=port, **more), app.state.front
        url = f"http{'s' if config.is_ssl else ''}://{host}:{port}"
        logger.info(
            "serving %s on %s; changes of the catalogue %s", folder, url,
            f"come from {settings.follow}" if settings.follow else f"go to {front.service.store.directory}",
        )  # fmt: skip
        web = Server(config, settings.drain_s, partial(setattr, front, "leaving", True))
        for task in beside:
            task.add_done_callback(lambda _: setattr(web, "should_exit", True))
        await web.serve()
        for task in beside:
            if task.done():
                task.result()


async def _follow(following: Following, service: Service) -> None:
    try:
        await following.run(service)
    except ChangeFailed as error:
        raise EngineFailed(str(error)) from error


def _instrumentor():
    """OpenTelemetry's, whose spans vLLM's exporter sends."""
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError as error:
        raise ValueError(
            f"{OTEL_EXPORTER_OTLP_TRACES_ENDPOINT} is set, and what makes spans is not installed: "
            "pip install 'llmrec[traces]', or unset it"
        ) from error
    return FastAPIInstrumentor


def _try_out(service: Service, folder: str | Path) -> None:
    """Recommends once, so that weights which give no numbers are found before anybody asks."""
    try:
        recommender = service.current.recommender
        recommender.recommend([[]], 1, think=False, variations=0)
    except Exception as error:
        raise ValueError(f"{folder} recommends nothing, its weights may be damaged: {error}") from error


def _traces(client: AsyncLLM) -> bool:
    return client.vllm_config.observability_config.otlp_traces_endpoint is not None


def start_engine(arguments: dict) -> AsyncLLM:
    """Call it where an event loop runs, which the engine uses."""
    traces = arguments.get("otlp_traces_endpoint") is not None  # its spans need the times that statistics take
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, disable_log_stats=not traces))


async def open_service(
    folder: str | Path,
    store: CatalogueStore,
    clients: dict[str, AsyncLLM],
    fresh: Callable[[], None] = lambda: None,
) -> Service:
    """The service over engines by mode that run in this event loop, and hold the store's current version."""
    loop = asyncio.get_running_loop()
    engines = Engines(clients, loop)
    of_mode = {mode: OnlineEngine(TracedEngine(client, _traces(client)), loop) for mode, client in clients.items()}
    searcher, writer = of_mode.get(RECOMMEND), of_mode.get(GENERATE)
    config, tokenizer = RecommenderConfig.load(folder), load_tokenizer(folder)
    contextual = None
    if store.current.index.contextual:
        contextual = await asyncio.to_thread(load_item_tokenizer, Path(folder) / ITEM_TOKENIZER, own=False)

    def make(version: CatalogueVersion) -> VLLMRecommender:
        if writer is not None:
            version.index.decode("")  # makes the table now, not while the event loop names the items of a text
        parts = searcher, tokenizer, version.index, version.items, config
        more = {"writer": writer, "sequence_tokenizer": contextual, "has_dense": (Path(folder) / DENSE).is_dir()}
        return VLLMRecommender(*parts, version=version.number, **more)

    return await asyncio.to_thread(Service, store, make, engines.publish, engines.retire, engines.check, fresh)


def front_settings(
    folder: str | Path, store: CatalogueStore, clients: dict[str, AsyncLLM], settings: Settings | None = None
) -> Settings:
    """Settings with the room that the engines have for a prompt; by default with the keys of the environment."""
    settings = settings or Settings.of_environment(Path(folder).resolve().name)
    levels = store.current.index.num_levels
    rooms = [client.model_config.max_model_len - levels for client in clients.values()]
    room = min([*rooms, *filter(None, [settings.max_prompt_tokens])], default=None)
    return replace(settings, max_prompt_tokens=room, recommend=RECOMMEND in clients)


async def openai_serving(client: AsyncLLM, name: str, folder: str | Path) -> State:
    """vLLM's own serving objects over an engine."""
    parser = make_arg_parser(FlexibleArgumentParser())
    given, tokenizer = ["--model", str(folder), "--served-model-name", name], load_tokenizer(folder)
    before = tokenizer.chat_template
    fix_today(tokenizer)
    if tokenizer.chat_template != before:  # of a folder that was made before templates were fixed
        given += ["--chat-template", tokenizer.chat_template]
    arguments = parser.parse_args(given)
    state = State()
    await init_app_state(
        VersionedEngine(client, _traces(client)), state, arguments, await client.get_supported_tasks()
    )
    return state
