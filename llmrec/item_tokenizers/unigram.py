"""The pieces of a unigram model (Kudo, ACL 2018, 1804.10959; SentencePiece), learned from short strings.

`tokenizers` has a trainer too, but reads its strings in a random order, so that equal input gives other pieces. SemIDs
are a few characters long: here every substring is a column of numbers, and all strings are worked on at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_LONGEST = 8  # characters of a piece
_SHRINK = 0.75  # what one round of pruning leaves
_LEAST = 0.5  # a longer piece that is expected less often is dropped
_FLOOR = 1e-3  # single characters are never dropped

Spans = dict[tuple[int, int], np.ndarray]


def learn_unigram(counts: Mapping[str, int], alphabet: Sequence[str], size: int) -> dict[str, float]:
    """Pieces and their log-probabilities.

    Args:
        counts: how often a string occurs. alphabet (sequence of `str`): single characters; all of them are pieces.
        size (`int`): pieces at most, not below the alphabet's.
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
            scores = _log_shares(np.where(single | (expected >= _LEAST), expected, 0), single)
        lives = scores[longer] > -np.inf
        alive = longer[lives]
        room = size - len(alphabet)
        if len(alive) <= room:
            break
        # What the likelihood loses without a piece: it would be spelled in the best other way.
        loss = expected[alive] * (scores[alive] - best_spelling(inner, len(longer), scores)[lives])
        keep = max(room, int(_SHRINK * len(alive)))
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
    """float64 `[pieces]`: how often each stands in the strings, over all their spellings by probability.

    Args:
        weights (float64 `[N]`): how often a string occurs. scores (float64 `[pieces]`): log-probabilities.
    """
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
    """Logarithms of the shares; -inf of nothing, but for single characters."""
    counts = np.where(single, np.maximum(counts, _FLOOR), counts)
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum())
