"""Content-kNN: near by text, recent items first, nothing that is not learned from training items."""

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_data

from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.recommenders import load_recommender
from llmrec.recommenders.content_knn import ContentKNN, ContentKNNConfig


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def knn(data):
    return ContentKNN.fit(data)


def by_hand(vectors, decay=0.5, counts=None):
    items = pa.table({"item_id": list("abcde")[: len(vectors)]})
    counts = np.arange(len(vectors)) if counts is None else counts
    return ContentKNN(items, np.asarray(vectors, np.float32), counts, ContentKNNConfig(content_decay=decay))


def test_scores_by_hand():
    knn = by_hand([[1, 0], [0.6, 0.8], [0, 1], [0, 1], [0, 0]])
    scores = {item.item_id: item.score for item in knn.recommend([["a", "c"]], k=5)[0]}
    assert scores == pytest.approx({"a": 0.0, "b": 0.5 * 0.6 + 0.8, "c": 0.0, "d": 1.0, "e": 0.0}, abs=1e-5)
    assert [item.item_id for item in knn.recommend([["a", "c"]], k=2)[0]] == ["b", "d"]
    # An item seen twice is still not its own neighbour, and an empty history gets the popular items.
    assert knn.recommend([["d", "d"]], k=1)[0][0].item_id == "c"
    assert [item.item_id for item in knn.recommend([[]], k=3)[0]] == ["e", "d", "c"]


def test_protocol_filters_and_folder(knn, data, tmp_path):
    histories = [["item-03", "item-04"], [], ["item-10"] * 3]
    filters = [Filter(exclude_seen=True), Filter(where=[("price", "<", 4)]), Filter(allow=["item-00", "item-23"])]
    lists = knn.recommend(histories, [24, 3, 5], filters)
    assert [len(one) for one in lists] == [22, 3, 2]
    assert lists[0][0].title.startswith(("red", "green"))  # items 3 and 4 are red and green
    assert {item.item_id for item in lists[2]} == {"item-00", "item-23"}
    knn.save_pretrained(tmp_path / "knn", {"data_fingerprint": data.fingerprint})
    again = load_recommender(tmp_path / "knn")
    assert type(again) is ContentKNN and again.config == knn.config
    assert again.recommend(histories, [24, 3, 5], filters) == lists
    with pytest.raises(ValueError, match="nowhere"):
        knn.recommend([["nowhere"]])


def test_batches_do_not_change_lists(knn):
    histories = [[f"item-{i:02d}" for i in range(n % 7)] for n in range(30)]
    together = knn.recommend(histories, k=6)
    singles = [knn.recommend([history], k=6)[0] for history in histories]
    assert [[i.item_id for i in one] for one in together] == [[i.item_id for i in one] for one in singles]


def test_items_outside_training_change_nothing_for_the_others(data, knn):
    """TF-IDF sees the words of training items only: another text of a cold item moves the cold item alone."""
    train = data.train.filter(pa.array(["item-07" not in items for items in data.train["item_ids"].to_pylist()]))
    cold = PreparedData(data.items, train, data.valid, data.test)
    titles = data.items["title"].to_pylist()
    titles[7] = "something else entirely about gardens"
    retold = PreparedData(data.items.set_column(1, "title", [titles]), train, data.valid, data.test)
    first, second = ContentKNN.fit(cold).vectors, ContentKNN.fit(retold).vectors
    others = np.arange(24) != 7
    np.testing.assert_array_equal(first[others], second[others])
    assert not np.allclose(first[7], second[7])


def test_bad_settings_name_the_field():
    with pytest.raises(ValueError, match="content_decay"):
        ContentKNNConfig(content_decay=0)
    with pytest.raises(ValueError, match="'sound' is not one of"):
        ContentKNN.fit(tiny_data(), ContentKNNConfig(content_features=[{"kind": "sound"}]))
