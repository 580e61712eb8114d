"""Popularity, item-kNN and SASRec: what they learn, what filters leave, and that a folder brings them back."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_checks import FILTERS, HISTORIES, KS, check_filters
from tiny import tiny_data

from llmrec.catalogue.filters import Filter
from llmrec.data import lists_to_rows
from llmrec.data.prepared import SEQUENCES, PreparedData
from llmrec.devices import best_device
from llmrec.evaluation import evaluate
from llmrec.features.next_item import next_item_batches, next_item_windows
from llmrec.features.sasrec_network import SASRecConfig
from llmrec.recommenders import load_recommender
from llmrec.recommenders.item_knn import ItemKNN, ItemKNNConfig
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.ranker import top_rows
from llmrec.recommenders.sasrec import SASRec

SASREC = SASRecConfig(
    max_length=8, hidden_size=32, dropout=0.1, learning_rate=5e-3, batch_size=8, max_epochs=60, patience=20
)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def baselines(data):
    return {"popularity": Popularity.fit(data), "item_knn": ItemKNN.fit(data), "sasrec": SASRec.fit(data, SASREC)}


def sequences(*lists: list[str], num_context: int = 0) -> pa.Table:
    return pa.table(
        {
            "user_id": [str(i) for i in range(len(lists))],
            "item_ids": list(lists),
            "timestamps": [[None] * len(one) for one in lists],
            "num_context": [num_context] * len(lists),
        },
        schema=SEQUENCES,
    )


def store(*lists: list[str], items: str = "abcde", num_context: int = 0) -> PreparedData:
    empty = tiny_data().valid.slice(0, 0)
    return PreparedData(
        pa.table({"item_id": list(items)}), sequences(*lists, num_context=num_context), empty, empty, {}
    )


@pytest.mark.parametrize("name", ["popularity", "item_knn", "sasrec"])
def test_protocol_filters_and_folder(name, baselines, data, tmp_path):
    recommender = baselines[name]
    plain = recommender.recommend(HISTORIES, k=5)
    assert [len(one) for one in plain] == [5] * 4
    for one in plain:
        assert len({item.item_id for item in one}) == 5
        assert [item.score for item in one] == sorted((item.score for item in one), reverse=True)
        assert all(item.title.endswith(item.item_id.removeprefix("item-").lstrip("0") or "0") for item in one)
    lists = check_filters(recommender)
    (one_each,) = recommender.recommend(HISTORIES[:1], k=100, filters=Filter(at_most={"brand": 1}))
    (whole,) = recommender.recommend(HISTORIES[:1], k=100)
    brand = dict(zip(data.items["item_id"].to_pylist(), data.items["brand"].to_pylist()))
    first = {brand[item.item_id]: item.item_id for item in reversed(whole)}
    assert sorted(item.item_id for item in one_each) == sorted(first.values())
    recommender.save_pretrained(tmp_path / name, {"data_fingerprint": data.fingerprint})
    again = load_recommender(tmp_path / name).recommend(HISTORIES, k=KS, filters=FILTERS)
    assert again == lists
    assert {path.name for path in (tmp_path / name).iterdir()} == {
        "config.json",
        "items.parquet",
        "counts.npy" if name == "popularity" else "model.safetensors",
    }
    with pytest.raises(ValueError, match="nowhere"):
        recommender.recommend([["nowhere"]])
    with pytest.raises(ValueError, match="k is 0, it should be a whole number of at least 1"):
        recommender.recommend([["item-03"]], k=0)
    assert recommender.recommend([]) == []


def test_sasrec_runs_where_it_is_told(baselines, tmp_path):
    recommender = baselines["sasrec"]
    recommender.save_pretrained(tmp_path / "sasrec")
    assert load_recommender(tmp_path / "sasrec").model.items.weight.device == best_device()
    again = load_recommender(tmp_path / "sasrec", device="cpu")
    assert again.model.items.weight.device.type == "cpu"
    assert again.recommend([["item-03"]]) == recommender.recommend([["item-03"]])
    assert load_recommender(tmp_path / "sasrec", device="meta").model.items.weight.is_meta
    (tmp_path / "sasrec" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
        load_recommender(tmp_path / "sasrec")


def test_an_unknown_kind_names_the_nearest(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "item_kn"}')
    with pytest.raises(ValueError, match="kind 'item_kn'.*did you mean 'item_knn'"):
        load_recommender(tmp_path)


def test_batches_do_not_change_lists(baselines):
    histories = [[f"item-{i:02d}" for i in range(n % 7)] for n in range(40)]
    for recommender in baselines.values():
        singles = [recommender.recommend([history], k=4)[0] for history in histories]
        together = recommender.recommend(histories, k=4)
        assert [[i.item_id for i in one] for one in together] == [[i.item_id for i in one] for one in singles]


def test_sasrec_learns_the_walk(baselines, data):
    metrics = evaluate(baselines["sasrec"], data.test, data, "sasrec", bootstrap=0).metrics
    assert metrics["recall@1"] >= 0.95
    assert evaluate(baselines["popularity"], data.test, data, "popularity", bootstrap=0).metrics["recall@1"] < 0.3


def test_sasrec_is_deterministic(data):
    config = SASRecConfig(max_length=8, hidden_size=16, max_epochs=2, batch_size=16)
    first, second = (SASRec.fit(data, config) for _ in range(2))
    for name, value in first.model.state_dict().items():
        assert np.array_equal(value.numpy(), second.model.state_dict()[name].numpy()), name


def test_sasrec_is_causal_and_blind_to_padding(baselines):
    import torch

    model = baselines["sasrec"].model
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 9]])
    with torch.no_grad():
        assert torch.allclose(model(ids)[:, :3], model(changed)[:, :3], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 45)), min_size=1, max_size=5), st.integers(1, 9))
def test_windows_label_every_target_once(shapes, max_length):
    items = [f"{i:02d}" for i in range(41)]
    train = pa.concat_tables(
        [sequences(items[:length], num_context=min(context, length)) for length, context in shapes]
    )
    wanted = sorted(i for length, context in shapes for i in range(max(1, min(context, length)), length))
    values, offsets = lists_to_rows(train["item_ids"], items)
    context = train["num_context"].to_numpy()
    if not wanted:
        for rows in ("dense", "prefix"):
            with pytest.raises(ValueError, match="no target"):
                next_item_windows(offsets, context, max_length, rows)
        return
    for rows in ("dense", "prefix"):
        windows = next_item_windows(offsets, context, max_length, rows)
        assert all(1 <= stop - first - 1 <= max_length and first < label < stop for first, stop, label in windows)
        assert sorted(int(i) for _, stop, label in windows for i in values[label:stop]) == wanted
        labels = []
        for ids, target, lengths, times in next_item_batches(values, values * 2, windows, 2, np.random.default_rng(0)):
            # Items are consecutive numbers, so a label is its input plus one.
            assert (target[target >= 0] == ids[target >= 0] + 1).all()
            assert (target[np.arange(len(target)), lengths - 1] >= 0).all()
            assert (times[target >= 0] == 2 * ids[target >= 0]).all()
            labels += target[target >= 0].tolist()
        assert sorted(labels) == wanted


def test_popularity_counts_and_ties_in_catalogue_order():
    recommender = Popularity.fit(store(["b", "c", "b"], ["c", "e"]))
    assert [(item.item_id, item.score) for item in recommender.recommend([["a"]], k=5)[0]] == [
        ("b", 2), ("c", 2), ("e", 1), ("a", 0), ("d", 0),
    ]  # fmt: skip


def test_item_knn_by_hand():
    # a: 2 sequences, b: 3 (twice in one of them), c: 1, d: 1, e: none.
    knn = ItemKNN.fit(store(["a", "b"], ["a", "b", "b"], ["b", "c"], ["d"]), ItemKNNConfig(neighbours=5, decay=0.5))
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2 / np.sqrt(6)
    expected[1, 2] = expected[2, 1] = 1 / np.sqrt(3)
    expected[1, 1] = 1 / 3
    np.testing.assert_allclose(knn.similarity.toarray(), expected, atol=1e-6)
    scores = {item.item_id: item.score for item in knn.recommend([["b", "a"]], k=5)[0]}
    assert scores["a"] == pytest.approx(0.5 * 2 / np.sqrt(6))
    assert scores["b"] == pytest.approx(2 / np.sqrt(6) + 0.5 / 3)
    assert scores["c"] == pytest.approx(0.5 / np.sqrt(3))
    assert scores["e"] < scores["d"] < 0, "items that no neighbour names rank last, by popularity"
    few = ItemKNN.fit(store(["a", "b"], ["a", "b", "b"], ["b", "c"]), ItemKNNConfig(neighbours=1))
    assert (np.diff(few.similarity.indptr) <= 1).all() and few.similarity[[1], [0]] > 0.8


def test_bad_settings_name_the_field():
    with pytest.raises(ValueError, match="decay"):
        ItemKNNConfig(decay=0)
    with pytest.raises(ValueError, match="num_heads"):
        SASRec.fit(tiny_data(), SASRecConfig(hidden_size=30, num_heads=4))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 25), st.randoms())
def test_top_rows_equals_a_stable_sort(scores, k, random):
    allowed = np.array([random.random() < 0.7 for _ in scores])
    order = sorted(np.flatnonzero(allowed), key=lambda i: (-scores[i], i))
    assert top_rows(np.array(scores, np.float32), k, allowed).tolist() == order[:k]
    assert top_rows(np.array(scores), k).tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
