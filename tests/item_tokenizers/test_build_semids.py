import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.catalogue.collisions import COLLISION_POLICIES
from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.catalogue.semids import SemIDIndex
from llmrec.item_tokenizers import RQKMeans, add_items, build_semids, fit_semids


def catalogue(count=120, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, dim)).astype(np.float32)
    features[10:14] = features[0]  # equal texts
    return [f"i{i}" for i in range(count)], features


@pytest.mark.parametrize("collision", COLLISION_POLICIES)
@given(seed=st.integers(0, 100), old=st.integers(40, 110))
@settings(deadline=None, max_examples=8)
def test_adding_items_moves_nobody(tmp_path_factory, collision, seed, old):
    ids, features = catalogue(seed=seed)
    tokenizer = RQKMeans([5, 4, 3], niter=4).fit(features[:old], seed=seed)
    index = build_semids(ids[:old], features[:old], tokenizer, collision, collision_reserve=100)
    grown = add_items(index, tokenizer, features[old:], ids[old:])
    assert grown.codebook_sizes == index.codebook_sizes
    assert grown.items == ids
    assert all(grown.encode(item) == index.encode(item) for item in index.items)
    if collision != "keep":
        assert all(grown.decode(grown.encode(item)) == [item] for item in ids)
    assert grown.info["changelog"] == [{"version": 2, "added": len(ids) - old, "removed": 0}]
    assert grown.info["collisions_after"]["items"] == len(ids)
    again = add_items(index, tokenizer, features[old:], ids[old:])
    assert (again.codes == grown.codes).all()
    path = tmp_path_factory.mktemp("s") / "semids.parquet"
    grown.save(path)
    loaded = SemIDIndex.load(path)
    assert loaded.fingerprint == grown.fingerprint and loaded.info == grown.info


@pytest.mark.parametrize("collision", COLLISION_POLICIES)
@given(seed=st.integers(0, 100), warm=st.integers(60, 119))
@settings(deadline=None, max_examples=6)
def test_items_that_training_never_showed_change_nothing_for_the_others(collision, seed, warm):
    ids, features = catalogue(seed=seed)
    shown = np.sort(np.random.default_rng(seed).permutation(120)[:warm])
    items, train = pa.table({"item_id": ids}), pa.table({"item_ids": [[ids[row] for row in shown]]})

    def index_of(rows):
        tokenizer = RQKMeans([5, 4, 3], niter=4)
        return fit_semids(tokenizer, features[rows], items.take(pa.array(rows)), train, seed, collision=collision)

    everything, alone = index_of(np.arange(120)), index_of(shown)
    assert [everything.encode(ids[row]) for row in shown] == [alone.encode(ids[row]) for row in shown]
    assert everything.items == ids
    if collision != "keep":
        assert len({everything.encode(item) for item in ids}) == 120


def test_training_without_the_catalogues_items_is_refused():
    ids, features = catalogue()
    train = pa.table({"item_ids": pa.array([[]], pa.list_(pa.string()))})
    with pytest.raises(ValueError, match="no training sequence holds an item"):
        fit_semids(RQKMeans([4]), features, pa.table({"item_id": ids}), train)


def test_the_index_says_how_it_was_made():
    ids, features = catalogue()
    tokenizer = RQKMeans([8, 8, 8]).fit(features)
    index = build_semids(ids, features, tokenizer, "append", info={"features": [{"kind": "text"}]})
    assert index.info["collision"] == "append" and index.info["features"] == [{"kind": "text"}]
    assert index.info["item_tokenizer"]["codebook_sizes"] == [8, 8, 8]
    assert index.info["collisions_before"]["largest_group"] >= 5
    assert index.info["collisions_after"]["collision_rate"] == 0
    largest = index.info["collisions_before"]["largest_group"]
    assert index.codebook_sizes == (8, 8, 8, largest + 32)
    assert index.lengths.min() == 3 and index.lengths.max() == 4
    json.dumps(index.info)


def test_clear_errors():
    ids, features = catalogue()
    tokenizer = RQKMeans([4, 4], niter=2).fit(features)
    with pytest.raises(ValueError, match="'drop' is not one of"):
        build_semids(ids, features, tokenizer, "drop")
    with pytest.raises(ValueError, match="'i0' appears twice"):
        build_semids(["i0"] * len(ids), features, tokenizer)
    with pytest.raises(ValueError, match="119 item ids for features of 120"):
        build_semids(ids[1:], features, tokenizer)
    index = build_semids(ids[:100], features[:100], tokenizer, "append_all", collision_reserve=0)
    with pytest.raises(ValueError, match="'i3' has a Semantic ID already"):
        add_items(index, tokenizer, features[3:4], ["i3"])
    with pytest.raises(ValueError, match="collision level full"):
        add_items(index, tokenizer, np.repeat(features[:1], 30, 0), [f"n{i}" for i in range(30)])
    other = RQKMeans([4, 4], niter=2).fit(features, seed=1)
    with pytest.raises(ValueError, match="not built with this item tokenizer"):
        add_items(index, other, features[100:], ids[100:])


def test_ready_made_semids(tmp_path):
    tokens = [["<a_1>", "<b_2>"], ["<a_1>", "<b_2>"], ["<a_3>", "<b_0>", "<c_1>"]]
    items = pa.table({"item_id": ["x", "y", "z"], "sid": tokens})
    index = ready_made_semids(items, "sid")
    assert index.decode("<a_1><b_2>") == ["x", "y"] and index.encode("z") == "<a_3><b_0><c_1>"
    assert index.info["collisions_after"]["collision_rate"] == pytest.approx(1 / 3)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(dict(zip(["z", "y", "x"], tokens[::-1]))))
    assert (ready_made_semids(items, str(path)).codes == index.codes).all()
    with pytest.raises(ValueError, match="neither a column"):
        ready_made_semids(items, "semid")
    holes = pa.table({"item_id": ["x", "y"], "sid": [["<a_1>"], None]})
    with pytest.raises(ValueError, match="'y' has no Semantic ID in column 'sid'"):
        ready_made_semids(holes, "sid")
