"""Merged SemIDs: pieces of frequent code sequences, as subwords are of letters (SPM-SID, RecSys 2024, 2306.08121).

Byte-pair encoding or a unigram model over the SemIDs of any inner tokenizer: popular prefixes become one token, so
histories are shorter; rare SemIDs stay spelled out. The paper hashes the pieces of a SentencePiece unigram model into
the embeddings of a ranking model; here they are tokens of the LLM.

Both are models of `tokenizers`, whose trainer of unigram models (Kudo, ACL 2018, 1804.10959) reads its strings in a
random order, so that equal input gives other pieces. Hence `learn_unigram`: SemIDs are a few characters long, so every
substring is a column of numbers, and all strings are worked on at once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, models, trainers

from llmrec.arguments import construct, one_of
from llmrec.files import part_of
from llmrec.item_tokenizers.protocol import ItemTokenizer, Traits
from llmrec.item_tokenizers.registry import STAND_ALONE

# Every code of every level is one character of the two private planes of Unicode.
_PLANES = ((0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))
_CHARACTERS = sum(end - start for start, end in _PLANES)
ALGORITHMS = ("bpe", "unigram")
_LONGEST = 8  # characters of a piece

Spans = dict[tuple[int, int], np.ndarray]


@dataclass(eq=False)
class Merged(ItemTokenizer):
    """Pieces over another tokenizer's codes; levels share one vocabulary, `<p_0>`, `<p_1>`, ...

    The first pieces are the single codes of all levels, so every item can be written. A piece lies within one item.

    Args:
        inner, inner_args: a key of `TOKENIZERS` but `merged`, whose tokens are no words, and its arguments.
        vocabulary_size: number of pieces; fewer where no more are worth it.
        algorithm: `"bpe"`, or `"unigram"` as in the paper.
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
        `items` are given, and once besides. Raises `ValueError` also for fewer pieces than there are codes."""
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
        alphabet = list(map(_character, range(codes)))
        if self.algorithm == "bpe":
            trainer = trainers.BpeTrainer(
                vocab_size=self.vocabulary_size, initial_alphabet=alphabet, show_progress=False
            )
            self._merger = Tokenizer(models.BPE())
            self._merger.train_from_iterator(weighted.elements(), trainer)
        else:
            pieces = learn_unigram(weighted, alphabet, self.vocabulary_size)
            # `tokenizers` reads long decimals back with an error in the last digit: a loaded model would be another.
            self._merger = Tokenizer(models.Unigram([(piece, round(score, 6)) for piece, score in pieces.items()]))

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


def _character(number: int) -> str:
    first = _PLANES[0][1] - _PLANES[0][0]
    return chr(_PLANES[0][0] + number) if number < first else chr(_PLANES[1][0] + number - first)


def learn_unigram(counts: Mapping[str, int], alphabet: Sequence[str], size: int) -> dict[str, float]:
    """Pieces and their log-probabilities.

    Args:
        counts: how often a string occurs. alphabet: single characters; all of them are pieces.
        size: pieces at most, not below the alphabet's.
    """
    texts = sorted(counts)
    weights = np.array([counts[text] for text in texts], np.float64)
    number = {character: place for place, character in enumerate(alphabet)}
    spans = spans_of(texts, number)
    pieces = list(number)
    single = np.arange(len(pieces)) < len(alphabet)
    frequency = np.zeros(len(pieces))
    for ids in spans.values():
        np.add.at(frequency, ids[ids >= 0], weights[ids >= 0])
    frequency[~single & (frequency < 2)] = 0
    inner = spans_of([piece for piece, often in zip(pieces, frequency) if len(piece) > 1 and often], number)
    longer = np.flatnonzero(~single & (frequency > 0))
    scores = _log_shares(frequency * np.array(list(map(len, pieces))), single)
    while True:
        for _ in range(2):
            expected = expected_counts(spans, weights, scores)
            scores = _log_shares(np.where(single | (expected >= 0.5), expected, 0), single)
        lives = scores[longer] > -np.inf
        alive = longer[lives]
        room = size - len(alphabet)
        if len(alive) <= room:
            break
        # What the likelihood loses without a piece: it would be spelled in the best other way.
        loss = expected[alive] * (scores[alive] - best_spelling(inner, len(longer), scores)[lives])
        keep = max(room, int(0.75 * len(alive)))
        order = np.lexsort(([pieces[piece] for piece in alive], -loss.round(9)))
        scores[alive[order[keep:]]] = -np.inf
    return {piece: float(score) for piece, score in zip(pieces, scores) if score > -np.inf}


def spans_of(texts: Sequence[str], number: dict[str, int]) -> Spans:
    """For every place (start, end) in a string, int64 `[N]`: the number of the piece there, -1 where the string ends
    before. Pieces that `number` does not have get the next one."""
    longest = max(map(len, texts), default=0)
    places = [(start, end) for start in range(longest) for end in range(start + 1, min(start + _LONGEST, longest) + 1)]
    return {
        (start, end): np.array(
            [number.setdefault(text[start:end], len(number)) if end <= len(text) else -1 for text in texts], np.int64
        )
        for start, end in places
    }


def expected_counts(spans: Spans, weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 `[pieces]`: how often each stands in the strings, over all their spellings by probability, for
    strings that occur `weights [N]` times and pieces of log-probabilities `scores`."""
    longest = max(end for _, end in spans)
    forward = np.full((longest + 1, len(weights)), -np.inf)
    backward = np.full((longest + 1, len(weights)), -np.inf)
    forward[0] = 0
    ends = np.max([np.where(ids >= 0, end, 0) for (_, end), ids in spans.items()], axis=0)
    backward[ends, np.arange(len(weights))] = 0
    with np.errstate(invalid="ignore"):
        for start, end in sorted(spans, key=lambda place: place[1]):
            forward[end] = np.logaddexp(forward[end], forward[start] + _at(scores, spans[start, end]))
        for start, end in sorted(spans, key=lambda place: -place[0]):
            backward[start] = np.logaddexp(backward[start], backward[end] + _at(scores, spans[start, end]))
        expected = np.zeros(len(scores))
        for (start, end), ids in spans.items():
            share = np.exp(forward[start] + _at(scores, ids) + backward[end] - backward[0])
            there = (ids >= 0) & (share > 0)
            np.add.at(expected, ids[there], (weights * share)[there])
    return expected


def best_spelling(spans: Spans, count: int, scores: np.ndarray) -> np.ndarray:
    """float64 `[count]`: the highest log-probability of each string as two or more pieces."""
    lengths = np.max([np.where(ids >= 0, end, 0) for (_, end), ids in spans.items()], axis=0)
    best = np.full((lengths.max() + 1, count), -np.inf)
    best[0] = 0
    for start, end in sorted(spans, key=lambda place: place[1]):
        whole = (start == 0) & (lengths == end)
        step = np.where(whole, -np.inf, best[start] + _at(scores, spans[start, end]))
        best[end] = np.maximum(best[end], step)
    return best[lengths, np.arange(count)]


def _at(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.where(ids >= 0, scores[ids], -np.inf)


def _log_shares(counts: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Logarithms of the shares; -inf of nothing, but for single characters, which are never dropped."""
    counts = np.where(single, np.maximum(counts, 1e-3), counts)
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum())
