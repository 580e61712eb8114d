"""Properties that every sequence tokenizer has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs, small_items, small_train

from llmrec.catalogue.record import CONTEXTUAL
from llmrec.decoding.trie import SemIDTrie
from llmrec.item_tokenizers import SEQUENCE_TOKENIZERS, load_item_tokenizer
from llmrec.item_tokenizers.protocol import tokenizer_fingerprint

SMALL = {
    "actionpiece": {
        "num_features": 2,
        "codes_per_feature": 8,
        "pca_dim": 6,
        "num_buckets": 20,
        "vocabulary_size": 120,
    },
    "pctx": {"codebook_sizes": [8, 6], "context_dim": 8, "feature_dim": 6, "epochs": 2},
}


def test_an_index_knows_which_tokenizers_read_histories():
    assert set(CONTEXTUAL) == set(SEQUENCE_TOKENIZERS) == set(SMALL)


def fitted(name, seed=0):
    items = small_items(80, seed)
    train = small_train(items, users=150, length=12, seed=seed)
    return SEQUENCE_TOKENIZERS[name](**SMALL[name]).fit(blobs(80, seed=seed), items, train, seed), items, train


def test_every_tokenizer_is_tested():
    assert set(SMALL) == set(SEQUENCE_TOKENIZERS)
    assert all(kind.traits.contextual for kind in SEQUENCE_TOKENIZERS.values())


@pytest.mark.parametrize("name", SEQUENCE_TOKENIZERS)
@given(seed=st.integers(0, 30))
@settings(deadline=None, max_examples=3)
def test_the_contract(tmp_path_factory, name, seed):
    tokenizer, items, train = fitted(name, seed)
    ids = items["item_id"].to_pylist()
    histories = [*train["item_ids"].to_pylist()[:20], [], ids[:1], [ids[-1]] * 3]
    targets = (ids * 2)[: len(histories)]
    index = tokenizer.index()
    assert index.items == ids
    assert len({index.semid_of_row(row) for row in range(len(index))}) == len(index) > len(ids)
    for variant in (None, 0, 7):
        encoded = tokenizer.encode_history(histories, variant)
        assert encoded[20] == [] and all(encoded[:20])
        assert all(token in index.tokens for tokens in encoded for token in tokens)
        # A history alone reads as it does among others.
        assert tokenizer.encode_history(histories[3:4], variant) == encoded[3:4]
        chosen = tokenizer.encode_target(histories, targets, variant)
        assert [index.decode("".join(tokens)) for tokens in chosen] == [[target] for target in targets]
        assert tokenizer.encode_target(histories[5:6], targets[5:6], variant) == chosen[5:6]
        assert tokenizer.encode_history([], variant) == tokenizer.encode_target([], [], variant) == []
    assert tokenizer.encode_history(histories, 0) != tokenizer.encode_history(histories, 1)

    again, _, _ = fitted(name, seed)
    folder = tmp_path_factory.mktemp("t") / "saved"
    tokenizer.save_pretrained(folder)
    loaded = load_item_tokenizer(folder)
    for other in (again, loaded):
        assert type(other) is type(tokenizer) and other.config == tokenizer.config
        assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
        assert other.index().fingerprint == index.fingerprint and other.index().info == index.info
        for variant in (None, 3):
            assert other.encode_history(histories, variant) == tokenizer.encode_history(histories, variant)
            chosen = tokenizer.encode_target(histories, targets, variant)
            assert other.encode_target(histories, targets, variant) == chosen


@pytest.mark.parametrize("name", SEQUENCE_TOKENIZERS)
def test_the_index_can_be_saved_and_decoded_with(tmp_path, name):
    index = fitted(name)[0].index()
    index.save(tmp_path / "semids.parquet")
    assert type(index).load(tmp_path / "semids.parquet").fingerprint == index.fingerprint
    number = {token: i for i, token in enumerate(index.tokens)}
    rows = [[number[token] for token in index.tokens_of_row(row)] for row in range(len(index))]
    padded = torch.full((len(rows), index.num_levels), -1)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = torch.tensor(values)
    trie = SemIDTrie(padded, eos_token_id=len(number))
    assert sorted(trie.order.tolist()) == list(range(len(index)))


@pytest.mark.parametrize("name", SEQUENCE_TOKENIZERS)
def test_bad_input(name):
    tokenizer = SEQUENCE_TOKENIZERS[name](**SMALL[name])
    items, features = small_items(), blobs()
    train = small_train(items)
    for call in (
        tokenizer.index,
        tokenizer.state,
        lambda: tokenizer.encode_history([["i0"]]),
        lambda: tokenizer.encode_target([[]], ["i0"]),
    ):
        with pytest.raises(ValueError, match="not fitted"):
            call()
    with pytest.raises(ValueError, match="79 rows for a catalogue of 80 items"):
        tokenizer.fit(features[1:], items, train)
    with pytest.raises(ValueError, match="not in the catalogue"):
        tokenizer.fit(features[1:], items.slice(1), small_train(items))
    broken = features.copy()
    broken[5, 3] = np.nan
    with pytest.raises(ValueError, match="row 5 hold NaN"):
        tokenizer.fit(broken, items, train)
    tokenizer.fit(features, items, train)
    with pytest.raises(ValueError, match="'nobody' is not in the catalogue"):
        tokenizer.encode_history([["i0"], ["nobody"]])
    with pytest.raises(ValueError, match="'nobody' is not in the catalogue"):
        tokenizer.encode_target([["i0"]], ["nobody"])
    with pytest.raises(ValueError, match="2 histories for 1 targets"):
        tokenizer.encode_target([["i0"], []], ["i0"])
