"""`FeaturePart`: what a kind of features is, and what several kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

_ENOUGH = 2**18


class FeaturePart(ABC):
    """A catalogue to a matrix. Its class takes the arguments of the spec and, of those in `PARTS`, `cache_dir`."""

    config: dict  # the constructor's arguments, plain JSON, with every default and every `auto` resolved
    inputs: tuple[Path, ...] = ()  # files and folders beside the catalogue that decide the result
    models: tuple = ()  # `CachedModel`s, which can work on a cluster

    @abstractmethod
    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        """Learns from `rows_in_training` only; raises `ValueError` naming a column that is missing or says nothing."""

    @abstractmethod
    def encode(self, items: pa.Table) -> np.ndarray:
        """float `[N, D]` of any items; a zero row where nothing is known. No row depends on the rows beside it."""

    @abstractmethod
    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """What `fit` learned: plain JSON values, and arrays."""

    @abstractmethod
    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""


class ItemVectors(FeaturePart):
    """Vectors of the items of the training sequences, found again by their ids; others get zeros."""

    item_ids: Sequence[str] = ()
    vectors: np.ndarray = np.empty((0, 0), np.float32)

    @abstractmethod
    def learn(self, items: pa.Table, seen: pa.Table, train: pa.Table, seed: int) -> np.ndarray:
        """`[N, D]` for the N items that are `seen` in training."""

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        if train is None:
            raise ValueError("they need training sequences")
        seen = items.take(rows_in_training(items, train))
        self.item_ids = seen["item_id"].to_pylist()
        self.vectors = self.learn(items, seen, train, seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        places = pc.index_in(items["item_id"].cast(pa.string()), pa.array(self.item_ids, pa.string()))
        vectors = np.zeros((items.num_rows, self.vectors.shape[1]), self.vectors.dtype)
        vectors[places.is_valid().to_numpy()] = self.vectors[places.drop_null().to_numpy()]
        return vectors

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"item_ids": self.item_ids}, {"embeddings": self.vectors}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.item_ids, self.vectors = values["item_ids"], arrays["embeddings"]


def rows_in_training(items: pa.Table, train: pa.Table | None) -> np.ndarray:
    """int64, ascending: the catalogue's rows that occur in training sequences (all, where there are none).

    Whatever is learned about items is learned from these, so cold items stay unseen.
    """
    if train is None:
        return np.arange(items.num_rows)
    seen = pc.is_in(items["item_id"], value_set=pc.unique(pc.list_flatten(train["item_ids"])))
    return np.flatnonzero(seen.to_numpy(zero_copy_only=False))


def some_in_training(items: pa.Table, train: pa.Table | None, seed: int) -> np.ndarray:
    """`rows_in_training`, or of more than 2^18 a seeded sample of so many: enough to learn words and directions."""
    rows = rows_in_training(items, train)
    if len(rows) <= _ENOUGH:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _ENOUGH, replace=False))


def need_column(items: pa.Table, column: str) -> pa.ChunkedArray:
    if column not in items.column_names:
        raise ValueError(f"the catalogue has no column {column!r}; it has {items.column_names}")
    return items[column]


def is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
