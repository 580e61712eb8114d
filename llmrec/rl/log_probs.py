"""Log-probabilities of completions, under the distribution that they were drawn from, with a group's prompt read once.

GRPO scores G completions of one prompt. Here a group is one row: the prompt, then the completions beside each other;
under a 4-D mask a completion sees the prompt and itself, and its positions count from the prompt. That is
P + G x (C - 1) tokens where one row per completion has G x (P + C).

Rollouts are drawn among the tokens that the trie allows, so a token's log-probability is taken over these (DAPO,
MiniOneRec and TRL take it over the vocabulary, which moves the policy's mass out of the catalogue: the ratios, the KL
and the gradient then speak of another distribution). Thoughts are free text: without a trie they are normalised over
the vocabulary.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from llmrec.decoding.head import LevelHeads, head_output, unwrap
from llmrec.decoding.tree_attention import unsupported
from llmrec.decoding.trie import DEAD, SemIDTrie


class Groups(NamedTuple):
    """N prompts with G completions each.

    Attributes:
        prompts (int64 [N, P]), prompt_mask (bool [N, P]): padded on the left.
        completions (int64 [N, G, C]), completion_mask (bool [N, G, C]): padded on the right.
    """

    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    completions: torch.Tensor
    completion_mask: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, completion_length: int, size: int) -> "Groups":
        """From rows of prompt and completion (int64 [N x G, P + C] each), the completions of a prompt side by side.
        Raises `ValueError`: rows that are no whole groups."""
        if len(ids) % size:
            raise ValueError(f"{len(ids)} completions are no whole groups of {size}")
        width, mask = ids.shape[1] - completion_length, mask.bool()
        prompts, masks = ids[:, :width].unflatten(0, (-1, size)), mask[:, :width].unflatten(0, (-1, size))
        if bool((masks != masks[:, :1]).any() or ((prompts != prompts[:, :1]) & masks).any()):
            raise ValueError(f"the completions of one prompt do not stand side by side in groups of {size}")
        occupied = masks[:, 0].any(0)
        first = int(occupied.int().argmax())  # columns that are padding in every row
        return cls(
            prompts[:, 0, first:],
            masks[:, 0, first:],
            ids[:, width:].unflatten(0, (-1, size)),
            mask[:, width:].unflatten(0, (-1, size)),
        )


def log_probs(
    model: torch.nn.Module, groups: Groups, trie: SemIDTrie | None, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (float32 [N, G, C], differentiable) of the tokens of completions.

    Padding gets 0. One call of the model, however it is wrapped. Tokens are normalised over what the trie allows, over
    the vocabulary without one; logits are divided by the temperature, as in the rollout. Raises `ValueError`: a
    Semantic ID that is not in the trie, or a model whose attention takes no mask (`check_model`).
    """
    batch, size, length = groups.completions.shape
    states = 1 + size * (length - 1)

    def at_head(head: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        prompt, rest = hidden[:, -states : hidden.shape[1] - states + 1], hidden[:, hidden.shape[1] - states + 1 :]
        rest = rest.unflatten(1, (size, length - 1))
        before = torch.cat([prompt[:, None].expand(-1, size, -1, -1), rest], 2)  # what each token is predicted from
        if trie is None:
            return _over_vocabulary(head, before, groups.completions, groups.completion_mask, temperature)
        return _over_catalogue(head, before, groups, trie, temperature)

    with head_output(model, at_head):
        steps = model(**_inputs(groups, unwrap(model)), logits_to_keep=states, use_cache=False).logits
    return steps[..., 0], steps[..., 1]


def check_model(model: torch.nn.Module) -> None:
    """Raises `ValueError` naming why a model cannot read a group as one row."""
    inner = unwrap(model)
    if (reason := unsupported(inner)) is not None:
        raise ValueError(f"this model cannot share the prompt of a group: {reason}")
    if inner.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation {inner.config._attn_implementation} takes no mask of our own: set "
            "attn_implementation: sdpa"
        )


def _inputs(groups: Groups, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each group as one row: ids, positions, and who sees whom."""
    batch, size, length = groups.completions.shape
    # What follows the last token of a completion is not asked for.
    inner, inner_mask = groups.completions[..., :-1], groups.completion_mask[..., :-1]
    ids = torch.cat([groups.prompts, inner.flatten(1)], 1)
    count = groups.prompt_mask.sum(1, keepdim=True)
    place = torch.arange(length - 1, device=ids.device).repeat(size)
    positions = torch.cat([(groups.prompt_mask.cumsum(1) - 1).clamp(min=0), count + place], 1)
    width, total = groups.prompts.shape[1], ids.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool, device=ids.device).tril()
    number = torch.arange(size, device=ids.device).repeat_interleave(length - 1)
    causal[width:, width:] &= number[:, None] == number
    seen = torch.cat([groups.prompt_mask, inner_mask.flatten(1)], 1)
    mask = causal & seen[:, None]
    mask |= torch.eye(total, dtype=torch.bool, device=ids.device)  # padding sees itself, or it would be NaN
    mask = mask[:, None]
    if model.config._attn_implementation == "eager":
        dtype = model.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=ids.device).masked_fill(~mask, torch.finfo(dtype).min)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _over_vocabulary(head, states, tokens, mask, temperature) -> torch.Tensor:
    """float32 [N, G, C, 2]: log-probability and entropy of each token over the whole vocabulary."""
    steps = (head.forward(states[mask]).float() / temperature).log_softmax(-1)
    return _at(mask, steps, tokens[mask], -(steps.exp() * steps).sum(-1))


def _over_catalogue(head, states, groups: Groups, trie: SemIDTrie, temperature: float) -> torch.Tensor:
    """float32 [N, G, C, 2]: as `_over_vocabulary`, over the children of each token's node."""
    tokens, mask = groups.completions, groups.completion_mask
    depth = min(trie.depth, tokens.shape[-1])
    logits_of = LevelHeads(head, [ids.to(states.device) for ids in trie.head_ids[:depth]])
    nodes = torch.zeros(tokens.shape[:-1], dtype=torch.long, device=states.device)
    levels = []
    for level in range(depth):
        here = mask[..., level]
        node, token = nodes[here], tokens[..., level][here]
        following = trie.step(node, token, level)
        if bool((following == DEAD).any()):
            raise ValueError(f"token {int(token[following == DEAD][0])} continues no Semantic ID of the catalogue")
        children = trie.children(node, level)
        logits = logits_of.of_children(level, states[..., level, :][here], node, children.column) / temperature
        steps = logits.masked_fill(~children.valid, -torch.inf).log_softmax(-1)
        entropy = -torch.where(children.valid, steps.exp() * steps.masked_fill(~children.valid, 0), 0).sum(-1)
        levels.append(_at(here, steps, following - children.node[:, 0], entropy))
        nodes = nodes.masked_scatter(here, following)
    return F.pad(torch.stack(levels, -2), (0, 0, 0, tokens.shape[-1] - depth))


def _at(mask, steps, choices, entropy) -> torch.Tensor:
    """float32 [*mask.shape, 2]: the chosen log-probabilities of M steps and their entropies where the mask is."""
    values = torch.stack([steps.gather(-1, choices[:, None])[:, 0], entropy], -1)
    empty = torch.zeros(*mask.shape, 2, device=steps.device)
    return empty.masked_scatter(mask[..., None].expand_as(empty), values)
