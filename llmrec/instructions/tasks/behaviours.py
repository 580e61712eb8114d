"""Kinds of interaction: the next item for a given kind, the kind, or both (MBGen, arXiv 2405.16871)."""

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.spans import Sequences, target_spans
from llmrec.instructions.tasks.task import Task, same_item, same_words


def behaviour_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target; `wish` is the kind of the interaction that is asked for."""
    if "behaviours" not in data.train.column_names:
        raise ValueError("the interactions have no kinds (column 'behaviour'), which this task speaks of")
    spans = target_spans(data.train, max_history)
    kinds = Sequences(data.train).kinds.take(pa.array(spans["middle"].to_numpy()))
    return spans.append_column("wish", kinds.dictionary_encode())


def next_behaviour_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """As `behaviour_rows`, but the kind is asked and not given."""
    return behaviour_rows(data, max_history, rng).drop_columns(["wish"])


def behaviour_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{behaviour}`: the target's kind as its token; `{target}`: the item without it; `{both}`: the kind, the item."""
    kind = row.get("wish") or (row["target_behaviours"][0] if row["target_behaviours"] else "")
    return {
        "history": catalogue.history(row, separator),
        "behaviour": catalogue.index.behaviour_token(kind) if kind else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
        "both": catalogue.target(row, separator),
    }


TASKS = {
    "next_behaviour": Task(
        next_behaviour_rows, behaviour_slots, False, score=same_words(behaviour_slots, "behaviour")
    ),
    "item_for_behaviour": Task(behaviour_rows, behaviour_slots, True, ("wish",), same_item),
    "behaviour_and_item": Task(next_behaviour_rows, behaviour_slots, True, score=same_item),
}
