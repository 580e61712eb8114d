"""Item ⇔ Semantic ID: what the new words mean (LC-Rec's mutual prediction, MiniOneRec's SID ⇔ title)."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data import PreparedData
from llmrec.instructions.catalogue import Catalogue, choose
from llmrec.instructions.item_words import leaf_category, listing, price_text, short_text
from llmrec.instructions.tasks.task import Task


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
    parts = []
    if category := leaf_category(catalogue.column("categories").get(item)):
        parts.append(f"category {category}")
    if brand := catalogue.column("brand").get(item):
        parts.append(f"brand {brand}")
    if price := price_text(catalogue.column("price").get(item)):
        parts.append(f"price {price}")
    return parts


def title_part(title: str, row: dict) -> str:
    """About half of a title's words, in order: another run of them for every variation."""
    words = title.split()
    length = max(1, (len(words) + 1) // 2)
    start = choose(range(len(words) - length + 1), row, "title part")
    return " ".join(words[start : start + length])


def item_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    item = row["about"]
    title, parts = catalogue.titles.get(item) or "", parts_of(catalogue, item)
    return {
        "item": catalogue.semid(item),
        "title": title,
        "description": short_text(catalogue.column("description").get(item)),
        "part": choose(parts, row, "part") if parts else "",
        "parts": listing(parts),
        "title_part": title_part(title, row) if title else "",
        "target": catalogue.semid(row["targets"][0]) if row["targets"] else "",
    }


def attribute_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{attribute}` and its `{value}`: one of the item's parts, another one for every variation."""
    slots = item_slots(catalogue, row, separator)
    attribute, _, value = slots["part"].partition(" ")
    return slots | {"attribute": attribute, "value": value}


ABOUT = ("about",)
TASKS = {
    "item_to_title": Task(item_rows("title", answers_item=False), item_slots, False, ABOUT),
    "title_to_item": Task(item_rows("title", answers_item=True), item_slots, True, ABOUT),
    "item_to_description": Task(item_rows("description", answers_item=False), item_slots, False, ABOUT),
    "description_to_item": Task(item_rows("description", answers_item=True), item_slots, True, ABOUT),
    "item_to_text": Task(item_rows("title", "description", answers_item=False), item_slots, False, ABOUT),
    "text_to_item": Task(item_rows("title", "description", answers_item=True), item_slots, True, ABOUT),
    "item_to_attribute": Task(item_rows("categories", answers_item=False), attribute_slots, False, ABOUT),
    "parts_to_item": Task(item_rows("title", "categories", answers_item=True), item_slots, True, ABOUT),
}
