"""The prompts of any task for a recommender, and what it writes after them in words."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrec.decoding import ScoredItem
from llmrec.instructions import TASKS, Prompt, Template, load_prompt

if TYPE_CHECKING:
    from llmrec.recommenders import LLMRecommender


def prompt_texts(
    recommender: "LLMRecommender", prompt: str | Prompt, rows: Sequence[dict], templates: Sequence[Template] = ()
) -> list[str]:
    """The prompt of every row, in the recommender's view of Semantic IDs, with the newest items of its history.

    Args:
        prompt: a `Prompt`, or the name of a shipped one, or a YAML file.
        rows: what the task speaks of: `history` (item ids; none by default), `about`, `wish`, ...; a search may say
            `query` or `intention` in the user's words instead of the item that it is `about`. Where the model knows
            kinds of interaction, a history comes with its `behaviours`, and `behaviour` is the wanted one.
        templates (*optional*): row i takes the wording i modulo their number; by default all take the prompt's first.

    Raises:
        ValueError: a row without a column that the task needs, or a history without its kinds of interaction.
    """
    prompt = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    needed = TASKS[prompt.task].given
    for row in rows:
        typed = {"about"} if row.get("query") or row.get("intention") else set()
        if missing := [name for name in needed if row.get(name) is None and name not in typed]:
            raise ValueError(f"a row of task {prompt.task!r} needs {' and '.join(needed)}: {missing[0]!r} is missing")
        if recommender.behaviours and len(row.get("behaviours") or ()) != len(row.get("history") or ()):
            raise ValueError(
                f"this model knows kinds of interaction ({', '.join(recommender.behaviours)}): a row with a history "
                "needs `behaviours`, one for each of its items"
            )
    rows = [{"history": [], "targets": [], **row} for row in rows]
    for row in rows:  # no longer than training showed them
        shown = row.keys() & {"history", "behaviours"}
        row |= {name: list(row[name])[-recommender.config.max_history :] for name in shown}
    view = next(iter(recommender.views))
    prompt = dataclasses.replace(prompt, semids=view) if view else prompt
    wordings = templates or prompt.templates[:1]
    texts = [recommender.renderer.prompt(prompt, row, wordings[i % len(wordings)]) for i, row in enumerate(rows)]
    return [text + _wanted(recommender, prompt, row) for text, row in zip(texts, rows)]


def _wanted(recommender: "LLMRecommender", prompt: Prompt, row: dict) -> str:
    """The token of the wanted kind of interaction, where the task's answers write one before the Semantic ID."""
    task = TASKS[prompt.task]
    if not (recommender.behaviours and (row["history"] or task.recommends) and task.ends_with_item):
        return ""
    asked = row.get("wish") if row.get("wish") in recommender.behaviours else None
    kind = row.get("behaviour") or asked or recommender.config.behaviour or recommender.behaviours[-1]
    token = recommender.index.behaviour_token(kind)
    row = row | {"targets": recommender.index.items[:1], "target_behaviours": [kind]}
    return token if token in recommender.renderer.completion(prompt, row) else ""


def answered_items(recommender: "LLMRecommender", texts: Sequence[str], k: int = 10) -> list[list[ScoredItem]]:
    """The k best items after each prompt, unfiltered; `item` is a number in `recommender.index.items`."""
    prompts = recommender.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return recommender.search(prompts, [k] * len(texts))


def answered_words(recommender: "LLMRecommender", texts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt up to EOS, free of the catalogue's constraint."""
    prompts = recommender.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours in length share a batch
    written = recommender.write([prompts[i] for i in order], max_new_tokens)
    answers = dict(zip(order, written))
    return [answers[number].strip() for number in range(len(prompts))]
