"""Pieces of frequent code sequences."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import blobs, small_items, small_train
from tiny import tiny_data, tiny_model

from llmrec.decoding import SemIDTrie
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers import Keywords, Merged, RQKMeans, fit_semids, load_item_tokenizer
from llmrec.item_tokenizers.merged import ALGORITHMS, _character
from llmrec.item_tokenizers.protocol import tokenizer_fingerprint
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender

INNER = {"codebook_sizes": [8, 6, 4], "niter": 4}


def spelled(tokenizer):
    """The codes behind every piece, as (level, code)."""
    sizes = tokenizer.inner_tokenizer.codebook_sizes
    flat = [(level, code) for level, size in enumerate(sizes) for code in range(size)]
    number = {_character(n): pair for n, pair in enumerate(flat)}
    vocabulary = {piece: text for text, piece in tokenizer._merger.get_vocab().items()}
    return [[number[character] for character in vocabulary[piece]] for piece in range(len(vocabulary))]


@given(seed=st.integers(0, 30), vocabulary_size=st.integers(19, 60), algorithm=st.sampled_from(ALGORITHMS))
@settings(deadline=None, max_examples=16)
def test_pieces_spell_the_inner_codes(seed, vocabulary_size, algorithm):
    features = blobs(seed=seed)
    tokenizer = Merged("rq_kmeans", INNER, vocabulary_size, algorithm).fit(features, seed=seed)
    inner = RQKMeans(**INNER).fit(features, seed=seed)
    everything = np.concatenate([features, blobs(50, seed=seed + 1000)])  # new items too
    pieces = spelled(tokenizer)
    assert tokenizer.codebook_sizes == (len(pieces),) * 3 and len(pieces) <= vocabulary_size
    for row, codes in zip(tokenizer.encode(everything).tolist(), inner.encode(everything).tolist()):
        assert [pair for piece in row if piece >= 0 for pair in pieces[piece]] == list(enumerate(codes))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_pieces_make_shorter_ids(algorithm):
    features = blobs(400)
    lengths = [
        (Merged("rq_kmeans", INNER, size, algorithm).fit(features).encode(features) >= 0).sum(1).mean()
        for size in (19, 40, 80)
    ]
    assert lengths[0] > 2.5 and lengths[2] < 2 and lengths == sorted(lengths)[::-1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_popular_items_are_shorter(algorithm):
    features, items = blobs(300), small_items(300)
    rare = small_train(items, users=20)
    ids = items["item_id"].to_pylist()
    popular = pa.table({"user_id": ["u"] * 400, "item_ids": [ids[100:110]] * 400})

    def length(train):
        tokenizer = Merged("rq_kmeans", INNER, 30, algorithm).fit(features, items=items, train=train)
        return (tokenizer.encode(features)[100:110] >= 0).sum(1).mean()

    assert length(popular) < length(rare)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_tokenizer_is_the_same_one(tmp_path, algorithm):
    features = blobs(2000)
    tokenizer = Merged("rq_kmeans", INNER, 400, algorithm).fit(features)
    assert tokenizer.codebook_sizes[0] > 150
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = load_item_tokenizer(tmp_path / "t")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_levels_share_their_tokens_in_a_model():
    data = tiny_data()
    features = blobs(24)
    tokenizer = Merged("rq_kmeans", {"codebook_sizes": [3, 3, 3], "niter": 3}, 16)
    index = fit_semids(tokenizer, features, data.items, data.train, pattern="default")
    assert not tokenizer.traits.fixed_length and len(set(index.lengths.tolist())) > 1
    pieces = [token for token in index.tokens if token.startswith("<p_")]
    assert Counter(index.tokens).most_common(1)[0][1] == 1 and len(pieces) <= 16
    model, text_tokenizer = tiny_model(data, index, init="text")
    assert SemIDTrie.from_index(index, text_tokenizer).num_leaves == 24
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=30)
    [found] = LLMRecommender(model, text_tokenizer, index, data.items, config).recommend([index.items[:3]], k=24)
    assert {hit.item_id for hit in found} == set(index.items)


def test_every_character_is_its_own():
    assert len({_character(n) for n in range(131_068)}) == 131_068
    assert all(_character(n).isprintable() is False for n in (0, 65_533, 65_534, 131_067))
    assert _character(65_533) == "\U000ffffd" and _character(65_534) == "\U00100000"


def test_bad_input():
    with pytest.raises(ValueError, match="'magic' is not one of rq_kmeans"):
        Merged("magic")
    with pytest.raises(ValueError, match="is not one of"):
        Merged("merged")
    with pytest.raises(ValueError, match="algorithm 'wordpiece' is not one of bpe, unigram"):
        Merged(algorithm="wordpiece")
    with pytest.raises(ValueError, match="writes words"):
        Merged(Keywords.name)
    with pytest.raises(ValueError, match="vocabulary_size=18 must lie above the 18 codes of 'rq_kmeans'"):
        Merged("rq_kmeans", INNER, 18).fit(blobs())
    with pytest.raises(ValueError, match="not fitted"):
        Merged("rq_kmeans", INNER, 30).encode(blobs())
    with pytest.raises(ValueError, match="lower codebook_sizes"):
        Merged("rq_kmeans", INNER, 30).fit(blobs()[:3])
