"""Queries, intentions, preferences and rationales: texts that tasks quote, made before and cached.

`Texts` holds what a teacher model or a user's own pipeline wrote (recipes/generate_rationales.py, or any parquet file
with these columns); `llmrec.instructions.compose` writes one from the columns of the items where there is none.

| kind | said of | user_id | item_id |
|---|---|---|---|
| query | an item, as somebody would search it | empty | the item |
| intention | what a user was looking for, first person | the user, or empty | the item they then chose |
| preference | what a user likes, before an item | the user, or empty | the last item of the history |
| rationale | why an item follows a history | the user, or empty | that item |

So a text of a user says nothing of time: where a user takes an item twice, what was written of the later time would be
quoted at the earlier one, before items that it was written of. Such texts are not written, and can be left out.
"""

from collections import defaultdict
from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of
from llmrec.data.rows import flatten_lists
from llmrec.files import read_parquet, write_parquet
from llmrec.instructions.item_words import says

KINDS = ("query", "intention", "preference", "rationale")
SCHEMA = pa.schema([("kind", pa.string()), ("user_id", pa.string()), ("item_id", pa.string()), ("text", pa.string())])
FILE = "texts.parquet"
# These stand in a prompt whose answer is the item: they must not name it.
ASKS_FOR_ITEM = ("query", "intention")


class Texts:
    """Texts by kind, user and item, from a table of strings; several for one key are several ways to say it. Raises
    `ValueError`: a missing column, an unknown kind or an empty text."""

    def __init__(self, table: pa.Table):
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise ValueError(f"texts: column {missing[0]!r} is missing; they need {', '.join(SCHEMA.names)}")
        self.table = table.select(SCHEMA.names).cast(SCHEMA)
        self._texts: dict[tuple, list[str]] = defaultdict(list)
        for number, (kind, user, item, text) in enumerate(zip(*self.table.to_pydict().values())):
            one_of(kind, KINDS, f"texts, row {number + 1}: kind")
            if not text or not text.strip():
                raise ValueError(f"texts, row {number + 1}: an empty text for item {item!r}")
            self._texts[kind, user or "", item].append(" ".join(text.split()))

    def get(self, kind: str, user_id: str, item_id: str) -> list[str]:
        """What was written for this user, else what was written for the item alone."""
        return self._texts.get((kind, user_id, item_id)) or self._texts.get((kind, "", item_id), [])

    def check_leaks(self, known: Container[str], leaks: Callable[[str, str, str], bool]) -> None:
        """Raises `ValueError` naming a text of a known item of which `leaks(kind, text, item)` holds."""
        for (kind, _, item), said in self._texts.items():
            for text in said if kind in ASKS_FOR_ITEM and item in known else ():
                if leaks(kind, text, item):
                    raise ValueError(
                        f"texts: the {kind} {text!r} gives item {item!r} away, which its prompt asks for: leave it "
                        "out or write another one"
                    )

    def without_repeats(self, train: pa.Table) -> "Texts":
        """Those that can be quoted while training: none of a user about an item that they took more than once."""
        again = set(zip(*interactions_of(train).filter(pa.array(taken_again(train))).to_pydict().values()))
        keys = zip(*(self.table[name].to_pylist() for name in ("kind", "user_id", "item_id")))
        kept = [kind == "query" or (user, item) not in again for kind, user, item in keys]
        return Texts(self.table.filter(pa.array(kept, pa.bool_())))

    @classmethod
    def load(cls, path: str | Path) -> "Texts":
        """From a parquet file, or a folder that recipes/generate_rationales.py wrote."""
        path = Path(path)
        return cls(read_parquet(path / FILE if path.is_dir() else path))

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_parquet(Path(folder) / FILE, self.table)


def interactions_of(train: pa.Table) -> pa.Table:
    """`user_id` and `item_id` of every item of the training sequences laid end to end."""
    items, offsets = flatten_lists(train["item_ids"])
    users = train["user_id"].take(pa.array(np.repeat(np.arange(train.num_rows), np.diff(offsets))))
    return pa.table({"user_id": users, "item_id": items})


def taken_again(train: pa.Table) -> np.ndarray:
    """bool, for every item of the training sequences laid end to end: whether its user has it more than once in them,
    which in data that ships as windows may be the same interaction."""
    items, offsets = flatten_lists(train["item_ids"])
    codes = pc.dictionary_encode(items)
    users = train["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    pairs = np.repeat(users, np.diff(offsets)) * max(len(codes.dictionary), 1) + codes.indices.to_numpy()
    _, which, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return counts[which] > 1


def leaks(kind: str, text: str, semid: str, title: str) -> bool:
    """Whether a text gives away the item that its prompt asks for: its Semantic ID, or its whole title.

    A preference is made of the history before the item, a rationale is part of the answer: neither is checked for it.
    """
    return kind in ASKS_FOR_ITEM and (semid in text or says(text, title))
