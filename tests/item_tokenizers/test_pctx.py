import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from item_tokenizers.small import blobs, small_items, small_train, with_cold_items

from llmrec.features.sasrec_network import SASRecConfig, SASRecModel
from llmrec.item_tokenizers import Pctx, load_item_tokenizer
from llmrec.item_tokenizers.contextual.contexts import CooccurrenceContexts, SASRecContexts
from llmrec.item_tokenizers.contextual.pctx import _merge_rare


def two_worlds(users=200, seed=0):
    """Two users of three have items 1..10, the third has items 11..20; all end at item 0, and item 21 is nobody's."""
    rng = np.random.default_rng(seed)
    lists = []
    for user in range(users):
        first = 1 + 10 * (user % 3 == 0)
        lists.append([f"i{i}" for i in [*rng.choice(np.arange(first, first + 10), 5, replace=False), 0]])
    items = pa.table({"item_id": [f"i{i}" for i in range(22)]})
    features = rng.normal(size=(22, 8)).astype(np.float32)
    return features, items, pa.table({"item_ids": lists})


WORLD = {"contexts": "cooccurrence", "context_dim": 4, "feature_dim": 4}


def test_a_user_s_context_picks_the_semid():
    tokenizer = Pctx([4, 4], **WORLD).fit(*two_worlds())
    index = tokenizer.index()
    rows = [row for row, item in enumerate(index.item_ids) if item == "i0"]
    assert len(rows) >= 2
    one, same, other = tokenizer.encode_target([["i1", "i2"], ["i5", "i9", "i3"], ["i11", "i12"]], ["i0"] * 3)
    assert one == same != other
    # In a history as in a target.
    (history,) = tokenizer.encode_history([["i11", "i12", "i0"]])
    assert history[-len(other) :] == other
    # Nothing before it: the primary SemID. Nobody's item: the only one.
    assert tokenizer.encode_target([[]], ["i0"]) == [index.tokens_of_row(rows[0])]
    assert index.item_ids.count("i21") == 1
    assert "".join(tokenizer.encode_target([["i1"]], ["i21"])[0]) == index.encode("i21")


def test_popular_items_have_more_semids_and_each_holds_its_share():
    features, items, train = two_worlds(400)
    tokenizer = Pctx([8, 8], min_share=0.3, **WORLD).fit(features, items, train)
    index = tokenizer.index()
    assert 2 <= index.item_ids.count("i0") <= 3
    used = tokenizer.encode_target([lists[:-1] for lists in train["item_ids"].to_pylist()], ["i0"] * 400)
    counts = {}
    for tokens in used:
        counts["".join(tokens)] = counts.get("".join(tokens), 0) + 1
    assert min(counts.values()) >= 0.3 * 400
    assert index.encode("i0") == max(counts, key=counts.get)
    alone = Pctx([8, 8], min_share=1.0, **WORLD).fit(features, items, train).index()
    assert len(alone) == len(items)


def test_rare_semids_join_the_nearest():
    codes = np.array([[0], [1], [2], [1]])
    centroids = np.array([[0.0], [1.0], [5.0], [9.0]])
    assert _merge_rare(codes, np.array([50, 30, 5, 15]), centroids, 0.2) == [0, 1, 1, 1]
    assert _merge_rare(codes, np.array([5, 5, 50, 5]), centroids, 0.1) == [1, 1, 2, 1]
    assert _merge_rare(codes, np.array([10, 10, 10, 10]), centroids, 0.25) == [0, 1, 2, 1]
    assert _merge_rare(codes, np.array([1, 1, 1, 1]), centroids, 1.0) == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["sasrec", "cooccurrence"])
def test_cold_items_change_no_warm_item(kind):
    features, items, train = two_worlds()
    features[1:4] = features[5]  # some SemIDs collide
    arguments = {"codebook_sizes": [3, 2], "contexts": kind, "context_dim": 4, "feature_dim": 4, "max_clusters": 1}
    alone = Pctx(**arguments).fit(features, items, train)
    beside_others = Pctx(**arguments).fit(*with_cold_items(features, items, list(range(8))), train)
    one, other = alone.index(), beside_others.index()
    warm = [f"i{i}" for i in range(21)]
    assert {item: one.encode(item) for item in warm} == {item: other.encode(item) for item in warm}
    assert (one.codes[:, -1] >= 0).sum() > 3 and len(set(map(tuple, other.codes.tolist()))) == len(other)
    histories = train["item_ids"].to_pylist()
    assert alone.encode_history(histories) == beside_others.encode_history(histories)


def test_augmentation_exchanges_semids_of_the_same_item():
    given = two_worlds()
    history = given[2]["item_ids"].to_pylist()[0] * 3
    plain, always = (Pctx([4, 4], augment=share, **WORLD).fit(*given) for share in (0.0, 1.0))
    usual = plain.encode_history([history])
    assert all(plain.encode_history([history], seed) == usual for seed in range(5))
    assert len({tuple(always.encode_history([history], seed)[0]) for seed in range(5)}) > 1
    index = always.index()
    for seed in range(5):
        (tokens,) = always.encode_history([history], seed)
        starts = [i for i, token in enumerate(tokens) if token.startswith("<a_")] + [len(tokens)]
        semids = ["".join(tokens[a:b]) for a, b in zip(starts, starts[1:])]
        assert [index.decode(semid) for semid in semids] == [[item] for item in history]


def test_contexts_are_of_what_came_before():
    embeddings = np.eye(3, dtype=np.float32)
    contexts = CooccurrenceContexts(embeddings, 0.5)(np.array([0, 1, 2, 1, 0]), np.array([0, 3, 3, 5]))
    expected = [[0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0, 0, 0], [0, 1, 0]]
    expected[2] = (np.array(expected[2]) / np.linalg.norm(expected[2])).tolist()
    np.testing.assert_allclose(contexts, expected, atol=1e-6)


def test_a_network_s_context_is_its_state_after_the_item():
    network = SASRecModel(7, SASRecConfig(hidden_size=4, max_length=6))
    contexts = SASRecContexts(network)
    values, offsets = np.array([0, 1, 2, *[3, 4, 5, 6] * 5, 1]), np.array([0, 3, 3, 23, 24])
    found = contexts(values, offsets)
    assert found.shape == (24, 4) and np.linalg.norm(found, axis=1) == pytest.approx(1)
    states = network(torch.tensor([[0, 1, 2]]))[0].detach().numpy()
    np.testing.assert_allclose(found[:3], states / np.linalg.norm(states, axis=1, keepdims=True), atol=1e-6)
    # What stands in another sequence changes not a bit, and what comes later nothing, however long a sequence is.
    assert (contexts(values[3:23], np.array([0, 20])) == found[3:23]).all()
    for length in range(1, 20):
        earlier = contexts(values[3 : 3 + length], np.array([0, length]))
        np.testing.assert_allclose(earlier, found[3 : 3 + length], atol=1e-5)


def test_the_defaults_tell_users_of_one_world_from_those_of_another():
    """Two worlds of 150 items, whose users all come to the same 20: which SemID they see there says whose it is."""
    rng = np.random.default_rng(0)
    world = np.arange(1500) % 2
    lists = [list(rng.choice(150, 7, replace=False) + 20 + 150 * w) for w in world]
    for row in lists:
        row[5] = rng.integers(0, 20)
    items = pa.table({"item_id": [f"i{i}" for i in range(320)]})
    train = pa.table({"item_ids": [[f"i{i}" for i in row] for row in lists]})
    tokenizer = Pctx().fit(rng.normal(size=(320, 130)).astype(np.float32), items, train)
    histories, targets = zip(*((row[:5], row[5]) for row in train["item_ids"].to_pylist()))
    semids = np.array(["".join(tokens) for tokens in tokenizer.encode_target(histories, targets)])
    owner = {semid: np.bincount(world[semids == semid], minlength=2).argmax() for semid in set(semids)}
    right = np.mean([owner[semid] == w for semid, w in zip(semids, world)])
    assert len(owner) >= 40 and right > 0.9, (len(owner), right)


def test_an_older_folder_keeps_its_contexts(tmp_path):
    given = two_worlds()
    tokenizer = Pctx([4, 4], contexts="cooccurrence", context_dim=4, feature_dim=4).fit(*given)
    tokenizer.save_pretrained(tmp_path / "older")
    settings = json.loads((tmp_path / "older" / "config.json").read_text())
    del settings["config"]["contexts"], settings["config"]["epochs"]
    (tmp_path / "older" / "config.json").write_text(json.dumps(settings))
    histories = given[2]["item_ids"].to_pylist()
    older = load_item_tokenizer(tmp_path / "older")
    assert older.config == tokenizer.config
    assert older.encode_history(histories) == tokenizer.encode_history(histories)


def test_bad_arguments():
    for arguments, message in (
        ({"contexts": "duorec"}, "contexts 'duorec' is not one of sasrec, cooccurrence"),
        ({"context_dim": 5}, "context_dim=5 must be even"),
        ({"min_share": 1.5}, "min_share=1.5 must be between 0 and 1"),
        ({"max_clusters": 0}, "at least 1"),
        ({"codebook_sizes": [8, 0]}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Pctx(**arguments)
    items = small_items()
    with pytest.raises(ValueError, match="lower codebook_sizes"):
        Pctx([500], context_dim=8, feature_dim=6, epochs=1).fit(blobs(), items, small_train(items))
    with pytest.raises(ValueError, match="lower dim"):
        Pctx([8], contexts="cooccurrence", context_dim=80).fit(blobs(), items, small_train(items))
