"""Semantic IDs that know nothing of an item's features: the baselines that every tokenizer has to beat (P5's RID and
SID: "How to Index Item IDs", 2305.06569; TIGER with random IDs, 2305.05065).

New tokens here; `ItemNumbers` writes such numbers in the LLM's own digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.item_tokenizers.by_item import KeyedByItem, hash_digits
from llmrec.item_tokenizers.protocol import ItemTokenizer, Traits, check_sizes


@dataclass(eq=False)
class RandomIDs(ItemTokenizer):
    """Codes from a hash of the seed and an item's id: the same for a new item as for an old one. They are not unique;
    the collision policy makes them so."""

    name = "random"
    traits = Traits(ordered=False, decodes_to_vector=False, nearest=False, needs=("items",))
    learned = ("seed",)

    codebook_sizes: Sequence[int] = (256, 256, 256)

    def __post_init__(self):
        self.codebook_sizes = check_sizes(self.codebook_sizes)

    def learn(self, features, items, train, seed) -> None:
        self.seed = seed

    def codes_of(self, features: np.ndarray, items: pa.Table | None) -> np.ndarray:
        self.require("items", items)
        return hash_digits(items["item_id"].to_pylist(), self.codebook_sizes, self.seed)


@dataclass(eq=False)
class SequentialIDs(KeyedByItem):
    """Running numbers in the order in which the training sequences show the items, written as digits: what one user
    consumed has near numbers, which share their first digits.

    N items have the numbers below N. There is room for as many again: an item that training never showed gets a number
    from N on, by a hash of its id, so it never meets a fitted item and seldom another new one.

    Args:
        base: codes per digit; the first digit has as many as the numbers need.
    """

    name = "sequential"
    traits = Traits(decodes_to_vector=False, nearest=False, needs=("items", "train"))
    learned = ("codebook_sizes",)

    base: int = 256

    def __post_init__(self):
        if self.base < 2:
            raise ValueError(f"base={self.base} must be at least 2")

    def learn(self, features, items, train: pa.Table, seed) -> None:
        seen = pc.unique(pc.list_flatten(train["item_ids"]))
        if not len(seen):
            raise ValueError("no training sequence holds an item: there is no order to number them in")
        room, sizes = 2 * len(seen), []
        while room > self.base:
            sizes, room = [self.base, *sizes], -(-room // self.base)
        self.codebook_sizes = (room, *sizes)
        self.remember(pa.table({"item_id": seen}), _digits(np.arange(len(seen)), self.codebook_sizes))

    def new_codes(self, features: np.ndarray, items: pa.Table) -> np.ndarray:
        fitted = len(self.remembered.codes)
        room = int(np.prod(self.codebook_sizes, dtype=np.int64)) - fitted
        hashes = hash_digits(items["item_id"].to_pylist(), [room])[:, 0]
        return _digits(fitted + hashes.astype(np.int64), self.codebook_sizes)


def _digits(numbers: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """int32 `[N, L]`: the digits of numbers, the last one of base `sizes[-1]`."""
    return np.stack(np.unravel_index(numbers, sizes), axis=1).astype(np.int32)
