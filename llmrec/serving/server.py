"""One server for a model folder: an engine process for each mode, and the HTTP front in this process."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig
from llmrec.serving.http.app import create_app
from llmrec.serving.http.service import Service
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore, CatalogueVersion, Prepared
from llmrec.serving.vllm.engines import GENERATE, RECOMMEND, OnlineEngine, engine_arguments

logger = logging.getLogger("llmrec.serving")
_LOADING_S = 600.0  # the longest that an engine may take for a catalogue version


class Engines:
    """The `AsyncLLM`s of a server; what blocks is called from other threads than the event loop's.

    Args:
        clients: by mode.
        loop: where they run.
    """

    def __init__(self, clients: dict, loop: asyncio.AbstractEventLoop):
        self.clients, self.loop = clients, loop
        self.of_mode = {mode: OnlineEngine(client, loop) for mode, client in clients.items()}

    def publish(self, prepared: Prepared) -> None:
        """Loads a catalogue version into every worker, beside what is running.

        Raises:
            RuntimeError: a worker could not load it.
        """
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
        """Lets the workers forget a catalogue version."""
        self._ask("llmrec_drop", number)

    def check(self) -> None:
        """Raises `RuntimeError` where an engine is dead."""
        for mode, client in self.clients.items():
            if client.errored:
                raise RuntimeError(f"the {mode} engine has stopped; its log says why")

    def _ask(self, method: str, argument) -> list:
        async def ask() -> list:
            answers = await asyncio.gather(
                *(client.collective_rpc(method, timeout=60.0, args=(argument,)) for client in self.clients.values())
            )
            return [answer for of_engine in answers for answer in of_engine]

        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result()


async def serve(
    folder: str | Path,
    modes: Sequence[str],
    settings: Settings,
    host: str,
    port: int,
    directory: str | Path | None = None,
    engine: dict | None = None,
    of_mode: dict[str, dict] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        folder: a merged model folder.
        modes: `recommend`, `generate`, or both.
        settings: of the front.
        directory: of the catalogue log, by default `<folder>/catalogue`.
        engine, of_mode: vLLM's arguments for all engines, and by mode.
    """
    import uvicorn

    from llmrec.serving.vllm.plugin import FRONT, register

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    # While engines start, and once more after uvicorn has handled it: engines are always shut down.
    signal.signal(signal.SIGTERM, interrupt)
    os.environ[FRONT] = str(os.getpid())
    register()
    store = CatalogueStore(folder, directory)  # first: the engines load what it says
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        clients = {}
        for mode in modes:
            logger.info("starting the %s engine (some minutes with a large model)", mode)
            more = (engine or {}) | ((of_mode or {}).get(mode) or {})
            clients[mode] = await _start(engine_arguments(folder, mode, store.directory, **more))
            stack.callback(clients[mode].shutdown)
        service = await open_service(folder, store, clients)
        stack.callback(service.close)
        settings = settings_of(folder, store, clients, settings)
        generate = await _openai(clients[GENERATE], settings.model, folder) if GENERATE in clients else None
        app = create_app(service, settings, generate)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=30
        )
        logger.info(
            "serving %s on http://%s:%d; changes of the catalogue go to %s", folder, host, port, store.directory
        )
        # Threads that wait for a search need the loop: the front stops first, then the engines.
        await uvicorn.Server(config).serve()


async def open_service(folder: str | Path, store: CatalogueStore, clients: dict) -> Service:
    """The service over engines by mode that run in this event loop, and hold the store's current version."""
    engines = Engines(clients, asyncio.get_running_loop())
    make = _recommenders(folder, engines)
    hooks = {"publish": engines.publish, "retire": engines.retire, "check": engines.check}
    return await asyncio.to_thread(Service, store, make, **hooks)


def settings_of(
    folder: str | Path, store: CatalogueStore, clients: dict, settings: Settings | None = None
) -> Settings:
    """Settings with the room that the engines have for a prompt; by default with the keys of the environment."""
    if settings is None:
        keys = {name: os.environ.get(f"LLMREC_{name.upper()}") or None for name in ("api_key", "admin_key")}
        settings = Settings(Path(folder).resolve().name, **keys)
    room = min(client.model_config.max_model_len for client in clients.values()) - store.current.index.num_levels
    room = min(settings.max_prompt_tokens or room, room)
    return replace(settings, max_prompt_tokens=room, recommend=RECOMMEND in clients)


async def _start(arguments: dict):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, disable_log_stats=True))


def _recommenders(folder: str | Path, engines: Engines):
    """Catalogue version → recommender over it."""
    from transformers import AutoTokenizer

    from llmrec.item_tokenizers import load_item_tokenizer
    from llmrec.serving.vllm.recommender import VLLMRecommender

    config, tokenizer = RecommenderConfig.load(folder), AutoTokenizer.from_pretrained(folder)
    searcher, writer = engines.of_mode.get(RECOMMEND), engines.of_mode.get(GENERATE)
    readers = {}

    def make(version: CatalogueVersion) -> VLLMRecommender:
        if version.index.contextual and not readers:
            readers["item_tokenizer"] = load_item_tokenizer(Path(folder) / ITEM_TOKENIZER)
        if writer is not None:
            version.index.decode("")  # makes the table now, not while the event loop names the items of a text
        parts = searcher, tokenizer, version.index, version.items, config, writer, version.number
        return VLLMRecommender(*parts, sequence_tokenizer=readers.get("item_tokenizer"))

    return make


async def _openai(client, name: str, folder: str | Path):
    """vLLM's own serving objects over an engine, for `llmrec.serving.http.openai_routes`."""
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from llmrec.serving.http.engine_context import VersionedEngine
    from llmrec.serving.http.openai_routes import Generate

    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", str(folder), "--served-model-name", name])
    state = State()
    await init_app_state(VersionedEngine(client), state, arguments, await client.get_supported_tasks())
    return Generate(state.openai_serving_chat, state.openai_serving_completion)
