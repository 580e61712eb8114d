"""Pieces of a unigram model, against all spellings written out and against the trainer of `tokenizers`."""

import json
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from llmrec.item_tokenizers.merged import best_spelling, expected_counts, learn_unigram, spans_of

texts = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=12)


def spellings(text):
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        yield from ([text[:end], *rest] for rest in spellings(text[end:]))


@given(texts, st.integers(0, 1000))
@settings(deadline=None)
def test_expected_counts_are_those_over_all_spellings(texts, seed):
    number = {"a": 0, "b": 1, "c": 2}
    texts = sorted(set(texts))
    spans = spans_of(texts, number)
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(len(number)) < 0.3, -np.inf, -rng.random(len(number)) * 4)
    scores[:3] = -3
    weights = rng.integers(1, 5, len(texts)).astype(float)
    expected, best = np.zeros(len(number)), []
    for text, weight in zip(texts, weights):
        rows = [[number[piece] for piece in spelling] for spelling in spellings(text)]
        logs = np.array([scores[row].sum() for row in rows])
        for row, share in zip(rows, np.exp(logs) / np.exp(logs).sum()):
            np.add.at(expected, row, weight * share)
        best.append(max([log for log, row in zip(logs, rows) if len(row) > 1], default=-np.inf))
    np.testing.assert_allclose(expected_counts(spans, weights, scores), expected, atol=1e-9)
    np.testing.assert_allclose(best_spelling(spans, len(texts), scores), best)


@given(st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=40), st.integers(6, 40))
@settings(deadline=None, max_examples=50)
def test_the_pieces_fit_spell_everything_and_are_the_same_again(texts, size):
    counts = Counter(texts)
    pieces = learn_unigram(counts, "abcdef", size)
    assert list(pieces)[:6] == list("abcdef") and len(pieces) <= size
    assert all(np.isfinite(score) and score < 0 for score in pieces.values())
    assert pieces == learn_unigram(dict(reversed(counts.items())), "abcdef", size)


def test_as_short_as_the_trainer_of_tokenizers():
    rng = np.random.default_rng(0)
    letters = [chr(0x4E00 + number) for number in range(96)]
    codes = np.minimum(rng.zipf(1.3, (4000, 3)), 32) - 1
    texts = ["".join(letters[32 * level + code] for level, code in enumerate(row)) for row in codes.tolist()]
    theirs = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=401, initial_alphabet=letters, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    ours = Tokenizer(models.Unigram(list(learn_unigram(Counter(texts), letters, 400).items())))

    def likelihood(tokenizer):
        scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
        return np.mean([sum(scores[token] for token in row.tokens) for row in tokenizer.encode_batch(texts)])

    def length(tokenizer):
        return np.mean([len(row.ids) for row in tokenizer.encode_batch(texts)])

    assert ours.get_vocab_size() == 400 and length(ours) < 2
    assert length(ours) < 1.03 * length(theirs) and likelihood(ours) > likelihood(theirs) - 0.05
