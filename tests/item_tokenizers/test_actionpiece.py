from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs, small_items, small_train, with_cold_items

from llmrec.item_tokenizers import ActionPiece
from llmrec.item_tokenizers.contextual.actionpiece_vocabulary import (
    Pieces,
    add_weights,
    learn_merges,
    make_chain,
    weight_unit,
)


def reference_merges(sequences, num_tokens, num_merges):
    """Algorithm 1 as it is written: count all pairs, merge the heaviest everywhere, again."""
    corpus = [([set(item) for item in sequence], [None] * (len(sequence) - 1)) for sequence in sequences]
    merges = []
    for piece in range(num_tokens, num_tokens + num_merges):
        counts = Counter()
        for items, slots in corpus:
            for item in items:
                for a, b in combinations(item, 2):
                    counts[tuple(sorted((a, b)))] += Fraction(2, len(item))
            for i, slot in enumerate(slots):
                if slot is None:
                    for a in items[i]:
                        for b in items[i + 1]:
                            counts[tuple(sorted((a, b)))] += Fraction(1, len(items[i]) * len(items[i + 1]))
                else:
                    for item in (items[i], items[i + 1]):
                        for a in item:
                            counts[tuple(sorted((a, slot)))] += Fraction(1, len(item))
        if not counts:
            break
        a, b = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]))
        merges.append((a, b))
        for items, slots in corpus:
            for item in items:
                if a != b and {a, b} <= item:
                    item -= {a, b}
                    item.add(piece)
            for i in range(len(slots)):
                for one, other in ((a, b), (b, a)):
                    if slots[i] is None and one in items[i] and other in items[i + 1]:
                        items[i].remove(one)
                        items[i + 1].remove(other)
                        slots[i] = piece
                for one, other in ((a, b), (b, a)):
                    for item in (items[i], items[i + 1]):
                        if slots[i] == one and other in item:
                            item.remove(other)
                            slots[i] = piece
    return merges


sets_of_tokens = st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=5)


@given(sequences=st.lists(sets_of_tokens, max_size=6), num_merges=st.integers(0, 25))
@settings(deadline=None, max_examples=300)
def test_merges_equal_those_of_the_algorithm_as_written(sequences, num_merges):
    merges = learn_merges(sequences, 6, num_merges)
    assert merges.dtype == np.int32 and merges.shape == (len(merges), 2)
    assert list(map(tuple, merges.tolist())) == reference_merges(sequences, 6, num_merges)


def test_weights_are_the_chances_to_stand_side_by_side():
    chain = make_chain([[0, 1, 2], [3, 4]])
    unit = weight_unit([chain])
    weights = {}
    add_weights(chain, 0, 2, unit, 10, weights)
    beside = {}
    orders = [(*left, *right) for left in permutations([0, 1, 2]) for right in permutations([3, 4])]
    for order in orders:
        for a, b in zip(order, order[1:]):
            key = min(a, b) * 10 + max(a, b)
            beside[key] = beside.get(key, 0) + Fraction(1, len(orders))
    assert {key: Fraction(weight, unit) for key, weight in weights.items()} == beside


def test_a_piece_of_two_items_lives_between_them():
    # 1 and 2 are always neighbours; every other token changes. Their piece then joins 3, in the item on its right.
    sequences = [[[0, 1], [2, 3]], [[4, 1], [2, 3]], [[1, 5], [6, 2, 3]]]
    merges = learn_merges(sequences, 10, 3).tolist()
    assert merges[0] == [2, 3] and merges[1] == [1, 10]
    pieces = Pieces(np.array(merges), 10)
    assert pieces.apply([4, 1, 3, 2]) == [4, 11] and pieces.contents[11] == (1, 2, 3)
    assert pieces.apply([1, 4, 3, 2]) == [1, 4, 10]


def slow_apply(tokens, merges, num_tokens):
    """Merges by rank, one at a time, each time the leftmost."""
    tokens = list(tokens)
    for rank, pair in enumerate(merges):
        i = 0
        while i + 1 < len(tokens):
            if sorted(tokens[i : i + 2]) == list(pair):
                tokens[i : i + 2] = [num_tokens + rank]
            else:
                i += 1
    return tokens


@given(corpus=st.lists(sets_of_tokens, min_size=2, max_size=6), tokens=st.lists(st.integers(0, 5), max_size=20))
@settings(deadline=None)
def test_merges_apply_by_rank(corpus, tokens):
    merges = learn_merges(corpus, 6, 12)
    pieces = Pieces(merges, 6)
    assert pieces.apply(tokens) == slow_apply(tokens, merges.tolist(), 6)
    contents = [feature for piece in pieces.apply(tokens) for feature in pieces.contents[piece]]
    assert sorted(contents) == sorted(tokens)


def catalogue(features, sequences):
    items = pa.table({"item_id": [f"i{i}" for i in range(len(features))]})
    train = pa.table({"item_ids": [[f"i{i}" for i in sequence] for sequence in sequences]})
    return np.array(features), items, train


def test_context_changes_the_tokens_of_an_item():
    # Items 0 to 11 share feature 0, items 12 to 23 feature 1; a user takes one of the first, then one of the others.
    rng = np.random.default_rng(0)
    features = [[i // 12, i] for i in range(36)]
    given = catalogue(features, [[rng.integers(0, 12), rng.integers(12, 24)] for _ in range(200)])
    tokenizer = ActionPiece(num_buckets=10_000, vocabulary_size=2 * 36 + 10_000 + 1).fit(*given)
    assert tokenizer.pieces.contents[-1] == (0, 1)
    piece = tokenizer.tokens[-1]
    seeds = range(20)
    with_partner = [tokenizer.encode_history([["i0", "i12"]], seed)[0] for seed in seeds]
    with_stranger = [tokenizer.encode_history([["i0", "i30"]], seed)[0] for seed in seeds]
    assert any(piece in tokens for tokens in with_partner)
    assert not any(piece in tokens for tokens in with_stranger)


def test_random_orders_change_pieces_but_never_features():
    items = small_items()
    train = small_train(items, users=200)
    tokenizer = ActionPiece(3, 8, pca_dim=6, num_buckets=20, vocabulary_size=300).fit(blobs(), items, train)

    def features_of(tokens):
        contents = tokenizer.pieces.contents
        return sorted(feature for token in tokens for feature in contents[tokenizer.tokens.index(token)])

    features = {item: features_of(tokenizer.encode_target([[]], [item])[0]) for item in tokenizer.item_ids}
    assert len(set(map(tuple, features.values()))) == len(features)
    history = train["item_ids"].to_pylist()[0]
    seen = set()
    for seed in range(8):
        (tokens,) = tokenizer.encode_history([history], seed)
        seen.add(tuple(tokens))
        assert features_of(tokens) == sorted(f for item in history for f in features[item])
    assert len(seen) > 4
    index = tokenizer.index()
    several = 0
    for item in index.items:
        rows = [row for row, owner in enumerate(index.item_ids) if owner == item]
        several += len(rows) > 1
        for row in rows:
            tokens = index.tokens_of_row(row)
            contained = features_of(tokens)
            assert contained == features[item] and len(set(contained)) == 4
        targets = {tuple(tokenizer.encode_target([[]], [item], seed)[0]) for seed in range(40)}
        assert targets == {tuple(index.tokens_of_row(row)) for row in rows}
    assert several > 10


def test_the_last_feature_makes_items_unique():
    given = catalogue([[1, 2]] * 6 + [[0, 0]], [[0, 6]])
    tokenizer = ActionPiece(num_buckets=6, vocabulary_size=20).fit(*given)
    assert len({tuple(row) for row in tokenizer.sets.tolist()}) == 7
    assert len(set(tokenizer.sets[:6, 2])) == 6
    with pytest.raises(ValueError, match="6 items have equal features, but num_buckets=5"):
        ActionPiece(num_buckets=5).fit(*given)


def test_cold_items_change_no_warm_item():
    items = small_items()
    train = small_train(items, users=200)

    def semids(features, items):
        tokenizer = ActionPiece(3, 8, pca_dim=6, num_buckets=20, vocabulary_size=300).fit(features, items, train)
        index = tokenizer.index()
        return tokenizer.merges, {
            item: [index.tokens_of_row(row) for row, owner in enumerate(index.item_ids) if owner == item]
            for item in small_items()["item_id"].to_pylist()[:-1]  # the last one is in no sequence
        }

    merges, alone = semids(blobs(), items)
    again, beside_others = semids(*with_cold_items(blobs(), items, list(range(10))))
    assert (merges == again).all() and alone == beside_others


def test_bad_arguments():
    for arguments, message in (
        ({"codes_per_feature": 12}, "power of two"),
        ({"pca_dim": 10, "num_features": 4}, "multiple of num_features"),
        ({"num_buckets": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ActionPiece(**arguments)
    items = small_items()
    given = blobs(), items, small_train(items)
    with pytest.raises(
        ValueError, match="vocabulary_size=40 is less than the 52 features .4 x 8 codes, num_buckets=20"
    ):
        ActionPiece(4, 8, pca_dim=8, num_buckets=20, vocabulary_size=40).fit(*given)
    with pytest.raises(ValueError, match="lower codes_per_feature"):
        ActionPiece(4, 256, pca_dim=8).fit(*given)
    with pytest.raises(ValueError, match="do not split in 5"):
        ActionPiece(5, 8, pca_dim=None).fit(*given)
    with pytest.raises(ValueError, match="numbers from 0"):
        ActionPiece().fit(-np.ones((80, 2), int), *given[1:])
