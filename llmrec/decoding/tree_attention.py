"""Attention for many short continuations of one prompt: the prompt's keys and values are held once.

`prefill` runs every prompt once. `extend` adds one token to each of B beams per prompt, as B positions of the same
row: their queries see the prompt (shared) and the beam's own tokens, under one softmax. The model is called as it is;
only its attention function is exchanged, through transformers' `AttentionInterface` (checked with 5.17 - 5.19).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
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

    def follow(self, parent: torch.Tensor) -> None:
        """Gives every new beam (int64 [N, B], the old beam it continues) its ancestor's tokens."""
        request = torch.arange(len(parent), device=parent.device)[:, None]
        for side in (self.keys, self.values):
            for layer, tensor in side.items():
                side[layer] = tensor[request, parent]

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for side, new in ((self.keys, key), (self.values, value)):
            new = new.transpose(1, 2)[:, :, None]
            side[layer] = new if layer not in side else torch.cat([side[layer], new], 2)
        return self.keys[layer], self.values[layer]


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
    `bias` ([H, P + S]) is added to what it sees, the same for all beams.
    """
    n, h, b, d = query.shape
    k = key.shape[1]
    own_keys, own_values = tree.append(layer, key, value)
    prompt_keys, prompt_values = tree.prompts.keys[layer], tree.prompts.values[layer]
    length = prompt_keys.shape[2]

    grouped = (query * scaling).reshape(n, k, -1, d)  # the H / K query heads of a key head, times beams
    prompt = (grouped @ prompt_keys.transpose(2, 3)).view(n, k, -1, b, length)
    if tree.prompts.padding is not None:
        prompt.masked_fill_(tree.prompts.padding[:, None, None, None], -torch.inf)
    own = torch.einsum("nkgbd,nbskd->nkgbs", grouped.view(n, k, -1, b, d), own_keys)
    weights = torch.cat([prompt, own], -1)
    if bias is not None:
        weights = weights + bias.view(k, -1, 1, bias.shape[-1])
    weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
    output = (weights[..., :length].reshape(n, k, -1, length) @ prompt_values).view(n, k, -1, b, value.shape[-1])
    output = output + torch.einsum("nkgbs,nbskd->nkgbd", weights[..., length:], own_values)
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


def prompt_lengths(attention_mask: torch.Tensor) -> torch.Tensor:
    """int64 [N]: the tokens of each prompt ([N, P], non-zero at tokens); raises `ValueError` for one without any."""
    lengths = attention_mask.bool().sum(1)
    if not bool((lengths > 0).all()):
        raise ValueError(f"prompt {int(lengths.argmin())} is empty: a prompt needs at least one token")
    return lengths


def prefill(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, at_head: Callable
) -> tuple[Prompts, object]:
    """Runs every prompt once, wherever its padding is.

    Args:
        input_ids (int64 [N, P]), attention_mask ([N, P], non-zero at tokens).
        at_head: `function(head, hidden [N, 1, H])`, applied to each prompt's last position.

    Returns:
        the prompts, and what `at_head` returned.
    """
    lengths, filled = prompt_lengths(attention_mask), attention_mask.bool()
    width = int(lengths.max())
    # all padding goes to the left, so that the last column is every prompt's last token
    order = filled.int().argsort(dim=1, stable=True)[:, -width:]
    input_ids, filled = input_ids.gather(1, order), filled.gather(1, order)
    positions = (filled.cumsum(1) - 1).clamp(min=0)
    with head_replaced(model, lambda head, hidden: at_head(head, hidden[:, -1:])) as results:
        cache = model(
            input_ids=input_ids, attention_mask=filled.long(), position_ids=positions, use_cache=True
        ).past_key_values
    if cache is None:
        raise ValueError("the model returned no cache: call model.eval(), gradient checkpointing switches it off")
    keys, values = ([getattr(layer, side) for layer in cache.layers] for side in ("keys", "values"))
    return Prompts(keys, values, None if bool(filled.all()) else ~filled, lengths), results[0]


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
