"""Perplexity on a text: what a language model still knows of other things than a shop."""

import numpy as np
import torch


@torch.no_grad()
def perplexity(model, tokenizer, text: str, blocks: int = 200, length: int = 512) -> dict[str, float]:
    """exp of the mean negative log-likelihood (nats) of a token, given those before it in its block.

    Args:
        text: cut into blocks of `length` tokens, or of what the model has positions for; the first `blocks` are read.

    Returns:
        `{"perplexity": ..., "tokens": how many were predicted}`.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    length = min(length, getattr(model.config, "max_position_embeddings", None) or length)
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)][:blocks]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise ValueError(f"a text of {len(ids)} tokens has no perplexity: give one of at least two")
    device = next(model.parameters()).device
    total = 0.0
    for piece in pieces:  # one at a time: a block's logits over a large vocabulary fill memory
        input_ids = torch.tensor([piece], device=device)
        logits = model(input_ids=input_ids).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, input_ids[0, 1:], reduction="sum").item()
    count = sum(map(len, pieces)) - len(pieces)
    return {"perplexity": float(np.exp(total / count)), "tokens": count}
