"""Cold items: out of every training and validation row, and in the catalogue."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_data

from llmrec.data import PreparedData, training_rows
from llmrec.data.cold_items import check_cold, hold_out_items


@pytest.fixture(scope="module")
def data():
    return tiny_data(num_users=80, length=9)


def ids_of(column):
    return {item for items in column.to_pylist() for item in items}


def targets(*tables):
    return sorted((u, tuple(h), t) for table in tables
                  for u, h, t in zip(*(table[c].to_pylist() for c in ("user_id", "history", "target"))))  # fmt: skip


@given(fraction=st.floats(0.05, 0.6), seed=st.integers(0, 1000), from_training=st.booleans())
@settings(deadline=None, max_examples=25)
def test_cold_items_are_in_the_shop_and_in_no_fitted_row(data, fraction, seed, from_training):
    held = hold_out_items(data, fraction, seed, from_training)
    gone = set(held.info["cold_items"])
    assert held.items.equals(data.items) and len(gone) >= round(fraction * 24)
    assert not gone & (ids_of(held.train["item_ids"]) | ids_of(held.valid["history"]))
    assert not gone & set(held.valid["target"].to_pylist())
    assert set(data.items["item_id"].to_pylist()) - gone == ids_of(held.train["item_ids"])
    # What is left of a user's sequence is the sequence without the cold items, in order.
    was = dict(
        zip(data.train["user_id"].to_pylist(), zip(*(data.train[c].to_pylist() for c in ("item_ids", "timestamps"))))
    )
    for row in held.train.to_pylist():
        kept = [(item, time) for item, time in zip(*was[row["user_id"]]) if item not in gone]
        assert list(zip(row["item_ids"], row["timestamps"])) == kept and row["num_context"] == 1
    # Every test row is a row of before: test, cold validation, and where asked for, cold training targets.
    sources = [data.test, data.valid] + ([training_rows(data.train)] if from_training else [])
    expected = targets(data.test) + [row for row in targets(*sources[1:]) if row[2] in gone]
    assert targets(held.test) == sorted(expected)
    assert hold_out_items(data, fraction, seed, from_training).fingerprint == held.fingerprint


def test_lists_beside_the_items_lose_the_same_places(data):
    """A column parallel to the items, as the kinds of interaction are."""
    kinds = [[f"kind of {item}" for item in items] for items in data.train["item_ids"].to_pylist()]
    train = data.train.append_column("behaviours", pa.array(kinds))
    held = hold_out_items(PreparedData(data.items, train, data.valid, data.test), 0.3)
    assert held.train.schema == train.schema
    for row in held.train.to_pylist():
        assert row["behaviours"] == [f"kind of {item}" for item in row["item_ids"]]


def test_drawn_evenly_over_popularity():
    # 60 items, item i in i + 1 sequences: any third of the ranks gives a third of the cold items.
    items = [f"i{n:02d}" for n in range(60)]
    lists = [[f"i{n:02d}", "i59"] for n in range(60) for _ in range(n + 1)]
    data = tiny_data()
    users, times = [f"u{n}" for n in range(len(lists))], [[0, 1]] * len(lists)
    columns = {"user_id": users, "item_ids": lists, "timestamps": times, "num_context": [1] * len(lists)}
    train = pa.table(columns).cast(data.train.schema)
    empty = data.valid.slice(0, 0)
    store = PreparedData(pa.table({"item_id": items, "title": items}), train, empty, empty)
    for seed in range(5):
        drawn = np.array([int(item[1:]) for item in hold_out_items(store, 0.2, seed).info["cold_items"]])
        assert np.bincount(drawn // 20, minlength=3).tolist() == [4, 4, 4]


def test_a_leak_is_found(data):
    cold = hold_out_items(data, 0.2, seed=1)
    assert check_cold(cold) == cold.info["cold_items"]
    with pytest.raises(ValueError, match="leak: cold item 'item-.*' stands in train"):
        check_cold(PreparedData(cold.items, data.train, cold.valid, cold.test, cold.info))
    with pytest.raises(ValueError, match="stands in validation histories"):
        check_cold(PreparedData(cold.items, cold.train, data.valid, cold.test, cold.info))
    with pytest.raises(ValueError, match="training has seen every item: .* hold_out makes some"):
        check_cold(data)
    unnamed = {key: value for key, value in cold.info.items() if key != "cold_items"}
    found = check_cold(PreparedData(cold.items, cold.train, cold.valid, cold.test, unnamed))
    seen = ids_of(cold.valid["history"]) | {*cold.valid["target"].to_pylist()}
    assert set(found) == set(cold.info["cold_items"]) - seen  # a store's newest items need no holding out
    for fraction in (0.0, 0.01, 1.0):
        with pytest.raises(ValueError, match="it should be some"):
            hold_out_items(data, fraction)
    late = cold.valid.set_column(2, "target", [cold.info["cold_items"][:1] * cold.valid.num_rows])
    with pytest.raises(ValueError, match="stands in validation targets"):
        check_cold(PreparedData(cold.items, cold.train, late, cold.test, cold.info))
