"""Rollouts (`llmrec.rl.rollout.RolloutEngine`) by vLLM's engine of mode `recommend` in the process that trains, TRL's
`vllm_mode: colocate`; of several processes each has an engine.

vLLM (0.32) reloads weights layer by layer, as it loaded them at first. On a CPU it keeps them packed, where
`load_weights` alone, which TRL calls, finds nothing to change.
"""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from trl import GRPOConfig

from llmrec.models.folder import RecommenderConfig
from llmrec.rl.rollout import RolloutEngine
from llmrec.serving.rollouts.remote import RemoteRollouts
from llmrec.serving.vllm.engines import RECOMMEND, OfflineEngine, SearchRequest

_APART = "VLLM_ENABLE_V1_MULTIPROCESSING"
_MORE_ROOM = "raise vllm_max_model_length (of a server max_model_len), or lower the folder's max_history"


class EngineRollouts:
    """See `RolloutEngine`.

    Args:
        folder: a merged model folder, with the Semantic IDs that are searched.
        more: vLLM's own arguments, such as `dtype`.
    """

    def __init__(self, folder: str | Path, **more):
        with _as_it_was():
            os.environ[_APART] = "0"  # weights are handed over as they lie in memory
            self.engine = OfflineEngine(folder, RECOMMEND, **more)
        self.model_config = self.engine.llm.llm_engine.model_config

    @torch.no_grad()
    def take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def search(self, prompts: Sequence[Sequence[int]], size: int, normalize: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises `ValueError` for a prompt that leaves no room, `RuntimeError` where a search failed."""
        room = self.model_config.max_model_len
        if (longest := max(map(len, prompts))) >= room:
            raise ValueError(f"a prompt of {longest} tokens, but the engine has room for {room}: {_MORE_ROOM}")
        found = self.engine.search(prompts, [SearchRequest(size, size, beams=normalize)] * len(prompts))
        if failed := sum(int(output[0, 0]) for output in found):
            raise RuntimeError(f"{failed} of {len(prompts)} rollouts failed: the log says why")
        groups = torch.stack([output[1:] for output in found]).numpy()
        return groups[..., 2].astype(np.int64), groups[..., 1].astype(np.float32)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What vLLM sets for a process of its own, and a run reads after it: random states, and on a CPU how threads are
    set."""
    apart, states, set_threads = os.environ.get(_APART, "1"), random.getstate(), torch.set_num_threads
    numbers = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        os.environ[_APART], torch.set_num_threads = apart, set_threads
        random.setstate(states)
        np.random.set_state(numbers)


def start_rollouts(folder: str | Path, dtype: torch.dtype, args: GRPOConfig) -> RolloutEngine:
    """The engine that the settings of a run ask for, or the one that runs at the server that they name.

    Args:
        folder: of the model that learns.
        dtype: its dtype.

    Raises:
        ValueError: vLLM is not installed, the model has no engine, or the server is another one's.
    """
    name = str(dtype).removeprefix("torch.")
    if args.vllm_mode == "server":
        url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        return RemoteRollouts(url, RecommenderConfig.load(folder).semid_fingerprint, name, args.vllm_server_timeout)
    if find_spec("vllm") is None:
        raise ValueError("use_vllm: vLLM is not installed: docs/install.md says how, or set it to false")
    more = {"dtype": name, "seed": args.seed}
    if args.vllm_max_model_length:
        more["max_model_len"] = args.vllm_max_model_length
    if not args.use_cpu:
        more["gpu_memory_utilization"] = args.vllm_gpu_memory_utilization
    if PartialState().num_processes > 1:
        more["distributed_executor_backend"] = "external_launcher"  # there is a process group already
    return EngineRollouts(folder, **more)
