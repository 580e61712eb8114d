import logging
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data

from llmrec.features import ItemFeatures
from llmrec.features.cooccurrence import cooccurrence_embeddings
from llmrec.features.parts.part import rows_in_training
from llmrec.features.text_encoders import AUTO_MODEL, SentenceTransformerEncoder, choose_text_encoder, item_text

TEXTS = [
    *(f"{colour} nail polish" for colour in ("red", "pink", "violet", "green", "black")),
    *(f"{size} inch torque wrench" for size in ("half", "quarter", "three quarter", "one", "two")),
    *(f"{roast} coffee beans" for roast in ("dark", "light", "medium", "Italian", "decaffeinated")),
    *(f"{kind} garden hose" for kind in ("green", "long", "short", "flexible", "heavy")),
]


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def test_item_text_leaves_out_what_is_missing():
    items = pa.table({"item_id": ["1", "2"], "title": ["Hammer", None], "brand": ["", "Acme"], "price": [1.5, None]})
    assert item_text(items) == ["Hammer", "Brand: Acme"]
    assert item_text(items, ["title", "price"]) == ["Hammer. Price: 1.5", ""]
    with pytest.raises(ValueError, match="none of the text columns"):
        item_text(items, ["description"])


def test_features_are_reproducible_and_know_new_items(data, tmp_path):
    spec = [{"kind": "text", "encoder": "tfidf", "dim": 8}, {"kind": "cooccurrence", "dim": 6, "weight": 0.5}]
    features = ItemFeatures(spec).fit(data.items, data.train)
    matrix = features.encode(data.items)
    assert matrix.shape == (24, 14) and matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix[:, :8], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(matrix[:, 8:], axis=1), 0.5, rtol=1e-5)
    assert (ItemFeatures(spec).fit(data.items, data.train).encode(data.items) == matrix).all()
    assert features.describe() == "text (tfidf) + 0.5 x cooccurrence"

    features.save_pretrained(tmp_path / "features")
    loaded = ItemFeatures.from_pretrained(tmp_path / "features")
    assert loaded.config == features.config
    assert (loaded.encode(data.items) == matrix).all()
    new = pa.table({"item_id": ["new"], "title": data.items["title"][3:4], "brand": data.items["brand"][3:4],
                    "categories": data.items["categories"][3:4]})  # fmt: skip
    row = loaded.encode(new)[0]
    np.testing.assert_array_equal(row[:8], matrix[3, :8])
    assert (row[8:] == 0).all()  # nobody has consumed it yet


def test_neighbours_in_sequences_are_neighbours_in_space(data):
    ids = data.items["item_id"].to_pylist()
    vectors = cooccurrence_embeddings(ids, data.train, dim=8, window=2)
    similarity = vectors @ vectors.T
    near = np.mean([similarity[i, (i + 1) % 24] for i in range(24)])
    far = np.mean([similarity[i, (i + 12) % 24] for i in range(24)])
    assert near > far + 0.3
    with pytest.raises(ValueError, match="lower dim"):
        cooccurrence_embeddings(ids, data.train, dim=24)
    with pytest.raises(ValueError, match="not in the catalogue"):
        cooccurrence_embeddings(ids[1:], data.train, dim=4)
    alone = pa.table({"item_ids": [[ids[0]], [ids[1], ids[1]]]})
    with pytest.raises(ValueError, match="no training sequence holds two different items"):
        cooccurrence_embeddings(ids, alone, dim=4)


def test_only_training_items_teach(data):
    short = data.train.slice(0, 2)
    rows = rows_in_training(data.items, short)
    seen = {item for items in short["item_ids"].to_pylist() for item in items}
    assert {data.items["item_id"][int(row)].as_py() for row in rows} == seen
    assert len(rows_in_training(data.items, None)) == 24
    part = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 4}]).fit(data.items, short).parts[0]
    words = {word for row in rows for word in data.items["title"][int(row)].as_py().split()}
    assert {term for term in part.encoder.vocabulary if term.isdigit()} <= words


def test_precomputed_embeddings(data, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    np.save(tmp_path / "e.npy", matrix)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    features = ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "e.npy")}]).fit(data.items)
    np.testing.assert_allclose(features.encode(data.items), unit, rtol=1e-6)
    np.testing.assert_allclose(features.encode(data.items.slice(5, 2)), unit[5:7], rtol=1e-6)

    ids = data.items["item_id"].to_pylist()
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"item_id": ids[::-1], "embedding": matrix[::-1].tolist()}), path)
    features = ItemFeatures([{"kind": "precomputed", "path": str(path)}]).fit(data.items)
    np.testing.assert_allclose(features.encode(data.items), unit, rtol=1e-6)

    pq.write_table(pa.table({"item_id": ids[:3], "embedding": matrix[:3].tolist()}), path)
    with pytest.raises(ValueError, match="no embedding of item 'item-03'"):
        features.encode(data.items)
    pq.write_table(pa.table({"item_id": [*ids, ids[4]], "embedding": [*matrix.tolist(), [0.0] * 5]}), path)
    with pytest.raises(ValueError, match="more than one embedding of item 'item-04'"):
        features.encode(data.items)
    pq.write_table(pa.table({"item_id": ids[:2], "embedding": [[1.0], [1.0, 2.0]]}), path)
    with pytest.raises(ValueError, match="different lengths"):
        features.encode(data.items)
    pq.write_table(pa.table({"item_id": ids, "vector": matrix.tolist()}), path)
    with pytest.raises(ValueError, match="no column 'embedding'"):
        features.encode(data.items)
    np.save(tmp_path / "e.npy", matrix[:7])
    with pytest.raises(ValueError, match="7 rows for a catalogue of 24 items"):
        ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "e.npy")}]).fit(data.items).encode(data.items)
    matrix[3] = np.nan
    np.save(tmp_path / "e.npy", matrix)
    with pytest.raises(ValueError, match="e.npy: the embedding of item 'item-03' holds NaN"):
        ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "e.npy")}]).fit(data.items).encode(data.items)


def test_bad_specs(data):
    with pytest.raises(ValueError, match="'audio' is not one of"):
        ItemFeatures([{"kind": "audio"}])
    with pytest.raises(ValueError, match="kind 'cooccurrence': .*'size'"):
        ItemFeatures([{"kind": "cooccurrence", "size": 3}])
    with pytest.raises(ValueError, match="need training sequences"):
        ItemFeatures([{"kind": "cooccurrence"}]).fit(data.items)
    empty = pa.table({"item_id": ["1", "2"], "title": ["", "!"]})
    with pytest.raises(ValueError, match="no words to learn from"):
        ItemFeatures([{"kind": "text", "encoder": "tfidf"}]).fit(empty)
    with pytest.raises(ValueError, match="(?s)cannot be loaded .* or encoder: tfidf"):
        SentenceTransformerEncoder("no/such-model-here").encode(["text"])


def test_scripts_without_spaces_are_read_by_character():
    """One Japanese title is no single term: ramen is near to ramen, and new titles have terms that are known."""
    places, dishes = ["東京", "大阪", "京都", "札幌", "福岡"], ["ラーメン屋台", "抹茶ケーキ", "味噌汁セット"]
    titles = [place + dish for dish in dishes for place in places]
    encoder = choose_text_encoder("tfidf", dim=8).fit(titles)
    vectors = encoder.encode(titles)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert (similarity.argmax(1) // 5 == np.arange(15) // 5).all()
    assert (encoder.encode(["名古屋ラーメン"]) @ vectors.T).argmax() < 5
    words = choose_text_encoder("tfidf").fit(["Red hat x", "blue hat_2, 42"]).vocabulary
    assert words == ["42", "blue", "blue hat_2", "hat", "hat_2", "hat_2 42", "red", "red hat"]


def test_an_item_without_text_gets_a_zero_vector():
    items = pa.table({"item_id": ["1", "2", "3"], "title": ["red hat", "blue hat", ""]})
    matrix = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 2}]).fit(items).encode(items)
    assert (matrix[2] == 0).all() and (matrix[:2] != 0).any(1).all()


def test_a_real_sentence_transformer_with_its_cache(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    encoder = choose_text_encoder("auto", cache_dir=tmp_path, batch_size=8)
    assert encoder.config["model_name_or_path"] == AUTO_MODEL and "auto chose" in caplog.text
    first = encoder.encode(TEXTS[:12])
    assert "0 of 12 texts are in the cache" in caplog.text
    both = choose_text_encoder(AUTO_MODEL, cache_dir=tmp_path).encode([*TEXTS, TEXTS[0]])
    assert "13 of 21 texts are in the cache" in caplog.text
    assert both.shape == (21, 384) and both.dtype == np.float32
    assert (both[:12] == first).all() and (both[20] == both[0]).all()
    similarity = both[:20] @ both[:20].T
    np.fill_diagonal(similarity, -1)
    assert (similarity.argmax(1) // 5 == np.arange(20) // 5).mean() >= 0.9  # the nearest is of the same kind
    shorter = choose_text_encoder(AUTO_MODEL, cache_dir=tmp_path, max_seq_length=4)
    shorter.encode(TEXTS[:2])
    assert "0 of 2 texts are in the cache" in caplog.text  # another model, other embeddings


WRITER = """if True:
    import sys
    from llmrec.features.text_encoders import choose_text_encoder
    texts = [f"thing {n % 150}" for n in range(300)]
    print(choose_text_encoder("auto", cache_dir=sys.argv[1], batch_size=8).encode(texts).sum())
    """


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {writer.communicate()[0] for writer in writers}
    assert len(sums) == 1 and all(not writer.returncode for writer in writers)
    subprocess.run(command, check=True)  # reads what both wrote
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_damaged_shard_of_the_cache_is_named(tmp_path):
    choose_text_encoder("auto", cache_dir=tmp_path).encode(["thing 1"])
    (shard,) = tmp_path.rglob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{shard.name} is not a readable .* remove \S+{shard.name}, and it is made"):
        choose_text_encoder("auto", cache_dir=tmp_path).encode(["thing 1"])
