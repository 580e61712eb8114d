"""Kinds of interaction from the log to the prepared tables."""

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import PreparedData, check_no_leak, prepare, training_rows
from llmrec.data.sources.tables import load_tables
from llmrec.data.synthetic import generate_store

ITEMS = pa.table({"item_id": list("abcdef"), "title": list("ABCDEF")})
KINDS = ["view", "cart", "buy"]


def log_of(users: list[list[tuple[str, str]]]) -> pa.Table:
    rows = [(f"u{u}", item, time, kind) for u, walk in enumerate(users) for time, (item, kind) in enumerate(walk)]
    return pa.table(dict(zip(("user_id", "item_id", "timestamp", "behaviour"), zip(*rows))))


def pairs(items: list, kinds: list) -> list[tuple]:
    return list(zip(items, kinds, strict=True))


WALKS = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(KINDS)), min_size=1, max_size=9),
    min_size=1,
    max_size=5,
).filter(lambda users: len({kind for walk in users for _, kind in walk}) > 1)


@settings(deadline=None, max_examples=60)
@given(WALKS, st.sampled_from(["keep", "drop_consecutive", "first"]), st.integers(1, 5))
def test_every_item_keeps_its_kind_through_repeats_and_split(users, repeats, max_history):
    data = prepare(log_of(users), ITEMS, repeats=repeats, max_history=max_history)
    kept = []
    for walk in users:
        if repeats == "first":
            walk = list(dict.fromkeys(walk))
        if repeats == "drop_consecutive":
            walk = [step for i, step in enumerate(walk) if not i or step != walk[i - 1]]
        kept.append(walk)
    train = {row["user_id"]: pairs(row["item_ids"], row["behaviours"]) for row in data.train.to_pylist()}
    assert train == {f"u{u}": walk if len(walk) < 3 else walk[:-2] for u, walk in enumerate(kept)}
    for name, left in (("valid", 2), ("test", 1)):
        for row in getattr(data, name).to_pylist():
            walk = kept[int(row["user_id"][1:])]
            assert (row["target"], row["target_behaviour"]) == walk[-left]
            assert pairs(row["history"], row["behaviours"]) == walk[:-left][-max_history:]
    for row in training_rows(data.train, max_history).to_pylist():
        walk = train[row["user_id"]]
        at = row["timestamp"] if repeats == "keep" else None
        step = (row["target"], row["target_behaviour"])
        assert step in walk and (at is None or walk[at] == step)
        assert len(row["behaviours"]) == len(row["history"])


def test_the_kind_to_recommend_is_last_and_one_kind_is_none(tmp_path):
    users = [[("a", "view"), ("a", "cart"), ("a", "buy"), ("b", "view"), ("c", "view"), ("b", "cart")]]
    data = prepare(log_of(users), ITEMS)
    assert data.behaviours == ["view", "cart", "buy"]  # by falling count
    data.save(tmp_path / "data")
    loaded = PreparedData.load(tmp_path / "data")
    assert loaded.fingerprint == data.fingerprint and loaded.behaviours == data.behaviours
    assert prepare(log_of(users), ITEMS, behaviours=["buy", "cart"]).behaviours == ["buy", "cart"]
    plain = prepare(log_of(users), ITEMS, behaviours=["view"])
    assert plain.behaviours == [] and "behaviours" not in plain.train.column_names
    untyped = prepare(log_of(users).drop_columns(["behaviour"]), ITEMS)
    assert untyped.train.schema == plain.train.schema and "behaviours" not in untyped.info


def test_kinds_that_are_missing_are_said():
    table = log_of([[("a", "view"), ("b", None), ("c", "buy"), ("d", "buy")]])
    with pytest.raises(ValueError, match="'behaviour': 1 of 4 have no value"):
        prepare(table, ITEMS)
    assert prepare(table, ITEMS, behaviours=["view", "buy"]).info["statistics"]["interactions"] == 3


def test_a_history_with_other_kinds_than_were_trained_is_a_leak():
    data = prepare(log_of([[("a", "view"), ("b", "view"), ("a", "buy"), ("c", "buy"), ("d", "view")]]), ITEMS)
    column = data.test.schema.get_field_index("behaviours")
    wrong = data.test.set_column(column, "behaviours", pa.array([["buy", "view", "buy", "buy"]]))
    with pytest.raises(ValueError, match="leak: test row 1"):
        check_no_leak(dataclasses.replace(data, test=wrong))
    short = data.test.set_column(column, "behaviours", pa.array([["view", "buy", "buy"]]))
    with pytest.raises(ValueError, match="test: items and behaviours differ in length"):
        check_no_leak(dataclasses.replace(data, test=short))


def test_a_table_may_name_its_own_column(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,event\nu,a,view\nu,a,buy\nu,b,view\n")
    interactions, items = load_tables(str(tmp_path / "log.csv"), columns={"behaviour": "event"})
    data = prepare(interactions, items)
    assert data.behaviours == ["view", "buy"] and data.train["behaviours"].to_pylist() == [["view"]]


def test_the_generated_store_leads_from_cart_to_purchase():
    purchases, items = generate_store(num_items=200, num_users=50)
    typed, again = generate_store(num_items=200, num_users=50, behaviours=True)
    assert again.equals(items)
    bought = typed.filter(pa.compute.equal(typed["behaviour"], "buy"))
    assert bought.drop_columns(["behaviour"]).equals(purchases)
    data = prepare(typed, items)
    assert data.behaviours == ["view", "cart", "buy"]
    steps = [step for row in data.train.to_pylist() for step in zip(row["item_ids"], row["behaviours"])]
    followed = [after for before, after in zip(steps, steps[1:]) if before[1] == "cart" and before[0] == after[0]]
    assert followed and {kind for _, kind in followed} == {"buy"}
