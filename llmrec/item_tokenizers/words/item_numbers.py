"""Plain numbers as Semantic IDs, ` item4711;`, in the LLM's own tokens: P5's indexing (2305.06569), a baseline.

Random numbers carry no meaning. Numbers in the order of the training sequences do: items that are consumed together
get near numbers, which share their first digits (P5's "sequential indexing", which must not look at test sequences).
"""

from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.item_tokenizers.protocol import Saved, not_fitted, require
from llmrec.item_tokenizers.remembered import Remembered
from llmrec.item_tokenizers.words.text_ids import FALLBACK, TEXT_TRAITS, id_rows, remember_items

ORDERS = ("random", "training")


class ItemNumbers(Saved):
    """Item numbers.

    N fitted items get the numbers below N; a new item a number of its id's hash, from N up to the next power of ten
    above 2N, so that new items seldom collide and never with fitted ones.

    Args:
        order (`str`): `"random"` (P5's RID), or `"training"`: by first occurrence in the training sequences (SID).
    """

    name = "numbers"
    traits = TEXT_TRAITS
    codebooks: list[np.ndarray] = []

    def __init__(self, order: str = "random"):
        if order not in ORDERS:
            raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
        self.order = order
        self._remembered: Remembered | None = None

    @property
    def config(self) -> dict:
        return {"order": self.order}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return () if self._remembered is None else (1, *[10] * (self._remembered.codes.shape[1] - 1))

    @property
    def level_tokens(self) -> list[list[str]]:
        return [[str(digit) for digit in range(10)] if level else [f" {FALLBACK}"] for level in self._levels]

    @property
    def _levels(self) -> range:
        return range(len(self.codebook_sizes))

    def fit(
        self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train: pa.Table | None = None
    ) -> Self:
        require(self, items=items)
        if self.order == "training" and train is None:
            raise ValueError("item tokenizer 'numbers' with order='training' needs train: pass train=... to fit")
        items = items.sort_by("item_id")
        if self.order == "random":
            numbers = np.random.default_rng(seed).permutation(items.num_rows)
        else:
            seen = pc.unique(pc.list_flatten(train["item_ids"])).to_pylist()
            place = {item: number for number, item in enumerate(seen)}
            first = [place.get(item, len(seen)) for item in items["item_id"].to_pylist()]
            numbers = np.argsort(np.argsort(first, kind="stable"))
        self._remembered = remember_items(items, _digits(numbers, len(str(2 * items.num_rows))))
        return self

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self._remembered is None:
            raise not_fitted()
        require(self, items=items)
        rows = id_rows(items)
        codes, known = self._remembered.recall(rows)
        fitted, width = len(self._remembered.codes), codes.shape[1] - 1
        hashes = [int.from_bytes(row.tobytes(), "little") for row in rows[~known]]
        codes[~known] = _digits([fitted + value % (10**width - fitted) for value in hashes], width)
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError("item tokenizer 'numbers' has no vectors, so no distances")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._remembered is None:
            raise not_fitted()
        return {}, self._remembered.arrays()

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self._remembered = Remembered.of(arrays)


def _digits(numbers, width: int) -> np.ndarray:
    """int32 `[N, 1 + width]`: 0 for the leading word, then the decimal digits, -1 after the last."""
    codes = np.full((len(numbers), 1 + width), -1, np.int32)
    codes[:, 0] = 0
    for row, number in enumerate(numbers):
        digits = str(int(number))
        codes[row, 1 : 1 + len(digits)] = [int(digit) for digit in digits]
    return codes
