"""Plain numbers as Semantic IDs, ` item4711;`, in the LLM's own tokens: P5's indexing (2305.06569), a baseline.

Random numbers carry no meaning. Numbers in the order of the training sequences do: items that are consumed together
get near numbers, which share their first digits (P5's "sequential indexing", which must not look at test sequences).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.arguments import one_of
from llmrec.item_tokenizers.by_item import KeyedByItem, id_numbers
from llmrec.item_tokenizers.words.text_ids import FALLBACK, TEXT_TRAITS


@dataclass(eq=False)
class ItemNumbers(KeyedByItem):
    """Item numbers.

    N fitted items get the numbers below N; a new item a number of its id's hash, from N up to the next power of ten
    above 2N, so that new items seldom collide and never with fitted ones.

    Args:
        order: `"random"` (P5's RID), or `"training"`: by first occurrence in the training sequences (SID).
    """

    name = "numbers"
    traits = TEXT_TRAITS

    order: str = "random"

    def __post_init__(self):
        one_of(self.order, ("random", "training"), "order")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (1, *[10] * (self.remembered.codes.shape[1] - 1)) if self.fitted else ()

    @property
    def level_tokens(self) -> list[list[str]]:
        digits = [str(digit) for digit in range(10)]
        return [digits if level else [f" {FALLBACK}"] for level in range(len(self.codebook_sizes))]

    def learn(self, features, items: pa.Table, train: pa.Table | None, seed: int) -> None:
        items = items.sort_by("item_id")
        if self.order == "random":
            numbers = np.random.default_rng(seed).permutation(items.num_rows)
        else:
            self.require("train", train)
            seen = pc.unique(pc.list_flatten(train["item_ids"])).to_pylist()
            place = {item: number for number, item in enumerate(seen)}
            first = [place.get(item, len(seen)) for item in items["item_id"].to_pylist()]
            numbers = np.argsort(np.argsort(first, kind="stable"))
        self.remember(items, _digits(numbers, len(str(2 * items.num_rows))))

    def new_codes(self, features, items: pa.Table) -> np.ndarray:
        fitted, width = len(self.remembered.codes), self.remembered.codes.shape[1] - 1
        return _digits([fitted + number % (10**width - fitted) for number in id_numbers(items)], width)


def _digits(numbers: Sequence[int], width: int) -> np.ndarray:
    """int32 `[N, 1 + width]`: 0 for the leading word, then the decimal digits, -1 after the last."""
    digits = [list(map(int, str(int(number)))) for number in numbers]
    return np.array([[0, *each, *[-1] * (width - len(each))] for each in digits], np.int32).reshape(-1, 1 + width)
