"""The trie as a `LogitsProcessor` of transformers, and `generate` with every decoding field set by us."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin
from transformers.generation.utils import ALL_CACHE_NAMES

from llmrec.decoding.beam_search import BeamOutput, Normalize, Search, collect
from llmrec.decoding.encoder_decoder import start_token
from llmrec.decoding.head import unwrap
from llmrec.decoding.tree_attention import prompt_lengths
from llmrec.decoding.trie import END, RowFilter, SemIDTrie


class SemIDLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that continue a SemID of the catalogue; keeps no state between calls.

    After a complete SemID, or a prefix that is none, only EOS is left, at score 0: it is forced and adds nothing.

    Args:
        trie: needs an `eos_token_id`; its device must be that of the scores.
        prompt_length: columns of the (padded) prompt, i.e. `input_ids.shape[1]` as it is given to `generate`. Without
            it the SemID so far is the trailing run of SemID tokens, which is right only where prompts end in any other
            token, as chat templates do.
        normalize: "vocabulary" takes log-probabilities over all scores, "catalogue" over those of allowed tokens. Both
            give log-probabilities from logits and leave log-probabilities, which beam search hands over, as such.
        allowed: what each of N prompts may reach, with `prompt_length`; scores may have a multiple of N rows (beams).
    """

    def __init__(
        self,
        trie: SemIDTrie,
        prompt_length: int | None = None,
        normalize: Normalize = "vocabulary",
        allowed: RowFilter | None = None,
    ):
        if trie.eos_token_id is None:
            raise ValueError("the trie has no eos_token_id: after a complete SemID nothing could follow")
        if allowed is not None and prompt_length is None:
            raise ValueError("a filter needs prompt_length")
        self.trie, self.prompt_length, self.normalize, self.allowed = trie, prompt_length, normalize, allowed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Masks scores (float [N, V]) of the token after `input_ids` (int64 [N, T]) with -inf."""
        masked = torch.full_like(scores, -torch.inf)
        over = torch.ones_like(input_ids[:, 0], dtype=torch.bool)
        for length, rows in self._lengths(input_ids):
            nodes = self.trie.walk(input_ids[rows, input_ids.shape[1] - length :])
            over[rows] = (nodes < 0) | self.trie.complete(nodes, length)
            children = self.trie.children(nodes, length)
            tokens = self.trie.head_ids[length][children.column]
            values = scores[rows].float().gather(1, tokens).masked_fill(~children.valid, -torch.inf)
            scope = values if self.normalize == "catalogue" else scores[rows].float()
            values = values - scope.logsumexp(-1, keepdim=True)
            if self.allowed is not None:  # all rows are in this pass
                low, high = self.trie.rows(children.node.view(len(self.allowed.masks), -1), length + 1)
                reachable = (self.allowed.count(low, high) > 0).view_as(children.valid)
                values = values.masked_fill(~reachable, -torch.inf)
            values = values.masked_fill(~children.valid, -torch.inf).to(scores.dtype)
            # the padding repeats column 0: its -inf must not overwrite the score of a child there
            masked[rows] = masked[rows].scatter_reduce(1, tokens, values, "amax")
        masked.masked_fill_(over[:, None], -torch.inf)
        end = masked[:, self.trie.eos_token_id]
        end.masked_fill_(over, 0)
        return masked

    def _lengths(self, input_ids: torch.Tensor) -> list[tuple[int, torch.Tensor | slice]]:
        """How many tokens belong to the SemID that is being written, and in which rows, as long as it may go on."""
        if self.prompt_length is not None:  # known without a look at the device
            found = [(max(0, input_ids.shape[1] - self.prompt_length), slice(None))]
        else:
            known = torch.cat(self.trie.vocab).unique()
            tail = input_ids[:, -self.trie.depth :]
            lengths = torch.isin(tail, known).flip(1).long().cumprod(1).sum(1)
            found = [(length, (lengths == length).nonzero()[:, 0]) for length in lengths.unique().tolist()]
        return [(length, rows) for length, rows in found if length < self.trie.depth]


def generate_as_told(model, config: GenerationConfig, processors: Sequence[LogitsProcessor] = (), **inputs):
    """`model.generate`, where what `config` leaves at None stays so: it would be filled from the model's own."""
    inner = unwrap(model)
    of_the_model = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        return getattr(model, "module", model).generate(
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            **inputs,
        )
    finally:
        inner.generation_config = of_the_model


@torch.no_grad()
def constrained_generate(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    num_beams: int = 1,
    num_return_sequences: int | None = None,
    *,
    do_sample: bool = False,
    temperature: float = 1.0,
    normalize: Normalize = "vocabulary",
    allowed: RowFilter | None = None,
    use_cache: bool = True,
):
    """`model.generate` over the catalogue, whatever the model's own `generation_config` says.

    Args:
        input_ids, attention_mask ([N, P]): prompts, padded on the **left**.
        num_return_sequences: defaults to `num_beams`.
        use_cache: `False` runs prompts and beams anew for every token, for models whose state does not follow beams.

    Returns:
        transformers' output with `sequences` (int64 [N * num_return_sequences, P + depth], or 1 + depth after the
        start token of a decoder with an encoder) and, for beams, `sequences_scores`.
    """
    start = start_token(model)
    config = GenerationConfig(
        max_new_tokens=trie.depth,
        min_length=0,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences or num_beams,
        **({"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}),
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=0.0,
        early_stopping=False,
        renormalize_logits=False,
        use_cache=use_cache,
        eos_token_id=trie.eos_token_id,
        pad_token_id=trie.eos_token_id,
        decoder_start_token_id=start,
        return_dict_in_generate=True,
        output_scores=True,
    )
    processor = SemIDLogitsProcessor(trie, input_ids.shape[1] if start is None else 1, normalize, allowed)
    return generate_as_told(model, config, [processor], input_ids=input_ids, attention_mask=attention_mask)


@torch.no_grad()
def state_follows_beams(model) -> bool:
    """Whether all that a model keeps of two prompts is handed out, and goes where its beams go.

    Some models keep their state in their modules (RecurrentGemma), or in a cache that reorders a part of it (MiniMax,
    DeepSeek-V4), or not at all (RWKV): `generate` would go on with the state of another beam.
    """
    inner = unwrap(model)
    ids = torch.arange(3, 15, device=inner.device).view(2, 6) % inner.config.get_text_config().vocab_size
    start = start_token(model)
    decoded = {} if start is None else {"decoder_input_ids": torch.full_like(ids[:, :1], start)}
    output = model(input_ids=ids, **decoded, use_cache=True, return_dict=True)
    cache = next((output[name] for name in ALL_CACHE_NAMES if output.get(name) is not None), None)
    if cache is None:
        return not inner._is_stateful
    if hasattr(inner, "_reorder_cache"):
        cache = inner._reorder_cache(cache, torch.zeros(2, dtype=torch.long, device=inner.device))
    elif hasattr(cache, "reorder_cache"):
        cache.reorder_cache(torch.zeros(2, dtype=torch.long, device=inner.device))
    else:
        return False
    return all(bool((kept[0] == kept[1]).all()) for kept in _tensors(cache) if kept.ndim > 1 and len(kept) == 2)


def _tensors(value) -> Iterator[torch.Tensor]:
    """Those of a cache, its layers, their lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        for inner in (value if isinstance(value, Mapping) else vars(value)).values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


@torch.no_grad()
def generate_search(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    normalize: Normalize,
) -> Search:
    """The search of `llmrec.decoding.search` through `generate`, for models that need it.

    Prompts of one length run together, without padding: not every state of such models leaves it out. Where a state
    does not follow the beams, prompts and beams are run anew for every token.
    """
    attention_mask, trie = attention_mask.to(input_ids.device), trie.with_an_end()
    lengths, _, _ = prompt_lengths(attention_mask)
    use_cache = state_follows_beams(model)
    input_ids = input_ids.gather(1, attention_mask.bool().int().argsort(dim=1, stable=True))  # padding to the left

    def of_one_length(ids: torch.Tensor, num_beams: int, allowed: RowFilter | None) -> BeamOutput:
        mask = torch.ones_like(ids)
        output = constrained_generate(
            model, ids, mask, trie, num_beams, normalize=normalize, allowed=allowed, use_cache=use_cache
        )
        tokens = output.sequences[:, ids.shape[1] if start_token(model) is None else 1 :]
        if num_beams > 1:
            scores = output.sequences_scores
        else:  # greedy search returns the processor's scores of every step
            scores = sum(step.gather(1, tokens[:, [i]])[:, 0] for i, step in enumerate(output.scores))
        tokens = F.pad(tokens, (0, trie.depth - tokens.shape[1]), value=trie.eos_token_id)
        nodes = trie.walk(tokens)
        dead = (nodes < 0) | (scores < -1e8)  # what generate returns where there are fewer SemIDs than beams
        low, high = trie.rows(nodes, trie.depth)
        found = (~dead).view(len(ids), -1).sum(1)
        ended = BeamOutput(
            scores.float().masked_fill(dead, -torch.inf).view(len(ids), -1),
            low.view(len(ids), -1),
            high.view(len(ids), -1),
            tokens.masked_fill(tokens == trie.eos_token_id, END).view(len(ids), num_beams, -1),
            found < num_beams if num_beams < trie.num_leaves else torch.ones_like(found, dtype=torch.bool),
        )
        return collect([ended], num_beams)

    def search(requests: torch.Tensor | None, num_beams: int, allowed: RowFilter | None) -> BeamOutput:
        chosen = torch.arange(len(lengths), device=lengths.device) if requests is None else requests
        places, parts = [], []
        for length in lengths[chosen].unique().tolist():
            here = (lengths[chosen] == length).nonzero()[:, 0]
            within = None if allowed is None else allowed.select(here.tolist())
            parts.append(of_one_length(input_ids[chosen[here], -length:], num_beams, within))
            places.append(here)
        order = torch.cat(places).argsort()
        return BeamOutput(*(torch.cat(sides)[order] for sides in zip(*parts)))

    return search
