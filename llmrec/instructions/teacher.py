"""Queries, intentions, preferences and rationales for training rows, written by a teacher model or without one.

What a teacher reads of a history are the items that have most in common with the target (OneRec-Think, arXiv
2510.11639, prunes so). Rows come from the training split alone. Texts are written in shards that appear whole, so a
killed run goes on where it stopped; what was dropped, and why, stays in them.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from llmrec.arguments import one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import PreparedData
from llmrec.data.rows import flatten_lists
from llmrec.files import made_again, read_parquet, write_parquet
from llmrec.instructions import compose
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.prompts import Prompt, fill, slots_of
from llmrec.instructions.spans import Sequences, last_target_spans, preceded_spans
from llmrec.instructions.tasks.items import item_rows, parts_of
from llmrec.instructions.tasks.reasoning import asked_rows, caption
from llmrec.instructions.texts import SCHEMA, Texts, taken_again

logger = logging.getLogger(__name__)
ROWS = {
    "query": item_rows("title", answers_item=True),
    "intention": asked_rows,
    "preference": last_target_spans,
    "rationale": preceded_spans,
}
RELEVANT = 10  # items of a history that a teacher reads (OneRec-Think's number)
SHARD = 256
SHARD_SCHEMA = SCHEMA.append(pa.field("dropped", pa.string()))

Write = Callable[[list[dict], list[int]], Iterable[str]]


def rows_to_write(
    data: PreparedData, kind: str, max_history: int = 20, max_rows: int | None = None, seed: int = 0
) -> pa.Table:
    """The training rows that get a text: items for queries, users for intentions and preferences, else targets.

    A text is found again by user and item (`key_of`), so rows whose item the user took more than once get none. Rows
    of users have the `time` of their target. `max_rows` gives a random sample of so many. Raises `ValueError`: an
    unknown kind, or items without titles for queries.
    """
    one_of(kind, ROWS, "kind")
    rng = np.random.default_rng(seed)
    rows = ROWS[kind](data, max_history, rng)
    if "middle" in rows.column_names:
        rows = rows.append_column("time", flatten_lists(data.train["timestamps"])[0].take(rows["middle"]))
        again = taken_again(data.train)[rows["middle"].to_numpy() - (kind == "preference")]
        rows = rows.filter(pa.array(~again))
        if again.any():
            logger.warning("%d rows get no %s: their user took the item more than once", again.sum(), kind)
    if max_rows is not None and max_rows < rows.num_rows:
        rows = rows.take(pa.array(np.sort(rng.permutation(rows.num_rows)[:max_rows])))
    return rows


def unnamed_index(items: pa.Table) -> SemIDIndex:
    """Stands for Semantic IDs where there are none yet: one level, a token for every item."""
    count = items.num_rows
    return SemIDIndex(items["item_id"].to_pylist(), np.arange(count)[:, None], [max(count, 1)])


def key_of(kind: str, row: dict) -> tuple[str, str]:
    """`(user_id, item_id)` of a row's text, as `Texts` keeps it."""
    if kind == "query":
        return "", row["about"]
    if kind == "intention":
        return row["user_id"], row["about"]
    return row["user_id"], row["history"][-1] if kind == "preference" else row["targets"][0]


def question(prompt: Prompt, kind: str, catalogue: Catalogue, row: dict) -> str:
    """What the teacher is asked about a row; a preference never shows the item that came next."""
    shown = row["history"]
    item = "" if kind == "preference" else key_of(kind, row)[1]
    if kind == "rationale":
        shown = compose.relevant_history(catalogue, shown, item, RELEVANT)
    items = (
        ", ".join([catalogue.title(other) or "an item without a name", *parts_of(catalogue, other)]) for other in shown
    )
    slots = {"history": "\n".join(f"- {words}" for words in items), "item": caption(catalogue, item) if item else ""}
    return fill(prompt.templates[0].prompt, slots)


def check_question(prompt: Prompt, kind: str) -> None:
    """Raises `ValueError` naming the file of a teacher's prompt and a slot that its questions do not have; a question
    about a preference has no item, which would be the one that came next."""
    known = ("history",) if kind == "preference" else ("history", "item")
    for name in slots_of(prompt.templates[0].prompt):
        one_of(name, known, f"{prompt.where}, a question about a {kind}: slot")


def columns_writer(kind: str, catalogue: Catalogue) -> Write:
    """Texts from the columns of the items: no model."""
    return lambda rows, _: [compose.COMPOSED[kind](catalogue, row) for row in rows]


def teacher_writer(kind: str, catalogue: Catalogue, prompt: Prompt, answer: Callable, seed: int = 0) -> Write:
    """Texts of a teacher model, which `answer` asks (`llmrec.serving.writers.load_writer`); one follows from `seed`
    and the number of its row, whatever stands beside it."""

    def write(rows: list[dict], numbers: list[int]) -> list[str]:
        questions = [question(prompt, kind, catalogue, row) for row in rows]
        order = sorted(range(len(rows)), key=lambda place: len(questions[place]))  # neighbours in length share a batch
        seeds = [zlib.crc32(f"{seed}/{numbers[place]}".encode()) for place in order]
        answers = answer([questions[place] for place in order], prompt.system, seeds)
        texts = [""] * len(rows)
        for place, text in zip(order, answers, strict=True):
            texts[place] = " ".join(text.replace("<think>", " ").replace("</think>", " ").split()).strip('"')
        return texts

    return write


def write_texts(
    folder: str | Path, data: PreparedData, rows: pa.Table, kind: str, catalogue: Catalogue, write: Write
) -> Counter:
    """Writes `folder/texts.parquet` for the rows, going on where an earlier call with the same rows stopped.

    `write` gives (rows, their numbers) → a text for each. Texts that are empty, or that give away the item that their
    prompt asks for (`llmrec.instructions.texts.leaks`), are left out of it. Returns how many were `kept`, dropped as a
    `leak` and dropped as `empty`; not one usable text raises `ValueError`.
    """
    shards, sequences = Path(folder) / "shards", Sequences(data.train)
    with tqdm(total=rows.num_rows, desc=f"{kind} texts") as progress:
        for start in range(0, rows.num_rows, SHARD):
            size = min(SHARD, rows.num_rows - start)
            path = shards / f"{start:010d}.parquet"
            if not path.exists():
                write_parquet(path, _shard(sequences.rows(rows.slice(start, size)), start, kind, catalogue, write))
            progress.update(size)
    every = []
    for path in sorted(shards.glob("*.parquet")):
        with made_again(path):
            every.append(read_parquet(path, SHARD_SCHEMA.names))
    table = pa.concat_tables(every) if every else SHARD_SCHEMA.empty_table()
    counts = Counter(table["dropped"].to_pylist())
    kept, leak, empty = counts[""], counts["leak"], counts["empty"]
    logger.info("%d texts; dropped %d that leak and %d that are empty", kept, leak, empty)
    if not kept:
        raise ValueError(f"no text can be used ({leak} leak, {empty} are empty): see {shards}")
    Texts(table.filter(pc.equal(table["dropped"], ""))).save(folder)
    return Counter(kept=kept, leak=leak, empty=empty)


def _shard(rows: list[dict], start: int, kind: str, catalogue: Catalogue, write: Write) -> pa.Table:
    records = []
    for row, text in zip(rows, write(rows, list(range(start, start + len(rows)))), strict=True):
        user, item = key_of(kind, row)
        dropped = "empty" if not text else "leak" if catalogue.leaks(kind, text, item) else ""
        records.append({"kind": kind, "user_id": user, "item_id": item, "text": text, "dropped": dropped})
    return pa.Table.from_pylist(records, SHARD_SCHEMA)
