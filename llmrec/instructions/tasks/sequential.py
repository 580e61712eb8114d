"""The next item of a history, in Semantic IDs and in words: LC-Rec's sequential and asymmetric prediction.

A history may be written in Semantic IDs, in titles, or mixed; so may the answer.
"""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import PreparedData
from llmrec.data.rows import offsets_of, ragged_arange
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.item_words import short_text
from llmrec.instructions.spans import Sequences, span_table, target_spans
from llmrec.instructions.tasks.task import Task, same_item, same_words


def next_item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return {"history": catalogue.history(row, separator), "target": catalogue.target(row, separator)}


def stream_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per user: every item after the context is a target (dense supervision, as SASRec has it).

    A sequence longer than `max_history + 1` is cut into windows of that length which overlap by half; an item is a
    target in one window only, the first that holds it.
    """
    window = max_history + 1
    stride = max(1, window // 2)
    length = pc.list_value_length(data.train["item_ids"]).to_numpy().astype(np.int64)
    offsets = offsets_of(length)
    context = np.maximum(data.train["num_context"].to_numpy(), 1).astype(np.int64)
    per_sequence = np.where(length > context, 1 + np.maximum(0, -(-(length - window) // stride)), 0)
    sequence = np.repeat(np.arange(len(length)), per_sequence)
    number = ragged_arange(np.zeros_like(per_sequence), per_sequence)
    start = number * stride
    end = np.minimum(start + window, length[sequence])
    first_target = np.maximum(np.where(number > 0, start - stride + window, 0), context[sequence])
    keep = first_target < end
    return span_table(sequence[keep], *((offsets[sequence] + place)[keep] for place in (start, first_target, end)))


def stream_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    slots = {"history": catalogue.history(row, separator), "targets": catalogue.following(row, separator)}
    if catalogue.sequence_tokenizer is not None:
        name, history, plain = catalogue.sequence_tokenizer.name, row["history"], row | {"variation": None}
        if separator:
            raise ValueError(f"item tokenizer {name!r} leaves no gaps between items: the separator must be empty")
        apart = catalogue.semids(history, "") + catalogue.following(plain, "")
        if catalogue.semids([*history, *row["targets"]], "") != apart:
            raise ValueError(
                f"item tokenizer {name!r} merges neighbouring items, so a history is no list of targets: use a prompt "
                "of task next_item instead of stream"
            )
    return slots


def worded_rows(column: str):
    """One row per training target whose `column` has text."""

    def rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
        if column not in data.items.column_names:
            raise ValueError(f"the items have no column {column!r}, which the answers of this task are made of")
        spans = target_spans(data, max_history)
        spoken = data.items.filter(pc.greater(pc.utf8_length(pc.fill_null(data.items[column], "")), 0))["item_id"]
        targets = Sequences(data.train).targets(spans)
        known = pc.is_in(targets.dictionary, spoken.combine_chunks())
        return spans.filter(known.take(targets.indices))

    return rows


def worded_history_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{titles}`: the history in quoted titles, in Semantic IDs where an item has none; `{mixed}`: either way, by the
    row's variation."""
    semids = list(map(catalogue.semid, row["history"]))
    named = map(catalogue.title, row["history"])
    titles = [f'"{title}"' if title else semid for title, semid in zip(named, semids)]
    bits = zlib.crc32(str(row.get("variation") or 0).encode())
    mixed = [pair[bits >> (place % 32) & 1] for place, pair in enumerate(zip(titles, semids))]
    return {
        "titles": ", ".join(titles),
        "mixed": ", ".join(mixed),
        "target": catalogue.target(row, separator),
        "target_title": catalogue.title(row["targets"][0]) if row["targets"] else "",
    }


def history_to_words_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{title}`, `{description}`: of the target, which is written in words only."""
    target = row["targets"][0] if row["targets"] else ""
    return {
        "history": catalogue.history(row, separator),
        "title": catalogue.title(target),
        "description": short_text(catalogue.column("description").get(target)),
    }


HISTORY, TARGET = ("history",), ("target",)
WORDED = ("titles", "mixed"), ("target", "target_title")


def _history_to(column: str) -> Task:
    score = same_words(history_to_words_slots, column)
    return Task(worded_rows(column), history_to_words_slots, False, HISTORY, ("title", "description"), score=score)


TASKS = {
    "next_item": Task(target_spans, next_item_slots, True, HISTORY, TARGET, score=same_item),
    "stream": Task(stream_rows, stream_slots, True, HISTORY, ("targets",), score=same_item),
    "history_to_title": _history_to("title"),
    "history_to_description": _history_to("description"),
    "titles_to_item": Task(target_spans, worded_history_slots, True, *WORDED, score=same_item),
    "mixed_to_item": Task(target_spans, worded_history_slots, True, *WORDED, score=same_item),
    "titles_to_title": Task(
        worded_rows("title"),
        worded_history_slots,
        False,
        *WORDED,
        score=same_words(worded_history_slots, "target_title"),
    ),
}
