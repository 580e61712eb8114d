"""`recommend` mode: the whole constrained beam search inside the pooler of a vLLM pooling model.

One engine request is one recommendation. vLLM schedules and runs its prompt; the pooler then searches the catalogue
for all prompts of the step together, level by level, with their keys and values shared by the beams.
"""

import logging
import time
from collections.abc import Set
from dataclasses import asdict, dataclass

import numpy as np
import torch
from vllm.model_executor.layers.pooler import Pooler
from vllm.pooling_params import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata

from llmrec.filters import Filter
from llmrec.serving.inside_vllm.catalogues import WorkerCatalogues
from llmrec.serving.inside_vllm.shared_prompts import SharedPrompts

logger = logging.getLogger(__name__)
TASK = "token_classify"  # the task whose requests never read the prefix cache, so that every prompt passes through
_BEAMS = 2**13  # beams that run together


@dataclass(frozen=True)
class SearchRequest:
    """What a request tells the pooler, beside its prompt.

    Args:
        k (`int`): items wanted.
        num_beams (`int`): beams to begin with.
        version (`int`, *optional*): of the catalogue; the newest by default.
        stream (`str`): the Semantic IDs that are searched.
        filter (`dict`, *optional*): fields of `Filter`.
        history (sequence of item ids): what `exclude_seen` looks at.
    """

    k: int
    num_beams: int
    version: int | None = None
    stream: str = ""
    filter: dict | None = None
    history: tuple[str, ...] = ()

    def params(self) -> PoolingParams:
        """The same for vLLM."""
        return PoolingParams(task=TASK, extra_kwargs={"semid": asdict(self)})

    @classmethod
    def of(cls, params: PoolingParams) -> "SearchRequest | None":
        """`None` for requests that are not ours: vLLM's dummy run."""
        fields = (params.extra_kwargs or {}).get("semid")
        return None if fields is None else cls(**fields)


class BeamPooler(Pooler):
    """Searches after every prompt of an engine step.

    A request's output is float64 [1 + n, 3]: first `(status, milliseconds of its search, prompts searched with it)`,
    then `(number of the item, score, row of the index)`, best first. The status is 0, or 1 where the search failed:
    the engine's log says why, and other requests go on.
    """

    def __init__(self, model: torch.nn.Module, catalogues: WorkerCatalogues):
        super().__init__()
        self._prompts, self._catalogues = SharedPrompts(model), catalogues

    def get_supported_tasks(self) -> Set[str]:
        return {TASK}

    @torch.inference_mode()
    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise ValueError("prompts must come whole: start vLLM without chunked prefill and prefix caching")
        lengths = cursor.num_scheduled_tokens_cpu.to(torch.long)
        starts = lengths.cumsum(0) - lengths
        requests = [SearchRequest.of(params) for params in pooling_metadata.pooling_params]
        outputs = [torch.zeros(1, 3, dtype=torch.float64) for _ in requests]
        if None in requests:
            # vLLM measures memory with as many prompts as it ever runs: one group is as much as runs at a time
            group = list(range(min(len(requests), _BEAMS // self._catalogues.config.num_beams)))
            dummy = SearchRequest(1, self._catalogues.config.num_beams)
            self._search(hidden_states, group, starts, lengths, [dummy] * len(requests))
            return outputs
        for group in _groups(requests, lengths.tolist()):
            try:
                found = self._search(hidden_states, group, starts, lengths, requests)
            except Exception:
                logger.exception("the search of %d requests failed", len(group))
                found = [torch.ones(1, 3, dtype=torch.float64)] * len(group)
            for number, output in zip(group, found):
                outputs[number] = output
        return outputs

    def _search(self, hidden, group: list[int], starts, lengths, requests: list[SearchRequest]) -> list[torch.Tensor]:
        began = time.perf_counter()
        asked = [requests[number] for number in group]
        catalogue = self._catalogues.get(asked[0].version)
        catalogue.trie.to(hidden.device)
        filters = [None if one.filter is None else Filter(**one.filter) for one in asked]
        within = catalogue.restrictions(filters, [one.history for one in asked], asked[0].stream)
        search = self._prompts.open_search(
            hidden,
            starts[group].to(hidden.device),
            lengths[group].to(hidden.device),
            catalogue.trie,
            self._catalogues.config.normalize,
        )
        found = catalogue.find(search, [one.k for one in asked], [one.num_beams for one in asked], within)
        first = 0.0, (time.perf_counter() - began) * 1000, len(group)
        return [torch.from_numpy(np.array([first, *((i, s, row) for i, s, row in items)])) for items in found]


def _groups(requests: list[SearchRequest], lengths: list[int]) -> list[list[int]]:
    """Requests that are searched together: of one catalogue version and stream, about one length, in bounds."""
    order = sorted(range(len(requests)), key=lambda i: (requests[i].version or 0, requests[i].stream, lengths[i]))
    groups: list[list[int]] = []
    for number in order:
        request = requests[number]
        if groups:
            last = requests[groups[-1][0]]
            same = (last.version, last.stream) == (request.version, request.stream)
            widest = max(max(requests[i].num_beams, requests[i].k) for i in [*groups[-1], number])
            if same and widest * (len(groups[-1]) + 1) <= _BEAMS:
                groups[-1].append(number)
                continue
        groups.append([number])
    return groups
