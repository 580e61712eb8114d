"""The scores of the alignment report that need no model."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec.evaluation.bootstrap import confidence_intervals
from llmrec.instructions.item_words import price_text

_PRICE = re.compile(r"\$\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")


def token_f1(text: str, reference: str) -> float:
    """F1 over the words of both as bags, whatever the case and punctuation (as SQuAD, arXiv 1606.05250, has it)."""
    words, wanted = (Counter(_WORD.findall(one.lower())) for one in (text, reference))
    common = sum((words & wanted).values())
    return 2 * common / (sum(words.values()) + sum(wanted.values())) if common else 0.0


def same_words(text: str, reference: str) -> bool:
    """Whether a text is the reference, whatever the case and white space."""
    return text.lower().split() == reference.lower().split()


def common_prefixes(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool [levels]: whether a Semantic ID agrees with a wanted one up to each level.

    Args:
        codes: int [levels], -1 where a level holds no code.
        wanted: int [n, levels], the Semantic IDs of one item; the longest common prefix counts.
    """
    agree = np.cumprod(codes == wanted, axis=1)
    return agree[agree.sum(1).argmax()].astype(bool)


def precision(items: Sequence[int], satisfying: Sequence[int], k: int = 10) -> float:
    """Share of the first k places that hold an item of `satisfying`; an empty place holds none."""
    return len(set(items[:k]) & set(satisfying)) / k


class Attributes:
    """The brands, categories and prices of a catalogue, and which of them a text names.

    Brands and categories (of every width) are found as whole words in their own case, the longest first: in "Acme
    Kids Bikes" the category "Kids Bikes" is named and the category "Bikes" is not. Every price ($12.50) in a text
    counts, known or not.

    Args:
        items (`pa.Table`): `item_id`, and any of `brand`, `categories` (`"A > B | C"`) and `price`.
    """

    def __init__(self, items: pa.Table):
        brands, categories, prices = (
            items[name].to_pylist() if name in items.column_names else [None] * items.num_rows
            for name in ("brand", "categories", "price")
        )
        self.own: dict[str, set[str]] = {}
        self.names: set[str] = set()
        for item, brand, paths, price in zip(items["item_id"].to_pylist(), brands, categories, prices):
            names = {_plain(name) for name in (str(brand or ""), *re.split(r" > | \| ", paths or ""))} - {""}
            self.names |= names
            self.own[item] = names | ({price_text(price)} - {""})
        self._longest = max(map(len, self.names), default=0)

    def named(self, text: str) -> set[str]:
        """What a text names."""
        text = " ".join(text.split())
        found = set(_PRICE.findall(text))
        starts = [match.start() for match in re.finditer(r"(?<!\w)\w", text)]
        ends = [match.end() for match in re.finditer(r"\w(?!\w)", text)]
        passed = 0
        for start in starts:
            if start < passed:
                continue
            for end in reversed([end for end in ends if start < end <= start + self._longest]):
                if text[start:end] in self.names:
                    found.add(text[start:end])
                    passed = end
                    break
        return found

    def faithfulness(self, text: str, item: str) -> float:
        """Share of what a text names that is the item's own; nan where it names nothing."""
        named = self.named(text)
        return len(named & self.own[item]) / len(named) if named else float("nan")


def _plain(name: str) -> str:
    """A name as it can stand between word boundaries: no white space or punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", " ".join(name.split()))


def with_interval(values: Mapping[str, Sequence[float]], bootstrap: int, seed: int) -> dict:
    """`{"rows", "figures", "ci"}`: means over rows and their 95 % bootstrap intervals (none without resamples)."""
    matrix = np.stack([np.asarray(column, np.float64) for column in values.values()], 1)
    figures = dict(zip(values, matrix.mean(0).tolist()))
    if not bootstrap:
        return {"rows": len(matrix), "figures": figures, "ci": {}}
    low, high = confidence_intervals(matrix, bootstrap, seed)
    intervals = {name: [float(a), float(b)] for name, a, b in zip(values, low, high)}
    return {"rows": len(matrix), "figures": figures, "ci": intervals}
