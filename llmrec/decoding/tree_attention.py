"""Attention for many short continuations of one prompt: the prompt's keys and values are held once.

`prefill` runs every prompt once. `extend` adds one token to each of B beams per prompt, as B positions of the same
row: their queries see the prompt (shared) and the beam's own tokens, under one softmax. The model is called as it is;
only its attention function is exchanged, through transformers' `AttentionInterface` (checked with 5.17 - 5.19).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from llmrec.decoding.head import head_replaced, unwrap

# What a config may hold, at a value that changes logits, that this attention or `head_rows` does not reproduce
_FOREIGN = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "attention_chunk_size": None,
}


@dataclass
class Prompts:
    """N prefilled prompts of at most P tokens.

    Attributes:
        keys, values: by layer, [N, K, P, D].
        padding (bool [N, P]): True where a column holds no token; `None` if there is no such column.
        lengths (int64 [N]): tokens of each prompt.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    padding: torch.Tensor | None
    lengths: torch.Tensor

    def select(self, requests: torch.Tensor) -> "Prompts":
        padding = None if self.padding is None else self.padding[requests]
        keys, values = ([tensor[requests] for tensor in side] for side in (self.keys, self.values))
        return Prompts(keys, values, padding, self.lengths[requests])


@dataclass
class Tree:
    """Beams on prompts; `keys` and `values` are by layer [N, B, S, K, D], the S tokens of each beam so far."""

    prompts: Prompts
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    length: int = 0
    masks: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def follow(self, parent: torch.Tensor) -> None:
        """Gives every new beam (int64 [N, B], the old beam it continues) its ancestor's tokens."""
        request = torch.arange(len(parent), device=parent.device)[:, None]
        for side in (self.keys, self.values):
            for layer, tensor in side.items():
                side[layer] = tensor[request, parent]
        self.masks.clear()

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the beams of a layer may see, [N, K, P + B * S, D] each: the prompt, then beam by beam."""
        whole = []
        prompts = self.prompts.keys[layer], self.prompts.values[layer]
        for side, prompt, new in zip((self.keys, self.values), prompts, (key, value)):
            new = new.transpose(1, 2)[:, :, None]
            side[layer] = new if layer not in side else torch.cat([side[layer], new], 2)
            whole.append(torch.cat([prompt, side[layer].permute(0, 3, 1, 2, 4).flatten(2, 3)], 2))
        return tuple(whole)

    def mask(self, groups: int, beams: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """What is added to the scores, [N or 1, 1, G * B, P + B * S]: 0 for the prompt and a beam's own tokens, -inf
        for other beams'. Made once a level; rows lie at multiples of 8 numbers, as CUDA's kernels want them."""
        kept = self.masks.get((groups, like.dtype))
        if kept is None:
            padding, length = self.prompts.padding, columns - beams * (self.length + 1)
            rows = 1 if padding is None else len(padding)
            kept = like.new_zeros(rows, 1, groups, beams, -(-columns // 8) * 8)
            if padding is not None:
                kept[..., :length].masked_fill_(padding[:, None, None, None], -torch.inf)
            others = ~torch.eye(beams, dtype=torch.bool, device=like.device)
            kept[..., length:columns].unflatten(-1, (beams, -1)).masked_fill_(others[..., None], -torch.inf)
            kept = self.masks[groups, like.dtype] = kept.flatten(2, 3)[..., :columns]
        return kept


def tree_attention(module, query, key, value, attention_mask, scaling=None, tree: Tree | None = None, **kwargs):
    """An attention function of transformers: query [N, H, B, D], key and value [N, K, B, D] of the new tokens."""
    if tree is None:
        raise ValueError("the model does not hand keyword arguments on to its attention function")
    foreign = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if foreign:
        raise ValueError(f"{type(module).__name__} asks for {', '.join(foreign)}, which tree attention does not have")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared_prompt_attention(tree, module.layer_idx, query, key, value, scaling), None


def shared_prompt_attention(
    tree: Tree,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """One softmax over the prompt and the beam's own tokens, the new one included: [N, B, H, D].

    `query` ([N, H, B, D]), `key` and `value` ([N, K, B, D]) are of the new token of every beam, appended to `tree`;
    `bias` ([H, P + S]) is added to what it sees, the same for all beams. PyTorch's fused kernels never hold the scores
    of all heads, which are what is large: beams x context.
    """
    n, h, b, d = query.shape
    k = key.shape[1]
    keys, values = tree.append(layer, key, value)
    # The H / K query heads of a key head are further rows of it: no key is repeated.
    mask = tree.mask(h // k, b, keys.shape[2], query)
    if bias is not None:
        prompt, own = bias.split([keys.shape[2] - b * (tree.length + 1), tree.length + 1], -1)
        columns = torch.cat([prompt, own.repeat(1, b)], -1)
        mask = mask + columns.view(k, -1, 1, keys.shape[2]).expand(-1, -1, b, -1).flatten(1, 2)
    output = F.scaled_dot_product_attention(query.reshape(n, k, -1, d), keys, values, mask, scale=scaling)
    return output.reshape(n, h, b, -1).transpose(1, 2)


AttentionInterface.register("llmrec_tree", tree_attention)


def unsupported(model: torch.nn.Module) -> str | None:
    """Why a model cannot run with tree attention, or `None` if it can."""
    inner = unwrap(model)
    config = inner.config.get_text_config()
    # Of a model with an encoder the self-check tells: transformers' flag is about decoders alone.
    if not (inner._supports_attention_backend or inner.config.is_encoder_decoder):
        return "its attention is not exchangeable (no AttentionInterface)"
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        return f"it has layers of type {', '.join(sorted(layers - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends within a sliding window"
    if len(set(getattr(inner, "hf_device_map", {}).values())) > 1:
        return "its layers lie on several devices (device_map)"
    for name, neutral in _FOREIGN.items():
        if getattr(config, name, neutral) not in (neutral, None):
            return f"its config sets {name}"
    return None


class Padded(NamedTuple):
    """N prompts with their padding on the right, as wide as the longest: no causal model sees it there.

    Attributes:
        ids (int64 [N, W]), lengths (int64 [N]): on the device of the ids that were given.
        shortest: the fewest tokens of a prompt.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    shortest: int

    @property
    def last(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The places of the last tokens."""
        return torch.arange(len(self.ids), device=self.ids.device), self.lengths - 1


def prompt_lengths(attention_mask: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The tokens of each prompt ([N, P], non-zero at tokens), int64 [N], the fewest and the most; raises `ValueError`
    for a prompt without any. The only place that waits for a mask: not at all for one on the CPU."""
    lengths = attention_mask.bool().sum(1)
    shortest, longest = torch.stack(lengths.aminmax()).tolist()
    if shortest == 0:
        raise ValueError(f"prompt {int(lengths.argmin())} is empty: a prompt needs at least one token")
    return lengths, shortest, longest


def padded_right(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Padded:
    """Prompts (int64 [N, P]) that are padded anywhere; the mask ([N, P], non-zero at tokens) may be on the CPU."""
    lengths, shortest, longest = prompt_lengths(attention_mask)
    order = (~attention_mask.bool()).int().argsort(dim=1, stable=True)[:, :longest]
    order, lengths = (part.to(input_ids.device, non_blocking=True) for part in (order, lengths))
    return Padded(input_ids.gather(1, order), lengths, shortest)


def prefill(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, at_head: Callable
) -> tuple[Prompts, object]:
    """Runs every prompt once, wherever its padding is.

    Args:
        input_ids (int64 [N, P]), attention_mask ([N, P], non-zero at tokens; it may be on the CPU).
        at_head: `function(head, hidden [N, 1, H])`, applied to each prompt's last position.

    Returns:
        the prompts, and what `at_head` returned.
    """
    ids, lengths, shortest = padded = padded_right(input_ids, attention_mask)
    with head_replaced(model, lambda head, hidden: at_head(head, hidden[padded.last][:, None])) as results:
        cache = model(input_ids=ids, use_cache=True).past_key_values
    if cache is None:
        raise ValueError("the model returned no cache: call model.eval(), gradient checkpointing switches it off")
    keys, values = ([getattr(layer, side) for layer in cache.layers] for side in ("keys", "values"))
    width = ids.shape[1]
    padding = None if shortest == width else torch.arange(width, device=ids.device) >= lengths[:, None]
    return Prompts(keys, values, padding, lengths), results[0]


def extend(model: torch.nn.Module, tree: Tree, tokens: torch.Tensor, parent: torch.Tensor, at_head: Callable):
    """Adds one token to every beam and returns what `at_head(head, hidden [N, B, H])` makes of them.

    Args:
        tokens (int64 [N, B]): the token of every new beam.
        parent (int64 [N, B]): the beam of the previous call that it continues (all 0 in the first).
    """
    tree.follow(parent)
    positions = (tree.prompts.lengths + tree.length)[:, None].expand_as(tokens)
    # not thread-safe: two searches on one model object must not run at the same time
    config = unwrap(model).config
    before, config._attn_implementation = config._attn_implementation, "llmrec_tree"
    try:
        with head_replaced(model, at_head) as results:
            model(input_ids=tokens, position_ids=positions, use_cache=False, tree=tree)
    finally:
        config._attn_implementation = before
    tree.length += 1
    return results[0]
