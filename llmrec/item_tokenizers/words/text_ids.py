"""Semantic IDs in words that the LLM knows, such as ` nail opi crackle;`: no new tokens, nothing to warm up.

GRAM (2506.01673) takes TF-IDF keywords of hierarchical clusters; IDGenRec (2403.19021) lets a T5 write tags until
every item has a different ID. Here both ways of proposing words (`keywords.py`, `tags.py`) share one uniqueness loop;
`idgenrec.py` is IDGenRec with its training.

A word begins with a space, holds letters, digits and the marks on them only and is no bare number (those tell
colliding items apart), so byte-level BPE (GPT-2, Qwen, Llama 3) cuts an ID into the same tokens wherever it stands.
"""

import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from itertools import dropwhile, filterfalse, groupby

import numpy as np
import pyarrow as pa

from llmrec.item_tokenizers.by_item import KeyedByItem
from llmrec.item_tokenizers.protocol import Traits

# The ID of an item without a word that the tokenizer knows.
FALLBACK = "item"
TEXT_TRAITS = Traits(fixed_length=False, adds_tokens=False, decodes_to_vector=False, nearest=False, needs=("items",))


def words_of(text: str) -> list[str]:
    """The distinct words of a text in their order: two or more lower-case letters, digits and marks (vowel signs of
    Hindi and Thai, accents that have no letter of their own), no bare numbers."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    runs = ("".join(run) for inside, run in groupby(text, lambda c: c.isalnum() or _is_mark(c)) if inside)
    # Marks that follow no letter or digit belong to what stood before, such as an emoji.
    words = dict.fromkeys("".join(dropwhile(_is_mark, run)) for run in runs)
    return [word for word in words if len(word) > 1 and not "".join(filterfalse(_is_mark, word)).isnumeric()]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def text_of(items: pa.Table, columns: Sequence[str]) -> list[str]:
    """The values of the columns that are there, one text per item; raises `ValueError` where none is."""
    present = [column for column in columns if column in items.column_names]
    if not present:
        raise ValueError(f"the catalogue has none of the text columns {list(columns)}; it has {items.column_names}")
    return [" ".join(str(v) for v in row.values() if v is not None) for row in items.select(present).to_pylist()]


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


class TextIDs(KeyedByItem):
    """What `Keywords` and `Tags` share. They say which words an item would like to be called by, the general ones
    before the particular ones: `learn_words(words)` and `propose(items, words)`; the words of its text that are left
    follow them.

    An ID is the first `min_words` of these, more where that is taken. Items are served in the order of their ids, the
    fitted ones keep theirs, and a new item gets words of the fitted vocabulary and no ID of a fitted item if it can.
    """

    traits = TEXT_TRAITS
    learned = ("vocabulary",)
    vocabulary: Sequence[str] = ()
    columns: Sequence[str]
    min_words: int
    max_words: int

    def __post_init__(self):
        if not 1 <= self.min_words <= self.max_words:
            wrong = f"min_words={self.min_words} and max_words={self.max_words}"
            raise ValueError(f"{wrong}: write 1 <= min_words <= max_words")
        self.columns = list(self.columns)

    def learn_words(self, words: list[list[str]]) -> None:
        """Looks at the words of all fitted items before anything is proposed."""

    def propose(self, items: pa.Table, words: list[list[str]]) -> list[list[str]]:
        raise NotImplementedError

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (len(self.vocabulary),) * self.max_words if self.vocabulary else ()

    @property
    def level_tokens(self) -> list[list[str]]:
        return [[f" {word}" for word in self.vocabulary]] * len(self.codebook_sizes)

    def learn(self, features, items: pa.Table, train, seed) -> None:
        if not items.num_rows:
            raise ValueError(f"item tokenizer {self.name!r} needs at least one item to fit")
        items = items.sort_by("item_id")
        words = list(map(words_of, text_of(items, self.columns)))
        self.learn_words(words)
        proposed = self.propose(items, words)
        counts = Counter(word for pair in zip(proposed, words) for word in {*pair[0], *pair[1]})
        counts[FALLBACK] += 1
        vocabulary = [FALLBACK, *sorted(counts.keys() - {FALLBACK})]
        # A word of one item says nothing about others: it comes after those that some items share, and before those
        # that very many do, which would not tell the item apart.
        count = np.array([counts[word] for word in vocabulary], np.float64)
        self._set(vocabulary, np.where(count > 1, count, items.num_rows**0.5))
        self.remember(items, self._codes(proposed, words, set(), learning=True))

    def _set(self, vocabulary: list[str], order: np.ndarray) -> None:
        self.vocabulary, self.order = vocabulary, order
        self._number = {word: number for number, word in enumerate(vocabulary)}

    def _wish(self, proposed: list[str], words: list[str]) -> list[int]:
        known = [word for word in proposed if word in self._number]
        rest = {word for word in words if word in self._number} - {*known}
        rest = sorted(rest, key=lambda word: (self.order[self._number[word]], word))
        return [self._number[word] for word in [*known, *rest]] or [0]

    def _codes(self, proposed, words, taken: set[tuple], learning: bool = False) -> np.ndarray:
        """int32 `[N, max_words]`: an ID for every item; when learning, those before it are taken."""
        codes = np.full((len(words), self.max_words), -1, np.int32)
        for row, wish in enumerate(map(self._wish, proposed, words)):
            chosen = unique_words(wish, taken, self.min_words, self.max_words)
            if learning:
                taken.add(chosen)
            codes[row, : len(chosen)] = chosen
        return codes

    def new_codes(self, features, items: pa.Table) -> np.ndarray:
        words = list(map(words_of, text_of(items, self.columns)))
        return self._codes(self.propose(items, words), words, self.remembered.semids)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values, arrays | {"order": self.order}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._set(values["vocabulary"], arrays["order"])
