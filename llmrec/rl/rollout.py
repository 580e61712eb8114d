"""Rollouts: G distinct items of the catalogue for every prompt, each prompt read once.

- `beam`: the G best by tree beam search, as MiniOneRec's rollouts, best first.
- `sample`: G draws of the policy without replacement, with their importance weights.
- `mixed`: the best by beam search, then draws that are not among them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from llmrec.decoding import tree_beam_search
from llmrec.decoding.beam_search import Normalize
from llmrec.decoding.trie import END, SemIDTrie
from llmrec.rl.policy import PolicyArguments
from llmrec.rl.sampling import sample_without_replacement


class RolloutEngine(Protocol):
    """What searches groups in the place of the model that learns, with weights of its own. Processes give it weights
    alike, and wait for each other then."""

    def take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Has these weights from now on: all of a model of transformers, see `llmrec.training.merged_weights`."""

    def search(
        self, prompts: Sequence[Sequence[int]], size: int, normalize: Normalize
    ) -> tuple[np.ndarray, np.ndarray]:
        """`(rows int64 [N, G], scores float32 [N, G])`: rows of the index with the G best Semantic IDs after each of N
        prompts, best first, as `tree_beam_search` finds them."""


class Rollouts(NamedTuple):
    """G completions for each of N prompts.

    Attributes:
        tokens (int64 [N, G, depth]): Semantic IDs as token ids, padded with -1.
        leaves (int64 [N, G]): the first sorted row of each in the trie.
        weights (float32 [N, G]): importance weights, summing to 1 in a group; equal ones for beams.
        mass (float32 [N]): the probability that the policy gives to a group before positives are put in.
    """

    tokens: torch.Tensor
    leaves: torch.Tensor
    weights: torch.Tensor
    mass: torch.Tensor


def padded(lists: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`(ids int64 [N, T], mask bool [N, T])`; what stands in the padding is never seen."""
    ids = [torch.tensor(list(one)) for one in lists]
    mask = [torch.ones(len(one), dtype=torch.bool) for one in lists]
    return tuple(pad_sequence(part, batch_first=True, padding_side=side) for part in (ids, mask))


def roll_out(
    model,
    prompts: Sequence[Sequence[int]],
    trie: SemIDTrie,
    size: int,
    policy: PolicyArguments,
    seeds: Sequence[int],
    temperature: float = 1.0,
    normalize: Normalize = "catalogue",
) -> Rollouts:
    """G distinct Semantic IDs after each of N prompts (token ids).

    What is sampled for one follows from its seed alone. `temperature` is that of samples, a beam search has none;
    `normalize` that of beams, samples are drawn over the catalogue.
    """
    device = next(model.parameters()).device
    trie.to(device)
    ids, mask = (part.to(device) for part in padded(prompts, "left"))
    was_training = model.training
    model.eval()
    try:
        if policy.rollout == "sample":
            drawn = sample_without_replacement(model, ids, mask, trie, size, seeds, temperature)
            return Rollouts(drawn.tokens, drawn.low, drawn.weights, drawn.log_probs.exp().sum(1))
        best = tree_beam_search(model, ids, mask, trie, size, normalize=normalize)
        tokens, leaves, scores = best.tokens, best.low, best.scores
        if policy.rollout == "mixed":
            beams = min(max(1, round(policy.beam_share * size)), size - 1)
            drawn = sample_without_replacement(model, ids, mask, trie, size, seeds, temperature)
            new = (drawn.low[:, :, None] != leaves[:, None, :beams]).all(-1)
            order = (~new).int().argsort(dim=1, stable=True)[:, : size - beams]
            leaves = torch.cat([leaves[:, :beams], drawn.low.gather(1, order)], 1)
            more = drawn.tokens.gather(1, order[..., None].expand(-1, -1, trie.depth))
            tokens = torch.cat([tokens[:, :beams], more], 1)
            scores = torch.cat([scores[:, :beams], drawn.log_probs.gather(1, order)], 1)
        return Rollouts(tokens, leaves, torch.full(leaves.shape, 1 / size, device=device), scores.exp().sum(1))
    finally:
        model.train(was_training)


def engine_roll_out(
    engine: RolloutEngine, prompts: Sequence[Sequence[int]], trie: SemIDTrie, size: int, normalize: Normalize
) -> Rollouts:
    """`roll_out` of kind `beam`, by an engine."""
    rows, scores = engine.search(prompts, size, normalize)
    leaves, tokens = semids_of(trie, rows.ravel())
    mass = torch.from_numpy(scores).to(trie.device).exp().sum(1)
    weights = torch.full(rows.shape, 1 / size, device=trie.device)
    return Rollouts(tokens.view(*rows.shape, -1), leaves.view(rows.shape), weights, mass)


def with_positives(rollouts: Rollouts, trie: SemIDTrie, positives: Sequence[Sequence[int]]) -> Rollouts:
    """The same groups with Semantic IDs that the user did choose (rows of the index) in their last places, where they
    are missing."""
    leaves, tokens = semids_of(trie, [row for rows in positives for row in rows])
    chosen, number, changes = leaves.tolist(), 0, []  # (group, place, which of the positives)
    for group, (rows, members) in enumerate(zip(positives, rollouts.leaves.tolist())):
        wanted = {chosen[n]: n for n in reversed(range(number, number + len(rows)))}
        missing = [n for n in range(number, number + len(rows)) if chosen[n] not in members and wanted[chosen[n]] == n]
        # From the end, but never over another one that the user chose.
        free = [place for place in reversed(range(len(members))) if members[place] not in wanted]
        changes += [(group, place, n) for place, n in zip(free, missing)]
        number += len(rows)
    group, place, source = torch.tensor(changes, dtype=torch.long, device=tokens.device).view(-1, 3).T
    return rollouts._replace(
        tokens=rollouts.tokens.index_put((group, place), tokens[source]),
        leaves=rollouts.leaves.index_put((group, place), leaves[source]),
    )


def semids_of(trie: SemIDTrie, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The Semantic IDs of M rows of the index: `(leaves int64 [M], tokens int64 [M, depth])`, the first sorted row
    with each, and its token ids, padded with -1."""
    position = torch.from_numpy(trie.position[np.asarray(rows, np.int64)]).to(trie.device)[:, None]
    nodes, tokens = torch.zeros(len(rows), dtype=torch.long, device=trie.device), []
    for level in range(trie.depth):
        children = trie.children(nodes, level)
        low, high = trie.rows(children.node, level + 1)
        leads = (low <= position) & (position < high) & children.valid
        nodes = children.node.gather(1, leads.int().argmax(1, keepdim=True))[:, 0]
        tokens.append(trie.token(nodes, level))
    return trie.rows(nodes, trie.depth)[0], torch.stack(tokens, 1)


def completions(tokens: torch.Tensor, trie: SemIDTrie) -> list[list[int]]:
    """Token ids (int64 [M, depth], padded with -1) as lists; one that had to choose to end says so with EOS."""
    nodes = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    scored = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    for level in range(trie.depth):
        scored[:, level] = (tokens[:, level] == END) & (trie.children(nodes, level).valid.sum(-1) > 1)
        nodes = trie.step(nodes, tokens[:, level], level)
    ids = tokens.masked_fill(scored, trie.eos_token_id or 0)
    return [[token for token in row if token != END] for row in ids.tolist()]
