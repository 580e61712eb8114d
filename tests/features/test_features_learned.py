"""Features that are learned from training items and sequences, and nothing else."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_data

from llmrec.features import ItemFeatures
from llmrec.features.parts.categorical import sequentialise

TFIDF = {"kind": "text", "encoder": "tfidf", "dim": 6}
COLUMNS = ["brand", "categories", "price"]
SPECS = {
    "categorical": {"kind": "categorical", "columns": COLUMNS, "bins": 4, "dim": 5},
    "multi-hot": {"kind": "categorical", "columns": COLUMNS, "bins": 4, "dim": None},
    "sasrec": {"kind": "collaborative", "method": "sasrec", "dim": 8, "epochs": 2},
    "item2vec": {"kind": "collaborative", "method": "item2vec", "dim": 8, "epochs": 2},
    "svd": {"kind": "collaborative", "method": "svd", "dim": 8},
    "cooccurrence": {"kind": "cooccurrence", "dim": 8},
    "graph": {"kind": "graph", "of": TFIDF},
    "graph of several": {
        "kind": "graph",
        "of": [TFIDF, {"kind": "collaborative", "method": "svd", "dim": 8}],
        "layers": 1,
    },
    "pca": {**TFIDF, "reduce": {"pca": 3}},
    "whitened graph": {"kind": "graph", "of": TFIDF, "reduce": {"pca": 3, "whiten": True}, "weight": 0.5},
}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_state_is_exact_and_only_training_items_teach(spec, data, tmp_path):
    """Items 20 to 23 occur in no training sequence: whatever they hold, nobody else's features change."""
    known = set(data.items["item_id"].to_pylist()[:20])
    walks = [[item for item in walk if item in known] for walk in data.train["item_ids"].to_pylist()]
    train = pa.table({"item_ids": walks})
    torch.manual_seed(1)
    features = ItemFeatures([spec]).fit(data.items, train, seed=3)
    matrix = features.encode(data.items)
    torch.manual_seed(2)
    assert (ItemFeatures([spec]).fit(data.items, train, seed=3).encode(data.items) == matrix).all()
    norms = np.linalg.norm(matrix[:20], axis=1)
    np.testing.assert_allclose(norms, spec.get("weight", 1), rtol=1e-5)

    features.save_pretrained(tmp_path / "features")
    loaded = ItemFeatures.from_pretrained(tmp_path / "features")
    assert loaded.config == features.config and loaded.describe() == features.describe()
    assert (loaded.encode(data.items) == matrix).all()
    assert (loaded.encode(data.items.slice(7, 1)) == matrix[7]).all()

    strange = pa.table(
        {
            "item_id": [f"new {i}" for i in range(9)],
            "title": ["utterly different words"] * 9,
            "brand": ["nobody's"] * 9,
            "categories": ["Elsewhere > Far"] * 9,
            "price": [1e6] * 9,
        }
    )
    other = pa.concat_tables([strange, data.items.slice(0, 20)])
    again = ItemFeatures([spec]).fit(other, train, seed=3)
    assert (again.encode(other.slice(9)) == matrix[:20]).all()


def test_categories_have_levels_bins_and_a_vocabulary():
    items = pa.table(
        {
            "item_id": list("12345"),
            "path": ["Shop > Nails > Polish", "Shop > Nails", "Shop > Hair | Gifts", "Shop > Gifts | Hair", ""],
            "tags": [["red", None, "matt"], ["red"], ["matt", None], [], None],
            "year": [1999, 1999, 2005, None, 2005],
            "new": [True, False, True, False, None],
        }
    )
    columns = ["year", "path", "tags", "new"]
    assert sequentialise(items, columns)[:3] == [
        [
            "year=0",
            "path=Shop",
            "path=Shop > Nails",
            "path=Shop > Nails > Polish",
            "tags=red",
            "tags=matt",
            "new=True",
        ],
        ["year=0", "path=Shop", "path=Shop > Nails", "tags=red", "new=False"],
        ["year=1", "path=Shop", "path=Shop > Hair", "path=Gifts", "tags=matt", "new=True"],
    ]
    assert sequentialise(items, ["path"], min_count=2)[0] == ["path=Shop", "path=Shop > Nails"]
    train = pa.table({"item_ids": [["1", "2", "3"]]})
    # Every training item is of the shop, so that tells nothing; nothing of item 4 is known.
    assert sequentialise(items, ["path"], train)[1:4] == [
        ["path=Shop > Nails"],
        ["path=Shop > Hair", "path=Gifts"],
        [],
    ]

    part = {"kind": "categorical", "columns": columns, "dim": None, "min_count": 1}
    features = ItemFeatures([part]).fit(items)
    unknown = pa.table(
        {"item_id": ["6"], "path": ["Garden"], "tags": [["blue"]], "year": [None], "new": [None]},
        schema=items.schema,
    )
    assert (features.encode(unknown) == 0).all() and features.encode(items).all(0).sum() == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.integers(2, 6))
def test_bins_of_a_number_keep_its_order_and_share_items_out(prices, bins):
    items = pa.table({"item_id": [str(i) for i in range(len(prices))], "price": prices})
    distinct = len(set(prices))
    if distinct == 1:
        with pytest.raises(ValueError, match="column 'price' tells"):
            sequentialise(items, ["price"], bins=bins)
        return
    tokens = sequentialise(items, ["price"], bins=bins)
    found = [b for _, b in sorted((price, int(row[0].split("=")[1])) for price, row in zip(prices, tokens))]
    assert found == sorted(found) and len(set(found)) >= 2
    if distinct <= bins:
        assert len(set(found)) == distinct
    elif distinct == len(prices):
        sizes = np.unique(found, return_counts=True)[1]
        assert len(sizes) == bins and sizes.max() - sizes.min() <= 1


def test_bad_columns(data):
    def fit(items=data.items, **spec):
        return ItemFeatures([{"kind": "categorical", "columns": ["brand"], **spec}]).fit(items)

    with pytest.raises(ValueError, match="kind 'categorical': the catalogue has no column 'colour'"):
        fit(columns=["brand", "colour"])
    with pytest.raises(ValueError, match="column 'year' tells the 24 training items nothing"):
        fit(data.items.append_column("year", pa.array([1999] * 24)), columns=["year"])
    with pytest.raises(ValueError, match="column 'price' tells"):
        fit(data.items.set_column(4, "price", pa.array([float("nan")] * 24)), columns=["price"])
    with pytest.raises(ValueError, match="column 'title' tells .* at least 2 .min_count"):
        fit(columns=["title"])
    with pytest.raises(ValueError, match="column 'box' holds struct"):
        fit(data.items.append_column("box", pa.array([{"w": 1}] * 24)), columns=["box"])
    with pytest.raises(ValueError, match="must be a list"):
        fit(columns="brand")
    with pytest.raises(ValueError, match="'price' held numbers at fit and holds string now"):
        fit(columns=["price"]).encode(data.items.set_column(4, "price", pa.array(["1"] * 24)))
    with pytest.raises(ValueError, match="kind 'text': columns .'same'. hold the same text"):
        same = data.items.append_column("same", pa.array(["x y"] * 24))
        ItemFeatures([TFIDF | {"columns": ["same"]}]).fit(same)


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "sasrec", "epochs": 80, "patience": 80},
        {"method": "item2vec", "epochs": 15, "batch_size": 128, "learning_rate": 0.1},
        {"method": "svd"},
    ],
    ids=lambda spec: spec["method"],
)
def test_collaborative_neighbours_are_neighbours_in_sequences(spec, data):
    """Users walk through the catalogue in order, so items are alike that are a few steps apart."""
    vectors = (
        ItemFeatures([{"kind": "collaborative", "dim": 16, **spec}]).fit(data.items, data.train).encode(data.items)
    )
    similarity = vectors @ vectors.T
    near = np.mean([similarity[i, (i + 1) % 24] for i in range(24)])
    far = np.mean([similarity[i, (i + 12) % 24] for i in range(24)])
    assert near > far + 0.2


def test_bad_collaborative_specs(data):
    for spec, match in (
        ({"method": "magic"}, "kind 'collaborative': method 'magic' is not one of sasrec, item2vec, svd"),
        ({"method": "svd", "epochs": 3}, "'svd' has no argument 'epochs'; it has dim, window"),
    ):
        with pytest.raises(ValueError, match=match):
            ItemFeatures([{"kind": "collaborative", **spec}])
    with pytest.raises(ValueError, match="kind 'collaborative': they need training sequences"):
        ItemFeatures([{"kind": "collaborative"}]).fit(data.items)
    short = pa.table({"item_ids": [["item-00", "item-01"]] * 3})
    with pytest.raises(ValueError, match="sequences with two targets"):
        ItemFeatures([{"kind": "collaborative"}]).fit(data.items, short)
    alone = pa.table({"item_ids": [["item-00"]] * 3})
    with pytest.raises(ValueError, match="no training sequence holds two different items"):
        ItemFeatures([{"kind": "collaborative", "method": "item2vec"}]).fit(data.items, alone)


def test_graph_features_are_the_propagated_ones(data):
    """Against dense algebra: the mean of X, A'AX and (A'A)²X with A the normalised user-item matrix."""
    own = ItemFeatures([TFIDF]).fit(data.items, data.train)
    new = pa.table({"item_id": ["new"], "title": ["red gadget"], "brand": [""], "categories": [""]})
    features = ItemFeatures([{"kind": "graph", "of": TFIDF}]).fit(data.items, data.train)
    ids = data.items["item_id"].to_pylist()
    consumed = np.array([[item in walk for item in ids] for walk in data.train["item_ids"].to_pylist()], float)
    adjacency = consumed / np.sqrt(consumed.sum(1, keepdims=True)) / np.sqrt(consumed.sum(0))
    hop = adjacency.T @ adjacency
    x = own.encode(data.items)
    wanted = x + hop @ x + hop @ hop @ x
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(features.encode(data.items), wanted, atol=1e-5)
    np.testing.assert_allclose(features.encode(new), own.encode(new), atol=1e-6)  # nobody has consumed it yet
    assert features.describe() == "graph (text (tfidf))"
    with pytest.raises(ValueError, match="kind 'graph': .*'of'"):
        ItemFeatures([{"kind": "graph"}])
    with pytest.raises(ValueError, match="kind 'graph': features kind 'texts' is not one of"):
        ItemFeatures([{"kind": "graph", "of": {"kind": "texts"}}])
    with pytest.raises(ValueError, match="need training sequences"):
        ItemFeatures([{"kind": "graph", "of": TFIDF}]).fit(data.items)


def test_whitening_evens_directions_out_and_leaves_zero_rows(tmp_path):
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(400, 6)) * [10, 5, 2, 1, 1e-9, 0] + 3).astype(np.float32)
    matrix[7] = 0
    np.save(tmp_path / "e.npy", matrix)
    items = pa.table({"item_id": [str(i) for i in range(400)]})
    part = {"kind": "precomputed", "path": str(tmp_path / "e.npy")}

    def reduced(**reduce):
        features = ItemFeatures([part | {"reduce": reduce}]).fit(items)
        return features, features.reductions[0](matrix)

    features, white = reduced(pca=4, whiten=True)
    np.testing.assert_allclose(np.cov(np.delete(white, 7, 0).T), np.eye(4), atol=1e-3)
    assert (white[7] == 0).all() and (features.encode(items)[7] == 0).all()
    plain = np.delete(reduced(pca=4)[1], 7, 0)
    kept = np.delete(matrix, 7, 0)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), np.linalg.norm(kept - kept.mean(0), axis=1), rtol=1e-4)
    with pytest.raises(ValueError, match="'precomputed': reduce: pca=5 needs 5 directions; 399 .* have 4: lower it"):
        reduced(pca=5)
    with pytest.raises(ValueError, match="pca=7 needs 7 directions"):
        reduced(pca=7)
    with pytest.raises(ValueError, match="pca=0 must be"):
        reduced(pca=0)
    with pytest.raises(ValueError, match="'precomputed': .*'size'"):
        reduced(pca=2, size=3)
