"""What tokenizers share that know items by their ids and put them at the leaves of a tree.

A SemID is the path to a leaf, then the place in it. The place has its own, last level, so that paths may end early
and none is mistaken for the beginning of another.
"""

from collections.abc import Sequence
from hashlib import shake_256
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.item_tokenizers.protocol import Saved, not_fitted, require
from llmrec.item_tokenizers.remembered import Remembered
from llmrec.item_tokenizers.words.text_ids import id_rows, remember_items

Leaf = tuple[tuple[int, ...], np.ndarray]


def leaf_codes(leaves: Sequence[Leaf], count: int) -> np.ndarray:
    """int32 `[count, depth + 1]` from leaves `(path, rows)`: the path, -1 where it is shorter, and the row's place."""
    depth = max(len(path) for path, _ in leaves)
    codes = np.full((count, depth + 1), -1, np.int32)
    for path, rows in leaves:
        codes[rows, : len(path)] = path
        codes[rows, -1] = np.arange(len(rows))
    return codes


def node_numbers(codes: np.ndarray) -> np.ndarray:
    """Codes that number the children of a node, int32 `[N, L]`, as numbers of the nodes among all of their level."""
    numbers = codes.copy()
    for level in range(codes.shape[1]):
        here = codes[:, level] >= 0
        if here.any():
            numbers[here, level] = np.unique(codes[here, : level + 1], axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def hash_digits(item_ids: Sequence[str], sizes: Sequence[int], salt: object = "") -> np.ndarray:
    """int32 `[N, L]`: numbers below `sizes`, evenly spread, that only an item's id and the salt decide."""
    hashes = [shake_256(f"{salt}/{item}".encode()).digest(8 * len(sizes)) for item in item_ids]
    digits = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), len(sizes))
    return (digits % np.array(sizes, np.uint64)).astype(np.int32)


class KeyedByItem(Saved):
    """A tokenizer that remembers the codes of fitted items by their ids, and has a rule for all others:
    `new_codes(items)`, which may look at `codebook_sizes` and what `values` holds."""

    name: str
    level_tokens = None
    codebooks: list[np.ndarray] = []
    codebook_sizes: tuple[int, ...] = ()
    _remembered: Remembered | None = None

    def new_codes(self, items: pa.Table) -> np.ndarray:
        """int32 `[N, L]` for items that were not fitted; no item's depend on the others."""
        raise NotImplementedError

    def remember(self, items: pa.Table, codes: np.ndarray, codebook_sizes: Sequence[int]) -> Self:
        """Ends `fit`: the codes `[N, L]` of the fitted items, and the sizes that hold them and all to come."""
        self._remembered = remember_items(items, codes)
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        return self

    @property
    def num_fitted(self) -> int:
        return len(self._remembered.codes)

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self._remembered is None:
            raise not_fitted()
        require(self, items=items)
        codes, known = self._remembered.recall(id_rows(items))
        if not known.all():
            codes[~known] = self.new_codes(items.filter(pa.array(~known)))
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError(f"item tokenizer {self.name!r} has no vectors, so no distances")

    def values(self) -> dict:
        """What `new_codes` needs besides, plain JSON; the inverse is `restore`."""
        return {}

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._remembered is None:
            raise not_fitted()
        return {"codebook_sizes": list(self.codebook_sizes), **self.values()}, self._remembered.arrays()

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.codebook_sizes = tuple(values["codebook_sizes"])
        self._remembered = Remembered.of(arrays)
