"""`recommend` mode: the whole constrained beam search inside the pooler of a vLLM pooling model.

One engine request is one recommendation. vLLM schedules and runs its prompt; the pooler then searches the catalogue
for all prompts of the step together, level by level, with their keys and values shared by the beams.
"""

import logging
import time
from collections.abc import Set

import numpy as np
import torch
from vllm.model_executor.layers.pooler import Pooler
from vllm.pooling_params import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata

from llmrec.serving.vllm.catalogues import WorkerCatalogues
from llmrec.serving.vllm.engines import TASK, SearchRequest
from llmrec.serving.vllm.shared_prompts import SharedPrompts

logger = logging.getLogger(__name__)
_BEAMS = 2**13  # beams that run together
_MASK_ROWS = 2**27  # rows of the masks that requests of a group may have for themselves
_FAILED = torch.ones(1, 3, dtype=torch.float64)


class BeamPooler(Pooler):
    """Searches after every prompt of an engine step.

    Args:
        model: of vLLM; catalogues: those of this process; max_length: tokens of a prompt with its Semantic ID.

    A request's output is float64 [1 + n, 3]: first `(status, milliseconds of its search, prompts searched with it)`,
    then `(number of the item, score, row of the index)`, best first. The status is 0, or 1 where the search failed:
    the engine's log says why, and other requests go on.
    """

    def __init__(self, model: torch.nn.Module, catalogues: WorkerCatalogues, max_length: int):
        super().__init__()
        self._prompts, self._catalogues, self._max_length = SharedPrompts(model), catalogues, max_length

    def get_supported_tasks(self) -> Set[str]:
        return {TASK}

    @torch.inference_mode()
    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise ValueError("prompts must come whole: start vLLM without chunked prefill and prefix caching")
        lengths = cursor.num_scheduled_tokens_cpu.to(torch.long)
        starts = lengths.cumsum(0) - lengths
        requests = [_parsed(params) for params in pooling_metadata.pooling_params]
        try:
            if not any(requests):
                return self._dummy(hidden_states, starts, lengths)
            outputs = [_FAILED] * len(requests)
            ours = [number for number, request in enumerate(requests) if request is not None]
            rows = len(self._catalogues.get().index)
            for group in _groups(ours, requests, lengths.tolist(), rows):
                for number, output in zip(group, self._try(hidden_states, group, starts, lengths, requests)):
                    outputs[number] = output
            return outputs
        finally:
            self._prompts.forget()

    def _dummy(self, hidden, starts, lengths) -> list[torch.Tensor]:
        """vLLM measures memory with as many prompts as it ever runs: one group is as much as runs at a time."""
        beams = self._catalogues.config.num_beams
        group = list(range(min(len(lengths), _BEAMS // beams)))
        self._search(hidden, group, starts, lengths, [SearchRequest(1, beams)] * len(lengths))
        return [_FAILED] * len(lengths)

    def _try(self, hidden, group: list[int], starts, lengths, requests) -> list[torch.Tensor]:
        """Searches a group; where that fails, each of it alone, so that nobody pays for another."""
        try:
            return self._search(hidden, group, starts, lengths, requests)
        except Exception:
            if len(group) == 1:
                logger.exception("a search failed")
                return [_FAILED]
        return [output for number in group for output in self._try(hidden, [number], starts, lengths, requests)]

    def _search(self, hidden, group: list[int], starts, lengths, requests: list[SearchRequest]) -> list[torch.Tensor]:
        began = time.perf_counter()
        asked = [requests[number] for number in group]
        catalogue = self._catalogues.get(asked[0].version)
        if (longest := int(lengths[group].max())) + catalogue.trie.depth - 1 > self._max_length:
            raise ValueError(f"a prompt of {longest} tokens leaves no room for a Semantic ID")
        catalogue.trie.to(hidden.device)
        within = catalogue.restrictions([one.filter for one in asked], [one.history for one in asked], asked[0].view)
        normalize = self._catalogues.config.normalize
        search = self._prompts.open_search(hidden, starts[group], lengths[group], catalogue.trie, normalize)
        lists = catalogue.find(search, [one.k for one in asked], [one.num_beams for one in asked], within)
        first = 0.0, (time.perf_counter() - began) * 1000, len(group)
        return [torch.from_numpy(np.array([first, *((i, s, row) for i, s, row in items)])) for items in lists]


def _parsed(params: PoolingParams) -> SearchRequest | None:
    try:
        return SearchRequest.of(params)
    except TypeError:
        logger.exception("a request has wrong fields")
        return None


def _groups(
    numbers: list[int], requests: list[SearchRequest | None], lengths: list[int], rows: int
) -> list[list[int]]:
    """Requests that are searched together: of one catalogue version and view, about one length, in bounds."""
    order = sorted(numbers, key=lambda i: (requests[i].version or 0, requests[i].view, lengths[i]))
    most_masks = max(1, _MASK_ROWS // rows)
    groups: list[list[int]] = []
    for number in order:
        if groups:
            last, both = requests[groups[-1][0]], [requests[i] for i in [*groups[-1], number]]
            same = (last.version, last.view) == (requests[number].version, requests[number].view)
            widest = max(max(one.num_beams, one.k) for one in both)
            masks = sum(bool(one.filter and (one.filter.allow or one.filter.at_most)) for one in both)
            if same and widest * len(both) <= _BEAMS and masks <= most_masks:
                groups[-1].append(number)
                continue
        groups.append([number])
    return groups
