"""Rotary positions that depend on the length of the whole input: what lies in a cache would be of other ones.

With longrope (Phi-3, Phi-4-mini) a forward pass that holds any position past `original_max_position_embeddings` turns
all of its rows by other frequencies; with dynamic ones every length past `max_position_embeddings` has its own.
"""

from collections.abc import Mapping

import torch

from llmrec.decoding.head import unwrap
from llmrec.decoding.tree_attention import prompt_lengths


def rope_kinds(config) -> list[Mapping]:
    """The settings of rotary positions in a text config, of every kind of layer; none without such."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)]


def check_rotary(model: torch.nn.Module, attention_mask: torch.Tensor, answer: int) -> bool:
    """Whether prompts may share a forward pass: false where some stay below the model's limit and others are past it.

    Args:
        attention_mask ([N, P]): non-zero at the tokens of each prompt; looked at only where a limit is.
        answer: tokens after it.

    Raises:
        ValueError: a prompt with its answer crosses the limit, where scores depend on what passes they come from.
    """
    config = unwrap(model).config.get_text_config()
    fits = True
    for kind in rope_kinds(config):
        name = kind.get("rope_type") or ""
        if name != "longrope" and "dynamic" not in name:
            continue
        limit = config.max_position_embeddings if name != "longrope" else kind["original_max_position_embeddings"]
        lengths, _, _ = prompt_lengths(attention_mask)
        past = lengths + answer > limit
        crossing = past if name != "longrope" else past & (lengths <= limit)
        if bool(crossing.any()):
            number = int(crossing.int().argmax())
            raise ValueError(
                f"prompt {number} has {int(lengths[number])} tokens, and with up to {answer} of an answer it crosses "
                f"the {limit} at which the model's rotary positions ({name}) change: lower max_history or what is "
                "written"
            )
        fits = fits and bool(past.all() or not past.any())
    return fits
