"""Item ⇔ Semantic ID: what the new words mean (LC-Rec's mutual prediction, MiniOneRec's SID ⇔ title)."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue, choose
from llmrec.instructions.item_words import short_text
from llmrec.instructions.prompts import listing, phrase
from llmrec.instructions.tasks.task import ABOUT, Task, same_item, same_words


def item_rows(*columns: str, answers_item: bool):
    """One row per item with text in all of `columns`; the prompt is `about` it, the answer is it or words about it."""

    def rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
        items = data.items
        for column in columns:
            if column not in items.column_names:
                raise ValueError(f"the items have no column {column!r}, which this task speaks of")
            items = items.filter(pc.greater(pc.utf8_length(pc.fill_null(items[column], "")), 0))
        about = items["item_id"].combine_chunks().cast(pa.string())
        nobody = pa.array([[]] * len(about), pa.list_(pa.string()))
        targets = pa.ListArray.from_arrays(pa.array(range(len(about) + 1), pa.int32()), about)
        return pa.table({"about": about, "history": nobody, "targets": targets if answers_item else nobody})

    return rows


def parts_of(catalogue: Catalogue, item: str) -> list[str]:
    """What is known of an item beside its title and description, as short phrases."""
    facts = catalogue.facts(item)._asdict().items()
    return [phrase(f"part_{name}", value=value) for name, value in facts if value]


def title_part(title: str, row: dict) -> str:
    """About half of a title's words, in order: another run of them for every variation."""
    words = title.split()
    length = max(1, (len(words) + 1) // 2)
    start = choose(range(len(words) - length + 1), row, "title part")
    return " ".join(words[start : start + length])


def item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{part}` is one of the item's parts, another one for every variation: an `{attribute}` and its `{value}`."""
    item = row["about"]
    title, parts = catalogue.title(item), parts_of(catalogue, item)
    part = choose(parts, row, "part") if parts else ""
    attribute, _, value = part.partition(" ")
    return {
        "item": catalogue.semid(item),
        "title": title,
        "description": short_text(catalogue.column("description").get(item)),
        "part": part,
        "attribute": attribute,
        "value": value,
        "parts": listing(parts),
        "title_part": title_part(title, row) if title else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
    }


SLOTS = ("item", "title", "description", "part", "attribute", "value", "parts", "title_part", "target")


def _to_words(*columns: str, hidden: tuple[str, ...], slot: str | None = None) -> Task:
    score = same_words(item_slots, slot) if slot else None
    asks = tuple(name for name in SLOTS if name not in hidden and name != "target")
    return Task(item_rows(*columns, answers_item=False), item_slots, False, asks, (*hidden, "target"), ABOUT, score)


def _to_item(*columns: str) -> Task:
    asks = tuple(name for name in SLOTS if name not in ("item", "target"))
    return Task(item_rows(*columns, answers_item=True), item_slots, True, asks, ("item", "target"), ABOUT, same_item)


# A description often says the title, so it stands in no question that asks for one.
WORDS = ("title", "title_part", "description")
TASKS = {
    "item_to_title": _to_words("title", hidden=WORDS, slot="title"),
    "title_to_item": _to_item("title"),
    "item_to_description": _to_words("description", hidden=("description",), slot="description"),
    "description_to_item": _to_item("description"),
    "item_to_text": _to_words("title", "description", hidden=WORDS),
    "text_to_item": _to_item("title", "description"),
    "item_to_attribute": _to_words("categories", hidden=("value", "part", "parts"), slot="value"),
    "parts_to_item": _to_item("title", "categories"),
}
