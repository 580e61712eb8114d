"""A whole server on a tiny real model, for tests of the HTTP front."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
from fastapi.testclient import TestClient
from tiny import tiny_data, tiny_index, write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.models.dense import load_dense
from llmrec.models.folder import RecommenderConfig, load_index
from llmrec.recommenders import LLMRecommender
from llmrec.serving.http import connections
from llmrec.serving.http.app import create_app
from llmrec.serving.http.connections import web_config
from llmrec.serving.http.service import Service, Unavailable
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore
from llmrec.serving.vllm.engines import GENERATE, engine_arguments


class LockedRecommender(LLMRecommender):
    """One search at a time: the search of transformers is not thread-safe, unlike an engine's.

    `hold` is called before every search, with the lock free.
    """

    lock = threading.Lock()

    def __init__(self, *args, hold=lambda: None, **kwargs):
        super().__init__(*args, **kwargs)
        self.hold = hold

    def search(self, *args, **kwargs):
        self.hold()
        with self.lock:
            return super().search(*args, **kwargs)


class Server:
    """A `Service` over a model folder and its application.

    Attributes:
        hold: what every search calls first; tests set it.
        published, retired: versions that the hooks got.
        broken: raised where a version is published; tests set it.
        dead: raised where the engine is asked for.
    """

    def __init__(self, folder: Path, log: Path, **settings):
        self.folder = folder
        self.config = RecommenderConfig.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.dense = load_dense(folder, load_index(folder, self.config).items)
        self.hold = lambda: None
        self.published: list[int] = []
        self.retired: list[int] = []
        self.broken: Exception | None = None
        self.dead: Unavailable | None = None
        self.store = CatalogueStore(folder, log)
        self.service = Service(self.store, self.make, self.publish, self.retired.append, self.check)
        self.app = create_app(self.service, Settings(**{"model": "tiny", **settings}))

    def make(self, version):
        parts = self.model, self.tokenizer, version.index, version.items, self.config
        return LockedRecommender(*parts, hold=lambda: self.hold(), dense=self.dense)

    def publish(self, prepared):
        if self.broken is not None:
            raise self.broken
        self.published.append(prepared.version.number)

    def check(self):
        if self.dead is not None:
            raise self.dead

    def close(self):
        self.service.close()
        self.store.close()


@contextmanager
def _running(folder: Path, log: Path, **settings):
    server = Server(folder, log, **settings)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def serving(folder: Path, log: Path, **settings):
    """`(server, client)`; the client runs the application in this process."""
    with (
        _running(folder, log, **settings) as server,
        TestClient(server.app, raise_server_exceptions=False) as client,
    ):
        yield server, client


@contextmanager
def listening(folder: Path, log: Path, **settings):
    """`(server, url)`; uvicorn runs the application on a free port."""
    with _running(folder, log, **settings) as server, listening_app(server.app) as url:
        yield server, url


@contextmanager
def listening_app(app, **more):
    """The URL of an ASGI application that uvicorn runs in a thread."""
    web = connections.Server(web_config(app, port=0, **{"timeout_graceful_shutdown": 2, **more}))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: web.started)
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join()


@asynccontextmanager
async def front(folder, log, **settings):
    """`(client, gates)` of an application with a generating engine in this event loop."""
    from llmrec.serving.http.openai_routes import add_openai_routes
    from llmrec.serving.server import open_service, openai_serving
    from llmrec.serving.vllm.kept_engines import Engines, start_engine

    with CatalogueStore(folder, log) as store:
        engine = start_engine(
            engine_arguments(folder, GENERATE, log, dtype="float32", distributed_executor_backend="uni")
        )
        try:
            service = await open_service(folder, store, Engines({GENERATE: engine}))
            app = create_app(service, Settings("shop", **settings))
            add_openai_routes(app, await openai_serving(engine, "shop", folder))
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://front", timeout=300) as client:
                yield client, service
            await asyncio.to_thread(service.close)
        finally:
            engine.shutdown()


def tiny_folder(path: Path, data: PreparedData | None = None, index: SemIDIndex | None = None, prompt="stream"):
    """A model folder for a catalogue, by default the tiny one."""
    data = data or tiny_data()
    return write_tiny_base(path / "model", data, index or tiny_index(data), prompt)


def wait_for(condition, seconds: float = 60) -> None:
    """Returns when `condition()` holds, fails when it does not come to."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.005)
