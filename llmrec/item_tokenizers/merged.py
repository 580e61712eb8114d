"""Merged SemIDs: pieces of frequent code sequences, as subwords are of letters (SPM-SID, RecSys 2024, 2306.08121).

Byte-pair encoding over the SemIDs of any inner tokenizer: popular prefixes become one token, so histories are shorter;
rare SemIDs stay spelled out. The paper hashes the pieces of a SentencePiece unigram model into the embeddings of a
ranking model. Here they are tokens of the LLM, and BPE makes them, because it gives equal pieces for equal input (the
unigram trainer of `tokenizers` does not).
"""

from collections import Counter
from collections.abc import Mapping
from itertools import repeat
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.item_tokenizers.protocol import Saved, Traits, not_fitted, part_of

# Every code of every level is one character of the two private planes of Unicode.
_PLANES = ((0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))
_CHARACTERS = sum(end - start for start, end in _PLANES)


class Merged(Saved):
    """Pieces over another tokenizer's codes; levels share one vocabulary, `<p_0>`, `<p_1>`, ...

    The first pieces are the single codes of all levels, so every item can be written. A piece lies within one item.

    Args:
        inner (`str`): a key of `TOKENIZERS`.
        inner_args (mapping, *optional*): its constructor's arguments.
        vocabulary_size (`int`): number of pieces; fewer where no pair of pieces is left to merge.

    Raises:
        ValueError: an unknown inner tokenizer, or one whose tokens are words.
    """

    name = "merged"
    traits = Traits(fixed_length=False, decodes_to_vector=False, nearest=False)
    codebooks: list[np.ndarray] = []

    def __init__(self, inner: str = "rq_kmeans", inner_args: Mapping | None = None, vocabulary_size: int = 4096):
        from llmrec.item_tokenizers import TOKENIZERS

        if inner not in TOKENIZERS or inner == self.name:
            known = ", ".join(name for name in TOKENIZERS if name != self.name)
            raise ValueError(f"inner item tokenizer {inner!r} is not one of {known}")
        self.inner = TOKENIZERS[inner](**(inner_args or {}))
        if not self.inner.traits.adds_tokens:
            raise ValueError(f"inner item tokenizer {inner!r} writes words, which the LLM's own tokenizer merges")
        self.traits = Merged.traits._replace(ordered=self.inner.traits.ordered, needs=self.inner.traits.needs)
        self.vocabulary_size = vocabulary_size
        self._bpe = None

    @property
    def config(self) -> dict:
        return {"inner": self.inner.name, "inner_args": self.inner.config, "vocabulary_size": self.vocabulary_size}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return () if self._bpe is None else (self._bpe.get_vocab_size(),) * len(self.inner.codebook_sizes)

    @property
    def level_tokens(self) -> list[list[str]]:
        sizes = self.codebook_sizes
        return [[f"<p_{piece}>" for piece in range(sizes[0])]] * len(sizes) if sizes else []

    def fit(
        self, features: np.ndarray, seed: int = 0, items: pa.Table | None = None, train: pa.Table | None = None
    ) -> Self:
        """Fits the inner tokenizer, then merges; an item counts as often as it stands in `train`, where both it and
        `items` are given, and once besides.

        Raises:
            ValueError: whatever the inner tokenizer refuses, or fewer pieces than there are codes.
        """
        from tokenizers import Tokenizer, models, trainers

        self.inner.fit(features, seed=seed, items=items, train=train)
        codes = sum(self.inner.codebook_sizes)
        if not codes < self.vocabulary_size <= _CHARACTERS:
            raise ValueError(
                f"vocabulary_size={self.vocabulary_size} must lie above the {codes} codes of {self.inner.name!r} and "
                f"be at most {_CHARACTERS}"
            )
        counts = np.ones(len(features), np.int64)
        if items is not None and train is not None:
            seen = Counter(pc.list_flatten(train["item_ids"]).to_pylist())
            counts += np.array([seen[item] for item in items["item_id"].to_pylist()], np.int64)
        texts = self._texts(self.inner.encode(features, items))
        self._bpe = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary_size,
            initial_alphabet=list(map(_character, range(codes))),
            show_progress=False,
        )
        self._bpe.train_from_iterator((t for text, n in zip(texts, counts) for t in repeat(text, n)), trainer)
        return self

    def _texts(self, codes: np.ndarray) -> list[str]:
        """A character for every code, one string per item."""
        numbers = codes + np.cumsum([0, *self.inner.codebook_sizes[:-1]])
        return [
            "".join(_character(number) for number, code in zip(row, held) if code >= 0)
            for row, held in zip(numbers.tolist(), codes.tolist())
        ]

    def encode(self, features: np.ndarray, items: pa.Table | None = None) -> np.ndarray:
        if self._bpe is None:
            raise not_fitted()
        inner = self.inner.encode(features, items)
        codes = np.full(inner.shape, -1, np.int32)
        for row, encoding in enumerate(self._bpe.encode_batch(self._texts(inner))):
            codes[row, : len(encoding.ids)] = encoding.ids
        return codes

    def last_level_costs(self, features: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raise ValueError("item tokenizer 'merged' has no vectors, so no distances")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        if self._bpe is None:
            raise not_fitted()
        values, arrays = self.inner.state()
        return {"bpe": self._bpe.to_str(), "inner": values}, {f"inner.{name}": a for name, a in arrays.items()}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        from tokenizers import Tokenizer

        self.inner.restore(values["inner"], part_of(arrays, "inner."))
        self._bpe = Tokenizer.from_str(values["bpe"])


def _character(number: int) -> str:
    first = _PLANES[0][1] - _PLANES[0][0]
    return chr(_PLANES[0][0] + number) if number < first else chr(_PLANES[1][0] + number - first)
