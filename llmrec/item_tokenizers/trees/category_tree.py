"""The catalogue's category path as a Semantic ID, then a number within the category: P5's semantic indexing
(2305.06569). No features and no training, only the column `categories` (`A > B > C`; of several paths, separated by
` | `, the first).

A code stands for a category's name at its level, so `Brushes` under two parents is one token, and a path that repeats
a name (`A > B > A`) is as good as any: its two `A` are different tokens. Items without a category share a branch.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

import numpy as np
import pyarrow as pa

from llmrec.features.parts.part import is_text, need_column
from llmrec.item_tokenizers.by_item import KeyedByItem, hash_digits
from llmrec.item_tokenizers.protocol import Traits

Path = tuple[str, ...]


@dataclass(eq=False)
class CategoryTree(KeyedByItem):
    """Category path and place.

    Fitted items have the places 1, 2, ... of their category, in the order of their ids. Beyond the places of the
    largest category there are as many again, at least 32: a later item gets one of these, by a hash of its id, so it
    never meets a fitted item and seldom another new one. Where its path leaves the known ones, the code 0 stands for
    the rest of it.
    """

    name = "category_tree"
    traits = Traits(fixed_length=False, decodes_to_vector=False, nearest=False, needs=("items",))
    learned = ("codebook_sizes",)

    def learn(self, features, items: pa.Table, train, seed) -> None:
        if not items.num_rows:
            raise ValueError("item tokenizer 'category_tree' needs at least one item to fit")
        items = items.sort_by("item_id")
        paths = category_paths(items)
        self._learn_paths(set(paths))
        members: defaultdict[Path, count] = defaultdict(lambda: count(1))
        places = [next(members[path]) for path in paths]
        sizes = [1 + len(numbers) for numbers in self._numbers]
        self.codebook_sizes = (*sizes, 1 + max(places) + max(32, *places))
        self.remember(items, self._codes(paths, places))

    def _learn_paths(self, paths: set[Path]) -> None:
        self._known = {path[:length] for path in paths for length in range(len(path) + 1)}
        names = [sorted({path[level] for path in paths if len(path) > level}) for level in range(max(map(len, paths)))]
        self._numbers = [{name: number for number, name in enumerate(level, start=1)} for level in names]

    def _codes(self, paths: list[Path], places) -> np.ndarray:
        codes = np.full((len(paths), len(self._numbers) + 1), -1, np.int32)
        for row, path in enumerate(paths):
            length = next(length for length in range(len(path), -1, -1) if path[:length] in self._known)
            codes[row, :length] = [numbers[name] for numbers, name in zip(self._numbers, path[:length])]
            if length < min(len(path), len(self._numbers)):
                codes[row, length] = 0  # a category that the fitted items do not have
        codes[:, -1] = places
        return codes

    def new_codes(self, features: np.ndarray, items: pa.Table) -> np.ndarray:
        first = 1 + int(self.remembered.codes[:, -1].max())
        hashes = hash_digits(items["item_id"].to_pylist(), [self.codebook_sizes[-1] - first])[:, 0]
        return self._codes(category_paths(items), first + hashes)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values | {"paths": sorted(self._known)}, arrays

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._learn_paths({tuple(path) for path in values["paths"]})


def category_paths(items: pa.Table) -> list[Path]:
    """The first category path of every item; `("",)` where it has none. Raises `ValueError` where they are no text."""
    column = need_column(items, "categories")
    if not is_text(column.type) and not pa.types.is_null(column.type):
        raise ValueError(
            f"column 'categories' holds {column.type}, not text: join the names of a path with ' > ' (and several "
            "paths with ' | ')"
        )
    texts = [text or "" for text in column.to_pylist()]
    paths = [tuple(filter(None, map(str.strip, text.split(" | ")[0].split(" > ")))) for text in texts]
    return [path or ("",) for path in paths]
