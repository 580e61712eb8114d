"""What users say and think besides what they did: LC-Rec's item search and preferences, and of OneRec-Think (arXiv
2510.11639) itemic alignment, captions, personas, and a rationale before the item."""

import numpy as np
import pyarrow as pa

from llmrec.data import PreparedData
from llmrec.instructions import compose
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.item_words import most_common, short_text
from llmrec.instructions.prompts import listing, phrase
from llmrec.instructions.spans import Sequences, last_target_spans, preceded_spans
from llmrec.instructions.tasks.items import item_rows, parts_of
from llmrec.instructions.tasks.sequential import HISTORY, TARGET, next_item_slots
from llmrec.instructions.tasks.task import ABOUT, Task, same_item


def with_about(data: PreparedData, spans: pa.Table) -> pa.Table:
    """Spans whose prompt speaks of the target: what they ask for is `about` it."""
    return spans.append_column("about", Sequences(data.train).targets(spans))


def asked_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per user, for the last training target (as LC-Rec), with what the user asked for."""
    return with_about(data, last_target_spans(data, max_history))


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


def caption(catalogue: Catalogue, item: str) -> str:
    """A dense caption: title, what else is known, and the beginning of the description."""
    text = ", ".join(part for part in (catalogue.title(item), *parts_of(catalogue, item)) if part)
    description = short_text(catalogue.column("description").get(item), 24)
    return f"{text}. {description}" if description else f"{text}."


def caption_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    return {"item": catalogue.semid(row["about"]), "caption": caption(catalogue, row["about"])}


def _interleaved(catalogue: Catalogue, item: str) -> str:
    words = ", ".join(word for word in (catalogue.title(item), catalogue.facts(item).category) if word)
    return f"{catalogue.semid(item)} ({words})" if words else catalogue.semid(item)


def persona(catalogue: Catalogue, items: list[str]) -> str:
    """Who the user is, in words that are interleaved with the Semantic IDs that show it."""
    facts = [catalogue.facts(item) for item in items]
    parts = []
    for category in most_common((known.category for known in facts), 3):
        shown = [item for item, known in zip(items, facts) if known.category == category][-2:]
        parts.append(f"{category} ({', '.join(map(catalogue.semid, shown))})")
    brands = most_common((known.brand for known in facts), 2)
    name = f"persona{'' if parts else '_items'}{'_brands' if brands else ''}"
    items = ", ".join(map(catalogue.semid, items[-3:]))
    return phrase(name, categories=listing(parts), brands=listing(brands), items=items)


def user_rows(data: PreparedData, max_history: int, rng: np.random.Generator) -> pa.Table:
    """One row per user: the history before the last training target."""
    spans = last_target_spans(data, max_history)
    return spans.set_column(spans.column_names.index("stop"), "stop", spans["middle"])


def user_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{interleaved}`: the Semantic ID of every item of the history, and its title and category in words."""
    return {
        "history": catalogue.history(row, separator),
        "interleaved": "; ".join(_interleaved(catalogue, item) for item in row["history"]),
        "persona": persona(catalogue, row["history"]),
    }


def thinking_slots(catalogue: Catalogue, row: dict, separator: str) -> dict[str, str]:
    """`{rationale}` is part of the answer, so it may speak of the target."""
    rationale = compose.rationale(catalogue, row) if row["targets"] else ""
    return next_item_slots(catalogue, row, separator) | {"rationale": rationale}


ASKED = ("history", "preference", "query", "intention")
TASKS = {
    "query_to_item": Task(item_rows("title", answers_item=True), asked_slots, True, ASKED, TARGET, ABOUT, same_item),
    "history_query_to_item": Task(asked_rows, asked_slots, True, ASKED, TARGET, ABOUT, same_item),
    "history_intention_to_item": Task(asked_rows, asked_slots, True, ASKED, TARGET, ABOUT, same_item),
    "preference_query_to_item": Task(asked_rows, asked_slots, True, ASKED, TARGET, ABOUT, same_item),
    "history_to_preference": Task(last_target_spans, preference_slots, False, HISTORY, ("preference", "target")),
    "preference_to_item": Task(
        preceded_spans, preference_slots, True, ("history", "preference"), TARGET, score=same_item
    ),
    "item_to_caption": Task(
        item_rows("title", answers_item=False), caption_slots, False, ("item",), ("caption",), ABOUT
    ),
    "interleaved_history": Task(user_rows, user_slots, False, ("history", "persona"), ("interleaved",)),
    "persona": Task(user_rows, user_slots, False, ("history", "interleaved"), ("persona",)),
    "think_next_item": Task(preceded_spans, thinking_slots, True, HISTORY, ("rationale", "target"), score=same_item),
}
