"""Embeddings kept by the content that they were made of, in shards that appear whole, whoever writes them.

A shard is a parquet file of `key` (16 hex digits) and `embedding`. In memory is only where keys stand, 16 bytes each,
and what is asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.files import fingerprint, made_again, read_parquet, write_parquet


class EmbeddingCache:
    """The shards that stand in `folder` now, and those that are written; without a folder nothing is kept."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.shards = [] if folder is None else sorted(folder.glob("*.parquet"))
        self._keys, self._shard = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # by key
        self._new = [_numbers(_read(path, "key").to_pylist()) for path in self.shards]

    def read(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The embeddings that are there, by key. Raises `ValueError` naming a shard that is damaged."""
        self._sort()
        asked, wanted, known = set(keys), np.unique(_numbers(keys)), {}
        for number in np.unique(self._shard[np.isin(self._keys, wanted)]):
            path = self.shards[number]
            vectors = _read(path, "embedding")
            rows = vectors.flatten().to_numpy().reshape(len(vectors), -1)
            known |= {key: row for key, row in zip(_read(path, "key").to_pylist(), rows) if key in asked}
        return known

    def write(self, keys: list[str], rows: np.ndarray) -> None:
        """A shard of embeddings float32 `[n, D]`."""
        if self.folder is None:
            return
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        self.shards.append(self.folder / f"{fingerprint(*keys)}.parquet")
        write_parquet(self.shards[-1], pa.table({"key": keys, "embedding": vectors}))
        self._new.append(_numbers(keys))

    def _sort(self) -> None:
        if self._new:
            numbers = np.arange(len(self.shards) - len(self._new), len(self.shards))
            keys = np.concatenate([self._keys, *self._new])
            shard = np.concatenate([self._shard, np.repeat(numbers, list(map(len, self._new)))])
            self._keys, first = np.unique(keys, return_index=True)
            self._shard, self._new = shard[first], []


def _numbers(keys: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(keys)), ">u8").astype(np.uint64)


def _read(path: Path, column: str) -> pa.Array:
    with made_again(path):
        return read_parquet(path, [column])[column].combine_chunks()
