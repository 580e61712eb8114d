"""Features of many items: written some at a time, embedded by actors on Ray, read from the cache as they are asked."""

import io
import logging

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_data

from llmrec.features import ItemFeatures
from llmrec.features.embedding_cache import EmbeddingCache
from llmrec.features.parts.part import some_in_training
from llmrec.features.text_encoders import SentenceTransformerEncoder, choose_text_encoder


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def test_blocks_make_the_file_of_the_whole(data, tmp_path, monkeypatch):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(24, 3)))
    spec = [
        {"kind": "text", "encoder": "tfidf", "dim": 8},
        {"kind": "cooccurrence", "dim": 4, "weight": 0.5},
        {"kind": "precomputed", "path": str(tmp_path / "own.npy"), "reduce": {"pca": 2}},
    ]
    features = ItemFeatures(spec).fit(data.items, data.train)
    whole, expected = features.encode(data.items), io.BytesIO()
    matrix = features.encode_to(tmp_path / "one.npy", data.items)
    np.save(expected, whole)
    assert (tmp_path / "one.npy").read_bytes() == expected.getvalue() and isinstance(matrix, np.memmap)
    monkeypatch.setattr("llmrec.features.item_features._BLOCK", 5)
    np.testing.assert_allclose(features.encode_to(tmp_path / "many.npy", data.items), whole, atol=1e-6)

    encode = features.parts[1].encode

    def broken(items):
        rows = encode(items)
        rows[[item == "item-17" for item in items["item_id"].to_pylist()]] = np.nan
        return rows

    monkeypatch.setattr(features.parts[1], "encode", broken)
    row = data.items["item_id"].to_pylist().index("item-17")
    with pytest.raises(ValueError, match=rf"'cooccurrence': features of row {row} hold NaN"):
        features.encode_to(tmp_path / "broken.npy", data.items)
    assert not (tmp_path / "broken.npy").exists()


def test_rows_in_the_order_of_the_file_are_not_copied(data, tmp_path):
    own = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    np.save(tmp_path / "own.npy", own)
    (part,) = ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "own.npy")}]).fit(data.items).parts
    for start, count in ((0, 24), (5, 7), (23, 1), (24, 0)):
        np.testing.assert_array_equal(part.encode(data.items.slice(start, count)), own[start : start + count])
    some = part.encode(data.items.slice(5, 7))
    assert not some.flags.owndata and not some.flags.writeable
    np.testing.assert_array_equal(part.encode(data.items.take([7, 3])), own[[7, 3]])


def test_of_many_items_some_teach(data, monkeypatch):
    assert len(some_in_training(data.items, data.train, 0)) == 24
    monkeypatch.setattr("llmrec.features.parts.part._ENOUGH", 10)
    some = some_in_training(data.items, data.train, 0)
    assert len(some) == len(set(some)) == 10 and (np.diff(some) > 0).all()
    assert (some == some_in_training(data.items, data.train, 0)).all()
    assert (some != some_in_training(data.items, data.train, 1)).any()


def test_the_cache_reads_what_is_asked_for(tmp_path):
    keys = [f"{number:016x}" for number in (2**63 + 5, 7, 3, 2**40)]
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    cache = EmbeddingCache(tmp_path / "cache")
    assert cache.read(keys) == {}
    cache.write(keys[:2], rows[:2])
    cache.write(keys[2:], rows[2:])
    for known in (cache, EmbeddingCache(tmp_path / "cache")):
        found = known.read([*keys[:3], "f" * 16])
        assert [*map(found.get, keys)][3] is None and len(found) == 3
        np.testing.assert_array_equal([found[key] for key in keys[:3]], rows[:3])
        known.shards[int(known._shard[known._keys == 3][0])].rename(tmp_path / "away")
        assert {*known.read(keys[:2])} == {*keys[:2]}  # the other shard is not opened
        (tmp_path / "away").rename(known.shards[int(known._shard[known._keys == 3][0])])


@pytest.mark.vllm
def test_actors_fill_the_cache_that_one_process_began(ray, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("llmrec.features.text_encoders._SHARD", 4)
    texts = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("lamp", "chair", "hose", "nail")]
    one = choose_text_encoder("auto", tmp_path / "one", batch_size=8).encode([*texts, texts[0]])
    choose_text_encoder("auto", tmp_path / "many", batch_size=8).encode(texts[:3])
    items = pa.table({"item_id": list(map(str, range(13))), "title": [*texts, texts[0]]})
    features = ItemFeatures([{"kind": "text"}], tmp_path / "many", actors=2)
    assert isinstance(features.parts[0].encoder, SentenceTransformerEncoder)
    caplog.clear()
    np.testing.assert_allclose(features.fit(items).encode(items), one, atol=1e-6)
    assert "4 of 13 texts are in the cache" in caplog.text
    caplog.clear()
    assert ItemFeatures([{"kind": "text"}], tmp_path / "many").encode(items).shape == (13, 384)
    assert "13 of 13 texts are in the cache" in caplog.text
