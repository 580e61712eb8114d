"""Tokenizers that know items by their ids."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b, shake_256

import numpy as np
import pyarrow as pa

from llmrec.arrays import row_digests
from llmrec.item_tokenizers.protocol import ItemTokenizer, Remembered


class KeyedByItem(ItemTokenizer):
    """A tokenizer that remembers the codes of fitted items by their ids, and has a rule for all others: `new_codes`,
    int32 `[N, L]`; no item's depend on the others."""

    def new_codes(self, features: np.ndarray, items: pa.Table) -> np.ndarray:
        raise NotImplementedError

    def remember(self, items: pa.Table, codes: np.ndarray) -> None:
        """The codes `[N, L]` of the fitted items; raises `ValueError` where an id is there twice."""
        twice = [item for item, count in Counter(items["item_id"].to_pylist()).items() if count > 1]
        if twice:
            raise ValueError(f"item id {twice[0]!r} is in the catalogue more than once: leave one of its rows out")
        self.remembered = Remembered(row_digests(id_rows(items)), codes)

    def codes_of(self, features: np.ndarray, items: pa.Table | None) -> np.ndarray:
        self.require("items", items)
        codes, known = self.remembered.recall(id_rows(items))
        if not known.all():
            features = features[~known] if "features" in self.traits.needs else features
            codes[~known] = self.new_codes(features, items.filter(pa.array(~known)))
        return codes

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        if "codebook_sizes" in self.learned:
            self.codebook_sizes = tuple(self.codebook_sizes)


def id_rows(items: pa.Table) -> np.ndarray:
    """uint8 `[N, 16]`: a hash of every item's id, by which `Remembered` can know an item."""
    digests = [blake2b(str(item).encode(), digest_size=16).digest() for item in items["item_id"].to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def id_numbers(items: pa.Table) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in id_rows(items)]


def hash_digits(item_ids: Sequence[str], sizes: Sequence[int], salt: object = "") -> np.ndarray:
    """int32 `[N, L]`: numbers below `sizes`, evenly spread, that only an item's id and the salt decide."""
    hashes = [shake_256(f"{salt}/{item}".encode()).digest(8 * len(sizes)) for item in item_ids]
    digits = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), len(sizes))
    return (digits % np.array(sizes, np.uint64)).astype(np.int32)
