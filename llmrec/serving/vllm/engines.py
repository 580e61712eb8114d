"""How vLLM's engines are started for a model folder, one for each mode, and what plain Python asks them.

A vLLM engine pools or generates, so `recommend` and `generate` have an engine each, with weights of their own.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from llmrec.arguments import did_you_mean
from llmrec.catalogue.filters import Filter
from llmrec.files import read_json
from llmrec.serving.in_flight import remembered, shared
from llmrec.serving.vllm.plugin import ARCHITECTURES, register

if TYPE_CHECKING:
    import torch
    from vllm import PoolingParams, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

RECOMMEND, GENERATE = MODES = ("recommend", "generate")
TASK = "token_classify"  # the task whose requests never read the prefix cache, so that every prompt passes through
DONE, FAILED, GOES_ON = range(3)  # how a search stands
_WIDE = 64  # beams of a search that others should not wait for
_LENGTH = 8192  # the longest prompt and answer by default, whatever the model could read


@dataclass(frozen=True)
class SearchRequest:
    """What a request of mode `recommend` says, beside its prompt.

    Args:
        num_beams: to begin with.
        version: of the catalogue; the newest by default.
        view: the Semantic IDs that are searched.
        history: the item ids that `exclude_seen` looks at.
        dense: what is done with dense scores (`llmrec.decoding.dense.MODES`); empty: nothing.
        beams: answers with the `num_beams` best Semantic IDs of the whole catalogue, scored as this says
            (`llmrec.decoding.beam_search.Normalize`); empty: with items.
        sliced: a name of the search, by which it is asked for again as long as it `GOES_ON`; empty: it runs in one.
        begun: it is asked for again.
    """

    k: int
    num_beams: int
    version: int | None = None
    view: str = ""
    filter: Filter | None = None
    history: Sequence[str] = ()
    dense: str = ""
    beams: str = ""
    sliced: str = ""
    begun: bool = False

    def params(self) -> "PoolingParams":
        """The same for vLLM, whose engine may be another process."""
        from vllm import PoolingParams

        fields = {**vars(self), "filter": None if self.filter is None else vars(self.filter)}
        return PoolingParams(task=TASK, extra_kwargs={"semid": fields})

    @classmethod
    def of(cls, params: "PoolingParams") -> "SearchRequest | None":
        """`None` for requests that are not ours, such as vLLM's dummy run; raises `TypeError` for wrong fields."""
        fields = (params.extra_kwargs or {}).get("semid")
        if fields is None:
            return None
        request = cls(**fields)
        return request if request.filter is None else replace(request, filter=Filter(**request.filter))


def engine_arguments(folder: str | Path, mode: str, directory: str | Path | None = None, **more) -> dict:
    """Keyword arguments of vLLM's `LLM` and `AsyncEngineArgs` for a mode.

    Args:
        folder: a merged model folder.
        directory (*optional*): of a catalogue log, whose last version is served; without it the folder's own items.
        more: of vLLM's own, such as `dtype` or `gpu_memory_utilization`; they win, key by key where both are mappings.

    Raises:
        ValueError: an unknown mode, a model that cannot serve it, or an argument that vLLM does not have.
    """
    from vllm import EngineArgs
    from vllm.platforms import current_platform

    known = [each.name for each in fields(EngineArgs)]
    if unknown := [name for name in more if name not in known]:
        raise ValueError(f"vLLM has no argument {unknown[0]!r}{did_you_mean(unknown[0], known)}")

    config = read_json(Path(folder) / "config.json")
    length = more.get("max_model_len") or min(config.get("max_position_embeddings") or _LENGTH, _LENGTH)
    arguments = {
        "model": str(folder),
        "max_model_len": length,
        "load_format": "safetensors",  # never a pickle
        # the folder's own: vLLM's "auto" would halve float32, into other types for the two modes
        "dtype": config.get("dtype") or config.get("torch_dtype") or "auto",
        "worker_extension_cls": "llmrec.serving.vllm.catalogues.CatalogueWorker",
        "additional_config": {"catalogue": None if directory is None else str(directory)},
    }
    if current_platform.is_cpu():
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        # The model runs in the engine's process, as on one GPU: the process that vLLM starts for it on a CPU is waited
        # for in a loop that takes as much time as the model. (By class: the name "uni" is taken for "mp" there.)
        arguments["distributed_executor_backend"] = UniProcExecutor
        arguments["dtype"] = "float32"  # as LLMRecommender reads a folder there
        arguments["enforce_eager"] = True  # compiling takes longer than it saves
        told = {"gpu_memory_utilization", "kv_cache_memory_bytes"} & {*more}
        if not (told or os.environ.get("VLLM_CPU_KVCACHE_SPACE")):
            arguments["kv_cache_memory_bytes"] = 2 * 2**30  # vLLM asks for nearly all memory, or does not start
    if mode == RECOMMEND:
        architecture = config["architectures"][0]
        if architecture not in ARCHITECTURES:
            raise ValueError(f"{folder} is a {architecture}; recommend mode knows {', '.join(ARCHITECTURES)}")
        arguments |= {
            "runner": "pooling",
            "hf_overrides": {"architectures": [ARCHITECTURES[architecture]]},
            # The pooler needs every prompt whole, and keys and values that pass through Python.
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": max(8192, length),
            "max_num_seqs": 128,
        }
    elif mode == GENERATE:
        arguments |= {
            "logits_processors": ["llmrec.serving.vllm.semid_processor:SemIDProcessor"],
            # Beam search then adds up log-probabilities over the whole vocabulary, those of tokens that are no
            # Semantic ID are -inf.
            "logprobs_mode": "processed_logits",
            "max_logprobs": min(1024, config.get("vocab_size", 1024)),  # more than all tokens end the engine
            # An engine has one; "auto" would take that of the first request.
            "structured_outputs_config": {"backend": "xgrammar"},
        }
    else:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    for name in arguments.keys() & more.keys():
        if isinstance(arguments[name], dict):
            more[name] = arguments[name] | more[name]
    return arguments | more


class OfflineEngine:
    """vLLM's `LLM` in this process, for one mode; see `engine_arguments`."""

    def __init__(self, folder: str | Path, mode: str, **more):
        from vllm import LLM

        register()
        self.llm = LLM(**engine_arguments(folder, mode, **more))

    def search(self, prompts: Sequence[Sequence[int]], requests: Sequence[SearchRequest]) -> "list[torch.Tensor]":
        """The outputs of `BeamPooler`, float64 [1 + n, 3] for each prompt."""
        params = [request.params() for request in requests]
        outputs = self.llm.encode([*map(_input, prompts)], params, pooling_task=TASK, use_tqdm=False)
        return [output.outputs.data for output in outputs]

    def write(self, prompts: Sequence[Sequence[int]], params: "Sequence[SamplingParams]") -> list[str]:
        outputs = self.llm.generate([*map(_input, prompts)], list(params), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


class OnlineEngine:
    """The `AsyncLLM` of a mode, which may be exchanged for another one and runs in the event loop of another thread;
    calls wait for it, as those of `OfflineEngine`."""

    def __init__(self, clients: "Mapping[str, AsyncLLM]", mode: str, loop: asyncio.AbstractEventLoop):
        self._clients, self._mode, self.loop = clients, mode, loop

    def search(self, prompts, requests):
        async def search(prompt: Sequence[int], request: SearchRequest):
            if shared() and max(request.k, request.num_beams) > _WIDE:
                request = replace(request, sliced=uuid4().hex)
            while True:
                output = await self._last(self._clients[self._mode].encode, prompt, request.params())
                if output.outputs.data[0, 0] != GOES_ON:
                    return output.outputs.data
                prompt, request = prompt[:1], replace(request, begun=True)  # the engine has the prompt

        return self._all(search, prompts, requests)

    def write(self, prompts, params):
        async def write(prompt: Sequence[int], one: "SamplingParams") -> str:
            return (await self._last(self._clients[self._mode].generate, prompt, one)).outputs[0].text

        return self._all(write, prompts, params)

    def _all(self, ask, prompts, params) -> list:
        async def gather():
            return await asyncio.gather(*map(ask, prompts, params))

        return remembered(asyncio.run_coroutine_threadsafe(gather(), self.loop)).result()

    @staticmethod
    async def _last(ask, prompt: Sequence[int], params):
        """The last output of an engine request."""
        async for output in ask(_input(prompt), params, uuid4().hex):  # noqa: B007
            pass
        return output


def _input(prompt: Sequence[int]) -> dict:
    return {"prompt_token_ids": list(prompt)}
