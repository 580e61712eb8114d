"""Sampling Semantic IDs without replacement, exactly: Gumbel top-k over the tree (Kool, van Hoof and Welling, ICML
2019, arXiv 1903.06059).

The k items with the largest perturbed log-probabilities `log p + Gumbel` are a sample without replacement from p. They
are found without listing the catalogue: the largest perturbed value under a node follows a Gumbel of the node's own
mass, so a beam search that carries these values, each child's drawn given its parent's, keeps the right beams.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from llmrec.decoding.beam_search import Beams
from llmrec.decoding.head import token_scores
from llmrec.decoding.rotary import check_rotary
from llmrec.decoding.search import no_tree
from llmrec.decoding.tree_attention import Tree, extend, prefill
from llmrec.decoding.trie import SemIDTrie


class Sample(NamedTuple):
    """k distinct Semantic IDs for each of N prompts, the largest perturbed value first.

    Attributes:
        log_probs (float32 [N, k]): of the distribution that was sampled from.
        weights (float32 [N, k]): importance weights that sum to 1 in a row: the expectation of any f over the
            distribution is about the weighted sum of f over the sample (Kool et al., ICLR 2020).
        low, high (int64 [N, k]): their sorted rows in the trie.
        tokens (int64 [N, k, depth]): token ids, padded with -1.
    """

    log_probs: torch.Tensor
    weights: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def sample_without_replacement(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SemIDTrie,
    k: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
) -> Sample:
    """k Semantic IDs after each prompt, drawn by the model among what the trie allows; call `model.eval()` first.

    Prompts (int64 [N, P]) are padded on either side and on the trie's device; a draw follows from its own seed alone.

    Raises:
        ValueError: more samples than Semantic IDs, a temperature that is not above 0, or a model whose attention
            cannot be exchanged or whose rotary positions change between the prompts.
    """
    if (reason := no_tree(model)) is not None:
        raise ValueError(f"items cannot be sampled from this model: {reason}")
    if not check_rotary(model, attention_mask, trie.depth):
        raise ValueError("some prompts are past the length at which the model's rotary positions change: shorten them")
    if not 1 <= k <= trie.num_leaves:
        raise ValueError(f"{k} distinct samples of a catalogue of {trie.num_leaves} Semantic IDs")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; sampling needs one above 0")
    device, generators = input_ids.device, [np.random.default_rng(seed) for seed in seeds]
    readers = [partial(token_scores, ids=ids.to(device), vocabulary=False) for ids in trie.head_ids]
    prompts, (logits, _) = prefill(model, input_ids, attention_mask, readers[0])
    tree, beams = Tree(prompts), Beams.start(len(input_ids), device)
    perturbed = _gumbel(generators, 1, device)
    parent = None
    for level in range(trie.depth):
        if level:
            logits, _ = extend(model, tree, beams.tokens[..., -1].clamp(min=0), parent, readers[level])
        children = trie.children(beams.nodes, level)
        steps = (logits / temperature).gather(-1, children.column).masked_fill(~children.valid, -torch.inf)
        scores = beams.scores[..., None] + steps.log_softmax(-1)
        noise = _gumbel(generators, scores[0].numel(), device).view_as(scores)
        values = _given_their_maximum(scores + noise, perturbed).masked_fill(~children.valid, -torch.inf).flatten(1)
        # One more than asked for: it is the threshold of the weights.
        kept = values.topk(min(k + 1, values.shape[1])).indices
        kept = kept[:, : int(values.gather(1, kept).isfinite().sum(1).max())]
        parent = kept // children.node.shape[-1]
        node = children.node.flatten(1).gather(1, kept)
        before = beams.tokens.gather(1, parent[..., None].expand(-1, -1, level))
        token = torch.cat([before, trie.token(node, level)[..., None]], -1)
        beams, perturbed = Beams(scores.flatten(1).gather(1, kept), node, token), values.gather(1, kept)
    threshold = perturbed[:, k:] if perturbed.shape[1] > k else torch.full_like(perturbed[:, :1], -torch.inf)
    log_probs = beams.scores[:, :k]
    low, high = trie.rows(beams.nodes[:, :k], trie.depth)
    return Sample(log_probs, _weights(log_probs, threshold), low, high, beams.tokens[:, :k])


def _gumbel(generators: Sequence[np.random.Generator], count: int, device: torch.device) -> torch.Tensor:
    """float32 [N, count]: standard Gumbel noise, each row from its own generator."""
    return torch.from_numpy(np.stack([one.gumbel(size=count) for one in generators]).astype(np.float32)).to(device)


def _given_their_maximum(values: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """Gumbel values (float32 [N, B, W]) as they are given that the largest of each W is `maximum` (float32 [N, B]).

    The stable form of appendix B.3: T - max(v, 0) - log1p(exp(-|v|)) with v = T - value + log1mexp(value - Z).
    """
    top = values.max(-1, keepdim=True).values
    target = maximum[..., None]
    shifted = target - values + torch.log1p(-torch.exp((values - top).clamp(max=0)))
    given = target - shifted.clamp(min=0) - torch.log1p(torch.exp(-shifted.abs()))
    return torch.where(values == top, target, given)


def _weights(log_probs: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """p / q, normalised: q is the probability that an item's perturbed value exceeds the threshold."""
    reached = -torch.expm1(-torch.exp(log_probs - threshold))
    return (log_probs - reached.clamp(min=1e-30).log()).softmax(-1)
