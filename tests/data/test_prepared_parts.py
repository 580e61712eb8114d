"""Parts of the users make what is made of all users at once, in memory and on disk."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data import PreparedData, prepare, prepare_parts
from llmrec.data.leaks import check_no_leak, joined_checks
from llmrec.data.prepared import schema_of
from llmrec.data.sequences import duplicates, in_order, parts_of_users
from llmrec.files import fingerprint, read_json, write_json
from llmrec.models.folder import RecommenderConfig

RULES = {
    "leave_one_out": {"user_k": 3, "item_k": 3, "repeats": "drop_consecutive"},
    "time": {"split": "time", "ties": "item_id", "max_history": 4},
    "kinds": {"repeats": "first", "behaviours": ["view", "buy"]},
}


@pytest.fixture(scope="module")
def store():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 60, 900), rng.integers(0, 20, 900)
    log = {"user_id": users, "item_id": items, "timestamp": rng.integers(0, 300, 900)}
    log["behaviour"] = rng.choice(["view", "buy"], 900)
    catalogue = {"item_id": range(20), "title": [f"item {item}" for item in range(20)]}
    return pa.table(log), pa.table(catalogue)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_parts_make_the_same_data(store, rules, tmp_path):
    whole = prepare(*store, **rules)
    parts = prepare_parts(*store, **rules, part_size=100)
    parts.save(tmp_path / "data", settings={"a": 1})
    assert pq.ParquetFile(tmp_path / "data" / "train.parquet").num_row_groups > 4
    saved = PreparedData.load(tmp_path / "data")
    for name in ("items", "train", "valid", "test"):
        assert getattr(saved, name).equals(getattr(whole, name))
    assert saved.info == {**json.loads(json.dumps(whole.info)), "settings": {"a": 1}, "content": whole.fingerprint}
    assert [*saved.info][:3] == ["name", "source", "rules"]


def test_the_last_part_names_what_leaks(store, tmp_path):
    parts = prepare_parts(*store, part_size=100)
    made = list(parts.parts)
    histories = made[-1]["test"]["history"].to_pylist()
    wrong = pa.array([history[:-1] + ["0" if history[-1] != "0" else "1"] for history in histories])
    made[-1]["test"] = made[-1]["test"].set_column(1, "history", wrong.cast(pa.list_(pa.string())))
    with pytest.raises(ValueError, match="leak: test row 1 "):
        dataclasses.replace(parts, parts=iter(made)).save(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_parts_may_not_overlap_in_a_split_by_time(store):
    checks = [check_no_leak(part) for part in prepare_parts(*store, split="time", part_size=100)]
    assert joined_checks(checks) == prepare(*store, split="time").info["leak_check"]
    checks[0]["first_valid"] = checks[-1]["last_train"]
    with pytest.raises(ValueError, match="leak: last_train"):
        joined_checks(checks)


def test_nothing_left_and_users_that_go_back_write_nothing(store, tmp_path):
    log = pa.table({"user_id": list("aab"), "item_id": ["1", "2", "3"], "split": ["valid", "train", "train"]})
    with pytest.raises(ValueError, match="user 'a' has a train interaction after a valid one"):
        prepare_parts(log, store[1], split="given", part_size=1).save(tmp_path / "data")
    log = pa.table({"user_id": list("ab"), "item_id": ["1", "2"], "split": ["valid", "test"]})
    with pytest.raises(ValueError, match="nothing is left"):
        prepare_parts(log, store[1], split="given").save(tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_part_has_a_whole_number_of_interactions(store, size):
    with pytest.raises(ValueError, match=f"^part_size is {size}, it should be a whole number of at least 1"):
        prepare_parts(*store, part_size=size)


def test_parts_are_read_once_and_none_are_nothing(store, tmp_path):
    parts = prepare_parts(*store, part_size=100)
    next(iter(parts))
    with pytest.raises(ValueError, match="^these parts were read already"):
        parts.save(tmp_path / "data")
    with pytest.raises(ValueError, match="^nothing is left"):
        dataclasses.replace(parts, parts=[]).whole()
    assert not list(tmp_path.iterdir())


def test_sorting_some_users_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 50, 3000), rng.integers(0, 5, 3000), rng.integers(0, 9, 3000)
    order, ordered = np.lexsort((items, times, users)), np.sort(users)
    expected = duplicates(ordered, items[order], times[order])
    monkeypatch.setattr("llmrec.data.sequences._SORTED", 40)
    np.testing.assert_array_equal(in_order(users, times, items), order)
    np.testing.assert_array_equal(in_order(users), np.argsort(users, kind="stable"))
    np.testing.assert_array_equal(duplicates(ordered, items[order], times[order]), expected)
    assert expected.any()
    parts = parts_of_users(ordered, 40)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == 3000
    assert all(ordered[part.start - 1] < ordered[part.start] for part in parts[1:])
    assert parts_of_users(ordered[:0], 40) == []


def test_long_tables_of_the_version_before_are_read(tmp_path):
    count = 2**20 + 1
    ids, none = pa.array(np.arange(count)).cast(pa.string()), schema_of("valid", False).empty_table()
    items = pa.table({"item_id": ids, "title": ids})
    data = PreparedData(items, schema_of("train", False).empty_table(), none, none)
    data.save(tmp_path / "data")
    info = read_json(tmp_path / "data" / "dataset.json")
    before = fingerprint(*data.tables, rows_at_once=2 * count)
    assert info["content"] == data.fingerprint != before
    write_json(tmp_path / "data" / "dataset.json", info | {"content": before})
    assert PreparedData.load(tmp_path / "data").items.num_rows == count
    recorded = fingerprint(items.select(["item_id"]), rows_at_once=2 * count)
    config = RecommenderConfig(prompt={}, catalogue_fingerprint=recorded)
    config.check_catalogue(items, tmp_path)  # nor is a model folder refused
    with pytest.raises(ValueError, match="made for another catalogue"):
        config.check_catalogue(items.slice(1), tmp_path)
    write_json(tmp_path / "data" / "dataset.json", info | {"content": "0" * 16})
    with pytest.raises(ValueError, match="the tables are not those"):
        PreparedData.load(tmp_path / "data")
