"""Training rows of GRPO: a prompt, and the ids that rewards speak of."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from llmrec.data import PreparedData
from llmrec.data.rows import offsets_of
from llmrec.instructions import TASKS, Prompt
from llmrec.instructions.dataset import MixturePart
from llmrec.instructions.mixture import TaskMix
from llmrec.instructions.spans import Sequences
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.length import LOOKED_AT, check_prompts

FEATURES = Features(
    {
        "prompt": Value("string"),
        "history": List(Value("string")),
        "target": Value("string"),
        "following": List(Value("string")),
        "about": Value("string"),
        "wish": Value("string"),
        "row": Value("int64"),
    }
)


def prompt_rows(
    data: PreparedData,
    recommender: LLMRecommender,
    tasks: Sequence[str | dict] = (),
    following: int = 0,
    seed: int = 0,
) -> Dataset:
    """A row for every training target that has a history, or for the rows of a mixture of tasks.

    `tasks` are entries of a mixture (`TaskMix.parse`), by default the model's own prompt alone, exactly as it will be
    asked; `stream` has one row for every target here. A row names up to `following` items after the target.

    Returns:
        `prompt` (str), `history` (list of str), `target` (str; null where a wish has many right answers),
        `following` (list of str, what the user chose next), `about`, `wish` (str or null) and `row` (int).

    Raises:
        ValueError: a task that is answered in words, no rows, or a prompt that the model has no positions for.
    """
    mixture = [TaskMix.parse(entry) for entry in tasks] or [TaskMix(recommender.prompt)]
    whole = Sequences(data.train)
    rows = [
        row
        for number, mix in enumerate(mixture)
        for row in _rows(data, whole, recommender, mix, following, [seed, number])
    ]
    if not rows:
        raise ValueError("there is no training target with a history to roll out for")
    longest = sorted((row["prompt"] for row in rows), key=len)[-LOOKED_AT:]
    check_prompts(recommender, longest)
    columns = {name: [row.get(name) for row in rows] for name in FEATURES if name != "row"}
    return Dataset.from_dict({**columns, "row": list(range(len(rows)))}, features=FEATURES)


def _rows(
    data: PreparedData, whole: Sequences, recommender: LLMRecommender, mix: TaskMix, following: int, seed: list[int]
) -> list[dict]:
    prompt = mix.prompt
    if mix.chat is not None or not TASKS[prompt.task].ends_with_item:
        raise ValueError(f"tasks: {prompt.task!r} is answered in words, and GRPO rolls out items")
    if prompt.thinking != recommender.prompt.thinking:
        raise ValueError(f"tasks: {prompt.task!r} does not think as the model's own prompt does: leave it out")
    if prompt.task == "stream":
        mix = dataclasses.replace(mix, prompt=dataclasses.replace(prompt, task="next_item"))
    part = MixturePart(mix, data, whole, recommender.config.max_history, seed)
    given, next_items = TASKS[prompt.task].given, "targets" not in part.table.column_names
    if next_items and following:
        ends = offsets_of(pc.list_value_length(part.train["item_ids"]).to_numpy())[1:]
        stop = np.minimum(part.table["stop"].to_numpy() + following, ends[part.table["sequence"].to_numpy()])
        place = part.table.column_names.index("stop")
        part.table = part.table.set_column(place, "stop", pa.array(stop))
    rows = part.rows(part.draw(0))
    if not given:
        rows = [row for row in rows if row["history"]]
    for row in rows:
        drawn = "wish" in row and not next_items  # one of many right answers
        row |= {"target": None if drawn else row["targets"][0], "following": [] if drawn else row["targets"][1:]}
        kinds = row.pop("target_behaviours", None)
        row |= {"behaviour": kinds[0]} if kinds else {}
    for row, text in zip(rows, _texts(recommender, prompt, rows), strict=True):
        row["prompt"] = text
    return rows


def _texts(recommender: LLMRecommender, prompt: Prompt, rows: list[dict]) -> list[str]:
    if prompt != recommender.prompt:
        return recommender.task_prompts(prompt, rows, prompt.templates)
    if not recommender.behaviours:
        return recommender.prompts([row["history"] for row in rows])
    histories = [list(zip(row["history"], row["behaviours"], strict=True)) for row in rows]
    return recommender.prompts(histories, behaviour=[row["behaviour"] for row in rows])
