"""What a recommender answers to the prompts of any task: items by the constrained beam, or words, greedily."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decoding import ScoredItem
from llmrec.decoding.prompt_search import search_prompts
from llmrec.instructions import Prompt, Template
from llmrec.recommender import LLMRecommender
from llmrec.text_generation import continue_text


def prompt_texts(
    recommender: LLMRecommender, prompt: Prompt, rows: Sequence[dict], templates: Sequence[Template] = ()
) -> list[str]:
    """The prompt of every row, in the recommender's stream of Semantic IDs.

    Args:
        templates (*optional*): row i takes the wording i modulo their number; by default all take the prompt's first.
    """
    stream = next(iter(recommender.streams))
    prompt = dataclasses.replace(prompt, semids=stream) if stream else prompt
    wordings = templates or prompt.templates[:1]
    return [recommender.renderer.prompt(prompt, row, wordings[i % len(wordings)]) for i, row in enumerate(rows)]


def answered_items(recommender: LLMRecommender, texts: Sequence[str], k: int = 10) -> list[list[ScoredItem]]:
    """The k best items after each prompt, unfiltered; `item` is a number in `recommender.index.items`."""
    within = next(iter(recommender.streams.values()))
    nothing = np.empty(0, np.int64)
    return search_prompts(
        recommender.model,
        recommender.tokenizer(list(texts), add_special_tokens=False)["input_ids"],
        recommender.trie,
        recommender.item_of_row,
        [k] * len(texts),
        recommender.config.num_beams,
        None if within is None else lambda batch: ([within] * len(batch), [nothing] * len(batch)),
        recommender.config.normalize,
        batch_size=recommender.batch_size,
    )


def answered_words(recommender: LLMRecommender, texts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt up to EOS, free of the catalogue's constraint."""
    prompts = recommender.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours in length share a batch
    written = continue_text(
        recommender.model,
        recommender.tokenizer,
        [prompts[i] for i in order],
        max_new_tokens,
        batch_size=recommender.batch_size,
    )
    answers = dict(zip(order, written))
    return [answers[number].strip() for number in range(len(prompts))]


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
