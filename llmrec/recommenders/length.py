"""Refuses what a model has no positions for, in numbers, before anything is computed.

Models with learned positions would fail somewhere inside; those with rotary ones would read on, and worse.
"""

from collections.abc import Sequence

from llmrec.models.positions import positions_of

THOUGHT = "a thought (max_thought_tokens) and a Semantic ID"
LOOKED_AT = 100  # of the longest histories or prompts


def check_length(
    recommender, prompts: Sequence[Sequence[int]], answer: int | None = None, what: str = "a Semantic ID"
) -> None:
    """Raises `ValueError` where the longest of some prompts (token ids) and `answer` tokens after it, by default those
    of a Semantic ID, are more than the model has positions for."""
    limit = None if recommender.model is None else positions_of(recommender.model)  # vLLM's engines have their own
    prompt, answer = max(map(len, prompts), default=0), recommender.trie.depth if answer is None else answer
    if limit is not None and prompt + answer > limit:
        raise ValueError(
            f"a prompt of {prompt} tokens and {what} of up to {answer} are more than the {limit} positions of the "
            f"model: lower max_history (now {recommender.config.max_history}) or what is written, or take a model "
            "with more positions"
        )


def check_histories(
    recommender, histories: Sequence[Sequence], behaviours: Sequence[str] | None = None, think: bool = True
) -> None:
    """Raises `ValueError` where `recommender.recommend` has no room for the longest of these histories."""
    longest = sorted(range(len(histories)), key=lambda number: -len(histories[number]))[:LOOKED_AT]
    wanted = None if behaviours is None else [behaviours[number] for number in longest]
    for view in recommender.views if longest else ():
        prompts = recommender.prompts([histories[number] for number in longest], view, wanted)
        check_prompts(recommender, prompts, think)


def check_prompts(recommender, prompts: Sequence[str], think: bool = True) -> None:
    """The same of rendered prompts; a thought counts as long as it may get, or as the empty one."""
    ids = recommender.token_ids(prompts)
    if recommender.block is None:
        return check_length(recommender, ids)
    thought = recommender.thought_length if think else len(recommender.block_ids([""])[0])
    check_length(recommender, ids, thought + recommender.trie.depth, THOUGHT)
