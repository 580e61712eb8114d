"""Semantic IDs that know nothing of an item's features: the baselines that every tokenizer has to beat (P5's RID and
SID: "How to Index Item IDs", 2305.06569; TIGER with random IDs, 2305.05065).

New tokens here; `ItemNumbers` writes such numbers in the LLM's own digits.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.item_tokenizers.protocol import Saved, Traits, check_sizes, not_fitted, require
from llmrec.item_tokenizers.trees.base import KeyedByItem, hash_digits


class RandomIDs(Saved):
    """Codes from a hash of the seed and an item's id: the same for a new item as for an old one. They are not unique;
    the collision policy makes them so.

    Args:
        codebook_sizes (sequence of `int`): codes per level.
    """

    name = "random"
    traits = Traits(ordered=False, decodes_to_vector=False, nearest=False, needs=("items",))
    level_tokens = None
    codebooks: list[np.ndarray] = []

    def __init__(self, codebook_sizes: Sequence[int] = (256, 256, 256)):
        self.codebook_sizes = check_sizes(codebook_sizes)
        self.seed: int | None = None

    @property
    def config(self) -> dict:
        return {"codebook_sizes": list(self.codebook_sizes)}

    def fit(self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train=None) -> Self:
        require(self, items=items)
        self.seed = seed
        return self

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self.seed is None:
            raise not_fitted()
        require(self, items=items)
        return hash_digits(items["item_id"].to_pylist(), self.codebook_sizes, self.seed)

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError("item tokenizer 'random' has no vectors, so no distances")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self.seed is None:
            raise not_fitted()
        return {"seed": self.seed}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.seed = values["seed"]


class SequentialIDs(KeyedByItem):
    """Running numbers in the order in which the training sequences show the items, written as digits: what one user
    consumed has near numbers, which share their first digits.

    N items have the numbers below N. There is room for as many again: an item that training never showed gets a number
    from N on, by a hash of its id, so it never meets a fitted item and seldom another new one.

    Args:
        base (`int`): codes per digit; the first digit has as many as the numbers need.
    """

    name = "sequential"
    traits = Traits(decodes_to_vector=False, nearest=False, needs=("items", "train"))

    def __init__(self, base: int = 256):
        if base < 2:
            raise ValueError(f"base={base} must be at least 2")
        self.base = base

    @property
    def config(self) -> dict:
        return {"base": self.base}

    def fit(
        self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train: pa.Table | None = None
    ) -> Self:
        require(self, items=items, train=train)
        seen = pc.unique(pc.list_flatten(train["item_ids"]))
        if not len(seen):
            raise ValueError("no training sequence holds an item: there is no order to number them in")
        room, sizes = 2 * len(seen), []
        while room > self.base:
            sizes, room = [self.base, *sizes], -(-room // self.base)
        sizes = [room, *sizes]
        return self.remember(pa.table({"item_id": seen}), _digits(np.arange(len(seen)), sizes), sizes)

    def new_codes(self, items: pa.Table) -> np.ndarray:
        room = int(np.prod(self.codebook_sizes, dtype=np.int64)) - self.num_fitted
        hashes = hash_digits(items["item_id"].to_pylist(), [room])[:, 0]
        return _digits(self.num_fitted + hashes.astype(np.int64), self.codebook_sizes)


def _digits(numbers: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """int32 `[N, L]`: the digits of numbers, the last one of base `sizes[-1]`."""
    return np.stack(np.unravel_index(numbers, sizes), axis=1).astype(np.int32)
