"""Rolls out for runs of recipes/grpo.py with `use_vllm: true` and `vllm_mode: server`.

    python -m llmrec.serving.rollouts out/quickstart/model --port 8001

`folder` is the one that training starts from. A run sends its weights whenever they have changed; nothing is written
back. Whoever reaches the server can replace them: it asks for the key in LLMREC_API_KEY, which the run has, too, and
without one it listens on this machine only.
"""

import argparse
import logging
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open

from llmrec.hub import local_folder
from llmrec.models.folder import RecommenderConfig, check_checksums
from llmrec.rl.rollout import RolloutEngine
from llmrec.serving.__main__ import json_object, name_of, port
from llmrec.serving.http.connections import Server, web_config
from llmrec.serving.http.errors import ERROR_HANDLERS, ApiError
from llmrec.serving.http.middleware import Guard
from llmrec.serving.http.settings import Settings, check_port
from llmrec.serving.rollouts.engine import EngineRollouts
from llmrec.serving.rollouts.remote import ROUTE

logger = logging.getLogger("llmrec.serving")
_LIMITS = {"max_body_bytes": 2**42, "timeout_s": 600.0}


class Groups(BaseModel, extra="forbid"):
    """The `size` best Semantic IDs after each prompt, by the weights of this name."""

    prompts: list[list[int]] = Field(min_length=1)
    size: int = Field(ge=1)
    normalize: Literal["catalogue", "vocabulary"]
    weights: str


def shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """Of the weights in safetensors files, by name."""
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in list(tensors.keys())}
    return found


def create_app(rollouts: RolloutEngine, folder: Path, dtype: str, settings: Settings) -> FastAPI:
    """The ASGI application over the engine of a model folder, with weights of `dtype`."""
    app = FastAPI(title="llmrec rollouts", exception_handlers=ERROR_HANDLERS, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings=settings)
    fingerprint, wanted = RecommenderConfig.load(folder).semid_fingerprint, shapes(folder.glob("*.safetensors"))
    lock, name = threading.Lock(), ""

    def take(file: Path, sent: str) -> int:
        nonlocal name
        try:
            found = shapes([file])
        except SafetensorError as error:
            raise ApiError(400, f"the body is no whole safetensors file: {error}") from error
        if other := [each for each, shape in wanted.items() if found.get(each) != shape]:
            message = (
                f"{other[0]} is {found.get(other[0], 'missing')}, here {wanted[other[0]]}: start the server with "
            )
            raise ApiError(400, message + "the folder that the run starts from")
        with safe_open(file, "pt") as tensors, lock:
            name = ""  # half the old and half the new would be neither
            rollouts.take((each, tensors.get_tensor(each)) for each in found)
            name = sent
        return len(found)

    @app.get(ROUTE)
    def about() -> dict:
        return {"semid_fingerprint": fingerprint, "dtype": dtype, "weights": name}

    @app.put(ROUTE + "/weights/{sent}")
    async def weights(sent: str, request: Request) -> dict:
        with tempfile.TemporaryDirectory() as spool:
            file = Path(spool) / "weights.safetensors"
            with file.open("wb") as whole:
                async for chunk in request.stream():
                    whole.write(chunk)
            return {"tensors": await run_in_threadpool(take, file, sent)}

    @app.post(ROUTE)
    def groups(asked: Groups) -> dict:
        with lock:
            if asked.weights != name:
                message = f"this server has the weights {name or '(none yet)'!r}, not {asked.weights!r}: another run "
                raise ApiError(409, message + "uses it, or it was started again")
            try:
                rows, scores = rollouts.search(asked.prompts, asked.size, asked.normalize)
            except ValueError as error:
                raise ApiError(400, str(error)) from error
        return {"rows": rows.tolist(), "scores": scores.tolist()}

    return app


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m llmrec.serving.rollouts", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="the model_name_or_path of the run, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=port, default=8000)
    parser.add_argument("--no_keys", action="store_true", help="other machines may ask without any key")
    parser.add_argument(
        "--vllm", type=json_object, default={}, help='JSON: arguments of vLLM, as {"dtype": "bfloat16"}'
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = Settings.of_environment(name_of(args.folder, args.revision), no_keys=args.no_keys, **_LIMITS)
        settings.check_host(args.host)
        check_port(args.host, args.port)
        folder = local_folder(args.folder, args.revision)
        check_checksums(folder)
        RecommenderConfig.load(folder)  # what is no model folder is refused before an engine takes its time
        rollouts = EngineRollouts(folder, **args.vllm)
        dtype = str(rollouts.model_config.dtype).removeprefix("torch.")
        app = create_app(rollouts, folder, dtype, settings)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    logger.info("rolling out for %s on http://%s:%d", folder, args.host, args.port)
    Server(web_config(app, host=args.host, port=args.port)).run()


if __name__ == "__main__":
    main()
