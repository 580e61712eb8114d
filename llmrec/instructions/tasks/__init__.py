"""Tasks: what a row is about. A task is two small functions, its wording is a YAML file in `prompts/`.

`rows(data, max_history, rng)` picks identities, never text: a table with `history` and `targets` (item ids), or spans
of the training sequences that stand for them (`llmrec.instructions.spans`), and, where the prompt speaks of more than
the history, `about` (an item id), `wish`, .... These are the columns that `Task.given` declares: a prompt depends on
the history and on them, and never on the targets. `slots(catalogue, row, separator)` turns identities into the strings
that templates name, as late as possible. Where interactions have kinds, `behaviours` and `target_behaviours` are
parallel to history and targets, and every item is written after the token of its kind (MBGen, arXiv 2405.16871).
"""

import numpy as np

from llmrec.data import PreparedData
from llmrec.instructions.spans import Sequences
from llmrec.instructions.tasks import conversation, items, reasoning, sequential
from llmrec.instructions.tasks.task import Task

TASKS: dict[str, Task] = {
    **sequential.TASKS,
    **items.TASKS,
    **reasoning.TASKS,
    **conversation.TASKS,
}


def task_rows(task: str, data: PreparedData, max_history: int, seed: int = 0, limit: int | None = None) -> list[dict]:
    """The rows of a task as dicts with their item ids; the first `limit` of them."""
    rows = TASKS[task].rows(data, max_history, np.random.default_rng(seed))
    return Sequences(data.train).rows(rows if limit is None else rows.slice(0, limit))


__all__ = ["TASKS", "Task", "task_rows"]
