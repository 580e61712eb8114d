"""Refuses what a model has no positions for, in numbers, before anything is computed.

Models with learned positions would fail somewhere inside; those with rotary ones would read on, and worse.
"""

from collections.abc import Sequence

from llmrec.models.positions import positions_of

LOOKED_AT = 100  # of the longest histories or prompts


def check_length(
    recommender, prompts: Sequence[Sequence[int]], words: int | None = None, thoughts: bool = False
) -> None:
    """Raises `ValueError` where the longest of some prompts (token ids) and its answer have more tokens than the model
    has positions: a Semantic ID, the longest thought and then one, or so many tokens of `words`."""
    limit = None if recommender.model is None else positions_of(recommender.model)  # vLLM's engines have their own
    prompt = max(map(len, prompts), default=0)
    answer = words if words is not None else recommender.trie.depth + (recommender.thought_length if thoughts else 0)
    if limit is not None and prompt + answer > limit:
        what = "words" if words is not None else "a thought and a Semantic ID" if thoughts else "a Semantic ID"
        lower = "max_new_tokens, " if words is not None else "max_thought_tokens, " if thoughts else ""
        raise ValueError(
            f"a prompt of {prompt} tokens and {what} of up to {answer} are more than the {limit} positions of the "
            f"model: lower {lower}max_history (now {recommender.config.max_history}), or take a model with more"
        )


def check_histories(recommender, histories: Sequence[Sequence], behaviours: Sequence[str] | None = None) -> None:
    """Raises `ValueError` where `recommender.recommend` has no room for the longest of these histories."""
    longest = sorted(range(len(histories)), key=lambda number: -len(histories[number]))[:LOOKED_AT]
    wanted = None if behaviours is None else [behaviours[number] for number in longest]
    for view in recommender.views if longest else ():
        prompts = recommender.prompts([histories[number] for number in longest], view, wanted)
        check_length(recommender, recommender.token_ids(prompts), thoughts=recommender.block is not None)
