"""Beam search over a catalogue, on tensors: it knows no model (`llmrec.decoding.search` runs one of transformers).

The same beams and scores as `generate(num_beams, prefix_allowed_tokens_fn)` with `length_penalty=0`: a beam that has
ended gives up its place among the running ones and competes with them once, when it ends.

Scores are sums over SemID tokens. `normalize="vocabulary"` takes log-probabilities over the whole vocabulary;
`normalize="catalogue"` over the tokens that the trie (without any filter) allows, so that the scores of all SemIDs
are a probability distribution. A filter removes items and leaves the others' scores as they are.

Ties between equal scores go to the SemID that sorts first. On a GPU nothing here waits for the device, and all shapes
follow from the number of beams.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from llmrec.decoding.trie import END, RowFilter, SemIDTrie
from llmrec.moved import names_moved

__getattr__ = names_moved(__name__, tree_beam_search="llmrec.decoding.search")
Normalize = Literal["vocabulary", "catalogue"]


class Beams(NamedTuple):
    """B beams for each of N prompts, in lexicographic order.

    Attributes:
        scores (float32 [N, B]): -inf where there is no beam.
        nodes (int64 [N, B]): trie nodes of the level.
        tokens (int64 [N, B, level]): the tokens so far.
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def start(cls, count: int, device: torch.device) -> "Beams":
        """One empty beam for each prompt."""
        root = torch.zeros(count, 1, dtype=torch.long, device=device)
        return cls(torch.zeros(count, 1, device=device), root, root[..., None][..., :0])


class BeamOutput(NamedTuple):
    """Complete SemIDs for each of N prompts, best first.

    Attributes:
        scores (float32 [N, B]): -inf where fewer than B were found.
        low, high (int64 [N, B]): the items' sorted rows; `trie.order[low:high]` are rows of the index.
        tokens (int64 [N, B, depth]): token ids, padded with -1.
        exhausted (bool [N]): nothing was left out: there is no other allowed SemID.
    """

    scores: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    tokens: torch.Tensor
    exhausted: torch.Tensor


def expand(
    trie: SemIDTrie,
    level: int,
    beams: Beams,
    logits: torch.Tensor,
    log_z: torch.Tensor | None,
    num_beams: int,
    allowed: RowFilter | None = None,
) -> tuple[Beams | None, torch.Tensor | None, BeamOutput]:
    """One step of the search on tensors: the beams that go on (`None` after the last level), the beam that each
    continues, and those that have ended.

    Args:
        logits (float32 [N, B, T]): logits of `trie.head_ids[level]` after every beam.
        log_z (float32 [N, B]): log-normalisers; `None` normalises over the children of the node.
    """
    children = trie.children(beams.nodes, level)
    steps = logits.gather(-1, children.column)
    if log_z is None:
        log_z = steps.masked_fill(~children.valid, -torch.inf).logsumexp(-1)
    steps = steps - log_z[..., None]
    ends = None
    if trie.has_end[level]:
        ends = (children.column == 0) & children.valid
        forced = ends & (children.valid.sum(-1, keepdim=True) == 1)
        steps = steps.masked_fill(forced, 0)
        ends = ends.flatten(1)
    scores = (beams.scores[..., None] + steps).masked_fill(~children.valid, -torch.inf).flatten(1)
    nodes = children.node.flatten(1)
    if allowed is not None:
        scores = scores.masked_fill(allowed.count(*trie.rows(nodes, level + 1)) <= 0, -torch.inf)
    width = children.node.shape[-1]

    def pick(scores: torch.Tensor) -> tuple[Beams, torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen, exhausted = _best(scores, num_beams)
        parent, node = chosen // width, nodes.gather(1, chosen)
        before = beams.tokens.gather(1, parent[..., None].expand(-1, -1, level))
        tokens = torch.cat([before, trie.token(node, level)[..., None]], -1)
        return Beams(scores.gather(1, chosen), node, tokens), parent, chosen, exhausted

    top, parent, chosen, exhausted = pick(scores)
    last = level == trie.depth - 1
    if ends is None and not last:
        return top, parent, BeamOutput(*[None] * 4, exhausted)
    low, high = trie.rows(top.nodes, level + 1)
    tokens = torch.nn.functional.pad(top.tokens, (0, trie.depth - 1 - level), value=END)
    if last:
        return None, None, BeamOutput(top.scores, low, high, tokens, exhausted)
    ended = top.scores.masked_fill(~ends.gather(1, chosen), -torch.inf)
    running, parent, _, _ = pick(scores.masked_fill(ends, -torch.inf))
    return running, parent, BeamOutput(ended, low, high, tokens, exhausted)


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending places (int64 [N, <= count]) of the highest scores in each row, ties to the first; is that all?

    Nothing waits for a GPU: there all rows are sorted, and places of dead beams fill them up to the same width.
    """
    if scores.device.type != "cpu":
        values, places = scores.sort(descending=True, stable=True)
        return places[:, :count].sort().values, values[:, count : count + 1].isneginf().all(1)
    values, places = scores.topk(min(count + 1, scores.shape[1]))
    exhausted = values[:, count:].isneginf().all(1)
    if bool((~exhausted & (values[:, :count][:, -1] == values[:, -1])).any()):  # topk chooses freely among equals
        places = scores.sort(descending=True, stable=True).indices
    alive = int(values[:, :count].isneginf().logical_not().sum(1).max())
    return places[:, : max(1, alive)].sort().values, exhausted


def collect(finished: Sequence[BeamOutput], num_beams: int) -> BeamOutput:
    """The best of everything that finished, sorted."""
    ended = [part for part in finished if part.scores is not None]
    scores, low, high, tokens = (torch.cat([part[i] for part in ended], 1) for i in range(4))
    order = low.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :num_beams]
    exhausted = torch.stack([part.exhausted for part in finished]).all(0)
    best = scores.gather(1, order)
    dead = best == -torch.inf
    low, high = (side.gather(1, order).masked_fill(dead, 0) for side in (low, high))
    tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])).masked_fill(dead[..., None], END)
    return BeamOutput(best, low, high, tokens, exhausted)


def check_scores(scores: torch.Tensor | np.ndarray) -> None:
    """Raises `ValueError` for scores of any shape that are not numbers. It is asked where a search is read, for the
    search itself waits for nothing."""
    if bool((scores != scores).any()):
        raise ValueError("the model's logits are not numbers (NaN): check its weights and dtype")


# A search over prefilled prompts: (which prompts or None for all, num_beams, filter) -> beams
Search = Callable[[torch.Tensor | None, int, RowFilter | None], BeamOutput]
# What the model says after the beams: (their last tokens, the beam each continues, level) -> (logits, log_z)
Extend = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor | None]]


def search_levels(
    trie: SemIDTrie,
    scored: tuple[torch.Tensor, torch.Tensor | None],
    extend: Extend,
    num_beams: int,
    allowed: RowFilter | None = None,
) -> BeamOutput:
    """The whole search, level by level, whoever runs the model.

    Args:
        scored: `logits` (float32 [N, 1, T]) and `log_z` of `expand` after the prompts.
        extend: the same after the beams of a level: `(tokens int64 [N, B], parent int64 [N, B], level)`.
    """
    beams, parent, finished = Beams.start(len(scored[0]), scored[0].device), None, []
    for level in range(trie.depth):
        if level:
            scored = extend(beams.tokens[..., -1].clamp(min=0), parent, level)
        beams, parent, ended = expand(trie, level, beams, *scored, num_beams, allowed)
        finished.append(ended)
    return collect(finished, num_beams)
