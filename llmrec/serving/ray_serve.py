"""The server as an application of Ray Serve, an engine in each replica: `serve run deploy/ray_serve.yaml`.

Replicas follow the writer of their catalogue, `python -m llmrec.serving FOLDER --modes catalogue`, which runs beside
Ray. Keys stand in LLMREC_API_KEY and LLMREC_ADMIN_KEY of the replicas' environment. Checked with Ray 2.60.
"""

from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from ray import serve
from ray.serve import Application

from llmrec.serving.__main__ import name_of, served
from llmrec.serving.http.settings import Settings
from llmrec.serving.server import opened

_STRICT = ConfigDict(extra="forbid")
_NOT_HERE = "model api_key admin_key follow recommend drain_s".split()  # said elsewhere; Ray drains replicas itself
_MORE = {each.name: (each.type, each.default) for each in fields(Settings) if each.name not in _NOT_HERE}
MoreSettings = create_model("MoreSettings", __config__=_STRICT, **_MORE)


class Arguments(BaseModel):
    """What an application says in its `args`.

    Args:
        folder: a model folder that all nodes see, or its name on the Hub.
        follow: the URL of the writer.
        modes: of the engine.
        vllm: arguments of its own.
        settings: the other fields of `Settings`, such as `no_keys`.
    """

    model_config = _STRICT

    folder: str
    follow: str
    modes: list[Literal["recommend", "generate"]] = Field(["recommend"], min_length=1)
    vllm: dict = {}
    settings: MoreSettings = MoreSettings()


@serve.deployment(max_ongoing_requests=320)  # as many as `Settings` lets in
@serve.ingress()
class Recommender:
    """A replica; what is not ready answers nothing, and one whose engine died is replaced."""

    async def __init__(self, arguments: Arguments):
        more = arguments.settings.model_dump()
        settings = Settings.of_environment(name_of(arguments.folder), follow=arguments.follow, **more)
        settings.check_host(None)  # who may reach Ray's proxy, nobody says here
        folder, _ = served(arguments.folder)
        self._catalogue = TemporaryDirectory(prefix="llmrec-catalogue-")
        modes = dict.fromkeys(arguments.modes, arguments.vllm)
        self._opened = opened(folder, modes, settings, Path(self._catalogue.name))
        self._app, self._beside = await self._opened.__aenter__()

    def __serve_build_asgi_app__(self):
        return self._app

    async def check_health(self) -> None:
        for task in self._beside:
            if task.done():
                task.result()
        self._app.state.front.service.check()

    async def __del__(self):
        if hasattr(self, "_app"):
            await self._opened.__aexit__(None, None, None)
            self._catalogue.cleanup()


def app(arguments: Arguments) -> Application:
    """What `import_path` of a configuration names."""
    return Recommender.bind(arguments)
