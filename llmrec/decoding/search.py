"""The searches that run a model of transformers: prompts are prefilled once, beams are extra positions of the row."""

import logging
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from llmrec.arguments import whole_number
from llmrec.decoding.beam_search import BeamOutput, Normalize, Search, check_scores, search_levels
from llmrec.decoding.encoder_decoder import encode, extend_encoded
from llmrec.decoding.head import token_scores, unwrap
from llmrec.decoding.logits_processor import generate_search
from llmrec.decoding.rotary import check_rotary
from llmrec.decoding.searchable import ScoredItem, widen
from llmrec.decoding.self_check import Choice, first_exact
from llmrec.decoding.tree_attention import Tree, extend, prefill, unsupported
from llmrec.decoding.trie import RowFilter, SemIDTrie

logger = logging.getLogger(__name__)


def tree_search(model, input_ids, attention_mask, trie: SemIDTrie, normalize: Normalize) -> Search:
    """Prefills (or encodes) the prompts and searches by tree attention, whether that is the model's own or not."""
    readers = [
        partial(token_scores, ids=ids.to(input_ids.device), vocabulary=normalize == "vocabulary")
        for ids in trie.head_ids
    ]
    encodes = unwrap(model).config.is_encoder_decoder
    begin, go_on = (encode, extend_encoded) if encodes else (prefill, extend)
    prompts, ((logits, log_z), states) = begin(
        model, input_ids, attention_mask, lambda head, hidden: (readers[0](head, hidden), hidden[:, 0].float())
    )

    @torch.no_grad()
    def search(requests: torch.Tensor | None, num_beams: int, allowed: RowFilter | None) -> BeamOutput:
        chosen = slice(None) if requests is None else requests
        tree = Tree(prompts if requests is None else prompts.select(requests))
        scored = logits[chosen], None if log_z is None else log_z[chosen]

        def after(tokens: torch.Tensor, parent: torch.Tensor, level: int):
            return go_on(model, tree, tokens, parent, readers[level])

        return search_levels(trie, scored, after, num_beams, allowed)

    search.states = states  # float32 [N, H], as `llmrec.decoding.dense.prompt_states` gives them
    return search


# Ways to search, the fastest first: a model is searched by the first that gives its own scores.
TREE, GENERATE = "the tree search", "generate()"
WAYS = {TREE: tree_search, GENERATE: generate_search}


def no_tree(model) -> str | None:
    """Why a model cannot be searched by tree attention, or `None` if it can."""
    choice = way_of(model, unwrap(model).device)
    return None if choice.way == TREE else choice.why


def way_of(model, device: torch.device, folder: Path | None = None) -> Choice:
    """Which of `WAYS` a model is searched in; see `self_check.first_exact`."""
    known = unsupported(model)
    ways = WAYS if known is None else {name: way for name, way in WAYS.items() if name != TREE}
    choice = first_exact(model, ways, device, folder)
    return choice if known is None else choice._replace(why="; ".join(filter(None, (known, choice.why))))


def open_search(
    model, input_ids, attention_mask, trie: SemIDTrie, normalize: Normalize, folder: Path | None = None
) -> Search:
    """Opens a search over the prompts that can be run again, for some of them or wider.

    A model is searched in the first of `WAYS` that gives its own scores; what `llmrec.decoding.self_check` finds is
    kept in `folder`. If that is not the first, a warning says so once per reason.

    Raises:
        ValueError: no way does, the trie holds tokens that the model has not, or `check_rotary` refuses a prompt.
    """
    if normalize not in ("vocabulary", "catalogue"):
        raise ValueError(f"normalize is {normalize!r}; it can be 'vocabulary' or 'catalogue'")
    rows = unwrap(model).config.get_text_config().vocab_size
    if trie.last_token >= rows:
        raise ValueError(
            f"the trie holds token {trie.last_token}, but the model's vocabulary has {rows} rows: extend it first"
        )
    choice = way_of(model, input_ids.device, folder)
    if choice.way not in WAYS:
        raise ValueError(f"{type(unwrap(model)).__name__} cannot be searched: {choice.why}")
    together = check_rotary(model, attention_mask, trie.depth)
    way, why = (choice.way, choice.why) if together else (GENERATE, "prompts on both sides of a rotary limit")
    if way != TREE:
        warn_of_generate(why, way)
    return WAYS[way](model, input_ids, attention_mask, trie, normalize)


@cache
def warn_of_generate(reason: str, way: str) -> None:
    logger.warning("%s: decoding through %s, which is many times slower", reason, way)


def prompt_batches(
    prompts: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Prompts (token ids) of about one length together, so that little is padded: which ones, and their `input_ids`
    and, on the CPU, `attention_mask` (int64 [n, P], padded on the right)."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[*prompts[i], *[0] * (width - len(prompts[i]))] for i in batch])
        lengths = torch.tensor([len(prompts[i]) for i in batch])
        yield batch, ids.to(device, non_blocking=True), (torch.arange(width) < lengths[:, None]).long()


@torch.no_grad()
def tree_beam_search(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    num_beams: int,
    *,
    normalize: Normalize = "vocabulary",
    masks: Sequence[np.ndarray | None] | None = None,
    denied: Sequence[np.ndarray] | None = None,
) -> BeamOutput:
    """The best SemIDs after each prompt; the model, of transformers, may be wrapped (DDP, PEFT): call `eval()` first.

    Args:
        input_ids (int64 [N, P]), attention_mask ([N, P]): prompts, padded on either side. A mask on the CPU saves
            waiting for the device of `input_ids`.
        trie: on the device of `input_ids`.
        masks, denied: as in `RowFilter`, one for each prompt.
    """
    num_beams = whole_number(num_beams, "num_beams")
    allowed = None if masks is None and denied is None else RowFilter(trie, masks, denied)
    found = open_search(model, input_ids, attention_mask, trie, normalize)(None, num_beams, allowed)
    check_scores(found.scores)
    return found


@torch.no_grad()
def search_items(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    item_of_row: torch.Tensor | np.ndarray,
    k: Sequence[int],
    num_beams: int,
    masks: Sequence[np.ndarray | None] | None = None,
    denied: Sequence[np.ndarray] | None = None,
    normalize: Normalize = "vocabulary",
) -> list[list[ScoredItem]]:
    """The best distinct items after each prompt; see `tree_beam_search` for the other arguments.

    A request starts with `max(num_beams, k)` beams, and doubles them until it has k items or no allowed SemID is
    left. The score of an item with several SemIDs is the log-sum-exp over those that the beams hold. Items that share
    a SemID all get its score.

    Args:
        item_of_row (int [R]): the item of every row of the trie.
        k: items wanted, one number per prompt.
        masks (N of bool [R] or `None`): rows allowed; equal masks should be one object.
        denied (N of int64): rows to leave out besides.

    Returns:
        for each prompt at most k items by falling score, equal scores by row; fewer only where fewer are allowed.
    """
    k, num_beams = [whole_number(wanted, "k") for wanted in k], whole_number(num_beams, "num_beams")
    if len(k) != len(input_ids):
        raise ValueError(f"{len(k)} values of k for {len(input_ids)} prompts")
    allowed = None if masks is None and denied is None else RowFilter(trie, masks, denied)
    search = open_search(model, input_ids, attention_mask, trie, normalize)
    beams = [max(num_beams, wanted) for wanted in k]
    return widen(search, trie, torch.as_tensor(item_of_row).cpu().numpy(), k, beams, allowed)
