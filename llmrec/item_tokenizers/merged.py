"""Merged SemIDs: pieces of frequent code sequences, as subwords are of letters (SPM-SID, RecSys 2024, 2306.08121).

Byte-pair encoding or a unigram model over the SemIDs of any inner tokenizer: popular prefixes become one token, so
histories are shorter; rare SemIDs stay spelled out. The paper hashes the pieces of a SentencePiece unigram model into
the embeddings of a ranking model; here they are tokens of the LLM. Both are models of `tokenizers`; `unigram.py` says
why that library trains one of them only.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, models, trainers

from llmrec.arguments import construct, one_of
from llmrec.files import part_of
from llmrec.item_tokenizers.protocol import ItemTokenizer, Traits
from llmrec.item_tokenizers.registry import STAND_ALONE
from llmrec.item_tokenizers.unigram import learn_unigram

# Every code of every level is one character of the two private planes of Unicode.
_PLANES = ((0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))
_CHARACTERS = sum(end - start for start, end in _PLANES)
ALGORITHMS = ("bpe", "unigram")


@dataclass(eq=False)
class Merged(ItemTokenizer):
    """Pieces over another tokenizer's codes; levels share one vocabulary, `<p_0>`, `<p_1>`, ...

    The first pieces are the single codes of all levels, so every item can be written. A piece lies within one item.

    Args:
        inner (`str`): a key of `TOKENIZERS` but `merged`.
        inner_args (mapping, *optional*): its constructor's arguments.
        vocabulary_size (`int`): number of pieces; fewer where no more are worth it.
        algorithm (`str`): `"bpe"`, or `"unigram"` as in the paper.

    Raises:
        ValueError: an unknown algorithm or inner tokenizer, or one whose tokens are words.
    """

    name = "merged"
    traits = Traits(fixed_length=False, decodes_to_vector=False, nearest=False)

    inner: str = "rq_kmeans"
    inner_args: Mapping | None = None
    vocabulary_size: int = 4096
    algorithm: str = "bpe"

    def __post_init__(self):
        one_of(self.algorithm, ALGORITHMS, "algorithm")
        kind = STAND_ALONE[one_of(self.inner, STAND_ALONE, "inner item tokenizer")]
        self.inner_tokenizer = construct(kind, self.inner_args or {}, f"inner_args of {self.inner!r}")
        self.inner_args = self.inner_tokenizer.config
        inner = self.inner_tokenizer.traits
        if not inner.adds_tokens:
            raise ValueError(f"inner item tokenizer {self.inner!r} writes words, which the LLM's own tokenizer merges")
        self.traits = Merged.traits._replace(ordered=inner.ordered, needs=inner.needs)
        self._merger: Tokenizer | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        levels = 0 if self._merger is None else len(self.inner_tokenizer.codebook_sizes)
        return (self._merger.get_vocab_size(),) * levels if levels else ()

    @property
    def level_tokens(self) -> list[list[str]]:
        sizes = self.codebook_sizes
        return [[f"<p_{piece}>" for piece in range(sizes[0])]] * len(sizes) if sizes else []

    def learn(self, features: np.ndarray, items: pa.Table | None, train: pa.Table | None, seed: int) -> None:
        """Fits the inner tokenizer, then merges; an item counts as often as it stands in `train`, where both it and
        `items` are given, and once besides.

        Raises:
            ValueError: whatever the inner tokenizer refuses, or fewer pieces than there are codes.
        """
        self.inner_tokenizer.fit(features, items, train, seed)
        codes = sum(self.inner_tokenizer.codebook_sizes)
        if not codes < self.vocabulary_size <= _CHARACTERS:
            raise ValueError(
                f"vocabulary_size={self.vocabulary_size} must lie above the {codes} codes of {self.inner!r} and "
                f"be at most {_CHARACTERS}"
            )
        counts = np.ones(len(features), np.int64)
        if items is not None and train is not None:
            seen = Counter(pc.list_flatten(train["item_ids"]).to_pylist())
            counts += np.array([seen[item] for item in items["item_id"].to_pylist()], np.int64)
        weighted: Counter[str] = Counter()
        for text, count in zip(self._texts(self.inner_tokenizer.encode(features, items)), counts.tolist()):
            weighted[text] += count
        learn = _bpe if self.algorithm == "bpe" else _unigram
        self._merger = learn(weighted, list(map(_character, range(codes))), self.vocabulary_size)

    def _texts(self, codes: np.ndarray) -> list[str]:
        """A character for every code, one string per item."""
        numbers = codes + np.cumsum([0, *self.inner_tokenizer.codebook_sizes[:-1]])
        return [
            "".join(_character(number) for number, code in zip(row, of_item) if code >= 0)
            for row, of_item in zip(numbers.tolist(), codes.tolist())
        ]

    def codes_of(self, features: np.ndarray, items: pa.Table | None) -> np.ndarray:
        inner = self.inner_tokenizer.encode(features, items)
        codes = np.full(inner.shape, -1, np.int32)
        for row, encoding in enumerate(self._merger.encode_batch(self._texts(inner))):
            codes[row, : len(encoding.ids)] = encoding.ids
        return codes

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        self.check_fitted()
        values, arrays = self.inner_tokenizer.state()
        return {"merger": self._merger.to_str(), "inner": values}, {f"inner.{name}": a for name, a in arrays.items()}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.inner_tokenizer.restore(values["inner"], part_of(arrays, "inner."))
        self._merger = Tokenizer.from_str(values["merger"])
        self.fitted = True


def _bpe(counts: Mapping[str, int], alphabet: list[str], size: int):
    merger = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    merger.train_from_iterator((text for text, count in counts.items() for text in repeat(text, count)), trainer)
    return merger


def _unigram(counts: Mapping[str, int], alphabet: list[str], size: int):
    pieces = learn_unigram(counts, alphabet, size)
    # `tokenizers` reads long decimals back with an error in the last digit: a loaded model would be another one.
    return Tokenizer(models.Unigram([(piece, round(score, 6)) for piece, score in pieces.items()]))


def _character(number: int) -> str:
    first = _PLANES[0][1] - _PLANES[0][0]
    return chr(_PLANES[0][0] + number) if number < first else chr(_PLANES[1][0] + number - first)
