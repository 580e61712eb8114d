"""Query, intention and preference: what a user says besides what they did (LC-Rec's item search and preference)."""

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions import compose
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.spans import Sequences, last_target_spans, preceded_spans
from llmrec.instructions.tasks.items import item_rows
from llmrec.instructions.tasks.sequential import next_item_slots
from llmrec.instructions.tasks.task import ABOUT, Task, same_item


def with_about(data: PreparedData, spans: pa.Table) -> pa.Table:
    """Spans whose prompt speaks of the target: what they ask for is `about` it."""
    return spans.append_column("about", Sequences(data.train).targets(spans))


def asked_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per user, for the last training target (as LC-Rec), with what the user asked for."""
    return with_about(data, last_target_spans(data.train, max_history))


def preferring_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per user, for the last training target."""
    return last_target_spans(data.train, max_history)


def next_preferring_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per training target that has a history."""
    return preceded_spans(data.train, max_history)


def preference_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return next_item_slots(catalogue, row, separator) | {"preference": compose.preference(catalogue, row)}


def asked_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{query}` and `{intention}`: what a user typed, where the row holds it; else what somebody would ask for to find
    the item."""
    said = {
        kind: row.get(kind) or (compose.COMPOSED[kind](catalogue, row) if row.get("about") else "")
        for kind in ("query", "intention")
    }
    return preference_slots(catalogue, row, separator) | said


TASKS = {
    "query_to_item": Task(item_rows("title", answers_item=True), asked_slots, True, ABOUT, same_item),
    "history_query_to_item": Task(asked_rows, asked_slots, True, ABOUT, same_item),
    "history_intention_to_item": Task(asked_rows, asked_slots, True, ABOUT, same_item),
    "preference_query_to_item": Task(asked_rows, asked_slots, True, ABOUT, same_item),
    "history_to_preference": Task(preferring_rows, preference_slots, False),
    "preference_to_item": Task(next_preferring_rows, preference_slots, True, score=same_item),
}
