"""One server for a model folder: an engine process for each mode, and the HTTP front in this process."""

import asyncio
import logging
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
from llmrec.serving.http.engine_context import VersionedEngine
from llmrec.serving.http.following import Following, WriterAway
from llmrec.serving.http.openai_routes import add_openai_routes
from llmrec.serving.http.service import ChangeFailed, Service
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore, CatalogueVersion
from llmrec.serving.vllm.engines import GENERATE, RECOMMEND, engine_arguments
from llmrec.serving.vllm.kept_engines import EngineFailed, Engines
from llmrec.serving.vllm.plugin import FRONT, register
from llmrec.serving.vllm.recommender import VLLMRecommender
from llmrec.tokens import fix_today

logger = logging.getLogger("llmrec.serving")
FAILED = EngineFailed, WriterAway  # what another start may mend
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@asynccontextmanager
async def opened(
    folder: str | Path,
    modes: dict[str, dict],
    settings: Settings,
    directory: str | Path | None,
    engine_timeout_s: float = 120.0,
    restarts: int = 0,
) -> AsyncIterator[tuple[FastAPI, list[asyncio.Task]]]:
    """The application over a folder, its engines and its catalogue, while the block lasts; and what runs beside it,
    which ends, with an error, only where the server should too.

    Args:
        folder: a merged model folder.
        modes: `recommend`, `generate` or both, with vLLM's arguments for the engine of each; with none there is the
            catalogue alone, for other servers that follow.
        directory: of the catalogue log, by default `<folder>/catalogue`.
        engine_timeout_s: an engine that does not answer for so long hangs.
        restarts: how often the engines are started again after one of them failed.

    Raises:
        ValueError: a folder that is none, or one whose weights recommend nothing; a writer that does not want to be
            followed.
        WriterAway: the writer that it follows does not answer.
    """
    check_checksums(folder)
    os.environ[FRONT] = str(os.getpid())
    register()
    traces = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)
    instrumentor = _instrumentor() if traces else None
    store = CatalogueStore(folder, directory)  # first: the engines load what it says
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        following = None
        if settings.follow is not None:
            following = Following(settings.follow, store, settings.admin_key, settings.never_stale)
            await following.catch_up()
        common = {"otlp_traces_endpoint": traces} if traces else {}
        if len(modes) > 1 and current_platform.is_cuda_alike():  # two engines share the device
            common["gpu_memory_utilization"] = 0.45
        arguments = {
            mode: engine_arguments(folder, mode, store.directory, **(common | own)) for mode, own in modes.items()
        }
        engines = Engines({}, arguments)
        stack.callback(engines.close)
        engines.start()
        service = await open_service(folder, store, engines, following.check if following else lambda: None)
        stack.callback(service.close)
        alone_s = await asyncio.to_thread(try_out, service, folder) if RECOMMEND in modes else None
        app = create_app(service, front_settings(folder, store, engines.clients, settings), alone_s)
        if GENERATE in modes:
            add_openai_routes(app, await openai_serving(engines.clients[GENERATE], settings.model, folder))
        if instrumentor is not None:
            instrumentor.instrument_app(app, excluded_urls="health,ready,metrics,catalogue/records")

        async def ready_again() -> None:
            if RECOMMEND in modes:
                await asyncio.to_thread(try_out, service, folder)
            if GENERATE in modes:
                app.state.generate = await openai_serving(engines.clients[GENERATE], settings.model, folder)

        running = [engines.keep(engine_timeout_s, restarts, service.unchanged, ready_again)]
        running += [_follow(following, service)] if following else []
        beside = [*map(asyncio.ensure_future, running)]
        stack.push_async_callback(_end, beside)
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
    restarts: int = 0,
    **more,
) -> None:
    """Serves until SIGINT or SIGTERM, or until an engine fails once too often. While it is started again the front
    stays, and answers 503 with the time that it takes; a start that is not done when it is told to stop is given up.

    Args:
        folder, modes, settings, directory, engine_timeout_s, restarts: as for `opened`.
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
    async with opened(folder, modes, settings, directory, engine_timeout_s, restarts) as (app, beside):
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


async def _end(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


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


def try_out(service: Service, folder: str | Path) -> float:
    """The seconds of a recommendation without a history that runs alone; raises `ValueError` for weights that give no
    numbers, so that they are found before anybody asks."""
    try:
        seconds = []
        for _ in range(3):  # the first one warms up
            began = time.perf_counter()
            service.current.recommender.recommend([[]], 1)
            seconds.append(time.perf_counter() - began)
        return min(seconds)
    except Exception as error:
        raise ValueError(f"{folder} recommends nothing, its weights may be damaged: {error}") from error


async def open_service(
    folder: str | Path, store: CatalogueStore, engines: Engines, fresh: Callable[[], None] = lambda: None
) -> Service:
    """The service over engines that hold the store's current version."""
    searcher, writer = engines.online.get(RECOMMEND), engines.online.get(GENERATE)
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
    await init_app_state(VersionedEngine(client), state, arguments, await client.get_supported_tasks())
    return state
