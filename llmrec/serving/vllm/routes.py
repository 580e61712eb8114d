"""The HTTP front inside vLLM's own server, as an endpoint plugin of vLLM.

    VLLM_PLUGINS=llmrec vllm serve out/shop/model $(python -m llmrec.serving.vllm.routes out/shop/model)

The command in brackets prints the flags that `recommend` mode needs. vLLM's routes stay as they are, every other path
is the front's: /v1/recommend, /v1/items, /v1/catalogue. `python -m llmrec.serving` has all of it, and both modes.
"""

import asyncio
import json
import sys
from pathlib import Path

from llmrec.models.folder import check_checksums
from llmrec.serving.http.app import create_app
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore
from llmrec.serving.server import front_settings, open_service, try_out
from llmrec.serving.vllm.engines import RECOMMEND, TASK, engine_arguments
from llmrec.serving.vllm.kept_engines import Engines


class FrontRoutes:
    """See `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "llmrec"
    required_tasks = (TASK,)

    def attach_router(self, app) -> None:
        """Takes all paths that vLLM has no route for."""
        app.mount("", self._front)

    async def _front(self, scope, receive, send) -> None:
        await self._app(scope, receive, send)

    async def init_state(self, engine_client, state, args) -> None:
        """Opens the catalogue beside the engine; `ValueError` where other machines could change it without a key, or a
        file of the folder is damaged."""
        Settings.of_environment("").check_host(args.host)
        config = engine_client.vllm_config
        folder = config.model_config.model
        await asyncio.to_thread(check_checksums, folder)
        store = await asyncio.to_thread(CatalogueStore, folder, config.additional_config.get("catalogue"))
        engines = Engines({RECOMMEND: engine_client})
        service = await open_service(folder, store, engines)
        alone_s = await asyncio.to_thread(try_out, service, folder)
        self._app = create_app(service, front_settings(folder, store, engines.clients), alone_s)


def flags(folder: str | Path, directory: str | Path | None = None) -> list[str]:
    """The flags of `vllm serve` for `recommend` mode; the catalogue's log is in `directory`, or in the folder."""
    made, directory = [], directory or Path(folder) / "catalogue"
    for name, value in engine_arguments(folder, RECOMMEND, directory).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            made.append(flag if value else flag.replace("--", "--no-", 1))
        elif name not in ("model", "distributed_executor_backend"):
            made += [flag, json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else str(value)]
    return made


if __name__ == "__main__":
    sys.stdout.write(" ".join(flags(sys.argv[1])) + "\n")
