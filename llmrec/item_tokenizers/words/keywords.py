"""Keywords of an item's title, brand and categories as its Semantic ID; deterministic, no model needed.

GRAM (2506.01673) names hierarchical clusters by their TF-IDF keywords. Here the words are the clusters: every item
goes to the group of that word of its own that weighs most, sqrt(n_w) log(n / n_w), among the n items of its group; a
few times over. So the first words are common ones, similar items share them, and a prefix of an ID means something.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.item_tokenizers.words.text_ids import TextIDs


@dataclass(eq=False)
class Keywords(TextIDs):
    """Text IDs of keywords.

    Args:
        columns: the catalogue's columns that words are taken from; absent ones are left out.
        general_words: words that name groups of items, before those that tell the items of a group apart.
        min_words, max_words: shortest and longest ID. Items that `max_words` cannot tell apart collide, as do items
            without any word, whose ID is ` item`.
    """

    name = "keywords"
    learned = ("vocabulary", "groups")

    columns: Sequence[str] = ("title", "brand", "categories")
    general_words: int = 2
    min_words: int = 3
    max_words: int = 8

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.general_words <= self.max_words:
            wrong = f"general_words={self.general_words}"
            raise ValueError(f"{wrong} must lie between 0 and max_words={self.max_words}")
        # The weight of every word that a group was divided by; the group's own words, joined by spaces, name it.
        self.groups: dict[str, dict[str, float]] = {}

    def learn_words(self, words: list[list[str]]) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        self.groups = {}
        paths: list[list[str]] = [[] for _ in words]
        for depth in range(self.general_words):
            members = defaultdict(list)
            for row, path in enumerate(paths):
                if len(path) == depth:
                    members[" ".join(path)].append(row)
            for group, rows in members.items():
                counts = Counter(word for row in rows for word in words[row])
                weights = {
                    word: float(np.sqrt(count) * np.log(len(rows) / count))
                    for word, count in counts.items()
                    if 1 < count < len(rows) and word not in ENGLISH_STOP_WORDS
                }
                chosen = {row: _heaviest(words[row], weights) for row in rows}
                self.groups[group] = {word: weights[word] for word in sorted({*chosen.values()} - {""})}
                for row, word in chosen.items():
                    paths[row] += [word] if word else []

    def propose(self, items: pa.Table, words: list[list[str]]) -> list[list[str]]:
        return [self._path(row) for row in words]

    def _path(self, words: list[str]) -> list[str]:
        path: list[str] = []
        while word := _heaviest(words, self.groups.get(" ".join(path), {})):
            path.append(word)
        return path


def _heaviest(words: list[str], weights: dict[str, float]) -> str:
    """The word of the largest weight, the first in the alphabet where several have it; empty if none has one."""
    return min((word for word in words if word in weights), key=lambda word: (-weights[word], word), default="")
