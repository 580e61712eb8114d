"""Semantic IDs in words that the LLM knows, such as ` nail opi crackle;`: no new tokens, nothing to warm up.

IDGenRec (2403.19021) lets a T5 write tags until every item has a different ID, and trains it in turn with the
recommender; GRAM (2506.01673) takes TF-IDF keywords of hierarchical clusters. Here both ways of proposing words
(`keywords.py`, `tags.py`) share one uniqueness loop and nothing is trained in turn.

A word begins with a space, holds letters, digits and the marks on them only and is no bare number (those tell
colliding items apart), so byte-level BPE (GPT-2, Qwen, Llama 3) cuts an ID into the same tokens wherever it stands.
"""

import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.arrays import row_digests
from llmrec.item_tokenizers.protocol import Saved, Traits, not_fitted, require
from llmrec.item_tokenizers.remembered import Remembered

# The ID of an item without a word that the tokenizer knows.
FALLBACK = "item"
TEXT_TRAITS = Traits(fixed_length=False, adds_tokens=False, decodes_to_vector=False, nearest=False, needs=("items",))


def words_of(text: str) -> list[str]:
    """The distinct words of a text in their order: two or more lower-case letters, digits and marks (vowel signs of
    Hindi and Thai, accents that have no letter of their own), no bare numbers."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    found = ["".join(characters) for inside, characters in groupby(text, _of_a_word) if inside]
    return [word for word in dict.fromkeys(map(_without_stray_marks, found)) if len(word) > 1 and not _is_number(word)]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _of_a_word(character: str) -> bool:
    return character.isalnum() or _is_mark(character)


def _without_stray_marks(word: str) -> str:
    """Marks that follow no letter or digit belong to what stood before, such as an emoji."""
    return word[next((place for place, c in enumerate(word) if not _is_mark(c)), len(word)) :]


def _is_number(word: str) -> bool:
    return "".join(c for c in word if not _is_mark(c)).isnumeric()


def text_of(items: pa.Table, columns: Sequence[str]) -> list[str]:
    """The values of the columns that are there, one text per item; raises `ValueError` where none is."""
    present = [column for column in columns if column in items.column_names]
    if not present:
        raise ValueError(f"the catalogue has none of the text columns {list(columns)}; it has {items.column_names}")
    return [" ".join(str(v) for v in row.values() if v is not None) for row in items.select(present).to_pylist()]


def id_rows(items: pa.Table) -> np.ndarray:
    """uint8 `[N, 16]`: a hash of every item's id, by which `Remembered` can know an item."""
    digests = [blake2b(str(item).encode(), digest_size=16).digest() for item in items["item_id"].to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def remember_items(items: pa.Table, codes: np.ndarray) -> Remembered:
    """Codes `[N, L]` by item id; raises `ValueError` where an id is there twice."""
    twice = next((item for item, count in Counter(items["item_id"].to_pylist()).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"item id {twice!r} is in the catalogue more than once: leave one of its rows out")
    return Remembered(row_digests(id_rows(items)), codes)


def unique_words(wish: Sequence[int], taken: Container[tuple], least: int, most: int) -> tuple[int, ...]:
    """The fewest first words of `wish`, between `least` and `most`, that are not taken; then the last of `most` words
    gives way to those after it. Where nothing helps, the ID is one of those taken: the collision policy's case."""
    for count in range(least, min(most, len(wish)) + 1):
        if (chosen := tuple(wish[:count])) not in taken:
            return chosen
    for word in wish[most:]:
        if (chosen := (*wish[: most - 1], word)) not in taken:
            return chosen
    return tuple(wish[:most])


class TextIDs(Saved):
    """What `Keywords` and `Tags` share. They say which words an item would like to be called by: `learn(words)` and
    `propose(items, words)`; the words of its text that are left follow them.

    An ID is the first `min_words` of these, more where that is taken. Items are served in the order of their ids, the
    fitted ones keep theirs, and a new item gets words of the fitted vocabulary and no ID of a fitted item if it can.
    """

    name: str
    traits = TEXT_TRAITS
    codebooks: list[np.ndarray] = []

    def __init__(self, columns: Sequence[str], min_words: int, max_words: int):
        if not 1 <= min_words <= max_words:
            raise ValueError(f"min_words={min_words} and max_words={max_words}: write 1 <= min_words <= max_words")
        self.columns, self.min_words, self.max_words = list(columns), min_words, max_words
        self.vocabulary: list[str] = []
        self.order = np.empty(0)
        self._number: dict[str, int] = {}
        self._remembered: Remembered | None = None
        self._taken: set[tuple] = set()

    def learn(self, words: list[list[str]]) -> None:
        """Looks at the words of all fitted items before anything is proposed."""

    def propose(self, items: pa.Table, words: list[list[str]]) -> list[list[str]]:
        """For every item the words that should come first, the general ones before the particular ones."""
        raise NotImplementedError

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (len(self.vocabulary),) * self.max_words if self.vocabulary else ()

    @property
    def level_tokens(self) -> list[list[str]]:
        return [[f" {word}" for word in self.vocabulary]] * len(self.codebook_sizes)

    def fit(self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train=None) -> Self:
        require(self, items=items)
        if not items.num_rows:
            raise ValueError(f"item tokenizer {self.name!r} needs at least one item to fit")
        items = items.sort_by("item_id")
        words = list(map(words_of, text_of(items, self.columns)))
        self.learn(words)
        proposed = self.propose(items, words)
        counts = Counter(word for pair in zip(proposed, words) for word in {*pair[0], *pair[1]})
        counts[FALLBACK] += 1
        self.vocabulary = [FALLBACK, *sorted(counts.keys() - {FALLBACK})]
        # A word of one item says nothing about others: it comes after those that some items share, and before those
        # that very many do, which would not tell the item apart.
        count = np.array([counts[word] for word in self.vocabulary], np.float64)
        self.order = np.where(count > 1, count, items.num_rows**0.5)
        self._number = {word: number for number, word in enumerate(self.vocabulary)}
        taken: set[tuple] = set()
        codes = np.full((items.num_rows, self.max_words), -1, np.int32)
        for row, wish in enumerate(map(self._wish, proposed, words)):
            chosen = unique_words(wish, taken, self.min_words, self.max_words)
            taken.add(chosen)
            codes[row, : len(chosen)] = chosen
        self._adopt(remember_items(items, codes))
        return self

    def _wish(self, proposed: list[str], words: list[str]) -> list[int]:
        def key(word: str) -> tuple:
            return self.order[self._number[word]], word

        known = [word for word in proposed if word in self._number]
        rest = sorted({word for word in words if word in self._number} - {*known}, key=key)
        return [self._number[word] for word in [*known, *rest]] or [0]

    def _adopt(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._taken = {tuple(row[row >= 0].tolist()) for row in remembered.codes}

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self._remembered is None:
            raise not_fitted()
        require(self, items=items)
        codes, known = self._remembered.recall(id_rows(items))
        new = items.filter(pa.array(~known))
        words = list(map(words_of, text_of(new, self.columns)))
        for row, wish in zip(np.flatnonzero(~known), map(self._wish, self.propose(new, words), words)):
            chosen = unique_words(wish, self._taken, self.min_words, self.max_words)
            codes[row, : len(chosen)] = chosen
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError(f"item tokenizer {self.name!r} has no vectors, so no distances")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._remembered is None:
            raise not_fitted()
        return {"vocabulary": self.vocabulary}, {"order": self.order, **self._remembered.arrays()}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.vocabulary, self.order = values["vocabulary"], arrays["order"]
        self._number = {word: number for number, word in enumerate(self.vocabulary)}
        self._adopt(Remembered.of(arrays))
