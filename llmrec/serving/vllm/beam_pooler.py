"""`recommend` mode: vLLM's decoders as pooling models, whose pooler runs the whole constrained beam search.

One engine request is one recommendation. vLLM schedules and runs its prompt; the pooler then searches the catalogue
for all prompts of the step together, level by level, with their keys and values shared by the beams.
"""

import logging
import time
from collections.abc import Callable, Set
from typing import NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.pooling_params import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata

from llmrec.decoding.dense import ALONE, find_densely
from llmrec.serving.vllm import catalogues
from llmrec.serving.vllm.engines import DONE, FAILED, GOES_ON, TASK, SearchRequest
from llmrec.serving.vllm.shared_prompts import SharedPrompts
from llmrec.serving.vllm.slices import Begun

logger = logging.getLogger(__name__)
_BEAMS = 2**13  # beams that run together
_MASK_ROWS = 2**27  # rows of the masks that requests of a group may have for themselves
_FAILED, _GOES_ON = (torch.tensor([[status, 0.0, 1.0]], dtype=torch.float64) for status in (FAILED, GOES_ON))


class Prompt(NamedTuple):
    """A request of an engine step: its number there, and where its prompt lies among all tokens of the step."""

    number: int
    start: int
    length: int
    request: SearchRequest


class BeamPooler(Pooler):
    """Searches after every prompt of an engine step.

    `max_length` bounds a prompt with its Semantic ID, in tokens. A request's output is float64 [1 + n, 3]: first
    `(status, milliseconds of its search, prompts searched with it)`, then `(number of the item, score, row of the
    index)`, best first; where beams were asked for, of the first item with each Semantic ID. The status is `DONE`;
    `FAILED`, where the engine's log says why, and other requests go on; or `GOES_ON`, where a sliced search should be
    asked for again.
    """

    def __init__(self, model: torch.nn.Module, catalogues: catalogues.WorkerCatalogues, max_length: int):
        super().__init__()
        self._prompts, self._catalogues, self._max_length = SharedPrompts(model), catalogues, max_length
        self._begun: Begun[list[torch.Tensor]] = Begun()

    def get_supported_tasks(self) -> Set[str]:
        return {TASK}

    @torch.inference_mode()
    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise ValueError("prompts must come whole: start vLLM without chunked prefill and prefix caching")
        lengths = cursor.num_scheduled_tokens_cpu.to(torch.long)
        places = zip((lengths.cumsum(0) - lengths).tolist(), lengths.tolist())
        params = pooling_metadata.pooling_params
        prompts = [Prompt(number, *place, _parsed(params[number])) for number, place in enumerate(places)]
        ours = [prompt for prompt in prompts if prompt.request is not None]
        outputs = [_FAILED] * len(prompts)
        try:
            if not ours:  # vLLM measures memory with as many prompts as it ever runs: one group is what runs at a time
                beams = self._catalogues.config.num_beams
                dummy = SearchRequest(1, beams)
                self._search(hidden_states, [one._replace(request=dummy) for one in prompts[: _BEAMS // beams]])
            for group in _groups(ours, len(self._catalogues.get().index)):
                for prompt, output in zip(group, self._try(hidden_states, group)):
                    outputs[prompt.number] = output
            return outputs
        finally:
            self._prompts.forget()

    def _try(self, hidden: torch.Tensor, group: list[Prompt]) -> list[torch.Tensor]:
        """Searches a group; where that fails, each of it alone, so that nobody pays for another."""
        try:
            return self._slice(hidden, group) if group[0].request.sliced else self._search(hidden, group)
        except Exception:
            if len(group) == 1:
                logger.exception("a search failed")
                return [_FAILED]
        return [output for prompt in group for output in self._try(hidden, [prompt])]

    def _slice(self, hidden: torch.Tensor, group: list[Prompt]) -> list[torch.Tensor]:
        """Of one prompt: a level of its search. On a GPU, where the threads of slices would need streams of their own
        and a wide search takes little longer than others, all of it."""
        [(_, _, _, request)] = group
        if hidden.device.type != "cpu":
            return self._search(hidden, group)
        if request.begun and request.sliced not in self._begun:
            raise ValueError("a sliced search was asked for again after it was forgotten")
        sliced = self._begun.go_on(request.sliced, lambda pause: self._search(hidden, group, pause))
        return sliced.result() if sliced.done else [_GOES_ON]

    def _search(
        self, hidden: torch.Tensor, group: list[Prompt], pause: Callable[[], None] = lambda: None
    ) -> list[torch.Tensor]:
        began = time.perf_counter()
        asked = [prompt.request for prompt in group]
        catalogue = self._catalogues.get(asked[0].version)
        if (longest := max(prompt.length for prompt in group)) + catalogue.trie.depth - 1 > self._max_length:
            raise ValueError(f"a prompt of {longest} tokens leaves no room for a Semantic ID")
        catalogue.trie.to(hidden.device)
        within = catalogue.restrictions([one.filter for one in asked], [one.history for one in asked], asked[0].view)
        normalize = self._catalogues.config.normalize
        places = torch.tensor([[prompt.start, prompt.length] for prompt in group])
        wanted = [one.k for one in asked], [one.num_beams for one in asked], within
        search, dense, beams = None, asked[0].dense, asked[0].beams
        if dense != ALONE:
            search = self._prompts.open_search(hidden, *places.T, catalogue.trie, beams or normalize, pause)
        if beams:
            lists = catalogue.semids(search(None, asked[0].num_beams, None))
        else:
            scorer = self._catalogues.dense(asked[0].version) if dense else None
            states = hidden[places.sum(1).to(hidden.device) - 1]
            lists = find_densely(dense, scorer, states, catalogue, search, *wanted)
        first = DONE, (time.perf_counter() - began) * 1000, len(group)
        return [torch.from_numpy(np.array([first, *((i, s, row) for i, s, row in items)])) for items in lists]


class _Recommender:
    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.parallel_config.world_size > 1:
            raise ValueError("recommend mode runs on one device: start one server for each")
        self.pooler = BeamPooler(self, catalogues.of(vllm_config), vllm_config.model_config.max_model_len)


class Qwen2Recommender(_Recommender, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class Qwen3Recommender(_Recommender, Qwen3ForCausalLM):
    """Qwen3, dense."""


class LlamaRecommender(_Recommender, LlamaForCausalLM):
    """Llama, and what is built like it (Mistral without a sliding window, SmolLM2, ...)."""


def _parsed(params: PoolingParams) -> SearchRequest | None:
    try:
        return SearchRequest.of(params)
    except TypeError:
        logger.exception("a request has wrong fields")
        return None


def _kind(prompt: Prompt) -> tuple[int, str, str, str, str, int]:
    request = prompt.request
    wide = request.num_beams if request.beams else 0
    return request.version or 0, request.view, request.dense, request.sliced, request.beams, wide


def _groups(prompts: list[Prompt], rows: int) -> list[list[Prompt]]:
    """Prompts that are searched together: of one catalogue version, view and use of dense scores, about one length, in
    bounds; sliced ones each alone, and where they ask for beams, for as many."""
    groups: list[list[Prompt]] = []
    most_masks = max(1, _MASK_ROWS // rows)
    for prompt in sorted(prompts, key=lambda one: (*_kind(one), one.length)):
        asked = [one.request for one in [*(groups[-1] if groups else ()), prompt]]
        widest = max(max(one.num_beams, one.k) for one in asked)
        masks = sum(bool(one.filter and (one.filter.allow or one.filter.at_most)) for one in asked)
        if groups and _kind(groups[-1][0]) == _kind(prompt) and widest * len(asked) <= _BEAMS and masks <= most_masks:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
