"""Tasks: what a row is about. A task is two small functions, its wording is a YAML file in `prompts/`.

`rows(data, max_history, rng)` picks identities, never text: a table with `history` and `targets` (item ids), or spans
of the training sequences that stand for them (`llmrec.instructions.spans`), and, where the prompt speaks of more than
the history, `about` (an item id), `wish`, .... These are the columns that `Task.given` declares: a prompt depends on
the history and on them, and never on the targets. `slots(catalogue, row, separator)` turns identities into the strings
that templates name, as late as possible. Where interactions have kinds, `behaviours` and `target_behaviours` are
parallel to history and targets, and every item is written after the token of its kind (MBGen, arXiv 2405.16871).
`Task.asks` and `Task.answers` name the slots by the side on which they may stand, so that no wording shows its answer.
"""

import re

import numpy as np

from llmrec.arguments import one_of, part_named
from llmrec.data import PreparedData
from llmrec.decoding.thoughts import ThoughtBlock
from llmrec.instructions.prompts import Prompt, Template, slots_of
from llmrec.instructions.spans import Sequences
from llmrec.instructions.tasks import conversation, items, reasoning, sequential
from llmrec.instructions.tasks.task import Task


class _Tasks(dict[str, Task]):
    """Tasks by name; a user's own is looked up by its dotted path (docs/own_task.md), and is no entry."""

    def __missing__(self, name: str) -> Task:
        task = part_named(name, self, "task")
        if not isinstance(task, Task):
            raise ValueError(f"task {name!r} is {type(task).__name__}, no llmrec.instructions.Task")
        return task


TASKS: dict[str, Task] = _Tasks(sequential.TASKS | items.TASKS | reasoning.TASKS | conversation.TASKS)
# What answers are made of without a Semantic ID in them.
WORDS = frozenset(
    "attribute caption description explanation intention part parts preference query target_title title title_part "
    "value wish".split()
)


def in_words(prompt: Prompt) -> bool:
    """Whether no wording of a prompt has a Semantic ID in its answer."""
    wordings = (*prompt.templates, *prompt.unseen)
    return all(name in WORDS for wording in wordings for name in slots_of(wording.completion))


def check_prompt(prompt: Prompt) -> Prompt:
    """The prompt, if its task is known and each slot of each wording stands on its side; else raises `ValueError`."""
    where = prompt.where or "prompt"
    try:
        task = TASKS[prompt.task]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for name in re.findall(r"\{(\w+)\}", prompt.system):
        if name in (*task.asks, *task.answers):
            raise ValueError(f"{where}: slot {name!r} stands in system, which has no slots: move it to a prompt")
    for wording in (*prompt.templates, *prompt.unseen):
        check_template(prompt, wording)
    return prompt


def check_template(prompt: Prompt, wording: Template) -> None:
    """Raises `ValueError` naming the file of the prompt, a slot that is unknown or shows the answer in the question,
    and the slots that the task has."""
    task, where = TASKS[prompt.task], prompt.where or f"prompt of task {prompt.task!r}"
    try:
        asked = [name for turn in wording.turns for name in slots_of(turn)]
        for name in [*asked, *slots_of(wording.completion)]:
            one_of(name, [*task.asks, *task.answers], "slot")
        if hidden := [name for name in asked if name not in task.asks]:
            raise ValueError(
                f"slot {hidden[0]!r} would show the answer of task {prompt.task!r} in its question: a prompt may say "
                f"{', '.join(task.asks)}; only a completion {', '.join(task.answers)}"
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_recommends(prompt: Prompt) -> Prompt:
    """The prompt, if a history is all that it takes and the search can answer it: each wording shows the history,
    and the item follows right after it, or after a thought. Else `ValueError` naming the file and what to write."""
    task, where = TASKS[check_prompt(prompt).task], prompt.where or f"prompt of task {prompt.task!r}"
    if not task.recommends:
        raise ValueError(f"a prompt of task {prompt.task!r} cannot recommend: ask for an item after a history")
    answers = [f"{{{name}}}" for name in ("both", "target", "targets") if name in task.answers][:1]
    for wording in (*prompt.templates, *prompt.unseen):
        if prompt.format == "chat" and not any(map(slots_of, wording.turns)):
            asked = " or ".join(f"{{{name}}}" for name in task.asks)
            raise ValueError(f"{where}: {wording.prompt!r} shows no history: write {asked} into it")
        if prompt.thinking:
            try:
                ThoughtBlock.of(wording.completion)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        elif wording.completion not in answers:
            raise ValueError(
                f"{where}: the completion {wording.completion!r} should be {answers[0]!r} alone, with nothing "
                "before or after it: the search expects the item right after the prompt"
            )
    return prompt


def task_rows(task: str, data: PreparedData, max_history: int, seed: int = 0, limit: int | None = None) -> list[dict]:
    """The rows of a task as dicts with their item ids; the first `limit` of them."""
    rows = TASKS[task].rows(data, max_history, np.random.default_rng(seed))
    return Sequences(data.train).rows(rows if limit is None else rows.slice(0, limit))


__all__ = ["TASKS", "Task", "check_prompt", "check_recommends", "check_template", "in_words", "task_rows"]
